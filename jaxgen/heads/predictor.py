"""Backbone and head as the one module that the trainer sees: `module(batch, train=..., key=...) -> predictions`."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

Batch = Mapping[str, jax.Array]


class LanguageModel(nnx.Module):
    """tokens (batch, length), and `mask` where the batch has one -> logits (batch, length, vocabulary)."""

    def __init__(self, backbone: nnx.Module):
        self.backbone = backbone

    def __call__(self, batch: Batch, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        return self.backbone(batch["tokens"], mask=batch.get("mask"), train=train, key=key).logits


class SequencePredictor(nnx.Module):
    """tokens (batch, length), or (batch, length, 2) with both strands -> predictions (batch, outputs).

    `masked` keeps padding out of the backbone and the pooling; the published pipelines let it in. `strands` says how a backbone that
    reads both strands itself holds them: hidden -> (batch, length, features, 2), each strand read along itself.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        head: nnx.Module,
        *,
        masked: bool = True,
        strands: Callable[[jax.Array], jax.Array] | None = None,
    ):
        self.backbone, self.head, self.masked, self.strands = backbone, head, masked, strands

    def __call__(self, batch: Batch, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        tokens, rows_mask = _rows(batch, self.masked)
        hidden = self.backbone(tokens, mask=rows_mask, train=train, key=key).hidden
        if self.strands is None:
            predictions = self.head(hidden, rows_mask)
        else:
            both, reverse_mask = self.strands(hidden), None if rows_mask is None else jnp.flip(rows_mask, 1)
            predictions = (self.head(both[..., 0], rows_mask) + self.head(both[..., 1], reverse_mask)) / 2
        return jnp.stack(jnp.split(predictions, 2)).mean(0) if batch["tokens"].ndim == 3 else predictions


class DirectPredictor(nnx.Module):
    """A model that ends in its own head, `Output.predictions`; two strands give the mean of their predictions.

    `masked` keeps padding out of the model.
    """

    def __init__(self, backbone: nnx.Module, *, masked: bool = True):
        self.backbone, self.masked = backbone, masked

    def __call__(self, batch: Batch, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        tokens, mask = _rows(batch, self.masked)
        predictions = self.backbone(tokens, mask=mask, train=train, key=key).predictions
        return predictions.reshape(2, -1, predictions.shape[-1]).mean(0) if batch["tokens"].ndim == 3 else predictions


def _rows(batch: Batch, masked: bool) -> tuple[jax.Array, jax.Array | None]:
    """(tokens, mask or None), both strands as one batch of twice the size."""
    tokens, mask = (x if x.ndim == 2 else jnp.concatenate([x[..., 0], x[..., 1]]) for x in (batch["tokens"], batch["mask"]))
    return tokens, mask if masked else None
