"""The selective scan against its definition in float64: any length, grouping, start and gradient, step by step, in blocks and in shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.errors import InputError
from jaxgen.ops.selective_scan import selective_scan, selective_scan_reference, selective_scan_step
from jaxgen.train.sharding import make_mesh

LENGTHS = [1, 17, 129, 300]  # one, not a multiple of a chunk, more than a chunk
NAMES = ("u", "delta", "A", "B", "C", "start")


def inputs(length: int, batch: int = 2, channels: int = 4, n: int = 3, seed: int = 0) -> tuple[np.ndarray, ...]:
    """u, delta > 0, A < 0, B, C and a start state, float32."""
    rng = np.random.default_rng(seed)
    u, delta = rng.normal(size=(2, batch, length, channels))
    A = -np.exp(rng.normal(size=(channels, n)))
    B, C = rng.normal(size=(2, batch, length, n))
    start = rng.normal(size=(batch, channels, n))
    return tuple(np.float32(x) for x in (u, 0.2 * np.exp(delta), A, B, C, start))


def ours(*x, implementation: str = "auto"):
    return selective_scan(*x[:5], initial_state=x[5], implementation=implementation)


def loss(function, weight, state_weight):
    """A scalar that every output and the last state enter."""

    def total(*x):
        out, last = function(*x)
        return (out * weight).sum() + (last * state_weight).sum()

    return total


def exact(x: tuple[np.ndarray, ...], weight: np.ndarray, state_weight: np.ndarray) -> tuple:
    """(out, last) and the gradients of `loss`, in float64."""
    with jax.enable_x64(True):
        x64 = [jnp.asarray(v, jnp.float64) for v in x]
        gradients = jax.jit(jax.grad(loss(selective_scan_reference, weight, state_weight), argnums=range(6)))(*x64)
        return jax.tree.map(np.asarray, (jax.jit(selective_scan_reference)(*x64), gradients))


def assert_close(found, expected, tolerance: float = 1e-5) -> None:
    for name, a, b in zip(NAMES, found, expected):
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(initial=0), 1e-3), rtol=0, err_msg=name)


@pytest.mark.parametrize("implementation", ["sequential", "blocked"])
@settings(max_examples=6, deadline=None)
@given(length=st.sampled_from(LENGTHS), seed=st.integers(0, 2**32 - 1))
def test_values_and_gradients_agree_with_the_definition(implementation, length, seed):
    x = inputs(length, seed=seed)
    rng = np.random.default_rng(seed)
    weight, state_weight = rng.normal(size=x[0].shape), rng.normal(size=x[5].shape)
    values, gradients = exact(x, weight, state_weight)

    def run(*x):
        return ours(*x, implementation=implementation)

    assert_close(jax.jit(run)(*x), values)
    assert_close(jax.jit(jax.grad(loss(run, np.float32(weight), np.float32(state_weight)), argnums=range(6)))(*x), gradients, 3e-5)


@pytest.mark.parametrize("implementation", ["sequential", "blocked"])
def test_reverse_is_the_scan_of_the_flipped_sequence(implementation):
    *x, start = inputs(300)
    weight = np.random.default_rng(5).normal(size=x[0].shape).astype(np.float32)

    def run(u, delta, A, B, C, start):
        return selective_scan(u, delta, A, B, C, initial_state=start, reverse=True, implementation=implementation)

    def flipped(u, delta, A, B, C, start):
        u, delta, B, C = (jnp.flip(v, 1) for v in (u, delta, B, C))
        out, last = selective_scan(u, delta, A, B, C, initial_state=start, implementation=implementation)
        return jnp.flip(out, 1), last

    assert_close(jax.jit(run)(*x, start), jax.jit(flipped)(*x, start))
    gradients = (jax.jit(jax.grad(loss(f, weight, 1.0), argnums=range(6)))(*x, start) for f in (run, flipped))
    assert_close(*gradients)


@pytest.mark.parametrize("implementation", ["sequential", "blocked"])
def test_groups_share_b_and_c(implementation):
    u, delta, A, _, _, start = inputs(40, channels=6)
    B, C = np.random.default_rng(1).normal(size=(2, 2, 40, 2, 3)).astype(np.float32)
    out, last = selective_scan(u, delta, A, B, C, initial_state=start, implementation=implementation)
    for group in range(2):
        c = slice(3 * group, 3 * group + 3)
        alone, state = selective_scan(u[..., c], delta[..., c], A[c], B[:, :, group], C[:, :, group], initial_state=start[:, c])
        np.testing.assert_allclose(out[..., c], alone, atol=1e-5)
        np.testing.assert_allclose(last[:, c], state, atol=1e-5)


def test_constant_matrices_are_the_same_at_every_position():
    u, delta, A, _, C, _ = inputs(20)
    B = np.random.default_rng(1).normal(size=A.shape).astype(np.float32)
    per_channel = np.broadcast_to(B, (2, 20, *B.shape))
    repeated = np.repeat(C[:, :, None], 4, axis=2)
    np.testing.assert_allclose(selective_scan(u, delta, A, B, C)[0], selective_scan(u, delta, A, per_channel, repeated)[0], atol=1e-5)


def test_skip_gate_bias_and_softplus():
    u, delta, A, B, C, _ = inputs(30)
    rng = np.random.default_rng(3)
    D, bias, z = (rng.normal(size=shape).astype(np.float32) for shape in ((4,), (4,), u.shape))
    out, _ = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True)
    dt = np.log1p(np.exp(delta + bias))
    y = selective_scan_reference(u, dt, A, B, C)[0] + D * u
    np.testing.assert_allclose(out, y * z / (1 + np.exp(-z)), atol=1e-5)


def test_two_halves_make_the_whole():
    u, delta, A, B, C, start = inputs(61)
    out, last = selective_scan(u, delta, A, B, C, initial_state=start)
    first, middle = selective_scan(u[:, :23], delta[:, :23], A, B[:, :23], C[:, :23], initial_state=start)
    second, end = selective_scan(u[:, 23:], delta[:, 23:], A, B[:, 23:], C[:, 23:], initial_state=middle)
    np.testing.assert_allclose(np.concatenate([first, second], 1), out, atol=1e-5)
    np.testing.assert_allclose(end, last, atol=1e-5)


def test_steps_make_the_whole():
    u, delta, A, B, C, start = inputs(9)
    out, last = selective_scan(u, delta, A, B, C, initial_state=start, delta_softplus=True)
    state = jnp.asarray(start)
    for t in range(9):
        y, state = selective_scan_step(state, u[:, t], delta[:, t], A, B[:, t], C[:, t], delta_softplus=True)
        np.testing.assert_allclose(y, out[:, t], atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)


def test_an_empty_sequence_keeps_its_state():
    u, delta, A, B, C, start = inputs(0)
    out, last = selective_scan(u, delta, A, B, C, initial_state=start)
    assert out.shape == (2, 0, 4)
    np.testing.assert_array_equal(last, start)


def test_nan_reaches_later_positions_of_its_channel_only():
    u, delta, A, B, C, _ = inputs(20)
    delta[0, 8, 1] = np.nan
    bad = np.isnan(selective_scan(u, delta, A, B, C)[0])
    assert bad[0, 8:, 1].all()
    assert bad.sum() == 12


def test_a_negative_step_is_computed_as_it_is():
    u, delta, A, B, C, _ = inputs(12)
    np.testing.assert_allclose(selective_scan(u, -delta, A, B, C)[0], selective_scan_reference(u, -delta, A, B, C)[0], rtol=1e-4, atol=1e-5)


def test_bfloat16_in_bfloat16_out_float32_inside():
    x = [jnp.asarray(v, jnp.bfloat16) for v in inputs(64)]
    out, last = selective_scan(*x[:5])
    assert (out.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    exact_out = selective_scan_reference(*(v.astype(jnp.float32) for v in x[:5]))[0]
    np.testing.assert_allclose(out.astype(jnp.float32), exact_out, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("length", [64, 61])
@pytest.mark.parametrize("sizes", [{"sequence": 8}, {"data": 2, "tensor": 2, "sequence": 2}, {"data": 4, "fsdp": 2}], ids=str)
def test_shards_make_the_whole(sizes, length):
    x = inputs(length, batch=8)
    weight, state_weight = np.random.default_rng(5).normal(size=x[0].shape), np.ones(x[5].shape)
    values, gradients = exact(x, weight, state_weight)
    with jax.set_mesh(make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | sizes)):
        assert_close(jax.jit(ours)(*x), values)
        sharded = jax.jit(jax.grad(loss(ours, np.float32(weight), np.float32(state_weight)), argnums=range(6)))(*x)
    assert_close(sharded, gradients, 3e-5)


def test_shards_in_reverse():
    u, delta, A, B, C, start = inputs(61, batch=8)
    z = np.random.default_rng(1).normal(size=u.shape).astype(np.float32)

    def run(*x):
        return selective_scan(*x, initial_state=start, reverse=True, delta_softplus=True)

    x = (u, delta, A, B, C, np.float32([1, 2, 3, 4]), z, np.float32([0.1, 0.2, 0.3, 0.4]))
    whole = jax.jit(run)(*x)
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 1, "tensor": 1, "sequence": 4})):
        assert_close(jax.jit(run)(*x), whole)


def test_memory_does_not_grow_with_the_state():
    """Forward and backward of a long row keep a small multiple of its inputs, never length x channels x n."""
    x = inputs(16384, batch=1, channels=64, n=16)
    gradient = jax.jit(jax.grad(lambda *x: ours(*x)[0].sum(), argnums=range(5)))
    analysis = gradient.lower(*x).compile().memory_analysis()
    rows = 16384 * 64 * 4
    assert analysis.temp_size_in_bytes < 10 * rows  # all states would be 16 of them


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": np.zeros((2, 9, 3))}, "B has shape (2, 9, 3)"),
        ({"delta": np.zeros((2, 9, 4))}, "do not fit"),
        ({"implementation": "blockd"}, "did you mean 'blocked'"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    arguments = dict(zip(NAMES[:5], inputs(8))) | change
    with pytest.raises(InputError) as error:
        selective_scan(**arguments)
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("length", [131_072, 1_048_576])
def test_long_sequences_stay_exact(length):
    x = inputs(length, batch=1, channels=2, n=4)
    weight, state_weight = np.random.default_rng(5).normal(size=x[0].shape), np.ones(x[5].shape)
    values, gradients = exact(x, weight, state_weight)
    assert_close(jax.jit(ours)(*x), values, 1e-4)
    assert_close(jax.jit(jax.grad(loss(ours, np.float32(weight), np.float32(state_weight)), argnums=range(6)))(*x), gradients, 1e-4)
