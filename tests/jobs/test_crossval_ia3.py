"""Fine-tuning per fold from DNA: what it learns from, what it must not see, and resuming with the next fold."""

import dataclasses

import numpy as np
import pytest

from configs import tf_perturbation
from jaxgen.baselines.method import Fold, PerturbationData
from jaxgen.errors import InputError
from jaxgen.jobs import crossval_ia3

N, GENES = 24, 6


def config(**options):
    c = tf_perturbation.get_config("nt_ia3")
    c.model.config.update({"d_model": 16, "n_layer": 1, "n_heads": 2, "d_inner": 24})
    c.perturbation.ia3.update({"epochs": 3, "batch_size": 4, "learning_rate": 1e-2} | options)
    return c


@pytest.fixture(scope="module")
def data():
    """Two kinds of sequences of two lengths (two buckets), one with N, with opposite changes."""
    rng = np.random.default_rng(0)
    kind = np.arange(N) % 2
    change = rng.normal(size=GENES)
    words = [[b"ACGTAC", b"GGATCC", b"TTGACA"], [b"CATGTG", b"AATTGG", b"CCCTGA"]]
    sequences = [b"".join(rng.choice(words[k], 10 if i % 3 else 40)) for i, k in enumerate(kind)]
    sequences[0] = b"acgtNN" + sequences[0]
    targets = (np.where(kind[:, None], change, -change) + 0.1 * rng.normal(size=(N, GENES))).astype(np.float32)
    targets[3, 2] = np.nan
    return PerturbationData([f"TF{i}" for i in range(N)], [f"G{i}" for i in range(GENES)], targets, sequences=sequences)


HELD_OUT = [np.arange(6 + i, N, 5) for i in (0, 1)]
FOLDS = [Fold(i, np.setdiff1d(np.arange(6, N), test), np.arange(6), test) for i, test in enumerate(HELD_OUT)]


def run(data, folds=FOLDS, faithful=False, **options):
    return list(crossval_ia3.make(config(**options))(data, folds, seed=1, faithful=faithful))


@pytest.fixture(scope="module")
def results(data):
    return run(data)


def test_folds_come_one_by_one(data, results):
    assert [result.fold.index for result in results] == [0, 1]
    for result in results:
        assert result.test.shape == (len(result.fold.test), GENES)
        assert result.test.dtype == np.float32
        assert np.isfinite(result.test).all()
        assert 1 <= result.info["best_epoch"] <= result.info["epochs"] == 3
    # A run that goes on with the second fold gives what it would have given.
    (alone,) = run(data, FOLDS[1:])
    np.testing.assert_array_equal(alone.test, results[1].test)


def test_learns_from_sequence(data):
    (result,) = run(data, FOLDS[:1], epochs=12)
    correlations = [np.corrcoef(y, p)[0, 1] for y, p in zip(data.targets[result.fold.test], result.test)]
    assert np.mean(correlations) > 0.5


def test_held_out_rows_are_not_seen(data, results):
    targets = data.targets.copy()
    targets[FOLDS[0].test] = np.random.default_rng(1).normal(size=(len(FOLDS[0].test), GENES))
    other = dataclasses.replace(data, targets=targets)
    (blind,) = run(other, FOLDS[:1])
    np.testing.assert_array_equal(blind.test, results[0].test)
    seen = [run(d, FOLDS[:1], faithful=True)[0].info["validation_pearson"] for d in (data, other)]
    assert seen[0] != seen[1]  # the published script judges on the test fold


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "hyenadna_smoke"}, "no classification head"),
        ({"learning_rate": 1e30}, "not finite"),
        ({"model": "nt_v2_smok"}, "did you mean"),
    ],
)
def test_wrong_options(data, options, said):
    c = config(**options)
    if "model" in options:
        c.model.config = {}
    with pytest.raises(InputError, match=said):
        list(crossval_ia3.make(c)(data, FOLDS[:1], seed=1, faithful=False))
