"""Part `padding`: the share of token positions that a run spends on padding."""

from collections.abc import Iterator

from benchmarks.harness import Goal, Note, Options, Row

GOAL = Goal("value", "<", 5.0)


def run(options: Options) -> Iterator[Row | Note]:
    """The shipped task, and the train split of every table of --tables, with the default settings of configs/finetune.py."""
    from jaxgen import tokenizers
    from jaxgen.data import tasks
    from jaxgen.data.pipeline import TableSource
    from jaxgen.errors import InputError

    tokenizer = tokenizers.get("caduceus")
    names = [("simulated_promoters", {"train": 64, "dev": 2, "test": 2} if options.smoke else {})]
    names += [("table", {"path": path}) for path in options.tables]
    for name, arguments in names:
        shown = str(arguments.get("path", name)).rstrip("/").rsplit("/", 1)[-1]
        try:
            task = tasks.get(name, seed=1, **arguments)
        except InputError as error:
            yield Note("padding", f"{shown} left out: {error}")
            continue
        source = TableSource(task.splits["train"], tokenizer)
        lengths = source.lengths
        case = f"{shown}, {lengths.min()}-{lengths.max()} tokens in rows of {source.max_length}"
        yield Row("padding", case, 100 * source.pad_fraction, "%", goal=GOAL)
    if not options.tables:
        yield Note("padding", "only the shipped task; --tables=FILE,FOLDER adds yours")
