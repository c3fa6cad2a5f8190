"""GPT-Neo: properties that no golden number shows, and fine-tuning by the real job."""

import dataclasses
import functools
import json
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen.errors import InputError
from jaxgen.layers import stack
from jaxgen.layers.variables import named_arrays
from jaxgen.models import gpt_neo
from jaxgen.models.registry import resolve

SHAPE = {"d_model": 32, "n_layer": 2, "n_heads": 4, "d_inner": 48}
LAYERS = ("global", "local")
CONFIG = gpt_neo.Config(**SHAPE, vocab_size=80, max_positions=128, window=6, attention_layers=LAYERS, initializer_range=0.2)
LENGTH = 24


@functools.cache
def model(**fields: Any) -> helpers.Jitted:
    return helpers.Jitted(gpt_neo.GPTNeo(dataclasses.replace(CONFIG, **fields), nnx.Rngs(0)))


def tokens(rows: int = 3, length: int = LENGTH, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(1, 80, (rows, length)), jnp.int32)


@pytest.mark.parametrize("length", [LENGTH, 100])  # all scores at once, and in blocks
def test_causal_and_local(length):
    before, at = tokens(length=length), 5
    after = before.at[:, at].set(before[:, at] % 79 + 1)
    local = model(attention_layers=("local", "local"))
    a, b = local(before).logits, local(after).logits
    changed = np.asarray(jnp.abs(a - b).max((0, 2)) > 1e-5)
    reach = at + 2 * (CONFIG.window - 1)  # two layers
    assert not changed[:at].any()
    assert changed[at]
    assert not changed[reach + 1 :].any()
    a, b = model()(before).logits, model()(after).logits
    assert not (jnp.abs(a - b).max((0, 2)) > 1e-5)[:at].any()
    assert (jnp.abs(a - b).max((0, 2)) > 1e-6)[at:].all()


def test_padding_and_other_rows_change_nothing():
    bare = tokens(length=19)
    padded = jnp.pad(bare, ((0, 0), (0, LENGTH - 19)))
    mask = jnp.broadcast_to(jnp.arange(LENGTH) < 19, padded.shape)
    headed = model(num_labels=3)
    ours, expected = headed(padded, mask=mask), headed(bare)
    np.testing.assert_allclose(ours.hidden[:, :19], expected.hidden, atol=2e-5)
    np.testing.assert_allclose(ours.predictions, expected.predictions, atol=2e-5)
    np.testing.assert_allclose(headed(bare[1:2]).predictions, expected.predictions[1:2], atol=2e-5)
    assert ours.logits is None
    assert jnp.isfinite(headed(padded, mask=jnp.zeros_like(mask)).predictions).all()


def test_scanned_and_unrolled_layers_agree(monkeypatch):
    fields = {"n_layer": 3, "attention_layers": ("local", "global", "local")}
    unrolled = model(**fields)(tokens(), hidden_states=True, attentions=True)
    monkeypatch.setattr(stack, "UNROLL_UP_TO", 0)
    scanned = helpers.Jitted(model(**fields).module)(tokens(), hidden_states=True, attentions=True)
    assert scanned.hidden_states.shape == (4, 3, LENGTH, 32)
    assert scanned.attentions.shape == (3, 3, 4, LENGTH, LENGTH)
    np.testing.assert_allclose(scanned.logits, unrolled.logits, atol=1e-4)
    np.testing.assert_allclose(scanned.attentions, unrolled.attentions, atol=1e-5)
    np.testing.assert_array_equal(scanned.hidden_states[-1], scanned.hidden)


def test_bad_input():
    with pytest.raises(InputError, match="129 tokens is longer than its 128 positions"):
        model()(tokens(length=129))
    with pytest.raises(InputError, match="2 times 'global' or 'local'"):
        model(attention_layers=("global",))


def test_published_sizes():
    family, config = resolve("gpt_neo_125m")
    abstract = nnx.eval_shape(lambda: family.build(config, nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(abstract))) == 125_198_592


@pytest.mark.parametrize("labels", [0, 3])
def test_export_and_load_give_the_same(labels, tmp_path):
    made = model(num_labels=labels).module
    loaded = jaxgen.load(str(jaxgen.export(made, tmp_path)))
    assert loaded.config == made.config
    after = named_arrays(nnx.state(loaded.model))
    for name, x in named_arrays(nnx.state(made)).items():
        np.testing.assert_array_equal(after[name], x, err_msg=name)


def test_finetune_learns_its_vocabulary_and_keeps_it(tmp_path, run_here):
    table = helpers.write_table(tmp_path / "table", {"train": 48, "dev": 16, "test": 16})
    run = {"train__epochs": 0, "train__steps": 4, "train__batch_size": 16, "train__report": "false", "data__buckets": 1}
    run |= {f"model__config__{name}": value for name, value in SHAPE.items()} | {"model__config__vocab_size": 300}
    arguments = ["--config=configs/finetune.py:gpt_neo_smoke,table", *helpers.flags(**run | {"data__path": table})]
    ran = run_here([*arguments, f"--workdir={tmp_path}/w"])
    assert ran.code == 0, ran.err
    assert np.isfinite(json.loads((tmp_path / "w" / "result.json").read_text())["metrics"]["test"]["loss"])
    loaded = jaxgen.load(f"{tmp_path}/w")
    assert loaded.config.num_labels == 2
    ids = loaded.tokenizer.encode("ACGTACGTTT")
    assert loaded(jnp.asarray(ids)[None]).predictions.shape == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [0, 3])
def test_equals_gpt_neo_of_transformers(tmp_path, labels):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    shape = {"vocab_size": 80, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "max_position_embeddings": 40}
    options = {"attention_types": [[["global", "local"], 1]], "window_size": 6, "initializer_range": 0.2, "num_labels": labels or 2}
    config = transformers.GPTNeoConfig(**shape, **options, pad_token_id=0, attn_implementation="eager")
    torch.manual_seed(0)
    theirs = (transformers.GPTNeoForSequenceClassification if labels else transformers.GPTNeoForCausalLM)(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = jaxgen.load(str(tmp_path))
    ids, mask = np.array(tokens(length=20)), np.arange(20) < np.array([[20], [13], [7]])
    ids[~mask] = 0
    with torch.no_grad():
        expected = theirs(torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask), output_hidden_states=True)
    output = ours(ids, mask=jnp.asarray(mask), hidden_states=True)
    np.testing.assert_allclose(output.predictions if labels else np.asarray(output.logits), expected.logits, atol=2e-4)
    for mine, reference in zip(output.hidden_states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(mine, reference.numpy(), atol=2e-4)
    again = type(theirs).from_pretrained(jaxgen.export(ours, tmp_path / "again"), attn_implementation="eager")
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)


def test_an_untied_head_survives_export(tmp_path):
    """And gives its logits in one pass and step by step."""
    untied = gpt_neo.GPTNeo(dataclasses.replace(CONFIG, tie_embeddings=False), nnx.Rngs(0))
    ours = untied(tokens())
    again = jaxgen.load(str(jaxgen.export(untied, tmp_path)))
    assert not again.config.tie_embeddings
    np.testing.assert_array_equal(again.model(tokens()).logits, ours.logits)
    np.testing.assert_allclose(untied.prefill(tokens(), LENGTH)[0], ours.logits[:, -1], atol=1e-4)
    tied = jaxgen.load(str(tmp_path), num_labels=2)
    assert tied.model(tokens()).predictions.shape == (3, 2)
