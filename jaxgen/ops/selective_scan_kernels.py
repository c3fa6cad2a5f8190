"""Pallas kernels of the selective scan for GPU (Triton) and TPU (Mosaic), forward and backward.

A program owns a block of channels of one row and walks through time with its state (n, channels) in registers. It reads u, delta, z, B and
C once, in their own dtypes, and fuses bias, softplus, skip and gate in float32. Of the states, only those before every `_CHUNK` positions
are written; the backward kernel walks from the end and recomputes the others from them. A scan in reverse walks the other way over the
same arrays.

The two targets share the kernel bodies and differ in three things:

- GPU programs run side by side, so a long sequence is also cut into stretches: one kernel gives what each adds to the state, an associative
  scan the state before each (or, for gradients, after each), and then all stretches run at once. Programs on a TPU core run one after
  another: the stretches of a sequence follow each other and the state stays in the output block `last`.
- Triton reads and writes single positions; Mosaic reads tiles and takes rows from them.
- Channels are taken by 32 (a warp, one channel per thread) or by 128 (the lanes of a TPU).

dB and dC are sums over channels: each block writes its own part and the parts are summed afterwards, so results are deterministic.

State of things: interpreted, the kernels agree with the definition; they compile for TPU v4, v5e and v6e, and to Triton programs. Neither
target has been run or timed, which is why `selective_scan` takes them only when asked to. Triton rather than Mosaic GPU, because it lowers
without a GPU and has one interface in all supported versions of JAX; since 0.11 JAX warns that it will go.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

_CHUNK, _INNER = 16, 4  # positions between two stored states; positions whose states the backward kernel holds at a time
_CHANNELS = {"gpu": 32, "tpu": 128}
_GPU_PROGRAMS, _SHORTEST_STRETCH = 4096, 64  # as many one-warp programs keep a large GPU busy
_TPU_STRETCH = 256  # positions in VMEM at a time


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed when a kernel is compiled.

    Attributes:
      target: "gpu" or "tpu".
      length: positions that count; those behind it are padding, which leaves the state as it is.
      stretch: positions per program.
      stretches: programs per sequence.
      softplus: whether time steps are softplus(delta + bias).
      reverse: from the last position to the first.
    """

    target: str
    length: int
    stretch: int
    stretches: int
    softplus: bool
    reverse: bool

    @property
    def parallel(self) -> bool:
        """Whether stretches run side by side, each from a state of its own."""
        return self.target == "gpu"

    def backwards(self) -> "Plan":
        """The same, walked the other way."""
        return dataclasses.replace(self, reverse=not self.reverse)


