"""Fine-tune many models on many tasks over many seeds, and write one table with baselines, leak report and published scores."""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxgen.data.leaks import find_leaks
from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.published import published
from jaxgen.jobs.baseline import kmer_predictions
from jaxgen.jobs.benchmark_runs import CNN, Cell, check, check_rules, packs, plan, run_all, share, title
from jaxgen.jobs.sweep import chosen_settings, sweep
from jaxgen.jobs.tasks import load_task
from jaxgen.jobs.training import claim_workdir, say
from jaxgen.train import metrics
from jaxgen.train.benchmark_report import Score, TaskFacts, write_benchmark
from jaxgen.train.logging import environment, write_json, write_result
from jaxgen.train.termination import Termination

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
    """See the module; returns 0 when every run of this share is finished or SIGTERM asked to stop, 1 when some failed."""
    with Termination(say):
        return _run(config)
    return 0


def _run(config: ConfigDict) -> int:
    workdir, began = claim_workdir(config), time.monotonic()
    cells, failed = plan(config), {}
    check_rules(config, cells)
    if config.benchmark.sweep:  # the seeds of a model and task stay together with the trials that choose their settings
        pairs = list(dict.fromkeys(cell.pair for cell in cells))
        own_pairs = share(pairs, config.benchmark.share)
        if not config.benchmark.dry_run and (failed := sweep(config, own_pairs)) is None:
            return 0
        chosen = chosen_settings(config, pairs)
        cells = plan(config, chosen)
        decided = [cell for cell in cells if cell.pair in chosen]
        check(decided)
        cells = cells if config.benchmark.dry_run else decided
        every = packs(cells, config.benchmark.pack)
        mine = [pack for pack in every if pack[0].pair in own_pairs]
    else:
        check(cells)
        every = packs(cells, config.benchmark.pack)
        mine = share(every, config.benchmark.share)
    if config.benchmark.dry_run:
        for number, pack in enumerate(mine, 1):
            for cell in pack:
                state = "finished" if cell.finished else "to do"
                print(f"{state}\t{cell.label}\t{cell.task}\tseed {cell.seed}\tprogram {number}\t{cell.config.workdir}")
        return 0
    write_json(workdir / "config.json", config.to_dict())
    own = [cell for pack in mine for cell in pack]
    say(f"{len(cells)} runs, {len(own)} in this share, {sum(cell.finished for cell in own)} of them finished")
    more = run_all(mine, workdir / "packs")
    if more is None:
        return 0
    failed |= more
    elsewhere = _elsewhere(workdir, [pack for pack in every if pack not in mine])
    scores, facts = _gather(cells, config)
    if scores:
        lines = write_benchmark(config.workdir, scores, facts)
        table = {f"{line.task}/{line.model}": {line.metric: line.mean, "std": line.std, "n": line.n} for line in lines}
        means = {f"{line.task}/{line.model}/{line.metric}": line.mean for line in lines}
        result = {"job": "benchmark", "metrics": {"test": means}, "table": table, "failed": elsewhere | failed, "seed": config.seed}
        write_result(workdir, result | {"wall_seconds": time.monotonic() - began} | environment())
        print((workdir / "table.md").read_text())
    for name, reason in failed.items():
        say(f"FAILED {name}: {reason}")
    return 1 if failed else 0


def _elsewhere(workdir: epath.Path, others: Sequence[Sequence[Cell]]) -> dict[str, str]:
    """Failures that other shares left in result.json, as far as their runs are still not finished."""
    file = workdir / "result.json"
    told = json.loads(file.read_text())["failed"] if file.exists() else {}
    names = {title(pack) for pack in others if not all(cell.finished for cell in pack)}
    return {name: reason for name, reason in told.items() if name in names}


def _gather(cells: Sequence[Cell], config: ConfigDict) -> tuple[list[Score], dict[str, TaskFacts]]:
    """The scores of all finished runs, and what stands beside them. Other shares may finish theirs while baselines are fitted here."""
    finished: list[Cell] = []
    scores: list[Score] = []
    facts: dict[str, TaskFacts] = {}
    while len(now := [cell for cell in cells if cell.finished]) > len(finished):
        finished, scores = now, [_score(cell, config) for cell in now]
        facts = {task: _facts(task, config, cells, scores) for task in dict.fromkeys(s.task for s in scores)}
    return scores, facts


def _score(cell: Cell, config: ConfigDict) -> Score:
    """Of a finished run."""
    folder = epath.Path(cell.config.workdir)
    result = json.loads((folder / "result.json").read_text())
    test = _numbers(result["metrics"]["test"])
    clean: dict[str, float] = {}
    if config.benchmark.leaks:
        near = _leaks(cell, config)["near_rows"]
        with (folder / "predictions.npz").open("rb") as file:
            stored = np.load(file)
            clean = _clean(test, stored["test_predictions"], stored["test_targets"], near)
    return Score(cell.label, cell.task, cell.seed, test, clean, result["nan_steps"], result["wall_seconds"])


