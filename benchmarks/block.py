"""Part `block`: one HyenaDNA block (d 256, as tiny_1k_d256) against the same block in torch, with the same weights.

Backward is through every parameter and the input. Before anything is timed, outputs and gradients of the two are compared.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import Contender, Goal, Note, Options, Row, compare, have

SHAPES = ((8, 1024), (2, 8192), (1, 32768))  # (batch, length)
SMOKE_SHAPES = ((2, 64),)
GOAL = Goal("ratio", ">=", 2.0)
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Case:
    """One block with its inputs, as numpy arrays: `params` by dotted name, (b, l, d) hidden, residual and cotangents."""

    d_model: int
    d_inner: int
    l_max: int
    params: dict[str, Any]
    hidden: Any
    residual: Any
    cotangents: tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class Jitted:
    """A jitted function with its arguments; returns when the result is there."""

    function: Any
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        import jax

        return jax.block_until_ready(self.function(*self.arguments))

    def compiled(self) -> Any:
        """The executable, for its cost analysis."""
        return self.function.lower(*self.arguments).compile()


def run(options: Options) -> Iterator[Row | Note]:
    import jax

    if not have("torch"):
        yield Note("block", "torch is not installed, so there is no peer (make bench installs it)")
    for batch, length in SMOKE_SHAPES if options.smoke else SHAPES:
        case, functions = jax_functions(batch, length, device=jax.devices("cpu")[0])
        peers = torch_functions(case) if have("torch") else None
        if peers:
            worst = disagreement(functions["forward+backward"](), peers["forward+backward"]())
            if not worst < TOLERANCE:
                raise AssertionError(f"block L={length}: jaxgen and torch differ by {worst:.1e} of the largest value; nothing to compare")
            yield Note("block", f"L={length}: outputs and gradients agree with torch to {worst:.0e} of each array's largest value")
        for name, mine in functions.items():
            contenders = [Contender("jaxgen", mine)]
            if peers:
                contenders.append(Contender("torch", peers[name]))
            title = f"{name} B={batch} L={length} d={case.d_model}"
            yield from compare("block", title, contenders, options.repeats, goal=GOAL if peers else None, clock=options.clock)


def jax_functions(
    batch: int, length: int, *, dtype: str = "float32", device: Any = None, d_model: int = 256
) -> tuple[Case, dict[str, Jitted]]:
    """The block and its jitted `forward` -> outputs and `forward+backward` -> (outputs, gradients by name)."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from jaxgen.layers.variables import named_arrays
    from jaxgen.models.hyenadna import Block, Config

    config = Config(d_model=d_model, d_inner=4 * d_model, l_max=length + 2)
    with jax.default_device(device):
        graphdef, params, buffers = nnx.split(Block(config, nnx.Rngs(0)), nnx.Param, ...)
    rng = np.random.default_rng(0)
    hidden, residual, w0, w1 = (rng.standard_normal((batch, length, d_model), np.float32) for _ in range(4))
    on_device = jax.device_put((hidden.astype(jnp.dtype(dtype)), residual, w0, w1), device)

    def apply(params: Any, buffers: Any, hidden: jax.Array, residual: jax.Array) -> tuple[jax.Array, jax.Array]:
        return nnx.merge(graphdef, params, buffers)(hidden, residual, None)

    def loss(params: Any, hidden: jax.Array, residual: jax.Array, buffers: Any, w0: jax.Array, w1: jax.Array) -> tuple[jax.Array, Any]:
        out = apply(params, buffers, hidden, residual)
        return jnp.vdot(out[0].astype(jnp.float32), w0) + jnp.vdot(out[1].astype(jnp.float32), w1), out

    def both(params: Any, buffers: Any, hidden: jax.Array, residual: jax.Array, w0: jax.Array, w1: jax.Array) -> Any:
        (_, out), (d_params, d_hidden, _) = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, hidden, residual, buffers, w0, w1)
        return out, named_arrays(d_params) | {"hidden": d_hidden}

    functions = {
        "forward": Jitted(jax.jit(apply), (params, buffers, *on_device[:2])),
        "forward+backward": Jitted(jax.jit(both), (params, buffers, *on_device)),
    }
    arrays = {name: np.asarray(x) for name, x in (named_arrays(params) | named_arrays(buffers)).items()}
    return Case(d_model, 4 * d_model, length + 2, arrays, hidden, residual, (w0, w1)), functions


def torch_functions(case: Case, *, device: str = "cpu", dtype: str = "float32") -> dict[str, Callable[[], Any]]:
    """The same functions with the same weights in torch, on all cores; below float32 under autocast, as people train."""
    import torch

    from benchmarks.torch_hyena import Block, state_dict_of

    block = Block(case.d_model, case.d_inner, case.l_max)
    block.load_state_dict(state_dict_of(case.params))
    block = block.to(device)
    hidden, residual, w0, w1 = (torch.from_numpy(x).to(device) for x in (case.hidden, case.residual, *case.cotangents))
    leaves = dict(block.named_parameters()) | {
        "hidden": hidden.clone().requires_grad_(),
        "residual": residual.clone().requires_grad_(),
    }
    autocast = torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32")

    def forward() -> Any:
        with torch.no_grad(), autocast:
            out = block(hidden, residual)
        _wait(device)
        return out

    def both() -> Any:
        with autocast:
            out = block(leaves["hidden"], leaves["residual"])
        loss = (out[0].float() * w0).sum() + (out[1].float() * w1).sum()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
        _wait(device)
        return out, gradients

    return {"forward": forward, "forward+backward": both}


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def disagreement(ours: Any, theirs: Any) -> float:
    """The largest difference between outputs and gradients of the two, each relative to the array's largest value."""
    import numpy as np

    from benchmarks.torch_hyena import state_dict_of

    (out, gradients), (their_out, their_gradients) = ours, theirs
    named = state_dict_of({name: np.asarray(x) for name, x in gradients.items() if name != "hidden"})
    pairs = [(np.asarray(a), b.detach().numpy()) for a, b in zip(out, their_out)]
    pairs += [(array.numpy(), their_gradients[name].numpy()) for name, array in named.items()]
    pairs.append((np.asarray(gradients["hidden"]), their_gradients["hidden"].numpy()))
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)
