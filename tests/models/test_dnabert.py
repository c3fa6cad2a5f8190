"""DNABERT and DNABERT-2: properties that no golden number shows, and fine-tuning by the real job."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen.errors import InputError
from jaxgen.layers.alibi import alibi_slopes
from jaxgen.layers.bert import Bert
from jaxgen.layers.variables import named_arrays
from jaxgen.models import dnabert, dnabert2
from jaxgen.models.registry import resolve

SHAPE = {"d_model": 32, "n_layer": 2, "n_heads": 4, "d_inner": 48, "initializer_range": 0.3}
CONFIGS = {
    "dnabert": dnabert.Config(vocab_size=69, max_positions=48, **SHAPE),
    "dnabert2": dnabert2.Config(vocab_size=80, alibi_starting_size=16, **SHAPE),
}
BUILD = {"dnabert": dnabert.DNABert, "dnabert2": dnabert2.DNABert2}
BOTH = pytest.mark.parametrize("family", sorted(CONFIGS))
TINY = {f"model__config__{name}": value for name, value in SHAPE.items() if name != "initializer_range"}


@functools.cache
def model(family: str, **fields: int) -> Bert:
    return BUILD[family](dataclasses.replace(CONFIGS[family], **fields), nnx.Rngs(0))


def tokens(rows: int = 3, length: int = 24, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(5, 69, (rows, length)), jnp.int32)


@BOTH
def test_padding_and_other_rows_change_nothing(family):
    bare, pads = tokens(length=19), 5
    padded = jnp.pad(bare, ((0, 0), (0, pads)), constant_values=3)
    mask = jnp.broadcast_to(jnp.arange(24) < 19, padded.shape)
    ours, expected = (model(family, num_labels=2)(*args[:1], mask=args[1]) for args in ((padded, mask), (bare, None)))
    np.testing.assert_allclose(ours.hidden[:, :19], expected.hidden, atol=2e-5)
    np.testing.assert_allclose(ours.predictions, expected.predictions, atol=2e-5)
    np.testing.assert_allclose(model(family, num_labels=2)(bare[1:2]).predictions, expected.predictions[1:2], atol=2e-5)
    # Without a mask padding is attended to, as in the original.
    assert jnp.abs(model(family, num_labels=2)(padded).hidden[:, :19] - expected.hidden).max() > 1e-3


def test_dnabert2_leaves_exact_zeros_at_padding():
    mask = jnp.arange(24) < jnp.array([[24], [10], [1]])
    output = model("dnabert2")(tokens(), mask=mask, hidden_states=True)
    assert (output.hidden[~mask] == 0).all()
    assert (output.hidden_states[1:][:, ~mask] == 0).all()
    assert jnp.isfinite(output.logits).all()


def test_dnabert2_takes_more_than_the_length_of_training():
    long = tokens(1, 150)
    output = model("dnabert2")(long, attentions=True)
    assert output.hidden.shape == (1, 150, 32)
    np.testing.assert_allclose(output.attentions.sum(-1), 1, atol=1e-5)
    slopes, distance = alibi_slopes(12), 3
    np.testing.assert_allclose(slopes[:8], 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(slopes[8:], 2.0 ** -np.array([0.5, 1.5, 2.5, 3.5]))
    # The further away a change, the less it matters: here nothing else tells positions apart.
    changed = long.at[0, 0].set(5 + (long[0, 0] - 4) % 60)
    effect = jnp.abs(model("dnabert2")(changed).hidden - output.hidden).max(-1)[0]
    assert effect[1 : 1 + distance].max() > effect[-50:].max()


def test_dnabert_refuses_more_than_its_positions():
    with pytest.raises(InputError, match="longer than the model's 48 positions"):
        model("dnabert")(tokens(1, 49))


@BOTH
def test_outputs(family):
    fields = {} if family == "dnabert" else {"add_pooling_layer": True}
    output = model(family, **fields)(tokens(), hidden_states=True, attentions=True)
    assert output.logits.shape == (3, 24, CONFIGS[family].vocab_size)
    assert output.hidden_states.shape == (3, 3, 24, 32)
    np.testing.assert_array_equal(output.hidden_states[-1], output.hidden)
    np.testing.assert_array_equal(output.hidden_states[0], model(family, **fields).embed(tokens()))
    assert output.attentions.shape == (2, 3, 4, 24, 24)
    assert output.predictions is None
    assert model(family, **fields).pool(output.hidden).shape == (3, 32)
    assert model(family, num_labels=3)(tokens()).logits is None
    segments = jnp.zeros_like(tokens()).at[:, 12:].set(1)
    assert jnp.abs(model(family, **fields)(tokens(), token_types=segments).hidden - output.hidden).max() > 1e-3


def test_a_model_without_pooler_says_so():
    with pytest.raises(InputError, match="no pooler"):
        model("dnabert2").pool(jnp.zeros((1, 2, 32)))


@BOTH
def test_dropout_needs_a_key_and_differs_by_key(family):
    ours = model(family)
    a, b, c = (ours(tokens(), key=key).hidden for key in (jax.random.key(0), jax.random.key(1), None))
    assert jnp.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(ours(tokens()).hidden, c)


@BOTH
def test_bfloat16_follows_float32(family):
    exact, half = (model(family, dtype=dtype)(tokens()) for dtype in ("float32", "bfloat16"))
    assert half.hidden.dtype == jnp.bfloat16
    assert half.logits.dtype == jnp.float32
    assert jnp.abs(half.hidden - exact.hidden).mean() < 0.1


@BOTH
def test_devices_do_not_change_the_result(family):
    from jaxgen.layers.variables import is_variable
    from jaxgen.train.sharding import make_mesh, state_shardings

    ours = model(family)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1})
    graphdef, state = nnx.split(ours)
    shardings = state_shardings(mesh, state)
    leaves = zip(jax.tree.leaves(state, is_leaf=is_variable), jax.tree.leaves(shardings, is_leaf=is_variable))
    placed = [leaf.replace(jax.device_put(leaf.get_value(), to.get_value())) for leaf, to in leaves]
    spread = jax.tree.unflatten(jax.tree.structure(state, is_leaf=is_variable), placed)
    batch, mask = tokens(4), jnp.arange(24) < jnp.array([[24], [10], [3], [24]])
    with jax.set_mesh(mesh):
        sharded = jax.jit(lambda state, batch, mask: nnx.merge(graphdef, state)(batch, mask=mask).hidden)(spread, batch, mask)
    np.testing.assert_allclose(np.asarray(sharded)[mask], ours(batch, mask=mask).hidden[mask], atol=2e-5)


def test_published_sizes():
    counts = {}
    for name in ("dnabert_6mer", "dnabert2"):
        family, config = resolve(name)
        shapes = nnx.eval_shape(lambda family=family, config=config: family.build(config, nnx.Rngs(0)))
        counts[name] = sum(x.size for x in named_arrays(nnx.state(shapes)).values())
    assert counts["dnabert_6mer"] == pytest.approx(89.8e6, rel=2e-2)
    assert counts["dnabert2"] == pytest.approx(117e6, rel=2e-2)
    assert [dnabert.k_of(dnabert.SIZES[f"{k}mer"]) for k in dnabert.K] == list(dnabert.K)


# Files --------------------------------------------------------------------------------------------------------------------------


@BOTH
def test_an_activation_nobody_published_is_refused(family, tmp_path):
    case = {"dnabert": "seqcls", "dnabert2": "seqcls_12heads"}[family]
    folder = Path(shutil.copytree(helpers.golden_case(family, case), tmp_path / "case"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(InputError, match="hidden_act='relu'"):
        jaxgen.load(str(folder))


def test_the_vocabulary_of_the_folder_is_used_and_exported(tmp_path):
    folder = Path(shutil.copytree(helpers.golden_case("dnabert2", "mlm_eps"), tmp_path / "case"))
    assert jaxgen.load(str(folder)).tokenizer is None
    shutil.copy(helpers.golden_case("tokenizers", "bpe_tiny") / "tokenizer.json", folder)
    pretrained = jaxgen.load(str(folder))
    ids = pretrained.tokenizer.encode("ACGTACG")
    assert ids.tolist() == [1, 52, 29, 2]
    again = jaxgen.load(str(jaxgen.export(pretrained, tmp_path / "exported")))
    assert again.tokenizer.encode("ACGTACG").tolist() == ids.tolist()
    np.testing.assert_array_equal(again(ids[None]).logits, pretrained(ids[None]).logits)


def test_dnabert_brings_its_tokenizer():
    tokenizer = jaxgen.load(str(helpers.golden_case("dnabert", "seqcls"))).tokenizer
    assert (tokenizer.name, tokenizer.k) == ("dnabert", 3)


# Jobs ---------------------------------------------------------------------------------------------------------------------------


def test_a_learned_vocabulary_stays_with_the_run(tmp_path, table, run_here):
    workdir = tmp_path / "run"
    arguments = helpers.finetune("dnabert2_smoke", table, **TINY, model__config__vocab_size=64, data__rc_aug="true", data__buckets=1)
    ended = run_here([*arguments, f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    assert "learned 64 tokens from the training split" in ended.err
    before, vocabulary = helpers.outcome(workdir), (workdir / "tokenizer.json").read_text()
    # Killed after its last but one checkpoint, the run goes on with the vocabulary it began with.
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "step_12")
    ended = run_here([*arguments, f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    assert "resumed from step 8" in ended.err
    assert "no vocabulary given" not in ended.err
    assert (workdir / "tokenizer.json").read_text() == vocabulary
    after = helpers.outcome(workdir)
    assert (after["params_digest"], after["metrics"]) == (before["params_digest"], before["metrics"])
    pretrained = jaxgen.load(str(workdir))
    assert pretrained.tokenizer.vocab_size == 64
    assert pretrained.config.num_labels == 2
    # Another run starts from it, on its vocabulary, without being told.
    arguments = helpers.finetune("dnabert2", table, train__steps=4, train__schedule__warmup_steps=0, init_from=workdir, data__buckets=1)
    ended = run_here([*arguments, f"--workdir={tmp_path / 'second'}"])
    assert ended.code == 0, ended.err
    assert (tmp_path / "second" / "tokenizer.json").read_text() == vocabulary


def test_dnabert_finetunes_from_a_language_model(tmp_path, table, run_here):
    workdir = tmp_path / "run"
    start = helpers.golden_case("dnabert", "mlm")
    ended = run_here([*helpers.finetune("", table, init_from=start, data__max_length=24), f"--workdir={workdir}"])
    assert ended.code == 0, ended.err
    result = json.loads((workdir / "result.json").read_text())
    assert (result["model"], result["max_length"], result["truncated"]) == ("dnabert", 24, {"train": 120, "valid": 36, "test": 36})
    assert jaxgen.load(str(workdir)).config.num_labels == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__tokenizer": "nowhere.json"}, "nowhere.json: cannot be read as a tokenizer"),
        ({"model__tokenizer": "jaxgen"}, "model.tokenizer=jaxgen: the folder holds no vocabulary"),
        ({"model__config__vocab_size": 5}, "too small"),
    ],
)
def test_a_wrong_vocabulary_is_one_line(tmp_path, table, run_here, fields, message):
    ended = run_here([*helpers.finetune("dnabert2_smoke", table, **TINY | fields), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 2
    assert message in ended.error
    assert not (tmp_path / "run").exists()


def test_more_tokens_than_the_model_has(tmp_path, table, run_here):
    file = helpers.golden_case("tokenizers", "bpe_tiny") / "tokenizer.json"
    ended = run_here(
        [
            *helpers.finetune("dnabert2_smoke", table, **TINY, model__tokenizer=file, model__config__vocab_size=32),
            f"--workdir={tmp_path / 'r'}",
        ]
    )
    assert ended.code == 2
    assert "set model.config.vocab_size=64" in ended.error


def test_a_checkpoint_without_tokenizer_says_what_to_do(tmp_path, table, run_here):
    start = helpers.golden_case("dnabert2", "mlm_eps")
    ended = run_here([*helpers.finetune("dnabert2", table, init_from=start), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 2
    assert "holds no tokenizer.json; put it there or set model.tokenizer" in ended.error


# Hugging Face -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [0, 3])
def test_dnabert_equals_transformers(tmp_path, labels):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = transformers.BertConfig(
        vocab_size=69, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=32
    )
    config.num_labels = labels or 2
    torch.manual_seed(0)
    theirs = (transformers.BertForSequenceClassification if labels else transformers.BertForMaskedLM)(config).eval()
    theirs.save_pretrained(tmp_path)
    ids = np.asarray(tokens(2, 20))
    mask = np.arange(20) < np.array([[20], [11]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int))).logits.numpy()
    output = jaxgen.load(str(tmp_path)).model(jnp.asarray(ids), mask=jnp.asarray(mask))
    np.testing.assert_allclose(output.predictions if labels else output.logits, expected, atol=1e-5)
    # And back: transformers reads what we export.
    folder = jaxgen.export(jaxgen.load(str(tmp_path)), tmp_path / "exported")
    back = type(theirs).from_pretrained(folder).eval()
    with torch.no_grad():
        again = back(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int))).logits.numpy()
    np.testing.assert_allclose(again, expected, atol=1e-6)
