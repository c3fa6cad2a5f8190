"""What a variant does to hidden states: the window average of the published eQTL probe, and distances between alleles."""

import jax
import jax.numpy as jnp


def window_mean(hidden: jax.Array, index: jax.Array, window_bp: int = 1536, bp_per_token: int = 1) -> jax.Array:
    """Mean of the hidden states around a token, (batch, length, features) -> float32 (batch, features).

    With w = window_bp // bp_per_token, offsets run from floor(-w / 2) to w // 2, both included: w + 1 positions for even w, the left side
    one longer for odd w. Positions outside the sequence repeat its first or last token. Source: kuleshov-group/caduceus,
    `vep_embeddings.py`.

    Args:
      index: int (batch,), the token of the variant; -1 counts as 0 does after clamping.
    """
    window = window_bp // bp_per_token
    offsets = jnp.arange(-window // 2, window // 2 + 1)
    positions = jnp.clip(index[:, None] + offsets, 0, hidden.shape[1] - 1)
    return jnp.take_along_axis(hidden.astype(jnp.float32), positions[..., None], axis=1).mean(1)


def allele_embedding(ref: jax.Array, alt: jax.Array, index: jax.Array, window_bp: int = 1536, bp_per_token: int = 1) -> jax.Array:
    """(batch, 2 * features): `window_mean` of the reference, then of the alternative."""
    return jnp.concatenate([window_mean(x, index, window_bp, bp_per_token) for x in (ref, alt)], axis=-1)


def distances(ref: jax.Array, alt: jax.Array) -> dict[str, jax.Array]:
    """Between embeddings (batch, features) of the alleles: `l2`, `l1`, and `cosine` distance (0 where they are the same)."""
    difference = alt - ref
    norms = jnp.linalg.norm(ref, axis=-1) * jnp.linalg.norm(alt, axis=-1)
    cosine = jnp.where(norms > 0, 1 - (ref * alt).sum(-1) / jnp.where(norms > 0, norms, 1.0), 0.0)
    return {"l2": jnp.linalg.norm(difference, axis=-1), "l1": jnp.abs(difference).sum(-1), "cosine": cosine}
