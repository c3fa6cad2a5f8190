"""The downstream decoder of the Caduceus and HyenaDNA evaluations: pool, then one linear layer.

Source: kuleshov-group/caduceus `src/tasks/decoders.py` (SequenceDecoder).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen.checkpoints.key_table import LINEAR, Row
from jaxgen.errors import InputError, nearest
from jaxgen.heads.pooling import pool
from jaxgen.layers.core import Linear, uniform_fan_in

# Public decoder state dict <-> ours.
KEY_TABLE = (Row("output_transform.weight", "linear.kernel", LINEAR), Row("output_transform.bias", "linear.bias"))
DECODER_MODES = ("pool", "last", "first", "sum", "ragged")


class SequenceHead(nnx.Module):
    """hidden (batch, positions, features) -> (batch, outputs).

    A conjoined input (batch, positions, features, 2), the hidden states of both strands, gives the mean of the two predictions.
    """

    def __init__(self, n_features: int, n_outputs: int, rngs: nnx.Rngs, *, pooling: str = "mean"):
        self.pooling = pooling
        self.linear = Linear(n_features, n_outputs, rngs, axes=("embed", None), bias_init=uniform_fan_in(n_features))

    def __call__(self, hidden: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        if hidden.ndim == 4:
            return (self(hidden[..., 0], mask) + self(hidden[..., 1], mask)) / 2
        return self.linear(pool(hidden, self.pooling, mask))


def restrict(hidden: jax.Array, mode: str, l_output: int | None = 0, lengths: jax.Array | None = None) -> jax.Array:
    """The published decoder's `mode` over (batch, positions, features), padding included.

    Args:
      mode: "pool" (running mean), "sum" (running sum), "last", "first", or "ragged" (drop what lies beyond the longest of `lengths`).
      l_output: positions kept; 0 keeps one and drops its axis, None keeps all.
    """
    n = hidden.shape[1] if l_output is None else max(l_output, 1)
    if mode == "last":
        kept = hidden[:, -n:]
    elif mode == "first":
        kept = hidden[:, :n]
    elif mode in ("pool", "sum"):
        running = jnp.cumsum(hidden, axis=1)
        if mode == "pool":
            running = running / jnp.arange(1, hidden.shape[1] + 1)[:, None]
        kept = running[:, -n:]
    elif mode == "ragged":
        if lengths is None:
            raise InputError("decoder mode 'ragged' needs the lengths of the sequences")
        return hidden[:, : int(lengths.max())]
    else:
        raise InputError(f"unknown decoder mode {mode!r}{nearest(mode, DECODER_MODES)}")
    return kept[:, 0] if l_output == 0 else kept
