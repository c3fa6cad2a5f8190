"""Finds golden cases of a family that hold a given array, and the real data that may lie next to the repository."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
ROOTS = os.environ.get("JAXGEN_GOLDENS", f"{REPOSITORY}/tests/goldens:{REPOSITORY.parent}/shared/goldens").split(":")
REAL_DATA = REPOSITORY.parent / "shared" / "data"


def golden(family: str, array: str = ""):
    """Parametrises a test over (arrays, config) of all cases of `family`, or of those with an array whose name begins so."""
    params = []
    for path in {path.parent.name: path.parent for root in ROOTS for path in sorted(Path(root).glob(f"{family}/*/io.npz"))}.values():
        with np.load(path / "io.npz") as stored:
            arrays = dict(stored)
        if any(name.startswith(array) for name in arrays):
            config = path / "config.json"
            params.append(pytest.param(arrays, json.loads(config.read_text()) if config.exists() else {}, id=f"{family}/{path.name}"))
    return lambda test: pytest.mark.golden(pytest.mark.parametrize(("arrays", "config"), params)(test))


def real(name: str) -> Path:
    """A file or folder of real data; skips the test where it is absent."""
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"real data {name} is not here")
    return path
