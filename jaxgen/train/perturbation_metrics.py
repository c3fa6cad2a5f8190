"""Metrics of predicted expression changes, per perturbation over genes, from the out-of-fold predictions of all perturbations.

Source: molocyxu/10701GenomicEmbeddings (`scripts/LEL_embed.py` and its siblings). Entries that are not finite in targets or predictions
are left out. A correlation that is not defined, because one side does not vary, counts as 0.
"""

from typing import NamedTuple

import numpy as np

NAMES = ("centered_pearson", "centered_rmse", "centered_mae", "centered_mse", "rmse", "mae", "mse", "l2_loss")


def per_perturbation(targets: np.ndarray, predictions: np.ndarray, empty: float = np.nan) -> dict[str, np.ndarray]:
    """Each of `NAMES` for every row of (P, G): float64 (P,).

    `centered_*` compare rows less their own mean over genes; `l2_loss` is the Euclidean distance.

    Args:
      empty: the errors of a row without any finite pair; the published linear models take NaN, the other scripts infinity.
    """
    known, (y, p) = _finite_pairs(targets, predictions)
    n = known.sum(1)
    used = np.maximum(n, 1)
    errors, centred_errors = p - y, _centred(p, known) - _centred(y, known)
    squares = (errors**2).sum(1)
    values = {
        "centered_rmse": np.sqrt((centred_errors**2).sum(1) / used),
        "centered_mae": np.abs(centred_errors).sum(1) / used,
        "centered_mse": (centred_errors**2).sum(1) / used,
        "rmse": np.sqrt(squares / used),
        "mae": np.abs(errors).sum(1) / used,
        "mse": squares / used,
        "l2_loss": np.sqrt(squares),
    }
    values = {name: np.where(n > 0, x, empty) for name, x in values.items()}
    return {"centered_pearson": _correlation(y, p, known)} | values


def per_gene_pearson(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """float64 (G,): correlation over perturbations of each gene; 0 where the predictions do not vary, NaN where the targets do not."""
    known, (y, p) = _finite_pairs(targets.T, predictions.T)
    return np.where(_varies(y, known), _correlation(y, p, known), np.nan)


def top_k_overlap(targets: np.ndarray, predictions: np.ndarray, k: int) -> np.ndarray:
    """float64 (P,): share of the k genes of largest |target| that are among the k of largest |prediction|; NaN for rows without values.

    Rows with fewer than k values are judged on half of the values they have.
    """
    known = np.isfinite(targets) & np.isfinite(predictions)
    n = known.sum(1)
    taken = np.minimum(k, np.where(n < k, n // 2, k))
    order = np.arange(targets.shape[1])
    chosen = []
    for values in (targets, predictions):
        size = np.where(known, np.abs(values.astype(np.float64)), -1.0)
        rank = np.empty(size.shape, np.int64)
        np.put_along_axis(rank, np.argsort(-size, axis=1, kind="stable"), np.broadcast_to(order, size.shape), axis=1)
        chosen.append(rank < taken[:, None])
    return np.divide((chosen[0] & chosen[1]).sum(1), taken, out=np.full(len(targets), np.nan), where=taken > 0)


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, draws: int = 200, seed: int = 42) -> Interval:
    """Mean over perturbations of a metric (P,), NaN left out, with the 2.5 and 97.5 percentiles over resampled perturbations.

    The resamples are those of the published code: `draws` times P indices from `numpy.random.default_rng(seed)`.
    """
    if not np.isfinite(values).any():
        return Interval(np.nan, np.nan, np.nan)
    indices = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
    means = mean_of_finite(values[indices])
    low, high = np.nanpercentile(means, [2.5, 97.5]) if draws else (np.nan, np.nan)
    return Interval(float(mean_of_finite(values)), float(low), float(high))


def mean_of_finite(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    n = known.sum(-1)
    return np.divide(np.where(known, values, 0.0).sum(-1), n, out=np.full(np.shape(n), np.nan), where=n > 0)


def _finite_pairs(targets: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Where both are finite, and both in float64 with 0 elsewhere."""
    known = np.isfinite(targets) & np.isfinite(predictions)
    return known, (np.where(known, targets, 0.0).astype(np.float64), np.where(known, predictions, 0.0).astype(np.float64))


def _varies(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(rows,): whether the known values differ. Exact: centring leaves rounding noise that correlates with anything."""
    high = np.where(known, values, -np.inf).max(1, initial=-np.inf)
    return high > np.where(known, values, np.inf).min(1, initial=np.inf)


def _centred(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows less the mean of their known values; 0 where unknown."""
    return np.where(known, values - (values.sum(1) / np.maximum(known.sum(1), 1))[:, None], 0.0)


def _correlation(y: np.ndarray, p: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(rows,): Pearson correlation of the known values, 0 where one side does not vary."""
    defined = _varies(y, known) & _varies(p, known)
    y, p = _centred(y, known), _centred(p, known)
    y, p = (x / np.maximum(np.abs(x).max(1, initial=0.0), 1e-300)[:, None] for x in (y, p))  # tiny values must not underflow
    scale = np.sqrt((y**2).sum(1) * (p**2).sum(1))
    return np.clip(np.divide((y * p).sum(1), scale, out=np.zeros(len(y)), where=defined & (scale > 0)), -1.0, 1.0)
