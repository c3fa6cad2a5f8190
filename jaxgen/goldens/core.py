"""Cases, families and comparison.

A case is a folder `family/case/` with `meta.json` (family, tolerances), `io.npz` (inputs and expected outputs) and, where they apply,
`config.json` and weights. A family is one function here: case -> everything it expects, recomputed.
"""

import dataclasses
import functools
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.errors import InputError, nearest

# Family -> module of this package. A golden family of a new architecture is one function and one line here.
FAMILIES = {
    "dnabert": "bert",
    "dnabert2": "bert",
    "genomic_benchmark_cnn": "models",
    "hyena_filter": "models",
    "hyenadna": "models",
    "sequence_decoder": "models",
    "hg38": "data",
    "splits": "data",
    "tokenizers": "data",
    "lr_schedule": "training",
    "metrics": "training",
    "gpt_neo": "attention",
    "nucleotide_transformer": "attention",
    "caduceus_ph": "state_space",
    "caduceus_ps": "state_space",
    "mamba": "state_space",
    "selective_scan": "state_space",
    "lel": "perturbation",
    "ia3": "adapters",
    "tf_mlp": "perturbation",
    "tf_xgboost": "perturbation",
    "vep": "variants",
}


# Cases of k-mer tokenizers say in their names which one: "nt6mer_v1.json", "dnabert6mer_rawtext.json".
KMER_FILES = re.compile(r"(?P<model>nt|dnabert)(?P<k>\d)mer(?P<variant>_v1|_rawtext)?.*\.json")


@dataclasses.dataclass(frozen=True)
class Case:
    """One fixture, read from its folder."""

    path: Path

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        return _json(self.path / "meta.json")

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        file = self.path / "config.json"
        return _json(file) if file.exists() else {}

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path / "io.npz") as stored:
                return dict(stored)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}/io.npz: cannot be read ({error})") from error

    @property
    def family(self) -> str:
        return self.meta.get("family", self.path.parent.name)


@dataclasses.dataclass(frozen=True)
class TextCase(Case):
    """Texts and the ids that a tokenizer gives them: a JSON list of {"sequence", "ids"}.

    It is a file of its own, named after the tokenizer (`nt6mer.json`), or `cases.json` beside the files of a vocabulary.
    """

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def family(self) -> str:
        return "tokenizers"

    @property
    def meta(self) -> dict[str, Any]:
        return {"atol": 0, "rtol": 0}

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        file = self.path if self.path.is_file() else self.path / "cases.json"
        rows: Any = _json(file)
        if not rows or not isinstance(rows, list) or not all(isinstance(row, dict) and {"sequence", "ids"} <= row.keys() for row in rows):
            raise InputError(f'{file}: is no golden case of a tokenizer, a list of {{"sequence": ..., "ids": [...]}}')
        return rows

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """`ids` (texts, longest), padded with -1."""
        ids = np.full((len(self.rows), max(len(row["ids"]) for row in self.rows)), -1)
        for out, row in zip(ids, self.rows):
            out[: len(row["ids"])] = row["ids"]
        return {"ids": ids}


def text_cases(folder: Path) -> Iterator[TextCase]:
    """Cases of tokenizers anywhere under `folder`."""
    for file in sorted(folder.rglob("*.json")):
        if file.name == "cases.json" and not (file.parent / "meta.json").exists():
            yield TextCase(file.parent)
        elif KMER_FILES.fullmatch(file.name):
            yield TextCase(file)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); a golden case has meta.json and io.npz") from error


@dataclasses.dataclass(frozen=True)
class Line:
    """The comparison of one array."""

    name: str
    error: float
    atol: float
    rtol: float
    ok: bool
    note: str = ""

    def __str__(self) -> str:
        verdict = ("ok" if self.ok else "FAIL") + (f"  {self.note}" if self.note else "")
        return f"{self.name:44s} max abs error {self.error:10.3e}  atol {self.atol:g} rtol {self.rtol:g}  {verdict}"


