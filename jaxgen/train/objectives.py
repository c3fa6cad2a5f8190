"""Losses as exact masked sums: `(predictions, batch) -> (loss sum, weight sum, other sums)`.

A mean is taken once, over the whole batch or split, so that micro-batches, devices and padding rows never change the result.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
Objective = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array, Sums]]


def token_cross_entropy(ignore_id: int) -> Objective:
    """Next-token and masked language modelling: logits (b, l, v) against `targets` (b, l), positions with `ignore_id` left out."""

    def objective(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, Sums]:
        targets = batch["targets"]
        counted = (targets != ignore_id) * batch["weight"][:, None]
        # Ids outside the head (padding rows of the vocabulary apart) cannot occur in counted positions.
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.where(counted > 0, targets, 0))
        correct = (logits.argmax(-1) == targets) * counted
        return jnp.sum(losses * counted), jnp.sum(counted), {"correct": jnp.sum(correct)}

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
