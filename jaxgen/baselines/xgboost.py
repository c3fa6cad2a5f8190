"""Boosted trees from the embedding of the perturbed gene, one regressor per read-out gene.

Source: molocyxu/10701GenomicEmbeddings `scripts/Hs27_xgboost.py`: scikit-learn's MultiOutputRegressor around XGBRegressor with XGBoost's
defaults (100 trees of depth 6, histograms). Here the genes share the binned features, and a booster is dropped once it has predicted.
"""

import dataclasses
import functools
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import joblib
import numpy as np

from jaxgen.baselines.embedding_mlp import standardise
from jaxgen.baselines.impute import fill_missing
from jaxgen.baselines.method import Fold, FoldResult, PerturbationData, training_rows
from jaxgen.errors import InputError


@dataclasses.dataclass(frozen=True)
class XGBoost:
    """`Method`: one booster per gene on standardised embeddings; rows without any target weigh nothing.

    Nothing is selected, so the validation rows train too. By default scale and imputation come from the training rows; `faithful` takes
    them from all rows, as the published script does.

    Attributes:
      n_jobs: genes fitted at the same time; 0 = one per core.
      n_estimators: trees per gene.
    """

    n_jobs: int = 0
    n_estimators: int = 100

    def __call__(self, data: PerturbationData, folds: Sequence[Fold], *, seed: int, faithful: bool) -> Iterator[FoldResult]:
        del seed  # the defaults draw nothing
        assert data.tf_embeddings is not None
        xgboost = _import_xgboost()
        n_jobs = self.n_jobs or os.cpu_count() or 1
        for fold in folds:
            seen = training_rows(fold)
            known = slice(None) if faithful else seen
            inputs, targets = standardise(data.tf_embeddings, known), fill_missing(data.targets, known)
            weight = np.asarray(np.isfinite(data.targets[seen]).any(1), np.float32)
            if not weight.any():  # nothing to learn from; these rows hold what missing targets were filled with
                yield FoldResult(fold, np.tile(targets[seen[0]], (len(fold.test), 1)))
                continue
            # Threads: XGBoost works outside the interpreter lock. Several shares per thread even out the end.
            shares = np.array_split(np.arange(targets.shape[1]), min(targets.shape[1], 8 * n_jobs))
            fit_predict = functools.partial(self._fit_predict, xgboost, inputs[seen], targets[seen], weight, inputs[fold.test])
            predicted: Any = joblib.Parallel(n_jobs=n_jobs, backend="threading")(joblib.delayed(fit_predict)(share) for share in shares)
            yield FoldResult(fold, np.concatenate(predicted, 1), info={"trees": self.n_estimators})

    def _fit_predict(
        self, xgboost: Any, inputs: np.ndarray, targets: np.ndarray, weight: np.ndarray, test_inputs: np.ndarray, genes: np.ndarray
    ) -> np.ndarray:
        """(test rows, genes): the bins of the inputs are shared by all genes."""
        binned = xgboost.QuantileDMatrix(inputs, weight=weight, nthread=1)
        predictions = np.empty((len(test_inputs), len(genes)), np.float32)
        for i, gene in enumerate(genes):
            binned.set_label(targets[:, gene])
            booster = xgboost.train({"nthread": 1}, binned, num_boost_round=self.n_estimators)
            predictions[:, i] = booster.inplace_predict(test_inputs)
        return predictions


def _import_xgboost() -> Any:
    try:
        return importlib.import_module("xgboost")
    except ImportError:
        raise InputError("method xgboost needs the package xgboost: install jaxgen with its extra, pip install 'jaxgen[xgboost]'") from None
