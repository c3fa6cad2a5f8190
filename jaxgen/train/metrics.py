"""Metrics of a whole split, from the gathered predictions of all its examples.

Never averaged over batches or hosts: the test files of GenomicBenchmarks are sorted by class, so most batches hold a single
class and the mean of their MCCs says nothing (`batch_averaged` computes it, for comparison with published tables only).

Classification takes logits (N, C) and labels (N,); regression takes predictions and targets (N,) or (N, K). The policy for
values that are not defined:

- a NaN among the predictions makes every metric NaN (a diverged run must not look like a bad one);
- precision, recall, F1 and specificity are 0 where nothing was there to count, as in scikit-learn with `zero_division=0`;
- `auroc`, `auprc` and the correlations are NaN when the targets do not vary;
- predictions that do not vary score a correlation of 0, as they score an MCC of 0; outputs whose targets do not vary are
  left out of the mean over outputs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxgen.errors import InputError, nearest

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class _Metric:
    function: Callable[..., float]
    kind: str  # what `function` takes: "confusion" matrix, "logits" and labels, or "values" (regression)
    larger_is_better: bool = True
    binary: bool = False


def _ratio(numerator: Any, denominator: Any) -> Any:
    """numerator / denominator, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=np.asarray(denominator) != 0)


# Classification, from the confusion matrix: rows are labels, columns are predictions.


def confusion_matrix(predicted: Array, labels: Array, classes: int) -> Array:
    """Counts (label, predicted), `classes` x `classes`."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _accuracy(counts: Array) -> float:
    return np.trace(counts) / counts.sum()


def _mcc_sklearn(counts: Array) -> float:
    """Matthews correlation of any number of classes; 0 when labels or predictions are constant."""
    counts = counts.astype(np.float64)
    total, label_counts, predicted_counts = counts.sum(), counts.sum(1), counts.sum(0)
    covariance = np.trace(counts) * total - label_counts @ predicted_counts
    spread = (total**2 - label_counts @ label_counts) * (total**2 - predicted_counts @ predicted_counts)
    return covariance / np.sqrt(spread) if spread > 0 else 0.0


def _mcc(counts: Array) -> float:
    """The same, but 1 (-1) when labels and predictions are each one class and that class is the same (is not)."""
    label_classes, predicted_classes = np.flatnonzero(counts.sum(1)), np.flatnonzero(counts.sum(0))
    if len(label_classes) == len(predicted_classes) == 1:
        return 1.0 if label_classes[0] == predicted_classes[0] else -1.0
    return _mcc_sklearn(counts)


def _precision(counts: Array) -> Array:
    return _ratio(np.diag(counts), counts.sum(0))


def _recall(counts: Array) -> Array:
    return _ratio(np.diag(counts), counts.sum(1))


def _f1(counts: Array) -> Array:
    return _ratio(2 * np.diag(counts), counts.sum(0) + counts.sum(1))


def _macro(per_class: Callable[[Array], Array], counts: Array) -> float:
    """Mean over the classes that occur among labels or predictions."""
    return per_class(counts)[(counts.sum(0) + counts.sum(1)) > 0].mean()


def _positive(per_class: Callable[[Array], Array], counts: Array) -> float:
    return per_class(counts)[1]


def _specificity(counts: Array) -> float:
    """TN / (TN + FP) with class 0 as the negative; with more classes only 0 against 1, as the published code counts it."""
    return float(_ratio(counts[0, 0], counts[0, 0] + counts[0, 1]))


# Classification, from logits.


def log_softmax(logits: Array) -> Array:
    """Log probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _cross_entropy(logits: Array, labels: Array) -> float:
    """Mean negative log likelihood in nats."""
    return -np.take_along_axis(log_softmax(logits), labels[:, None], axis=1).mean()


def class_scores(logits: Array) -> Array:
    """Scores (N, C) to rank examples by: probabilities, or for two classes the difference of the logits, which does not saturate."""
    if logits.shape[1] == 2:
        margin = logits[:, 1].astype(np.float64) - logits[:, 0]
        return np.stack([-margin, margin], axis=1)
    return np.exp(log_softmax(logits))


