"""Boosted trees: the published wrapper's numbers, and what they must not see."""

import dataclasses
import sys

import numpy as np
import pytest
import screens
from sklearn.multioutput import MultiOutputRegressor

from jaxgen.baselines.impute import fill_missing
from jaxgen.baselines.method import training_rows
from jaxgen.baselines.xgboost import XGBoost
from jaxgen.errors import InputError

SMALL = XGBoost(n_estimators=5)


@pytest.fixture(scope="module")
def data():
    return screens.screen(n_genes=5, missing=True)


def test_is_the_multi_output_regressor_of_scikit_learn(data):
    xgboost = pytest.importorskip("xgboost")
    (fold, *_) = screens.folds()
    (ours,) = screens.run(SMALL, data, [fold])
    rows = training_rows(fold)
    mean, deviation = data.tf_embeddings[rows].mean(0), data.tf_embeddings[rows].std(0)
    x, y = (data.tf_embeddings - mean) / deviation, fill_missing(data.targets, rows)
    model = MultiOutputRegressor(xgboost.XGBRegressor(n_estimators=5))
    model.fit(x[rows], y[rows], sample_weight=np.isfinite(data.targets[rows]).any(1).astype(float))
    np.testing.assert_allclose(ours.test, model.predict(x[fold.test]), atol=1e-5)
    assert ours.train is None


def test_held_out_rows_are_seen_by_the_published_script_alone(data):
    pytest.importorskip("xgboost")
    fold = screens.folds()[0]
    for faithful in (False, True):
        (seen,), (other,) = (screens.run(SMALL, d, [fold], faithful=faithful) for d in (data, screens.without_rows(data, fold.test)))
        assert np.array_equal(seen.test, other.test) != faithful


def test_a_fold_without_any_target_gets_the_mean(data):
    pytest.importorskip("xgboost")
    fold = screens.folds()[0]
    targets = data.targets.copy()
    targets[training_rows(fold)] = np.nan
    (result,) = screens.run(SMALL, dataclasses.replace(data, targets=targets), [fold], faithful=True)
    np.testing.assert_allclose(result.test, np.tile(np.nan_to_num(np.nanmean(targets, 0)), (len(fold.test), 1)), atol=1e-6)


def test_without_the_package(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(InputError, match=r"jaxgen\[xgboost\]"):
        screens.run(SMALL, data, screens.folds())


def test_missing_targets_get_the_mean_of_the_rows_asked_for():
    targets = np.asarray([[1, np.nan, np.nan], [3, 5, np.nan], [np.nan, 7, np.nan]], np.float32)
    np.testing.assert_array_equal(fill_missing(targets), [[1, 6, 0], [3, 5, 0], [2, 7, 0]])
    np.testing.assert_array_equal(fill_missing(targets, np.asarray([0, 1])), [[1, 5, 0], [3, 5, 0], [2, 7, 0]])
