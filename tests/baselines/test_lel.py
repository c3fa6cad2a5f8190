import numpy as np
import pytest
from sklearn.decomposition import PCA

from jaxgen.baselines import lel
from jaxgen.baselines.mean_response import MeanResponse
from jaxgen.baselines.method import Fold, PerturbationData, training_rows
from jaxgen.errors import InputError

P, G, K = 24, 30, 6


def fold(i: int) -> Fold:
    """Six rows held out, the next three for validation."""
    order = np.roll(np.arange(P), -6 * i)
    return Fold(i, np.sort(order[9:]), np.sort(order[6:9]), np.sort(order[:6]))


FOLDS = [fold(i) for i in range(3)]


def data(seed: int = 0, missing: float = 0.0, read_out: float = 0.8) -> PerturbationData:
    """Changes that are bilinear in the embeddings, with a little noise."""
    rng = np.random.default_rng(seed)
    tf, gene = rng.normal(size=(P, K)).astype(np.float32), rng.normal(size=(G, K)).astype(np.float32)
    targets = (tf @ rng.normal(size=(K, K)) @ gene.T + rng.normal(size=G) + rng.normal(0, 0.1, (P, G))).astype(np.float32)
    targets[rng.random((P, G)) < missing] = np.nan
    target_gene = np.where(rng.random(P) < read_out, rng.permutation(G)[:P], -1)
    return PerturbationData([f"p{i}" for i in range(P)], [f"g{i}" for i in range(G)], targets, tf, gene, target_gene)


def run(method, data, faithful=False, folds=FOLDS):
    return list(method(data, folds, seed=1, faithful=faithful))


def plain(y, genes, perturbations, ridge):
    """The two regressions of the paper, by explicit inverses: W and the gene means."""
    mean = y.mean(0)
    a = np.linalg.inv(genes.T @ genes + ridge * np.eye(genes.shape[1])) @ genes.T @ (y - mean).T
    return a @ perturbations @ np.linalg.inv(perturbations.T @ perturbations + ridge * np.eye(perturbations.shape[1])), mean


@pytest.mark.parametrize("faithful", [True, False])
def test_given_embeddings(faithful):
    d = data()
    for result in run(lel.NTLinear(0.3), d, faithful):
        rows = training_rows(result.fold)
        genes, tfs = d.gene_embeddings.astype(np.float64), d.tf_embeddings.astype(np.float64)
        w, mean = plain(d.targets[rows].astype(np.float64), genes, tfs[rows], 0.3)
        assert result.test.dtype == result.train.dtype == np.float32
        np.testing.assert_allclose(result.test, tfs[result.fold.test] @ w.T @ genes.T + mean, atol=2e-4 if faithful else 1e-5)
        np.testing.assert_allclose(result.train, tfs[rows] @ w.T @ genes.T + mean, atol=2e-4 if faithful else 1e-5)
        assert (
            np.abs(result.test - d.targets[result.fold.test]).mean() < np.abs(mean - d.targets[result.fold.test]).mean() / 2
        )  # the data are bilinear


def test_principal_components():
    d = data()
    for result in run(lel.PCALinear(0.3, 4), d):
        rows = training_rows(result.fold)
        y = d.targets[rows].astype(np.float64)
        genes = PCA(4, svd_solver="full").fit_transform((y - y.mean(0)).T)
        mapped = d.target_gene[rows] >= 0
        a = np.linalg.solve(genes.T @ genes + 0.3 * np.eye(4), genes.T @ (y - y.mean(0))[mapped].T)
        p = genes[d.target_gene[rows][mapped]]
        w = a @ p @ np.linalg.inv(p.T @ p + 0.3 * np.eye(4))
        for i, row in enumerate(result.fold.test):
            effect = genes[d.target_gene[row]] @ w.T @ genes.T if d.target_gene[row] >= 0 else 0
            np.testing.assert_allclose(result.test[i], effect + y.mean(0), atol=1e-5)


def test_components_are_those_of_scikit_learn_and_have_a_fixed_sign():
    changes = np.random.default_rng(0).normal(size=(20, 7))
    ours = lel.principal_scores(changes, 50)
    theirs = PCA(7, svd_solver="full").fit_transform(changes)
    assert ours.shape == (20, 7)  # no more than there are
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    np.testing.assert_allclose(ours, lel.principal_scores(changes, 7), atol=1e-12)


def test_perturbations_whose_gene_is_not_read_out_get_the_mean():
    d = data(read_out=0.5)
    unmapped = d.target_gene < 0
    for model, mean in zip(run(lel.PCALinear(), d), run(MeanResponse(), d)):
        np.testing.assert_allclose(model.test[unmapped[model.fold.test]], mean.test[unmapped[mean.fold.test]], atol=1e-6)
    for model, mean in zip(run(lel.PCALinear(), data(read_out=0.0)), run(MeanResponse(), d)):
        np.testing.assert_allclose(model.test, mean.test, atol=1e-6)
        np.testing.assert_allclose(model.train, mean.train, atol=1e-6)


@pytest.mark.parametrize("method", [lel.NTLinear(), lel.PCALinear(), MeanResponse()])
def test_nothing_of_the_test_rows_is_looked_at(method):
    """Other held-out targets, the same predictions; as published they leak through the filled-in values."""
    d, other = data(missing=0.1), data(missing=0.1)
    fold = FOLDS[:1]
    other.targets[fold[0].test] += 5
    np.testing.assert_array_equal(run(method, d, folds=fold)[0].test, run(method, other, folds=fold)[0].test)
    if not isinstance(method, lel.PCALinear):
        assert not np.array_equal(run(method, d, True, fold)[0].test, run(method, other, True, fold)[0].test)


def test_published_components_take_no_missing_targets():
    with pytest.raises(InputError, match="missing targets"):
        run(lel.PCALinear(), data(missing=0.1), faithful=True)
    assert all(np.isfinite(result.test).all() for result in run(lel.PCALinear(), data(missing=0.1)))
