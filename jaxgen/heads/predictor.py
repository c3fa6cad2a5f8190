"""Backbone and head as the one module that the trainer sees: `module(batch, train=..., key=...) -> predictions`."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

Batch = Mapping[str, jax.Array]


class LanguageModel(nnx.Module):
    """tokens (batch, length) -> logits (batch, length, vocabulary)."""

    def __init__(self, backbone: nnx.Module):
        self.backbone = backbone

    def __call__(self, batch: Batch, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        return self.backbone(batch["tokens"], train=train, key=key).logits


class SequencePredictor(nnx.Module):
    """tokens (batch, length), or (batch, length, 2) with both strands -> predictions (batch, outputs).

    `masked` keeps padding out of the backbone and the pooling; the published pipelines let it in.
    """

    def __init__(self, backbone: nnx.Module, head: nnx.Module, *, masked: bool = True):
        self.backbone, self.head, self.masked = backbone, head, masked

    def __call__(self, batch: Batch, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        mask = batch["mask"] if self.masked else None
        tokens, rows_mask = _rows(batch["tokens"], mask)
        hidden = self.backbone(tokens, mask=rows_mask, train=train, key=key).hidden
        if batch["tokens"].ndim == 3:
            hidden = jnp.stack(jnp.split(hidden, 2), axis=-1)
        return self.head(hidden, mask)


class DirectPredictor(nnx.Module):
    """A model that ends in its own classifier; two strands give the mean of their logits."""

    def __init__(self, backbone: nnx.Module):
        self.backbone = backbone

    def __call__(self, batch: Batch, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        tokens, mask = _rows(batch["tokens"], batch["mask"])
        logits = self.backbone(tokens, mask=mask, train=train, key=key).hidden
        return logits.reshape(2, -1, logits.shape[-1]).mean(0) if batch["tokens"].ndim == 3 else logits


def _rows(tokens: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Both strands as one batch of twice the size; padding lies on the same side of both."""
    if tokens.ndim == 2:
        return tokens, mask
    return jnp.concatenate([tokens[..., 0], tokens[..., 1]]), None if mask is None else jnp.concatenate([mask, mask])
