"""Tasks as TFDS data sets in ArrayRecord files, written and read without TensorFlow.

`to_array_record(task, folder)` writes `folder/jaxgen_task/1.0.0/`, a TFDS data set that any TFDS reader opens;
`from_array_record(folder)` gives the task back with random access to its records.
"""

import contextlib
import functools
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.base import Examples, Target, Task
from jaxgen.errors import InputError

_NAME, _VERSION = "jaxgen_task", "1.0.0"


@functools.cache
def _builder_class() -> type:
    """The TFDS builder; defined when first needed, because importing tensorflow_datasets takes a second."""
    import tensorflow_datasets as tfds

    class JaxgenTask(tfds.core.GeneratorBasedBuilder):
        """Sequences and targets of a jaxgen task."""

        VERSION = tfds.core.Version(_VERSION)

        def __init__(self, *, task: Task, origin: dict[str, Any], **options: Any):
            self._task, self._origin = task, origin
            super().__init__(**options)

        def _info(self) -> tfds.core.DatasetInfo:
            task = self._task
            if task.target.kind == "classification":
                target = tfds.features.ClassLabel(num_classes=task.target.outputs)
            else:
                target = tfds.features.Tensor(shape=(task.target.outputs,), dtype=np.float32)
            return tfds.core.DatasetInfo(
                builder=self,
                description=task.description or task.name,
                features=tfds.features.FeaturesDict({"sequence": tfds.features.Text(), "target": target}),
                metadata=tfds.core.MetadataDict(_metadata(task) | self._origin),
                disable_shuffling=True,  # records keep the order of the task
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(name) for name in self._task.splits}

        def _generate_examples(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
            examples = self._task.splits[name]
            for i, sequence in enumerate(examples.sequences):
                target = examples.targets[i]
                yield i, {"sequence": sequence, "target": int(target) if target.ndim == 0 else target}

    return JaxgenTask


def _metadata(task: Task) -> dict[str, Any]:
    target = task.target
    return {
        "name": task.name,
        "description": task.description,
        "simulated": task.simulated,
        "attainable": dict(task.attainable) if task.attainable else None,
        "length": task.length,
        "notes": list(task.notes),
        "kind": target.kind,
        "names": list(target.names),
        "metrics": list(target.metrics),
        "select": target.select,
    }


def records_folder(directory: str | os.PathLike) -> Path:
    """Where `to_array_record` writes, below `directory`."""
    return Path(directory) / _NAME / _VERSION


def to_array_record(task: Task, directory: str | os.PathLike, **origin: Any) -> Path:
    """Writes all splits of `task`; the folder appears only when complete.

    Args:
        origin: what the task was read from; noted for `read_metadata`.

    Returns:
        The folder of the data set, `directory/jaxgen_task/1.0.0`.

    Raises:
        InputError: `directory` already holds records.
    """
    folder = records_folder(directory)
    if folder.exists():
        raise InputError(f"{folder}: already holds records; remove it or choose another folder")
    # Paths are absolute, since TFDS resolves relative ones differently when writing and when renaming.
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = _builder_class()(task=task, origin=origin, data_dir=os.path.abspath(directory), file_format="array_record")
    # TFDS says on standard output what it downloads, which is nothing, into a folder that it leaves behind.
    with tempfile.TemporaryDirectory() as empty, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=empty)
    return folder


class RecordExamples:
    """One split in ArrayRecord files: like `Examples`, read at random when asked for.

    `examples[i]` reads one record. `sequences` and `targets` read the whole split once, so a `TableSource` can use it as it is.
    """

    def __init__(self, source: Any, kind: str):
        self._source, self._kind = source, kind

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[range(len(self))[index]]
        return {"sequence": record["sequence"], "target": np.asarray(record["target"], self._dtype)}

    @property
    def _dtype(self) -> Any:
        return np.int32 if self._kind == "classification" else np.float32

    @functools.cached_property
    def in_memory(self) -> Examples:
        """The split as columns."""
        records = self._source.__getitems__(range(len(self))) if len(self) else []
        sequences = Sequences.from_list(record["sequence"] for record in records)
        return Examples(sequences, np.array([record["target"] for record in records], self._dtype))

    @property
    def sequences(self) -> Sequences:
        """All sequences."""
        return self.in_memory.sequences

    @property
    def targets(self) -> np.ndarray:
        """All targets."""
        return self.in_memory.targets


def read_metadata(directory: str | os.PathLike) -> dict[str, Any]:
    """What `to_array_record` noted under `directory`: of the task, with its `Target` as "target", and of its origin.

    Raises:
        InputError: no records there, or records that jaxgen did not write.
    """
    folder = records_folder(directory)
    if not folder.is_dir():
        raise InputError(f"{directory}: no records ({_NAME}/{_VERSION} is missing); write them with to_array_record")
    try:
        meta = json.loads((folder / "metadata.json").read_text())
        target = Target(meta["kind"], len(meta["names"]), tuple(meta["names"]), tuple(meta["metrics"]), meta["select"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: damaged records: metadata.json cannot be used ({error})") from None
    return {**meta, "target": target}


def from_array_record(directory: str | os.PathLike) -> Task:
    """The task that `to_array_record` wrote under `directory`; its splits are `RecordExamples`.

    Raises:
        InputError: see `read_metadata`.
    """
    meta = read_metadata(directory)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(os.path.abspath(records_folder(directory)))
    splits = {name: RecordExamples(source, meta["kind"]) for name, source in builder.as_data_source().items()}
    return Task(
        name=meta["name"],
        splits=splits,  # type: ignore[arg-type]
        target=meta["target"],
        description=meta["description"],
        simulated=meta["simulated"],
        attainable=meta["attainable"],
        length=meta.get("length", 0),  # which records of earlier versions lack
        notes=tuple(meta["notes"]),
    )
