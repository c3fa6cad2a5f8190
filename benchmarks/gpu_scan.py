"""The selective scan on a GPU, for part `gpu`: bfloat16 inputs with bias, softplus, skip and gate, D 512, N 16.

Bandwidth counts every input and output once, at its own size: what the operation must move at the least.
"""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import scan_peers
from benchmarks.harness import Contender, Goal, Note, Options, Row, compare
from benchmarks.scan import inputs

LENGTHS, SMOKE_LENGTHS = (2048, 16384, 131072), (32,)
CHANNELS, STATE = 512, 16
GOAL = Goal("value", ">=", 70.0)
GB_PER_S = {"H100": 3350.0, "H200": 4800.0, "A100": 2039.0}  # NVIDIA's figures for the SXM boards


def measure(options: Options, torch_device: str | None) -> Iterator[Row | Note]:
    """Rows for XLA's blocks and, on a GPU, for the Pallas kernels; both against torch where it has a device and can compile the peer."""
    import jax

    device = jax.devices()[0]
    peak = next((speed for name, speed in GB_PER_S.items() if name in device.device_kind), None)
    for length in SMOKE_LENGTHS if options.smoke else LENGTHS:
        x, cotangent = arguments(length)
        names = ("gpu", "blocked") if device.platform == "gpu" else ("blocked",)
        functions = {name: jax_functions(name, x, cotangent) for name in names}
        if "gpu" in functions:
            yield Note("gpu", f"scan L={length}: kernels and XLA differ by {disagreement(functions):.1e} of each array's largest value")
        peer = torch_peer(length, torch_device) if torch_device else None
        if isinstance(peer, Note):
            yield peer
        for i, what in enumerate(("forward", "forward+backward")):
            moved = bytes_moved(x, backward=what != "forward")
            for name, mine in functions.items():
                title = f"scan {name} {what} L={length} D={CHANNELS} N={STATE}"
                contenders = [Contender("jaxgen", mine[i])]
                contenders += [Contender("torch.compile", peer[i])] if isinstance(peer, tuple) else []
                rows = compare("gpu", title, contenders, options.repeats)
                yield from rows
                speed = moved / rows[0].ours / 1e6
                yield Row("gpu", f"{title}: memory", speed, "GB/s")
                if peak:
                    yield Row("gpu", f"{title}: of the device's bandwidth", 100 * speed / peak, "%", goal=GOAL)


def arguments(length: int) -> tuple[dict[str, Any], Any]:
    """Everything a Mamba layer in bfloat16 gives to the scan, and a cotangent."""
    import jax
    import jax.numpy as jnp

    (u, delta, A, B, C), w = inputs(length, CHANNELS, STATE)
    x = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": A[:, 0] * 0 + 1, "z": u[:, ::-1], "delta_bias": A[:, 0] - 1}
    kept = ("A", "D", "delta_bias")
    x = {name: jnp.asarray(value, jnp.float32 if name in kept else jnp.bfloat16) for name, value in x.items()}
    return jax.block_until_ready((x, jnp.asarray(w, jnp.bfloat16)))


def jax_functions(implementation: str, x: dict[str, Any], cotangent: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import jax

    from jaxgen.ops.selective_scan import selective_scan

    def forward(x: dict[str, Any]) -> Any:
        return selective_scan(**x, delta_softplus=True, implementation=implementation)[0]

    def both(x: dict[str, Any], cotangent: Any) -> Any:
        out, pull = jax.vjp(forward, x)
        return out, pull(cotangent)[0]

    jitted, jitted_both = jax.jit(forward), jax.jit(both)
    return lambda: jax.block_until_ready(jitted(x)), lambda: jax.block_until_ready(jitted_both(x, cotangent))


def disagreement(functions: dict[str, Any]) -> float:
    """Largest difference of outputs and gradients between two implementations, relative to each array's largest value."""
    import jax
    import numpy as np

    found, expected = (jax.tree.map(lambda v: np.asarray(v, np.float32), both()) for _, both in functions.values())
    worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)), found, expected)
    return max(jax.tree.leaves(worst))


def bytes_moved(x: dict[str, Any], *, backward: bool) -> int:
    """Inputs in and output out; with the backward pass also inputs and cotangent in, and gradients out."""
    sizes = sum(value.nbytes for value in x.values())
    forward = sizes + x["u"].nbytes
    return forward + (2 * sizes + x["u"].nbytes if backward else 0)


def torch_peer(length: int, device: str) -> tuple[Callable[[], Any], Callable[[], Any]] | Note:
    """The recurrence alone by torch's associative scan, compiled; or why there is none."""
    import torch

    x, cotangent = inputs(length, CHANNELS, STATE)
    forward, both = scan_peers.torch_functions(torch.compile(scan_peers.torch_associative), x, cotangent, device, "bfloat16")
    try:
        forward(), both()
    except Exception as error:  # whatever this torch's compiler does not support, backward of the scan included
        return Note("gpu", f"scan L={length}: no torch.compile peer: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
    return forward, both
