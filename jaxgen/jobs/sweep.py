"""Settings chosen for every model and task before the runs that count: a grid of trials, of which the validation split selects one."""

import dataclasses
import itertools
import json
from collections.abc import Iterable

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxgen.config import matching
from jaxgen.jobs.benchmark_runs import CNN, Cell, Settings, check, label_of, plan, run_all
from jaxgen.jobs.training import say
from jaxgen.train import metrics
from jaxgen.train.benchmark_report import csv_text
from jaxgen.train.logging import write_atomic, write_json

Pair = tuple[str, str]  # label of a model, task


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of the grid, with a run per seed of `benchmark.sweep_seeds`."""

    settings: Settings
    cells: list[Cell]

    def score(self) -> tuple[str, float]:
        """The metric that selects, and its mean over the seeds on the validation split; NaN when a run failed."""
        name, values = "", []
        for cell in self.cells:
            if not cell.finished:
                return name, np.nan
            result = json.loads((epath.Path(cell.config.workdir) / "result.json").read_text())
            name, value = result["select"], result["metrics"]["valid"][result["select"]]
            values.append(np.nan if value is None else value)
        return name, float(np.mean(values))


def sweep(config: ConfigDict, pairs: Iterable[Pair]) -> dict[str, str] | None:
    """Runs the trials of these models and tasks that are not finished, and writes down what they choose.

    Returns:
      failures by name, or None when a signal asked to stop.

    Raises:
      InputError: an entry of `benchmark.sweep` that does not parse; a finished trial of other settings.
    """
    failed: dict[str, str] = {}
    every = {pair: trials for pair in pairs if len(trials := _trials(config, pair)) > 1}
    check([cell for trials in every.values() for trial in trials for cell in trial.cells])
    for pair, trials in every.items():
        more = run_all([[cell] for trial in trials for cell in trial.cells], epath.Path(config.workdir) / "sweep")
        if more is None:
            return None
        failed |= more
        if not _choose(config, pair, trials):
            failed[f"{pair[0]} on {pair[1]}"] = "benchmark.sweep: no trial has a score, so there is nothing to choose by"
    _write_table(config)
    return failed


def chosen_settings(config: ConfigDict, pairs: Iterable[Pair]) -> dict[Pair, Settings]:
    """What was chosen so far for the grid of this config, where there is a choice; pairs whose trials are missing are left out."""
    grids = {pair: _grid(config, pair) for pair in pairs}
    chosen = {pair: tuple(grid[0]) for pair, grid in grids.items() if len(grid) == 1}
    for record in _records(config):
        pair = record["model"], record["task"]
        if pair not in chosen and record["grid"] == grids.get(pair):
            chosen[pair] = tuple(record["chosen"])
    return chosen


def _grid(config: ConfigDict, pair: Pair) -> list[list[str]]:
    """Every combination of the values that `benchmark.sweep` lists for a model and task; a later entry for a field replaces an earlier."""
    axes = {}
    for entry in matching(config.benchmark.sweep, *pair, "benchmark.sweep"):
        field, values = entry.split("=", 1)
        axes[field] = [f"{field}={value}" for value in values.split("|")]
    return [list(point) for point in itertools.product(*axes.values())]


def _trials(config: ConfigDict, pair: Pair) -> list[Trial]:
    label, task = pair
    b, one = config.benchmark, ConfigDict(config.to_dict())
    model = next((entry for entry in b.models if label_of(entry) == label), label)  # the CNN stands beside all, listed or not
    tasks = tuple(entry for entry in b.tasks if label_of(entry) == task)
    one.benchmark.update({"models": (model,), "tasks": tasks, "seeds": tuple(b.sweep_seeds), "cnn": False})
    trials = []
    for settings in _grid(config, pair):
        name = "_".join(settings).replace("/", "-")
        one.workdir = str(_folder(config, pair) / name)
        trials.append(Trial(tuple(settings), plan(one, {pair: tuple(settings)})))
    return trials


def _choose(config: ConfigDict, pair: Pair, trials: list[Trial]) -> bool:
    """Writes down the best trial; False when none has a score."""
    scores = [trial.score() for trial in trials]
    known = [i for i, (_, value) in enumerate(scores) if np.isfinite(value)]
    if not known:
        return False
    metric = scores[known[0]][0]
    sign = 1 if metrics.larger_is_better(metric) else -1
    best = max(known, key=lambda i: sign * scores[i][1])
    record = {"model": pair[0], "task": pair[1], "metric": metric, "grid": [list(trial.settings) for trial in trials]}
    record |= {"seeds": list(config.benchmark.sweep_seeds), "valid": [value for _, value in scores], "chosen": list(trials[best].settings)}
    write_json(_folder(config, pair) / "chosen.json", record)
    say(f"{pair[0]} on {pair[1]}: {', '.join(trials[best].settings)} has the best validation {metric}, {scores[best][1]:.4f}")
    return True


def _folder(config: ConfigDict, pair: Pair) -> epath.Path:
    return epath.Path(config.workdir) / "sweep" / pair[1] / pair[0]


def _records(config: ConfigDict) -> list[dict]:
    b = config.benchmark
    labels = dict.fromkeys([*map(label_of, b.models), *((CNN,) if b.cnn else ())])
    files = [_folder(config, (label, label_of(task))) / "chosen.json" for task in b.tasks for label in labels]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def _write_table(config: ConfigDict) -> None:
    """sweep.csv: every trial with its validation metric."""
    lines = [
        {
            "task": record["task"],
            "model": record["model"],
            "settings": " ".join(settings),
            "metric": record["metric"],
            "valid": "" if value is None else f"{value:.6g}",
            "seeds": len(record["seeds"]),
            "chosen": settings == record["chosen"],
        }
        for record in _records(config)
        for settings, value in zip(record["grid"], record["valid"])
    ]
    if lines:
        write_atomic(epath.Path(config.workdir) / "sweep.csv", csv_text(lines))
