"""Task `table`: your own labelled sequences, from one CSV / TSV file or from a folder with train, dev and test files."""

from pathlib import Path

import numpy as np

from jaxgen.data.sequences import Sequences
from jaxgen.data.splits import random_split_indices, three_way_indices
from jaxgen.data.tables import DELIMITERS, Table, class_labels, float_labels, read_table, stream_columns, table_suffix
from jaxgen.data.tasks.base import Examples, Target, Task
from jaxgen.errors import InputError, nearest

KINDS = ("classification", "regression")
_FILE_NAMES = {"train": ("train",), "dev": ("dev", "valid", "val"), "test": ("test",)}


def load(
    path: str,
    seed: int = 1,
    kind: str = "classification",
    sequence_column: str = "sequence",
    label_column: str = "label",
    select: str = "",
) -> Task:
    """Reads the task.

    Args:
        path: a folder with `train`, `dev` (or `valid`, `val`) and `test` tables, or one table, which is split 80 / 10 / 10.
            A missing dev table is replaced by 10 % of train (the split of torch's random_split).
        seed: chooses those splits.
        kind: "classification" (integer labels 0 ... C-1) or "regression" (float labels).
        sequence_column, label_column: names of the columns.
        select: metric that picks the best step; "" for MCC (classification) or Pearson's r (regression).

    Raises:
        InputError: bad path, table, sequence or label; one line with file, line and column.
    """
    _check_kind(kind)
    tables = {split: read_table(file, sequence_column, label_column) for split, file in _find(Path(path)).items()}
    first = tables.get("train") or tables["all"]
    if kind == "classification":
        labels = {split: class_labels(table, label_column) for split, table in tables.items() if table is first}
        classes = int(labels["train" if "train" in labels else "all"].max()) + 1
        labels |= {split: class_labels(table, label_column, classes) for split, table in tables.items() if table is not first}
        target = Target.classification(tuple(str(i) for i in range(classes)))
    else:
        labels = {split: float_labels(table, label_column) for split, table in tables.items()}
        target = Target.regression((label_column,))
    if select:
        if select not in target.metrics:
            raise InputError(f"task 'table': unknown metric {select!r} for {kind}{nearest(select, target.metrics)}")
        target = Target(target.kind, target.outputs, target.names, target.metrics, select)
    parts = {split: Examples(Sequences.from_list(table.sequences), labels[split]) for split, table in tables.items()}
    splits = _split(parts, first, seed)
    return Task(
        name="table",
        splits=splits,
        target=target,
        description=f"{kind} of the sequences in {path}",
        notes=tuple(note for table in tables.values() for note in table.notes),
    )


def check(path: str, kind: str = "classification", sequence_column: str = "sequence", label_column: str = "label") -> None:
    """Raises what `load` would, as far as the first lines of the tables show it."""
    _check_kind(kind)
    for file in _find(Path(path)).values():
        next(stream_columns(file, sequence_column, label_column))


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"task 'table': unknown kind {kind!r}{nearest(kind, KINDS)}")


def _find(path: Path) -> dict[str, Path]:
    """Split name -> file; a single table is called `all`."""
    if path.is_file():
        return {"all": path}
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    candidates = sorted(file for file in path.iterdir() if file.is_file() and table_suffix(file))
    found = {}
    for split, names in _FILE_NAMES.items():
        files = [file for file in candidates if file.name.split(".")[0] in names]
        if len(files) > 1:
            raise InputError(f"{path}: more than one {split} table ({', '.join(file.name for file in files)}); keep one")
        if files:
            found[split] = files[0]
    for split in ("train", "test"):
        if split not in found:
            seen = f"found {', '.join(file.name for file in candidates)}" if candidates else "no tables found"
            raise InputError(
                f"{path}: no {split} table ({split}{{{','.join(DELIMITERS)}}}, optionally .gz); {seen}; "
                "a single table is given by its own path"
            )
    return found


def _split(parts: dict[str, Examples], table: Table, seed: int) -> dict[str, Examples]:
    if "all" in parts:
        examples = parts["all"]
        if len(examples) < 10:
            raise InputError(f"{table.path}: {len(examples)} rows are too few for an 80 / 10 / 10 split; give at least 10")
        return _checked(table, {split: examples.take(rows) for split, rows in three_way_indices(len(examples), seed).items()})
    if "dev" not in parts:
        if len(parts["train"]) < 2:
            raise InputError(f"{table.path}: one row cannot be split into train and dev; add a dev table")
        held_out, rest = random_split_indices(len(parts["train"]), seed)
        train = parts["train"]
        parts = _checked(table, {"train": train.take(np.sort(rest)), "dev": train.take(np.sort(held_out))}) | {"test": parts["test"]}
    return {split: parts[split] for split in ("train", "dev", "test")}


def _checked(table: Table, parts: dict[str, Examples]) -> dict[str, Examples]:
    """Refuses a random split that leaves a rare class out of the training rows."""
    if parts["train"].targets.ndim == 1:
        trained = set(np.unique(parts["train"].targets).tolist())
        for split, examples in parts.items():
            if missing := sorted(set(np.unique(examples.targets).tolist()) - trained):
                raise InputError(
                    f"{table.path}: class {missing[0]} is so rare that the seeded split put it all into {split}; use another seed"
                )
    return parts
