"""Nucleotide Transformer: properties that no golden number shows, the Haiku layout, and fine-tuning by the real job."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxgen
from jaxgen.errors import InputError
from jaxgen.heads.predictor import DirectPredictor, LanguageModel
from jaxgen.layers.variables import named_arrays
from jaxgen.models import nucleotide_transformer as nt
from jaxgen.models.registry import resolve
from jaxgen.train import objectives
from jaxgen.train.sharding import make_mesh, put_batch
from jaxgen.train.state import Program, compile_train_step, init_state

SHAPE = {"d_model": 32, "n_layer": 2, "n_heads": 4, "d_inner": 48, "vocab_size": 75, "max_positions": 130, "initializer_range": 0.3}
CONFIGS = {"nt_v1": nt.ConfigV1(**SHAPE), "nt_v2": nt.ConfigV2(**SHAPE)}
BOTH = pytest.mark.parametrize("family", sorted(CONFIGS))
LENGTH = 24


@functools.cache
def model(family: str, **fields: Any) -> helpers.Jitted:
    return helpers.Jitted(nt.NucleotideTransformer(dataclasses.replace(CONFIGS[family], **fields), nnx.Rngs(0)))


def tokens(rows: int = 3, length: int = LENGTH, seed: int = 0) -> jax.Array:
    ids = np.random.default_rng(seed).integers(6, 70, (rows, length))
    ids[:, 0] = 3
    return jnp.asarray(ids, jnp.int32)


@BOTH
@pytest.mark.parametrize("numerics", ["hf", "haiku"])
def test_padding_and_other_rows_change_nothing(family, numerics):
    bare = tokens(length=19)
    padded = jnp.pad(bare, ((0, 0), (0, LENGTH - 19)), constant_values=1)
    mask = padded != 1
    fields = {"numerics": numerics, "token_dropout": True}
    ours, expected = model(family, **fields)(padded, mask=mask), model(family, **fields)(bare)
    np.testing.assert_allclose(ours.hidden[:, :19], expected.hidden, atol=5e-5)
    np.testing.assert_allclose(ours.logits[:, :19], expected.logits, atol=2e-4)
    np.testing.assert_allclose(model(family, **fields)(bare[1:2]).hidden, expected.hidden[1:2], atol=5e-5)
    without = model(family, **fields)(padded).hidden[:, :19]
    if numerics == "haiku":  # knows its padding
        np.testing.assert_allclose(without, expected.hidden, atol=5e-5)
        assert (ours.logits[:, 19:] == 0).all()
    else:  # as the original: without a mask padding is attended to
        assert jnp.abs(without - expected.hidden).max() > 1e-3


@BOTH
def test_outputs(family):
    output = model(family)(tokens(), hidden_states=True, attentions=True)
    assert output.logits.shape == (3, LENGTH, 75)
    assert output.hidden_states.shape == (3, 3, LENGTH, 32)
    np.testing.assert_array_equal(output.hidden_states[-1], output.hidden)
    assert output.attentions.shape == (2, 3, 4, LENGTH, LENGTH)
    np.testing.assert_allclose(output.attentions.sum(-1), 1, atol=1e-5)
    plain = model(family)(tokens())
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert plain.predictions is None
    np.testing.assert_allclose(plain.logits, output.logits, atol=2e-4)
    headed = model(family, num_labels=3)(tokens())
    assert headed.logits is None
    assert headed.predictions.shape == (3, 3)


@BOTH
def test_a_row_of_padding_or_masks_is_finite(family):
    """Evaluation fills its last batch with rows that do not count; their numbers must not spoil a sum."""
    batch = jnp.stack([jnp.full(LENGTH, 1), jnp.full(LENGTH, 2), tokens()[0]])
    mask = jnp.asarray([[False], [True], [True]]) & jnp.ones((3, LENGTH), bool)
    for numerics in ("hf", "haiku"):
        output = model(family, token_dropout=True, numerics=numerics)(batch, mask=mask)
        assert jnp.isfinite(output.logits).all()


def test_positions_of_v1_count_real_tokens_and_end():
    with pytest.raises(InputError, match="129 tokens is longer than the 128 positions"):
        model("nt_v1")(tokens(length=129))
    shuffled = model("nt_v2")(tokens(length=150)).hidden  # rotary: no end
    assert shuffled.shape == (3, 150, 32)


def test_bad_configs():
    with pytest.raises(InputError, match="numerics='jax'"):
        model("nt_v2", numerics="jax")
    with pytest.raises(InputError, match="makes no 5 heads"):
        model("nt_v2", n_heads=5)


@BOTH
def test_dropout_needs_a_key_and_differs_by_key(family):
    ours = model(family, hidden_dropout=0.3, attention_dropout=0.2, num_labels=2)
    a, b, c = (ours(tokens(), key=key).predictions for key in (jax.random.key(0), jax.random.key(1), None))
    assert jnp.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(ours(tokens()).predictions, c)


@BOTH
def test_bfloat16_follows_float32(family):
    exact, half = (model(family, dtype=dtype)(tokens()) for dtype in ("float32", "bfloat16"))
    assert half.hidden.dtype == jnp.bfloat16
    assert half.logits.dtype == jnp.float32
    assert jnp.abs(half.hidden - exact.hidden).mean() < 0.1


def test_published_sizes():
    """Parameters of the published models, without the tensors that nothing reads (positions of v2, contact head)."""
    counts = {}
    for name in ("nt_v2_50m", "nt_v2_100m", "nt_v2_250m", "nt_v2_500m", "nt_v1_500m_human_ref"):
        family, config = resolve(name)
        abstract = nnx.eval_shape(lambda family=family, config=config: family.build(config, nnx.Rngs(0)))
        counts[name] = sum(x.size for x in jax.tree.leaves(nnx.state(abstract)))
        unused = config.max_positions * config.d_model + config.n_layer * config.n_heads + 1 if config.rotary else 0
        counts[name] += unused
    assert counts["nt_v2_50m"] == 55_904_972
    assert counts["nt_v2_100m"] == 97_889_132
    assert counts["nt_v2_250m"] == 235_120_780
    assert counts["nt_v2_500m"] == 498_345_436


# Public files -------------------------------------------------------------------------------------------------------------------


@BOTH
def test_export_and_load_give_the_same(family, tmp_path):
    for fields in ({}, {"num_labels": 3}, {"numerics": "haiku", "layer_norm_eps": 1e-5}, {"norm_embeddings": True, "ffn_bias": True}):
        made = model(family, **fields).module
        folder = jaxgen.export(made, tmp_path / str(len(fields)) / str(fields.get("num_labels")))
        loaded = jaxgen.load(str(folder))
        assert loaded.config == made.config
        after = named_arrays(nnx.state(loaded.model))
        for name, x in named_arrays(nnx.state(made)).items():
            np.testing.assert_array_equal(after[name], x, err_msg=name)


def haiku_tree(made: nt.NucleotideTransformer, root: str, attention: str, norm: str, head: str) -> dict[str, np.ndarray]:
    """The model under the names of the official Haiku code."""
    x = {name: np.asarray(array) for name, array in named_arrays(nnx.state(made)).items()}
    tree = {f"{root}/~/embed|embeddings": x["embedding.table"]}
    if made.positions is not None:
        tree[f"{root}/~/esm_learned_positional_embeddings/~/embed|embeddings"] = x["positions.table"]
    for i in range(made.config.n_layer):
        layer = f"{root}/attention_layer_{i}/~/"
        for public, ours in ((norm, "attention_norm"), ("final_layer_norm", "ffn_norm")):
            tree |= {f"{layer}{public}|{p}": x[f"blocks.{ours}.{o}"][i] for p, o in (("scale", "scale"), ("offset", "bias"))}
        for public, ours in (("query", "query"), ("key", "key"), ("value", "value"), ("mha_output", "out")):
            for p, o in (("w", "kernel"), ("b", "bias")):
                tree[f"{layer}{attention}/{public}|{p}"] = x[f"blocks.attention.{ours}.{o}"][i]
        for p, o in (("w", "kernel"), ("b", "bias"))[: 1 + made.config.ffn_bias]:
            up = [x[f"blocks.gate.{o}"][i]] if made.config.gated else []
            tree[f"{layer}fc1|{p}"] = np.concatenate([*up, x[f"blocks.up.{o}"][i]], -1)
            tree[f"{layer}fc2|{p}"] = x[f"blocks.down.{o}"][i]
    for public, ours in (("emb_layer_norm_after", "norm"), ("lm_head_layer_norm", "lm_head.norm")):
        tree |= {f"{root}/~/{head}/~/{public}|{p}": x[f"{ours}.{o}"] for p, o in (("scale", "scale"), ("offset", "bias"))}
    for public, ours in (("lm_head_fc_1", "lm_head.dense"), ("lm_final_fc", "lm_head.decoder")):
        tree |= {f"{root}/~/{head}/~/{public}|{p}": x[f"{ours}.{o}"] for p, o in (("w", "kernel"), ("b", "bias"))}
    return tree


@BOTH
@pytest.mark.parametrize("as_published", [True, False])
def test_haiku_checkpoints(family, as_published, tmp_path):
    """Both spellings of the module names; v1's hyperparams.json leaves out what only v2 has."""
    made = model(family, numerics="haiku", layer_norm_eps=1e-5).module
    names = ("esm_transformer", "mha", "mha_layer_norm", "esm_roberta_lm_head")
    renamed = ("nucleotide_transformer500M_x", "self_attention", "self_attention_layer_norm", "roberta_lm_head")
    np.savez(tmp_path / "params.npz", **haiku_tree(made, *(names if as_published else renamed)))
    c = made.config
    hyperparams = {"k_for_kmers": 3, "max_positions": c.max_positions - 2, "embed_scale": 1.0, "emb_layer_norm_before": False}
    hyperparams |= {"attention_heads": c.n_heads, "embed_dim": c.d_model, "ffn_embed_dim": c.d_inner, "num_layers": c.n_layer}
    hyperparams |= {"token_dropout": True, "masking_ratio": 0.2, "masking_prob": 0.5}
    if family == "nt_v2":
        hyperparams |= {"positional_embedding": None, "add_bias_ffn": False, "use_glu_in_ffn": True, "use_rotary_embedding": True}
        hyperparams |= {"ffn_activation_name": "swish"}
    (tmp_path / "hyperparams.json").write_text(json.dumps(hyperparams))
    loaded = jaxgen.load(str(tmp_path))
    assert loaded.config == dataclasses.replace(c, token_dropout=True, expected_masked=0.1, initializer_range=0.02)
    expected = model(family, numerics="haiku", layer_norm_eps=1e-5, token_dropout=True, expected_masked=0.1)(tokens()).logits
    np.testing.assert_array_equal(helpers.Jitted(loaded.model)(tokens()).logits, expected)
    for theirs, ours in (("gelu", "gelu_tanh"), ("swish", "silu")):
        (tmp_path / "hyperparams.json").write_text(json.dumps(hyperparams | {"ffn_activation_name": theirs}))
        again = jaxgen.load(str(jaxgen.export(jaxgen.load(str(tmp_path)), tmp_path / theirs)))
        assert again.config.activation == ours
    (tmp_path / "hyperparams.json").write_text(json.dumps(hyperparams | {"ffn_activation_name": "sin"}))
    with pytest.raises(InputError, match="'sin'"):
        jaxgen.load(str(tmp_path))
    (tmp_path / "hyperparams.json").write_text(json.dumps(hyperparams | {"add_bias_kv": True}))
    with pytest.raises(InputError, match="add_bias_kv"):
        jaxgen.load(str(tmp_path))


