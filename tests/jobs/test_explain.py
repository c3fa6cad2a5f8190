"""Explanations through the command, against single mutants edited by hand and read one model call at a time."""

import json
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen import tokenizers
from jaxgen.checkpoints import workdir as workdirs
from jaxgen.data.augment import reverse_complement_text
from jaxgen.layers.variables import named_arrays, with_arrays
from jaxgen.models import caduceus, cnn, dnabert, mamba
from jaxgen.models import nucleotide_transformer as nt

MOTIF = "TATAAAGC"
TEXTS = {"s0": "ACGTTGCATTACG", "s1": "GATTNCAGGTACA", "s2": "CCGTAAC"}


def write_table(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(["gene_id,sequence\n", *(f"{name},{text}\n" for name, text in texts.items())]))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("sequences") / "x.csv", TEXTS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """name -> (folder of a public checkpoint, compiled log-probabilities of one row of ids)."""
    bert = {"d_model": 16, "n_layer": 1, "n_heads": 2, "d_inner": 32}
    models = {
        "mamba": lambda: mamba.Mamba(mamba.Config(d_model=16, n_layer=2), nnx.Rngs(3)),
        "caduceus_ps": lambda: caduceus.Caduceus(caduceus.PsConfig(d_model=16, n_layer=1), nnx.Rngs(3)),
        "dnabert": lambda: dnabert.DNABert(dnabert.Config(vocab_size=69, max_positions=24, **bert), nnx.Rngs(3)),
        "nt_v2": lambda: nt.NucleotideTransformer(nt.ConfigV2(**bert), nnx.Rngs(3)),
    }
    made = {}

    def get(name: str):
        if name not in made:
            model = models[name]()
            for leaf in jax.tree.leaves(nnx.state(model, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)):
                leaf[...] = leaf[...] * 3  # unequal probabilities
            folder = jaxgen.export(model, tmp_path_factory.mktemp(name))
            loaded = jaxgen.load(str(folder)).model
            forward = jax.jit(lambda ids: jax.nn.log_softmax(loaded(ids).logits[0].astype(jnp.float32)))
            made[name] = folder, lambda ids: np.asarray(forward(np.asarray(ids)[None]), np.float64)
        return made[name]

    return get


def explain(data: Path, workdir: Path, init_from: object, **fields) -> list[str]:
    fields = {"data__path": data, "init_from": init_from, "embed__batch_tokens": 512} | fields
    return ["--config=configs/explain.py", f"--workdir={workdir}", *helpers.flags(**fields)]


def turned(text: str) -> str:
    return reverse_complement_text(text.encode()).decode()


def causal_effect(log_p, tokenizer, before: str, after: str) -> float:
    total = []
    for text in (before, after):
        ids = tokenizer.encode(text, add_special_tokens=False)
        values = log_p(ids)
        total.append(sum(values[i - 1, ids[i]] for i in range(1, len(ids)) if ids[i] in (7, 8, 9, 10)))
    return total[1] - total[0]


def hidden_effect(log_p, tokenizer, before: str, after: str) -> float:
    """As `score_variants` has it: the tokens that differ, hidden."""
    special = tokenizer.name != "caduceus"
    ids = [tokenizer.encode(text, add_special_tokens=special) for text in (before, after)]
    if tokenizer.mask_span == (0, 0):
        differ = ids[0] != ids[1]
    else:  # every k-mer over the base, whatever the new letter is
        at = next(i for i in range(len(before)) if before[i] != after[i])
        others = [tokenizer.encode(before[:at] + letter + before[at + 1 :], add_special_tokens=special) for letter in "ACGT"]
        differ = np.any([x != ids[0] for x in others], axis=0)
    values = log_p(np.where(differ, tokenizer.mask_id, ids[0]))
    places = np.flatnonzero(differ)
    return float((values[places, ids[1][places]] - values[places, ids[0][places]]).sum())


