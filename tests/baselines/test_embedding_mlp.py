"""The perceptron on embeddings: what it learns, what it must not see, and the published training step by step."""

import dataclasses

import jax
import numpy as np
import pytest
import screens

from jaxgen.baselines import embedding_mlp
from jaxgen.baselines.embedding_mlp import EmbeddingMLP
from jaxgen.baselines.method import training_rows

SMALL = EmbeddingMLP(hidden=(32, 16, 16), dropout=0.1, learning_rate=5e-3, epochs=60)


@pytest.fixture(scope="module")
def data():
    return screens.screen(noise=0.1)


def test_learns_from_embeddings(data):
    results = screens.run(SMALL, data, screens.folds())
    predictions = screens.out_of_fold(results, data.targets)
    assert screens.mean_correlation(data.targets, predictions) > 0.5
    for result in results:
        assert result.train.shape == (len(training_rows(result.fold)), data.targets.shape[1])
        assert 1 <= result.info["best_epoch"] <= result.info["epochs"] <= 60
        assert result.info["validation_mse"] > 0


def test_folds_of_other_lengths_train_together_as_alone(data):
    chosen = screens.folds()
    chosen[0] = dataclasses.replace(chosen[0], train=chosen[0].train[:-7], valid=chosen[0].valid[:-2])
    for result in screens.run(SMALL, data, chosen):
        (alone,) = screens.run(SMALL, data, [result.fold])
        np.testing.assert_allclose(alone.test, result.test, atol=2e-3)
        assert alone.info["epochs"] == result.info["epochs"]


def test_folds_train_one_after_another_when_memory_is_short(data):
    together = screens.run(SMALL, data, screens.folds())
    apart = screens.run(dataclasses.replace(SMALL, memory_limit=1), data, screens.folds())
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a.test, b.test, atol=2e-3)


def test_held_out_rows_are_not_seen(data):
    fold = screens.folds()[0]
    (seen,) = screens.run(SMALL, data, [fold])
    changed = screens.without_rows(data, fold.test)
    tf = data.tf_embeddings.copy()
    tf[fold.test] *= -7  # neither do they move the scale of the others
    (blind,) = screens.run(SMALL, dataclasses.replace(changed, tf_embeddings=tf), [fold])
    np.testing.assert_array_equal(blind.train, seen.train)


def test_missing_targets_are_left_out():
    data = screens.screen(missing=True)
    for faithful in (False, True):
        predictions = screens.out_of_fold(screens.run(SMALL, data, screens.folds(), faithful=faithful), data.targets)
        assert np.isfinite(predictions).all()


def test_batches_cover_an_epoch(data):
    """Many small batches, the last of them short, learn too."""
    method = dataclasses.replace(SMALL, batch_size=7, epochs=30, learning_rate=2e-3)
    predictions = screens.out_of_fold(screens.run(method, data, screens.folds()), data.targets)
    assert screens.mean_correlation(data.targets, predictions) > 0.5


@pytest.mark.parametrize("faithful", [True, False])
def test_training_is_that_of_the_published_script(data, faithful):
    """AdamW, ReduceLROnPlateau and early stopping of PyTorch from the same weights; without dropout nothing is random."""
    torch = pytest.importorskip("torch")
    method = dataclasses.replace(SMALL, dropout=0.0, epochs=200, patience=4, plateau_patience=1)
    fold = screens.folds()[0]
    (ours,) = screens.run(method, data, [fold], faithful=faithful)
    widths = (data.tf_embeddings.shape[1], *method.hidden, data.targets.shape[1])
    initial = embedding_mlp.init_params(jax.random.fold_in(jax.random.key(1), fold.index), widths)
    network = torch.nn.Sequential()
    for i, layer in enumerate(initial):
        linear = torch.nn.Linear(*layer["kernel"].shape)
        linear.weight.data = torch.tensor(np.asarray(layer["kernel"]).T.copy())
        linear.bias.data.zero_()
        network.extend([linear] + ([torch.nn.ReLU()] if i < len(initial) - 1 else []))
    optimizer = torch.optim.AdamW(network.parameters(), lr=method.learning_rate, weight_decay=method.weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=method.plateau_patience, factor=method.plateau_factor)
    inputs = embedding_mlp.standardise(data.tf_embeddings, slice(None) if faithful else fold.train)
    x, y = torch.tensor(inputs), torch.tensor(data.targets)
    best, bad, epochs, best_state = np.inf, 0, 0, None
    for epoch in range(method.epochs):
        epochs += 1
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(x[fold.train]), y[fold.train]).backward()
        optimizer.step()
        if epoch % 5 == 0 or epoch == method.epochs - 1:
            loss = torch.nn.functional.mse_loss(network(x[fold.valid]), y[fold.valid]).item()
            plateau.step(loss)
            if loss < best:
                best, bad, best_state = loss, 0, {k: v.clone() for k, v in network.state_dict().items()}
            else:
                bad += 1
                if bad >= method.patience:
                    break
    if not faithful:
        network.load_state_dict(best_state)
    assert (ours.info["epochs"], ours.info["validation_mse"]) == (epochs, pytest.approx(best, rel=1e-3))
    assert optimizer.param_groups[0]["lr"] < method.learning_rate
    np.testing.assert_allclose(ours.test, network(x[fold.test]).detach().numpy(), atol=5e-3)
