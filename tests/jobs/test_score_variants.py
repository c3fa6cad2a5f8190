"""Variant scoring through the command, against loops over single alleles with strings cut by hand."""

import csv
import dataclasses
import gzip
import json
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen.config import load_config
from jaxgen.errors import InputError
from jaxgen.jobs import inference, score_variants
from jaxgen.models import caduceus, mamba
from jaxgen.models.registry import resolve
from jaxgen.tokenizers.bpe import train_bpe

pysam = pytest.importorskip("pysam")
LENGTH = 48
DNA = "".join(np.random.default_rng(3).choice(list("ACGT"), 400))
# contig position (from 1), allele
EDITS = [(100, DNA[99], "ACGT"[("ACGT".index(DNA[99]) + 1) % 4]), (4, DNA[3], "ACGT"[("ACGT".index(DNA[3]) + 2) % 4])]
BYTE_PAIRS = ("dnabert2_smoke", "gpt_neo_smoke")
EDITS += [(200, DNA[199:202], DNA[199]), (300, DNA[299], DNA[299] + "GATT"), (398, DNA[397], "ACGT"[("ACGT".index(DNA[397]) + 3) % 4])]
EDITS += [(150, DNA[149], "N"), (385, DNA[384], DNA[384] + "GATT")]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("variants")
    (folder / "g.fa").write_text(f">c\n{DNA}\n")
    lines = ["##fileformat=VCFv4.2", f"##contig=<ID=c,length={len(DNA)}>", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    lines += [f"c\t{position}\tv{i}\t{ref}\t{alt}{',<DEL>' * (i == 0)}\t.\t.\t." for i, (position, ref, alt) in enumerate(EDITS)]
    (folder / "v.vcf").write_text("\n".join(lines) + "\n")
    return folder / "g.fa", folder / "v.vcf"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Family -> folder with random weights in the public format."""

    def make(name: str) -> str:
        folder = tmp_path_factory.mktemp(name)
        family, config = resolve(name)
        if name.startswith("hyenadna"):
            config = family.for_task(config, LENGTH + 2, 0)
        if name in BYTE_PAIRS:
            config = dataclasses.replace(config, vocab_size=300)
            train_bpe([DNA], 300, family.tokenizer(config)[0].removesuffix("_bpe")).save(folder)
        jaxgen.export(family.build(config, nnx.Rngs(5)), folder)
        return str(folder)

    kept: dict[str, str] = {}
    return lambda name: kept.setdefault(name, make(name))


def config(files, workdir: Path, **fields: str):
    fasta, vcf = files
    given = {"data.fasta": str(fasta), "variants.vcf": str(vcf), "workdir": str(workdir), "variants.length": str(LENGTH)}
    given |= {"variants.batch_size": "8", "data.cache": str(workdir.parent / "cache"), "compile_cache": ""}
    return load_config("configs/score_variants.py", list((given | {k.replace("__", "."): v for k, v in fields.items()}).items()))


def by_hand(
    model: jaxgen.Pretrained, name: str, position: int, ref: str, alt: str, turn: bool, shift: int, window: int = 0
) -> tuple[float, float, float]:
    """(ratio, L2, cosine) of one allele in one view."""
    start, middle = position - 1, LENGTH // 2 + shift
    texts = []
    for allele in (ref, alt):
        whole = "N" * 60 + DNA[:start] + allele + DNA[start + len(ref) :] + "N" * 60
        text = whole[60 + start - middle :][:LENGTH]
        texts.append(text[::-1].translate(str.maketrans("ACGT", "TGCA")) if turn else text)
    family = resolve(name)[0]
    ids = [model.tokenizer.encode(text, add_special_tokens=family.special_tokens) for text in texts]
    output = [model(row[None], mask=jnp.ones((1, len(row)), bool)) for row in ids]
    logits = [np.asarray(jax.nn.log_softmax(o.logits[0].astype(jnp.float32))) for o in output]
    if family.causal:
        counted = [[i for i in range(1, len(row)) if known(model, row[i])] for row in ids]
        total = [sum(log[i - 1, row[i]] for i in kept) for log, row, kept in zip(logits, ids, counted)]
        sizes = [sum(known(model, row[i]) for i in kept) for row, kept in zip(ids, counted)]
        ratio = total[1] - total[0] if sizes[0] == sizes[1] else np.nan
    elif len(ref) != len(alt) or [known(model, i) for i in ids[0]] != [known(model, i) for i in ids[1]]:
        ratio = float("nan")
    else:
        differ = ids[0] != ids[1]
        hidden = np.where(differ, model.tokenizer.mask_id, ids[0])
        log = np.asarray(jax.nn.log_softmax(model(hidden[None], mask=jnp.ones((1, len(hidden)), bool)).logits[0]))
        places = np.flatnonzero(differ)
        ratio = float((log[places, ids[1][places]] - log[places, ids[0][places]]).sum())
    a, b = (np.asarray(o.hidden[0], np.float64) for o in output)
    if window:
        place = LENGTH - 1 - middle if turn else middle
        near = [[any(abs(place - base) <= window // 2 for base in bases) for bases in cuts(model, row)] for row in ids]
        a, b = (h[np.array(keep)] for h, keep in zip((a, b), near))
    a, b = a.mean(0), b.mean(0)
    return ratio, float(np.linalg.norm(b - a)), float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def over_views(scores: list[tuple[float, float, float]]) -> list[float]:
    ratios = [ratio for ratio, *_ in scores if np.isfinite(ratio)]
    return [np.mean(ratios) if ratios else np.nan, *np.mean(scores, axis=0)[1:]]


def known(model: jaxgen.Pretrained, token: int) -> int:
    """How many of A, C, G, T it is."""
    text = model.tokenizer.decode(np.array([token]))
    return 0 if set(text) - set("ACGT") else len(text)


def cuts(model: jaxgen.Pretrained, ids: np.ndarray) -> list[list[int]]:
    """The bases of every token, none for special ones; these byte pairs know A, C, G, T, and the windows reach beyond the contig (N)."""
    bases, at = [], 0
    for i in ids.tolist():
        text = model.tokenizer.decode(np.array([i]))
        n = 1 if i == model.tokenizer.unk_id else 0 if text.startswith(("[", "<")) else len(text)
        bases.append(list(range(at, at + n)))
        at += n
    return bases


@pytest.mark.parametrize("name", BYTE_PAIRS)
@pytest.mark.parametrize("window", [0, 9])
def test_byte_pairs_agree_with_a_loop_over_alleles(files, weights, tmp_path, name, window):
    folder = weights(name)
    assert score_variants.run(config(files, tmp_path / "w", init_from=folder, variants__window=str(window))) == 0
    model = jaxgen.load(folder)
    rows = list(csv.DictReader((tmp_path / "w/variants.tsv").open(), delimiter="\t"))
    for row, edit in zip(rows, EDITS, strict=True):
        expected = over_views([by_hand(model, name, *edit, turn, 0, window) for turn in (False, True)])
        got = [float(row[key] or "nan") for key in ("llr", "l2", "cosine")]
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["hyenadna_smoke", "caduceus_ph_smoke", "nt_v2_smoke"])
def test_agrees_with_a_loop_over_alleles(files, weights, tmp_path, name):
    folder = weights(name)
    fields = {"variants__shifts": "0,3" if name == "caduceus_ph_smoke" else "0", "variants__write_vcf": "true"}
    assert score_variants.run(config(files, tmp_path / "w", init_from=folder, **fields)) == 0
    rows = list(csv.DictReader((tmp_path / "w/variants.tsv").open(), delimiter="\t"))
    assert [(int(r["position"]), r["ref"], r["alt"], r["id"]) for r in rows] == [(*edit, f"v{i}") for i, edit in enumerate(EDITS)]
    model = jaxgen.load(folder)
    views = [(turn, shift) for turn in (False, True) for shift in map(int, fields["variants__shifts"].split(","))]
    for row, edit in zip(rows, EDITS):
        expected = over_views([by_hand(model, name, *edit, *view) for view in views])
        got = [float(row[key] or "nan") for key in ("llr", "l2", "cosine")]
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-5)
    result = json.loads((tmp_path / "w/result.json").read_text())
    assert result["skipped"] == {"symbolic allele": 1}
    # N, an insertion that leaves fewer bases between it and the end of the contig; under a masked model every insertion and deletion
    assert result["missing"] == (2 if name == "hyenadna_smoke" else 4)
    with pysam.VariantFile(str(tmp_path / "w/variants.vcf")) as annotated:
        records = list(annotated)
    assert records[0].info["JG_L2"][0] == pytest.approx(float(rows[0]["l2"]), rel=1e-4)
    assert records[0].info["JG_L2"][1] is None
    assert not list((tmp_path / "w").glob(".*"))


def test_a_fine_tuned_head_predicts_both_alleles(files, tmp_path):
    from jaxgen.jobs import finetune

    fields = {
        "data.task": "simulated_promoters",
        "workdir": str(tmp_path / "run"),
        "train.epochs": "0",
        "train.steps": "2",
        "train.batch_size": "16",
    }
    tuned = load_config("configs/finetune.py:hyenadna_smoke", [*fields.items(), ("train.report", "false")])
    assert finetune.run(tuned) == 0
    assert score_variants.run(config(files, tmp_path / "w", init_from=str(tmp_path / "run"))) == 0
    rows = list(csv.DictReader((tmp_path / "w/variants.tsv").open(), delimiter="\t"))
    values = np.array([[float(r[key]) for key in ("ref_0", "ref_1", "alt_0", "alt_1")] for r in rows])
    assert np.isfinite(values).all()
    assert (values[:, :2] != values[:, 2:]).any(1).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variants__vcf": ""}, "variants.vcf is empty"),
        ({"data__fasta": ""}, "data.fasta is empty"),
        ({"variants__strand": "both"}, "variants.strand='both'"),
        ({"model__name": "dnabert2_smoke"}, "reads byte pairs and has no vocabulary"),
        ({"model__name": "cnn_smoke"}, "choose a language model"),
        ({"variants__length": "0"}, "variants.length=0 must be at least 1"),
        (
            {"variants__shifts": "0,24"},
            "variants.shifts: 24 moves the variant out of a window of variants.length=48 bases; .* from -24 to 23",
        ),
    ],
)
def test_wrong_input_is_one_line(files, tmp_path, fields, message):
    with pytest.raises(InputError, match=message) as caught:
        score_variants.run(config(files, tmp_path / "w", **({"model__name": "hyenadna_smoke"} | fields)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_a_file_of_long_alleles_alone(files, tmp_path):
    lines = files[1].read_text().splitlines(keepends=True)
    (tmp_path / "long.vcf").write_text("".join([*lines[:3], lines[5]]))
    fields = {"model__name": "hyenadna_smoke", "variants__vcf": str(tmp_path / "long.vcf"), "variants__length": "4"}
    with pytest.raises(InputError, match=r"no variants to score \(1 left out: longer than 2 bases"):
        score_variants.run(config(files, tmp_path / "w", **fields))


def test_an_interrupted_run_goes_on_with_the_same_bytes(files, weights, tmp_path, monkeypatch):
    fields = {"init_from": weights("hyenadna_smoke"), "variants__batch_size": "8"}
    monkeypatch.setattr(inference, "RECORD_EVERY", 1)
    long = tmp_path / "long.vcf"
    head, *records = files[1].read_text().split("INFO\n")
    long.write_text(head + "INFO\n" + records[0] * 4)
    assert score_variants.run(config(files, tmp_path / "whole", variants__vcf=str(long), **fields)) == 0
    calls = []

    def stop(self, *_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    record = score_variants.EmbeddingFile.record
    monkeypatch.setattr(score_variants.EmbeddingFile, "record", lambda self, *a: (record(self, *a), stop(self))[0])
    with pytest.raises(KeyboardInterrupt):
        score_variants.run(config(files, tmp_path / "cut", variants__vcf=str(long), **fields))
    monkeypatch.setattr(score_variants.EmbeddingFile, "record", record)
    assert score_variants.run(config(files, tmp_path / "cut", variants__vcf=str(long), **fields)) == 0
    assert (tmp_path / "cut/variants.tsv").read_bytes() == (tmp_path / "whole/variants.tsv").read_bytes()


@pytest.mark.parametrize("name", ["mamba", "caduceus_ph"])
def test_all_variants_of_a_real_vcf(tmp_path, name):
    """7,568 variants of 300 samples; a sample of them against strings cut in Python, each read alone, with the softmax written out."""
    folder, length = helpers.real("human_chr20_1mb"), 96  # the longest allele has 45 bases
    if name == "mamba":
        model = mamba.Mamba(mamba.Config(d_model=8, n_layer=1), nnx.Rngs(1))
    else:
        model = caduceus.Caduceus(caduceus.PhConfig(d_model=8, n_layer=1), nnx.Rngs(1))
    for leaf in jax.tree.leaves(nnx.state(model, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        leaf[...] = leaf[...] * 3  # unequal probabilities
    weights, vcf = jaxgen.export(model, tmp_path / "weights"), folder / "phased_300.vcf.gz"
    fields = {"init_from": str(weights), "variants__batch_size": "256", "variants__length": str(length)}
    assert score_variants.run(config((folder / "chr20_1mb.fa.gz", vcf), tmp_path / "w", **fields)) == 0

    with gzip.open(vcf, "rt") as file:
        records = [line.split("\t", 5)[:5] for line in file if not line.startswith("#")]
    rows = list(csv.DictReader((tmp_path / "w/variants.tsv").open(), delimiter="\t"))
    assert len(rows) == 7568
    assert [(r["contig"], r["position"], r["ref"], r["alt"]) for r in rows] == [(c, p, r, a) for c, p, _, r, a in records]
    with gzip.open(folder / "chr20_1mb.fa.gz", "rt") as file:
        dna = "".join(line.strip() for line in file if not line.startswith(">"))

    loaded = jaxgen.load(str(weights)).model
    forward = jax.jit(lambda ids: loaded(ids).logits[0])
    letters = {letter: 7 + i for i, letter in enumerate("ACGTN")}

    def log_p(ids: list[int]) -> np.ndarray:
        values = np.asarray(forward(np.array([ids])), np.float64)
        shifted = values - values.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    snvs = [i for i, r in enumerate(rows) if len(r["ref"]) == len(r["alt"]) == 1]
    others = [i for i in range(len(rows)) if i not in set(snvs)]
    assert (len(snvs), len(others)) == (7252, 316)
    rng = np.random.default_rng(0)
    for i in [snvs[0], snvs[-1], *rng.choice(snvs, 20), *rng.choice(others, 4)]:
        at, ref, alt = int(rows[i]["position"]) - 1, rows[i]["ref"], rows[i]["alt"]
        if name == "caduceus_ph" and i in others:
            assert rows[i]["llr"] == ""
            continue
        found = []
        for reverse in (False, True):
            windows = [(dna[:at] + allele + dna[at + len(ref) :])[at - length // 2 :][:length] for allele in (ref, alt)]
            if reverse:
                windows = [window[::-1].translate(str.maketrans("ACGT", "TGCA")) for window in windows]
            before, after = ([letters[letter] for letter in window] for window in windows)
            if name == "mamba":
                totals = [sum(log_p(ids)[j - 1, ids[j]] for j in range(1, length)) for ids in (before, after)]
                found.append(totals[1] - totals[0])
            else:
                (place,) = [j for j in range(length) if before[j] != after[j]]
                values = log_p([*before[:place], 3, *before[place + 1 :]])[place]  # 3 is [MASK]
                found.append(values[after[place]] - values[before[place]])
        np.testing.assert_allclose(float(rows[i]["llr"]), np.mean(found), rtol=1e-4, atol=2e-5)