def supports(target: str, channels: int, groups: int) -> bool:
    """Whether there is a kernel for so many channels of which each of `groups` shares B and C."""
    return groups == 1 or (channels // groups) % _CHANNELS[target] == 0


# Inside a kernel: chunks of `_CHUNK` positions as lists of rows (1, features) or columns (features, 1).


def _rows(ref: Any, at: Any, plan: Plan) -> list[jax.Array]:
    if plan.target == "tpu":
        tile = ref[pl.ds(at, _CHUNK), :].astype(jnp.float32)
        return [tile[i : i + 1] for i in range(_CHUNK)]
    return [ref[pl.ds(at + i, 1), :].astype(jnp.float32) for i in range(_CHUNK)]


def _columns(ref: Any, at: Any, plan: Plan) -> list[jax.Array]:
    if plan.target == "tpu":
        tile = ref[pl.ds(at, _CHUNK), :].astype(jnp.float32).T
        return [tile[:, i : i + 1] for i in range(_CHUNK)]
    return [row.reshape(-1, 1) for row in _rows(ref, at, plan)]


def _store_rows(ref: Any, at: Any, rows: list[Any], plan: Plan) -> None:
    if plan.target == "tpu":
        ref[pl.ds(at, _CHUNK), :] = jnp.concatenate(rows, 0).astype(ref.dtype)
        return
    for i, row in enumerate(rows):
        ref[pl.ds(at + i, 1), :] = row.astype(ref.dtype)


def _store_columns(ref: Any, at: Any, columns: list[Any], plan: Plan) -> None:
    if plan.target == "tpu":
        ref[pl.ds(at, _CHUNK), :] = jnp.concatenate(columns, 1).T
        return
    _store_rows(ref, at, [column.reshape(1, -1) for column in columns], plan)


def _over_n(x_nc: jax.Array) -> jax.Array:
    return x_nc.sum(0, keepdims=True)


def _over_c(x_nc: jax.Array) -> jax.Array:
    return x_nc.sum(1, keepdims=True)


def _sigmoid(x: jax.Array) -> jax.Array:
    return 1.0 / (1.0 + jnp.exp(-x))


def _order(plan: Plan) -> list[int]:
    """The positions of a chunk as they are walked through."""
    return list(range(_CHUNK))[:: -1 if plan.reverse else 1]


def _stretch_index(k: Any, plan: Plan) -> Any:
    """Which stretch the program k of a sequence works on: any order will do side by side, not one after another."""
    return plan.stretches - 1 - k if plan.reverse and not plan.parallel else k


def _walk(plan: Plan, chunk: Callable[[Any, Any, Any], Any], carry: Any) -> Any:
    """`carry = chunk(index, first position, carry)` over the chunks of a stretch."""
    chunks = plan.stretch // _CHUNK

    def body(i: Any, carry: Any) -> Any:
        index = chunks - 1 - i if plan.reverse else i
        return chunk(index, pl.multiple_of(index * _CHUNK, _CHUNK), carry)

    return jax.lax.fori_loop(0, chunks, body, carry)


def _carried(plan: Plan, refs: list[Any], starts: list[Any]) -> list[jax.Array]:
    """What is carried into this stretch: `starts` (None for zeros), or what the stretch before left in `refs` if they follow each other."""

    def value(ref: Any, start: Any) -> jax.Array:
        return jnp.zeros(ref.shape, ref.dtype) if start is None else start[...]

    if plan.parallel:
        return [value(ref, start) for ref, start in zip(refs, starts)]

    @pl.when(pl.program_id(2) == 0)
    def begin() -> None:
        for ref, start in zip(refs, starts):
            ref[...] = value(ref, start)

    return [ref[...] for ref in refs]


def _counted(plan: Plan) -> Any:
    """How many positions from the start of this stretch on are not padding."""
    return plan.length - _stretch_index(pl.program_id(2), plan) * plan.stretch


def _time_steps(delta_ref: Any, bias_ref: Any, at: Any, counted: Any, plan: Plan) -> tuple[list[jax.Array], list[jax.Array]]:
    """(time steps, their derivatives by delta) of a chunk, zero at padding."""
    steps, slopes = [], []
    for i, delta in enumerate(_rows(delta_ref, at, plan)):
        raw = delta + bias_ref[...]
        step, slope = raw, jnp.ones_like(raw)
        if plan.softplus:
            step, slope = jnp.maximum(raw, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(raw))), _sigmoid(raw)
        counts = at + i < counted
        steps.append(jnp.where(counts, step, 0.0))
        slopes.append(jnp.where(counts, slope, 0.0))
    return steps, slopes


# The kernels. A is (n, channels), bias and D (1, channels), states (n, channels).


def _forward_kernel(plan: Plan, u, delta, z, b, c, a, bias, d, start, out, last, edges) -> None:
    decay, skip, counted = a[...], d[...], _counted(plan)

    def chunk(index: Any, at: Any, x: jax.Array) -> jax.Array:
        edges[index] = x
        dt, _ = _time_steps(delta, bias, at, counted, plan)
        us, bs, cs = _rows(u, at, plan), _columns(b, at, plan), _columns(c, at, plan)
        gates = None if z is None else _rows(z, at, plan)
        ys = list(us)
        for i in _order(plan):
            x = jnp.exp(dt[i] * decay) * x + bs[i] * (dt[i] * us[i])
            y = _over_n(x * cs[i]) + skip * us[i]
            ys[i] = y if gates is None else y * gates[i] * _sigmoid(gates[i])
        _store_rows(out, at, ys, plan)
        return x

    last[...] = _walk(plan, chunk, *_carried(plan, [last], [start]))


def _totals_kernel(plan: Plan, adjoint: bool, v, delta, z, m, a, bias, last, steps) -> None:
    """The last state of a stretch that starts at zero, and the sum of its time steps: v is u and m is B.

    With `adjoint`, the gradient before the stretch if there is none behind it: v is the gradient of the output and m is C.
    """
    decay, counted = a[...], _counted(plan)

    def chunk(index: Any, at: Any, carry: Any) -> Any:
        x, total = carry
        dt, _ = _time_steps(delta, bias, at, counted, plan)
        vs, ms = _rows(v, at, plan), _columns(m, at, plan)
        gates = None if z is None else _rows(z, at, plan)
        for i in _order(plan):
            kept = jnp.exp(dt[i] * decay)
            value = vs[i] if gates is None else vs[i] * gates[i] * _sigmoid(gates[i])
            x = kept * (x + ms[i] * value) if adjoint else kept * x + ms[i] * (dt[i] * value)
            total = total + dt[i]
        return x, total

    last[...], steps[...] = _walk(plan, chunk, (jnp.zeros(last.shape, jnp.float32), jnp.zeros(steps.shape, jnp.float32)))


