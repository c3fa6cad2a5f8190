"""The probe's classifiers against the published protocol written down plainly."""

import dataclasses
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from jaxgen.baselines.variant_svm import BUCKETS, Features, Protocol, bucket_rows, draw, hold_out, probe_bucket, zero_shot_auroc
from jaxgen.errors import InputError

PROTOCOL = Protocol(strengths=(1.0, 5.0), seeds=(1, 2), rows=60, n_jobs=1)


def make(n: int, seed: int, chromosomes=(1, 2, 3, 4, 5)) -> Features:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    forward, reverse = (rng.normal(size=(n, 8)).astype(np.float32) + 0.6 * labels[:, None].astype(np.float32) for _ in range(2))
    distances = rng.choice([0, 10, 30_000, 50_000, 100_000, 500_000], n)
    chromosome = np.asarray(chromosomes)[rng.integers(0, len(chromosomes), n)]
    return Features(forward, reverse, labels, chromosome, rng.integers(0, 3, n), distances, np.ones(n, bool))


TRAIN, TEST = make(400, 0), make(300, 1, (9, 10))


def published(bucket: int, c: float, seed: int, streams: str, n: int) -> tuple[float, float]:
    """The steps of the specification, one after the other: (hard, decision) AUROC."""
    low, high = BUCKETS[bucket]
    parts = []
    for split, average in ((TRAIN, streams == "average"), (TEST, streams in ("average", "average_test"))):
        chosen = (split.distances >= low) & (split.distances <= high)
        x = (split.forward + split.reverse) / 2 if average else split.forward
        parts.append((np.concatenate([x, split.tissues[:, None].astype(np.float32)], 1)[chosen], split.labels[chosen]))
    (x, y), (x_test, y_test) = parts
    np.random.seed(seed)
    at = np.random.choice(len(x), size=n, replace=len(x) < n)
    scaler = StandardScaler().fit(x[at])
    model = SVC(C=c, kernel="rbf", gamma="scale", random_state=seed).fit(scaler.transform(x[at]), y[at])
    scaled = scaler.transform(x_test)
    return roc_auc_score(y_test, model.predict(scaled)), roc_auc_score(y_test, model.decision_function(scaled))


@pytest.mark.parametrize("streams", ["forward", "average", "average_test"])
@pytest.mark.parametrize("n", [60, 500])
def test_faithful_is_the_published_protocol(streams, n):
    protocol = dataclasses.replace(PROTOCOL, streams=streams, rows=n, faithful=True)
    for number in range(3):
        bucket = probe_bucket(TRAIN, TEST, number, protocol)
        expected = {(c, seed): published(number, c, seed, streams, n) for c in (1.0, 5.0) for seed in (1, 2)}
        assert {(fit.c, fit.seed): (fit.hard, fit.decision) for fit in bucket.fits} == expected
        best = max((1.0, 5.0), key=lambda c: np.mean([expected[c, seed][0] for seed in (1, 2)]))
        assert {fit.c for fit in bucket.fits if fit.selected} == {best}


def test_the_default_scores_test_once_with_the_c_of_validation():
    bucket = probe_bucket(TRAIN, TEST, 1, PROTOCOL)
    rows, test_rows = bucket_rows(TRAIN, 1, False), bucket_rows(TEST, 1, False)
    held_out, notes = hold_out(TRAIN, rows, 0.2, 0)
    assert notes == []
    assert set(TRAIN.chromosomes[rows[held_out]]) & set(TRAIN.chromosomes[rows[~held_out]]) == set()
    assert 0.2 <= held_out.mean() < 0.6
    chosen = [fit for fit in bucket.fits if fit.selected]
    assert len({fit.c for fit in chosen}) == 1
    assert all(math.isnan(fit.decision) and not math.isnan(fit.validation) for fit in bucket.fits if not fit.selected)
    means = {c: np.mean([fit.validation for fit in bucket.fits if fit.c == c]) for c in (1.0, 5.0)}
    assert chosen[0].c == max(means, key=lambda c: means[c])
    # The classifier that is scored has seen all of train.
    at = draw(rows, 60, 1)
    x = np.column_stack([TRAIN.forward, TRAIN.tissues]).astype(np.float32)
    scaler = StandardScaler().fit(x[at])
    model = SVC(C=chosen[0].c).fit(scaler.transform(x[at]), TRAIN.labels[at])
    z = np.column_stack([TEST.forward, TEST.tissues]).astype(np.float32)[test_rows]
    assert chosen[0].decision == roc_auc_score(TEST.labels[test_rows], model.decision_function(scaler.transform(z)))
    assert chosen[0].decision > 0.7
    # Labels of test change scores, and nothing that was chosen.
    turned = dataclasses.replace(TEST, labels=1 - TEST.labels)
    again = probe_bucket(TRAIN, turned, 1, PROTOCOL)
    assert [(f.c, f.validation, f.selected) for f in again.fits] == [(f.c, f.validation, f.selected) for f in bucket.fits]


