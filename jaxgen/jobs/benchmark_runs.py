"""The runs of a benchmark: which there are, which of them are whose, and running them."""

import dataclasses
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxgen.config import matching, set_field, settled
from jaxgen.data.tasks import FAMILIES
from jaxgen.errors import InputError
from jaxgen.jobs import finetune
from jaxgen.jobs.packing import run_packed
from jaxgen.jobs.training import difference, say
from jaxgen.models.registry import resolve

Settings = tuple[str, ...]  # field=value
Item = TypeVar("Item")
CNN = "cnn"  # the family that is a baseline too


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: `label` is the model's name in the table, `family` its architecture."""

    label: str
    family: str
    task: str
    seed: int
    config: ConfigDict

    @property
    def pair(self) -> tuple[str, str]:
        return self.label, self.task

    @property
    def finished(self) -> bool:
        return (epath.Path(self.config.workdir) / "result.json").exists()


def plan(config: ConfigDict, chosen: Mapping[tuple[str, str], Settings] | None = None) -> list[Cell]:
    """All runs, seeds outermost, so that an unfinished benchmark covers every model and task.

    Args:
      chosen: by (label, task), what overrides `benchmark.settings`.

    Raises:
      InputError: an empty list, a setting that does not parse or names an unknown field, a repeated label; a model or task that there is
        not, data that are not there, a pair that cannot go together.
    """
    b = config.benchmark
    for name in ("models", "tasks"):
        if not b[name]:
            raise InputError(f"benchmark.{name} is empty: list at least one")
    models = {label: name or label for label, name in _labelled(b.models, "models", "LABEL=MODEL").items()}
    tasks = _labelled(b.tasks, "tasks", "NAME=PATH")
    for field in ("seeds", "sweep_seeds"):
        if len(set(b[field])) != len(b[field]):
            raise InputError(f"benchmark.{field}={', '.join(map(str, b[field]))}: every seed counts once")
    added = b.cnn and not any(resolve(name)[0].name == CNN for name in models.values())
    if added and CNN in models:
        raise InputError(f"benchmark.models: {CNN} is the CNN beside all models; choose another label, or set benchmark.cnn=false")
    models |= {CNN: CNN} if added else {}
    cells = []
    for seed in map(int, b.seeds):
        for task, path in tasks.items():
            for label, name in models.items():
                given = _from_scratch(config) if added and label == CNN else config
                run_config = _run_config(given, label, name, task, path, seed, (chosen or {}).get((label, task), ()))
                if seed == int(b.seeds[0]):
                    _check_run(run_config, f"{name or config.init_from} on {task}")
                cells.append(Cell(label, resolve(name)[0].name, task, seed, run_config))
    return cells


def _from_scratch(config: ConfigDict) -> ConfigDict:
    """Without weights and adapters, which are for the models that the CNN stands beside."""
    plain = ConfigDict(config.to_dict())
    plain.init_from, plain.model.adapter, plain.model.adapter_targets, plain.model.adapter_feedforward = "", "full", (), ()
    return plain


def check_rules(config: ConfigDict, cells: Sequence[Cell]) -> None:
    """That every entry of `benchmark.overrides` and `benchmark.sweep` is for some run; recipes in `benchmark.settings` may hold more.

    Raises:
      InputError: one that is not.
    """
    pairs = {cell.pair for cell in cells}
    for field in ("overrides", "sweep"):
        for entry in config.benchmark[field]:
            if not any(matching([entry], *pair, f"benchmark.{field}") for pair in pairs):
                labels, tasks = (", ".join(dict.fromkeys(names)) for names in zip(*(cell.pair for cell in cells)))
                raise InputError(f"benchmark.{field}: {entry!r} is for no run; models are {labels}, tasks {tasks}")


def _check_run(config: ConfigDict, name: str) -> None:
    """Finds now what would end the run before its first step."""
    try:
        finetune.check(config)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def check(cells: Sequence[Cell]) -> None:
    """That finished runs are those that would be run today, for one row of the table averages over them.

    Raises:
      InputError: another setting was used (the run and the first difference are named).
    """
    for cell in cells:
        if cell.finished and (found := difference(cell.config)):
            raise InputError(f"{cell.config.workdir}: this run has {found}; choose another --workdir, or delete it to run it anew")


def packs(cells: Sequence[Cell], size: int) -> list[list[Cell]]:
    """Up to `size` seeds of one model and task at a time, in the order of the first of them."""
    groups: dict[tuple[str, str], list[list[Cell]]] = {}
    order: list[list[Cell]] = []
    for cell in cells:
        own = groups.setdefault(cell.pair, [])
        if not own or len(own[-1]) == size:
            own.append([])
            order.append(own[-1])
        own[-1].append(cell)
    return order