def test_a_protein_model_is_not_taken_for_it(tmp_path):
    folder = jaxgen.export(model("nt_v1").module, tmp_path)
    public = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(public | {"model_type": "bert"}))
    with pytest.raises(InputError, match="model_type 'bert'"):
        jaxgen.load(str(folder))


# Training -----------------------------------------------------------------------------------------------------------------------


def train(mesh: jax.sharding.Mesh, family: str, labels: int, steps: int = 3) -> list[float]:
    config = dataclasses.replace(CONFIGS[family], num_labels=labels, initializer_range=0.05)

    def build(key: jax.Array) -> nnx.Module:
        made = nt.NucleotideTransformer(config, nnx.Rngs(key))
        return DirectPredictor(made) if labels else LanguageModel(made)

    graphdef, optimizer, state = init_state(build, (), lambda params: optax.adam(3e-3), mesh, 0, False)
    objective = objectives.classification if labels else objectives.token_cross_entropy(1)
    program, losses, step = Program(graphdef, objective, optimizer, mesh), [], None
    for seed in range(steps):
        ids = np.array(tokens(8, 96, seed))
        lengths = np.random.default_rng(seed).integers(40, 97, 8)
        mask = np.arange(96) < lengths[:, None]
        ids[~mask] = 1
        batch = {"tokens": ids, "weight": np.ones(8, np.float32)}
        batch |= {"mask": mask, "target": np.arange(8, dtype=np.int32) % 2} if labels else {"targets": ids}
        placed = put_batch(mesh, batch)
        step = step or compile_train_step(program, state, placed)
        state, metrics = step(state, placed)
        losses.append(float(metrics["loss"]))
    return losses


