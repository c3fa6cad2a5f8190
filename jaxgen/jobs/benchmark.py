"""Fine-tune many models on many tasks over many seeds, and write one table with baselines, leak report and published scores."""

import dataclasses
import fnmatch
import json
import os
import re
import time
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxgen.config import set_field
from jaxgen.data.leaks import find_leaks
from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.published import published
from jaxgen.errors import InputError
from jaxgen.jobs import finetune
from jaxgen.jobs.baseline import kmer_logits
from jaxgen.jobs.packing import run_packed
from jaxgen.jobs.tasks import load_task
from jaxgen.jobs.training import say
from jaxgen.models.registry import resolve
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


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: `label` is the model's name in the table, `family` its architecture."""

    label: str
    family: str
    task: str
    seed: int
    config: ConfigDict

    @property
    def finished(self) -> bool:
        return (epath.Path(self.config.workdir) / "result.json").exists()


def run(config: ConfigDict) -> int:
    """See the module; returns 0 when every run of this share is finished, 1 when some failed."""
    if not config.workdir:
        raise InputError("--workdir=DIR is missing: where should the runs and the table go?")
    cells = plan(config)
    mine = share(packs(cells, config.benchmark.pack), config.benchmark.share)
    if config.benchmark.dry_run:
        for number, pack in enumerate(mine, 1):
            for cell in pack:
                state = "finished" if cell.finished else "to do"
                print(f"{state}\t{cell.label}\t{cell.task}\tseed {cell.seed}\tprogram {number}\t{cell.config.workdir}")
        return 0
    own = [cell for pack in mine for cell in pack]
    say(f"{len(cells)} runs, {len(own)} in this share, {sum(cell.finished for cell in own)} of them finished")
    failed = _run_all(mine, epath.Path(config.workdir) / "packs")
    if failed is None:
        return 0
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


def _run_all(packs: Sequence[Sequence[Cell]], folder: epath.Path) -> dict[str, str] | None:
    """Runs what is not finished; failures by name, or None when a signal asked to stop (the run in progress saved itself)."""
    failed: dict[str, str] = {}
    todo = [pack for pack in packs if not all(cell.finished for cell in pack)]
    began = time.monotonic()
    for i, pack in enumerate(todo):
        seeds = ", ".join(str(cell.seed) for cell in pack)
        name = f"{pack[0].label} on {pack[0].task}, seed{'s' * (len(pack) > 1)} {seeds}"
        eta = f", about {(time.monotonic() - began) / i * (len(todo) - i) / 60:.0f} min left" if i else ""
        say(f"[{i + 1}/{len(todo)}] {name}{eta}")
        try:
            _run_pack(pack, folder)
        except InputError as error:
            failed[name] = str(error)
            say(f"failed, going on with the next: {error}")
            continue
        finally:
            jax.clear_caches()  # another model follows; its programs share nothing with these
        if not all(cell.finished for cell in pack):
            say("stopped; the same command goes on here")
            return None
    return failed


def _run_pack(pack: Sequence[Cell], folder: epath.Path) -> None:
    """Seeds of one model and task together; those that are finished already stay, unless their pack was killed while it wrote them."""

    def progress(cells: Sequence[Cell]) -> epath.Path:
        return folder / pack[0].task / "_".join([pack[0].label, *(str(cell.seed) for cell in cells)])

    if not progress(pack).exists():
        pack = [cell for cell in pack if not cell.finished]
    if len(pack) == 1:
        finetune.run(pack[0].config)
    else:
        run_packed([cell.config for cell in pack], str(progress(pack)))


def plan(config: ConfigDict) -> list[Cell]:
    """All runs, seeds outermost, so that an unfinished benchmark covers every model and task.

    Raises:
      InputError: an empty list, an unknown model, a setting that does not parse or names an unknown field, a repeated label.
    """
    b = config.benchmark
    for name in ("models", "tasks", "seeds"):
        if not b[name]:
            raise InputError(f"benchmark.{name} is empty: list at least one")
    models = dict(_labelled(entry) for entry in b.models)
    if len(models) != len(b.models):
        raise InputError("benchmark.models: two entries have one label; name them LABEL=MODEL")
    cells = []
    for seed in map(int, b.seeds):
        for task in b.tasks:
            for label, name in models.items():
                cells.append(Cell(label, resolve(name)[0].name, task, seed, _run_config(config, label, name, task, seed)))
    return cells


def packs(cells: Sequence[Cell], size: int) -> list[list[Cell]]:
    """Up to `size` seeds of one model and task at a time, in the order of the first of them.

    Raises:
      InputError: not a positive number.
    """
    if size < 1:
        raise InputError(f"benchmark.pack={size} must be at least 1")
    groups: dict[tuple[str, str], list[list[Cell]]] = {}
    order: list[list[Cell]] = []
    for cell in cells:
        own = groups.setdefault((cell.label, cell.task), [])
        if not own or len(own[-1]) == size:
            own.append([])
            order.append(own[-1])
        own[-1].append(cell)
    return order


def _labelled(entry: str) -> tuple[str, str]:
    label, _, name = entry.partition("=")
    return label, name or label


def _run_config(config: ConfigDict, label: str, name: str, task: str, seed: int) -> ConfigDict:
    """The config of one run of the finetune job."""
    run_config = ConfigDict(config.to_dict())
    run_config.job, run_config.seed = "finetune", seed
    run_config.model.name, run_config.data.task = name, task
    run_config.data.path = "" if task.startswith("simulated_") else config.data.path
    for setting in config.benchmark.settings:
        match = re.fullmatch(r"([^@:]+)@([^:]+):([\w.]+)=(.*)", setting)
        if not match:
            raise InputError(f"benchmark.settings: {setting!r} is not MODELS@TASKS:field=value, such as mamba*@gue/*:train.epochs=3")
        models, tasks, field, value = match.groups()
        if fnmatch.fnmatchcase(label, models) and fnmatch.fnmatchcase(task, tasks):
            set_field(run_config, field, value)
    run_config.benchmark = ConfigDict()  # the lists may grow without touching finished runs
    run_config.workdir = str(epath.Path(config.workdir) / "runs" / task / f"{label}_{seed}")
    return run_config.lock()


def share(packs: Sequence[list[Cell]], text: str) -> list[list[Cell]]:
    """Every n-th pack beginning with the i-th for "i/n", counted from 1: one share per device, job of an array, or machine.

    "auto" is the share of this job in a SLURM array, and everything elsewhere.

    Raises:
      InputError: not of that form.
    """
    if text == "auto":
        index, first, count = (int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", "1")) for name in ("ID", "MIN", "COUNT"))
        text = f"{index - first + 1}/{count}"
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"benchmark.share={text!r}: expected auto, or i/n with i from 1 to n, such as 1/4")
    return list(packs[int(match[1]) - 1 :: int(match[2])])


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
