"""Part `gpu`: the HyenaDNA block on a GPU in float32 and bfloat16, and the selective scan (gpu_scan.py), against torch on the same GPU.

Leaves a note where there is none. Bandwidth of the block is what XLA counts as bytes accessed by the compiled program, over the time.
"""

from collections.abc import Iterator

from benchmarks import gpu_scan
from benchmarks.block import Jitted, jax_functions, torch_functions
from benchmarks.harness import Contender, Goal, Note, Options, Row, compare, have

SHAPES = ((32, 1024), (4, 8192), (1, 32768), (1, 131072))  # (batch, length)
SMOKE_SHAPES = ((2, 64),)
GOAL = Goal("ratio", ">=", 2.0)


def run(options: Options) -> Iterator[Row | Note]:
    import jax

    if jax.devices()[0].platform != "gpu":
        yield Note("gpu", f"skipped: jax runs on {jax.devices()[0].platform} here")
        return
    yield from measure(options, "cuda")


def measure(options: Options, torch_device: str) -> Iterator[Row | Note]:
    """The rows, on jax's first device and on `torch_device`."""
    import jax

    with_torch = have("torch") and _torch_has(torch_device)
    if not with_torch:
        yield Note("gpu", "no peer: this torch does not see the GPU")
    for dtype in ("float32", "bfloat16"):
        for batch, length in SMOKE_SHAPES if options.smoke else SHAPES:
            case, functions = jax_functions(batch, length, dtype=dtype, device=jax.devices()[0])
            peers = torch_functions(case, device=torch_device, dtype=dtype) if with_torch else {}
            for name, mine in functions.items():
                contenders = [Contender("jaxgen", mine)]
                contenders += [Contender(f"torch {torch_device}", peers[name])] if peers else []
                title = f"{dtype} {name} B={batch} L={length} d={case.d_model}"
                rows = compare("gpu", title, contenders, options.repeats, goal=GOAL if peers else None)
                yield from rows
                seconds = rows[0].ours / 1e3
                yield Row("gpu", f"{title}: tokens", batch * length / seconds / 1e6, "Mtokens/s")
                if moved := bytes_accessed(mine):
                    yield Row("gpu", f"{title}: memory", moved / seconds / 1e9, "GB/s")
    yield from gpu_scan.measure(options, torch_device if with_torch and torch_device != "cpu" else None)


def bytes_accessed(function: Jitted) -> float:
    """XLA's count for a compiled program; 0 where the backend gives none."""
    analysis = function.compiled().cost_analysis() or {}
    return float(analysis.get("bytes accessed", 0.0))


def _torch_has(device: str) -> bool:
    import torch

    return device == "cpu" or torch.cuda.is_available()
