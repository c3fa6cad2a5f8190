"""Long causal convolution by FFT, in float32.

y_t = sum_s k_s u_{t-s}: the operator behind Hyena (arXiv 2302.10866). Cost is O(L log L) per channel.

Three facts shape this file. XLA's FFT wants float32 (or float64) and the last axis. On CPU, an FFT that XLA fuses with its
neighbours runs many times slower, hence the barriers. And XLA's partitioner gathers the whole batch before an FFT, hence the explicit
`shard_map`: each device transforms its own rows and channels; a sharded length becomes sharded channels by one all-to-all.
"""

import jax
import jax.numpy as jnp
import scipy.fft
from jax.sharding import PartitionSpec as P

from jaxgen.ops.partition import distributed, dividing_axes

_isolate = jax.lax.optimization_barrier


def fft_length(length: int) -> int:
    """Smallest fast transform length that keeps a causal convolution of `length` samples free of wrap-around."""
    if jax.default_backend() == "tpu":
        return 1 << (2 * length - 1).bit_length()
    return max(2, int(scipy.fft.next_fast_len(2 * length - 1, real=True) or 0))


def _convolve(u_bld: jax.Array, k_ld: jax.Array) -> jax.Array:
    length = u_bld.shape[1]
    n = fft_length(length)
    pad = (0, n - length)
    u_bdn = _isolate(jnp.pad(jnp.swapaxes(u_bld, 1, 2), ((0, 0), (0, 0), pad)))
    k_dn = _isolate(jnp.pad(k_ld.T, ((0, 0), pad)))
    spectrum_bdf = _isolate(_isolate(jnp.fft.rfft(u_bdn)) * _isolate(jnp.fft.rfft(k_dn)))
    y_bdn = _isolate(jnp.fft.irfft(spectrum_bdf, n))
    return jnp.swapaxes(y_bdn[..., :length], 1, 2)


def _partition(batch: int, channels: int) -> tuple[P, P] | None:
    """Specs of input and filter on the mesh in force: rows over (data, fsdp), channels over (tensor, sequence) where they divide."""
    if not distributed():
        return None
    rows, features = dividing_axes(("data", "fsdp"), batch), dividing_axes(("tensor", "sequence"), channels)
    return P(rows, None, features), P(None, features)


def causal_fft_conv(u: jax.Array, k: jax.Array, skip: jax.Array | None = None) -> jax.Array:
    """Causal convolution of every channel with its own filter, plus an optional skip term.

    Args:
      u: input (batch, length, channels), any float dtype.
      k: filter (length, channels), shared by the batch.
      skip: (channels,); adds `skip * u`.

    Returns:
      (batch, length, channels) in the dtype of `u`; computed in float32.
    """
    u32, k32 = u.astype(jnp.float32), k.astype(jnp.float32)
    specs = _partition(u.shape[0], u.shape[2])
    convolve = _convolve if specs is None else jax.shard_map(_convolve, in_specs=specs, out_specs=specs[0])
    y = convolve(u32, k32)
    if skip is not None:
        # An explicit broadcast, as in layers.core.along_features: its gradient is one sum.
        y = y + u32 * jax.lax.broadcast_in_dim(skip.astype(jnp.float32), u32.shape, (2,))
    return y.astype(u.dtype)


def causal_conv_reference(u: jax.Array, k: jax.Array, skip: jax.Array | None = None) -> jax.Array:
    """The definition, O(L^2): what `causal_fft_conv` is tested against."""
    length = u.shape[1]
    lag = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    toeplitz_tsd = jnp.where(lag[..., None] >= 0, k[jnp.maximum(lag, 0)], 0)
    y = jnp.einsum("tsd,bsd->btd", toeplitz_tsd, u, precision="highest")
    return y if skip is None else y + u * skip
