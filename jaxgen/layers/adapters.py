"""Linear layers with a small trained correction: IA3 (Liu et al. 2022, arXiv 2205.05638) and LoRA (Hu et al. 2021, arXiv 2106.09685).

An adapted layer takes the place of a `Linear` and keeps the names of its parameters, so checkpoints of the base model still fit. In a
scanned stack the new parameters have the leading layer axis too. Layers that are one in public, such as the two halves of a gated network,
share what acts on their common input: the `owner`'s variable, which a state lists once, under the owner.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen.layers.core import Buffer, Linear, along_features, ones, param, uniform_fan_in, zeros

PARAMETERS = ("ia3_in", "ia3_out", "lora_a", "lora_b")
_PARTS = (*PARAMETERS, "lora_scale")


class _Adapted(Linear):
    """A `Linear` with some of `_PARTS`."""

    def folded(self) -> tuple[jax.Array, jax.Array | None]:
        return _fold(*super().folded(), {part: x[...] for part in _PARTS if (x := getattr(self, part, None)) is not None})


class IA3Linear(_Adapted):
    """A `Linear` whose input (y = (x l) W + b) or output (y = (x W + b) l) is scaled by a trained vector l, at first 1."""

    def __init__(self, base: Linear, rngs: nnx.Rngs, *, scale_input: bool, owner: Any = None):
        self.kernel, self.bias = base.kernel, base.bias
        *layers, n_in, n_out = base.kernel.shape
        axis_in, axis_out = base.kernel.get_metadata()["axes"]
        scale = param(rngs, ones, (*layers, n_in), (axis_in,), decay=False) if scale_input and owner is None else None
        self.ia3_in = owner.ia3_in if scale_input and owner else scale
        self.ia3_out = None if scale_input else param(rngs, ones, (*layers, n_out), (axis_out,), decay=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.ia3_in is not None:
            x = x * along_features(self.ia3_in[...], x)
        y = super().__call__(x)
        return y if self.ia3_out is None else y * along_features(self.ia3_out[...], y)


class LoRALinear(_Adapted):
    """y = x W + b + alpha / rank (x A) B, with A (in, rank) drawn at random and B (rank, out) at first 0."""

    def __init__(self, base: Linear, rngs: nnx.Rngs, *, rank: int, alpha: float, owner: Any = None):
        self.kernel, self.bias = base.kernel, base.bias
        *layers, n_in, n_out = base.kernel.shape
        axis_in, axis_out = base.kernel.get_metadata()["axes"]
        self.lora_a = owner.lora_a if owner else param(rngs, uniform_fan_in(n_in), (*layers, n_in, rank), (axis_in, None))
        self.lora_b = param(rngs, zeros, (*layers, rank, n_out), (None, axis_out))
        self.lora_scale = Buffer(jnp.full(layers, alpha / rank, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        low = x @ self.lora_a[...].astype(x.dtype)
        return super().__call__(x) + (low @ self.lora_b[...].astype(x.dtype)) * self.lora_scale[...].astype(x.dtype)


def _fold(kernel: Any, bias: Any, parts: Mapping[str, Any]) -> tuple[Any, Any]:
    """The kernel and bias of the plain layer that computes what an adapted one does; of a stack, with a leading layer axis."""
    if (scale := parts.get("ia3_in")) is not None:
        kernel = kernel * scale[..., :, None]
    if (scale := parts.get("ia3_out")) is not None:
        kernel, bias = kernel * scale[..., None, :], None if bias is None else bias * scale
    if (low := parts.get("lora_a")) is not None:
        kernel = kernel + (low @ parts["lora_b"]) * parts["lora_scale"][..., None, None]
    return kernel, bias


def merge_arrays(arrays: Mapping[str, Any], owners: Mapping[str, str]) -> dict[str, Any]:
    """Named arrays of a module without those of its adapters, whose effect moves into the kernels and biases that they belong to.

    Args:
      owners: layer -> the layer that lists what it shares.
    """
    merged = {name: x for name, x in arrays.items() if name.rpartition(".")[2] not in _PARTS}
    for kernel in [name for name in merged if name.endswith(".kernel")]:
        stem = kernel.removesuffix(".kernel")
        owner, bias = owners.get(stem, stem), f"{stem}.bias"
        parts = {part: arrays.get(f"{stem}.{part}", arrays.get(f"{owner}.{part}")) for part in _PARTS}
        merged[kernel], folded_bias = _fold(merged[kernel], merged.get(bias), parts)
        if bias in merged:
            merged[bias] = folded_bias
    return merged
