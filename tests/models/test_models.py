"""Properties of the architectures that no golden number shows."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxgen
from jaxgen.errors import InputError
from jaxgen.heads.pooling import MODES, pool
from jaxgen.layers import stack
from jaxgen.layers.variables import named_arrays
from jaxgen.models import cnn, hyenadna
from jaxgen.models.registry import FAMILIES, get_family, model_names, resolve

LENGTH = 40
TINY = hyenadna.Config(d_model=16, n_layer=2, d_inner=32, filter_order=8, l_max=LENGTH, initializer_range=0.3)


@functools.cache
def model(config: hyenadna.Config = TINY) -> hyenadna.HyenaDNA:
    return hyenadna.HyenaDNA(config, nnx.Rngs(0))


def tokens(rows: int = 3, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(7, 12, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("position", [0, 17, LENGTH - 1])
def test_hyenadna_is_causal(position):
    before = tokens()
    after = before.copy()
    after[:, position] = np.where(before[:, position] == 7, 8, 7)
    a, b = model()(before).logits, model()(after).logits
    np.testing.assert_allclose(a[:, :position], b[:, :position], atol=1e-5)
    assert (jnp.abs(a[:, position:] - b[:, position:]).max(axis=(0, 2)) > 1e-4).all()


@pytest.mark.parametrize("pads", [1, 13])
def test_masked_padding_on_the_left_changes_nothing(pads):
    """The shift of the filter's window makes it matter otherwise: the original lets padding in."""
    bare = tokens(length=LENGTH - pads)
    padded = np.pad(bare, ((0, 0), (pads, 0)), constant_values=4)
    mask = np.arange(LENGTH) >= pads
    ours = model()(padded, mask=jnp.broadcast_to(mask, padded.shape))
    expected = model()(bare)
    np.testing.assert_allclose(ours.hidden[:, pads:], expected.hidden, atol=2e-5)
    assert jnp.abs(model()(padded).hidden[:, pads:] - expected.hidden).max() > 1e-3


def test_rows_do_not_see_each_other():
    batch = tokens(4)
    together = model()(batch).logits
    for i in range(4):
        np.testing.assert_allclose(model()(batch[i : i + 1]).logits[0], together[i], atol=2e-5)


def test_scanned_and_unrolled_layers_agree(monkeypatch):
    config = dataclasses.replace(TINY, n_layer=3)
    batch = tokens()
    unrolled = model(config)(batch, hidden_states=True)
    monkeypatch.setattr(stack, "UNROLL_UP_TO", 0)
    scanned = model(config)(batch, hidden_states=True)
    np.testing.assert_allclose(scanned.logits, unrolled.logits, atol=1e-5)
    assert scanned.hidden_states.shape == (5, 3, LENGTH, 16)
    np.testing.assert_allclose(scanned.hidden_states, unrolled.hidden_states, atol=1e-5)


def test_remat_changes_neither_gradients_nor_names():
    batch = tokens()

    def gradients(remat: str) -> dict[str, np.ndarray]:
        graphdef, params, rest = nnx.split(hyenadna.HyenaDNA(dataclasses.replace(TINY, remat=remat), nnx.Rngs(0)), nnx.Param, ...)
        loss = lambda params: jnp.mean(jnp.square(nnx.merge(graphdef, params, rest)(batch).logits))  # noqa: E731
        return named_arrays(jax.jit(jax.grad(loss))(params))

    expected = gradients("none")
    for remat in ("full", "dots"):
        found = gradients(remat)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            np.testing.assert_allclose(gradient, expected[name], atol=1e-5, rtol=1e-4, err_msg=f"{remat} {name}")


def test_unknown_remat_policy():
    with pytest.raises(InputError, match="did you mean 'full'"):
        model(dataclasses.replace(TINY, remat="ful"))(tokens())


def test_dropout_needs_a_key_and_is_off_without():
    config = dataclasses.replace(TINY, embed_dropout=0.5)
    batch = tokens()
    np.testing.assert_array_equal(model(config)(batch).hidden, model()(batch).hidden)
    dropped = model(config)(batch, key=jax.random.key(0)).hidden
    assert jnp.abs(dropped - model()(batch).hidden).max() > 1e-2