def title(pack: Sequence[Cell]) -> str:
    """What a pack is called in messages."""
    return f"{pack[0].label} on {pack[0].task}, seed{'s' * (len(pack) > 1)} {', '.join(str(cell.seed) for cell in pack)}"


def label_of(entry: str) -> str:
    """What an entry of `benchmark.models` or `benchmark.tasks` is called in the table."""
    return entry.partition("=")[0]


def _labelled(entries: Sequence[str], field: str, form: str) -> dict[str, str]:
    """Label -> what stands behind its "=", or "".

    Raises:
      InputError: a label that occurs again or cannot be a folder, or nothing behind the "=".
    """
    found = {label_of(entry): entry.partition("=")[2] for entry in entries}
    if len(found) != len(entries):
        raise InputError(f"benchmark.{field}: two entries have one label; name them {form}")
    for entry in entries:
        if entry.endswith("=") or set(label_of(entry).split("/")) & {"", ".", ".."}:
            raise InputError(f"benchmark.{field}: {entry!r} is not {form}")
    return found


def _run_config(config: ConfigDict, label: str, name: str, task: str, path: str, seed: int, chosen: Settings) -> ConfigDict:
    """The config of one run of the finetune job."""
    b, run_config = config.benchmark, ConfigDict(config.to_dict())
    run_config.job, run_config.seed = "finetune", seed
    run_config.model.name = name
    run_config.data.task = "table" if path and task.partition("/")[0] not in FAMILIES else task
    simulated = task.startswith("simulated_")
    run_config.data.path = path or ("" if simulated else config.data.path)
    if run_config.data.split_seed < 0 and (simulated or os.path.isfile(run_config.data.path)):
        run_config.data.split_seed = config.seed  # otherwise every seed would have test rows of its own
    rules = [*matching(b.settings, label, task, "benchmark.settings"), *matching(b.overrides, label, task, "benchmark.overrides")]
    for setting in (*rules, *chosen):
        set_field(run_config, *setting.split("=", 1))
    run_config.benchmark = ConfigDict()  # the lists may grow without touching finished runs
    run_config.workdir = str(epath.Path(config.workdir) / "runs" / task / f"{label}_{seed}")
    return settled(run_config)


def share(items: Sequence[Item], text: str) -> list[Item]:
    """Every n-th item beginning with the i-th for "i/n", counted from 1: one share per device, job of an array, or machine.

    "auto" is share number JAXGEN_SHARE_INDEX (from 0; or JOB_COMPLETION_INDEX, of an indexed Kubernetes job) of JAXGEN_SHARE_COUNT where
    that is set, the share of this job in a SLURM array, and everything elsewhere.

    Raises:
      InputError: not of that form.
    """
    if text == "auto":
        own = os.environ
        if "JAXGEN_SHARE_COUNT" in own:
            index = int(own.get("JAXGEN_SHARE_INDEX") or own.get("JOB_COMPLETION_INDEX", "0"))
            text = f"{index + 1}/{own['JAXGEN_SHARE_COUNT']}"
        else:
            index, first, step, count = (int(own.get(f"SLURM_ARRAY_TASK_{name}", "1")) for name in ("ID", "MIN", "STEP", "COUNT"))
            text = f"{(index - first) // step + 1}/{count}"
            if not index - first < step * count:
                raise InputError(f"benchmark.share=auto: job {index} of {count} in this array; number them evenly, as --array=1-{count}")
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"benchmark.share={text!r}: expected auto, or i/n with i from 1 to n, such as 1/4")
    return list(items[int(match[1]) - 1 :: int(match[2])])


def run_all(packs: Sequence[Sequence[Cell]], folder: epath.Path) -> dict[str, str] | None:
    """Runs what is not finished; failures by name, or None when a signal asked to stop (the run in progress saved itself)."""
    failed: dict[str, str] = {}
    todo = [pack for pack in packs if not all(cell.finished for cell in pack)]
    began = time.monotonic()
    for i, pack in enumerate(todo):
        name = title(pack)
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
    """Seeds of one model and task together: first those that were begun together, even if some of them are finished, then the others."""
    begun = epath.Path(folder) / pack[0].task
    cells = {str(cell.seed): cell for cell in pack}
    for progress in sorted(begun.iterdir()) if begun.exists() else ():
        label, _, seeds = progress.name.rpartition(".")
        if label == pack[0].label and cells.keys() >= set(seeds.split("_")):
            run_packed([cells[seed].config for seed in seeds.split("_")], str(progress))
            if progress.exists():
                return  # a signal asked to stop
    rest = {seed: cell for seed, cell in cells.items() if not cell.finished}
    if len(rest) == 1:
        finetune.run(next(iter(rest.values())).config)
    elif rest:
        run_packed([cell.config for cell in rest.values()], str(begun / f"{pack[0].label}.{'_'.join(rest)}"))
