"""How things are timed and shown: contenders take turns, medians are compared, goals are stated and never asserted."""

import dataclasses
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "grain", "pyfaidx", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks of every part.

    Attributes:
      repeats: timed turns per contender.
      smoke: tiny sizes, to see that a part runs; the numbers mean nothing.
      tables: label tables (files or folders) whose padding is reported besides the shipped task's.
      config: the config whose start is timed.
      one_core: everything on one core and, but for `start`, by its CPU time, which other users of the machine hardly disturb.
    """

    repeats: int = 7
    smoke: bool = False
    tables: tuple[str, ...] = ()
    config: str = "configs/quickstart.py"
    one_core: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """What parts are timed with."""
        return time.process_time if self.one_core else time.perf_counter


@dataclasses.dataclass(frozen=True)
class Goal:
    """`value` or `ratio`, `>=` or `<`, and the limit."""

    of: str
    sign: str
    limit: float

    def met(self, row: "Row") -> bool:
        measured = row.ratio if self.of == "ratio" else row.ours
        return measured is not None and (measured >= self.limit if self.sign == ">=" else measured < self.limit)

    def __str__(self) -> str:
        return f"{'ratio ' if self.of == 'ratio' else ''}{self.sign} {self.limit:g}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. `samples` hold every timed turn, in the row's unit, ours first."""

    part: str
    case: str
    ours: float
    unit: str
    peer: str = ""
    theirs: float | None = None
    goal: Goal | None = None
    samples: tuple[tuple[float, ...], ...] = ()

    @property
    def ratio(self) -> float | None:
        """How many times better jaxgen is."""
        if self.theirs is None:
            return None
        return self.ours / self.theirs if self.unit.endswith("/s") else self.theirs / self.ours


@dataclasses.dataclass(frozen=True)
class Note:
    """Something the reader of the table must know: a part or peer that was left out, and why."""

    part: str
    text: str


@dataclasses.dataclass(frozen=True)
class Contender:
    """`run()` does `work` units of work and returns when they are done."""

    name: str
    run: Callable[[], Any]
    work: float = 1.0


def have(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def take_turns(contenders: Sequence[Contender], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[list[float]]:
    """Seconds per unit of work of every contender in every round. They alternate, so that noise of the machine hits all.

    The pause between turns lets the other library's spinning threads go to sleep.
    """
    for contender in contenders:
        contender.run()
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(repeats):
        for mine, contender in zip(seconds, contenders):
            time.sleep(0.02)
            began = clock()
            contender.run()
            mine.append((clock() - began) / contender.work)
    return seconds


def compare(
    part: str,
    case: str,
    contenders: Sequence[Contender],
    repeats: int,
    *,
    unit: str = "ms",
    goal: Goal | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """The first contender against each of the others (alone: one row without peer). Unit: ms, s, MB/s (work in MB) or THINGS/s."""
    convert = {"ms": lambda s: 1e3 * s, "s": lambda s: s}.get(unit, lambda s: 1 / s)
    samples = [tuple(convert(s) for s in mine) for mine in take_turns(contenders, repeats, clock)]
    medians = [statistics.median(mine) for mine in samples]
    if len(contenders) == 1:
        return [Row(part, case, medians[0], unit, goal=goal, samples=(samples[0],))]
    peers = zip(contenders[1:], medians[1:], samples[1:])
    return [Row(part, case, medians[0], unit, peer.name, theirs, goal, (samples[0], their)) for peer, theirs, their in peers]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return str(value)
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def render(rows: Sequence[Row]) -> str:
    """The table, as text in columns."""
    head = ("part", "case", "jaxgen", "unit", "peer", "theirs", "times better", "goal")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal}: {'pass' if row.goal.met(row) else 'MISS'}"
        lines.append((row.part, row.case, _number(row.ours), row.unit, row.peer, _number(row.theirs), _number(row.ratio), goal))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = (2, 5, 6)
    cells = [[text.rjust(w) if i in right else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths))] for line in lines]
    cells.insert(1, ["-" * w for w in widths])
    return "\n".join("  ".join(line).rstrip() for line in cells)


def use_one_core() -> None:
    """Keeps this process, XLA and torch's OpenMP on one core. To be called before either is imported."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def load_warning(one_core: bool) -> str:
    """Empty on an idle machine. On a busy one, threads that wait for each other make wall times meaningless."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if one_core or load < 0.5 * cores:
        return ""
    return f"load average {load:.1f} on {cores} cores: do not trust wall times; see --one-core"


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import jax

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