def test_input_that_is_too_long():
    with pytest.raises(InputError, match=f"41 tokens is longer than the model's l_max {LENGTH}"):
        model()(tokens(length=LENGTH + 1))


def test_bfloat16_is_close_and_logits_are_float32():
    low = model(dataclasses.replace(TINY, dtype="bfloat16"))
    batch = tokens()
    assert low(batch).hidden.dtype == jnp.bfloat16
    assert low(batch).logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(nnx.state(low))} == {jnp.dtype("float32")}
    expected = model()(batch).hidden
    assert jnp.abs(low(batch).hidden.astype(jnp.float32) - expected).mean() < 0.05 * jnp.abs(expected).mean()


# Export and load ----------------------------------------------------------------------------------------------------------------


CONFIGS = {
    "tied": TINY,
    "untied": dataclasses.replace(TINY, tie_embeddings=False),
    "trained without shift": dataclasses.replace(TINY, modulation_shift=0.0),
    "order 3, one inner layer": dataclasses.replace(TINY, order=3, num_inner_mlps=1, n_layer=1),
    "wide vocabulary": dataclasses.replace(TINY, vocab_size=20, pad_vocab_size_multiple=1, activation_freq=1.0, emb_dim=3),
    "cnn": cnn.Config(input_len=90, embedding_dim=6),
    "cnn of 5 classes": cnn.Config(input_len=131, embedding_dim=4, number_of_classes=5),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_export_and_load_are_inverse(name, tmp_path):
    config = CONFIGS[name]
    family = get_family("cnn" if isinstance(config, cnn.Config) else "hyenadna")
    made = family.build(config, nnx.Rngs(5))
    graphdef, state = nnx.split(made)
    rng = np.random.default_rng(3)  # every array random, so that no two can be taken for each other
    random = lambda x: jnp.asarray(rng.uniform(0.1, 1, x.shape).astype(x.dtype))  # noqa: E731
    fixed = ("filter.z", "filter.t", "filter.deltas")
    named = named_arrays(state)
    from jaxgen.layers.variables import with_arrays

    state = with_arrays(state, {key: x if key.endswith(fixed) else random(x) for key, x in named.items()})
    made = nnx.merge(graphdef, state)
    loaded = jaxgen.load(str(jaxgen.export(made, tmp_path / "public")))
    assert loaded.config == config
    before, after = named_arrays(state), named_arrays(nnx.state(loaded.model))
    assert before.keys() == after.keys()
    for key, x in before.items():
        np.testing.assert_array_equal(after[key], x, err_msg=key)
    batch = tokens(length=getattr(config, "input_len", LENGTH))
    np.testing.assert_array_equal(loaded(batch).hidden, made(batch).hidden)


def test_the_hubs_epsilon_is_that_of_the_last_norm_only(tmp_path):
    """The hub's HyenaDNA code leaves the norms in the blocks at torch's default."""
    config = dataclasses.replace(TINY, final_norm_epsilon=1e-3)
    folder = jaxgen.export(hyenadna.HyenaDNA(config, nnx.Rngs(0)), tmp_path)
    public = json.loads((folder / "config.json").read_text())
    assert public["layer_norm_epsilon"] == 1e-3
    del public["block_norm_epsilon"]  # which only we write
    (folder / "config.json").write_text(json.dumps(public))
    read = jaxgen.load(str(folder)).config
    assert (read.layer_norm_epsilon, read.final_norm_epsilon) == (1e-5, 1e-3)


def test_a_config_that_lacks_a_field_is_named(tmp_path):
    folder = jaxgen.export(hyenadna.HyenaDNA(TINY, nnx.Rngs(0)), tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "hyenadna"}))
    with pytest.raises(InputError, match="lacks 'd_model'"):
        jaxgen.load(str(folder))


@pytest.mark.parametrize(
    ("name", "value"), [("d_model", "wide"), ("n_layer", -1), ("n_layer", None), ("layer_norm_epsilon", "0"), ("d_inner", "x")]
)
def test_a_config_of_which_no_model_can_be_made(name, value, tmp_path):
    folder = jaxgen.export(hyenadna.HyenaDNA(TINY, nnx.Rngs(0)), tmp_path)
    public = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(public | {name: value}))
    with pytest.raises(InputError, match="the config"):
        jaxgen.load(str(folder))


