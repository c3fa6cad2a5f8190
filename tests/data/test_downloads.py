"""Suites from a hub on loopback that hangs up and lies, by the real command; archives."""

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxgen.data import downloads, tasks
from jaxgen.data.tasks.suite import members_in
from jaxgen.errors import InputError

ROWS = {
    split: "sequence,label\n" + "".join(f"{'ACGT' * 20}{'AC'[i % 2]},{i % 2}\n" for i in range(400)) for split in ("train", "dev", "test")
}
SHA = "0" * 40


class FakeHub(http.server.ThreadingHTTPServer):
    """The few endpoints that a download of one dataset repository needs."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.stated = files, dict(files)
        self.cut = ""  # the file during whose download the connection breaks, every time
        self.requests: list[tuple[str, str]] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/"):
            files = [(name, len(x), hashlib.sha256(x).hexdigest()) for name, x in self.server.stated.items()]
            lfs = [(name, {"size": size, "lfs": {"sha256": d, "oid": d, "size": size, "pointerSize": 1}}) for name, size, d in files]
            answer: object = {"id": "owner/name", "sha": SHA, "tags": [], "siblings": [{"rfilename": name, **x} for name, x in lfs]}
            if "/tree/" in path:
                answer = [{"type": "file", "path": name, "oid": "1", **x} for name, x in lfs]
            content = json.dumps(answer).encode()
            self._send(200, content, body, {"Content-Type": "application/json"})
            return
        name = path.partition(f"/resolve/{SHA}/")[2]
        if name not in self.server.files:
            self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            return
        content, etag = self.server.files[name], hashlib.sha256(self.server.stated[name]).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        if body:
            self.server.requests.append((name, self.headers.get("Range") or ""))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], body, headers, cut=name == self.server.cut)

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut or self.close_connection


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub(
        {f"GUE/tf_0/{split}.csv": text.encode() for split, text in ROWS.items()} | {"README.md": b"x", "GUE/tf_1/test.csv": b"no"}
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def prepare(hub: FakeHub, tmp_path: Path, task: str = "gue/tf_0") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxgen.main", f"--config=configs/prepare.py:{task}", f"--workdir={tmp_path / 'records'}"]
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    settings |= {"JAXGEN_CACHE": str(tmp_path / "cache"), "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | settings
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_suite_comes_from_the_hub_once(hub, tmp_path):
    done = prepare(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "400 train, 400 dev, 400 test" in done.stderr
    assert "gue/tf_0: GUE, licence: Apache-2.0" in done.stderr
    assert "gue/tf_0: 400 train rows, 32,378 in the published files" in done.stderr
    root = downloads.suites_root(str(tmp_path / "cache"))
    assert f"--config.data.path={root}" in done.stderr
    assert (root / "gue/GUE/tf_0/train.csv").read_text() == ROWS["train"]
    assert not (root / "gue/GUE/tf_1").exists()
    fetched = len(hub.requests)
    done = prepare(hub, tmp_path)
    assert done.returncode == 0
    assert "records are there already" in done.stderr
    assert len(hub.requests) == fetched


def test_a_broken_download_goes_on_where_it_was(hub, tmp_path):
    hub.cut = "GUE/tf_0/train.csv"
    done = prepare(hub, tmp_path)
    assert done.returncode == 2
    assert "run the same command again to go on" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "records").exists()
    there = {f"GUE/tf_0/{path.name}" for path in (downloads.suites_root(str(tmp_path / "cache")) / "gue/GUE/tf_0").glob("*.csv")}
    assert "GUE/tf_0/train.csv" not in there
    hub.cut = ""
    hub.requests.clear()
    assert prepare(hub, tmp_path).returncode == 0
    assert {name for name, _ in hub.requests} == {f"GUE/tf_0/{split}.csv" for split in ROWS} - there


def test_a_file_of_another_checksum_is_removed(hub, tmp_path):
    hub.files["GUE/tf_0/test.csv"] = ROWS["test"].replace("A,0", "C,0").encode()
    done = prepare(hub, tmp_path)
    assert done.returncode == 2
    assert "damaged download, SHA-256" in done.stderr.splitlines()[-1]
    hub.files["GUE/tf_0/test.csv"] = ROWS["test"].encode()
    done = prepare(hub, tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_the_hub_lacks_is_one_line(hub, tmp_path):
    done = prepare(hub, tmp_path, "gue/mouse_0")
    assert done.returncode == 2
    assert "has no files of mouse_0" in done.stderr.splitlines()[-1]


def _zip(path: Path, top: str = "GUE/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for split, text in ROWS.items():
            file.writestr(f"{top}tf/0/{split}.csv", text)
    return path


def test_a_suite_comes_as_an_archive_too(hub, tmp_path):
    hub.files = hub.stated = {"GUE.zip": _zip(tmp_path / "GUE.zip").read_bytes()}
    done = prepare(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(tasks.get("gue/tf_0", path=str(downloads.suites_root(str(tmp_path / "cache")))).splits["train"]) == 400


def test_an_archive_is_unpacked_once_and_checked(tmp_path):
    archive = _zip(tmp_path / "GUE.zip")
    digest = downloads.file_sha256(archive)
    folder = downloads.unpack(archive, tmp_path / "out/GUE", digest.upper())
    assert (folder / "GUE/tf/0/test.csv").read_text() == ROWS["test"]
    (folder / "mine").touch()
    assert (downloads.unpack(archive, folder) / "mine").exists()
    with pytest.raises(InputError, match=f"SHA-256 is {digest}, not {'0' * 64}"):
        downloads.unpack(archive, tmp_path / "other", "0" * 64)
    _zip(archive, "")
    assert not (downloads.unpack(archive, folder) / "mine").exists()  # another archive of that name


@pytest.mark.parametrize("top", ["GUE/", "", "repository-main/", "repository-main/gue/", "repository-main/GUE/"])
def test_an_archive_of_one_task_serves_that_task_only(tmp_path, top):
    folder = str(downloads.unpack(_zip(tmp_path / "one.zip", top), tmp_path / "out"))
    assert members_in(folder, "gue") == ["tf_0"]
    assert len(tasks.get("gue/tf_0", path=folder).splits["train"]) == 400
    with pytest.raises(InputError, match="no files of gue/tf_1"):
        tasks.get("gue/tf_1", path=folder)


def test_an_archive_of_one_folder_by_any_name_is_the_task_it_is_given_for(tmp_path):
    folder = tmp_path / "out"
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as file:
        for split, text in ROWS.items():
            file.writestr(f"mydata/{split}.csv", text)
    assert len(tasks.get("gue/tf_0", path=str(downloads.unpack(tmp_path / "mine.zip", folder))).splits["train"]) == 400
    (folder / "notes.txt").touch()  # a folder with anything else in it is no such archive
    with pytest.raises(InputError, match="no files of gue/tf_0"):
        tasks.get("gue/tf_0", path=str(folder))


def _cut(content: bytes) -> bytes:
    return content[:-200]


def _cut_at_the_end(content: bytes) -> bytes:
    return content[:-6]


def _flip_in_the_checksum(content: bytes) -> bytes:
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


@pytest.mark.parametrize("spoil", [_cut, _cut_at_the_end, _flip_in_the_checksum])
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_damaged_archive_leaves_nothing(tmp_path, suffix, spoil):
    archive = tmp_path / f"GUE{suffix}"
    if suffix == ".zip":
        _zip(archive)
    else:
        with tarfile.open(archive, f"w:{suffix[5:]}") as file:
            for split, text in ROWS.items():
                entry = tarfile.TarInfo(f"{split}.csv")
                entry.size = len(text)
                file.addfile(entry, io.BytesIO(text.encode()))
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(InputError, match="not a whole archive"):
        downloads.unpack(archive, tmp_path / "out/GUE")
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_stays_in_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("../outside.txt", "x")
    with pytest.raises(InputError, match="leads outside"):
        downloads.unpack(tmp_path / "bad.zip", tmp_path / "out/bad")
    assert not (tmp_path / "outside.txt").exists()