def _one_against_rest(score: Callable[[Array, Array], float], logits: Array, labels: Array) -> float:
    """Class 1 for two classes, else the mean over the classes that some examples have and some have not."""
    scores = class_scores(logits)
    if not np.isfinite(scores).all():
        return np.nan
    classes = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    defined = [c for c in classes if 0 < (labels == c).sum() < len(labels)]
    return float(np.mean([score(labels == c, scores[:, c]) for c in defined])) if defined else np.nan


def _auroc(logits: Array, labels: Array) -> float:
    from sklearn.metrics import roc_auc_score

    return _one_against_rest(roc_auc_score, logits, labels)


def _auprc(logits: Array, labels: Array) -> float:
    from sklearn.metrics import average_precision_score

    return _one_against_rest(average_precision_score, logits, labels)


# Regression: (N, K) against (N, K), one value per output, then the mean over outputs.


def _over_varying(per_output: Callable[[Array, Array], Array], predictions: Array, targets: Array) -> float:
    """Mean of `per_output` over the outputs whose targets vary; NaN when none does."""
    vary = (targets != targets[:1]).any(0)
    return float(per_output(predictions[:, vary], targets[:, vary]).mean()) if vary.any() else np.nan


def _correlation(predictions: Array, targets: Array) -> Array:
    # Centred before squaring, in float64: raw moments cancel when the mean is far from 0.
    constant = (predictions == predictions[:1]).all(0)
    p, t = (x - x.mean(0) for x in (predictions, targets))
    p, t = (x - x.mean(0) for x in (p, t))  # the first mean is rounded, which shows when values differ in their last digits only
    p, t = p / np.where(constant, 1.0, np.abs(p).max(0)), t / np.abs(t).max(0)  # so that tiny values do not underflow
    r = (p * t).sum(0) / np.sqrt(np.where(constant, 1.0, (p * p).sum(0)) * (t * t).sum(0))
    return np.where(constant, 0.0, np.clip(r, -1.0, 1.0))


def _rank_correlation(predictions: Array, targets: Array) -> Array:
    from scipy.stats import rankdata

    return _correlation(rankdata(predictions, axis=0), rankdata(targets, axis=0))


def _explained(predictions: Array, targets: Array) -> Array:
    return 1.0 - ((targets - predictions) ** 2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)


def _rmse(predictions: Array, targets: Array) -> float:
    return float(np.sqrt(((predictions - targets) ** 2).mean(0)).mean())


def _mae(predictions: Array, targets: Array) -> float:
    return float(np.abs(predictions - targets).mean())


_METRICS: dict[str, _Metric] = {
    "accuracy": _Metric(_accuracy, "confusion"),
    "mcc": _Metric(_mcc, "confusion"),
    "f1_macro": _Metric(functools.partial(_macro, _f1), "confusion"),
    "f1_binary": _Metric(functools.partial(_positive, _f1), "confusion", binary=True),
    "precision_macro": _Metric(functools.partial(_macro, _precision), "confusion"),
    "precision_binary": _Metric(functools.partial(_positive, _precision), "confusion", binary=True),
    "recall_macro": _Metric(functools.partial(_macro, _recall), "confusion"),
    "recall_binary": _Metric(functools.partial(_positive, _recall), "confusion", binary=True),
    "specificity": _Metric(_specificity, "confusion"),
    "cross_entropy": _Metric(_cross_entropy, "logits", larger_is_better=False),
    "auroc": _Metric(_auroc, "logits"),
    "auprc": _Metric(_auprc, "logits"),
    "pearson": _Metric(functools.partial(_over_varying, _correlation), "values"),
    "spearman": _Metric(functools.partial(_over_varying, _rank_correlation), "values"),
    "r2": _Metric(functools.partial(_over_varying, _explained), "values"),
    "rmse": _Metric(_rmse, "values", larger_is_better=False),
    "mae": _Metric(_mae, "values", larger_is_better=False),
}
NAMES = tuple(_METRICS)
_STREAMED = {"loss": False, "perplexity": False, "bits_per_token": False}  # computed from exact sums, but open to selection


def larger_is_better(name: str) -> bool:
    """Which way `name` improves: any metric of this module, `loss`, `perplexity` or `bits_per_token`.

    Raises:
      InputError: no metric has that name.
    """
    return _STREAMED[name] if name in _STREAMED else _metric(name, (*_METRICS, *_STREAMED)).larger_is_better


