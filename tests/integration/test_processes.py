"""Several processes and several device counts: the same run, wherever it is continued."""

import json
import os
import signal
import sys
from pathlib import Path

import helpers
import pytest

from jaxgen.train.logging import RunLog

STEPS = {"train__steps": 24, "train__eval_every": 12, "train__checkpoint_every": 4}


def assert_close(workdir: Path, other: Path, tolerance: float = 1e-5) -> None:
    ours, theirs = helpers.losses(workdir), helpers.losses(other)
    assert ours.keys() == theirs.keys()
    for key, loss in theirs.items():
        assert ours[key] == pytest.approx(loss, abs=tolerance), key
    metrics, expected = (helpers.outcome(path)["metrics"] for path in (workdir, other))
    for split, values in expected.items():
        assert metrics[split]["loss"] == pytest.approx(values["loss"], abs=tolerance)


@pytest.fixture(scope="module")
def arguments(fasta) -> list[str]:
    return helpers.pretrain(fasta, data__objective="mlm", model__config__n_layer=1, **STEPS)


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory) -> Path:
    """Workdir of one process with one device that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended = helpers.run_job([*arguments, f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    return workdir


# Device counts, in this process -------------------------------------------------------------------------------------------------


@pytest.fixture
def stop_at(monkeypatch):
    """SIGTERM while step `n` is logged: the step after it is the last one of the process."""

    def arm(step: int) -> None:
        log = RunLog.log

        def logging(self, at, split, values):
            log(self, at, split, values)
            if at == step and split == "train":
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(RunLog, "log", logging)

    return arm


def test_8_devices_then_4_then_1(arguments, alone, tmp_path, run_here, stop_at):
    """The order of the data does not depend on the devices, and what was sharded is found again."""
    workdir = tmp_path / "run"
    for devices, mesh, stop in ((8, {"fsdp": 2, "tensor": 2}, 5), (4, {"fsdp": 4}, 13), (1, {}, None)):
        if stop:
            stop_at(stop)
        sizes = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
        ended = run_here([*arguments, *sizes, f"--workdir={workdir}"], devices=devices)
        assert ended.code == 0, ended.err
        assert ("SIGTERM" in ended.err) == bool(stop)
        assert ("resumed from step" in ended.err) == (devices < 8)
    assert_close(workdir, alone)


# Processes ----------------------------------------------------------------------------------------------------------------------


def launch(arguments: list[str], workdir: Path, devices: int = 1) -> "helpers.subprocess.Popen[str]":
    options = ["--processes=2", "--cpu", f"--devices-per-process={devices}", "--"]
    return helpers.start_python(["launch/local.py", *options, *arguments, f"--workdir={workdir}"])


def logged(workdir: Path) -> int:
    log = workdir / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def test_two_processes_are_one_run(arguments, alone, tmp_path):
    workdir = tmp_path / "run"
    ended = helpers.finish(launch([*arguments, "--config.train.report=true"], workdir))
    assert ended.code == 0, ended.err
    assert_close(workdir, alone)
    result = json.loads((workdir / "result.json").read_text())
    assert (result["process_count"], result["device_count"]) == (2, 2)
    assert (workdir / "report" / "index.html").exists()
    assert ended.err.count("result: ") == 1  # the main process alone speaks
    assert not [line for line in ended.err.splitlines() if line.startswith("[1] step")]


def children(process: "helpers.subprocess.Popen[str]") -> list[int]:
    """The processes that a launcher started, by rank."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                ranks = [item for item in (folder / "environ").read_bytes().split(b"\0") if item.startswith(b"JAXGEN_PROCESS_ID=")]
            except (OSError, ValueError):
                continue
            if parent == process.pid and ranks:
                found.append((int(ranks[0].split(b"=")[1]), int(folder.name)))
    return [pid for _, pid in sorted(found)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_dies_and_the_run_continues(arguments, alone, tmp_path, rank):
    workdir = tmp_path / "run"
    process = launch([*arguments, "--config.mesh.fsdp=2"], workdir, devices=2)
    assert helpers.wait_until(lambda: logged(workdir) >= 9, process), process.communicate()[1]
    os.kill(children(process)[rank], signal.SIGKILL)
    ended = helpers.finish(process)
    assert ended.code != 0
    assert f"process {rank} ended" in ended.err
    assert not (workdir / "result.json").exists()
    ended = helpers.finish(launch([*arguments, "--config.mesh.fsdp=2"], workdir, devices=2))
    assert ended.code == 0, ended.err
    assert "resumed from step" in ended.err
    assert_close(workdir, alone)


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_exits_0(fasta, tmp_path):
    arguments = helpers.pretrain(fasta, train__steps=60, train__eval_every=60, train__checkpoint_every=60)
    workdir = tmp_path / "run"
    process = launch(arguments, workdir)
    assert helpers.wait_until(lambda: logged(workdir) >= 2, process), process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    ended = helpers.finish(process)
    assert ended.code == 0, ended.err
    assert ended.err.count("SIGTERM: everything is saved") == 1
    ended = helpers.run_job([*arguments, f"--workdir={workdir}"])  # one process continues what two began
    assert ended.code == 0, ended.err
    assert "resumed from step" in ended.err
    assert sorted(step for split, step in helpers.losses(workdir) if split == "train") == list(range(1, 61))


def test_wrong_input_ends_both_processes(arguments, tmp_path):
    ended = helpers.finish(launch([*arguments, "--config.train.batch_size=15"], tmp_path / "run"), timeout=90)
    assert ended.code == 2
    assert "train.batch_size=15" in ended.err
    assert "Traceback" not in ended.err
