"""The training jobs from flags to files, in this process: what a run leaves, and what the options do."""

import json
import math
from pathlib import Path

import helpers
import numpy as np
import pytest

import jaxgen
from jaxgen.checkpoints.workdir import read_arrays
from jaxgen.layers.variables import named_arrays


def result_of(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """Workdirs of runs that several tests of this module read."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def pretrained(keep, fasta, run_here) -> Path:
    """A language model of windows of 96 bases."""
    workdir = keep / "pretrained"
    if not (workdir / "result.json").exists():
        ended = run_here([*helpers.pretrain(fasta, data__max_length=96, train__steps=8), f"--workdir={workdir}"])
        assert ended.code == 0, ended.err
    return workdir


@pytest.fixture
def finetuned(keep, table, run_here) -> Path:
    """A CNN with an average of its weights, and everything that a run can leave."""
    workdir = keep / "finetuned"
    if not (workdir / "result.json").exists():
        ended = run_here([*helpers.cnn(table, train__ema_decay=0.9, train__report="true"), f"--workdir={workdir}"])
        assert ended.code == 0, ended.err
    return workdir


def test_what_a_run_leaves(finetuned):
    result = result_of(finetuned)
    assert set(result["metrics"]) == {"valid", "test"}
    for values in result["metrics"].values():
        assert {"loss", "accuracy", "mcc", "f1_macro"} <= set(values)
    assert result["best_step"] in (4, 8, 12)
    assert (result["steps"], result["seed"], result["nan_steps"]) == (12, 42, 0)
    assert result["examples_per_second"] > 0
    assert len(result["params_digest"]) == 64
    for name in ("versions", "device", "git_revision", "wall_seconds", "tokens_per_second"):
        assert name in result
    assert json.loads((finetuned / "config.json").read_text())["train"]["ema_decay"] == 0.9
    assert {path.name for path in (finetuned / "report").iterdir()} >= {"index.html", "report.md", "training.png", "test_confusion.png"}
    assert list((finetuned / "tensorboard").glob("events*"))
    kept = {int(path.name.removeprefix("step_")) for path in (finetuned / "checkpoints").iterdir()}
    assert kept == {8, 12, result["best_step"]}
    assert not list(finetuned.rglob("*tmp*"))


def test_the_log_has_every_step_once(finetuned):
    records = [json.loads(line) for line in (finetuned / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["split"] == "train"] == list(range(1, 13))
    assert [record["step"] for record in records if record["split"] == "valid"] == [4, 8, 12]
    assert all(math.isfinite(record["loss"]) for record in records)


def test_best_step_is_the_best_of_validation(finetuned):
    records = [json.loads(line) for line in (finetuned / "metrics.jsonl").read_text().splitlines()]
    valid = {record["step"]: record for record in records if record["split"] == "valid"}
    result = result_of(finetuned)
    best = max(valid, key=lambda step: (valid[step]["mcc"], -step))
    assert result["best_step"] == best
    for name, value in result["metrics"]["valid"].items():
        assert value == pytest.approx(valid[best][name], abs=1e-6), name


def test_load_reads_the_best_step_and_its_average(finetuned, capfd):
    loaded = jaxgen.load(str(finetuned))
    assert "WARNING" not in capfd.readouterr().err
    arrays = {name.removeprefix("backbone."): x for name, x in read_arrays(finetuned).items()}
    held = {name: np.asarray(x) for name, x in named_arrays(jaxgen_state(loaded)).items()}
    assert held.keys() == arrays.keys()
    for name, x in held.items():
        assert x.tobytes() == np.asarray(arrays[name]).tobytes(), name
    tokens, _ = loaded.tokenizer.encode_batch(["ACGT" * 20], 96, add_special_tokens=False)
    assert np.isfinite(np.asarray(loaded(tokens).hidden)).all()
    assert loaded.config.input_len == 96


def jaxgen_state(pretrained):
    from flax import nnx

    return nnx.state(pretrained.model)


def test_export_of_a_workdir_is_a_public_checkpoint(pretrained, tmp_path):
    ours = jaxgen.load(str(pretrained))
    again = jaxgen.load(str(jaxgen.export(ours, tmp_path / "public")))
    assert again.config == ours.config
    tokens, _ = ours.tokenizer.encode_batch(["ACGTTGCA" * 4])
    np.testing.assert_array_equal(np.asarray(again(tokens).logits), np.asarray(ours(tokens).logits))


def test_frozen_pretrained_backbone_does_not_move(pretrained, table, tmp_path, run_here):
    fields = {"init_from": pretrained, "model__freeze": "^backbone", "train__steps": 4, "train__learning_rate": 0.1}
    ended = run_here([*helpers.hyenadna(table, **fields), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 0, ended.err
    assert "frozen" in ended.err
    before, after = read_arrays(pretrained), read_arrays(tmp_path / "run")
    assert {name for name in after if not name.startswith("backbone.")} == {"head.linear.kernel", "head.linear.bias"}
    for name, x in after.items():
        if name.startswith("backbone."):
            assert x.tobytes() == before[name].tobytes(), name


def test_early_stopping(table, tmp_path, run_here):
    """With a learning rate of nothing the second evaluation cannot be better than the first; the run ends there, and stays ended."""
    fields = {"train__patience": 2, "train__steps": 40, "train__select": "f1_macro", "train__clip_norm": 0.0}
    constant = {"train__learning_rate": 0.0, "train__schedule__warmup_init": 0.0, "train__schedule__name": "constant"}
    arguments = [*helpers.hyenadna(table, **fields, **constant), f"--workdir={tmp_path / 'run'}"]
    ended = run_here(arguments)
    assert ended.code == 0, ended.err
    assert "stopped early: f1_macro has not improved for 2 evaluations" in ended.err
    result = result_of(tmp_path / "run")
    assert (result["best_step"], result["steps"]) == (4, 12)
    expected = helpers.outcome(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()  # killed before it was written
    assert run_here(arguments).code == 0
    assert helpers.outcome(tmp_path / "run") == expected


HUGE = {"train__learning_rate": 1e30, "train__clip_norm": 0.0, "train__schedule__warmup_fraction": 0.0}


def test_not_finite_stops_and_says_so(table, tmp_path, run_here):
    ended = run_here([*helpers.hyenadna(table, **HUGE), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 2
    assert "not finite" in ended.error
    assert "train.nan_policy=skip" in ended.error
    assert not (tmp_path / "run" / "result.json").exists()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any(step for step in records[:-1] if step["split"] == "train" and step["nan_steps"])
    ended = run_here([*helpers.hyenadna(table), f"--workdir={tmp_path / 'run'}"])  # with a smaller rate, as the message says
    assert ended.code == 0, ended.err


def test_not_finite_is_skipped_and_counted(table, tmp_path, run_here):
    ended = run_here([*helpers.hyenadna(table, **HUGE, train__nan_policy="skip", train__report="true"), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 0, ended.err
    result = result_of(tmp_path / "run")
    assert result["steps"] == 12
    assert 0 < result["nan_steps"] < 12


@pytest.mark.slow
def test_regression_on_both_strands(table, tmp_path, run_here):
    folder = tmp_path / "data"
    folder.mkdir()
    for file in table.iterdir():
        rows = [line.split(",") for line in file.read_text().splitlines()]
        values = [f"{sequence},{sequence.count('A') / len(sequence):.4f}" for sequence, _ in rows[1:]]
        (folder / file.name).write_text("\n".join(["sequence,label", *values]) + "\n")
    fields = {"data__kind": "regression", "data__rc_aug": "false", "data__conjoin_train": "true", "data__conjoin_eval": "true"}
    ended = run_here([*helpers.hyenadna(folder, **fields, train__report="true"), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 0, ended.err
    metrics = result_of(tmp_path / "run")["metrics"]["test"]
    assert {"pearson", "spearman", "r2", "rmse", "loss"} <= set(metrics)
    assert (tmp_path / "run" / "report" / "test_scatter.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["max", "last", "first", "sum"])
def test_poolings(table, tmp_path, run_here, pooling):
    ended = run_here([*helpers.hyenadna(table, head__pooling=pooling, train__steps=4), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_bfloat16_keeps_parameters_in_float32(table, tmp_path, run_here):
    ended = run_here([*helpers.hyenadna(table, precision="bfloat16"), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 0, ended.err
    assert {x.dtype for x in read_arrays(tmp_path / "run").values()} == {np.dtype(np.float32)}
    losses = helpers.losses(tmp_path / "run")
    assert losses["train", 12] < losses["train", 1]
