"""The small modules that every architecture is made of.

Each parameter is born with the logical name of its axes (`axes`, mapped to the mesh by train/sharding.py) and whether weight decay
applies to it (`decay`). Parameters are float32; a module computes in the dtype of its input, norms in float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]


class Buffer(nnx.Variable):
    """A tensor that belongs to the model and its checkpoint, but is not trained."""


def normal(stddev: float) -> Initializer:
    return nnx.initializers.normal(stddev)


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for Linear and Conv weights and biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


zeros, ones = nnx.initializers.zeros, nnx.initializers.ones


def padded_size(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def param(rngs: nnx.Rngs, init: Initializer, shape: tuple[int, ...], axes: tuple[str | None, ...], *, decay: bool = True) -> nnx.Param:
    """A trained parameter with the logical names of its axes and its weight-decay group."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes, decay=decay)


def along_features(v: jax.Array, x: jax.Array) -> jax.Array:
    """A vector over the last axis in the shape and dtype of `x`.

    Said outright, its gradient is one sum over all other axes at once; left to implicit broadcasting it is several, which XLA's CPU backend
    computes many times slower for a batch of one long sequence.
    """
    return jax.lax.broadcast_in_dim(v.astype(x.dtype), x.shape, (x.ndim - 1,))


def _positions_are_sharded() -> bool:
    return jax.sharding.get_abstract_mesh().shape.get("sequence", 1) > 1


class Linear(nnx.Module):
    """y = x W + b with W (in, out)."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        rngs: nnx.Rngs,
        *,
        axes: tuple[str | None, str | None] = ("embed", "mlp"),
        use_bias: bool = True,
        init: Initializer | None = None,
        bias_init: Initializer = zeros,
    ):
        self.kernel = param(rngs, init or uniform_fan_in(n_in), (n_in, n_out), axes)
        self.bias = param(rngs, bias_init, (n_out,), axes[1:], decay=False) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        if x.ndim == 2 or _positions_are_sharded():
            y = x @ kernel
        else:  # one tall matrix: XLA's CPU backend transposes a 3-D activation for the gradient of the kernel
            y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
        return y if self.bias is None else y + along_features(self.bias[...], y)

    def folded(self) -> tuple[jax.Array, jax.Array | None]:
        """(W, b) with what an adapter does to them, for code that applies them itself."""
        return self.kernel[...], None if self.bias is None else self.bias[...]


class Embedding(nnx.Module):
    """Rows of a (vocabulary, features) table; `attend` is the tied output projection."""

    def __init__(self, n_tokens: int, n_features: int, rngs: nnx.Rngs, *, init: Initializer):
        self.table = param(rngs, init, (n_tokens, n_features), ("vocab", "embed"), decay=False)

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jnp.take(self.table[...], tokens, axis=0).astype(dtype)

    def shares(self, tokens: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """(..., vocabulary): how much of each row of the table an embedded token is; `shares(tokens) @ table` is the embedding."""
        return jax.nn.one_hot(tokens, self.table.shape[0], dtype=dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        return x @ self.table[...].astype(x.dtype).T


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32, returned in the dtype asked for."""

    def __init__(self, n_features: int, rngs: nnx.Rngs, *, eps: float = 1e-5):
        self.eps = eps
        self.scale = param(rngs, ones, (n_features,), ("embed",), decay=False)
        self.bias = param(rngs, zeros, (n_features,), ("embed",), decay=False)

    def __call__(self, x: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return (h * along_features(self.scale[...], h) + along_features(self.bias[...], h)).astype(dtype or x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32, returned in the dtype asked for."""

    def __init__(self, n_features: int, rngs: nnx.Rngs, *, eps: float = 1e-5):
        self.eps = eps
        # Weight decay applies: the published recipes exempt LayerNorm by class, and this is another class.
        self.scale = param(rngs, ones, (n_features,), ("embed",))

    def __call__(self, x: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return (h * along_features(self.scale[...], h)).astype(dtype or x.dtype)


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last, with PyTorch's running estimates (momentum 0.1, unbiased variance)."""

    def __init__(self, n_features: int, rngs: nnx.Rngs, *, eps: float = 1e-5, momentum: float = 0.1):
        self.eps, self.momentum = eps, momentum
        self.scale = param(rngs, ones, (n_features,), (None,), decay=False)
        self.bias = param(rngs, zeros, (n_features,), (None,), decay=False)
        self.mean = nnx.BatchStat(jnp.zeros(n_features))
        self.var = nnx.BatchStat(jnp.ones(n_features))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        h = x.astype(jnp.float32)
        if train:
            axes = tuple(range(h.ndim - 1))
            mean, var = h.mean(axes), h.var(axes)
            n = h.size // h.shape[-1]
            self.mean[...] += self.momentum * (mean - self.mean[...])
            self.var[...] += self.momentum * (var * n / max(n - 1, 1) - self.var[...])
        else:
            mean, var = self.mean[...], self.var[...]
        y = (h - mean) * jax.lax.rsqrt(var + self.eps) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)


class Conv1d(nnx.Module):
    """Convolution without padding over (batch, length, features), kernel (width, in, out)."""

    def __init__(self, n_in: int, n_out: int, width: int, rngs: nnx.Rngs):
        init = uniform_fan_in(n_in * width)
        self.kernel = param(rngs, init, (width, n_in, n_out), (None, "embed", "mlp"))
        self.bias = param(rngs, init, (n_out,), ("mlp",), decay=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(x, self.kernel[...].astype(x.dtype), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return y + self.bias[...].astype(x.dtype)


class CausalDepthwiseConv(nnx.Module):
    """y_t = sum_j w_j x_{t-width+1+j} + b per channel; kernel (width, channels). A few shifted products beat a grouped convolution.

    In `reverse` it runs from the last position to the first.
    """

    def __init__(self, n_features: int, width: int, rngs: nnx.Rngs, *, use_bias: bool = True):
        init = uniform_fan_in(width)
        self.kernel = param(rngs, init, (width, n_features), (None, "mlp"))
        self.bias = param(rngs, init, (n_features,), ("mlp",), decay=False) if use_bias else None

    def __call__(self, x: jax.Array, *, reverse: bool = False) -> jax.Array:
        length, width = x.shape[1], self.kernel.shape[0]
        taps = self.kernel[...].astype(x.dtype)[:: -1 if reverse else 1]
        padded = jnp.pad(x, ((0, 0), (0, width - 1) if reverse else (width - 1, 0), (0, 0)))
        y = functools.reduce(jnp.add, (padded[:, j : j + length] * along_features(taps[j], x) for j in range(width)))
        return y if self.bias is None else y + along_features(self.bias[...], x)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; `key=None` means evaluation."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0)