MESHES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    pytest.param({"tensor": 4, "sequence": 2}, marks=pytest.mark.slow),
    pytest.param({"data": 2, "sequence": 4}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize(("family", "labels"), [("nt_v2", 2), pytest.param("nt_v1", 0, marks=pytest.mark.slow)])
def test_same_losses_on_a_mesh_as_on_one_device(sizes, family, labels):
    alone = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
    expected = train(make_mesh(alone, jax.devices()[:1]), family, labels)
    np.testing.assert_allclose(train(make_mesh(alone | sizes), family, labels), expected, atol=1e-5)
    assert len(set(expected)) == len(expected)


@pytest.fixture(scope="module")
def short_table(tmp_path_factory) -> Path:
    return helpers.write_table(tmp_path_factory.mktemp("nt"), {"train": 48, "dev": 16, "test": 16})


def finetune(table: Path, **fields: Any) -> list[str]:
    tiny = {f"model__config__{name}": value for name, value in SHAPE.items() if name in ("d_model", "n_layer", "n_heads", "d_inner")}
    run = {"train__epochs": 0, "train__steps": 4, "train__batch_size": 16, "train__report": "false", "data__buckets": 1}
    return ["--config=configs/finetune.py:nt_v2_smoke,table", *helpers.flags(**run | tiny | {"data__path": table} | fields)]


def test_finetune_with_its_own_head_from_scratch_and_on(short_table, tmp_path, run_here):
    """From scratch; then from that run with another head; then from a language model: what fits is kept, heads that do not are fresh."""
    first = run_here([*finetune(short_table), f"--workdir={tmp_path}/a"])
    assert first.code == 0, first.err
    loaded = jaxgen.load(f"{tmp_path}/a")
    assert loaded.config.num_labels == 2
    assert loaded.tokenizer.encode("ACGTAC").tolist()[0] == 3  # <cls>
    assert loaded(tokens()).predictions.shape == (3, 2)
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["max_length"] == 24  # <cls>, 96 / 6 k-mers, 0 ... 5 bases

    pooled = run_here([*finetune(short_table, head__kind="pooled", init_from=f"{tmp_path}/a"), f"--workdir={tmp_path}/b"])
    assert pooled.code == 0, pooled.err
    assert jaxgen.load(f"{tmp_path}/b").config.num_labels == 0

    language_model = jaxgen.export(jaxgen.load(f"{tmp_path}/b"), tmp_path / "public")
    last = run_here([*finetune(short_table, init_from=language_model, model__freeze=r"^backbone\.blocks"), f"--workdir={tmp_path}/c"])
    assert last.code == 0, last.err
    before, after = (named_arrays(nnx.state(jaxgen.load(f"{tmp_path}/{x}").model)) for x in "bc")
    np.testing.assert_array_equal(after["blocks.up.kernel"], before["blocks.up.kernel"])
    assert "classifier.out.kernel" in after


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head__kind": "owm"}, "did you mean 'own'"),
        ({"model__name": "cnn_smoke", "head__kind": "pooled", "model__config__embedding_dim": 8}, "ends in its own classifier"),
        ({"model__name": "hyenadna_smoke", "head__kind": "own"}, "without a classification head"),
    ],
)
def test_heads_that_cannot_be(short_table, tmp_path, run_here, fields, message):
    config = [flag for flag in finetune(short_table, **fields) if "model.config" not in flag or fields.get("model__name") is None]
    ran = run_here([*config, f"--workdir={tmp_path}/w"])
    assert ran.code == 2
    assert message in ran.error


