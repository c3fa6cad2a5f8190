"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752), exact at any length, in float32.

    x_t = exp(delta_t A) x_{t-1} + delta_t B_t u_t        y_t = sum_n C_t[n] x_t[n] + D u_t        out_t = y_t silu(z_t)

The state of one step is held as (batch, groups, n, channels): channels last, so that every operation is vectorised along them, and sums
over n and over channels are written as matrix products, which XLA's CPU backend computes several times faster than reductions.
Nothing of the size length x channels x n is ever stored: the backward pass keeps the states at the edges of chunks and recomputes the rest.
Kernels for GPU and TPU, with everything around the recurrence fused, are in selective_scan_kernels.py.

Inner names end in their axes: l length, b batch, d channels, g groups of channels that share B and C, c channels of a group, n state.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxgen.errors import InputError, nearest
from jaxgen.ops.partition import distributed, dividing_axes
from jaxgen.ops.selective_scan_kernels import kernel_scan, supports

IMPLEMENTATIONS = ("auto", "sequential", "blocked", "gpu", "tpu")
# States recomputed at a time in the backward pass: as many as stay in a CPU's cache, between these bounds.
_CACHED_ELEMENTS, _SHORTEST_CHUNK, _LONGEST_CHUNK = 1 << 19, 16, 128
# Independent rows (batch x channels x blocks) that keep an accelerator busy.
_PARALLEL_ROWS = 1 << 16


class Arguments(NamedTuple):
    """What `selective_scan` was given, B and C with their groups: arrays or None, or the shardings of them."""

    u_bld: Any
    delta_bld: Any
    A_dn: Any
    B_blgn: Any
    C_blgn: Any
    D_d: Any
    z_bld: Any
    bias_d: Any


@dataclasses.dataclass(frozen=True)
class Options:
    """How it was asked to scan."""

    softplus: bool
    reverse: bool
    implementation: str


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


