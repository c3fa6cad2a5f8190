"""Scores are those of each sequence alone, computed without the job; and a killed run ends with the same table."""

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
from jaxgen.data.augment import reverse_complement_text
from jaxgen.models import caduceus, dnabert, hyenadna, mamba

LENGTHS = (12, 30, 12, 12, 30, 1)  # few, because the comparison compiles for each
MAMBA = mamba.Config(d_model=16, n_layer=2)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"s{i},{rng.choice(helpers.BASES, n).tobytes().decode()}" for i, n in enumerate(LENGTHS)]
    rows[1] = rows[1][:-4] + "N" + rows[1][-3:]
    path = tmp_path_factory.mktemp("sequences") / "x.csv"
    path.write_text("\n".join(["gene_id,sequence", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def texts(table) -> list[bytes]:
    return [row.split(",")[1].encode() for row in table.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """name -> (folder of a public checkpoint, logits of one row of ids)."""
    models = {
        "mamba": lambda: mamba.Mamba(MAMBA, nnx.Rngs(3)),
        "hyenadna": lambda: hyenadna.HyenaDNA(hyenadna.Config(d_model=16, n_layer=2, d_inner=32, filter_order=8, l_max=40), nnx.Rngs(3)),
        "caduceus": lambda: caduceus.Caduceus(caduceus.PsConfig(d_model=16, n_layer=1), nnx.Rngs(3)),
        "dnabert": lambda: dnabert.DNABert(
            dnabert.Config(vocab_size=69, d_model=16, n_layer=1, n_heads=2, d_inner=32, max_positions=48), nnx.Rngs(3)
        ),
    }
    made = {}

    def get(name):
        if name not in made:
            model = models[name]()
            for leaf in jax.tree.leaves(nnx.state(model, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)):
                leaf[...] = leaf[...] * 3  # unequal probabilities
            nnx.update(model, nnx.state(model))
            folder = jaxgen.export(model, tmp_path_factory.mktemp(name))
            loaded = jaxgen.load(str(folder)).model
            forward = jax.jit(lambda ids: jax.nn.log_softmax(loaded(ids).logits[0].astype(jnp.float32)))
            made[name] = folder, lambda ids: np.asarray(forward(np.asarray(ids)[None]))
        return made[name]

    return get


def score(table: Path, folder: Path, workdir: Path, **fields) -> list[str]:
    fields = {"embed__batch_tokens": 64, "data__path": table} | fields
    return ["--config=configs/score.py", f"--config.init_from={folder}", f"--workdir={workdir}", *helpers.flags(**fields)]


def read(workdir: Path) -> tuple[list[str], np.ndarray]:
    header, *lines = [line.split("\t") for line in (workdir / "scores.tsv").read_text().splitlines()]
    assert header == ["id", "log_likelihood", "tokens", "bases", "per_token", "per_base"]
    return [line[0] for line in lines], np.array([[float(x) for x in line[1:]] for line in lines])


def causal_score(logits, ids) -> tuple[float, int]:
    values = logits(ids)
    wanted = [i for i in range(1, len(ids)) if ids[i] in (7, 8, 9, 10)]
    return sum(float(values[i - 1, ids[i]]) for i in wanted), len(wanted)


def masked_score(logits, tokenizer, text, stride=0) -> tuple[float, int]:
    ids = tokenizer.encode(text)
    framed = tokenizer.name == "dnabert"
    content = list(range(1, len(ids) - 1)) if framed else list(range(len(ids) - 1))
    ids = ids if framed else ids[:-1]
    good, total, count = tokenizer.bases_per_token(), 0.0, 0
    before, after = tokenizer.mask_span
    passes = min(stride, len(content)) if stride else len(content)
    for first in range(passes):
        hidden = np.array(ids)
        chosen = [i for i in content[first::passes] if good[ids[i]]]
        for i in chosen:
            for j in range(i - before, i + after + 1):
                if j in content:
                    hidden[j] = tokenizer.mask_id
        values = logits(hidden)
        total, count = total + sum(float(values[i, ids[i]]) for i in chosen), count + len(chosen)
    return total, count


@pytest.mark.parametrize(
    ("name", "strand", "devices"), [("mamba", "average", 8), pytest.param("hyenadna", "rc", 1, marks=pytest.mark.slow)]
)
def test_causal_scores(table, texts, weights, tmp_path, run_here, name, strand, devices):
    folder, logits = weights(name)
    ended = run_here(score(table, folder, tmp_path / "run", embed__strand=strand), devices)
    assert ended.code == 0, ended.err
    tokenizer = tokenizers.get("caduceus")
    turns = {"forward": (False,), "rc": (True,), "average": (False, True)}[strand]
    expected = []
    for text in texts:
        strands = [reverse_complement_text(text) if turn else text for turn in turns]
        found = [causal_score(logits, tokenizer.encode(strand, add_special_tokens=False)) for strand in strands]
        expected.append(np.mean(found, axis=0))
    ids, values = read(tmp_path / "run")
    assert ids == [f"s{i}" for i in range(len(texts))]
    np.testing.assert_allclose(values[:, :2], expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_array_equal(values[:, 1], values[:, 2])
    np.testing.assert_allclose(values[:-1, 3], values[:-1, 0] / values[:-1, 1], atol=1e-5)
    assert np.isnan(values[-1, 3:]).all()  # one base has nothing before it
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["all"]["loss"] == pytest.approx(-values[:, 0].sum() / values[:, 1].sum(), rel=1e-5)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("name", "stride"), [("caduceus", 4), ("dnabert", 0)])
def test_pseudo_likelihoods(table, texts, weights, tmp_path, run_here, name, stride):
    folder, logits = weights(name)
    tokenizer = tokenizers.get("dnabert", k=3) if name == "dnabert" else tokenizers.get("caduceus")
    ended = run_here(score(table, folder, tmp_path / "run", score__stride=stride, data__buckets=2))
    assert ended.code == 0, ended.err
    expected = [masked_score(logits, tokenizer, text, stride) for text in texts]
    np.testing.assert_allclose(read(tmp_path / "run")[1][:, :2], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_windows_of_long_sequences_add_up(table, texts, weights, tmp_path, run_here):
    folder, logits = weights("mamba")
    ended = run_here(score(table, folder, tmp_path / "run", embed__max_length=11, embed__too_long="chunk"))
    assert ended.code == 0, ended.err
    tokenizer = tokenizers.get("caduceus")
    expected = []
    for text in texts:
        pieces = [tokenizer.encode(text[at : at + 11], add_special_tokens=False) for at in range(0, len(text), 11)]
        expected.append(sum(causal_score(logits, piece)[0] for piece in pieces))
    np.testing.assert_allclose(read(tmp_path / "run")[1][:, 0], expected, rtol=2e-5, atol=1e-5)


def test_goes_on_where_it_was_killed(table, weights, tmp_path, run_here, monkeypatch):
    from jaxgen.jobs.inference import RowWriter

    folder, _ = weights("mamba")
    monkeypatch.setattr("jaxgen.data.segments._SHARD_BATCHES", 1)
    assert run_here(score(table, folder, tmp_path / "whole", embed__batch_tokens=32)).code == 0
    finish, shards = RowWriter.finish_shard, []

    def killed(self):
        finish(self)
        if self.shard >= 0:
            shards.append(self.shard)
        if len(shards) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RowWriter, "finish_shard", killed)
    assert run_here(score(table, folder, tmp_path / "run", embed__batch_tokens=32)).code != 0
    assert not (tmp_path / "run" / "scores.tsv").exists()
    monkeypatch.setattr(RowWriter, "finish_shard", finish)
    ended = run_here(score(table, folder, tmp_path / "run", embed__batch_tokens=32))
    assert ended.code == 0, ended.err
    assert "resumed: 2 of" in ended.err
    assert (tmp_path / "run" / "scores.tsv").read_text() == (tmp_path / "whole" / "scores.tsv").read_text()
    ended = run_here(score(table, folder, tmp_path / "run", embed__batch_tokens=32))
    assert ended.code == 0
    assert "finished already" in ended.err
    ended = run_here(score(table, folder, tmp_path / "run", embed__batch_tokens=64))
    assert ended.code == 2
    assert "embed.batch_tokens=32, not 64" in ended.error


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("cnn_smoke", {}, "'cnn' has no language-model head"),
        ("caduceus_ps_smoke", {"score__stride": -1}, "score.stride=-1"),
        ("mamba_smoke", {"data__path": "nowhere.csv"}, "nowhere.csv: no such file"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(table, tmp_path, run_here, model, fields, message):
    arguments = helpers.flags(**{"data__path": table} | fields)
    ended = run_here([f"--config=configs/score.py:{model}", f"--workdir={tmp_path / 'run'}", *arguments])
    assert ended.code == 2, ended.err
    assert message in ended.error
    assert not (tmp_path / "run").exists()