def _backward_kernel(
    plan: Plan, u, delta, z, b, c, a, bias, d, edges, dout, dlast, du, ddelta, dz, db, dc, da, dbias, dd, dstart
) -> None:  # `plan` walks from the end of the scan
    decay, skip, counted = a[...], d[...], _counted(plan)
    order = _order(plan.backwards())
    parts = [order[i : i + _INNER] for i in range(0, _CHUNK, _INNER)]

    def chunk(index: Any, at: Any, carry: Any) -> Any:
        dx, da_sum, dbias_sum, dd_sum = carry
        dt, slopes = _time_steps(delta, bias, at, counted, plan)
        us, bs, cs, douts = _rows(u, at, plan), _columns(b, at, plan), _columns(c, at, plan), _rows(dout, at, plan)
        gates = None if z is None else _rows(z, at, plan)

        def advance(x: jax.Array, i: int) -> tuple[jax.Array, jax.Array]:
            kept = jnp.exp(dt[i] * decay)
            return kept, kept * x + bs[i] * (dt[i] * us[i])

        x, before_part = edges[index], []
        for part in parts:
            before_part.append(x)
            if part is not parts[-1]:
                for i in part:
                    x = advance(x, i)[1]

        rows: list[list[Any]] = [[None] * _CHUNK for _ in range(5)]
        dus, ddeltas, dzs, dbs, dcs = rows
        for part, x in zip(parts[::-1], before_part[::-1]):
            states = []
            for i in part:
                kept, after = advance(x, i)
                states.append((i, x, kept, after))
                x = after
            for i, before, kept, after in reversed(states):
                dy = douts[i]
                if gates is not None:
                    sigmoid = _sigmoid(gates[i])
                    y = _over_n(after * cs[i]) + skip * us[i]
                    dzs[i] = dy * y * sigmoid * (1.0 + gates[i] * (1.0 - sigmoid))
                    dy = dy * gates[i] * sigmoid
                dx = dx + cs[i] * dy
                dlog = dx * kept * before
                db_u = _over_n(dx * bs[i])
                dus[i] = db_u * dt[i] + skip * dy
                ddeltas[i] = (_over_n(dlog * decay) + db_u * us[i]) * slopes[i]
                dbs[i], dcs[i] = _over_c(dx * (dt[i] * us[i])), _over_c(after * dy)
                da_sum, dbias_sum, dd_sum = da_sum + dlog * dt[i], dbias_sum + ddeltas[i], dd_sum + dy * us[i]
                dx = dx * kept
        _store_rows(du, at, dus, plan)
        _store_rows(ddelta, at, ddeltas, plan)
        if dz is not None:
            _store_rows(dz, at, dzs, plan)
        _store_columns(db, at, dbs, plan)
        _store_columns(dc, at, dcs, plan)
        return dx, da_sum, dbias_sum, dd_sum

    refs = [dstart, da, dbias, dd]
    for ref, value in zip(refs, _walk(plan, chunk, tuple(_carried(plan, refs, [dlast, None, None, None])))):
        ref[...] = value


# Around the kernels: grids, blocks and the cut into stretches.


