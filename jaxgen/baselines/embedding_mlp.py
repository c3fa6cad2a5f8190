"""A perceptron from the embedding of the perturbed gene to the expression change of all read-out genes, all folds trained together.

Source: molocyxu/10701GenomicEmbeddings `scripts/Hs_27_mlp_NT.py` and `Hs_27_mlp_Hyena.py`: the same network on other embeddings.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import reduce_on_plateau
from sklearn.preprocessing import StandardScaler

from jaxgen.baselines import selection
from jaxgen.baselines.impute import fill_missing
from jaxgen.baselines.method import Fold, FoldResult, PerturbationData, training_rows
from jaxgen.layers.core import dropout

Params = list[dict[str, jax.Array]]  # one {"kernel": (in, out), "bias": (out,)} per layer


class Rows(NamedTuple):
    """Row numbers of a fold, padded to the longest fold; `weight` is 1 at real rows, 0 at padding."""

    index: Any
    weight: Any


@dataclasses.dataclass(frozen=True)
class EmbeddingMLP:
    """`Method`: in -> hidden -> genes with ReLU and dropout, AdamW, learning rate halved on plateaus, early stopping.

    The loss is the mean squared error over targets that are there. By default the inputs are standardised on the training rows and the
    weights of the best validation predict. `faithful` standardises on all rows, fills missing targets with means over all rows, and
    predicts with the last weights, as the published script does.

    Attributes:
      validate_every: epochs between validations, which alone count for `patience` and `plateau_patience`.
      plateau_patience: validations without improvement before the learning rate is multiplied by `plateau_factor`.
      memory_limit: bytes that the folds may take together; beyond, they are trained one after another.
    """

    hidden: tuple[int, ...] = (1024, 512, 256)
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 512
    epochs: int = 200
    validate_every: int = 5
    patience: int = 10
    plateau_patience: int = 3
    plateau_factor: float = 0.7
    memory_limit: int = 4 << 30

    def __call__(self, data: PerturbationData, folds: Sequence[Fold], *, seed: int, faithful: bool) -> Iterator[FoldResult]:
        assert data.tf_embeddings is not None
        targets = fill_missing(data.targets) if faithful else data.targets
        together = max(1, min(len(folds), self.memory_limit // self._bytes_per_fold(data)))
        for start in range(0, len(folds), together):
            group = folds[start : start + together]
            inputs = np.stack([standardise(data.tf_embeddings, slice(None) if faithful else fold.train) for fold in group])
            # A fold has its own key, so its result does not depend on which other folds run beside it.
            keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray([fold.index for fold in group]))
            fitted = _fit(self, inputs, targets, pad_rows([f.train for f in group]), pad_rows([f.valid for f in group]), keys, faithful)
            predictions, info = jax.device_get(fitted)
            for i, fold in enumerate(group):
                seen = training_rows(fold)
                of_fold = {name: values[i].item() for name, values in info.items()}
                yield FoldResult(fold, predictions[i][fold.test], predictions[i][seen], of_fold)

    def _bytes_per_fold(self, data: PerturbationData) -> int:
        (rows, genes), widths = data.targets.shape, (data.tf_embeddings.shape[1], *self.hidden, data.targets.shape[1])
        weights = sum(a * b + b for a, b in itertools.pairwise(widths))
        return 4 * (6 * weights + rows * (3 * sum(widths) + 4 * genes))  # weights: themselves, gradient, two moments, best, updates


def standardise(features: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """float32 features (P, K) less the mean over `rows`, divided by the population standard deviation over them."""
    return StandardScaler().fit(features[rows]).transform(features).astype(np.float32)


def pad_rows(rows: Sequence[np.ndarray]) -> Rows:
    """Row numbers of several folds as arrays (folds, longest)."""
    longest = max(len(r) for r in rows)
    index, weight = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), np.float32)
    for i, r in enumerate(rows):
        index[i, : len(r)], weight[i, : len(r)] = r, 1
    return Rows(index, weight)


def init_params(key: jax.Array, widths: Sequence[int]) -> Params:
    """Xavier-uniform kernels, zero biases."""
    init = jax.nn.initializers.xavier_uniform()
    keys = jax.random.split(key, len(widths) - 1)
    return [{"kernel": init(k, (a, b)), "bias": jnp.zeros(b)} for k, (a, b) in zip(keys, itertools.pairwise(widths))]


def predict(params: Params, x: jax.Array, rate: float = 0.0, key: jax.Array | None = None) -> jax.Array:
    """(rows, features) -> (rows, genes); a key turns dropout on."""
    for i, layer in enumerate(params[:-1]):
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        x = dropout(x, rate, None if key is None else jax.random.fold_in(key, i))
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def masked_mse(predictions: jax.Array, targets: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean of squared errors over the entries of (rows, genes) that are finite, in rows of weight 1."""
    known = jnp.isfinite(targets) & (weight[:, None] > 0)
    errors = jnp.where(known, predictions - jnp.where(known, targets, 0), 0)
    return jnp.sum(jnp.square(errors)) / jnp.maximum(jnp.sum(known), 1)


