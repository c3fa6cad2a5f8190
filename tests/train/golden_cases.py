"""Finds the golden cases of a family under every root."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
DEFAULT_ROOTS = (REPOSITORY / "tests" / "goldens", REPOSITORY.parent / "shared" / "goldens")


class Case(NamedTuple):
    """One case: its config, arrays and tolerances."""

    config: dict
    arrays: dict[str, np.ndarray]
    tolerance: dict[str, float]


def golden(family: str):
    """Parametrises a test over `path`, the folders of all cases of a family; skips it where there is none."""
    named = os.environ.get("JAXGEN_GOLDENS")
    roots = [Path(root) for root in named.split(":")] if named else DEFAULT_ROOTS
    found = [path.parent for root in roots for path in sorted(root.glob(f"{family}/*/meta.json"))]
    unique = {(path.name, (path / "io.npz").read_bytes()): path for path in found}  # one root may hold copies of another's
    cases = [pytest.param(path, id=f"{family}/{path.name}") for path in unique.values()]
    return lambda test: pytest.mark.golden(pytest.mark.parametrize("path", cases)(test))


def read(path: Path) -> Case:
    """Loads one case."""
    meta = json.loads((path / "meta.json").read_text())
    with np.load(path / "io.npz") as arrays:
        return Case(json.loads((path / "config.json").read_text()), dict(arrays), {"atol": meta["atol"], "rtol": meta["rtol"]})
