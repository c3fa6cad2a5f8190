"""A HyenaDNA block in plain PyTorch, from the published equations (arXiv 2302.10866, 2306.15794): the peer of the `block` part.

Channels first around the convolutions, `torch.fft` of size 2 L, `nn.Conv1d` with groups: the way the public PyTorch code goes about it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def fft_conv(u_bdl: torch.Tensor, k_dl: torch.Tensor, skip_d: torch.Tensor) -> torch.Tensor:
    """Causal convolution per channel plus `skip * u`, in float32."""
    length = u_bdl.shape[-1]
    u32 = u_bdl.float()
    spectrum = torch.fft.rfft(u32, n=2 * length) * torch.fft.rfft(k_dl.float(), n=2 * length)
    return (torch.fft.irfft(spectrum, n=2 * length)[..., :length] + u32 * skip_d[:, None]).to(u_bdl.dtype)


class Filter(nn.Module):
    """The implicit filter: a sine MLP of position times an exponential window."""

    def __init__(self, d: int, l_max: int, width: int = 64, inner: int = 2, shift: float = 0.05):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n, width) for n in (5, *[width] * inner)])
        self.last = nn.Linear(width, d, bias=False)
        self.freq = nn.Parameter(torch.full((width,), 10.0))
        self.bias = nn.Parameter(torch.zeros(d))
        self.shift = shift
        self.register_buffer("z", torch.zeros(l_max, 5))
        self.register_buffer("t", torch.zeros(l_max))
        self.register_buffer("deltas", torch.zeros(d))

    def forward(self, length: int) -> torch.Tensor:
        """(d, length)."""
        h = self.z[:length]
        for layer in self.layers:
            h = torch.sin(self.freq * layer(h))
        window = torch.exp(-self.t[:length, None] * self.deltas.abs())
        return (self.last(h) * (window + self.shift)).T


class Block(nn.Module):
    """(hidden, residual) -> (MLP output, residual before it), as `jaxgen.models.hyenadna.Block`."""

    def __init__(self, d: int, d_inner: int, l_max: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-5), nn.LayerNorm(d, eps=1e-5)
        self.in_proj, self.out_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.short_filter = nn.Conv1d(3 * d, 3 * d, 3, groups=3 * d, padding=2)
        self.filter = Filter(d, l_max)
        self.fc1, self.fc2 = nn.Linear(d, d_inner), nn.Linear(d_inner, d)

    def mixer(self, x_bld: torch.Tensor) -> torch.Tensor:
        length = x_bld.shape[1]
        mixed = self.short_filter(self.in_proj(x_bld).transpose(1, 2))[..., :length]
        first, gate, v = mixed.chunk(3, dim=1)
        v = fft_conv(v * gate, self.filter(length), self.filter.bias)
        return self.out_proj((v * first).transpose(1, 2))

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = residual + hidden
        residual = residual + self.mixer(self.norm1(residual))
        return self.fc2(functional.gelu(self.fc1(self.norm2(residual)), approximate="tanh")), residual


def state_dict_of(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays of a jaxgen block (or of its gradients) under this module's names and layouts."""
    state = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        if module == "short_filter" or module == "mixer.short_filter":
            array = array.T[:, None] if leaf == "kernel" else array
        elif leaf == "kernel":
            array = array.T
        leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        state[f"{module.removeprefix('mixer.')}.{leaf}"] = torch.from_numpy(np.array(array, order="C"))
    return state