@pytest.mark.parametrize(
    ("name", "strand", "window", "devices"), [("mamba", "average", 4, 8), ("dnabert", "forward", 0, 1), ("nt_v2", "average", 0, 1)]
)
def test_mutations_are_those_of_a_loop_over_bases(table, weights, tmp_path, run_here, name, strand, window, devices):
    folder, log_p = weights(name)
    ended = run_here(explain(table, tmp_path / "run", folder, embed__strand=strand, explain__window=window), devices)
    assert ended.code == 0, ended.err
    tokenizer = {"mamba": ("caduceus", {}), "dnabert": ("dnabert", {"k": 3}), "nt_v2": ("nt_v2", {})}[name]
    tokenizer = tokenizers.get(tokenizer[0], **tokenizer[1])
    effect = causal_effect if name == "mamba" else hidden_effect
    arrays = np.load(tmp_path / "run" / "explain.npz")
    assert arrays["ids"].tolist() == list(TEXTS)
    assert arrays["offsets"].tolist() == [0, 13, 26, 33]
    expected = np.full((33, 4), np.nan)
    for text, offset in zip(TEXTS.values(), arrays["offsets"]):
        first = (len(text) - window) // 2 if window else 0
        for at in range(first, first + (window or len(text))):
            for code, letter in enumerate("ACGT"):
                if text[at] != "N":
                    mutant = text[:at] + letter + text[at + 1 :]
                    pairs = [(text, mutant), (turned(text), turned(mutant))][: 2 if strand == "average" else 1]
                    expected[offset + at, code] = 0 if mutant == text else np.mean([effect(log_p, tokenizer, *pair) for pair in pairs])
    np.testing.assert_allclose(arrays["ism"], expected, rtol=1e-4, atol=2e-5)
    assert arrays["ism"].dtype == arrays["grad_x_input"].dtype == np.float32
    np.testing.assert_array_equal(np.isnan(arrays["grad_x_input"]), np.isnan(expected[:, 0]))

    header, *lines = [line.split("\t") for line in (tmp_path / "run" / "explain.tsv").read_text().splitlines()]
    assert header == ["id", "position", "base", "ism_A", "ism_C", "ism_G", "ism_T", "ism_mean", "grad_x_input"]
    known = np.flatnonzero(~np.isnan(expected[:, 0]))
    assert len(lines) == len(known)
    starts = dict(zip(TEXTS, arrays["offsets"]))
    for (identity, position, base, *cells), place in zip(lines, known):
        assert starts[identity] + int(position) - 1 == place
        assert base == TEXTS[identity][int(position) - 1]
        row = [*arrays["ism"][place], -arrays["ism"][place].sum() / 3, arrays["grad_x_input"][place]]
        np.testing.assert_allclose(np.array(cells, float), row, rtol=1e-5, atol=1e-9)
    assert len(list((tmp_path / "run" / "report").glob("*.png"))) == 3
    assert not list((tmp_path / "run").glob(".*"))


def test_byte_pairs_are_read_again_after_every_mutation(table, tmp_path, run_here):
    """Likelihood of all tokens with nothing hidden: their number may change."""
    from jaxgen.tokenizers.bpe import train_bpe

    tokenizer = train_bpe(["ACGTTGCATTACGACGGATTACAGATTACA" * 3], 24)
    tokenizer.save(tmp_path)
    fields = {"model__name": "dnabert2_smoke", "model__tokenizer": tmp_path, "explain__window": 3, "explain__plots": 0}
    ended = run_here(explain(table, tmp_path / "run", "", data__buckets=1, **fields))
    assert ended.code == 0, ended.err
    arrays = np.load(tmp_path / "run" / "explain.npz")
    assert np.isfinite(arrays["ism"]).all(1).sum() == 3 * 3
    assert np.isfinite(arrays["grad_x_input"]).sum() == 3 * 3
    assert np.count_nonzero(arrays["ism"][5:8]) == 9
    assert not list((tmp_path / "run" / "report").glob("*.png"))


def test_an_equivariant_model_has_mirrored_maps(weights, tmp_path, run_here):
    folder, _ = weights("caduceus_ps")
    data = write_table(tmp_path / "x.csv", {"forward": TEXTS["s0"], "backward": turned(TEXTS["s0"])})
    assert run_here(explain(data, tmp_path / "run", folder)).code == 0
    arrays = np.load(tmp_path / "run" / "explain.npz")
    forward, backward = np.split(arrays["ism"], 2)
    np.testing.assert_allclose(forward, backward[::-1, ::-1], atol=1e-4)
    assert np.abs(forward).max() > 0.01
    forward, backward = np.split(arrays["grad_x_input"], 2)
    np.testing.assert_allclose(forward, backward[::-1], rtol=1e-3, atol=1e-4)


