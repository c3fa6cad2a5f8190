"""Attention against its definition in float64, with and without blocks, masks, ALiBi, causality and windows; and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.ops import attention as op
from jaxgen.train.sharding import make_mesh

HEADS, WIDTH = 3, 8
SLOPES = np.float32([0.5, 0.25, 0.125])


@pytest.fixture(autouse=True)
def _exact():
    with jax.default_matmul_precision("highest"):
        yield


def inputs(batch: int = 2, length: int = 150, heads: int = HEADS, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((batch, length, heads, WIDTH), np.float32) for _ in range(4))


def definition(q, k, v, *, mask=None, bias=None, slopes=None, causal=False, window=None, scale=None):
    """Weights and output in float64, for queries that see something."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    i, j = np.arange(q.shape[1])[:, None], np.arange(k.shape[1])
    seen = np.ones((1, 1, len(i), len(j)), bool)
    if slopes is not None:
        scores -= slopes[:, None, None] * np.abs(i - j)
    if bias is not None:
        scores += bias
    if mask is not None:
        seen = seen & mask[:, None, None]
    if causal:
        seen = seen & (j <= i)
    if window is not None:
        seen = seen & (np.abs(i - j) < window)
    exponentials = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights = exponentials / np.maximum(exponentials.sum(-1, keepdims=True), 1e-300)
    return weights, np.einsum("bhqk,bkhd->bqhd", weights, v), seen.any(-1) * np.ones(scores.shape[:3], bool)


