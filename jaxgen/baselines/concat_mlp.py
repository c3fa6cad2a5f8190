"""A perceptron from (embedding of the perturbed gene, embedding of a read-out gene) to one expression change, over all P x G pairs.

Source: molocyxu/10701GenomicEmbeddings `scripts/concat_gene_TF_MLP.py`. The pairs are never written out: the first layer is the sum of a
TF part and a gene part, a batch is pair numbers out of a random order drawn on the device, and an epoch is one scan. A batch shows every
gene that it draws with `rows_per_gene` random TFs, so that the gene part, the dearest matrix product, is computed once for all of them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.baselines import selection
from jaxgen.baselines.embedding_mlp import Rows, pad_rows
from jaxgen.baselines.method import Fold, FoldResult, PerturbationData, training_rows
from jaxgen.layers.core import uniform_fan_in

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ConcatMLP:
    """`Method`: [TF | gene] -> hidden -> 1 with ReLU, Adam with L2 in the gradient, early stopping. Missing targets are left out.

    By default a validation part of the training rows stops the training and its best weights predict. `faithful` trains on all training
    rows, draws every pair by itself, stops on the test fold and predicts with the last weights, as the published script does.

    Attributes:
      batch_size: pairs per update.
      rows_per_gene: pairs of a batch that share their gene.
      patience: epochs without improvement.
      memory_limit: bytes that the folds may take together; beyond, they are trained one after another.
    """

    hidden: tuple[int, ...] = (512, 256, 128)
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    batch_size: int = 4096
    rows_per_gene: int = 8
    epochs: int = 100
    patience: int = 10
    memory_limit: int = 4 << 30

    def __call__(self, data: PerturbationData, folds: Sequence[Fold], *, seed: int, faithful: bool) -> Iterator[FoldResult]:
        assert data.tf_embeddings is not None
        assert data.gene_embeddings is not None
        together = max(1, min(len(folds), self.memory_limit // self._bytes_per_fold(data)))
        for start in range(0, len(folds), together):
            group = folds[start : start + together]
            seen = [training_rows(fold) for fold in group]
            train = pad_rows(seen if faithful else [fold.train for fold in group])
            valid = pad_rows([fold.test if faithful else fold.valid for fold in group])
            # A fold has its own key, so its result does not depend on which other folds run beside it.
            keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray([fold.index for fold in group]))
            method = dataclasses.replace(self, rows_per_gene=1) if faithful else self
            fitted = _fit(method, data.tf_embeddings, data.gene_embeddings, data.targets, train, valid, keys, faithful)
            predictions, info = jax.device_get(fitted)
            for i, fold in enumerate(group):
                of_fold = {name: values[i].item() for name, values in info.items()}
                yield FoldResult(fold, predictions[i][fold.test], predictions[i][seen[i]], of_fold)

    def _bytes_per_fold(self, data: PerturbationData) -> int:
        rows, genes = data.targets.shape
        widths = (data.tf_embeddings.shape[1] + data.gene_embeddings.shape[1], *self.hidden, 1)
        weights = sum(a * b + b for a, b in itertools.pairwise(widths))
        return 4 * (6 * weights + 4 * rows * genes + 3 * max(self.batch_size, genes) * sum(widths))


def init_params(key: jax.Array, n_tf: int, n_gene: int, hidden: Sequence[int]) -> Params:
    """{"tf": (n_tf, h), "gene": (n_gene, h), "bias": (h,), "layers": [{"kernel", "bias"}, ...]}, drawn as PyTorch draws Linear."""
    keys = iter(jax.random.split(key, 2 * len(hidden) + 3))
    first = uniform_fan_in(n_tf + n_gene)
    widths = (*hidden, 1)
    return {
        "tf": first(next(keys), (n_tf, hidden[0])),
        "gene": first(next(keys), (n_gene, hidden[0])),
        "bias": first(next(keys), (hidden[0],)),
        "layers": [
            {"kernel": uniform_fan_in(a)(next(keys), (a, b)), "bias": uniform_fan_in(a)(next(keys), (b,))}
            for a, b in itertools.pairwise(widths)
        ],
    }


def after_first(params: Params, x: jax.Array) -> jax.Array:
    """First layer's sums (..., hidden) -> predictions (...)."""
    for layer in params["layers"]:
        x = jax.nn.relu(x) @ layer["kernel"] + layer["bias"]
    return x[..., 0]