# Against transformers (extra `parity`) ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("labels", [0, 3])
def test_v1_equals_esm_of_transformers(tmp_path, labels):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    shape |= {"vocab_size": 73, "max_position_embeddings": 40, "pad_token_id": 1, "mask_token_id": 2, "num_labels": labels or 2}
    options = {"token_dropout": True, "position_embedding_type": "absolute", "layer_norm_eps": 1e-5, "initializer_range": 0.2}
    config = transformers.EsmConfig(**shape, **options, tie_word_embeddings=False, attn_implementation="eager")
    torch.manual_seed(0)
    theirs = (transformers.EsmForSequenceClassification if labels else transformers.EsmForMaskedLM)(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = jaxgen.load(str(tmp_path))
    ids = np.array(tokens(length=20))
    ids[:, 5] = 2
    mask = np.arange(20) < np.array([[20], [13], [7]])
    ids[~mask] = 1
    with torch.no_grad():
        expected = theirs(torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask), output_hidden_states=True)
    output = ours(ids, mask=jnp.asarray(mask), hidden_states=True)
    np.testing.assert_allclose(output.predictions if labels else output.logits, expected.logits, atol=2e-4)
    for mine, reference in zip(output.hidden_states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(np.asarray(mine)[mask], reference.numpy()[mask], atol=2e-4)
    again = type(theirs).from_pretrained(jaxgen.export(ours, tmp_path / "again"), attn_implementation="eager")
    for name, tensor in theirs.state_dict().items():
        if "contact_head" not in name and "position_ids" not in name:
            np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)


def test_optimizer_groups():
    """Norms, biases and embeddings are not decayed."""
    named = jax.tree_util.tree_flatten_with_path(nnx.state(model("nt_v1").module), is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    decayed = {jax.tree_util.keystr(path) for path, x in named if x.get_metadata().get("decay")}
    assert decayed
    assert all("kernel" in name for name in decayed)
