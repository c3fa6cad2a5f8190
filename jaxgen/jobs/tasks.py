"""The data that a config names, with what there is to say of them."""

from typing import Any

from ml_collections import ConfigDict

from jaxgen.data import tasks
from jaxgen.data.genome import Genome
from jaxgen.data.tasks import Task
from jaxgen.data.tasks.suites import SUITES
from jaxgen.jobs.training import say


def load_task(config: ConfigDict, quiet: bool = False) -> Task:
    """The task of `data.task`, read from `data.path` where it reads files.

    Its notes and the licence of its suite are printed, unless `quiet`.

    A config that trains on simulated data by default trains on `data.path` once that is given.
    """
    name, options = _named(config)
    task = tasks.get(name, seed=split_seed(config), **options)
    if quiet:
        return task
    for note in task.notes:
        say(f"note: {note}")
    suite = SUITES.get(task.name.partition("/")[0])
    if suite:
        say(f"{task.name}: {suite.title}, licence: {suite.licence}")
    return task


def split_seed(config: ConfigDict) -> int:
    """What seeds the splits that the data do not bring along."""
    return config.seed if config.data.split_seed < 0 else config.data.split_seed


def open_genome(config: ConfigDict) -> Genome:
    """The genome of `data.fasta`; its notes are printed."""
    genome = Genome.open(config.data.fasta, cache_dir=config.data.cache or None)
    for note in genome.notes:
        say(f"note: {note}")
    return genome


def check_task(config: ConfigDict) -> None:
    """Whatever can be said of the task before it is read.

    Raises:
      InputError: no such task, or no such files.
    """
    name, options = _named(config)
    tasks.check(name, **options)


def _named(config: ConfigDict) -> tuple[str, dict[str, Any]]:
    """Name and options of the task."""
    d = config.data
    name = "table" if d.path and d.task.startswith("simulated_") else d.task
    options: dict[str, Any] = {"path": d.path} if d.path else {}
    if name == "table":
        options |= {"sequence_column": d.sequence_column, "label_column": d.label_column, "kind": d.kind}
    return name, options