def motif_finder(length: int) -> cnn.CNN:
    """A CNN whose first class is the best match of `MOTIF` beyond four letters, wherever it is (in steps of 8)."""
    model = cnn.CNN(cnn.Config(embedding_dim=4, input_len=length), nnx.Rngs(0))
    state = nnx.state(model)
    arrays = {name: np.zeros(x.shape, np.float32) for name, x in named_arrays(state).items()}
    arrays["embedding.table"][7:11] = np.eye(4)
    for i in range(3):
        for name, value in (("scale", 1), ("var", 1)):
            arrays[f"stages.{i}.norm.{name}"][:] = value
        arrays[f"stages.{i}.conv.kernel"][0, 0, 0] = 1  # hands channel 0 on
    arrays["stages.0.conv.kernel"][:, :, 0] = np.eye(4)[["ACGT".index(base) for base in MOTIF]]
    arrays["stages.0.conv.bias"][0] = -4
    arrays["dense.kernel"][: model.config.n_positions, 0] = 1  # channel-major
    arrays["classifier.kernel"][0, 0] = 1
    nnx.update(model, with_arrays(state, {name: jnp.asarray(x) for name, x in arrays.items()}))
    return model


def test_a_motif_is_found(tmp_path, run_here):
    rng = np.random.default_rng(1)
    text = "".join(rng.choice(list("CG"), 96))  # no chance match
    text = text[:32] + MOTIF + text[40:]
    folder = jaxgen.export(motif_finder(96), tmp_path / "cnn")
    data = write_table(tmp_path / "x.csv", {"with/motif": text, "short": text[20:50]})
    ended = run_here(explain(data, tmp_path / "run", folder, explain__output=0))
    assert ended.code == 0, ended.err
    arrays = np.load(tmp_path / "run" / "explain.npz")
    assert arrays["outputs"][0, 0] > 0
    importance, gradient = -arrays["ism"][:96].sum(1) / 3, arrays["grad_x_input"][:96]
    inside = np.zeros(96, bool)
    inside[32:40] = True
    letter = (1 + 1e-5) ** -1.5  # of the match, through three batch norms with their epsilon
    np.testing.assert_allclose(importance[inside], letter, rtol=1e-6)
    np.testing.assert_allclose(gradient[inside], 0.75 * letter, rtol=1e-6)
    np.testing.assert_allclose(importance[~inside], 0, atol=1e-6)
    assert (tmp_path / "run" / "report" / "001_with_motif.png").stat().st_size > 5000


def test_the_head_of_a_fine_tuned_run_is_explained(tmp_path, run_here, table):
    run = tmp_path / "tuned"
    small = helpers.write_table(tmp_path / "table", {"train": 32, "dev": 16, "test": 16}, length=24)
    ended = run_here([*helpers.hyenadna(small, train__steps=2, train__eval_every=2), f"--workdir={run}"])
    assert ended.code == 0, ended.err
    fields = {"explain__window": 3, "explain__methods": "ism,", "data__buckets": 1}
    assert run_here(explain(table, tmp_path / "auto", run, **fields)).code == 0
    assert run_here(explain(table, tmp_path / "one", run, explain__output=1, **fields)).code == 0
    auto, one = (np.load(tmp_path / name / "explain.npz") for name in ("auto", "one"))

    loaded, arrays = jaxgen.load(str(run)), workdirs.read_arrays(run)
    forward = jax.jit(lambda ids: loaded.model(ids).hidden)

    def logits(text: str) -> np.ndarray:
        ids = loaded.tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(forward(ids[None])[0]).mean(0) @ arrays["head.linear.kernel"] + arrays["head.linear.bias"]

    for row, text in enumerate(TEXTS.values()):
        own, offset, at = logits(text), auto["offsets"][row], len(text) // 2
        np.testing.assert_allclose(auto["outputs"][row], own, atol=1e-5)
        best = int(own.argmax())
        for code, letter in enumerate("ACGT"):
            change = logits(text[:at] + letter + text[at + 1 :]) - own
            np.testing.assert_allclose(one["ism"][offset + at, code], change[1], atol=1e-5)
            np.testing.assert_allclose(auto["ism"][offset + at, code], change[best] - change[1 - best], atol=1e-5)
    ended = run_here(explain(table, tmp_path / "bad", run, explain__output=2))
    assert (ended.code, "explain.output=2: the model has outputs 0 ... 1" in ended.error) == (2, True)


