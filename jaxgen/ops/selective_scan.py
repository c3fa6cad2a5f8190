"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752), exact at any length, in float32.

    x_t = exp(delta_t A) x_{t-1} + delta_t B_t u_t        y_t = sum_n C_t[n] x_t[n] + D u_t        out_t = y_t silu(z_t)

The state of one step is held as (batch, groups, n, channels): channels last, so that every operation is vectorised along them, and sums
over n and over channels are written as matrix products, which XLA's CPU backend computes several times faster than reductions.
Nothing of the size length x channels x n is ever stored: the backward pass keeps the states at the edges of chunks and recomputes the rest.

Inner names end in their axes: l length, b batch, g groups of channels that share B and C, c channels of a group, n state.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxgen.errors import InputError, nearest
from jaxgen.ops.partition import dividing_axes

IMPLEMENTATIONS = ("auto", "sequential", "blocked")
# States recomputed at a time in the backward pass: as many as stay in a CPU's cache, between these bounds.
_CACHED_ELEMENTS, _SHORTEST_CHUNK, _LONGEST_CHUNK = 1 << 19, 16, 128
# Independent rows (batch x channels x blocks) that keep an accelerator busy.
_PARALLEL_ROWS = 1 << 16


class Inputs(NamedTuple):
    """Time-major float32 inputs of the recurrence. `dt` is positive already; `decay` is A."""

    u_lbgc: jax.Array
    dt_lbgc: jax.Array
    decay_gnc: jax.Array
    b_lbgn: jax.Array
    c_lbgn: jax.Array


def _outer(x_bgc: jax.Array, v_bgn: jax.Array) -> jax.Array:
    return x_bgc[:, :, None, :] * v_bgn[..., None]


def _over_n(x_bgnc: jax.Array, v_bgn: jax.Array) -> jax.Array:
    return jnp.einsum("bgnc,bgn->bgc", x_bgnc, v_bgn, precision="highest")


def _over_c(x_bgnc: jax.Array, v_bgc: jax.Array) -> jax.Array:
    return jnp.einsum("bgnc,bgc->bgn", x_bgnc, v_bgc, precision="highest")


def _advance(x_bgnc: jax.Array, u_bgc: jax.Array, dt_bgc: jax.Array, decay_gnc: jax.Array, b_bgn: jax.Array) -> jax.Array:
    return jnp.exp(dt_bgc[:, :, None, :] * decay_gnc) * x_bgnc + _outer(u_bgc * dt_bgc, b_bgn)


def _chunk_length(inputs: Inputs) -> int:
    length, batch = inputs.u_lbgc.shape[:2]
    fit = _CACHED_ELEMENTS // max(batch * inputs.decay_gnc.size, 1)
    return min(max(fit, _SHORTEST_CHUNK), _LONGEST_CHUNK, length)


def _chunked(x_l: jax.Array, size: int) -> jax.Array:
    """(length, ...) -> (chunks, size, ...), padded with zeros: a step with dt = 0 and u = 0 leaves the state as it is."""
    chunks = -(-x_l.shape[0] // size)
    x_l = jnp.pad(x_l, ((0, chunks * size - x_l.shape[0]),) + ((0, 0),) * (x_l.ndim - 1))
    return x_l.reshape(chunks, size, *x_l.shape[1:])


def _joined(x: jax.Array, length: int) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])[:length]


