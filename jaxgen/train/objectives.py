"""Losses as exact masked sums: `(predictions, batch) -> (loss sum, weight sum, other sums)`.

A mean is taken once, over the whole batch or split, so that micro-batches, devices and padding rows never change the result.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
Objective = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array, Sums]]


def token_cross_entropy(ignore_id: int, bases_per_token: np.ndarray | None = None) -> Objective:
    """Next-token and masked language modelling: logits (b, l, v) against `targets` (b, l), positions with `ignore_id` left out.

    With `bases_per_token` (tokens,), the bases that each id stands for and 0 for special ones, the sums over DNA alone come beside:
    `base_loss`, the loss of all tokens of DNA, and `bases`, how many bases they stand for.
    """

    def objective(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, Sums]:
        targets = batch["targets"]
        counted = (targets != ignore_id) * batch["weight"][:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.where(counted > 0, targets, 0))
        sums = {"correct": jnp.sum((logits.argmax(-1) == targets) * counted)}
        if bases_per_token is not None:
            bases = counted * jnp.asarray(bases_per_token, jnp.float32)[targets]
            sums |= {"base_loss": jnp.sum(losses * (bases > 0)), "bases": jnp.sum(bases)}
        return jnp.sum(losses * counted), jnp.sum(counted), sums

    return objective


def classification(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, Sums]:
    """Cross entropy of logits (b, classes) against integer `target` (b,)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["target"])
    correct = (logits.argmax(-1) == batch["target"]) * batch["weight"]
    return jnp.sum(losses * batch["weight"]), jnp.sum(batch["weight"]), {"correct": jnp.sum(correct)}


def regression(predictions: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, Sums]:
    """Mean squared error of (b, outputs) against `target` (b, outputs), averaged over outputs."""
    errors = jnp.square(predictions.astype(jnp.float32) - batch["target"].reshape(predictions.shape)).mean(-1)
    return jnp.sum(errors * batch["weight"]), jnp.sum(batch["weight"]), {}
