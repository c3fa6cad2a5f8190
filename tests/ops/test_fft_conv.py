"""The FFT convolution against its definition: any length, gradients, and in shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.ops.fft_conv import causal_conv_reference, causal_fft_conv, fft_length
from jaxgen.train.sharding import make_mesh

LENGTHS = [1, 2, 3, 7, 16, 31, 61, 64, 97, 120]  # one, odd, prime, powers of two: each compiles once


def inputs(length: int, batch: int = 2, channels: int = 3, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    u, k, skip = (
        np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        for shape in ((batch, length, channels), (length, channels), (channels,))
    )
    return jnp.asarray(u), jnp.asarray(k), jnp.asarray(skip)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(LENGTHS), st.integers(0, 2**32 - 1), st.booleans())
def test_agrees_with_the_definition(length, seed, with_skip):
    u, k, skip = inputs(length, seed=seed)
    bias = skip if with_skip else None
    ours, expected = jax.jit(causal_fft_conv)(u, k, bias), causal_conv_reference(u, k, bias)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.sqrt(length), rtol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 64])
def test_gradients_agree_with_the_definition(length):
    u, k, skip = inputs(length)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=u.shape).astype(np.float32))

    def gradients(function):
        return jax.jit(jax.grad(lambda *arguments: jnp.sum(function(*arguments) * weight), argnums=(0, 1, 2)))(u, k, skip)

    for ours, expected in zip(gradients(causal_fft_conv), gradients(causal_conv_reference), strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-5 * np.sqrt(length), rtol=1e-4)


def test_the_past_does_not_see_the_future():
    u, k, _ = inputs(50)
    changed = u.at[:, 30].add(1.0)
    np.testing.assert_allclose(causal_fft_conv(changed, k)[:, :30], causal_fft_conv(u, k)[:, :30], atol=1e-5)


def test_bfloat16_in_bfloat16_out_float32_inside():
    u, k, skip = inputs(64)
    low = u.astype(jnp.bfloat16)
    out = causal_fft_conv(low, k, skip)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), causal_conv_reference(low.astype(jnp.float32), k, skip), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 4, "sequence": 2}, {"data": 4, "sequence": 2}], ids=str
)
@pytest.mark.parametrize("channels", [8, 3])
def test_in_shards(sizes, channels):
    """Channels that do not divide are replicated instead."""
    u, k, skip = inputs(33, batch=8, channels=channels)
    expected = causal_conv_reference(u, k, skip)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | sizes)

    def loss(u, k, skip):
        return jnp.sum(jnp.square(causal_fft_conv(u, k, skip)))

    with jax.set_mesh(mesh):
        ours = jax.jit(causal_fft_conv)(u, k, skip)
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(u, k, skip)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    alone = jax.grad(lambda *x: jnp.sum(jnp.square(causal_conv_reference(*x))), argnums=(0, 1, 2))(u, k, skip)
    for one, other in zip(gradients, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-2, rtol=1e-4)


@given(st.integers(1, 200_000))
def test_transform_lengths(length):
    def fast(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    shortest = max(2, 2 * length - 1)
    assert fft_length(length) == next(n for n in range(shortest, 2 * shortest + 1) if fast(n))