def test_a_failed_export_keeps_the_config_that_was_there(tmp_path, monkeypatch):
    made = get_family("cnn").build(CONFIGS["cnn"], nnx.Rngs(5))
    before = (jaxgen.export(made, tmp_path) / "config.json").read_text()

    def full(path, *_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr("jaxgen.models.pretrained.write_safetensors", lambda *_: None)
    with pytest.raises(OSError, match="no space"):
        jaxgen.export(made, tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    assert not list(tmp_path.glob(".*"))


def test_head_of_a_public_classifier_is_kept(tmp_path):
    from jaxgen.checkpoints.readers import read_tensors
    from jaxgen.checkpoints.safetensors_io import write_safetensors

    folder = jaxgen.export(hyenadna.HyenaDNA(TINY, nnx.Rngs(0)), tmp_path / "a")
    score = np.ones((2, 16), np.float32)
    write_safetensors(folder / "model.safetensors", read_tensors(folder / "model.safetensors") | {"score.weight": score})
    loaded = jaxgen.load(str(folder))
    np.testing.assert_array_equal(loaded.head["score.weight"], score)
    again = jaxgen.load(str(jaxgen.export(loaded, tmp_path / "b")))
    np.testing.assert_array_equal(again.head["score.weight"], score)


def test_load_in_bfloat16_keeps_float32_parameters(tmp_path):
    folder = str(jaxgen.export(hyenadna.HyenaDNA(TINY, nnx.Rngs(0)), tmp_path))
    low = jaxgen.load(folder, dtype="bfloat16")
    assert jaxgen.load(folder, dtype=jnp.bfloat16).config == low.config
    assert low(tokens()).hidden.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(nnx.state(low.model))} == {jnp.dtype("float32")}
    assert jaxgen.load(folder, modulation_shift=0.0).config.modulation_shift == 0.0
    with pytest.raises(InputError, match="no such field"):
        jaxgen.load(folder, modulation_shit=0.0)
    for wrong in ("bf16", "float16", jnp.int32):
        with pytest.raises(InputError, match="dtype="):
            jaxgen.load(folder, dtype=wrong)


# Names --------------------------------------------------------------------------------------------------------------------------


def test_every_name_resolves():
    assert set(FAMILIES) <= set(model_names())
    for name in model_names():
        family, config = resolve(name)
        assert isinstance(config, family.config)
        assert name.startswith(family.name)
    for family in map(get_family, FAMILIES):
        assert "smoke" in family.sizes
        assert set(family.hub) <= set(family.sizes)


@pytest.mark.parametrize("name", ["hyena", "hyenadna_tny_1k", "", "CNN"])
def test_unknown_names(name):
    with pytest.raises(InputError, match=r"did you mean|choose one of"):
        resolve(name)


# Pooling ------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_pooling_by_mask_is_pooling_without_the_padding(length, pads, seed):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(2, length, 3)).astype(np.float32)
    filler = np.full((2, pads, 3), 1e6, np.float32)
    for side in ("left", "right"):
        parts = (filler, hidden) if side == "left" else (hidden, filler)
        mask = np.concatenate([np.full((2, part.shape[1]), part is hidden) for part in parts], 1)
        for mode in MODES:
            ours = pool(jnp.asarray(np.concatenate(parts, 1)), mode, jnp.asarray(mask))
            np.testing.assert_allclose(ours, pool(jnp.asarray(hidden), mode), rtol=1e-4, atol=1e-5, err_msg=f"{mode} {side}")


@pytest.mark.parametrize(("mode", "expected"), [("mean", 2.0), ("sum", 6.0), ("max", 3.0), ("first", 1.0), ("last", 3.0)])
def test_poolings(mode, expected):
    assert pool(jnp.asarray([[[1.0], [2.0], [3.0]]]), mode).tolist() == [[expected]]


def test_cnn_is_built_for_one_length():
    with pytest.raises(InputError, match="input_len 200"):
        cnn.CNN(cnn.Config(), nnx.Rngs(0))(tokens(length=199))
    with pytest.raises(InputError, match="at least 57"):
        cnn.CNN(cnn.Config(input_len=56), nnx.Rngs(0))
    assert cnn.CNN(cnn.Config(input_len=57), nnx.Rngs(0))(tokens(length=57)).hidden.shape == (3, 2)