def predict_pairs(params: Params, tf: jax.Array, gene: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """tf (P, K), gene (G, K'), columns (visits,) and rows (visits, pairs) of each: predictions (visits, pairs)."""
    of_gene = gene[columns] @ params["gene"] + params["bias"]
    return after_first(params, of_gene[:, None] + (tf @ params["tf"])[rows])


def random_visits(key: jax.Array, n_rows: int, n_genes: int, size: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Every pair of rows and genes once, in random order: columns (batches, visits) and rows (batches, visits, size).

    A visit is a gene with `size` rows out of its own random order of rows. Numbers beyond `n_rows` and `n_genes` fill up.
    """
    row_key, visit_key = jax.random.split(key)
    n_rounds = -(-n_rows // size)
    n_visits, per_batch = n_rounds * n_genes, max(1, batch_size // size)
    n_batches = -(-n_visits // per_batch)
    rows = jnp.broadcast_to(jnp.arange(n_rounds * size), (n_genes, n_rounds * size))
    rows = jax.random.permutation(row_key, rows, axis=1, independent=True).reshape(n_visits, size)
    visits = jax.random.permutation(visit_key, n_visits)
    visits = jnp.pad(visits, (0, n_batches * per_batch - n_visits), constant_values=n_visits).reshape(n_batches, per_batch)
    return visits // n_rounds, rows.at[visits].get(mode="fill", fill_value=n_rows)


def predict_rows(params: Params, tf: jax.Array, gene: jax.Array) -> jax.Array:
    """All genes of the rows of tf: (rows, G), one row at a time so that memory stays at G x hidden."""
    of_gene = gene @ params["gene"] + params["bias"]
    return jax.lax.map(lambda t: after_first(params, of_gene + t @ params["tf"]), tf)


class _Fold(NamedTuple):
    """One fold in training."""

    params: Params
    moments: Any
    best: selection.Selection


@functools.partial(jax.jit, static_argnames="method")
def train_epoch(
    method: ConcatMLP, params: Params, moments: Any, tf: jax.Array, gene: jax.Array, targets: jax.Array, train: Rows, key: jax.Array
) -> tuple[Params, Any]:
    """One pass over every pair of the training rows, in random order. Returns parameters and Adam's state."""
    order = random_visits(key, train.index.shape[0], targets.shape[1], method.rows_per_gene, method.batch_size)
    # Padding of a fold or of a batch has no target.
    tf = tf[train.index]
    targets = jnp.where(train.weight[:, None] > 0, targets[train.index], jnp.nan)

    def step(carry: tuple[Params, Any], batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        columns, rows = batch
        y = targets.at[rows, columns[:, None]].get(mode="fill", fill_value=jnp.nan)
        counts = jnp.isfinite(y)

        def loss(params: Params) -> jax.Array:
            errors = jnp.where(counts, predict_pairs(params, tf, gene, rows, columns) - jnp.where(counts, y, 0), 0)
            return jnp.sum(jnp.square(errors)) / jnp.maximum(counts.sum(), 1)

        updates, moments = adam(method).update(jax.grad(loss)(carry[0]), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), moments), None

    (params, moments), _ = jax.lax.scan(step, (params, moments), order)
    return params, moments


def adam(method: ConcatMLP) -> optax.GradientTransformation:
    """torch.optim.Adam: the decay is part of the gradient."""
    return optax.chain(optax.add_decayed_weights(method.weight_decay), optax.adam(method.learning_rate))


@functools.partial(jax.jit, static_argnames=("method", "faithful"))
def _fit(
    method: ConcatMLP,
    tf: jax.Array,
    gene: jax.Array,
    targets: jax.Array,
    train: Rows,
    valid: Rows,
    keys: jax.Array,
    faithful: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Train all folds (leading axis of `train`, `valid` and `keys`); predictions (folds, P, G), and what is told of each fold."""

    def start(key: jax.Array) -> _Fold:
        params = init_params(key, tf.shape[1], gene.shape[1], method.hidden)
        return _Fold(params, adam(method).init(params), selection.start(params))

    def one_epoch(fold: _Fold, train: Rows, valid: Rows, key: jax.Array, epoch: jax.Array) -> _Fold:
        params, moments = train_epoch(method, fold.params, fold.moments, tf, gene, targets, train, key)
        y = targets[valid.index]
        counts = jnp.isfinite(y) & (valid.weight[:, None] > 0)
        errors = predict_rows(params, tf[valid.index], gene) - jnp.where(counts, y, 0)
        loss = jnp.sum(jnp.where(counts, jnp.square(errors), 0)) / jnp.maximum(counts.sum(), 1)
        return _Fold(params, moments, fold.best.update(loss, epoch, params))

    def all_folds(folds: _Fold, epoch: jax.Array) -> _Fold:
        epoch_keys = jax.vmap(functools.partial(jax.random.fold_in, data=epoch + 1))(keys)
        return jax.vmap(one_epoch, (0, 0, 0, 0, None))(folds, train, valid, epoch_keys, epoch)

    folds, epochs_run = selection.train_folds(all_folds, jax.vmap(start)(keys), method.epochs, method.patience)
    chosen = folds.params if faithful else folds.best.params
    info = {"epochs": epochs_run, "best_epoch": folds.best.epoch + 1, "validation_mse": folds.best.loss}
    return jax.vmap(lambda params: predict_rows(params, tf, gene))(chosen), info
