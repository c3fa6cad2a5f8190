"""Part `padding`: the share of token positions that a run spends on padding."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Goal, Note, Options, Row
from jaxgen import tokenizers
from jaxgen.data import tasks
from jaxgen.data.pipeline import TableSource
from jaxgen.data.tasks.base import Task
from jaxgen.errors import InputError

GOAL = Goal("value", "<", 5.0)


def table(path: str) -> Task:
    """A table task whose sequences stand in the column `sequence` or `seq`."""
    try:
        return tasks.get("table", path=path, seed=1)
    except InputError as error:
        if "column 'sequence'" not in str(error):
            raise
    return tasks.get("table", path=path, seed=1, sequence_column="seq")


def run(options: Options) -> Iterator[Row | Note]:
    """The shipped task, and the train split of every table of --tables, with the default settings of configs/finetune.py."""
    tokenizer = tokenizers.get("caduceus")
    for path in ("", *options.tables):
        try:
            task = table(path) if path else tasks.get("simulated_promoters", seed=1)
        except InputError as error:
            yield Note("padding", f"left out: {error}")
            continue
        shown = "/".join(Path(path).parts[-2:]) if path else task.name
        source = TableSource(task.splits["train"], tokenizer)
        lengths = source.lengths
        case = f"{shown}, {lengths.min()}-{lengths.max()} tokens in rows of {source.max_length}"
        yield Row("padding", case, 100 * source.pad_fraction, "%", goal=GOAL)
    if not options.tables:
        yield Note("padding", "only the shipped task; --tables=FILE,FOLDER adds yours")
