"""Embeddings are those of each sequence alone, whatever the batches, the devices and the way they were asked for."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import helpers
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen import tokenizers
from jaxgen.data.augment import reverse_complement_text
from jaxgen.data.perturbation_files import read_embeddings
from jaxgen.models import hyenadna
from jaxgen.models.registry import get_family

LENGTHS = (5, 85, 40, 40, 5, 85, 85, 40, 85, 5, 85, 5)  # few, because the comparison compiles for each
CONFIG = hyenadna.Config(d_model=16, n_layer=2, d_inner=32, filter_order=8, l_max=96, embed_dropout=0.0)


def write_sequences(path: Path, lengths=LENGTHS, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    texts = [rng.choice(helpers.BASES, n).tobytes() for n in lengths]
    rows = [f"name{i},ENSG{i:03},{text.decode()}" for i, text in enumerate(texts)]
    path.write_text("\n".join(["gene_name,gene_id,sequence", *rows]) + "\n")
    return texts


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sequences") / "tf_sequences.csv"
    write_sequences(path)
    return path


@pytest.fixture(scope="module")
def texts(table) -> list[bytes]:
    return [row.split(",")[2].encode() for row in table.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A HyenaDNA that was saved as a public checkpoint."""
    return Path(jaxgen.export(hyenadna.HyenaDNA(CONFIG, nnx.Rngs(3)), tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def alone(weights):
    """text -> hidden states (layers, tokens, features), in a batch of one without padding."""
    loaded, tokenizer = jaxgen.load(str(weights)), tokenizers.get("character")

    def states(text: bytes) -> np.ndarray:
        output = loaded(tokenizer.encode(text)[None], hidden_states=True)
        return np.asarray(output.hidden_states[:, 0])

    cache: dict[bytes, np.ndarray] = {}
    return lambda text: cache.setdefault(text, states(text)) if text not in cache else cache[text]


def arguments(table: Path, weights: Path, workdir: Path, **fields) -> list[str]:
    fields = {"embed__batch_tokens": 256, "data__buckets": 3} | fields
    return [
        "--config=configs/embed.py",
        f"--config.init_from={weights}",
        f"--workdir={workdir}",
        *helpers.flags(**{"data__path": table} | fields),
    ]


def embeddings(workdir: Path, name: str = "hyenadna_embeddings.npy") -> np.ndarray:
    return np.load(workdir / name)


POOLED = {"mean": lambda h: h.mean(0), "max": lambda h: h.max(0), "cls": lambda h: h[0], "last": lambda h: h[-1]}


@pytest.mark.parametrize(("pooling", "layer", "devices"), [("mean", -1, 1), ("mean", -1, 8), ("max", 0, 1), ("cls", 1, 1), ("last", -2, 1)])
def test_rows_are_those_of_each_sequence_alone(table, texts, weights, alone, tmp_path, run_here, pooling, layer, devices):
    ended = run_here(arguments(table, weights, tmp_path, embed__pooling=pooling, embed__layer=layer), devices)
    assert ended.code == 0, ended.err
    expected = np.stack([POOLED[pooling](alone(text)[layer]) for text in texts])
    ours = embeddings(tmp_path)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    read = read_embeddings(tmp_path / "hyenadna_embeddings.npy", tmp_path / "hyenadna_gene_index.txt")  # as the TF benchmark does
    np.testing.assert_array_equal(read.values, ours)
    ids = np.load(tmp_path / "hyenadna_ids.npy")
    assert ids.dtype.kind == "U"
    assert ids.tolist() == [f"ENSG{i:03}" for i in range(len(texts))]
    assert (tmp_path / "hyenadna_gene_index.txt").read_text() == "\n".join(ids)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["rows"], result["width"], result["non_finite"], result["truncated"]) == (12, 16, [], 0)
    assert 1 < len(result["buckets"]) <= 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_rows_without_ids_are_numbered(tmp_path, weights, run_here):
    path = tmp_path / "x.csv"
    path.write_text("sequence\nACGT\nAACC\n")
    assert run_here(arguments(path, weights, tmp_path / "run", embed__id_column="")).code == 0
    assert next((tmp_path / "run").glob("*_gene_index.txt")).read_text().split() == ["1", "2"]


def test_batches_and_buckets_change_nothing_but_rounding(table, weights, tmp_path, run_here):
    made = []
    for i, fields in enumerate(({"data__buckets": 1}, {"embed__batch_tokens": 96}, {"embed__batch_tokens": 4096, "data__threads": 0})):
        assert run_here(arguments(table, weights, tmp_path / str(i), **fields)).code == 0
        made.append(embeddings(tmp_path / str(i)))
    np.testing.assert_allclose(made[0], made[1], atol=2e-6)
    np.testing.assert_allclose(made[0], made[2], atol=2e-6)


@pytest.mark.parametrize("strand", ["rc", "average"])
def test_strands(table, texts, weights, alone, tmp_path, run_here, strand):
    assert run_here(arguments(table, weights, tmp_path, embed__strand=strand)).code == 0
    both = [[alone(turned)[-1].mean(0) for turned in (text, reverse_complement_text(text))] for text in texts]
    expected = np.stack([rc if strand == "rc" else (forward + rc) / 2 for forward, rc in both])
    np.testing.assert_allclose(embeddings(tmp_path), expected, atol=2e-5)


def test_all_tokens(table, texts, weights, alone, tmp_path, run_here):
    assert run_here(arguments(table, weights, tmp_path, embed__pooling="none", embed__dtype="float16")).code == 0
    values, offsets = embeddings(tmp_path), np.load(tmp_path / "hyenadna_offsets.npy")
    assert values.dtype == np.float16
    assert offsets.tolist() == np.cumsum([0, *(len(text) + 2 for text in texts)]).tolist()
    for text, start, end in zip(texts, offsets, offsets[1:]):
        np.testing.assert_allclose(values[start:end], alone(text)[-1], atol=2e-3)


def test_tokens_of_sequences_of_one_token(weights, tmp_path, run_here):
    """As many rows as sequences, yet each a token and no sum."""
    write_sequences(tmp_path / "x.csv", (1, 1, 1))
    fields = {"embed__pooling": "none", "embed__special_tokens": "false"}
    assert run_here(arguments(tmp_path / "x.csv", weights, tmp_path / "run", **fields)).code == 0
    assert (np.abs(embeddings(tmp_path / "run")).max(1) > 0).all()


def test_longer_than_the_model(table, texts, weights, alone, tmp_path, run_here):
    limited = {"embed__max_length": 42}
    ended = run_here(arguments(table, weights, tmp_path / "error", **limited))
    assert ended.code == 2
    assert "'ENSG001' has 87 tokens, but the model takes 42 (5 such sequences)" in ended.error
    assert not (tmp_path / "error").exists()
    assert run_here(arguments(table, weights, tmp_path / "cut", embed__too_long="truncate", **limited)).code == 0
    expected = np.stack([alone(text[:40])[-1].mean(0) for text in texts])
    np.testing.assert_allclose(embeddings(tmp_path / "cut"), expected, atol=2e-5)
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["truncated"] == 5
    assert run_here(arguments(table, weights, tmp_path / "windows", embed__too_long="chunk", embed__strand="average", **limited)).code == 0
    expected = []
    for text in texts:
        strands = []
        for turned in (text, reverse_complement_text(text)):
            pieces = [turned[at : at + 40] for at in range(0, len(turned), 40)]
            strands.append(sum(len(piece) * alone(piece)[-1].mean(0) for piece in pieces) / len(turned))
        expected.append(sum(strands) / 2)
    np.testing.assert_allclose(embeddings(tmp_path / "windows"), np.stack(expected), atol=2e-5)
    assert json.loads((tmp_path / "windows" / "result.json").read_text())["chunked"] == 5


def test_rows_with_nan_are_kept_and_named(table, weights, tmp_path, run_here):
    model = jaxgen.load(str(weights)).model
    model.embedding.table[...] = model.embedding.table[...].at[11].set(jnp.nan)  # the base N
    broken = jaxgen.export(model, tmp_path / "broken")
    lines = table.read_text().splitlines()
    (tmp_path / "n.csv").write_text("\n".join([*lines[:3], lines[3] + "N", *lines[4:6]]) + "\n")
    ended = run_here(arguments(tmp_path / "n.csv", broken, tmp_path / "run"))
    assert ended.code == 0, ended.err
    assert "1 rows hold NaN" in ended.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["non_finite"] == ["ENSG002"]
    assert np.isnan(embeddings(tmp_path / "run")).any(axis=1).tolist() == [False, False, True, False, False]


def test_fasta_and_gzip_are_read(table, texts, weights, tmp_path, run_here):
    (tmp_path / "x.fa").write_bytes(b"".join(b">ENSG%03d a gene\n%s\n" % (i, text) for i, text in enumerate(texts)))
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress(table.read_text().replace(",", "\t").replace("gene_id", "id").encode()))
    made = []
    for file, fields in (("x.fa", {}), ("x.tsv.gz", {"embed__id_column": "id"})):
        workdir = tmp_path / file.partition(".")[2]
        ended = run_here(arguments(tmp_path / file, weights, workdir, **fields))
        assert ended.code == 0, ended.err
        made.append(embeddings(workdir))
        assert np.load(workdir / "hyenadna_ids.npy")[3] == "ENSG003"
    np.testing.assert_array_equal(made[0], made[1])


