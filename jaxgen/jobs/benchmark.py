"""Fine-tune many models on many tasks over many seeds, and write one table with baselines, leak report and published scores."""

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxgen.data.leaks import find_leaks
from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.published import published
from jaxgen.errors import InputError
from jaxgen.jobs.baseline import kmer_logits
from jaxgen.jobs.benchmark_runs import Cell, packs, plan, run_all, share
from jaxgen.jobs.sweep import chosen_settings, sweep
from jaxgen.jobs.tasks import load_task
from jaxgen.jobs.training import say
from jaxgen.train import metrics
from jaxgen.train.benchmark_report import Score, TaskFacts, write_benchmark
from jaxgen.train.logging import environment, write_json, write_result

# What a task is about, by its name; the first match counts.
_CATEGORIES = (
    (r"prom", "promoters"),
    (r"splice", "splice sites"),
    (r"enhancer", "enhancers"),
    (r"gue/(tf|mouse)_", "transcription factors"),
    (r"/(emp_)?H\d", "histone marks"),
    (r"covid", "virus"),
    (r"", "other"),
)


def run(config: ConfigDict) -> int:
    """See the module; returns 0 when every run of this share is finished, 1 when some failed."""
    if not config.workdir:
        raise InputError("--workdir=DIR is missing: where should the runs and the table go?")
    cells, failed = plan(config), {}
    if config.benchmark.sweep:  # the seeds of a model and task stay together with the trials that choose their settings
        pairs = share(list(dict.fromkeys((cell.label, cell.task) for cell in cells)), config.benchmark.share)
        if not config.benchmark.dry_run and (failed := sweep(config, pairs)) is None:
            return 0
        cells = plan(config, chosen_settings(config))
        mine = [pack for pack in packs(cells, config.benchmark.pack) if (pack[0].label, pack[0].task) in pairs]
    else:
        mine = share(packs(cells, config.benchmark.pack), config.benchmark.share)
    if config.benchmark.dry_run:
        for number, pack in enumerate(mine, 1):
            for cell in pack:
                state = "finished" if cell.finished else "to do"
                print(f"{state}\t{cell.label}\t{cell.task}\tseed {cell.seed}\tprogram {number}\t{cell.config.workdir}")
        return 0
    own = [cell for pack in mine for cell in pack]
    say(f"{len(cells)} runs, {len(own)} in this share, {sum(cell.finished for cell in own)} of them finished")
    more = run_all(mine, epath.Path(config.workdir) / "packs")
    if more is None:
        return 0
    failed |= more
    scores = [score for cell in cells if (score := _score(cell, config)) is not None]
    if scores:
        facts = {task: _facts(task, config, cells) for task in dict.fromkeys(s.task for s in scores)}
        lines = write_benchmark(config.workdir, scores, facts)
        table = {f"{line.task}/{line.model}": {line.metric: line.mean, "std": line.std, "n": line.n} for line in lines}
        write_result(config.workdir, {"job": "benchmark", "metrics": table, "failed": failed, "seed": config.seed, **environment()})
        print((epath.Path(config.workdir) / "table.md").read_text())
    for name, reason in failed.items():
        say(f"FAILED {name}: {reason}")
    return 1 if failed else 0


def _score(cell: Cell, config: ConfigDict) -> Score | None:
    if not cell.finished:
        return None
    folder = epath.Path(cell.config.workdir)
    result = json.loads((folder / "result.json").read_text())
    test = {name: np.nan if value is None else value for name, value in result["metrics"]["test"].items()}
    clean: dict[str, float] = {}
    if config.benchmark.leaks:
        near = _leaks(cell, config)["near_rows"]
        with (folder / "predictions.npz").open("rb") as file:
            stored = np.load(file)
            clean = _clean(test, stored["test_predictions"], stored["test_targets"], near)
    return Score(cell.label, cell.task, cell.seed, test, clean, result["nan_steps"], result["wall_seconds"])


def _clean(names: Iterable[str], predictions: np.ndarray, targets: np.ndarray, near: Sequence[int]) -> dict[str, float]:
    """The metrics of the test rows that are not leaks."""
    keep = np.ones(len(targets), bool)
    keep[list(near)] = False
    return metrics.evaluate([name for name in names if name != "loss"], predictions[keep], targets[keep]) if keep.any() else {}


def _task_folder(task: str, config: ConfigDict) -> epath.Path:
    return epath.Path(config.workdir) / "tasks" / task


def _leaks(cell: Cell, config: ConfigDict) -> dict:
    """The leak report of a task, computed once: the splits are those of the cell's seed where the files bring no dev split."""
    file = _task_folder(cell.task, config) / "leaks.json"
    if not file.exists():
        task = load_task(cell.config)
        # Whatever a model may have seen, train and dev.
        seen = Sequences.from_list([*task.splits["train"].sequences, *task.splits["dev"].sequences])
        leaks = find_leaks(seen, task.splits["test"].sequences, config.benchmark.leak_k, config.benchmark.leak_jaccard)
        write_json(file, {**leaks.record(), "near_rows": np.flatnonzero(leaks.near).tolist()})
        say(f"{cell.task}: {int(leaks.near.sum())} of {len(leaks.near)} test rows are in train or dev, or nearly")
    return json.loads(file.read_text())


def _facts(name: str, config: ConfigDict, cells: Sequence[Cell]) -> TaskFacts:
    """What stands beside the scores of a task; baselines are fitted once and kept."""
    cell = next(cell for cell in cells if cell.task == name)
    file = _task_folder(name, config) / "baselines.json"
    leaks = _leaks(cell, config) if config.benchmark.leaks else {}
    if not file.exists():
        task = load_task(cell.config)
        test, names = task.splits["test"], task.target.metrics
        counts = np.bincount(task.splits["train"].targets, minlength=task.target.outputs)
        logits = {"majority": np.tile(np.eye(len(counts))[counts.argmax()], (len(test), 1))}
        if config.benchmark.kmer:
            logits["k-mer"] = kmer_logits(task, config.baseline.max_k, config.baseline.strengths)["test"]
        write_json(
            file,
            {
                "select": task.target.select,
                "notes": task.notes,
                "test": {which: metrics.evaluate(names, x, test.targets) for which, x in logits.items()},
            },
        )
    kept = json.loads(file.read_text())
    families = {cell.label: cell.family for cell in cells}
    return TaskFacts(
        select=kept["select"],
        category=next(category for pattern, category in _CATEGORIES if re.search(pattern, name)),
        baselines=kept["test"],
        leaks={key: value for key, value in leaks.items() if key != "near_rows"},
        # A label such as mamba_bpe may be what was published under that very name.
        published={
            label: [(p.source, p.value) for p in published(name, label, kept["select"]) or published(name, family, kept["select"])]
            for label, family in families.items()
        },
        notes=kept["notes"],
    )