OPTIONS = [
    {},
    {"scale": 1.0},
    {"slopes": SLOPES},
    {"causal": True},
    {"window": 7},
    {"causal": True, "window": 9, "slopes": SLOPES, "scale": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("length", "padding"), [(40, "left"), (300, "right"), (129, "none")])  # all scores at once, blocks
def test_definition(options, length, padding):
    q, k, v, _ = inputs(length=length)
    n_real = np.array([[length // 3 + 1], [length]])
    sides = {"right": np.arange(length) < n_real, "left": np.arange(length) >= length - n_real}
    mask = sides.get(padding)
    weights, expected, seeing = definition(q, k, v, mask=mask, **options)
    at = np.swapaxes(seeing, 1, 2)
    y = np.asarray(op.attention(q, k, v, mask=mask, **options))
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[at], expected[at], atol=1e-5, rtol=1e-5)
    maps = np.asarray(op.attention_weights(q, k, mask=mask, **options))
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(maps[seeing], weights[seeing], atol=1e-5)


@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=str)
def test_gradients_of_blocks(options):
    """The backward pass recomputes what the plain one keeps; also where a query sees nothing."""
    q, k, v, cotangent = inputs(length=260)
    mask = np.stack([np.arange(260) < 100, np.zeros(260, bool)])

    def plain(q, k, v):
        return op.weighted_values(op.attention_weights(q, k, mask=mask, **options), v)

    def gradients(function):
        y, pullback = jax.vjp(jax.jit(function), q, k, v)
        return y, *pullback(cotangent)

    ours = gradients(lambda q, k, v: op.attention(q, k, v, mask=mask, **options))
    for mine, reference in zip(ours, gradients(plain)):
        np.testing.assert_allclose(mine, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [40, 300])  # all scores at once, blocks
def test_a_query_before_all_keys_sees_none_after_it(length):
    """Under a causal mask with padding on the left, as transformers has it: the mean of what came before, padding though it is."""
    q, k, v, _ = inputs(batch=1, length=length)
    mask = np.arange(length)[None] >= 20
    y = op.attention(q, k, v, mask=mask, causal=True)
    np.testing.assert_allclose(y[0, :20], np.cumsum(v[0, :20], 0) / np.arange(1, 21)[:, None, None], atol=1e-5)


def test_a_traced_window_is_a_number():
    q, k, v, _ = inputs(length=200)
    traced = jax.jit(lambda window: op.attention(q, k, v, causal=True, window=window))(11)
    np.testing.assert_allclose(traced, op.attention(q, k, v, causal=True, window=11), atol=1e-6)


def test_additive_bias():
    q, k, v, _ = inputs(length=70)
    bias = np.random.default_rng(1).normal(size=(1, HEADS, 70, 70))
    np.testing.assert_allclose(op.attention(q, k, v, bias=jnp.asarray(bias)), definition(q, k, v, bias=bias)[1], atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("n_keys", [40, 300])
def test_fewer_queries_than_keys(n_keys):
    q, _, _, _ = inputs(length=30)
    _, k, v, _ = inputs(length=n_keys)
    mask = np.arange(n_keys) < np.array([[n_keys], [20]])
    np.testing.assert_allclose(op.attention(q, k, v, mask=mask), definition(q, k, v, mask=mask)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [20, 200])
def test_a_query_that_sees_nothing_gets_a_mean(length):
    q, k, v, _ = inputs(length=length)
    mask = np.stack([np.ones(length, bool), np.zeros(length, bool)])
    y = np.asarray(op.attention(q, k, v, mask=mask))
    np.testing.assert_allclose(y[1], np.broadcast_to(v[1].mean(0), y[1].shape), atol=1e-5)
    # Padding whose window holds only padding: the mean over what one condition alone hides.
    real = np.arange(length) < 4
    y = np.asarray(op.attention(q, k, v, mask=np.stack([real, real]), causal=True, window=3))
    seen = np.r_[0:4, length - 3 : length]
    np.testing.assert_allclose(y[:, -1], v[:, seen].mean(1), atol=1e-5)


masked = jax.jit(lambda q, k, v, mask: op.attention(q, k, v, mask=mask))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([48, 160]), st.integers(1, 48), st.booleans(), st.integers(0, 2**31))
def test_padding_changes_nothing(length, n_real, left, seed):
    q, k, v, _ = inputs(1, length, seed=seed)
    mask = np.arange(length)[None] >= length - n_real if left else np.arange(length)[None] < n_real
    for x in (q, k, v):
        x[~mask] = 1e3
    expected = definition(*(x[mask][None] for x in (q, k, v)))[1]
    np.testing.assert_allclose(masked(q, k, v, mask)[mask], expected[0], atol=2e-5, rtol=1e-4)


def test_bfloat16_in_and_out():
    q, k, v, _ = (jnp.asarray(x, jnp.bfloat16) for x in inputs(length=200))
    y = op.attention(q, k, v)
    assert y.dtype == jnp.bfloat16
    expected = definition(*(x.astype(jnp.float32) for x in (q, k, v)))[1]
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=1e-2)


def test_dropout():
    q, k, v, _ = inputs(length=16)
    key = jax.random.key(0)
    np.testing.assert_array_equal(op.attention(q, k, v, dropout=0.5), op.attention(q, k, v))  # no key: evaluation
    dropped = jax.vmap(lambda key: op.attention(q, k, v, dropout=0.5, key=key))(jax.random.split(key, 400))
    np.testing.assert_allclose(dropped.mean(0), op.attention(q, k, v), atol=0.25)
    assert not np.allclose(dropped[0], dropped[1])


@pytest.mark.parametrize(
    "sizes", [{"data": 2, "tensor": 4}, {"data": 2, "sequence": 4}, {"tensor": 2, "sequence": 2, "fsdp": 2}, {"data": 8}], ids=str
)
def test_meshes_give_what_one_device_gives(sizes):
    q, k, v, cotangent = inputs(batch=4, length=136, heads=4)
    mask = np.arange(136) < np.array([[136], [50], [0], [136]])
    slopes = np.float32([0.5, 0.25, 0.125, 0.1])

    def run(q, k, v, mask):
        return jax.value_and_grad(
            lambda q, k, v: (op.attention(q, k, v, mask=mask, slopes=slopes, causal=True) * cotangent).sum(), argnums=(0, 1, 2)
        )(q, k, v)

    alone = jax.jit(run)(q, k, v, mask)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | sizes)
    rows = ("data", "fsdp") if sizes != {"data": 8} else None  # 4 rows do not divide over 8: replicated
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, P(rows, "sequence"))) for x in (q, k, v, mask)]
        spread = jax.jit(run)(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-5), alone, spread)


def test_memory_stays_below_all_scores():
    """One row of 4,096 positions: forward and backward need less than the 3 x 64 MiB of all scores of three heads."""
    shape = jax.ShapeDtypeStruct((1, 4096, HEADS, WIDTH), jnp.float32)
    loss = jax.grad(lambda q, k, v: op.attention(q, k, v).sum(), argnums=(0, 1, 2))
    memory = jax.jit(loss).lower(shape, shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 40 * 2**20
