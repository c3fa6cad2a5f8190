"""A workdir belongs to one job: no other writes over what it left."""

import json
from pathlib import Path

import helpers
import pytest

COMMANDS = {
    "embed": ["--config=configs/embed.py:nt_v2_smoke"],
    "generate": ["--config=configs/generate.py:mamba_smoke", "--config.generate.prompt=ACGT"],
    "baseline": ["--config=configs/finetune.py", "--config.job=baseline", "--config.data.task=simulated_promoters"],
    "benchmark": ["--config=configs/benchmark.py", "--config.benchmark.models=cnn", "--config.benchmark.tasks=simulated_promoters"],
    "finetune": ["--config=configs/finetune.py"],
}


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("job", COMMANDS)
@pytest.mark.parametrize("left", ["config.json", "result.json"])
def test_another_job_is_refused(run_here, tmp_path, job, left):
    other = "pretrain" if job == "finetune" else "finetune"
    (tmp_path / left).write_text(json.dumps({"job": other}))
    before = files(tmp_path)
    ended = run_here([*COMMANDS[job], f"--workdir={tmp_path}"])
    assert ended.code == 2, ended.err
    assert f"holds a run with config.job='{other}', not '{job}'" in ended.error
    assert files(tmp_path) == before


def test_a_published_checkpoint_is_not_written_over(run_here, tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    ended = run_here([*COMMANDS["finetune"], f"--workdir={tmp_path}"])
    assert ended.code == 2
    assert "holds a config.json that no job of jaxgen wrote" in ended.error


def test_a_baseline_leaves_its_config_and_is_not_computed_twice(run_here, table, tmp_path):
    arguments = ["--config=configs/finetune.py", "--config.job=baseline", "--config.data.task=table", f"--workdir={tmp_path}"]
    arguments += helpers.flags(data__path=table, baseline__max_k=2)
    assert run_here(arguments).code == 0
    before = files(tmp_path)
    assert json.loads(before["config.json"])["job"] == "baseline"
    again = run_here(arguments)
    assert again.code == 0
    assert "finished already" in again.err
    ended = run_here([*arguments, "--config.baseline.max_k=3"])
    assert ended.code == 2
    assert "config.baseline.max_k=2, not 3" in ended.error
    assert files(tmp_path) == before
