"""Part `fft`: the long convolution by FFT, forward and forward + backward, against torch.fft."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import Contender, Note, Options, Row, compare, have

CHANNELS = 256
SHAPES = ((8, 1024), (2, 8192), (1, 32768))  # (batch, length)
SMOKE_SHAPES = ((2, 64),)


def run(options: Options) -> Iterator[Row | Note]:
    """Each library gets its natural layout: ours (batch, length, channels), torch (batch, channels, length). Both on the CPU."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxgen.ops.fft_conv import causal_fft_conv

    if not have("torch"):
        yield Note("fft", "torch is not installed, so there is no peer (make bench installs it)")
    rng = np.random.default_rng(0)

    def loss(u: jax.Array, k: jax.Array, skip: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.vdot(causal_fft_conv(u, k, skip), w)

    forward, both = jax.jit(causal_fft_conv), jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    cpu = jax.devices("cpu")[0]
    for batch, length in SMOKE_SHAPES if options.smoke else SHAPES:
        u, w = (rng.standard_normal((batch, length, CHANNELS), np.float32) for _ in range(2))
        k, skip = rng.standard_normal((length, CHANNELS), np.float32), rng.standard_normal(CHANNELS, np.float32)
        args = [jax.device_put(x, cpu) for x in (u, k, skip, w)]
        ours = (lambda a=args: jax.block_until_ready(forward(*a[:3])), lambda a=args: jax.block_until_ready(both(*a)))
        peers = torch_functions(u, k, skip, w) if have("torch") else (None, None)
        for name, mine, peer in zip(("forward", "forward+backward"), ours, peers):
            contenders = [Contender("jaxgen", mine)] + ([Contender("torch.fft", peer)] if peer else [])
            yield from compare("fft", f"{name} B={batch} L={length} D={CHANNELS}", contenders, options.repeats, clock=options.clock)


def torch_functions(*arrays: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(forward, forward + backward) of the same convolution in torch; arrays are u, k, skip and the cotangent, in our layout."""
    import torch

    from benchmarks.torch_hyena import fft_conv

    u, k, skip, w = (torch.from_numpy(x.swapaxes(-1, -2).copy() if x.ndim > 1 else x) for x in arrays)
    leaves = [x.clone().requires_grad_() for x in (u, k, skip)]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return fft_conv(u, k, skip)

    def both() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((fft_conv(*leaves) * w).sum(), leaves)

    return forward, both
