"""Mamba and Caduceus: reverse-complement symmetry, padding, causality, ties, meshes, and training through the real command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import golden_case
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxgen
from jaxgen.checkpoints.safetensors_io import read_safetensors, write_safetensors
from jaxgen.models import caduceus, mamba
from jaxgen.models.registry import resolve
from jaxgen.train.sharding import make_mesh

TINY = {"d_model": 8, "n_layer": 2, "d_state": 4}
COMPLEMENT = np.array([*caduceus.COMPLEMENT, 12, 13, 14, 15])


def build(config, seed: int = 0):
    """A model whose norms are not all ones."""
    model = (mamba.Mamba if isinstance(config, mamba.Config) else caduceus.Caduceus)(config, nnx.Rngs(seed))
    scale = model.blocks.norm.scale
    scale[...] = 1 + 0.3 * np.random.default_rng(seed).normal(size=scale.shape)
    return model


def tokens(length: int, batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(7, 12, (batch, length))


def reverse_complement(ids: np.ndarray) -> np.ndarray:
    return COMPLEMENT[ids[:, ::-1]]


@pytest.mark.parametrize("fused", [True, False])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.sampled_from([1, 6, 19]))
def test_caduceus_ps_is_equivariant(fused, seed, length):
    model = build(caduceus.PsConfig(**TINY, fused_add_norm=fused), seed)
    run = nnx.jit(lambda m, x: m(x))
    here, there = run(model, tokens(length, seed=seed)), run(model, reverse_complement(tokens(length, seed=seed)))
    np.testing.assert_allclose(there.hidden, here.hidden[:, ::-1, ::-1], atol=2e-5)
    np.testing.assert_allclose(there.logits, here.logits[:, ::-1][..., COMPLEMENT], atol=2e-5)
    # So what a head sees of one strand is what it sees of the other.
    np.testing.assert_allclose(caduceus.strands(there.hidden), caduceus.strands(here.hidden)[..., ::-1], atol=2e-5)


def test_caduceus_ph_is_not():
    model = build(caduceus.PhConfig(**TINY))
    here, there = model(tokens(9)), model(reverse_complement(tokens(9)))
    assert np.abs(there.logits - here.logits[:, ::-1][..., COMPLEMENT]).max() > 1e-3


@pytest.mark.parametrize(
    "config", [mamba.Config(**TINY), caduceus.PhConfig(**TINY), caduceus.PsConfig(**TINY)], ids=["mamba", "caduceus_ph", "caduceus_ps"]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_other_rows_change_nothing(config, side):
    model, ids = build(config), tokens(11, batch=3)
    width = ((0, 0), (5, 0) if side == "left" else (0, 5))
    padded, mask = np.pad(ids, width, constant_values=4), np.pad(np.ones_like(ids, bool), width)
    alone, beside = model(ids[:1]).hidden, model(padded, mask=mask).hidden[:1]
    np.testing.assert_allclose(beside[:, 5:] if side == "left" else beside[:, :11], alone, atol=2e-5)


def test_mamba_is_causal_and_caduceus_sees_both_sides():
    ids = tokens(12)
    changed = ids.copy()
    changed[:, 7] = 7 + (ids[:, 7] - 6) % 4
    difference = {}
    for name, config in (("mamba", mamba.Config(**TINY)), ("caduceus", caduceus.PhConfig(**TINY))):
        model = build(config)
        difference[name] = np.abs(model(ids).hidden - model(changed).hidden).max((0, 2))
    np.testing.assert_array_equal(difference["mamba"][:7], 0)
    assert (difference["caduceus"][:7] > 0).all()


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "sequence": 4}], ids=str)
def test_a_mesh_changes_nothing(sizes):
    model, ids = build(caduceus.PsConfig(**TINY)), tokens(32, batch=4)

    def loss(model, ids):
        return jnp.square(model(ids).logits).mean()

    def run():
        return nnx.jit(nnx.value_and_grad(loss))(model, ids)

    value, gradient = run()
    with jax.set_mesh(make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | sizes)):
        sharded_value, sharded = run()
    np.testing.assert_allclose(sharded_value, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), sharded, gradient)


@pytest.mark.parametrize("scan", ["blocked", "gpu"])
def test_any_scan_gives_the_same(scan):
    family, config = resolve("caduceus_ph_smoke")
    config = dataclasses.replace(config, d_model=64, n_layer=1)  # 128 channels, as the kernel asks for
    ids = tokens(12)
    one, other = (family.build(dataclasses.replace(config, scan=name), nnx.Rngs(0))(ids).logits for name in ("auto", scan))
    np.testing.assert_allclose(other, one, atol=1e-5)


def test_a_map_in_the_order_of_strings_is_put_right(tmp_path):
    """Saved again by the hub's library, a config lists "10" before "2"; only Ph lacks the tensor that says better."""
    case = golden_case("caduceus_ps", "mlm_fused_layernorm_untied")
    config = json.loads((case / "config.json").read_text())
    config["complement_map"] = dict(sorted(config["complement_map"].items()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = dict(read_safetensors(case / "model.safetensors"))
    write_safetensors(tmp_path / "model.safetensors", {n: x for n, x in tensors.items() if "complement_map" not in n or "lm_head" in n})
    ids = tokens(8)
    np.testing.assert_array_equal(jaxgen.load(tmp_path)(ids).logits, jaxgen.load(case)(ids).logits)


def test_files_of_the_bare_backbone_and_with_all_ties_load(tmp_path):
    case = golden_case("caduceus_ph", "mlm_unidirectional")
    tensors = {name.removeprefix("caduceus."): x for name, x in read_safetensors(case / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["backbone.embeddings.word_embeddings.weight"]
    (tmp_path / "config.json").write_text((case / "config.json").read_text())
    write_safetensors(tmp_path / "model.safetensors", tensors)
    ids = tokens(8)
    np.testing.assert_array_equal(jaxgen.load(tmp_path)(ids).logits, jaxgen.load(case)(ids).logits)


def test_published_sizes_have_their_published_parameters():
    for name in ("caduceus_ph_131k", "caduceus_ps_131k"):
        family, config = resolve(name)
        model = nnx.eval_shape(lambda: family.build(config, nnx.Rngs(0)))  # noqa: B023
        assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == 7_725_312


def test_plantcaduceus_has_its_own_vocabulary(tmp_path):
    family, config = resolve("caduceus_ps_plant_l20")
    model = nnx.eval_shape(lambda: family.build(config, nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == 20_870_016  # published as 20M
    config = dataclasses.replace(config, d_model=16, n_layer=2)
    jaxgen.export(family.build(config, nnx.Rngs(0)), tmp_path)
    loaded = jaxgen.load(tmp_path)
    assert loaded.tokenizer.name == "plantcaduceus"
    forward, reverse = (loaded.tokenizer.encode(text)[None] for text in ("GATTACA", "TGTAATC"))
    np.testing.assert_allclose(loaded(reverse).logits[:, ::-1, list(config.complement_map)], loaded(forward).logits, atol=1e-5)


def test_a_foreign_vocabulary_gets_no_tokenizer(tmp_path):
    family, config = resolve("caduceus_ph_smoke")
    config = dataclasses.replace(config, d_model=16, vocab_size=9, pad_vocab_size_multiple=1, complement_map=tuple(range(9)))
    jaxgen.export(family.build(config, nnx.Rngs(0)), tmp_path)
    assert jaxgen.load(tmp_path).tokenizer is None


def test_the_yaml_typo_means_true():
    public = {"config": {"d_model": 8, "n_layer": 1, "vocab_size": 12, "bidirectional": "true,", "ssm_cfg": {}}}
    config = caduceus.PH.read_config(public, {}, "last.ckpt")
    assert config.bidirectional is True
    assert dataclasses.replace(config).complement_map == tuple(COMPLEMENT)


@pytest.mark.parametrize("name", ["mamba", "caduceus_ph", "caduceus_ps"])
def test_trains_through_the_command(name, table, tmp_path, run_here):
    flags = ("--config.train.steps=4", "--config.train.epochs=0", "--config.train.batch_size=8", "--config.train.report=false")
    small = ("--config.model.config.d_model=16", "--config.model.config.n_layer=1")
    ran = run_here(
        [f"--config=configs/finetune.py:{name}_smoke,table", f"--config.data.path={table}", *flags, *small, f"--workdir={tmp_path / 'run'}"]
    )
    assert ran.code == 0, ran.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["nan_steps"] == 0
    assert jaxgen.load(tmp_path / "run").config.d_model == 16
