"""A killed run that is started again ends with the bytes of the run that was never killed. In processes of their own, with SIGKILL."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest

from jaxgen.jobs import finetune, training
from jaxgen.train import loop

STEPS = {"train__steps": 36, "train__eval_every": 12, "train__checkpoint_every": 6}


def checkpoints(workdir: Path) -> list[str]:
    folder = workdir / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def finished_saves(workdir: Path) -> list[str]:
    return [name for name in checkpoints(workdir) if name.removeprefix("step_").isdigit()]


def lines_logged(workdir: Path) -> int:
    log = workdir / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "after the first checkpoint": lambda workdir: bool(finished_saves(workdir)),
    "while a checkpoint is written": lambda workdir: any("tmp" in name for name in checkpoints(workdir)),
    "at a random step": lambda workdir: lines_logged(workdir) > RANDOM_LINE,
}
RANDOM_LINE = random.SystemRandom().randrange(3, 34)


@pytest.fixture(scope="session")
def jobs(table, fasta) -> dict[str, list[str]]:
    """Batch norm and an average of the weights; dropout and random strands; masked language modelling."""
    return {
        "cnn": helpers.cnn(table, train__ema_decay=0.9, **STEPS),
        "hyenadna": helpers.hyenadna(table, **STEPS),
        "pretrain": helpers.pretrain(fasta, data__objective="mlm", **STEPS),
    }


@pytest.fixture(scope="session")
def uninterrupted(jobs, tmp_path_factory) -> Callable[[str], Path]:
    """job -> workdir of a run that nobody disturbed (run once)."""
    done: dict[str, Path] = {}

    def workdir(job: str) -> Path:
        if job not in done:
            path = tmp_path_factory.mktemp(job) / "run"
            ended = helpers.run_job([*jobs[job], f"--workdir={path}"])
            assert ended.code == 0, ended.err
            done[job] = path
        return done[job]

    return workdir


def interrupt(arguments: list[str], workdir: Path, moment: Callable[[Path], bool], number: int) -> helpers.Finished:
    process = helpers.start_job([*arguments, f"--workdir={workdir}"])
    assert helpers.wait_until(lambda: moment(workdir), process), process.communicate()[1]
    process.send_signal(number)
    return helpers.finish(process)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("job", "moment"),
    [
        pytest.param("cnn", "after the first checkpoint", marks=SLOW),
        pytest.param("cnn", "while a checkpoint is written", marks=SLOW),
        pytest.param("cnn", "at a random step", marks=SLOW),
        pytest.param("hyenadna", "after the first checkpoint", marks=SLOW),
        pytest.param("hyenadna", "while a checkpoint is written"),
        pytest.param("hyenadna", "at a random step", marks=SLOW),
        pytest.param("pretrain", "after the first checkpoint"),
        pytest.param("pretrain", "while a checkpoint is written", marks=SLOW),
        pytest.param("pretrain", "at a random step", marks=SLOW),
    ],
)
def test_killed_run_continues_bit_for_bit(jobs, uninterrupted, tmp_path, job, moment):
    killed = interrupt(jobs[job], tmp_path / "run", MOMENTS[moment], signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists()
    saved = finished_saves(tmp_path / "run")
    ended = helpers.run_job([*jobs[job], f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 0, ended.err
    newest = max((int(name.removeprefix("step_")) for name in saved), default=None)
    assert f"resumed from step {newest}" in ended.err or not saved
    assert not any("tmp" in name for name in checkpoints(tmp_path / "run"))
    assert helpers.outcome(tmp_path / "run") == helpers.outcome(uninterrupted(job)), f"killed {moment} (line {RANDOM_LINE})"


@pytest.mark.slow
def test_killed_again_and_again(jobs, uninterrupted, tmp_path):
    """Every start gets one checkpoint further than the one before, at most."""
    workdir = tmp_path / "run"
    for turn in range(1, 4):
        before = set(finished_saves(workdir))
        interrupt(jobs["cnn"], workdir, lambda path, before=before: bool(set(finished_saves(path)) - before), signal.SIGKILL)
        assert finished_saves(workdir), turn
    assert helpers.run_job([*jobs["cnn"], f"--workdir={workdir}"]).code == 0
    assert helpers.outcome(workdir) == helpers.outcome(uninterrupted("cnn"))


def test_sigterm_saves_and_exits_0(jobs, uninterrupted, tmp_path):
    """The step that is saved is not one at which the config asks for a checkpoint."""
    workdir = tmp_path / "run"
    arguments = [*jobs["hyenadna"], "--config.train.checkpoint_every=1000"]
    ended = interrupt(arguments, workdir, lambda path: lines_logged(path) >= 2, signal.SIGTERM)
    assert ended.code == 0, ended.err
    assert "SIGTERM: everything is saved" in ended.err
    assert not (workdir / "result.json").exists()
    (step,) = (int(name.removeprefix("step_")) for name in finished_saves(workdir))
    ended = helpers.run_job([*arguments, f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    assert f"resumed from step {step}" in ended.err
    assert helpers.outcome(workdir) == helpers.outcome(uninterrupted("hyenadna"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What follows starts from the files of a finished run; in this process, because nothing is killed.


@pytest.fixture(scope="session")
def finished_here(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def copy(jobs, finished_here, run_here, tmp_path) -> Path:
    """A copy, that may be spoilt, of the workdir `finished_here`."""
    if not finished_here.exists():
        assert run_here([*jobs["hyenadna"], f"--workdir={finished_here}"]).code == 0
    return Path(shutil.copytree(finished_here, tmp_path / "run"))


def test_a_finished_run_is_left_alone(jobs, copy, run_here):
    before = everything(copy)
    ended = run_here([*jobs["hyenadna"], f"--workdir={copy}"])
    assert ended.code == 0
    assert "finished already" in ended.err
    assert "mcc" in ended.err
    assert everything(copy) == before


def test_a_run_made_before_a_field_was_added(jobs, copy, run_here):
    """The new field binds nothing while it is off."""
    config = json.loads((copy / "config.json").read_text())
    del config["data"]["sha256"], config["seed"]
    (copy / "config.json").write_text(json.dumps(config))
    ended = run_here([*jobs["hyenadna"], f"--workdir={copy}", "--config.seed=0"])
    assert "finished already" in ended.err
    ended = run_here([*jobs["hyenadna"], f"--workdir={copy}", "--config.seed=7"])
    assert ended.code == 2
    assert "seed=None, not 7" in ended.error


@pytest.mark.parametrize("damage", ["temporary folder", "no arrays", "no position", "gone, with a log that is ahead"])
def test_a_half_written_save_is_not_picked_up(jobs, finished_here, copy, run_here, damage):
    (copy / "result.json").unlink()
    newest = copy / "checkpoints" / "step_36"
    if damage == "temporary folder":
        newest.rename(newest.with_name("step_36.orbax-checkpoint-tmp"))
    elif damage == "no arrays":
        shutil.rmtree(newest / "state")
    elif damage == "no position":
        (newest / "run" / "metadata").unlink()
    else:
        shutil.rmtree(newest)
        with open(copy / "metrics.jsonl", "a") as log:
            log.write('{"step": 37, "spl')
    ended = run_here([*jobs["hyenadna"], f"--workdir={copy}"])
    assert ended.code == 0, ended.err
    assert "resumed from step 30" in ended.err
    assert checkpoints(copy) == checkpoints(finished_here)
    assert helpers.outcome(copy) == helpers.outcome(finished_here)


def test_a_truncated_array_is_one_line(jobs, copy, run_here):
    (copy / "result.json").unlink()
    for file in (copy / "checkpoints" / "step_36" / "state").glob("**/d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    ended = run_here([*jobs["hyenadna"], f"--workdir={copy}"])
    assert ended.code == 2
    assert "step_36 is damaged" in ended.error
    assert "Traceback" not in ended.err
    shutil.rmtree(copy / "checkpoints" / "step_36")  # as the message says
    assert run_here([*jobs["hyenadna"], f"--workdir={copy}"]).code == 0


def test_another_config_is_refused_and_named(jobs, copy, run_here):
    before = everything(copy)
    for field, value in (("train.learning_rate", "3e-4"), ("seed", "7"), ("model.config.d_model", "32")):
        ended = run_here([*jobs["hyenadna"], f"--config.{field}={value}", f"--workdir={copy}"])
        assert ended.code == 2
        assert f"config.{field}" in ended.error
        assert str(copy) in ended.error
    assert everything(copy) == before


def test_fields_that_change_no_number_may_change(jobs, copy, run_here):
    """Reading threads, logging and the mesh are not part of what a run is."""
    (copy / "result.json").unlink()
    ended = run_here([*jobs["hyenadna"], "--config.data.threads=1", "--config.train.keep=1", f"--workdir={copy}"])
    assert ended.code == 0, ended.err
    assert json.loads((copy / "config.json").read_text())["train"]["keep"] == 1


def test_a_run_without_a_checkpoint_binds_nothing(table, tmp_path, run_here):
    """A typo found at the first step can be mended without deleting anything."""
    workdir = f"--workdir={tmp_path / 'run'}"
    assert run_here([*helpers.cnn(table, train__steps=2, train__select="pearson"), workdir]).code == 2
    assert run_here([*helpers.cnn(table, train__steps=2, train__select="mcc"), workdir]).code == 0


def test_sigterm_outside_the_steps_says_so_and_exits_0(jobs, finished_here, copy, run_here, monkeypatch):
    """While data are read, at the last step, before the evaluation that counts, before the results are written."""
    workdir = copy.with_name("again")

    def stopped_in(owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> None:
        function = getattr(owner, name)

        def patched(*arguments: Any, **options: Any) -> Any:
            if when(*arguments, **options):
                signal.raise_signal(signal.SIGTERM)
            return function(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, patched)
            ended = run_here([*jobs["hyenadna"], f"--workdir={workdir}"])
        assert ended.code == 0, ended.err
        assert ended.err.count("SIGTERM") == 1
        assert "the same command continues from here" in ended.err
        assert not (workdir / "result.json").exists()

    stopped_in(finetune, "load_task")
    assert not workdir.exists()
    stopped_in(loop.Progress, "update", lambda _, step, **__: step == 36)
    assert finished_saves(workdir)[-1] == "step_36"
    for name in ("finish", "run_result", "write_arrays"):
        stopped_in(training, name)
    ended = run_here([*jobs["hyenadna"], f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    assert "resumed from step 36" in ended.err
    assert helpers.outcome(workdir) == helpers.outcome(finished_here)
