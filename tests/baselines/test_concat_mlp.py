"""The perceptron on pairs: each pair once per epoch, the split first layer, and the published update."""

import dataclasses

import jax
import numpy as np
import pytest
import screens
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.baselines import concat_mlp
from jaxgen.baselines.concat_mlp import ConcatMLP
from jaxgen.baselines.embedding_mlp import Rows

SMALL = ConcatMLP(hidden=(32, 16, 8), learning_rate=3e-3, batch_size=128, epochs=30)


@pytest.fixture(scope="module")
def data():
    return screens.screen(noise=0.1)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 4), st.integers(1, 40), st.integers(0, 9))
def test_every_pair_comes_once(n_rows, n_genes, size, batch_size, seed):
    columns, rows = map(np.asarray, concat_mlp.random_visits(jax.random.key(seed), n_rows, n_genes, size, batch_size))
    assert rows.shape == (*columns.shape, size)
    pairs = [(r, c) for c, visit in zip(columns.ravel(), rows.reshape(-1, size)) for r in visit if r < n_rows and c < n_genes]
    assert sorted(pairs) == [(r, c) for r in range(n_rows) for c in range(n_genes)]


def test_order_differs_by_key():
    first, second = (np.asarray(concat_mlp.random_visits(jax.random.key(k), 16, 8, 4, 32)[1]) for k in (0, 1))
    assert (first != second).any()


def naive(params, x):
    """One network over concatenated embeddings, written out."""
    h = x @ np.concatenate([params["tf"], params["gene"]]) + params["bias"]
    for layer in params["layers"]:
        h = np.maximum(h, 0) @ layer["kernel"] + layer["bias"]
    return h[..., 0]


def test_the_first_layer_is_that_of_the_concatenation(data):
    params = jax.tree.map(np.asarray, concat_mlp.init_params(jax.random.key(0), 12, 12, (16, 8)))
    rows, columns = np.asarray([[0, 3], [2, 2], [59, 1]]), np.asarray([0, 39, 7])
    pairs = np.stack([[np.concatenate([data.tf_embeddings[r], data.gene_embeddings[c]]) for r in visit] for visit, c in zip(rows, columns)])
    found = concat_mlp.predict_pairs(params, data.tf_embeddings, data.gene_embeddings, rows, columns)
    np.testing.assert_allclose(found, naive(params, pairs), atol=1e-5)
    everything = concat_mlp.predict_rows(params, data.tf_embeddings[:3], data.gene_embeddings)
    assert everything.shape == (3, 40)
    np.testing.assert_allclose(everything[0, 0], found[0, 0], atol=1e-5)


@pytest.mark.parametrize("faithful", [False, True])
def test_learns_from_pairs(faithful):
    data = screens.screen(missing=True)
    results = screens.run(SMALL, data, screens.folds(), faithful=faithful)
    predictions = screens.out_of_fold(results, data.targets)
    assert np.isfinite(predictions).all()
    rows, genes = np.arange(60) != 5, np.arange(40) != 3
    known = np.where(np.isnan(data.targets), predictions, data.targets)[rows][:, genes]
    assert screens.mean_correlation(known, predictions[rows][:, genes]) > 0.3


def test_held_out_rows_are_not_seen(data):
    fold = screens.folds()[0]
    method = dataclasses.replace(SMALL, epochs=5)
    (seen,), (blind,) = (screens.run(method, d, [fold]) for d in (data, screens.without_rows(data, fold.test)))
    np.testing.assert_array_equal(blind.test, seen.test)
    (leaking,) = screens.run(method, screens.without_rows(data, fold.test), [fold], faithful=True)
    assert leaking.info["validation_mse"] > 1000  # the published script judges on the test fold


def test_folds_train_together_as_alone(data):
    chosen = screens.folds()
    chosen[1] = dataclasses.replace(chosen[1], valid=chosen[1].valid[:-3])
    method = dataclasses.replace(SMALL, epochs=4)
    together = screens.run(method, data, chosen)
    apart = screens.run(dataclasses.replace(method, memory_limit=1), data, chosen)
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a.test, b.test, atol=1e-4)


def test_the_update_is_that_of_the_published_script(data):
    """Adam with L2 in the gradient, over all pairs at once, against PyTorch on the written-out concatenation."""
    torch = pytest.importorskip("torch")
    method = dataclasses.replace(SMALL, batch_size=10**6, weight_decay=0.1)
    params = concat_mlp.init_params(jax.random.key(0), 12, 12, method.hidden)
    train = Rows(np.arange(60), np.ones(60, np.float32))
    ours, moments = params, concat_mlp.adam(method).init(params)
    for step in range(3):
        key = jax.random.key(step)
        ours, moments = concat_mlp.train_epoch(method, ours, moments, data.tf_embeddings, data.gene_embeddings, data.targets, train, key)
    widths = [(24, 32), (32, 16), (16, 8), (8, 1)]
    network = torch.nn.Sequential(*[m for a, b in widths for m in (torch.nn.Linear(a, b), torch.nn.ReLU())][:-1])
    kernels = [np.concatenate([params["tf"], params["gene"]]), *(layer["kernel"] for layer in params["layers"])]
    for linear, kernel, bias in zip(network[::2], kernels, [params["bias"], *(layer["bias"] for layer in params["layers"])]):
        linear.weight.data, linear.bias.data = torch.tensor(np.asarray(kernel).T.copy()), torch.tensor(np.asarray(bias))
    optimizer = torch.optim.Adam(network.parameters(), lr=method.learning_rate, weight_decay=method.weight_decay)
    x = torch.tensor(np.concatenate([np.repeat(data.tf_embeddings, 40, 0), np.tile(data.gene_embeddings, (60, 1))], 1))
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(x).squeeze(), torch.tensor(data.targets.ravel())).backward()
        optimizer.step()
    found = concat_mlp.predict_rows(ours, data.tf_embeddings, data.gene_embeddings)
    np.testing.assert_allclose(found, network(x).detach().numpy().reshape(60, 40), atol=1e-4)