def _step_by_step(inputs: Inputs, start_bgnc: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """(y (l, b, g, c), last state)."""
    return _scan_forward(inputs, start_bgnc, reverse)[0]


def _scan_forward(inputs: Inputs, start_bgnc: jax.Array, reverse: bool) -> tuple[Any, Any]:
    size = _chunk_length(inputs)

    def step(x: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        u, dt, b, c = item
        x = _advance(x, u, dt, inputs.decay_gnc, b)
        return x, _over_n(x, c)

    def chunk(x: jax.Array, items: Any) -> tuple[jax.Array, Any]:
        last, y = jax.lax.scan(step, x, items, reverse=reverse)
        return last, (y, x)

    items = tuple(_chunked(x, size) for x in (inputs.u_lbgc, inputs.dt_lbgc, inputs.b_lbgn, inputs.c_lbgn))
    last, (y, edges) = jax.lax.scan(chunk, start_bgnc, items, reverse=reverse)
    return (_joined(y, inputs.u_lbgc.shape[0]), last), (inputs, edges)


def _scan_backward(reverse: bool, residuals: tuple[Inputs, jax.Array], cotangents: tuple[jax.Array, jax.Array]) -> tuple[Inputs, jax.Array]:
    inputs, edges = residuals
    dy_lbgc, dlast_bgnc = cotangents
    size, length, decay = _chunk_length(inputs), inputs.u_lbgc.shape[0], inputs.decay_gnc
    ones_bgn = jnp.ones(inputs.b_lbgn.shape[1:])

    def states(x: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        u, dt, b = item
        return _advance(x, u, dt, decay, b), x

    def step(carry: Any, item: Any) -> tuple[Any, Any]:
        from_later, ddecay = carry
        u, dt, b, c, dy, before = item
        a = jnp.exp(dt[:, :, None, :] * decay)
        dx = from_later + _outer(dy, c)
        decayed = a * before
        dlog = dx * decayed
        db_u = _over_n(dx, b)
        ddt = _over_n(dlog * decay, ones_bgn) + db_u * u
        dc = _over_c(decayed + _outer(u * dt, b), dy)
        return (a * dx, ddecay + dlog * dt[:, :, None, :]), (db_u * dt, ddt, _over_c(dx, u * dt), dc)

    def chunk(carry: Any, item: Any) -> tuple[Any, Any]:
        (u, dt, b, c, dy), edge = item
        _, before = jax.lax.scan(states, edge, (u, dt, b), reverse=reverse)
        return jax.lax.scan(step, carry, (u, dt, b, c, dy, before), reverse=not reverse)

    items = tuple(_chunked(x, size) for x in (inputs.u_lbgc, inputs.dt_lbgc, inputs.b_lbgn, inputs.c_lbgn, dy_lbgc))
    carry = (dlast_bgnc, jnp.zeros_like(dlast_bgnc))
    (dstart, ddecay), grads = jax.lax.scan(chunk, carry, (items, edges), reverse=not reverse)
    du, ddt, db, dc = (_joined(x, length) for x in grads)
    return Inputs(du, ddt, ddecay.sum(0), db, dc), dstart


_scan = jax.custom_vjp(_step_by_step, nondiff_argnums=(2,))
_scan.defvjp(_scan_forward, _scan_backward)


def _compose(decays: jax.Array, states: jax.Array, start: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """Blocks in a row, each of which multiplies the state by `decays[k]` and adds `states[k]`: (state before each block, last state)."""

    def block(x: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        return item[0] * x + item[1], x

    last, before = jax.lax.scan(block, start, (decays, states), reverse=reverse)
    return before, last


def _blocked_scan(inputs: Inputs, start_bgnc: jax.Array, blocks: int, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """The same in `blocks` stretches side by side: their last states from zero, the state before each, then their outputs."""
    length, batch = inputs.u_lbgc.shape[:2]
    size = -(-length // blocks)

    def fold(x_lb: jax.Array) -> jax.Array:
        return jnp.moveaxis(_chunked(x_lb, size), 0, 1).reshape(size, -1, *x_lb.shape[2:])

    def unfold(x: jax.Array) -> jax.Array:
        return x.reshape(-1, batch, *x.shape[1:])

    folded = Inputs(*(x if x is inputs.decay_gnc else fold(x) for x in inputs))
    zero = jnp.zeros((folded.u_lbgc.shape[1], *start_bgnc.shape[1:]))
    _, states = _scan(folded, zero, reverse)
    decays = jnp.exp(folded.dt_lbgc.sum(0)[:, :, None, :] * folded.decay_gnc)
    before, last = _compose(unfold(decays), unfold(states), start_bgnc, reverse)
    y, _ = _scan(folded, before.reshape(zero.shape), reverse)
    y = jnp.moveaxis(y.reshape(size, -1, *inputs.u_lbgc.shape[1:]), 1, 0)
    return _joined(y, length), last


def _time_steps(x: Arguments, options: Options) -> jax.Array:
    dt = x.delta_bld.astype(jnp.float32)
    if x.bias_d is not None:
        dt = dt + x.bias_d.astype(jnp.float32)
    return jax.nn.softplus(dt) if options.softplus else dt


def _run_xla(x: Arguments, start_bdn: jax.Array, options: Options) -> tuple[jax.Array, jax.Array]:
    batch, length, channels = x.u_bld.shape
    groups, n = x.B_blgn.shape[2:]

    def time_major(h_bld: jax.Array) -> jax.Array:
        return jnp.swapaxes(h_bld, 0, 1).reshape(length, batch, groups, -1)

    f32 = functools.partial(jnp.asarray, dtype=jnp.float32)
    u, decay = f32(x.u_bld), jnp.swapaxes(f32(x.A_dn).reshape(groups, -1, n), 1, 2)
    b, c = (jnp.swapaxes(f32(m), 0, 1) for m in (x.B_blgn, x.C_blgn))
    inputs = Inputs(time_major(u), time_major(_time_steps(x, options)), decay, b, c)
    start = jnp.swapaxes(start_bdn.reshape(batch, groups, -1, n), 2, 3)
    blocks = min(-(-_PARALLEL_ROWS // (batch * channels)), -(-length // _LONGEST_CHUNK))
    if options.implementation == "sequential" or blocks < 2:
        y, last = _scan(inputs, start, options.reverse)
    else:
        y, last = _blocked_scan(inputs, start, blocks, options.reverse)
    y = jnp.swapaxes(y.reshape(length, batch, channels), 0, 1)
    if x.D_d is not None:
        y = y + f32(x.D_d) * u
    if x.z_bld is not None:
        y = y * jax.nn.silu(f32(x.z_bld))
    return y.astype(x.u_bld.dtype), jnp.swapaxes(last, 2, 3).reshape(start_bdn.shape)


def _run(x: Arguments, start_bdn: jax.Array, options: Options) -> tuple[jax.Array, jax.Array]:
    if options.implementation in ("gpu", "tpu"):
        return kernel_scan(options.implementation, *x, start_bdn, softplus=options.softplus, reverse=options.reverse)
    return _run_xla(x, start_bdn, options)


def _run_sharded(x: Arguments, start_bdn: jax.Array, options: Options) -> tuple[jax.Array, jax.Array]:
    """One stretch of the sequence per device along the mesh axis `sequence`; only states travel."""
    if jax.sharding.get_abstract_mesh().shape.get("sequence", 1) == 1:
        return _run(x, start_bdn, options)
    _, states = _run(x._replace(D_d=None, z_bld=None), jnp.zeros_like(start_bdn), options)
    decays = jnp.exp(_time_steps(x, options).sum(1)[..., None] * x.A_dn.astype(jnp.float32))
    decays, states = (jax.lax.all_gather(total, "sequence") for total in (decays, states))
    before, last = _compose(decays, states, start_bdn, options.reverse)
    out, _ = _run(x, before[jax.lax.axis_index("sequence")], options)
    return out, last


def _dispatch(x: Arguments, start_bdn: jax.Array, options: Options) -> tuple[jax.Array, jax.Array]:
    ways = jax.sharding.get_abstract_mesh().shape.get("sequence", 1)
    # XLA cuts its own scans along rows and channels, but not kernels.
    if ways == 1 and not (distributed() and options.implementation in ("gpu", "tpu")):
        return _run(x, start_bdn, options)
    (batch, length, channels), groups = x.u_bld.shape, x.B_blgn.shape[2]
    extra = -length % ways
    if extra:  # padding must not move the state: its time steps are zero, after bias and softplus too
        dt, wide = _time_steps(x, options), ((0, 0), (0, extra), (0, 0))
        padded = {"delta_bld": jnp.pad(dt, wide), "bias_d": None, "u_bld": jnp.pad(x.u_bld, wide)}
        padded |= {"z_bld": None if x.z_bld is None else jnp.pad(x.z_bld, wide)}
        padded |= {name: jnp.pad(getattr(x, name), (*wide, (0, 0))) for name in ("B_blgn", "C_blgn")}
        x, options = x._replace(**padded), dataclasses.replace(options, softplus=False)
    rows, features = dividing_axes(("data", "fsdp"), batch), dividing_axes(("tensor",), channels if groups == 1 else groups)
    wide, narrow = P(rows, "sequence", features), P(rows, "sequence", None if groups == 1 else features)
    specs = Arguments(wide, wide, P(features), narrow, narrow, P(features), wide, P(features))
    specs = Arguments(*(None if value is None else spec for value, spec in zip(x, specs)))
    state = P(rows, features)
    run = functools.partial(_run_sharded, options=options)
    # `last` is the same on every device of the axis, which shard_map cannot see.
    out, last = jax.shard_map(run, in_specs=(specs, state), out_specs=(wide, state), check_vma=False)(x, start_bdn)
    return out[:, :length], last


def _grouped(x: jax.Array, batch: int, length: int, channels: int, name: str) -> jax.Array:
    """B or C in any of its forms as (batch, length, groups, n)."""
    if x.ndim == 2 and x.shape[0] == channels:  # constant in time: every channel is a group of its own
        return jnp.broadcast_to(x, (batch, length, *x.shape))
    if x.ndim in (3, 4) and x.shape[:2] == (batch, length) and (x.ndim == 3 or channels % x.shape[2] == 0):
        return x[:, :, None] if x.ndim == 3 else x
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
    reverse: bool = False,
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
      reverse: whether to scan from the last position to the first; nothing is copied to do so.
      implementation: "sequential", step by step; "blocked", stretches of the sequence side by side; "gpu" or "tpu", the Pallas kernels
        ("blocked" if groups of channels are too narrow for them; interpreted, which is slow, on a CPU); "auto", "sequential" on a CPU
        and "blocked" elsewhere.

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
    b, c = _grouped(jnp.asarray(B), batch, length, channels, "B"), _grouped(jnp.asarray(C), batch, length, channels, "C")
    groups = max(b.shape[2], c.shape[2])
    b, c = (jnp.repeat(x, groups // x.shape[2], axis=2) for x in (b, c))
    start = jnp.zeros((batch, *A.shape)) if initial_state is None else jnp.asarray(initial_state, jnp.float32)
    if implementation == "auto":
        implementation = "sequential" if jax.default_backend() == "cpu" else "blocked"
    elif implementation in ("gpu", "tpu") and not supports(implementation, channels, groups):
        implementation = "blocked"
    x = Arguments(*(None if v is None else jnp.asarray(v) for v in (u, delta, A, b, c, D, z, delta_bias)))
    if length == 0:
        return x.u_bld, start
    return _dispatch(x, start, Options(delta_softplus, reverse, implementation))


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
    b, c = (x if x.shape == A.shape and x.ndim == 2 and x.shape[0] != u.shape[0] else x[:, None] for x in (B, C))
    z = None if z is None else z[:, None]
    options = {"delta_softplus": delta_softplus, "initial_state": state, "implementation": "sequential"}
    out, state = selective_scan(u[:, None], delta[:, None], A, b, c, D, z, delta_bias, **options)
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
