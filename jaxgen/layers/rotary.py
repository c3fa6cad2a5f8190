"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), with the two halves of a head as the pairs."""

import jax
import jax.numpy as jnp

Rotary = tuple[jax.Array, jax.Array]


def rotary_tables(length: int, head_dim: int, base: float = 10000.0) -> Rotary:
    """(cos, sin) of the angles position * base^(-2j / head_dim), each (length, head_dim / 2), float32."""
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: Rotary) -> jax.Array:
    """Turn queries or keys (batch, length, heads, head_dim) by their position; computed in float32, returned in the dtype of `x`."""
    cos, sin = (table[:, None] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
