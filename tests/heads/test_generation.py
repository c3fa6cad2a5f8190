"""Cached decoding gives the logits of the whole sequence, and what is drawn depends on the row alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgen.heads.generation import decoder_of, generate
from jaxgen.models import gpt_neo, hyenadna, mamba

MODELS = {
    "mamba": lambda: mamba.Mamba(mamba.Config(d_model=16, n_layer=3), nnx.Rngs(0)),
    "mamba, untied": lambda: mamba.Mamba(
        mamba.Config(d_model=16, n_layer=6, tie_embeddings=False, residual_in_fp32=True, rms_norm=False, conv_bias=False), nnx.Rngs(0)
    ),
    "gpt_neo": lambda: gpt_neo.GPTNeo(
        gpt_neo.Config(
            d_model=16, n_layer=2, n_heads=2, d_inner=32, vocab_size=16, max_positions=24, window=3, attention_layers=("global", "local")
        ),
        nnx.Rngs(0),
    ),
    "hyenadna": lambda: hyenadna.HyenaDNA(hyenadna.Config(d_model=16, n_layer=2, d_inner=32, filter_order=8, l_max=24), nnx.Rngs(0)),
}


@functools.cache
def model(name):
    made = MODELS[name]()
    made.embedding.table[...] = made.embedding.table[...] * 40  # sharp, unequal probabilities
    return made


@functools.cache
def compiled(name, new_tokens, **options):
    """`generate`, compiled."""
    return jax.jit(lambda *arrays, rows=None: generate(model(name), arrays[0], arrays[1], new_tokens, arrays[2], rows=rows, **options))


TOKENS = np.random.default_rng(0).integers(7, 11, (3, 14))


@pytest.mark.parametrize("name", ["mamba", "gpt_neo", "hyenadna", pytest.param("mamba, untied", marks=pytest.mark.slow)])
def test_cached_logits_are_those_of_the_whole_sequence(name):
    decoder, prompt = decoder_of(model(name)), 5

    @jax.jit
    def decode(tokens):
        logits, cache = decoder.prefill(tokens[:, :prompt], tokens.shape[1] + 2)
        found = [logits]
        for i in range(prompt, tokens.shape[1]):
            logits, cache = decoder.step(tokens[:, i], cache)
            found.append(logits)
        return jnp.stack(found, axis=1)

    whole = jax.jit(lambda tokens: model(name)(tokens).logits)(TOKENS)
    np.testing.assert_allclose(decode(TOKENS), whole[:, prompt - 1 :], atol=2e-5 * float(jnp.abs(whole).max()))


@pytest.mark.parametrize("name", ["gpt_neo", "hyenadna"])
def test_greedy_takes_the_most_probable_token(name):
    lengths = np.array([4, 7, 6])
    made = np.asarray(compiled(name, 5, temperature=0.0, shortest=3)(TOKENS[:, :7], lengths, jax.random.key(0)))
    assert made.shape == (3, 12)
    logits = np.asarray(jax.jit(lambda tokens: model(name)(tokens).logits)(made))
    for row, n, scores, prompt in zip(made, lengths, logits, TOKENS):
        assert row[:n].tolist() == prompt[:n].tolist()
        assert row[n:].tolist() == scores[n - 1 : -1].argmax(-1).tolist()


def test_rows_draw_for_themselves():
    lengths, key = np.array([4, 7, 6]), jax.random.key(1)
    draw = compiled("gpt_neo", 5, temperature=20.0)
    together = np.asarray(draw(TOKENS[:, :7], lengths, key, rows=np.arange(3)))
    turned = np.asarray(draw(TOKENS[::-1, :7], lengths[::-1], key, rows=np.arange(3)[::-1]))
    np.testing.assert_array_equal(turned[::-1], together)
    alone = np.asarray(compiled("gpt_neo", 5, temperature=20.0, shortest=4)(TOKENS[:1, :4], lengths[:1], key))
    assert alone[0].tolist() == together[0, :9].tolist()
    assert (np.asarray(draw(TOKENS[:, :7], lengths, jax.random.key(2), rows=np.arange(3))) != together).any()


def test_draws_follow_the_probabilities():
    """Of 4,000 first tokens, by temperature, top-k and allowed tokens."""
    many = np.repeat(TOKENS[:1, :4], 4000, 0)
    lengths, key = np.full(4000, 4), jax.random.key(0)
    logits = np.asarray(model("gpt_neo")(TOKENS[:1, :4]).logits[0, -1])
    allowed = np.isin(np.arange(16), [7, 8, 9, 10])
    for options in ({}, {"temperature": 3.0}, {"top_k": 2}):
        drawn = np.asarray(compiled("gpt_neo", 1, **options, allowed=Hashable(allowed))(many, lengths, key))[:, -1]
        scores = np.where(allowed, logits, -np.inf) / options.get("temperature", 1.0)
        if "top_k" in options:
            scores[np.argsort(scores)[:-2]] = -np.inf
        expected = np.exp(scores - scores.max())
        np.testing.assert_allclose(np.bincount(drawn, minlength=16) / 4000, expected / expected.sum(), atol=0.03)


class Hashable(np.ndarray):
    """An array that may be a key of `functools.cache`."""

    def __new__(cls, array):
        return np.asarray(array).view(cls)

    def __hash__(self):
        return hash(self.tobytes())
