"""Published scores of the benchmark suites, to stand beside ours: `published.csv`, one line per source, task, model and metric.

`model` is the family here that comes closest: the published models are larger, pretrained on whole genomes, and their splits of the
training rows differ, so that a difference says something only where the protocol is the same. `mamba_bpe` is Mamba on byte pairs.
`range` is largest minus smallest value over seeds, where the source gives it.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Published:
    """A score and the paper that reports it."""

    source: str
    value: float


@cache
def _scores() -> dict[tuple[str, str, str], tuple[Published, ...]]:
    found: dict[tuple[str, str, str], tuple[Published, ...]] = {}
    for row in csv.DictReader(resources.files("jaxgen.data.tasks").joinpath("published.csv").read_text().splitlines()):
        key = f"{row['suite']}/{row['task']}", row["model"], row["metric"]
        found[key] = (*found.get(key, ()), Published(row["source"], float(row["value"])))
    return found


def published(task: str, model: str, metric: str) -> tuple[Published, ...]:
    """What was published for a task such as `gue/tf_0`, a family such as `caduceus_ps`, and a metric; empty where nothing was."""
    return _scores().get((task, model, metric), ())
