import io
import json
import math
import os
import sys

import numpy as np
import pytest

from jaxgen.errors import InputError
from jaxgen.train import logging, progress
from jaxgen.train.logging import RunLog, read_history


def log_steps(workdir, steps, truncate=None):
    with RunLog(workdir) as log:
        if truncate is not None:
            log.truncate_after(truncate)
        for step in steps:
            log.log(step, "train", {"loss": np.float32(step) / 2})


def steps_of(workdir):
    return [record["step"] for record in read_history(workdir)]


def test_records_are_lines_of_strict_json(tmp_path):
    with RunLog(tmp_path) as log:
        log.log(1, "train", {"loss": np.float32(0.5), "lr": 1e-3})
        log.log(1, "valid", {"mcc": math.nan, "rmse": math.inf})
        assert len(read_history(tmp_path)) == 2  # on disk before anything is closed
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], first["split"], first["loss"]) == (1, "train", 0.5)
    assert second["mcc"] is None
    assert second["rmse"] is None
    assert math.isnan(read_history(tmp_path)[1]["mcc"])


def test_resume_drops_what_is_later_and_a_half_written_line(tmp_path):
    log_steps(tmp_path, range(1, 7))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "spl')
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    log_steps(tmp_path, [5, 6], truncate=4)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 6
    log_steps(tmp_path, [1], truncate=-1)
    assert steps_of(tmp_path) == [1]


def test_truncation_of_an_open_log(tmp_path):
    with RunLog(tmp_path) as log:
        log.log(1, "train", {"loss": 1.0})
        log.log(2, "train", {"loss": 1.0})
        log.truncate_after(1)
        log.log(2, "train", {"loss": 3.0})
    assert [record["loss"] for record in read_history(tmp_path)] == [1.0, 3.0]


def test_a_remote_log_is_rewritten_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(logging, "_is_remote", lambda path: True)
    log_steps(tmp_path, [1, 2, 3])
    log_steps(tmp_path, [3, 4], truncate=2)
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # one file of events for each process
    with RunLog(tmp_path) as log:
        log.log(5, "train", {"loss": 0.0})
        assert steps_of(tmp_path)[-1] == 4
        log.flush()
        assert steps_of(tmp_path)[-1] == 5


def test_tensorboard_gets_the_scalars_and_is_told_of_a_resume(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    log_steps(tmp_path, [1, 2], truncate=0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # records of length, crc, data, crc
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    scalars = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    assert scalars == {(1, "train/loss"): 0.5, (2, "train/loss"): 1.0}
    assert any(event.session_log.status == event.session_log.START and event.step == 1 for event in events)


def test_other_processes_write_nothing(tmp_path):
    with RunLog(tmp_path / "run", is_main_process=False) as log:
        log.truncate_after(0)
        log.write_config({"seed": 1})
        log.log(1, "train", {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_a_failing_writer_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    logging.write_result(tmp_path, {"steps": 1})
    before = target.read_text()

    def full_disk(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        patch.setattr(os, "rename", full_disk)
        with pytest.raises(OSError, match="no space"):
            logging.write_result(tmp_path, {"steps": 2})
    with pytest.raises(TypeError):
        logging.write_result(tmp_path, {"steps": object()})
    assert target.read_text() == before
    assert os.listdir(tmp_path) == ["result.json"]


def test_result_is_plain_and_strict_json(tmp_path):
    logging.write_result(tmp_path, {"mcc": math.nan, "values": (np.float32(0.5), np.int64(2)), "where": tmp_path, "x": np.arange(2.0)})
    text = (tmp_path / "result.json").read_text()
    values = json.loads(text, parse_constant=pytest.fail)
    assert values == {"mcc": None, "values": [0.5, 2], "where": str(tmp_path), "x": [0.0, 1.0]}


class Tracker:
    """What RunLog uses of wandb."""

    def __init__(self):
        self.inits, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.inits.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_a_tracked_run_goes_on_under_its_id(tmp_path, monkeypatch):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    for step in (1, 2):
        with RunLog(tmp_path / "run", project="promoters") as log:
            log.write_config({"seed": 3})
            log.truncate_after(step - 1)
            log.log(step, "train", {"loss": 0.5})
    first, second = tracker.inits
    assert first == second
    assert (first["project"], first["name"], first["config"], first["resume"]) == ("promoters", "run", {"seed": 3}, "allow")
    assert tracker.logged == [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.5})]
    assert tracker.finished == 2
    monkeypatch.setitem(sys.modules, "wandb", None)
    with RunLog(tmp_path / "other", project="promoters") as log, pytest.raises(InputError, match=r"jaxgen\[track\]"):
        log.write_config({})


def test_environment_says_what_ran():
    found = logging.environment()
    assert found["device_count"] >= 1
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(found["versions"])
    assert found["git_revision"] is None or len(found["git_revision"].removesuffix("-dirty")) == 40
    json.dumps(found, allow_nan=False)


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_rates_leave_out_compilation_and_pauses(clock):
    stream = io.StringIO()
    bar = progress.Progress(10, stream=stream, interval=0, flops_per_step=1e9, peak_flops=1e10)
    clock.now += 60  # compilation
    bar.update(1, examples=8, tokens=80)
    for step in range(2, 6):
        clock.now += 0.5
        bar.update(step, examples=8, tokens=80, loss=1.25)
    with bar.paused():
        clock.now += 100
    clock.now += 0.5
    bar.update(6, examples=8, tokens=80, loss=1.25)
    assert bar.rates() == pytest.approx({"steps_per_second": 2, "examples_per_second": 16, "tokens_per_second": 160, "mfu": 0.2})
    last = stream.getvalue().splitlines()[-1]
    assert last == "step 6/10  loss 1.2500  16.0 examples/s  160.0 tokens/s  MFU 20.0%  ETA 00:02"
    with bar.paused():
        clock.now += 100
    assert bar.rates()["examples_per_second"] == pytest.approx(16)


def test_plain_lines_come_every_interval_and_at_the_end(clock):
    stream = io.StringIO()
    bar = progress.Progress(8, start=4, stream=stream, interval=10)
    for step in range(5, 9):
        clock.now += 4
        bar.update(step, examples=1)
    bar.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["5/8", "8/8"]


def test_progress_on_a_terminal_and_on_other_processes():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, quiet = Terminal(), io.StringIO()
    for bar in (progress.Progress(3, stream=terminal), progress.Progress(3, stream=quiet, is_main_process=False)):
        for step in range(1, 4):
            bar.update(step, examples=2, loss=0.5)
        bar.message("valid mcc 0.5")
        bar.close()
    assert "3/3" in terminal.getvalue()
    assert "valid mcc 0.5" in terminal.getvalue()
    assert quiet.getvalue() == ""