def _metric(name: str, choices: Iterable[str] = NAMES) -> _Metric:
    if name not in _METRICS:
        raise InputError(f"{name!r} is not a metric{nearest(name, choices)}")
    return _METRICS[name]


def evaluate(names: Iterable[str], predictions: Array, targets: Array, weight: Array | None = None) -> dict[str, float]:
    """Each metric of a whole split.

    Args:
      names: metrics, from `NAMES`; those of one kind (classification or regression).
      predictions: logits (N, C), or values (N,) or (N, K).
      targets: labels (N,) or (N, 1), or values shaped like `predictions`.
      weight: (N,); rows of weight 0 (padding) are dropped, all others count once.

    Raises:
      InputError: an unknown metric, shapes that do not belong together, a label outside the classes, or a metric for two
        classes on more.
    """
    metrics = {name: _metric(name) for name in names}
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if weight is not None:
        keep = np.asarray(weight).reshape(-1) != 0
        predictions, targets = predictions[keep], targets[keep]
    views: dict[str, tuple[Array, ...]] = {
        kind: (_values if kind == "values" else _logits)(predictions, targets) for kind in {metric.kind for metric in metrics.values()}
    }
    for name, metric in metrics.items():
        if metric.binary and predictions.shape[1] != 2:
            raise InputError(f"{name} is for 2 classes, not {predictions.shape[1]}; use {name.replace('binary', 'macro')}")
    if len(predictions) == 0 or np.isnan(predictions).any():
        return dict.fromkeys(metrics, float("nan"))
    if "confusion" in views:
        logits, labels = views["confusion"]
        views["confusion"] = (confusion_matrix(logits.argmax(1), labels, logits.shape[1]),)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # infinite predictions: the result says so
        return {name: float(metric.function(*views[metric.kind])) for name, metric in metrics.items()}


def _logits(predictions: Array, targets: Array) -> tuple[Array, Array]:
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if predictions.ndim != 2 or predictions.shape[1] < 2 or targets.shape != predictions.shape[:1]:
        raise InputError(f"classification needs logits (N, C) and labels (N,), not {predictions.shape} and {targets.shape}")
    labels = targets.astype(np.int64)
    if ((labels < 0) | (labels >= predictions.shape[1])).any():
        raise InputError(f"labels run from {labels.min()} to {labels.max()}, but the model has {predictions.shape[1]} classes")
    return predictions.astype(np.float64), labels


def _values(predictions: Array, targets: Array) -> tuple[Array, Array]:
    predictions, targets = (x[:, None] if x.ndim == 1 else x for x in (predictions, targets))
    if predictions.ndim != 2 or predictions.shape != targets.shape:
        raise InputError(f"regression needs predictions and targets of one shape (N, K), not {predictions.shape} and {targets.shape}")
    return predictions.astype(np.float64), targets.astype(np.float64)


# The definitions of the original training code, kept for comparison with its tables.


def per_batch(name: str, predictions: Array, targets: Array, batch_size: int) -> Array:
    """`mcc` or `f1` (binary, macro for more than 2 classes) of each consecutive batch, as scikit-learn defines them.

    Raises:
      InputError: any other name.
    """
    functions = {"mcc": _mcc_sklearn, "f1": functools.partial(_positive if predictions.shape[1] == 2 else _macro, _f1)}
    if name not in functions:
        raise InputError(f"{name!r} has no definition per batch{nearest(name, functions)}")
    logits, labels = _logits(predictions, targets)
    predicted = logits.argmax(1)
    batches = [slice(start, start + batch_size) for start in range(0, len(labels), batch_size)]
    return np.array([functions[name](confusion_matrix(predicted[b], labels[b], logits.shape[1])) for b in batches])


def batch_averaged(name: str, predictions: Array, targets: Array, batch_size: int) -> float:
    """Mean of `per_batch` weighted by batch size: what the original code logs. Wrong for anything but accuracy; see the module."""
    values = per_batch(name, predictions, targets, batch_size)
    sizes = np.minimum(batch_size, len(targets) - batch_size * np.arange(len(values)))
    return float(values @ sizes / sizes.sum())
