"""The selective scan as others compute it: peers of the parts `scan` and `gpu`. Own minimal equivalents.

u and delta are (batch, length, channels) for jax and (batch, channels, length) for torch, B and C (batch, length, n); delta is positive.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def associative_scan(u: Any, delta: Any, A: Any, B: Any, C: Any) -> Any:
    """All states at once by `jax.lax.associative_scan`: logarithmic depth, memory for length x channels x n."""
    import jax
    import jax.numpy as jnp

    def then(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    decays, added = jnp.exp(delta[..., None] * A), (delta * u)[..., None] * B[:, :, None]
    _, states = jax.lax.associative_scan(then, (decays, added), axis=1)
    return jnp.einsum("bldn,bln->bld", states, C)


def torch_loop(u: Any, delta: Any, A: Any, B: Any, C: Any) -> Any:
    """Step by step, as the slow path of transformers' Mamba goes, after exp(delta A) and delta B u of all positions.

    It takes the positions apart by `unbind`: indexing them one by one, as the original does, makes the backward pass quadratic in length.
    """
    import torch

    decays = torch.exp(delta[..., None] * A[None, :, None])
    added = delta[..., None] * B[:, None] * u[..., None]
    state, outputs = torch.zeros_like(decays[:, :, 0]), []
    for decay, add, c in zip(decays.unbind(2), added.unbind(2), C.unbind(1)):
        state = decay * state + add
        outputs.append(torch.matmul(state, c.unsqueeze(-1))[:, :, 0])
    return torch.stack(outputs, -1)


def torch_associative(u: Any, delta: Any, A: Any, B: Any, C: Any) -> Any:
    """The same recurrence by torch's own associative scan, which is meant to be compiled, on a GPU."""
    import torch
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    decays = torch.exp(delta[..., None] * A[None, :, None])
    added = delta[..., None] * B[:, None] * u[..., None]
    _, states = scan(lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (decays, added), dim=2, combine_mode="pointwise")
    return torch.einsum("bdln,bln->bdl", states, C)


def mambapy(u: Any, delta: Any, A: Any, B: Any, C: Any) -> Any:
    """The parallel scan of the package mambapy (Blelloch's algorithm in torch)."""
    import torch
    from mambapy.pscan import pscan

    u, delta = u.transpose(1, 2), delta.transpose(1, 2)
    states = pscan(torch.exp(delta[..., None] * A), (delta * u)[..., None] * B[:, :, None])
    return (states @ C.unsqueeze(-1)).squeeze(3).transpose(1, 2)


def torch_functions(
    function: Callable, arrays: tuple[np.ndarray, ...], cotangent: np.ndarray, device: str = "cpu", dtype: str = "float32"
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(forward, forward + backward through u, delta, A, B, C) of a torch peer, with jax's arrays in torch's layout."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def tensor(x: np.ndarray, channels_first: bool) -> torch.Tensor:
        found = torch.from_numpy(np.ascontiguousarray(x.swapaxes(1, 2) if channels_first else x))
        return found.to(device, getattr(torch, dtype))

    x = [tensor(v, i < 2) for i, v in enumerate(arrays)]
    leaves = [v.clone().requires_grad_() for v in x]
    w = tensor(cotangent, True)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            out = function(*x)
        wait()
        return out

    def both() -> tuple[torch.Tensor, ...]:
        found = torch.autograd.grad((function(*leaves) * w).sum(), leaves)
        wait()
        return found

    return forward, both
