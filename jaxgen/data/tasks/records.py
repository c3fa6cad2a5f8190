"""Task `records`: a task that the prepare job wrote as ArrayRecord files."""

from jaxgen.data.records import from_array_record
from jaxgen.data.tasks.base import Task


def load(path: str, seed: int = 1) -> Task:
    """The task stored in the folder `path`, with random access to its records; `seed` plays no part."""
    del seed
    return from_array_record(path)
