import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from jaxgen.train import perturbation_metrics as metrics


def sample(seed: int = 0, shape: tuple[int, int] = (9, 30), missing: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.normal(0.3, 1, shape).astype(np.float32)
    predictions = (targets + rng.normal(0, 1, shape)).astype(np.float32)
    targets[rng.random(shape) < missing] = np.nan
    return targets, predictions


def one_by_one(targets: np.ndarray, predictions: np.ndarray) -> dict[str, np.ndarray]:
    """The definitions, a row at a time."""
    rows = []
    for y, p in zip(targets.astype(np.float64), predictions.astype(np.float64)):
        known = np.isfinite(y)
        y, p = y[known], p[known]
        a, b = y - y.mean(), p - p.mean()
        mse = np.mean((y - p) ** 2)
        row = [pearsonr(a, b)[0], np.sqrt(np.mean((a - b) ** 2)), np.abs(a - b).mean(), np.mean((a - b) ** 2)]
        rows.append([*row, np.sqrt(mse), np.abs(y - p).mean(), mse, np.linalg.norm(y - p)])
    return dict(zip(metrics.NAMES, np.array(rows).T, strict=True))


@given(st.integers(0, 1000))
def test_every_row_by_its_definition(seed):
    targets, predictions = sample(seed)
    found, expected = metrics.per_perturbation(targets, predictions), one_by_one(targets, predictions)
    assert list(found) == list(metrics.NAMES)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12, err_msg=name)


def test_genes_are_correlated_over_perturbations():
    targets, predictions = sample(missing=0)
    targets[:, 3], predictions[:, 4] = 2.0, 0.1
    targets[:7, 5] = np.nan
    found = metrics.per_gene_pearson(targets, predictions)
    assert np.isnan(found[3])
    assert found[4] == 0
    for gene in (0, 5, 20):
        known = np.isfinite(targets[:, gene])
        np.testing.assert_allclose(found[gene], pearsonr(targets[known, gene], predictions[known, gene])[0], rtol=1e-6)


def test_rows_that_define_nothing():
    targets, predictions = sample(missing=0)
    targets[0] = np.nan
    predictions[1] = np.float32(0.1)  # its mean rounds, so centring leaves noise
    targets[2, 1:] = np.nan
    found = metrics.per_perturbation(targets, predictions, empty=np.inf)
    np.testing.assert_array_equal(found["centered_pearson"][:3], 0)
    assert np.isinf(found["rmse"][0])
    assert np.isnan(metrics.per_perturbation(targets, predictions)["l2_loss"][0])
    assert np.isfinite(found["mse"][1:]).all()


def test_overlap_of_the_largest_changes():
    targets = np.array([[5, -4, 3, 0, 0, 1], [1, 2, 3, 4, 5, 6], [np.nan] * 6, [9, np.nan, np.nan, 8, np.nan, np.nan]])
    predictions = np.array([[-9, 8, 0, 1, 0, 0], [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [2, 9, 9, 1, 9, 9]])
    # The last row has two values: judged on the larger of them.
    np.testing.assert_array_equal(metrics.top_k_overlap(targets, predictions, 3), [2 / 3, 0, np.nan, 1])
    assert (metrics.top_k_overlap(targets[:2], targets[:2], 4) == 1).all()


@given(st.integers(0, 50), st.integers(2, 500))
def test_bootstrap_draws_as_the_published_loop(seed, n):
    values = np.random.default_rng(seed + 1).normal(size=n)
    rng, means = np.random.default_rng(seed), []
    for _ in range(20):
        means.append(values[rng.integers(0, n, size=n)].mean())
    found = metrics.bootstrap(values, 20, seed)
    np.testing.assert_allclose(found, [values.mean(), *np.percentile(means, [2.5, 97.5])], rtol=1e-10, atol=1e-14)
    assert found.low <= found.high


def test_bootstrap_leaves_out_what_is_missing():
    values = np.array([1.0, np.nan, 3.0])
    assert metrics.bootstrap(values).mean == pytest.approx(2)
    assert np.isnan(metrics.bootstrap(values * np.nan)).all()