def test_regions_of_a_bed(weights, tmp_path, run_here, fasta):
    folder, _ = weights("mamba")
    bed = tmp_path / "regions.bed"
    bed.write_text("c1\t100\t113\nc2\t7\t20\n")
    fields = {"data__fasta": fasta, "data__cache": tmp_path / "cache", "explain__methods": "grad_x_input,"}
    assert run_here(explain(bed, tmp_path / "bed", folder, **fields)).code == 0
    contigs = fasta.read_text().split("\n")
    texts = {"c1:100-113": contigs[1][100:113], "c2:7-20": contigs[3][7:20]}
    assert run_here(explain(write_table(tmp_path / "x.csv", texts), tmp_path / "table", folder, **fields)).code == 0
    regions, rows = (np.load(tmp_path / name / "explain.npz") for name in ("bed", "table"))
    assert regions.files == ["ids", "offsets", "outputs", "weights", "grad_x_input"]
    assert regions["ids"].tolist() == list(texts)
    np.testing.assert_array_equal(regions["grad_x_input"], rows["grad_x_input"])
    ended = run_here(explain(bed, tmp_path / "none", folder))
    assert (ended.code, "--config.data.fasta=FILE" in ended.error) == (2, True)


@pytest.mark.parametrize("parts", [2, 7])  # some mutants, or all of them
def test_goes_on_where_it_was_killed(table, weights, tmp_path, run_here, monkeypatch, parts):
    from jaxgen.jobs.inference import RowWriter

    folder, _ = weights("mamba")
    monkeypatch.setattr("jaxgen.data.segments._SHARD_BATCHES", 1)
    fields = {"embed__batch_tokens": 256, "data__buckets": 1}
    assert run_here(explain(table, tmp_path / "whole", folder, **fields)).code == 0
    finish, shards = RowWriter.finish_shard, []

    def killed(self):
        finish(self)
        if self.shard >= 0:
            shards.append(self.shard)
        if len(shards) == parts:
            raise KeyboardInterrupt

    monkeypatch.setattr(RowWriter, "finish_shard", killed)
    assert run_here(explain(table, tmp_path / "run", folder, **fields)).code != 0
    assert not (tmp_path / "run" / "explain.tsv").exists()
    monkeypatch.setattr(RowWriter, "finish_shard", finish)
    ended = run_here(explain(table, tmp_path / "run", folder, **fields))
    assert ended.code == 0, ended.err
    assert f"resumed: {parts} of 7 parts of outputs" in ended.err
    for name in ("explain.tsv", "explain.npz", "report/001_s0.png"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert "finished already" in run_here(explain(table, tmp_path / "run", folder, **fields)).err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["all"]["bases"] == 32


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("mamba_smoke", {"explain__methods": "ism,shap"}, "explain.methods: unknown method 'shap'"),
        ("mamba_smoke", {"explain__window": 12}, "explain.window=12 is larger than the 7 bases of sequence 's2'"),
        ("mamba_smoke", {"explain__output": 1}, "a language model has no classes"),
        ("mamba_smoke", {"embed__strand": "both"}, "embed.strand='both'"),
        ("mamba_smoke", {"data__path": "nowhere.csv"}, "nowhere.csv: no such file"),
        ("mamba_smoke", {"embed__max_length": 9}, "sequence 's0' has 13 tokens, but the model takes 9"),
        ("", {}, "no model"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(table, tmp_path, run_here, model, fields, message):
    ended = run_here(explain(table, tmp_path / "run", "", **{"model__name": model} | fields))
    assert ended.code == 2, ended.err
    assert message in ended.error
    assert not (tmp_path / "run").exists()