def _numbers(stored: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics as JSON keeps them, in which NaN is null."""
    return {name: np.nan if value is None else value for name, value in stored.items()}


def _clean(names: Iterable[str], predictions: np.ndarray, targets: np.ndarray, near: Sequence[int]) -> dict[str, float]:
    """The metrics of the test rows that are not leaks."""
    keep = np.ones(len(targets), bool)
    keep[list(near)] = False
    return metrics.evaluate([name for name in names if name != "loss"], predictions[keep], targets[keep]) if keep.any() else {}


def _task_folder(task: str, config: ConfigDict) -> epath.Path:
    return epath.Path(config.workdir) / "tasks" / task


def _kept(file: epath.Path, made_with: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, from `file` where that was made with the same."""
    made_with = json.loads(json.dumps(dict(made_with)))
    kept = json.loads(file.read_text()) if file.exists() else {}
    if kept.get("made_with") != made_with:
        write_json(file, {"made_with": made_with, **make()})
        kept = json.loads(file.read_text())
    return kept


def _source(config: ConfigDict) -> dict[str, Any]:
    """Which rows a task has."""
    return {name: config.data[name] for name in ("path", "kind", "sequence_column", "label_column", "split_seed")}


def _leaks(cell: Cell, config: ConfigDict) -> dict[str, Any]:
    """The leak report of a task, computed once: the splits are those of the cell's seed where the files bring no dev split."""
    b = config.benchmark

    def find() -> dict[str, Any]:
        task = load_task(cell.config, quiet=True)
        # Whatever a model may have seen, train and dev.
        seen = Sequences.from_list([*task.splits["train"].sequences, *task.splits["dev"].sequences])
        leaks = find_leaks(seen, task.splits["test"].sequences, b.leak_k, b.leak_jaccard)
        say(f"{cell.task}: {int(leaks.near.sum())} of {len(leaks.near)} test rows are in train or dev, or nearly")
        return {**leaks.record(), "near_rows": np.flatnonzero(leaks.near).tolist()}

    made_with = {"leak_k": b.leak_k, "leak_jaccard": b.leak_jaccard, **_source(cell.config)}
    return _kept(_task_folder(cell.task, config) / "leaks.json", made_with, find)


def _baselines(cell: Cell, config: ConfigDict) -> dict[str, Any]:
    """What the baselines reach on the test rows of a task, fitted once, and what the report says of the task."""
    fields = config.baseline.to_dict() if config.benchmark.kmer else {}

    def fit() -> dict[str, Any]:
        task = load_task(cell.config, quiet=True)
        test, names = task.splits["test"], task.target.metrics
        predictions = {}
        if task.target.kind == "classification":
            counts = np.bincount(task.splits["train"].targets, minlength=task.target.outputs)
            predictions["majority"] = np.tile(np.eye(len(counts))[counts.argmax()], (len(test), 1))
        if fields:
            predictions["k-mer"] = kmer_predictions(task, fields["max_k"], fields["strengths"])["test"]
        scores = {which: metrics.evaluate(names, x, test.targets) for which, x in predictions.items()}
        return {"select": task.target.select, "notes": task.notes, "test": scores}

    made_with = {name: fields[name] for name in ("max_k", "strengths") if fields} | _source(cell.config)
    return _kept(_task_folder(cell.task, config) / "baselines.json", made_with, fit)


def _facts(name: str, config: ConfigDict, cells: Sequence[Cell], scores: Sequence[Score]) -> TaskFacts:
    """What stands beside the scores of a task."""
    cell = next(cell for cell in cells if cell.task == name)
    leaks = _leaks(cell, config) if config.benchmark.leaks else {}
    kept = _baselines(cell, config)
    families = {cell.label: cell.family for cell in cells}
    label = next((label for label, family in families.items() if family == CNN), None)
    convolutional = [s.metrics[kept["select"]] for s in scores if (s.task, s.model) == (name, label)]
    cnn = {"CNN": {kept["select"]: float(np.mean(convolutional))}} if convolutional else {}
    return TaskFacts(
        select=kept["select"],
        category=next(category for pattern, category in _CATEGORIES if re.search(pattern, name)),
        baselines={which: _numbers(stored) for which, stored in kept["test"].items()} | cnn,
        leaks={key: value for key, value in leaks.items() if key not in ("near_rows", "made_with")},
        # A label such as mamba_bpe may be what was published under that very name.
        published={
            label: [(p.source, p.value) for p in published(name, label, kept["select"]) or published(name, family, kept["select"])]
            for label, family in families.items()
        },
        notes=kept["notes"],
    )
