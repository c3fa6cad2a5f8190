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
        tokens, mask = batch["tokens"], batch["mask"] if self.masked else None
        if tokens.ndim == 2:
            return self.head(self.backbone(tokens, mask=mask, train=train, key=key).hidden, mask)
        # Both strands go through the backbone as one batch of twice the size.
        both = jnp.concatenate([tokens[..., 0], tokens[..., 1]])
        both_mask = None if mask is None else jnp.concatenate([mask, mask])  # padding lies on the same side of both
        hidden = self.backbone(both, mask=both_mask, train=train, key=key).hidden
        return self.head(jnp.stack(jnp.split(hidden, 2), axis=-1), mask)


class DirectPredictor(nnx.Module):
    """A model that ends in its own classifier."""

    def __init__(self, backbone: nnx.Module):
        self.backbone = backbone

    def __call__(self, batch: Batch, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        return self.backbone(batch["tokens"], mask=batch["mask"], train=train, key=key).hidden
