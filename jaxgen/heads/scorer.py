"""A language model that says how probable given tokens are."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Scorer(nnx.Module):
    """One batch -> float32 (batch, 3): log-likelihood in nats of the selected tokens, their number, and the bases they stand for.

    The batch has `tokens` that are read and `targets` that are scored, int (batch, length); `bases` int (batch, length), what each target
    stands for, 0 where it is not scored; and `mask` bool (batch, length), true on real tokens.

    Args:
      causal: the target at a position is scored by the logits before it, instead of those at it.
      masked: keeps padding out of the backbone.
    """

    def __init__(self, backbone: nnx.Module, *, causal: bool, masked: bool = True):
        self.backbone, self.causal, self.masked = backbone, causal, masked

    def __call__(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        logits = self.backbone(batch["tokens"], mask=batch["mask"] if self.masked else None).logits
        targets, bases = batch["targets"], batch["bases"]
        if self.causal:
            logits, targets, bases = logits[:, :-1], targets[:, 1:], bases[:, 1:]
        scored = bases > 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
        sums = (jnp.sum(x, axis=1, dtype=jnp.float32) for x in (jnp.where(scored, -losses, 0), scored, bases))
        return jnp.stack(list(sums), axis=1)
