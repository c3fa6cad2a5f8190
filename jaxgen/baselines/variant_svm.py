"""Whether a variant changes expression, by a support-vector machine on frozen embeddings of both alleles.

Source of the protocol: kuleshov-group/caduceus `vep_svm.ipynb`: by distance to the nearest transcription start site (TSS), 5000 training
rows per seed, StandardScaler and an RBF kernel, for several C.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import joblib
import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from jaxgen.errors import InputError, nearest

# Bases to the nearest TSS: from, to.
BUCKETS = ((0.0, 30_000.0), (30_000.0, 100_000.0), (100_000.0, math.inf))
# What the classifier reads: forward embeddings, the mean of both strands, or that mean in test alone (as published for Caduceus-Ph).
STREAMS = ("forward", "average", "average_test")
_SCORED = 4096  # rows classified at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A split; the embeddings may be memory-mapped, and are indexed by row.

    Attributes:
      forward, reverse: float32 (n, 2 d), reference and alternative embedding on either strand.
      labels, chromosomes, tissues, distances: integers (n,).
      usable: bool (n,), false where an embedding is not finite.
    """

    forward: np.ndarray
    reverse: np.ndarray
    labels: np.ndarray
    chromosomes: np.ndarray
    tissues: np.ndarray
    distances: np.ndarray
    usable: np.ndarray


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the classifier is trained and scored.

    Attributes:
      streams: one of `STREAMS`.
      use_tissue: whether the number of the tissue is one more column.
      strengths: values of C.
      seeds: of the training rows.
      rows: training rows per seed, with replacement where a bucket has fewer.
      validation: share of train that chooses C (not `faithful`).
      split_seed: of that share.
      faithful: C is chosen on test and the score is the AUROC of hard predictions, as published; buckets hold both their ends.
      n_jobs: classifiers fitted at the same time; 0 = one per core.

    Raises:
      InputError: an unknown choice of streams.
    """

    streams: str = "forward"
    use_tissue: bool = True
    strengths: Sequence[float] = (1.0, 5.0, 10.0)
    seeds: Sequence[int] = (1, 2, 3, 4, 5)
    rows: int = 5000
    validation: float = 0.2
    split_seed: int = 0
    faithful: bool = False
    n_jobs: int = 0

    def __post_init__(self) -> None:
        if self.streams not in STREAMS:
            raise InputError(f"probe.streams={self.streams!r}{nearest(self.streams, ['auto', *STREAMS])}")


@dataclasses.dataclass(frozen=True)
class Fit:
    """One classifier: AUROC on test by decision values and by hard predictions, on validation by decision values; NaN = not computed."""

    c: float
    seed: int
    decision: float
    hard: float
    validation: float
    selected: bool


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What came out for the variants of one range of distances; `fits` is empty where there is nothing to fit, as the notes say."""

    number: int
    train_rows: np.ndarray
    test_rows: np.ndarray
    fits: tuple[Fit, ...]
    notes: tuple[str, ...]


def probe_bucket(train: Features, test: Features, number: int, protocol: Protocol) -> Bucket:
    """Trains and scores on bucket `number` of `BUCKETS`.

    By default C is chosen by validation on chromosomes held out of train, so that a locus is never on both sides, and test is scored with
    that C alone, retrained on all of train.
    """
    rows, test_rows = (bucket_rows(split, number, protocol.faithful) for split in (train, test))
    for name, split, chosen in (("train", train, rows), ("test", test, test_rows)):
        if len(np.unique(split.labels[chosen])) < 2:
            missing = "no rows" if not len(chosen) else "one class only"
            return Bucket(number, rows, test_rows, (), (f"bucket {number} is left out: {missing} in {name}",))
    pairs = [(float(c), int(seed)) for c in protocol.strengths for seed in protocol.seeds]
    if protocol.faithful:
        scored = _fit_all(train, rows, test, test_rows, pairs, protocol)
        best = _best({pair: hard for pair, (_, hard) in scored.items()}, protocol)
        fits = [Fit(c, seed, *scored[c, seed], math.nan, c == best) for c, seed in pairs]
        return Bucket(number, rows, test_rows, tuple(fits), ())
    held_out, notes = hold_out(train, rows, protocol.validation, protocol.split_seed)
    valid = _fit_all(train, rows[~held_out], train, rows[held_out], pairs, protocol)
    best = _best({pair: decision for pair, (decision, _) in valid.items()}, protocol)
    scored = _fit_all(train, rows, test, test_rows, [pair for pair in pairs if pair[0] == best], protocol)
    fits = [Fit(c, seed, *scored.get((c, seed), (math.nan, math.nan)), valid[c, seed][0], c == best) for c, seed in pairs]
    return Bucket(number, rows, test_rows, tuple(fits), tuple(f"bucket {number}: {note}" for note in notes))


