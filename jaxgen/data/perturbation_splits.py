"""Cross-validation folds over perturbations, in the pickle format of molocyxu/10701GenomicEmbeddings (`cv_splits_5fold_42.pkl`)."""

import os
import pickle
from typing import Any

import numpy as np

from jaxgen.errors import InputError

Split = tuple[np.ndarray, np.ndarray]  # int64 train and test indices, ascending
_PLAIN = (str, int, float, type(None), np.generic)


def kfold(n: int, n_splits: int = 5, seed: int = 42) -> list[Split]:
    """The folds of scikit-learn's `KFold(n_splits, shuffle=True, random_state=seed)` over n rows.

    Raises:
      InputError: fewer than 2 folds, or more folds than rows.
    """
    if not 2 <= n_splits <= n:
        raise InputError(f"perturbation.folds={n_splits} must be at least 2 and at most the number of perturbations, {n}")
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    splits = []
    for part in np.array_split(order, n_splits):  # the first n % n_splits parts are one longer
        test = np.zeros(n, bool)
        test[part] = True
        splits.append((np.flatnonzero(~test), np.flatnonzero(test)))
    return splits


def to_pickle(splits: list[Split], n: int, seed: int) -> bytes:
    """The pickle of some folds."""
    content = {"method": f"{len(splits)}fold", "n_splits": len(splits), "random_state": seed, "fold_splits": splits, "total_samples": n}
    return pickle.dumps(content)


def from_content(content: Any, n: int, n_splits: int, where: str | os.PathLike) -> list[Split]:
    """The folds of an unpickled (by `checkpoints.safe_pickle`) file.

    Args:
      content: what the pickle holds.
      n: perturbations that there are.
      n_splits: folds that are asked for.
      where: the file, for messages.

    Raises:
      InputError: another structure, objects other than plain values and arrays, folds over another number of perturbations, indices out
        of range, or test parts that do not hold every perturbation exactly once.
    """

    def wrong(what: str) -> InputError:
        return InputError(f"{where}: {what}; delete it to have new folds drawn, or name another file in perturbation.folds_file")

    if not isinstance(content, dict) or not isinstance(content.get("fold_splits"), list | tuple):
        raise wrong("has no 'fold_splits', a list of (train, test) indices")
    for key, value in content.items():
        if key != "fold_splits" and not isinstance(value, _PLAIN):
            raise wrong(f"{key!r} is a {getattr(value, 'name', type(value).__name__)}; folds are plain values and index arrays")
    for key, needed, unit in (("total_samples", n, "perturbations"), ("n_splits", n_splits, "folds")):
        if not isinstance(content.get(key), int | np.integer) or content[key] != needed:
            raise wrong(f"is for {str(content.get(key))[:20]} {unit}, not {needed}")
    if len(content["fold_splits"]) != n_splits:
        raise wrong(f"holds {len(content['fold_splits'])} folds, not {n_splits}")
    splits = []
    for i, pair in enumerate(content["fold_splits"]):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(_is_index(part, n) for part in pair):
            raise wrong(f"fold {i} is not a pair of index arrays within 0 ... {n - 1}")
        train, test = (np.unique(np.asarray(part, np.int64)) for part in pair)
        if not len(train) or not len(test) or len(np.intersect1d(train, test)):
            raise wrong(f"fold {i} has an empty part, or perturbations in both of its parts")
        splits.append((train, test))
    held_out = np.bincount(np.concatenate([test for _, test in splits]), minlength=n)
    if (held_out != 1).any():
        row = int(np.flatnonzero(held_out != 1)[0])
        raise wrong(f"perturbation {row} is held out {int(held_out[row])} times instead of once")
    return splits


def _is_index(part: Any, n: int) -> bool:
    """Whether this is an array or list of integers in 0 ... n - 1."""
    if isinstance(part, list):
        part = np.asarray(part) if all(type(index) is int for index in part) else None
    if not isinstance(part, np.ndarray):
        return False
    return part.ndim == 1 and part.dtype.kind in "iu" and (not part.size or bool(part.min() >= 0 and part.max() < n))