class _Calls:
    """Builds pallas_calls over (batch, blocks of channels, stretches) for arrays u (b, l, d) and B (b, groups, l, n)."""

    def __init__(self, plan: Plan, u: jax.Array, b: jax.Array):
        self.plan = plan
        (self.batch, self.padded, self.channels), (_, self.groups, _, self.n) = u.shape, b.shape
        self.width = _CHANNELS[plan.target]
        self.blocks = self.channels // self.width
        self.walks = plan.stretches if plan.parallel else 1

    def run(self, kernel: Callable, ins: list[tuple[str, Any]], outs: list[tuple[str, Any]]) -> list[Any]:
        """`kernel(plan, *ins, *outs)`. Each input is (kind, array or None), each output (kind, dtype or None); None stays None."""
        plan, width, size, n = self.plan, self.width, self.plan.stretch, self.n
        per_group = self.blocks // self.groups

        def at(k: Any) -> Any:
            return _stretch_index(k, plan)

        def own(k: Any) -> Any:
            return k if plan.parallel else 0

        kinds = {  # kind -> (shape, block, index map)
            "wide": ((self.batch, self.padded, self.channels), (None, size, width), lambda i, j, k: (i, at(k), j)),
            "narrow": (
                (self.batch, self.groups, self.padded, n),
                (None, None, size, n),
                lambda i, j, k: (i, jax.lax.div(j, per_group), at(k), 0),
            ),
            "part": ((self.batch, self.blocks, self.padded, n), (None, None, size, n), lambda i, j, k: (i, j, at(k), 0)),
            "matrix": ((n, self.channels), (n, width), lambda i, j, k: (0, j)),
            "vector": ((1, self.channels), (1, width), lambda i, j, k: (0, j)),
            "state": ((self.batch, self.walks, n, self.channels), (None, None, n, width), lambda i, j, k: (i, own(k), 0, j)),
            "sum": ((self.batch, self.walks, 1, self.channels), (None, None, 1, width), lambda i, j, k: (i, own(k), 0, j)),
            "edges": (
                (self.batch, self.padded // _CHUNK, n, self.channels),
                (None, size // _CHUNK, n, width),
                lambda i, j, k: (i, at(k), 0, j),
            ),
        }
        given = [value is not None for _, value in ins + outs]

        def body(*refs: Any) -> None:
            rest = iter(refs)
            kernel(plan, *(next(rest) if is_given else None for is_given in given))

        def spec(kind: str) -> pl.BlockSpec:
            return pl.BlockSpec(kinds[kind][1], kinds[kind][2])

        def call(*arrays: jax.Array, interpret: bool) -> list[jax.Array]:
            return pl.pallas_call(
                body,
                grid=(self.batch, self.blocks, plan.stretches),
                in_specs=[spec(kind) for kind, array in ins if array is not None],
                out_specs=[spec(kind) for kind, dtype in outs if dtype is not None],
                out_shape=[jax.ShapeDtypeStruct(kinds[kind][0], dtype) for kind, dtype in outs if dtype is not None],
                compiler_params=None if interpret else _compiler_params(plan),
                interpret=interpret,
                name=getattr(kernel, "__name__", "totals").strip("_"),
            )(*arrays)

        arrays = [array for _, array in ins if array is not None]
        found = iter(
            jax.lax.platform_dependent(
                *arrays, cpu=functools.partial(call, interpret=True), default=functools.partial(call, interpret=False)
            )
        )
        return [None if dtype is None else next(found) for _, dtype in outs]


def _compiler_params(plan: Plan) -> Any:
    if plan.target == "gpu":
        from jax.experimental.pallas import triton

        return triton.CompilerParams(num_warps=1)
    from jax.experimental.pallas import tpu

    return tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def _compose(decays: jax.Array, added: jax.Array, start: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """Stretches (b, k, n, d) that multiply the state by `decays` and add `added`: (state before each, state after all)."""

    def then(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    gain, states = jax.lax.associative_scan(then, (decays, added), reverse=reverse, axis=1)
    states = gain * start + states
    if reverse:
        return jnp.concatenate([states[:, 1:], start], 1), states[:, :1]
    return jnp.concatenate([start, states[:, :-1]], 1), states[:, -1:]


F32 = jnp.float32


def _by_kernels(plan: Plan, u, delta, z, b, c, a, bias, d, start) -> tuple[jax.Array, jax.Array]:
    return _scan_forward(plan, u, delta, z, b, c, a, bias, d, start)[0]


def _scan_forward(plan: Plan, u, delta, z, b, c, a, bias, d, start) -> tuple[Any, Any]:
    calls = _Calls(plan, u, b)
    decays, starts, end = None, start, None
    if calls.walks > 1:
        ins = [("wide", u), ("wide", delta), ("wide", None), ("narrow", b), ("matrix", a), ("vector", bias)]
        added, steps = calls.run(_totals(False), ins, [("state", F32), ("sum", F32)])
        decays = jnp.exp(steps * a)
        starts, end = _compose(decays, added, start, plan.reverse)
    ins = [("wide", u), ("wide", delta), ("wide", z), ("narrow", b), ("narrow", c), ("matrix", a), ("vector", bias), ("vector", d)]
    outs = [("wide", u.dtype), ("state", F32), ("edges", F32)]
    out, last, edges = calls.run(_forward_kernel, [*ins, ("state", starts)], outs)
    return (out, last if end is None else end), (u, delta, z, b, c, a, bias, d, edges, decays)


def _scan_backward(plan: Plan, residuals: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    u, delta, z, b, c, a, bias, d, edges, decays = residuals
    dout, dlast = cotangents
    calls = _Calls(plan.backwards(), u, b)
    dlasts, begin = dlast, None
    if calls.walks > 1:
        ins = [("wide", dout), ("wide", delta), ("wide", z), ("narrow", c), ("matrix", a), ("vector", bias)]
        added, _ = calls.run(_totals(True), ins, [("state", F32), ("sum", F32)])
        dlasts, begin = _compose(decays, added, dlast, not plan.reverse)
    ins = [("wide", u), ("wide", delta), ("wide", z), ("narrow", b), ("narrow", c), ("matrix", a), ("vector", bias), ("vector", d)]
    ins += [("edges", edges), ("wide", dout), ("state", dlasts)]
    outs = [("wide", u.dtype), ("wide", delta.dtype), ("wide", None if z is None else z.dtype), ("part", F32), ("part", F32)]
    outs += [("state", F32), ("sum", F32), ("sum", F32), ("state", F32)]
    du, ddelta, dz, db, dc, da, dbias, dd, dstart = calls.run(_backward_kernel, ins, outs)
    db, dc = (x.reshape(calls.batch, calls.groups, -1, *x.shape[2:]).sum(2) for x in (db, dc))
    return (
        du,
        ddelta,
        dz,
        db.astype(b.dtype),
        dc.astype(c.dtype),
        da.sum((0, 1)),
        dbias.sum((0, 1)),
        dd.sum((0, 1)),
        begin if begin is not None else dstart,
    )


def _totals(adjoint: bool) -> Callable:
    return lambda plan, *refs: _totals_kernel(plan, adjoint, *refs)


_kernel_scan = jax.custom_vjp(_by_kernels, nondiff_argnums=(0,))
_kernel_scan.defvjp(_scan_forward, _scan_backward)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _plan(target: str, batch: int, length: int, blocks: int, softplus: bool, reverse: bool) -> Plan:
    stretch = _TPU_STRETCH
    if target == "gpu":
        wanted = -(-_GPU_PROGRAMS // (batch * blocks))
        stretch = max(_up(-(-length // wanted), _CHUNK), _SHORTEST_STRETCH)
    stretch = min(stretch, _up(length, _CHUNK))
    return Plan(target, length, stretch, -(-length // stretch), softplus, reverse)


def _padded(x: jax.Array, *shape: int) -> jax.Array:
    """`x` with zeros behind its axes; no copy where it has that shape."""
    return x if x.shape == shape else jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, shape)])


def kernel_scan(
    target: str,
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None,
    z: jax.Array | None,
    delta_bias: jax.Array | None,
    start: jax.Array,
    *,
    softplus: bool,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """`selective_scan` by the kernels of `target`, "gpu" or "tpu"; on a CPU they are interpreted, which is for tests only.

    Arrays are as there, with B and C (batch, length, groups, n) and groups that pass `supports`. Lengths that are not multiples of 16 and
    channels that are not multiples of 32 (GPU) or 128 (TPU) are padded, at the cost of a copy.
    """
    (batch, length, channels), (groups, n) = u.shape, B.shape[2:]
    d = _up(channels, _CHANNELS[target])
    plan = _plan(target, batch, length, d // _CHANNELS[target], softplus, reverse)
    l = plan.stretch * plan.stretches
    states = _up(n, 8) if target == "tpu" else 1 << (n - 1).bit_length()

    def wide(x: jax.Array) -> jax.Array:
        return _padded(x, batch, l, d)

    def narrow(x: jax.Array) -> jax.Array:
        return _padded(jnp.swapaxes(x, 1, 2), batch, groups, l, states)

    def vector(x: jax.Array | None) -> jax.Array:
        return jnp.zeros((1, d)) if x is None else _padded(x.astype(F32)[None], 1, d)

    a, first = _padded(A.astype(F32).T, states, d), _padded(jnp.swapaxes(start.astype(F32), 1, 2)[:, None], batch, 1, states, d)
    gate = None if z is None else wide(z)
    out, last = _kernel_scan(plan, wide(u), wide(delta), gate, narrow(B), narrow(C), a, vector(delta_bias), vector(D), first)
    return out[:, :length, :channels], jnp.swapaxes(last[:, 0, :n, :channels], 1, 2)
