"""Pooling of (batch, positions, features) over positions."""

import jax
import jax.numpy as jnp

from jaxgen.errors import InputError, nearest

MODES = ("mean", "last", "first", "sum", "max")


def pool(hidden: jax.Array, mode: str = "mean", mask: jax.Array | None = None) -> jax.Array:
    """One vector per sequence, (batch, features), computed in float32.

    Args:
      hidden: (batch, positions, features).
      mode: "mean", "sum" or "max" over positions; "first" or "last" position.
      mask: (batch, positions), true at real tokens; None pools over padding too, as the published decoder does.
    """
    h = hidden.astype(jnp.float32)
    if mask is None:
        mask = jnp.ones(h.shape[:2], bool)
    keep = mask[..., None]
    if mode in ("mean", "sum"):
        total = jnp.where(keep, h, 0).sum(1)
        return total if mode == "sum" else total / jnp.maximum(keep.sum(1), 1)
    if mode == "max":
        return jnp.where(keep, h, -jnp.inf).max(1)
    if mode in ("first", "last"):
        positions = jnp.arange(h.shape[1])
        index = jnp.where(mask, positions, h.shape[1]).min(1) if mode == "first" else jnp.where(mask, positions, -1).max(1)
        index = jnp.clip(index, 0, h.shape[1] - 1)
        return jnp.take_along_axis(h, index[:, None, None], axis=1)[:, 0]
    raise InputError(f"head.pool: unknown pooling {mode!r}{nearest(mode, MODES)}")


def last_before_pad(hidden: jax.Array, tokens: jax.Array, pad_id: int) -> jax.Array:
    """The position before the first pad, or the last one when there is no pad or the first token is one (the hub's HyenaDNA classifier)."""
    is_pad = tokens == pad_id
    first_pad = jnp.where(is_pad.any(1), is_pad.argmax(1), 0)
    index = (first_pad - 1) % tokens.shape[1]
    return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]
