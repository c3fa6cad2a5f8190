"""Tasks by name: `get("table", path="folder")`. Each task is one module with a `load` function, imported when asked for."""

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

from jaxgen.data.tasks.base import Examples, Target, Task
from jaxgen.data.tasks.suites import SUITES
from jaxgen.errors import InputError, nearest

__all__ = ["EQTL", "FAMILIES", "Examples", "Target", "Task", "check", "get", "names"]

# name -> (module, fixed options). A family with many members, such as gue/tf_0, registers "gue"; the rest of the name is
# passed to its `load` as `member`.
_REGISTRY: dict[str, tuple[str, dict[str, Any]]] = {
    "table": ("table", {}),
    "records": ("records", {}),
    "simulated_promoters": ("simulated_promoters", {}),
    **{suite: ("suite", {"suite": suite}) for suite in SUITES},
}


EQTL = "eqtl"  # pairs of alleles, read by jaxgen.data.eqtl: no Task
FAMILIES = frozenset(_REGISTRY)  # what a task's name begins with, up to a "/"


def _download_hint(family: str) -> str:
    return "; configs/prepare.py:TASK downloads it" if _REGISTRY[family][0] == "suite" else ""


def names() -> list[str]:
    """Names that `get` knows, those of a suite with their members, and `eqtl`."""
    members = {suite: sorted(found.tasks) for suite, found in SUITES.items()}
    return sorted([EQTL, *(f"{name}/{member}" if member else name for name in _REGISTRY for member in members.get(name, [""]))])


def get(name: str, *, path: str | None = None, seed: int = 1, **options: Any) -> Task:
    """Loads a task.

    Args:
        name: a registered name, or `family/member`.
        path: file or folder, for tasks that read one.
        seed: seeds splits that the data do not bring along, and simulation.
        **options: the task's own options.

    Raises:
        InputError: unknown task or option (the nearest one is named), a missing or superfluous path, or bad data.
    """
    module, arguments = _resolve(name, path, options)
    return module.load(seed=seed, **arguments)


def check(name: str, *, path: str | None = None, **options: Any) -> None:
    """Raises what `get` would, as far as that shows without reading the data: the name, the options, whether the files are there."""
    module, arguments = _resolve(name, path, options)
    if hasattr(module, "check"):
        accepted = inspect.signature(module.check).parameters
        module.check(**{key: value for key, value in arguments.items() if key in accepted})


def _resolve(name: str, path: str | None, options: dict[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
    """The module of a task, and the arguments of its `load` besides the seed."""
    family, _, member = name.partition("/")
    if name == EQTL:
        raise InputError(f"task {EQTL!r}: its pairs of alleles are probed, not fine-tuned on; see configs/probe_variants.py:MODEL")
    if family not in _REGISTRY:
        raise InputError(f"unknown task {name!r}{nearest(family, _REGISTRY)}")
    module_name, fixed = _REGISTRY[family]
    module = import_module(f"{__name__}.{module_name}")
    accepted = inspect.signature(module.load).parameters
    options = dict(options)
    for key, value in (("path", path), ("member", member)):
        if value:
            if key not in accepted:
                raise InputError(f"task {name!r} takes no {key} (got {value!r})")
            options[key] = value
        elif key in accepted and accepted[key].default is inspect.Parameter.empty:
            raise InputError(
                f"task {name!r} needs data.path: the file or folder to read{_download_hint(family)}"
                if key == "path"
                else f"task {name!r} needs {family}/NAME"
            )
    for key in options:
        if key not in accepted:
            raise InputError(f"task {name!r}: unknown option {key!r}{nearest(key, set(accepted) - {'path', 'seed', 'member', *fixed})}")
    return module, {**fixed, **options}
