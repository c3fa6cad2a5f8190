"""Multi-head self-attention as a module: projections around `ops.attention`."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen.layers.core import Initializer, Linear
from jaxgen.layers.rotary import Rotary, rotate
from jaxgen.ops.attention import attention, attention_weights, weighted_values


class SelfAttention(nnx.Module):
    """(batch, length, d_model) -> the same, and the attention maps when asked for.

    Query, key and value have kernels of their own, which shard over heads and which adapters can name; a public file that fuses them is
    split by its key table.

    Args:
      use_bias, out_bias: biases of query, key and value, and of the output projection.
      causal, scale: as for `ops.attention.attention`.
      dropout: share of the probabilities dropped when the call brings a key.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rngs: nnx.Rngs,
        *,
        use_bias: bool = True,
        out_bias: bool = True,
        causal: bool = False,
        scale: float | None = None,
        dropout: float = 0.0,
        init: Initializer | None = None,
    ):
        self.n_heads, self.causal, self.scale, self.dropout = n_heads, causal, scale, dropout
        self.query, self.key, self.value = (
            Linear(d_model, d_model, rngs, axes=("embed", "heads"), use_bias=use_bias, init=init) for _ in range(3)
        )
        self.out = Linear(d_model, d_model, rngs, axes=("heads", "embed"), use_bias=out_bias, init=init)

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        rotary: Rotary | None = None,
        slopes: jax.Array | None = None,
        window: int | jax.Array | None = None,
        key: jax.Array | None = None,
        uniform_padding: bool = False,
        return_weights: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attend.

        Args:
          x: (batch, length, d_model).
          mask: bool (batch, length), true at real tokens; padding is not seen.
          rotary: tables of `rotary_tables`, for queries and keys.
          slopes, window: ALiBi slopes and local window, as for `ops.attention.attention`.
          key: turns dropout of the probabilities on.
          uniform_padding: padding positions see every position alike, as in Haiku models that mask queries too.
          return_weights: also compute the attention maps, with all scores in memory and without dropout.

        Returns:
          the output, and the maps (batch, heads, queries, keys) in float32 or None.
        """
        q, k, v = (project(x).reshape(*x.shape[:2], self.n_heads, -1) for project in (self.query, self.key, self.value))
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        options = {"mask": mask, "slopes": slopes, "causal": self.causal, "window": window, "scale": self.scale}
        weights = None
        if return_weights:
            weights = attention_weights(q, k, **options)
            if uniform_padding and mask is not None:
                weights = jnp.where(mask[:, None, :, None], weights, 1 / x.shape[1])
            y = weighted_values(weights, v)
        else:
            y = attention(q, k, v, **options, dropout=self.dropout, key=key)
            if uniform_padding and mask is not None:
                y = jnp.where(mask[..., None, None], y, v.mean(1, keepdims=True))
        return self.out(y.reshape(x.shape)), weights

    def step(
        self, x_bd: jax.Array, keys_blhk: jax.Array, values_blhk: jax.Array, position: jax.Array, window: int | jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One query of causal attention, at `position`, after the keys and values of the positions before it.

        Returns:
          the output (batch, d_model), and both caches with this position filled in.
        """
        q, k, v = (project(x_bd).reshape(x_bd.shape[0], self.n_heads, -1) for project in (self.query, self.key, self.value))
        keys_blhk = keys_blhk.at[:, position].set(k.astype(keys_blhk.dtype))
        values_blhk = values_blhk.at[:, position].set(v.astype(values_blhk.dtype))
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores_bhl = jnp.einsum("bhk,blhk->bhl", q, keys_blhk, preferred_element_type=jnp.float32) * scale
        distance_l = position - jnp.arange(keys_blhk.shape[1])
        seen_l = distance_l >= 0 if window is None else (distance_l >= 0) & (distance_l < window)
        weights_bhl = jax.nn.softmax(jnp.where(seen_l, scores_bhl, -jnp.inf), axis=-1)
        y_bhk = jnp.einsum("bhl,blhk->bhk", weights_bhl.astype(values_blhk.dtype), values_blhk)
        return self.out(y_bhk.reshape(x_bd.shape)), keys_blhk, values_blhk
