"""A stack of equal blocks as one scanned module: compile time does not grow with depth."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxgen.errors import InputError, nearest

REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

UNROLL_UP_TO = 4


def make_stack(make_block: Callable[[nnx.Rngs], nnx.Module], n_layer: int, rngs: nnx.Rngs) -> nnx.Module:
    """`n_layer` blocks as one module whose variables have a leading layer axis."""
    return nnx.vmap(make_block, in_axes=0, out_axes=0)(rngs.split(n_layer))


def scan_stack(
    stack: nnx.Module, step: Callable[..., tuple[Any, Any]], carry: Any, *, per_layer: Any = None, remat: str = "none"
) -> tuple[Any, Any]:
    """Run `step(block, carry) -> (carry, collected)` over the blocks of a stack; with `per_layer`, `step(block, carry, its part of that)`.

    `per_layer` is a tree of arrays with a leading layer axis: what differs between the layers and is no parameter, such as random keys.
    `remat` ("none", "full", "dots") says what the backward pass recomputes; it never changes parameter names.

    Returns:
      the last carry, and what was collected with a leading layer axis.
    """
    if remat not in REMAT_POLICIES:
        raise InputError(f"unknown remat policy {remat!r}{nearest(remat, REMAT_POLICIES)}")
    graphdef, variables = nnx.split(stack)

    def body(carry: Any, layer: tuple[nnx.State, Any]) -> tuple[Any, Any]:
        variables, part = layer
        return step(nnx.merge(graphdef, variables), carry, *(() if per_layer is None else (part,)))

    if remat != "none":
        # prevent_cse is for straight-line code; inside a scan it only costs time.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    # A few layers are laid out one after another: the loop's copies of saved activations cost more than the compile time they save.
    n_layer = jax.tree.leaves(variables)[0].shape[0]
    return jax.lax.scan(body, carry, (variables, per_layer), unroll=n_layer if n_layer <= UNROLL_UP_TO else 1)
