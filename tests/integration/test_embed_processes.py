"""The embed job killed, continued, and run by several processes: the same file every time."""

import signal
from pathlib import Path

import helpers
import numpy as np
import pytest

NAME = "hyenadna_tf_embeddings_mean.npy"
TINY = {f"model__config__{name}": value for name, value in {"d_model": 16, "d_inner": 32, "filter_order": 8, "n_layer": 1}.items()}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """A job of many short batches."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("sequences") / "tf_sequences.csv"
    texts = [rng.choice(helpers.BASES, n).tobytes().decode() for n in rng.integers(30, 120, 1500)]
    path.write_text("\n".join(["gene_id,sequence", *(f"g{i},{text}" for i, text in enumerate(texts))]) + "\n")
    fields = {"data__path": path, "data__buckets": 3, "embed__batch_tokens": 512} | TINY
    return ["--config=configs/embed.py:hyenadna_smoke", *helpers.flags(**fields)]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory) -> Path:
    """Workdir of one process with one device that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended = helpers.run_job([*arguments, f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    return workdir


def test_killed_export_continues_with_the_same_bytes(arguments, alone, tmp_path):
    workdir = tmp_path / "run"
    progress = workdir / f".{NAME}.progress"
    process = helpers.start_job([*arguments, f"--workdir={workdir}"])
    assert helpers.wait_until(lambda: progress.exists() and '"shards": 1' in progress.read_text(), process), process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    assert helpers.finish(process).code == -signal.SIGKILL
    assert not (workdir / NAME).exists()
    assert not (workdir / "result.json").exists()
    ended = helpers.run_job([*arguments, f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    assert "parts are there already" in ended.err
    for path in alone.iterdir():
        if path.suffix in (".npy", ".txt"):
            assert (workdir / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.name for path in workdir.iterdir()} == {path.name for path in alone.iterdir()}


def test_two_processes_write_one_file(arguments, alone, tmp_path):
    workdir = tmp_path / "run"
    command = ["launch/local.py", "--processes=2", "--cpu", "--", *arguments, f"--workdir={workdir}"]
    ended = helpers.finish(helpers.start_python(command))
    assert ended.code == 0, ended.err
    np.testing.assert_allclose(np.load(workdir / NAME), np.load(alone / NAME), atol=2e-6)
    assert (workdir / "hyenadna_tf_ids.npy").read_bytes() == (alone / "hyenadna_tf_ids.npy").read_bytes()
    assert ended.err.count("result: ") == 1
