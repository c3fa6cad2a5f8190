"""The prediction that every method has to beat: the mean change of each gene over the training perturbations."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxgen.baselines.impute import fill_missing
from jaxgen.baselines.method import Fold, FoldResult, PerturbationData, training_rows


@dataclasses.dataclass(frozen=True)
class MeanResponse:
    """`Method`: knows nothing of the perturbation that it predicts. A gene without any training value is predicted as 0."""

    def __call__(self, data: PerturbationData, folds: Sequence[Fold], *, seed: int, faithful: bool) -> Iterator[FoldResult]:
        for fold in folds:
            rows = training_rows(fold)
            targets = fill_missing(data.targets, slice(None) if faithful else rows)
            mean = targets[rows].mean(0, dtype=np.float64).astype(np.float32)
            test, train = (np.broadcast_to(mean, (n, len(mean))) for n in (len(fold.test), len(rows)))
            yield FoldResult(fold, test, train)
