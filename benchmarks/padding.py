"""Part `padding`: the share of token positions that a run spends on padding."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Goal, Note, Options, Row
from configs import common
from jaxgen import tokenizers
from jaxgen.data import tasks
from jaxgen.data.buckets import bucket_lengths
from jaxgen.data.pipeline import TableSource, train_loader
from jaxgen.data.tasks.base import Task
from jaxgen.errors import InputError

GOAL = Goal("value", "<", 5.0)
BATCH = 32


def table(path: str) -> Task:
    """A table task whose sequences stand in the column `sequence` or `seq`."""
    try:
        return tasks.get("table", path=path, seed=1)
    except InputError as error:
        if "column 'sequence'" not in str(error):
            raise
    return tasks.get("table", path=path, seed=1, sequence_column="seq")


def padding(source: TableSource, buckets: tuple[int, ...]) -> float:
    """Share of padding in the batches of one epoch as the loader makes them."""
    loader = train_loader(source, batch_size=BATCH, seed=1, num_threads=0, buckets=buckets)
    masks = [next(loader)["mask"] for _ in range(loader.steps_per_epoch)]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)


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
        for most in dict.fromkeys((1, common.get_config().data.buckets)):
            buckets = bucket_lengths(source.lengths, most, batch_size=BATCH)
            rows = f"rows of {buckets[0]}" if len(buckets) == 1 else f"{len(buckets)} lengths up to {buckets[-1]}"
            case = f"{shown}, {source.lengths.min()}-{source.lengths.max()} tokens in {rows}, batches of {BATCH}"
            yield Row("padding", case, 100 * padding(source, buckets), "%", goal=GOAL)
    if not options.tables:
        yield Note("padding", "only the shipped task; --tables=FILE,FOLDER adds yours")
