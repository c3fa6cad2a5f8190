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


class IA3Linear(Linear):
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


class LoRALinear(Linear):
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


def merge_arrays(arrays: Mapping[str, Any], owners: Mapping[str, str]) -> dict[str, Any]:
    """Named arrays of a module without those of its adapters, whose effect moves into the kernels and biases that they belong to.

    Args:
      owners: layer -> the layer that lists what it shares.
    """
    merged = {name: x for name, x in arrays.items() if name.rpartition(".")[2] not in (*PARAMETERS, "lora_scale")}
    for kernel in [name for name in merged if name.endswith(".kernel")]:
        stem = kernel.removesuffix(".kernel")
        owner, bias = owners.get(stem, stem), f"{stem}.bias"
        if (scale := arrays.get(f"{owner}.ia3_in")) is not None:
            merged[kernel] = merged[kernel] * scale[..., :, None]
        if (scale := arrays.get(f"{stem}.ia3_out")) is not None:
            merged[kernel] = merged[kernel] * scale[..., None, :]
            if bias in merged:
                merged[bias] = merged[bias] * scale
        if (low := arrays.get(f"{owner}.lora_a")) is not None:
            merged[kernel] = merged[kernel] + (low @ arrays[f"{stem}.lora_b"]) * arrays[f"{stem}.lora_scale"][..., None, None]
    return merged