def test_buckets_hold_their_ends_once_or_twice():
    counts = [(TRAIN.distances == x).sum() for x in (0, 10, 30_000, 50_000, 100_000, 500_000)]
    assert [len(bucket_rows(TRAIN, i, False)) for i in range(3)] == [sum(counts[a:b]) for a, b in ((0, 2), (2, 4), (4, 6))]
    assert [len(bucket_rows(TRAIN, i, True)) for i in range(3)] == [sum(counts[a:b]) for a, b in ((0, 3), (2, 5), (4, 6))]


def test_rows_that_are_not_finite_do_not_count():
    usable = np.ones(400, bool)
    usable[::3] = False
    forward = np.where(usable[:, None], TRAIN.forward, np.nan)
    for faithful in (False, True):
        protocol = dataclasses.replace(PROTOCOL, faithful=faithful)
        bucket = probe_bucket(dataclasses.replace(TRAIN, forward=forward, usable=usable), TEST, 0, protocol)
        assert usable[bucket.train_rows].all()
        assert all(np.isfinite(fit.decision) for fit in bucket.fits if fit.selected)


@pytest.mark.parametrize("faithful", [False, True])
def test_a_bucket_of_one_class_is_left_out(faithful):
    protocol = dataclasses.replace(PROTOCOL, faithful=faithful)
    bucket = probe_bucket(TRAIN, dataclasses.replace(TEST, labels=np.zeros(300, int)), 2, protocol)
    assert (bucket.fits, bucket.notes) == ((), ("bucket 2 is left out: one class only in test",))
    far = probe_bucket(dataclasses.replace(TRAIN, distances=np.zeros(400, int)), TEST, 2, protocol)
    assert far.notes == ("bucket 2 is left out: no rows in train",)


def test_one_chromosome_is_split_at_random():
    alone = dataclasses.replace(TRAIN, chromosomes=np.ones(400, int))
    rows = bucket_rows(alone, 0, False)
    held_out, notes = hold_out(alone, rows, 0.2, 0)
    assert held_out.mean() == pytest.approx(0.2, abs=0.02)
    assert "at random" in notes[0]
    assert "bucket 0: C is chosen on rows held out at random" in probe_bucket(alone, TEST, 0, PROTOCOL).notes[0]


def test_threads_change_nothing():
    assert probe_bucket(TRAIN, TEST, 0, dataclasses.replace(PROTOCOL, n_jobs=3)).fits == probe_bucket(TRAIN, TEST, 0, PROTOCOL).fits


def test_zero_shot_scores():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.1, 0, 1, 1], [np.nan, 1, 1, 1], [-3, 2, 1, 1], [-2, 3, 1, 1]], np.float32)
    assert zero_shot_auroc(scores, labels) == {"abs_llr": 1.0, "neg_llr": 1.0, "l2": 1.0, "l1": 0.5, "cosine": 0.5}
    assert math.isnan(zero_shot_auroc(np.full((4, 4), np.nan), labels)["abs_llr"])


def test_a_wrong_protocol_is_refused():
    with pytest.raises(InputError, match=r"probe\.streams=.both."):
        dataclasses.replace(PROTOCOL, streams="both")
