"""A backbone that gives one vector per sequence: a hidden state, pooled over the real tokens."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen.errors import InputError, nearest
from jaxgen.heads.pooling import pool

# Name -> mode of `pool`. The first real token is the [CLS] token wherever a tokenizer writes one, on whichever side it pads.
POOLINGS = {"mean": "mean", "max": "max", "cls": "first", "last": "last", "none": ""}


class Embedder(nnx.Module):
    """tokens and mask (batch, length) -> float32 (batch, features) or, for pooling "none", (batch, length, features).

    Args:
      layer: of the backbone's hidden states; -1 is `Output.hidden`.
      pooling: one of `POOLINGS`, over the positions of the mask.
      masked: keeps padding out of the backbone too; the published HyenaDNA extraction lets it in.

    Raises:
      InputError: an unknown pooling or, at the first call, a layer that the backbone has not.
    """

    def __init__(self, backbone: nnx.Module, *, layer: int = -1, pooling: str = "mean", masked: bool = True):
        if pooling not in POOLINGS:
            raise InputError(f"embed.pooling={pooling!r}{nearest(pooling, POOLINGS)}")
        self.backbone, self.layer, self.pooling, self.masked = backbone, layer, pooling, masked

    def __call__(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        mask = batch["mask"] if self.masked else None
        if self.layer == -1:
            hidden = self.backbone(batch["tokens"], mask=mask).hidden
        else:
            states = self.backbone(batch["tokens"], mask=mask, hidden_states=True).hidden_states
            n = states.shape[0]
            if not -n <= self.layer < n:
                raise InputError(f"embed.layer={self.layer}: the model has hidden states 0 ... {n - 1}, or -{n} ... -1 from the end")
            hidden = states[self.layer]
        mode = POOLINGS[self.pooling]
        return pool(hidden, mode, batch["mask"]) if mode else hidden.astype(jnp.float32)
