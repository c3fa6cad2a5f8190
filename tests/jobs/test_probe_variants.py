"""The eQTL probe through the command, its embeddings against loops over single rows."""

import csv
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import helpers
import jax
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen.config import load_config
from jaxgen.errors import InputError
from jaxgen.jobs import inference, probe_variants
from jaxgen.models.registry import resolve

LENGTH, WINDOW, ROWS = 60, 18, 18
SMALL = {"mamba": {"d_model": 16, "n_layer": 1}, "caduceus": {"d_model": 16, "n_layer": 1}, "hyenadna": {}, "nt": {}}
COLUMNS = ("ref_forward_sequence", "alt_forward_sequence", "label", "chromosome", "tissue", "distance_to_nearest_tss")


def make_rows(seed: int) -> list[tuple[str, ...]]:
    """Variants in the middle but two: one at base 10 (the last difference counts), one whose alleles are the same."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(ROWS):
        ref = rng.choice(list("ACGT"), LENGTH)
        place, alt = (10 if i == 1 else LENGTH // 2), ref.copy()
        if i != 2:
            alt[place] = "ACGT"[("ACGT".index(ref[place]) + 1 + i % 3) % 4]
        far = (100, 60_000, 200_000)[i % 3]
        rows.append(("".join(ref), "".join(alt), str(i // 3 % 2), str(1 + i % 5 + 8 * seed), f"tissue{i % 2}", str(far)))
    return rows


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eqtl")
    for seed, split in enumerate(("train", "test")):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *make_rows(seed)])
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Callable[[str], str]:
    """Family -> folder with random weights in the public format."""
    kept: dict[str, str] = {}

    def make(name: str) -> str:
        folder = tmp_path_factory.mktemp(name)
        family, config = resolve(f"{name}_smoke")
        config = dataclasses.replace(config, **SMALL[name.split("_")[0]])
        jaxgen.export(family.build(config, nnx.Rngs(5)), folder)
        return str(folder)

    return lambda name: kept.get(name) or kept.setdefault(name, make(name))


def config(workdir: Path, path: Path | str, model: str = "", **fields: object):
    given = {"data.path": path, "workdir": workdir, "compile_cache": "", "probe.window": WINDOW, "probe.batch_size": 8}
    given |= {"probe.strengths": "1,5", "probe.seeds": "1,2", "probe.rows": 20, "probe.n_jobs": 1}
    given |= {name.replace("__", "."): value for name, value in fields.items()}
    return load_config(f"configs/probe_variants.py:{model}", [(name, str(value)) for name, value in given.items()])


def window_average(hidden: np.ndarray, index: int, width: int) -> np.ndarray:
    """The mean from floor(-w / 2) to w // 2 around a token, position by position."""
    rows = [hidden[min(max(index + offset, 0), len(hidden) - 1)] for offset in range(-width // 2, width // 2 + 1)]
    return np.mean(np.array(rows, np.float64), axis=0)


@functools.cache
def runner(folder: str) -> tuple[jaxgen.Pretrained, Callable]:
    """The model, and ids (n,) -> its hidden states and log probabilities, compiled once per length."""
    loaded = jaxgen.load(folder)

    @jax.jit
    def run(ids):
        output = loaded.model(ids[None], mask=None)
        return output.hidden[0], jax.nn.log_softmax(output.logits[0].astype(np.float32))

    return loaded, lambda ids: tuple(map(np.asarray, run(ids)))


def by_hand(folder: str, name: str, ref: str, alt: str, faithful: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """(forward, reverse, log-likelihood ratio) of one row, as the published script goes about it."""
    loaded, model = runner(folder)
    width = 6 if name.startswith("nt") else 1
    turned = [text[::-1].translate(str.maketrans("ACGT", "TGCA")) for text in (ref, alt)]
    ids, rc_ids = ([loaded.tokenizer.encode(t, add_special_tokens=False) for t in texts] for texts in ((ref, alt), turned))
    n = len(ids[0])
    differ = np.flatnonzero(ids[0] != ids[1])
    index = n // 2 if n // 2 in differ else differ[-1] if differ.size else -1
    hidden = [model(x)[0] for x in ids]
    if name == "caduceus_ps":
        d = hidden[0].shape[1] // 2
        forward, reverse = [h[:, :d] for h in hidden], [h[::-1, : d - 1 : -1] for h in hidden]
        if not faithful:  # position t of the second stream is base t again
            reverse = [h[::-1] for h in reverse]
    else:
        forward, reverse = hidden, [model(x)[0][::-1] for x in rc_ids]
    ratios = []
    for a, b in [ids] if name == "caduceus_ps" else [ids, rc_ids]:
        if name == "mamba":
            logs = [model(x)[1] for x in (a, b)]
            totals = [log[np.arange(n - 1), x[1:]].sum() for log, x in zip(logs, (a, b))]
            ratios.append(totals[1] - totals[0])
        else:
            places = np.flatnonzero(a != b)
            masked = np.where(a != b, loaded.tokenizer.mask_id, a)
            log = model(masked)[1]
            ratios.append(float((log[places, b[places]] - log[places, a[places]]).sum()))
    streams = [np.concatenate([window_average(h, index, WINDOW // width) for h in stream]) for stream in (forward, reverse)]
    return streams[0], streams[1], float(np.mean(ratios))


@pytest.mark.parametrize(("name", "faithful"), [("mamba", False), ("caduceus_ps", False), ("caduceus_ps", True), ("nt_v2", False)])
def test_embeddings_are_those_of_single_rows(table, weights, tmp_path, name, faithful):
    folder = weights(name)
    assert probe_variants.run(config(tmp_path / "w", table, init_from=folder, faithful=faithful)) == 0
    for seed, split in enumerate(("train", "test")):
        forward, reverse, scores = (np.load(tmp_path / "w" / f"{split}_{kind}.npy") for kind in probe_variants.FILES)
        assert forward.dtype == reverse.dtype == np.float32
        assert forward.shape == reverse.shape
        for row in (0, 1, 2, 9, ROWS - 1):
            ours = make_rows(seed)[row]
            expected = by_hand(folder, name, ours[0], ours[1], faithful)
            np.testing.assert_allclose(forward[row], expected[0], rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(reverse[row], expected[1], rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(scores[row, 0], expected[2], rtol=2e-3, atol=2e-4)
            apart = [np.subtract(*np.split(np.asarray(x, np.float64), 2)) for x in expected[:2]]
            np.testing.assert_allclose(scores[row, 1], np.mean([np.linalg.norm(x) for x in apart]), rtol=2e-3, atol=2e-5)
            np.testing.assert_allclose(scores[row, 2], np.mean([np.abs(x).sum() for x in apart]), rtol=2e-3, atol=2e-4)
        kept = np.load(tmp_path / "w" / f"{split}_rows.npz")
        assert kept["labels"].tolist() == [int(row[2]) for row in make_rows(seed)]
        assert kept["distances"].tolist() == [int(row[5]) for row in make_rows(seed)]
    assert {path.name for path in (tmp_path / "w").iterdir() if path.name.startswith(".")} == set()
    result = json.loads((tmp_path / "w/result.json").read_text())
    assert result["streams"] == ("average" if name == "caduceus_ps" else "forward")
    assert set(result["metrics"]) == {"test", "test_std", "zero_shot"}
    lines = list(csv.DictReader((tmp_path / "w/probe.csv").open()))
    assert list(lines[0])[:6] == ["model_name", "bucket_id", "use_tissue", "C", "seed", "AUROC"]
    assert len(lines) == 3 * 2 * 2
    if faithful:
        assert all(line["AUROC"] == line["auroc_hard"] for line in lines)
    else:
        assert all(bool(line["AUROC"]) == (line["selected"] == "True") for line in lines)
    assert (tmp_path / "w/probe.png").read_bytes()[:4] == b"\x89PNG"
    assert "0-30 kb" in (tmp_path / "w/probe.md").read_text()


@pytest.mark.parametrize(("name", "streams"), [("caduceus_ph", "average_test"), ("hyenadna", "forward")])
def test_streams_follow_the_published_rule(table, tmp_path, name, streams):
    fields = {f"model__config__{k}": v for k, v in SMALL[name.split("_")[0]].items()}
    assert probe_variants.run(config(tmp_path / "w", table, f"{name}_smoke", probe__zero_shot=False, **fields)) == 0
    result = json.loads((tmp_path / "w/result.json").read_text())
    assert result["streams"] == streams
    assert result["metrics"]["zero_shot"]["abs_llr_bucket_0"] is None
    assert result["metrics"]["zero_shot"]["l2_bucket_0"] is not None


def test_an_interrupted_run_goes_on_with_the_same_bytes(table, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "RECORD_EVERY", 1)
    fields = {"init_from": weights("mamba")}
    assert probe_variants.run(config(tmp_path / "whole", table, **fields)) == 0
    record, calls = probe_variants.EmbeddingFile.record, []

    def stop(self, shards: int, plan: str) -> None:
        record(self, shards, plan)
        calls.append(self.path.name)
        if len(calls) in (5, 13):  # in the middle of a part of train, then of test
            raise KeyboardInterrupt

    monkeypatch.setattr(probe_variants.EmbeddingFile, "record", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            probe_variants.run(config(tmp_path / "cut", table, **fields))
        assert not (tmp_path / "cut/result.json").exists()
    assert calls[-1].startswith("test")
    assert len(calls) == 13
    with pytest.raises(InputError, match=r"probe\.window"):  # of other settings
        probe_variants.run(config(tmp_path / "cut", table, probe__window=4, **fields))
    assert probe_variants.run(config(tmp_path / "cut", table, **fields)) == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "cut").iterdir()}
    for name in names - {"config.json", "result.json", "probe.png"}:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_several_devices_share_a_batch(table, weights, run_here, tmp_path):
    arguments = ["--config=configs/probe_variants.py", *helpers.flags(data__path=table, init_from=weights("caduceus_ps"), compile_cache="")]
    arguments += helpers.flags(probe__window=WINDOW, probe__rows=20, probe__seeds="1", probe__strengths="1", probe__batch_size=3)
    for devices in (1, 4):
        ended = run_here([*arguments, f"--workdir={tmp_path / str(devices)}"], devices)
        assert ended.code == 0, ended.err
    for name in ("train_forward.npy", "test_reverse.npy", "test_zero_shot.npy"):
        one, four = (np.load(tmp_path / str(devices) / name) for devices in (1, 4))
        np.testing.assert_allclose(one, four, atol=5e-6, rtol=1e-4)


def test_the_default_finds_simulated_effects(tmp_path):
    fields = {f"model__config__{k}": v for k, v in SMALL["mamba"].items()} | {"probe__simulated__length": 128, "probe__rows": 400}
    assert probe_variants.run(config(tmp_path / "w", "", "mamba_smoke", probe__batch_size=64, **fields)) == 0
    result = json.loads((tmp_path / "w/result.json").read_text())
    assert result["simulated"]
    assert result["metrics"]["test"]["auroc"] > 0.6
    assert result["attainable"]["auroc"] > 0.9
    assert (tmp_path / "w/probe.md").read_text().startswith("# SIMULATED")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"probe__streams": "both"}, ["probe.streams='both'"]),
        ({"probe__window": 0}, ["probe.window=0"]),
        ({"probe__length": 600}, ["probe.length=600", "train.csv"]),
        ({"probe__length": 5, "model__name": "nt_v2_smoke"}, ["too short for a single token"]),
        ({"model__name": "cnn_smoke"}, ["choose a language model"]),
        ({"model__name": ""}, ["no model"]),
        ({"data__path": "nowhere"}, ["nowhere", "no such folder"]),
        ({"data__fasta": "nowhere.fa"}, ["nowhere.fa"]),
    ],
)
def test_wrong_input_is_one_line(table, run_here, tmp_path, fields, words):
    given = {"data__path": table, "model__name": "mamba_smoke", "compile_cache": ""} | fields
    ended = run_here(["--config=configs/probe_variants.py", *helpers.flags(**given), f"--workdir={tmp_path / 'w'}"])
    assert ended.code == 2
    for word in words:
        assert word in ended.error
    assert not (tmp_path / "w").exists()


def test_a_tissue_of_train_alone(table, tmp_path):
    for split in ("train", "test"):
        text = (table / f"{split}.csv").read_text()
        (tmp_path / f"{split}.csv").write_text(text.replace("tissue1", "spleen") if split == "train" else text)
    with pytest.raises(InputError, match="tissue 'spleen' of train"):
        probe_variants.run(config(tmp_path / "w", tmp_path, "mamba_smoke", faithful=True))
    assert not (tmp_path / "w").exists()
