"""The noun Task: a named dataset with splits, a target and raw sequences. It knows nothing of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxgen.data.sequences import Sequences

CLASSIFICATION_METRICS = ("accuracy", "mcc", "f1_macro", "auroc", "auprc")
REGRESSION_METRICS = ("pearson", "spearman", "r2", "rmse")


@dataclass(frozen=True, eq=False)
class Examples:
    """One split, in columns.

    Attributes:
        sequences: n sequences.
        targets: int32 (n,) class indices, or float32 (n, outputs).
    """

    sequences: Sequences
    targets: np.ndarray

    def __post_init__(self):
        if len(self.sequences) != len(self.targets):
            raise ValueError(f"{len(self.sequences)} sequences but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"sequence": self.sequences[index], "target": self.targets[index]}

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at `indices`, in that order."""
        return Examples(self.sequences.take(indices), self.targets[indices])


@dataclass(frozen=True)
class Target:
    """What is predicted.

    Attributes:
        kind: "classification" or "regression".
        outputs: number of classes, or of regressed values.
        names: class (or output) names, in index order.
        metrics: names of the metrics to report, computed on the whole split.
        select: the metric that picks the best step on `dev`.
    """

    kind: str
    outputs: int
    names: tuple[str, ...]
    metrics: tuple[str, ...]
    select: str

    @property
    def num_classes(self) -> int:
        """Number of classes (0 for regression)."""
        return self.outputs if self.kind == "classification" else 0

    @classmethod
    def classification(cls, names: tuple[str, ...], select: str = "mcc") -> "Target":
        """Single-label classification over `names`."""
        return cls("classification", len(names), names, CLASSIFICATION_METRICS, select)

    @classmethod
    def regression(cls, names: tuple[str, ...], select: str = "pearson") -> "Target":
        """Regression of one value per name."""
        return cls("regression", len(names), names, REGRESSION_METRICS, select)


@dataclass(frozen=True, eq=False)
class Task:
    """A named dataset.

    Attributes:
        name: the name it is registered under.
        splits: `train`, `dev`, `test` -> examples.
        target: what is predicted.
        description: one or two sentences for reports.
        simulated: True where the sequences do not come from an organism.
        attainable: for simulated tasks, what the generating model itself achieves: metric -> value on `test`.
        length: tokens per example that the published protocols read at most; 0 = no such limit.
        notes: what the reader should know of the data as read (counts of lower-case letters, converted U, ...).
    """

    name: str
    splits: Mapping[str, Examples]
    target: Target
    description: str = ""
    simulated: bool = False
    attainable: Mapping[str, float] | None = None
    length: int = 0
    notes: tuple[str, ...] = field(default=())