Compute = Callable[[Case], Mapping[str, np.ndarray]]
_COMPUTE: dict[str, tuple[Compute, frozenset[str]]] = {}


def golden(family: str, inputs: tuple[str, ...] = ()) -> Callable[[Compute], Compute]:
    """Registers the function of a family; `inputs` are the arrays of io.npz that are given, not expected."""

    def register(compute: Compute) -> Compute:
        _COMPUTE[family] = (compute, frozenset(inputs))
        return compute

    return register


def check(case: Case) -> list[Line]:
    """Recompute a case and compare every expected array at the case's own tolerance; one that nobody computes fails.

    Raises:
      InputError: no such family, or files of the case that cannot be read.
    """
    if case.family not in FAMILIES:
        raise InputError(f"{case.path}: golden family {case.family!r} is not covered by this version{nearest(case.family, FAMILIES)}")
    importlib.import_module(f"jaxgen.goldens.{FAMILIES[case.family]}")
    compute, inputs = _COMPUTE[case.family]
    atol, rtol = (_tolerance(case, name) for name in ("atol", "rtol"))
    computed = dict(compute(case))
    lines = []
    for name, expected in case.arrays.items():
        if name in inputs:
            continue
        if name not in computed:
            lines.append(Line(f"{case.name}/{name}", float("nan"), atol, rtol, False, "nothing computes this array"))
            continue
        lines.append(compare(f"{case.name}/{name}", np.asarray(computed.pop(name)), expected, atol, rtol))
    # What is checked beyond the arrays (structure, round trips) comes as booleans; arrays that a case does not expect mean nothing.
    checks = {name: bool(np.all(ok)) for name, ok in computed.items() if np.asarray(ok).dtype == bool}
    lines += [Line(f"{case.name}/{name}", 0.0 if ok else 1.0, 0.0, 0.0, ok) for name, ok in checks.items()]
    return lines


def _tolerance(case: Case, name: str) -> float:
    try:
        return float(case.meta[name])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{case.path}/meta.json: {name}={case.meta.get(name)!r} is not a tolerance; give a number") from None


def compare(name: str, ours: np.ndarray, expected: np.ndarray, atol: float, rtol: float) -> Line:
    """|ours - expected| <= atol + rtol |expected| everywhere; NaN equals NaN."""
    if ours.shape != expected.shape:
        return Line(name, float("nan"), atol, rtol, False, f"shape {ours.shape}, expected {expected.shape}")
    if expected.dtype.kind in "USO" or ours.dtype.kind in "USO":
        same = bool(np.array_equal(ours, expected))
        return Line(name, 0.0 if same else float("inf"), atol, rtol, same)
    a, b = ours.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf, where both are the same
        error = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    ok = bool(np.all((error == 0) | (error <= atol + rtol * np.abs(b))))
    return Line(name, float(error.max(initial=0.0)), atol, rtol, ok)


def find_cases(roots: list[Path] | None = None) -> Iterator[Case]:
    """Every case of the covered families under the roots ($JAXGEN_GOLDENS, or the folders given), each once."""
    if roots is None:
        roots = [Path(root) for root in os.environ.get("JAXGEN_GOLDENS", "").split(":") if root]
    seen = set()
    for root in roots:
        for family in FAMILIES:
            cases = [Case(meta.parent) for meta in sorted(root.glob(f"{family}/*/meta.json"))]
            for case in [*cases, *(text_cases(root / family) if family == "tokenizers" else ())]:
                # A root may hold copies of another's cases.
                key = (case.name, str(case.rows) if isinstance(case, TextCase) else (case.path / "io.npz").read_bytes())
                if key not in seen and covered(case):
                    seen.add(key)
                    yield case


def covered(case: Case) -> bool:
    """Whether this version claims the case: of tokenizers, the character ones and those given as texts."""
    return case.family != "tokenizers" or isinstance(case, TextCase) or "caduceus" in case.config
