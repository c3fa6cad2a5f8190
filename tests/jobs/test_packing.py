"""Seeds trained together, on the tiny task of test_benchmark: what each leaves is what a run of its own leaves."""

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen.errors import InputError
from jaxgen.jobs import benchmark, packing
from jaxgen.train import packed
from jaxgen.train.logging import read_history
from tests.jobs.test_benchmark import config, root  # noqa: F401

SETTINGS = "*@*:train.epochs=3,*@*:train.batch_size=16,*@*:data.rc_aug=true"


def run(root: Path, workdir: Path, models: str, pack: int, settings: str = SETTINGS) -> Path:  # noqa: F811
    fields = {
        "benchmark__models": models,
        "benchmark__cnn": "false",
        "benchmark__seeds": "1,2,3",
        "benchmark__pack": str(pack),
        "benchmark__settings": settings,
    }
    assert benchmark.run(config(root, workdir, **fields)) == 0
    return workdir / "runs/gue/tf_0"


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> Path:  # noqa: F811
    """Three seeds of the CNN, trained together without a break."""
    return run(root, tmp_path_factory.mktemp("whole"), "cnn_smoke", 3)


@pytest.mark.parametrize("model", ["cnn_smoke", "hyenadna_smoke"])
def test_packed_seeds_give_what_single_runs_give(root, tmp_path, model):  # noqa: F811
    apart, together = run(root, tmp_path / "apart", model, 1), run(root, tmp_path / "together", model, 3)
    for seed in (1, 2, 3):
        name = f"{model}_{seed}"
        single, own = (json.loads((folder / name / "result.json").read_text()) for folder in (apart, together))
        assert own.pop("packed") == 3
        assert own.keys() == single.keys()
        assert (own["steps"], own["seed"]) == (single["steps"], seed)
        histories = [[(r["step"], r["split"], r["loss"]) for r in read_history(folder / name)] for folder in (apart, together)]
        assert [h[:2] for h in histories[0]] == [h[:2] for h in histories[1]]
        np.testing.assert_allclose([h[2] for h in histories[1]], [h[2] for h in histories[0]], rtol=2e-3)
        assert (together / name / "report/index.html").exists()
        one, other = (np.load(folder / name / "predictions.npz") for folder in (apart, together))
        np.testing.assert_array_equal(other["test_targets"], one["test_targets"])
        if own["best_step"] == single["best_step"]:
            np.testing.assert_allclose(other["test_predictions"], one["test_predictions"], atol=5e-3)
    assert not list((tmp_path / "together/packs").rglob("checkpoints"))


def test_a_packed_run_is_a_workdir_to_start_from(whole):
    import jaxgen

    digests = {json.loads((whole / f"cnn_smoke_{seed}/result.json").read_text())["params_digest"] for seed in (1, 2, 3)}
    assert len(digests) == 3
    loaded = jaxgen.load(str(whole / "cnn_smoke_2"))
    assert loaded.model is not None


def test_an_interrupted_pack_goes_on_and_ends_with_the_same_bytes(root, whole, tmp_path, monkeypatch):  # noqa: F811
    workdir = tmp_path / "cut"
    settle = packed.Progress.update

    def stop_at_the_fifth(self, at, **values):
        if at == 5:
            signal.raise_signal(signal.SIGTERM)
        settle(self, at, **values)

    monkeypatch.setattr(packed.Progress, "update", stop_at_the_fifth)
    run(root, workdir, "cnn_smoke", 3)
    assert not list(workdir.rglob("result.json"))
    assert list((workdir / "packs").rglob("step_*"))
    monkeypatch.setattr(packed.Progress, "update", settle)
    jax.clear_caches()
    cut = run(root, workdir, "cnn_smoke", 3)
    for seed in (1, 2, 3):
        one, other = (json.loads((folder / f"cnn_smoke_{seed}/result.json").read_text()) for folder in (whole, cut))
        assert (one["params_digest"], one["metrics"], one["best_step"]) == (other["params_digest"], other["metrics"], other["best_step"])
        histories = [[{k: v for k, v in r.items() if k != "time"} for r in read_history(f / f"cnn_smoke_{seed}")] for f in (whole, cut)]
        assert histories[0] == histories[1]


@pytest.mark.parametrize(("seeds", "pack"), [("1,2,3", 1), ("1,2,3,4", 4)])
def test_a_pack_killed_while_it_writes_its_results_is_not_trained_again(root, whole, tmp_path, monkeypatch, seeds, pack):  # noqa: F811
    finish, written = packing.finish, []

    def killed(*args, **fields):
        if written:
            raise KeyboardInterrupt
        written.append(finish(*args, **fields))

    monkeypatch.setattr(packing, "finish", killed)
    workdir = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(root, workdir, "cnn_smoke", 3)
    monkeypatch.setattr(packing, "finish", finish)
    fields = {"benchmark__models": "cnn_smoke", "benchmark__cnn": "false", "benchmark__settings": SETTINGS}
    assert benchmark.run(config(root, workdir, benchmark__seeds=seeds, benchmark__pack=str(pack), **fields)) == 0
    for seed in (1, 2) if pack == 1 else (1, 2, 3):  # apart, seed 3 had left nothing that a run of its own could go on from
        one, other = (json.loads((f / f"cnn_smoke_{seed}/result.json").read_text()) for f in (whole, workdir / "runs/gue/tf_0"))
        assert (one["params_digest"], one["best_step"]) == (other["params_digest"], other["best_step"])
    assert pack == 1 or not list((workdir / "packs").rglob("checkpoints"))


def test_finished_seeds_are_not_repeated_and_a_lone_seed_runs_by_itself(root, tmp_path):  # noqa: F811
    fields = {"benchmark__models": "cnn_smoke", "benchmark__settings": SETTINGS}
    workdir = tmp_path / "grow"
    assert benchmark.run(config(root, workdir, benchmark__seeds="1,2", benchmark__pack="2", **fields)) == 0
    before = (workdir / "runs/gue/tf_0/cnn_smoke_1/result.json").stat().st_mtime_ns
    assert benchmark.run(config(root, workdir, benchmark__seeds="1,2,3", benchmark__pack="5", **fields)) == 0
    assert (workdir / "runs/gue/tf_0/cnn_smoke_1/result.json").stat().st_mtime_ns == before
    assert "packed" not in json.loads((workdir / "runs/gue/tf_0/cnn_smoke_3/result.json").read_text())


def test_batches_of_several_lengths_run_one_after_the_other(tmp_path, capsys):
    folder = tmp_path / "data/gue/tf_0"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        rows = [f"{'ACGT' * (8 if i % 2 else 40)},{i // 2 % 2}\n" for i in range(64)]
        (folder / f"{split}.csv").write_text("sequence,label\n" + "".join(rows))
    settings = "*@*:train.epochs=1,*@*:train.batch_size=16"
    fields = {
        "benchmark__models": "mamba_smoke",
        "benchmark__cnn": "false",
        "benchmark__seeds": "1,2",
        "benchmark__pack": "2",
        "benchmark__settings": settings,
    }
    assert benchmark.run(config(tmp_path / "data", tmp_path / "runs", **fields)) == 0
    assert "one seed after the other: batches of several lengths" in capsys.readouterr().err
    assert "packed" not in json.loads((tmp_path / "runs/runs/gue/tf_0/mamba_smoke_1/result.json").read_text())


def test_a_pack_of_no_seeds_is_refused(root, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=r"benchmark\.pack=0 must be at least 1"):
        benchmark.run(config(root, tmp_path / "none", benchmark__pack="0"))
