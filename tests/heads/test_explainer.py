"""Gradient x input against hand-written one-hot models and finite differences, and what follows from linearity and symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgen.heads.decoder import SequenceHead
from jaxgen.heads.explainer import Explainer
from jaxgen.heads.predictor import SequencePredictor
from jaxgen.layers.core import Embedding, normal
from jaxgen.layers.output import Output
from jaxgen.models import caduceus
from jaxgen.models.registry import FAMILIES, resolve

BASES = (7, 8, 9, 10)


class Weighted(nnx.Module):
    """A fixed function of the embedded tokens that ends in two predictions."""

    def __init__(self, length: int, linear: bool, rngs: nnx.Rngs):
        self.embedding, self.linear = Embedding(12, 5, rngs, init=normal(1.0)), linear
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (length, 5, 2)))

    def __call__(self, tokens, *, mask=None):
        return Output(self.embedding(tokens), predictions=self.of(self.embedding(tokens)))

    def of(self, x_bld):
        sums = jnp.einsum("bld,ldo->bo", x_bld, self.kernel[...])
        return sums if self.linear else jnp.tanh(sums / 4) * 3


def batch(tokens: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": tokens, "mask": np.ones(tokens.shape, bool), "bases": np.ones(tokens.shape, np.int32), "weights": weights}


def tokens_of(length: int, rows: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(7, 11, (rows, length))


@pytest.mark.parametrize("linear", [True, False])
def test_gradient_is_that_of_a_one_hot_model(linear):
    model, tokens = Weighted(9, linear, nnx.Rngs(0)), tokens_of(9)
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], np.float32)
    one_hot = jax.nn.one_hot(tokens, 12)
    gradient = jax.grad(lambda x: (model.of(x @ model.embedding.table[...]) * weights).sum())(one_hot)
    expected = jnp.take_along_axis(gradient, jnp.asarray(tokens)[..., None], 2)[..., 0] - gradient[..., jnp.array(BASES)].mean(-1)
    got = Explainer(model, head=None, causal=False, base_tokens=BASES).grad_x_input(batch(tokens, weights))
    np.testing.assert_allclose(got[..., 0], expected, rtol=1e-5, atol=1e-6)


def test_a_linear_model_is_explained_completely():
    """Scores add up to the difference from all bases at the same share; and each is minus 3/4 of the mean effect of its mutations."""
    model, tokens = Weighted(9, True, nnx.Rngs(1)), tokens_of(9, 1)
    explainer = Explainer(model, head=None, causal=False, base_tokens=BASES)
    weights = np.array([[1.0, 0.0]], np.float32)
    scores = np.asarray(explainer.grad_x_input(batch(tokens, weights)))[0, :, 0]
    uniform = model.of(jnp.broadcast_to(model.embedding.table[...][jnp.array(BASES)].mean(0), (1, 9, 5)))[0, 0]
    value = lambda t: float(explainer.outputs(batch(t, weights))[0, 0])  # noqa: E731
    np.testing.assert_allclose(scores.sum(), value(tokens) - uniform, rtol=1e-5)
    for i in range(9):
        effects = []
        for letter in set(BASES) - {int(tokens[0, i])}:
            mutant = tokens.copy()
            mutant[0, i] = letter
            effects.append(value(mutant) - value(tokens))
        np.testing.assert_allclose(scores[i], -0.75 * np.mean(effects), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["mamba", "dnabert", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f not in "mamba dnabert")]
)
def test_gradient_is_the_slope_of_the_relaxed_model(name):
    """Of every family, whatever its embedding: along the line from bases at equal shares to the tokens."""
    family, config = resolve(f"{name}_smoke")
    predicts = family.emits == "predictions"
    config = family.for_task(config, 64, 2 if predicts else 0)
    explainer = Explainer(family.build(config, nnx.Rngs(0)), head=None, causal=family.causal, base_tokens=BASES)
    rows = batch(tokens_of(64, 2), np.ones((2, 2 if predicts else 1), np.float32) * ([1, -2] if predicts else [1]))
    graphdef, state = nnx.split(explainer)
    gradient = jax.jit(lambda state, rows: nnx.merge(graphdef, state).grad_x_input(rows))(state, rows)
    relaxed = jax.jit(lambda state, rows, gate: nnx.merge(graphdef, state).relaxed(rows, jnp.full((2, 64), gate)))
    np.testing.assert_array_equal(relaxed(state, rows, 1.0), jax.jit(lambda s, r: nnx.merge(graphdef, s).outputs(r))(state, rows))
    step = 1e-3 if predicts else 0.02  # the CNN's maxima and ReLUs have kinks; sums of log-likelihoods are large and round more
    slope = ((relaxed(state, rows, 1 + step) - relaxed(state, rows, 1 - step)) * rows["weights"]).sum() / (2 * step)
    np.testing.assert_allclose(gradient.sum(), slope, rtol=5e-3, atol=5e-3)


def test_a_reverse_complement_invariant_model_has_mirrored_scores():
    """Caduceus-PS with a head that averages its strands."""
    backbone = caduceus.Caduceus(caduceus.PsConfig(d_model=16, n_layer=1), nnx.Rngs(2))
    head = SequencePredictor(backbone, SequenceHead(16, 3, nnx.Rngs(3)), strands=caduceus.strands)
    explainer = Explainer(backbone, head=head, causal=False, base_tokens=BASES)
    tokens = tokens_of(16, 1)
    turned = (17 - tokens)[:, ::-1]  # ids 7 ... 10 are A, C, G, T
    rows = batch(np.concatenate([tokens, turned]), np.tile(np.array([[1.0, -0.5, -0.5]], np.float32), (2, 1)))
    outputs, scores = explainer.outputs(rows), np.asarray(explainer.grad_x_input(rows))[..., 0]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores[0], scores[1, ::-1], rtol=1e-3, atol=1e-5 * np.abs(scores).max())
    assert np.abs(scores[0] - scores[1]).max() > 0.1 * np.abs(scores).max()
