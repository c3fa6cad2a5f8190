"""What a run leaves behind: `metrics.jsonl`, TensorBoard events, `config.json`, `result.json`.

The work directory may be local or `gs://`. Files are replaced whole (written under a temporary name, then renamed), except
`metrics.jsonl` on a local disk, which grows by one line per record. JSON is strict: NaN and infinities are written as null.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jaxgen.errors import InputError

METRICS_FILE = "metrics.jsonl"
_REMOTE_FLUSH_SECONDS = 30.0
_PACKAGES = ("jaxgen", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def _plain(value: Any) -> Any:
    """JSON values only: numbers out of arrays, lists out of tuples, null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = np.asarray(value).tolist()
    if isinstance(value, list):
        return _plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def write_atomic(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a whole file or, when anything fails, leaves the old one as it was."""
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_remote(path):  # an object appears when its upload is complete
        path.write_bytes(content)
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` atomically as indented strict JSON."""
    write_atomic(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def write_arrays(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file, all of it or nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.asarray(x) for name, x in arrays.items()})
    write_atomic(path, buffer.getvalue())


def write_result(workdir: epath.PathLike, result: Mapping[str, Any]) -> None:
    """Writes `result.json`, the last thing a finished run does."""
    write_json(epath.Path(workdir) / "result.json", result)


def read_history(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """All records of `metrics.jsonl`, with NaN where it says null; a half-written last line is left out."""
    path = epath.Path(workdir) / METRICS_FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the process died while it wrote this line
        records.append({key: math.nan if value is None else value for key, value in record.items()})
    return records


class RunLog:
    """The record of a run, written by the main process; on the others every method does nothing.

    A record is one line `{"step": 10, "split": "train", "time": 1.7e9, "loss": ...}` and the same numbers as TensorBoard
    scalars `split/name`. Call `truncate_after(step)` first when the work directory may hold records of an earlier process.

    Args:
      project: of Weights & Biases, which gets the same numbers and the config; a resumed run goes on under its id. Empty: it gets nothing.
    """

    def __init__(self, workdir: epath.PathLike, is_main_process: bool = True, project: str = ""):
        self._workdir = epath.Path(workdir)
        self._active = is_main_process
        self._project = project
        self._tracked: Any = None
        self._remote = _is_remote(self._workdir)
        self._purge_step: int | None = None
        self._unwritten = False
        self._flushed_at = time.monotonic()
        if self._active:
            self._workdir.mkdir(parents=True, exist_ok=True)
            # Objects cannot be appended to: the lines of a remote file are kept here and written anew.
            self._lines = self._read_lines() if self._remote else []

    @property
    def _path(self) -> epath.Path:
        return self._workdir / METRICS_FILE

    def _read_lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    @functools.cached_property
    def _file(self) -> Any:
        return open(self._path, "a", encoding="utf-8")  # for the life of the run

    @functools.cached_property
    def _events_folder(self) -> Path:
        # tensorboardX writes to local disks; events of a remote run are copied at every flush.
        return Path(tempfile.mkdtemp(prefix="jaxgen_events_")) if self._remote else Path(self._workdir / "tensorboard")

    @functools.cached_property
    def _writer(self) -> Any:
        with _without("torch"):  # tensorboardX imports it where it is installed, for seconds, and needs none of it here
            from tensorboardX import SummaryWriter
        return SummaryWriter

    @functools.cached_property
    def _events(self) -> Any:
        # The default name has the resolution of a second, and a quick resume must not replace what was written before.
        return self._writer(str(self._events_folder), purge_step=self._purge_step, filename_suffix=f".{time.time_ns()}")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes `config.json`.

        Raises:
          InputError: a project, but no package to track it with.
        """
        if self._active:
            write_json(self._workdir / "config.json", config)
        if self._active and self._project:
            try:
                wandb: Any = importlib.import_module("wandb")
            except ImportError:
                raise InputError("train.track needs wandb: install jaxgen with its extra, pip install 'jaxgen[track]'") from None
            folder = str(self._workdir.resolve())
            name, identity = self._workdir.name, hashlib.sha256(folder.encode()).hexdigest()[:16]
            place = tempfile.gettempdir() if self._remote else folder
            self._tracked = wandb.init(project=self._project, name=name, id=identity, resume="allow", dir=place, config=dict(config))

    def truncate_after(self, step: int) -> None:
        """Forgets records later than `step`, from where a resumed run goes on (-1: all), and a half-written last line."""
        if not self._active:
            return
        self.close()
        kept = []
        for line in self._read_lines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except json.JSONDecodeError:
                continue
        if self._path.exists():
            write_atomic(self._path, "".join(line + "\n" for line in kept))
        self._lines = kept
        self._purge_step = step + 1  # tells TensorBoard to drop what it has read of later steps
        _ = self._writer  # imported here, to take none of the time of the first steps

    def log(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Adds a record: the metrics `values` of `split` at `step`."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        line = json.dumps(_plain({"step": int(step), "split": split, "time": round(time.time(), 3), **values}), allow_nan=False)
        if self._remote:
            self._lines.append(line)
            self._unwritten = True
        else:
            self._file.write(line + "\n")
            self._file.flush()  # a killed process loses nothing
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, int(step))
        if self._tracked is not None:
            self._tracked.log({f"{split}/{name}": value for name, value in values.items()}, step=int(step))
        if self._remote and time.monotonic() - self._flushed_at > _REMOTE_FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Brings everything to the work directory; call it when a checkpoint is saved."""
        if "_events" in vars(self):
            self._events.flush()
        if self._unwritten:
            write_atomic(self._path, "".join(line + "\n" for line in self._lines))
            for file in self._events_folder.iterdir():
                target = self._workdir / "tensorboard" / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
            self._unwritten = False
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        for name in ("_events", "_file"):
            if name in vars(self):
                vars(self).pop(name).close()
        if self._remote and "_events_folder" in vars(self):
            shutil.rmtree(vars(self).pop("_events_folder"), ignore_errors=True)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._tracked is not None:
            self._tracked.finish()


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Inside, importing `package` fails as where it is not installed, unless it is imported already."""
    hidden = sys.modules.setdefault(package, None) is None  # type: ignore[arg-type]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


def _git_revision() -> str | None:
    """Commit of the checkout that this package runs from, with `-dirty` when files were changed; None outside a checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, cwd=here.parent, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside somebody else's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Git revision, versions and devices, for `result.json`."""
    import jax

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    devices = jax.devices()
    return {
        "git_revision": _git_revision(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}},
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
    }
