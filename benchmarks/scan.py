"""Part `scan`: the selective scan on the CPU, forward and forward + backward, against a torch loop, mambapy and jax's associative scan.

All in float32, without gate and skip, which cost every contender the same. Before anything is timed, results are compared.
"""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import scan_peers
from benchmarks.harness import Contender, Goal, Note, Options, Row, compare, have

SHAPES, SMOKE_SHAPES = ((1024, 256), (4096, 256), (16384, 256)), ((32, 8),)  # (length, channels)
STATE = 16
GOAL = Goal("ratio", ">=", 10.0)
TOLERANCE = 1e-3


def inputs(length: int, channels: int, n: int = STATE) -> tuple[tuple[Any, ...], Any]:
    """((u, delta, A, B, C), cotangent) of one row, numpy float32, with time steps as Mamba starts with."""
    import numpy as np

    rng = np.random.default_rng(0)
    u, w = rng.standard_normal((2, 1, length, channels), np.float32)
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (1, length, channels))).astype(np.float32)
    A = -np.tile(np.arange(1, n + 1, dtype=np.float32), (channels, 1))
    B, C = rng.standard_normal((2, 1, length, n), np.float32)
    return (u, delta, A, B, C), w


def jax_functions(function: Callable, x: tuple[Any, ...], w: Any, device: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(forward, forward + backward through every input), jitted."""
    import jax
    import jax.numpy as jnp

    x, w = jax.device_put((x, w), device)
    forward = jax.jit(function)
    both = jax.jit(jax.grad(lambda x, w: jnp.vdot(function(*x).astype(jnp.float32), w)))
    return lambda: jax.block_until_ready(forward(*x)), lambda: jax.block_until_ready(both(x, w))


def run(options: Options) -> Iterator[Row | Note]:
    import jax

    from jaxgen.ops.selective_scan import selective_scan

    torch_peers = {"torch loop": scan_peers.torch_loop} if have("torch") else {}
    if not torch_peers:
        yield Note("scan", "torch is not installed, so only jax's associative scan is a peer (make bench installs it)")
    elif have("mambapy"):
        torch_peers["mambapy"] = scan_peers.mambapy
    else:
        yield Note("scan", "mambapy is not installed, so it is no peer (pip install --no-deps mambapy)")
    cpu = jax.devices("cpu")[0]
    for length, channels in SMOKE_SHAPES if options.smoke else SHAPES:
        x, w = inputs(length, channels)
        ours = jax_functions(lambda *x: selective_scan(*x)[0], x, w, cpu)
        peers = {name: scan_peers.torch_functions(peer, x, w) for name, peer in torch_peers.items()}
        peers["associative_scan"] = jax_functions(scan_peers.associative_scan, x, w, cpu)
        for name, peer in peers.items():
            check(f"L={length}, {name}", ours, peer, channels_first=name in torch_peers)
        for i, what in enumerate(("forward", "forward+backward")):
            for name, peer in peers.items():  # in pairs: after the associative scan, whoever is next takes up to three times longer
                contenders = [Contender("jaxgen", ours[i]), Contender(name, peer[i])]
                goal, title = GOAL if name == "torch loop" else None, f"{what} L={length} D={channels} N={STATE}"
                yield from compare("scan", title, contenders, options.repeats, goal=goal, clock=options.clock)


def check(what: str, ours: Any, theirs: Any, channels_first: bool) -> None:
    """Raises where a peer computes something else."""
    import numpy as np

    found, expected = [ours[0](), *ours[1]()], [theirs[0](), *theirs[1]()]
    for i, (a, b) in enumerate(zip(found, expected)):
        b = np.asarray(b).swapaxes(1, 2) if channels_first and i < 3 else np.asarray(b)
        worst = float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())
        if not worst < TOLERANCE:
            raise AssertionError(f"scan {what}: array {i} differs by {worst:.1e} of its largest value; nothing to compare")