def bucket_rows(split: Features, number: int, inclusive: bool) -> np.ndarray:
    """int64, ascending: usable rows of a bucket; an upper end belongs to it if `inclusive`, and then to the next bucket too."""
    low, high = BUCKETS[number]
    below = split.distances <= high if inclusive else split.distances < high
    return np.flatnonzero(split.usable & (split.distances >= low) & below)


def draw(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n of the rows, with replacement if there are fewer: what `np.random.choice` gives after `np.random.seed(seed)`."""
    return rows[np.random.RandomState(seed).choice(len(rows), n, replace=len(rows) < n)]


def hold_out(split: Features, rows: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, list[str]]:
    """(bool (len(rows),), true for validation; notes): whole chromosomes in random order, until they are the share of the rows.

    Rows at random where that leaves a side without one of the classes, which is noted.
    """
    rng, labels, chromosomes = np.random.default_rng(seed), split.labels[rows], split.chromosomes[rows]
    # The order is that of the whole split, so that all buckets hold out the same chromosomes first.
    chosen = np.zeros(len(rows), bool)
    for chromosome in rng.permutation(np.unique(split.chromosomes)):
        if chosen.mean() >= share:
            break
        chosen |= chromosomes == chromosome
    if min(len(np.unique(labels[side])) for side in (chosen, ~chosen)) == 2:
        return chosen, []
    for label in np.unique(labels):  # as many of every class as its share
        mine = rng.permutation(np.flatnonzero(labels == label))
        chosen[mine] = np.arange(len(mine)) < max(1, round(share * len(mine)))
    note = "C is chosen on rows held out at random: whole chromosomes leave a side without one of the classes"
    return chosen, [note]


def make_classifier(c: float, seed: int) -> Pipeline:
    """Standardised inputs and an RBF kernel of scikit-learn's default width."""
    return make_pipeline(StandardScaler(), SVC(C=c, kernel="rbf", gamma="scale", random_state=seed))


def inputs(split: Features, rows: np.ndarray, average: bool, use_tissue: bool) -> np.ndarray:
    """float32 (len(rows), 2 d), or one column more for the tissue."""
    x = np.asarray(split.forward[rows])
    if average:
        x = (x + split.reverse[rows]) / np.float32(2)
    return np.column_stack([x, split.tissues[rows].astype(np.float32)]) if use_tissue else x


def _fit_all(
    train: Features, rows: np.ndarray, test: Features, test_rows: np.ndarray, pairs: list[tuple[float, int]], protocol: Protocol
) -> dict[tuple[float, int], tuple[float, float]]:
    """(C, seed) -> AUROC on the test rows by decision values, and by hard predictions."""

    def fit(c: float, seed: int) -> tuple[float, float]:
        chosen = draw(rows, protocol.rows, seed)
        if len(np.unique(train.labels[chosen])) < 2:  # few rows, drawn with replacement
            return math.nan, math.nan
        model = make_classifier(c, seed)
        model.fit(inputs(train, chosen, protocol.streams == "average", protocol.use_tissue), train.labels[chosen])
        decision = np.concatenate(
            [
                model.decision_function(inputs(test, part, protocol.streams != "forward", protocol.use_tissue))
                for part in np.split(test_rows, range(_SCORED, len(test_rows), _SCORED))
            ]
        )
        labels = test.labels[test_rows]
        return float(roc_auc_score(labels, decision)), float(roc_auc_score(labels, decision >= 0))  # as SVC.predict decides

    # Threads: libsvm works outside the interpreter lock, and the memory map is shared.
    jobs = protocol.n_jobs or os.cpu_count() or 1
    scores: Any = joblib.Parallel(n_jobs=jobs, backend="threading")(joblib.delayed(fit)(*pair) for pair in pairs)
    return dict(zip(pairs, scores))


def _best(scores: dict[tuple[float, int], float], protocol: Protocol) -> float:
    """The C of the largest mean over seeds, of equals the first; NaNs count as chance."""
    means = [np.mean([0.5 if math.isnan(x := scores[float(c), int(seed)]) else x for seed in protocol.seeds]) for c in protocol.strengths]
    return float(protocol.strengths[int(np.argmax(means))])


def zero_shot_auroc(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """AUROC of scores that nothing was trained for, larger meaning an effect; of finite values only, NaN if a class is missing.

    Args:
      scores: (n, 4): log-likelihood ratio, L2, L1 and cosine distance.
      labels: (n,).

    Returns:
      `abs_llr`, the ratio either way; `neg_llr`, an alternative that is less likely; `l2`, `l1`, `cosine`.
    """
    ratio, *apart = scores.T
    columns = {"abs_llr": np.abs(ratio), "neg_llr": -ratio, **dict(zip(("l2", "l1", "cosine"), apart))}

    def auroc(values: np.ndarray) -> float:
        finite = np.isfinite(values)
        both = len(np.unique(labels[finite])) == 2
        return float(roc_auc_score(labels[finite], values[finite])) if both else math.nan

    return {name: auroc(values) for name, values in columns.items()}