@jax.custom_vjp
def _scan(inputs: Inputs, start_bgnc: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(y (l, b, g, c), last state), step by step."""
    return _scan_forward(inputs, start_bgnc)[0]


def _scan_forward(inputs: Inputs, start_bgnc: jax.Array) -> tuple[Any, Any]:
    size = _chunk_length(inputs)

    def step(x: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        u, dt, b, c = item
        x = _advance(x, u, dt, inputs.decay_gnc, b)
        return x, _over_n(x, c)

    def chunk(x: jax.Array, items: Any) -> tuple[jax.Array, Any]:
        last, y = jax.lax.scan(step, x, items)
        return last, (y, x)

    items = tuple(_chunked(x, size) for x in (inputs.u_lbgc, inputs.dt_lbgc, inputs.b_lbgn, inputs.c_lbgn))
    last, (y, edges) = jax.lax.scan(chunk, start_bgnc, items)
    return (_joined(y, inputs.u_lbgc.shape[0]), last), (inputs, edges)


def _scan_backward(residuals: tuple[Inputs, jax.Array], cotangents: tuple[jax.Array, jax.Array]) -> tuple[Inputs, jax.Array]:
    inputs, edges = residuals
    dy_lbgc, dlast_bgnc = cotangents
    size, length, decay = _chunk_length(inputs), inputs.u_lbgc.shape[0], inputs.decay_gnc
    ones_bgn = jnp.ones(inputs.b_lbgn.shape[1:])

    def states(x: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        u, dt, b = item
        return _advance(x, u, dt, decay, b), x

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        from_right, ddecay = carry
        u, dt, b, c, dy, before = item
        a = jnp.exp(dt[:, :, None, :] * decay)
        dx = from_right + _outer(dy, c)
        decayed = a * before
        dlog = dx * decayed
        db_u = _over_n(dx, b)
        ddt = _over_n(dlog * decay, ones_bgn) + db_u * u
        dc = _over_c(decayed + _outer(u * dt, b), dy)
        return (a * dx, ddecay + dlog * dt[:, :, None, :]), (db_u * dt, ddt, _over_c(dx, u * dt), dc)

    def chunk(carry: Any, item: Any) -> tuple[Any, Any]:
        (u, dt, b, c, dy), edge = item
        _, before = jax.lax.scan(states, edge, (u, dt, b))
        return jax.lax.scan(step, carry, (u, dt, b, c, dy, before), reverse=True)

    items = tuple(_chunked(x, size) for x in (inputs.u_lbgc, inputs.dt_lbgc, inputs.b_lbgn, inputs.c_lbgn, dy_lbgc))
    (dstart, ddecay), grads = jax.lax.scan(chunk, (dlast_bgnc, jnp.zeros_like(dlast_bgnc)), (items, edges), reverse=True)
    du, ddt, db, dc = (_joined(x, length) for x in grads)
    return Inputs(du, ddt, ddecay.sum(0), db, dc), dstart


_scan.defvjp(_scan_forward, _scan_backward)


def _compose(decays: jax.Array, states: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks in a row, each of which multiplies the state by `decays[k]` and adds `states[k]`: (state before each block, last state)."""

    def block(x: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        return item[0] * x + item[1], x

    last, before = jax.lax.scan(block, start, (decays, states))
    return before, last


def _total_decay(inputs: Inputs) -> jax.Array:
    return jnp.exp(inputs.dt_lbgc.sum(0)[:, :, None, :] * inputs.decay_gnc)


def _blocked_scan(inputs: Inputs, start_bgnc: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array]:
    """The same in `blocks` stretches side by side: their last states from zero, the state before each, then their outputs."""
    length, batch = inputs.u_lbgc.shape[:2]
    size = -(-length // blocks)

    def fold(x_lb: jax.Array) -> jax.Array:
        return jnp.moveaxis(_chunked(x_lb, size), 0, 1).reshape(size, -1, *x_lb.shape[2:])

    def unfold(x: jax.Array) -> jax.Array:
        return x.reshape(-1, batch, *x.shape[1:])

    folded = Inputs(*(x if x is inputs.decay_gnc else fold(x) for x in inputs))
    zero = jnp.zeros((folded.u_lbgc.shape[1], *start_bgnc.shape[1:]))
    _, states = _scan(folded, zero)
    before, last = _compose(unfold(_total_decay(folded)), unfold(states), start_bgnc)
    y, _ = _scan(folded, before.reshape(zero.shape))
    y = jnp.moveaxis(y.reshape(size, -1, *inputs.u_lbgc.shape[1:]), 1, 0)
    return _joined(y, length), last


def _run(inputs: Inputs, start_bgnc: jax.Array, implementation: str) -> tuple[jax.Array, jax.Array]:
    length, batch = inputs.u_lbgc.shape[:2]
    if implementation == "auto":
        implementation = "sequential" if jax.default_backend() == "cpu" else "blocked"
    rows = batch * inputs.u_lbgc.shape[2] * inputs.u_lbgc.shape[3]
    blocks = min(-(-_PARALLEL_ROWS // rows), -(-length // _LONGEST_CHUNK))
    if implementation == "sequential" or blocks < 2:
        return _scan(inputs, start_bgnc)
    return _blocked_scan(inputs, start_bgnc, blocks)


def _run_sharded(inputs: Inputs, start_bgnc: jax.Array, implementation: str) -> tuple[jax.Array, jax.Array]:
    """One stretch of the sequence per device along the mesh axis `sequence`; only states travel."""
    _, states = _run(inputs, jnp.zeros_like(start_bgnc), implementation)
    gathered = [jax.lax.all_gather(x, "sequence") for x in (_total_decay(inputs), states)]
    before, last = _compose(*gathered, start_bgnc)
    y, _ = _run(inputs, before[jax.lax.axis_index("sequence")], implementation)
    return y, last


def _dispatch(inputs: Inputs, start_bgnc: jax.Array, implementation: str) -> tuple[jax.Array, jax.Array]:
    ways = jax.sharding.get_abstract_mesh().shape.get("sequence", 1)
    if ways == 1:
        return _run(inputs, start_bgnc, implementation)
    length, batch, _, channels = inputs.u_lbgc.shape

    rows, features = dividing_axes(("data", "fsdp"), batch), dividing_axes(("tensor",), channels)
    padded = Inputs(*(x if x is inputs.decay_gnc else jnp.pad(x, ((0, -length % ways),) + ((0, 0),) * 3) for x in inputs))
    wide, narrow = P("sequence", rows, None, features), P("sequence", rows, None, None)
    specs = Inputs(wide, wide, P(None, None, features), narrow, narrow)
    state = P(rows, None, None, features)
    run = functools.partial(_run_sharded, implementation=implementation)
    # `last` is the same on every device of the axis, which shard_map cannot see.
    y, last = jax.shard_map(run, in_specs=(specs, state), out_specs=(wide, state), check_vma=False)(padded, start_bgnc)
    return y[:length], last


def _grouped(x: jax.Array, batch: int, length: int, channels: int, name: str) -> jax.Array:
    """B or C in any of its forms as (length, batch, groups, n)."""
    if x.ndim == 2 and x.shape[0] == channels:  # constant in time: every channel is a group of its own
        return jnp.broadcast_to(x, (length, batch, *x.shape))
    if x.ndim in (3, 4) and x.shape[:2] == (batch, length) and (x.ndim == 3 or channels % x.shape[2] == 0):
        return jnp.swapaxes(x[:, :, None] if x.ndim == 3 else x, 0, 1)
    shape = f"({batch}, {length}, n), ({batch}, {length}, groups, n) or ({channels}, n)"
    raise InputError(f"selective_scan: {name} has shape {x.shape}, expected {shape}")


def selective_scan(
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    delta_bias: jax.Array | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: jax.Array | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Selective scan over the second axis.

    On a mesh with an axis `sequence`, the length is cut over it. A NaN or a negative `delta` is computed with as it is; NaN reaches all
    later positions of its channel.

    Args:
      u: input (batch, length, channels), any float dtype; length may be 0.
      delta: time steps (batch, length, channels), before bias and softplus.
      A: real state matrix (channels, n), negative for a stable system.
      B: input matrix (batch, length, n); (batch, length, groups, n), where channel c uses group c // (channels / groups); or (channels, n).
      C: output matrix, in the forms of B.
      D: skip (channels,), or None.
      z: gate (batch, length, channels) before SiLU, or None.
      delta_bias: (channels,), or None.
      delta_softplus: whether time steps are softplus(delta + delta_bias).
      initial_state: (batch, channels, n), None for zeros.
      implementation: "auto"; "sequential", step by step; "blocked", stretches of the sequence side by side.

    Returns:
      out (batch, length, channels) in the dtype of `u`, and the last state (batch, channels, n) in float32, before D and z.

    Raises:
      InputError: shapes that do not fit, or an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"selective_scan: unknown implementation {implementation!r}{nearest(implementation, IMPLEMENTATIONS)}")
    batch, length, channels = u.shape
    if delta.shape != u.shape or A.shape[0] != channels or (z is not None and z.shape != u.shape):
        raise InputError(f"selective_scan: u {u.shape}, delta {delta.shape}, z {None if z is None else z.shape}, A {A.shape} do not fit")
    n_state = A.shape[1]
    f32 = functools.partial(jnp.asarray, dtype=jnp.float32)
    u32, dt = f32(u), f32(delta)
    if delta_bias is not None:
        dt = dt + f32(delta_bias)
    if delta_softplus:
        dt = jax.nn.softplus(dt)
    b, c = _grouped(f32(B), batch, length, channels, "B"), _grouped(f32(C), batch, length, channels, "C")
    groups = max(b.shape[2], c.shape[2])
    b, c = (jnp.repeat(x, groups // x.shape[2], axis=2) for x in (b, c))
    per_group = channels // groups

    def time_major(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, 0, 1).reshape(length, batch, groups, per_group)

    decay = jnp.swapaxes(f32(A).reshape(groups, per_group, n_state), 1, 2)
    start = jnp.zeros((batch, channels, n_state)) if initial_state is None else f32(initial_state)
    start = jnp.swapaxes(start.reshape(batch, groups, per_group, n_state), 2, 3)
    if length:
        y, last = _dispatch(Inputs(time_major(u32), time_major(dt), decay, b, c), start, implementation)
        y = jnp.swapaxes(y.reshape(length, batch, channels), 0, 1)
    else:
        y, last = u32, start
    if D is not None:
        y = y + f32(D) * u32
    if z is not None:
        y = y * jax.nn.silu(f32(z))
    return y.astype(u.dtype), jnp.swapaxes(last, 2, 3).reshape(batch, channels, n_state)


def selective_scan_step(
    state: jax.Array,
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    delta_bias: jax.Array | None = None,
    *,
    delta_softplus: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """One position of `selective_scan`: state (batch, channels, n), the others without their length axis -> (out, new state)."""
    rows = [x if x is None else x[:, None] for x in (u, delta, z)]
    b, c = (x if x.shape == A.shape and x.ndim == 2 and x.shape[0] != u.shape[0] else x[:, None] for x in (B, C))
    out, state = selective_scan(
        rows[0], rows[1], A, b, c, D, rows[2], delta_bias, delta_softplus=delta_softplus, initial_state=state, implementation="sequential"
    )
    return out[:, 0], state


def selective_scan_reference(
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    initial_state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The recurrence as it is written above, one position after another in the dtype of `u`: what `selective_scan` is tested against.

    B and C are (batch, length, n); there is no D, z, bias or softplus.
    """
    start = jnp.zeros((u.shape[0], *A.shape), u.dtype) if initial_state is None else initial_state

    def step(x_bdn: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        u_bd, dt_bd, b_bn, c_bn = item
        x_bdn = jnp.exp(dt_bd[..., None] * A) * x_bdn + (dt_bd * u_bd)[..., None] * b_bn[:, None]
        return x_bdn, (x_bdn * c_bn[:, None]).sum(-1)

    last, y = jax.lax.scan(step, start, tuple(jnp.swapaxes(x, 0, 1) for x in (u, delta, B, C)))
    return jnp.swapaxes(y, 0, 1), last
