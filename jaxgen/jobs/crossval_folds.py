"""The folds of every method of `crossval`: computed in two lanes, each kept as a file as soon as it is finished."""

import dataclasses
import hashlib
import io
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from jaxgen.baselines.method import Fold, FoldResult, Method, PerturbationData, training_rows
from jaxgen.data.perturbation import Tables
from jaxgen.errors import InputError
from jaxgen.jobs.crossval_methods import METHODS, Entry
from jaxgen.jobs.training import say
from jaxgen.train.logging import write_atomic

FINISHED = "*/folds/fold_*.npz"  # below the workdir
_COLUMNS = {"nt_tf": "tf_embeddings", "hyena_tf": "tf_embeddings", "nt_gene": "gene_embeddings"}
_PER_ROW = ("names", "targets", "tf_embeddings", "target_gene", "sequences")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All folds of one method, in the row order of the tables.

    Attributes:
      predictions: float32 (P, G), of the fold that holds a row out.
      fitted: float32 (P, G), of the first fold that trains on a row, as published; None when the method tells none.
      seconds: that all folds took.
      info: what the method tells of each fold.
    """

    predictions: np.ndarray
    fitted: np.ndarray | None
    seconds: float
    info: list[dict[str, Any]]


def run_methods(
    methods: Mapping[str, Method], tables: Tables, folds: Sequence[Fold], workdir: epath.Path, *, seed: int, faithful: bool
) -> dict[str, Outcome]:
    """Methods on the device in this thread (they handle signals), and beside it those that keep to the CPU. The first error ends both.

    Raises:
      InputError: whatever a method refuses; finished folds of other data in the workdir.
    """
    failed = threading.Event()

    def lane(on_device: bool) -> dict[str, Outcome]:
        try:
            mine = {name: method for name, method in methods.items() if METHODS[name].on_device == on_device}
            return {
                name: _run(name, method, tables, folds, workdir / name / "folds", seed, faithful, failed) for name, method in mine.items()
            }
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(1) as beside:
        on_cpu = beside.submit(lane, False)
        try:
            return lane(True) | on_cpu.result()
        except _OtherLaneError:
            on_cpu.result()  # raises the error
            raise
        except BaseException:  # Ctrl-C too: the other lane ends with its present fold
            failed.set()
            raise


class _OtherLaneError(Exception):
    """The other lane has an error to report."""


def _run(
    name: str, method: Method, tables: Tables, folds: Sequence[Fold], folder: epath.Path, seed: int, faithful: bool, failed: threading.Event
) -> Outcome:
    entry, order = METHODS[name], np.arange(len(tables.ids))
    data = data_for(entry, tables)
    if faithful and entry.sorts_rows:
        order = np.argsort(np.array(tables.gene_ids), kind="stable")
        data = _reordered(data, order)
    store = _Store(folder, data)
    done = {fold.index: stored for fold in folds if (stored := store.read(fold)) is not None}
    if done:
        say(f"{name}: {len(done)} of {len(folds)} folds are finished already")
    left = [fold for fold in folds if fold.index not in done]
    began = time.monotonic()
    for result in method(data, left, seed=seed, faithful=faithful) if left else ():
        now = time.monotonic()
        done[result.fold.index] = store.write(result, now - began)
        began = now
        say(f"{name}: fold {result.fold.index + 1} of {len(folds)}  {_shown(result.info)}".rstrip())
        if failed.is_set():
            raise _OtherLaneError
    predictions = np.empty(tables.targets.shape, np.float32)
    fitted = None if any(stored.train is None for stored in done.values()) else tables.targets.copy()
    for fold in reversed(folds):
        stored = done[fold.index]
        predictions[order[fold.test]] = stored.test
        if fitted is not None:
            fitted[order[training_rows(fold)]] = stored.train
    in_order = [done[fold.index] for fold in folds]
    return Outcome(predictions, fitted, sum(stored.seconds for stored in in_order), [stored.info for stored in in_order])


def _shown(info: Mapping[str, Any]) -> str:
    return "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in info.items())


def data_for(entry: Entry, tables: Tables) -> PerturbationData:
    """The columns that a method reads."""
    columns = {_COLUMNS.get(need, need): getattr(tables, need) for need in entry.needs}
    return PerturbationData(tables.ids, tables.genes, tables.targets, **columns)


def _reordered(data: PerturbationData, order: np.ndarray) -> PerturbationData:
    """The perturbations in another order."""
    columns = {name: values for name in _PER_ROW if (values := getattr(data, name)) is not None}
    new = {name: x[order] if isinstance(x, np.ndarray) else [x[i] for i in order] for name, x in columns.items()}
    return dataclasses.replace(data, **new)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A `FoldResult` as kept."""

    test: np.ndarray
    train: np.ndarray | None
    info: dict[str, Any]
    seconds: float


class _Store:
    """Finished folds of one method, a file each, written whole."""

    def __init__(self, folder: epath.Path, data: PerturbationData):
        self.folder, self.data = folder, _digest(data)

    def read(self, fold: Fold) -> _Stored | None:
        """The finished fold, or None.

        Raises:
          InputError: it was made with other data or another split.
        """
        path = self._path(fold)
        if not path.exists():
            return None
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            stored = dict(file)
        about = json.loads(str(stored["about"]))
        if about["data"] != self.data or about["fold"] != _digest(fold):
            raise InputError(f"{path}: was made with other data or other folds; choose another --workdir or delete {self.folder.parent}")
        return _Stored(stored["test"], stored.get("train"), about["info"], about["seconds"])

    def write(self, result: FoldResult, seconds: float) -> _Stored:
        stored = _Stored(np.asarray(result.test), None if result.train is None else np.asarray(result.train), dict(result.info), seconds)
        arrays = {"test": stored.test} | ({} if stored.train is None else {"train": stored.train})
        about = {"data": self.data, "fold": _digest(result.fold), "info": stored.info, "seconds": seconds}
        buffer = io.BytesIO()
        np.savez(buffer, about=np.array(json.dumps(about)), **arrays)  # pyright: ignore[reportArgumentType]
        write_atomic(self._path(result.fold), buffer.getvalue())
        return stored

    def _path(self, fold: Fold) -> epath.Path:
        return self.folder / f"fold_{fold.index}.npz"


def _digest(value: PerturbationData | Fold) -> str:
    """A hash of all its fields."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        digest.update(field.name.encode())
        if isinstance(content, np.ndarray):
            digest.update(f"{content.dtype}{content.shape}".encode() + np.ascontiguousarray(content).tobytes())
        else:
            digest.update(repr(content).encode())
    return digest.hexdigest()