def test_one_folder_holds_one_model_and_setting(table, weights, tmp_path, run_here):
    workdir, other = tmp_path / "run", tmp_path / "other.csv"
    write_sequences(other, seed=1)
    assert run_here(arguments(table, weights, workdir, embed__name="tf")).code == 0
    before = {path.name: path.read_bytes() for path in workdir.iterdir()}
    ended = run_here(arguments(table, weights, workdir, embed__name="tf"))
    assert ended.code == 0
    assert "finished already" in ended.err
    model = hyenadna.HyenaDNA(CONFIG, nnx.Rngs(4))
    for fields, path, message in (
        ({"embed__pooling": "max"}, weights, "holds embeddings with pooling='mean', not 'max'"),
        ({}, jaxgen.export(model, tmp_path / "w2"), "holds embeddings with fingerprint="),
        ({"data__path": other}, weights, "holds 'tf' with data='tf_sequences.csv', not 'other.csv'"),
        ({"data__path": other, "embed__name": "b", "embed__files__ids": "tf_ids.npy"}, weights, "exists already, of the export 'tf'"),
    ):
        ended = run_here(arguments(table, path, workdir, **{"embed__name": "tf"} | fields))
        assert ended.code == 2
        assert message in ended.error
    assert {path.name: path.read_bytes() for path in workdir.iterdir()} == before
    assert run_here(arguments(other, weights, workdir, embed__name="gene")).code == 0
    assert set(json.loads((workdir / "manifest.json").read_text())["exports"]) == {"tf", "gene"}


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ("gene_id,sequence\na,ACGT\nb,AC\na,AC\n", {}, "'gene_id' occurs more than once for 'a'"),
        ("gene_id,sequence\na,\n", {}, ":2: empty 'sequence'"),
        ("gene_id,sequence\n,AC\n", {}, ":2: empty 'gene_id'"),
        ("gene,sequence\na,AC\n", {}, "no column 'gene_id'; did you mean 'gene'?"),
        ("gene,sequence\na,AC\n", {}, "set embed.id_column (empty: rows are numbered)"),
        ("gene_id,sequence\na,AC\n", {"embed__pooling": "men"}, "embed.pooling='men'; did you mean 'mean'?"),
        ("gene_id,sequence\na,AC\n", {"embed__layer": "7"}, "embed.layer=7: the model has hidden states 0 ... 3"),
        ("gene_id,sequence\na,AC\n", {"embed__strand": "both"}, "embed.strand='both'"),
        ("gene_id,sequence\na,AC\n", {"embed__too_long": "cut"}, "embed.too_long='cut'"),
        ("gene_id,sequence\na,AC\n", {"embed__dtype": "int8"}, "embed.dtype='int8'"),
        ("gene_id,sequence\na,AC\n", {"embed__batch_tokens": "0"}, "embed.batch_tokens=0"),
        ("gene_id,sequence\na,AC\n", {"embed__max_length": "2"}, "embed.max_length=2 leaves no room"),
        ("gene_id,sequence\na,AC\n", {"embed__files__ids": "{nam}.npy"}, "embed.files.ids='{nam}.npy': may hold {name}"),
        ("gene_id,sequence\na,AC\n", {"embed__pooling": "none", "embed__strand": "average"}, "embed.pooling=none keeps every token"),
        (None, {}, "no such file"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(weights, tmp_path, run_here, content, fields, message):
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_text(content)
    ended = run_here(arguments(path, weights, tmp_path / "run", **fields))
    assert ended.code == 2, ended.err
    assert message in ended.error
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


def test_the_last_of_repeated_ids_on_request(weights, alone, tmp_path, run_here):
    (tmp_path / "x.csv").write_text("gene_id,sequence\na,ACGT\nb,AC\na,GGG\n")
    ended = run_here(arguments(tmp_path / "x.csv", weights, tmp_path / "run", embed__duplicates="last"))
    assert ended.code == 0, ended.err
    assert np.load(tmp_path / "run" / "hyenadna_ids.npy").tolist() == ["a", "b"]
    np.testing.assert_allclose(embeddings(tmp_path / "run")[0], alone(b"GGG")[-1].mean(0), atol=2e-5)


def test_models_without_hidden_states_are_refused(table, tmp_path, run_here):
    ended = run_here(["--config=configs/embed.py:cnn_smoke", f"--config.data.path={table}", f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 2
    assert "'cnn' has no hidden states" in ended.error
    assert get_family("cnn").emits == "predictions"


LANGUAGE_MODELS = {
    "caduceus_ph": {"d_model": 16, "n_layer": 2},
    "caduceus_ps": {"d_model": 16, "n_layer": 2},
    "dnabert": {"d_model": 16, "n_layer": 2, "n_heads": 2, "d_inner": 32},
    "dnabert2": {"d_model": 16, "n_layer": 2, "n_heads": 2, "d_inner": 32, "vocab_size": 300},
    "gpt_neo": {"d_model": 16, "n_heads": 2},
    "mamba": {"d_model": 16, "n_layer": 2},
    "nt_v1": {"d_model": 16, "n_layer": 2, "n_heads": 2, "d_inner": 32},
    "nt_v2": {"d_model": 16, "n_layer": 2, "n_heads": 2, "d_inner": 32},
}
VOCABULARIES = {"dnabert2": "bpe_tiny", "gpt_neo": "gpt2_bytebpe_tiny"}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_language_model(name, tmp_path, run_here):
    """Padding, on whichever side, and the other rows of a batch do not change what a model says of a sequence."""
    family = get_family(name)
    config = family.for_task(dataclasses.replace(family.sizes["smoke"], **LANGUAGE_MODELS[name]), 64, 0)
    weights = Path(jaxgen.export(family.build(config, nnx.Rngs(3)), tmp_path / "weights"))
    if name in VOCABULARIES:
        for file in helpers.golden_case("tokenizers", VOCABULARIES[name]).iterdir():
            shutil.copy(file, weights)
    texts = write_sequences(tmp_path / "x.csv", (7, 40, 40, 7))
    options = {"embed__strand": "average", "embed__layer": 1, "data__buckets": 1}
    ended = run_here(arguments(tmp_path / "x.csv", weights, tmp_path / "run", **options))
    assert ended.code == 0, ended.err
    loaded = jaxgen.load(str(weights))

    def alone(text: bytes) -> np.ndarray:
        return np.asarray(loaded(loaded.tokenizer.encode(text)[None], hidden_states=True).hidden_states[1, 0]).mean(0)

    expected = [(alone(text) + alone(reverse_complement_text(text))) / 2 for text in texts]
    np.testing.assert_allclose(embeddings(tmp_path / "run", f"{name}_embeddings.npy"), np.stack(expected), atol=2e-5)
