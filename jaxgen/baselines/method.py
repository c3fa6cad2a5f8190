"""What a method of a cross-validated expression benchmark is: (data, folds) -> predictions of the rows each fold holds out."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class PerturbationData:
    """Expression changes of P perturbations in G genes, and what they are predicted from, all in the same row order.

    Attributes:
      names: (P,) perturbation ids.
      genes: (G,) read-out gene ids.
      targets: float32 (P, G), NaN = missing.
      tf_embeddings: float32 (P, K), None where the method needs none.
      gene_embeddings: float32 (G, K), None where the method needs none.
      target_gene: int64 (P,), column of the perturbed gene itself among `genes`, -1 = not read out.
      sequences: (P,) DNA around the perturbed gene's start, None where the method needs none.
    """

    names: Sequence[str]
    genes: Sequence[str]
    targets: np.ndarray
    tf_embeddings: np.ndarray | None = None
    gene_embeddings: np.ndarray | None = None
    target_gene: np.ndarray | None = None
    sequences: Sequence[bytes] | None = None


@dataclasses.dataclass(frozen=True)
class Fold:
    """Row indices, int64, ascending. `valid` is the part of the training rows that selects; `train` is the rest of them."""

    index: int
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """Predictions of one fold: `test` float32 (len(fold.test), G); `train` of the rows of train and valid together, in ascending row order,
    or None; `info` goes to the report (epochs run, best epoch, ...)."""

    fold: Fold
    test: np.ndarray
    train: np.ndarray | None = None
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def training_rows(fold: Fold) -> np.ndarray:
    """int64: `train` and `valid` together, ascending; what a method that selects nothing is fitted on."""
    return np.union1d(fold.train, fold.valid)


class Method(Protocol):
    """Yields the folds as they are finished; several may be computed together.

    `faithful` reproduces the published script with its leaks; otherwise nothing of `fold.test` is looked at before it is predicted.
    """

    def __call__(self, data: PerturbationData, folds: Sequence[Fold], *, seed: int, faithful: bool) -> Iterator[FoldResult]: ...