class _Fold(NamedTuple):
    """One fold in training."""

    params: Params
    moments: Any
    plateau: Any
    best: selection.Selection


@functools.partial(jax.jit, static_argnames=("method", "faithful"))
def _fit(
    method: EmbeddingMLP, inputs: jax.Array, targets: jax.Array, train: Rows, valid: Rows, keys: jax.Array, faithful: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Train all folds; predictions (folds, P, G) of every row, and what is told of each fold.

    Args:
      inputs: (folds, P, K).
      targets: (P, G).
      train, valid: (folds, rows).
      keys: (folds,).
    """
    widths = (inputs.shape[-1], *method.hidden, targets.shape[1])
    adam = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(method.weight_decay))
    # torch lowers the rate when more than `patience` validations were bad, optax when `patience` were.
    plateau = reduce_on_plateau(factor=method.plateau_factor, patience=method.plateau_patience + 1, rtol=1e-4)
    n_rows = train.index.shape[1]
    rows = min(method.batch_size, n_rows)
    n_batches = -(-n_rows // rows)

    def start(key: jax.Array) -> _Fold:
        params = init_params(key, widths)
        return _Fold(params, adam.init(params), plateau.init(params), selection.start(params))

    def one_epoch(fold: _Fold, x: jax.Array, train: Rows, key: jax.Array) -> _Fold:
        # Real rows first, in random order, so that only the last batches hold padding.
        order = jnp.argsort(jnp.where(train.weight > 0, jax.random.uniform(key, (n_rows,)), 2.0))
        order = jnp.pad(order, (0, n_batches * rows - n_rows), constant_values=n_rows)
        index = train.index.at[order].get(mode="fill", fill_value=0).reshape(n_batches, rows)
        weight = train.weight.at[order].get(mode="fill", fill_value=0).reshape(n_batches, rows)

        def step(carry: tuple[Params, Any], batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, None]:
            index, weight, i = batch
            dropout_key = jax.random.fold_in(key, i)
            grads = jax.grad(lambda p: masked_mse(predict(p, x[index], method.dropout, dropout_key), targets[index], weight))(carry[0])
            updates, moments = adam.update(grads, carry[1], carry[0])
            rate = method.learning_rate * fold.plateau.scale
            params = jax.tree.map(lambda p, u: p - rate * u, carry[0], updates)
            some = weight.any()  # folds differ in length: a last batch may be all padding
            return jax.tree.map(lambda new, old: jnp.where(some, new, old), (params, moments), carry), None

        batches = (index, weight, jnp.arange(n_batches))
        (params, moments), _ = jax.lax.scan(step, (fold.params, fold.moments), batches)
        return fold._replace(params=params, moments=moments)

    def validate(fold: _Fold, x: jax.Array, valid: Rows, epoch: jax.Array) -> _Fold:
        loss = masked_mse(predict(fold.params, x[valid.index]), targets[valid.index], valid.weight)
        _, lowered = plateau.update((), fold.plateau, value=loss)
        return fold._replace(plateau=lowered, best=fold.best.update(loss, epoch, fold.params))

    def all_folds(folds: _Fold, epoch: jax.Array) -> _Fold:
        new = jax.vmap(one_epoch)(folds, inputs, train, jax.vmap(functools.partial(jax.random.fold_in, data=epoch + 1))(keys))
        due = (epoch % method.validate_every == 0) | (epoch == method.epochs - 1)
        return jax.lax.cond(due, lambda f: jax.vmap(validate, (0, 0, 0, None))(f, inputs, valid, epoch), lambda f: f, new)

    folds, epochs_run = selection.train_folds(all_folds, jax.vmap(start)(keys), method.epochs, method.patience)
    chosen = folds.params if faithful else folds.best.params
    info = {"epochs": epochs_run, "best_epoch": folds.best.epoch + 1, "validation_mse": folds.best.loss}
    return jax.vmap(predict)(chosen, inputs), info
