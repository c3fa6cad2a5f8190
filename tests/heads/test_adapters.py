"""Adapters: no effect at first, merging, what trains, peft's files in both directions, and the training job."""

import dataclasses
import json

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen.checkpoints.safetensors_io import write_safetensors
from jaxgen.errors import InputError
from jaxgen.heads.adapters import Adapter, Layout, adapt, freeze_patterns, merge, owners, placements
from jaxgen.heads.peft_format import load_adapter, save_adapter
from jaxgen.layers.adapters import PARAMETERS
from jaxgen.layers.variables import named_arrays, with_arrays
from jaxgen.models.registry import get_family
from jaxgen.train import objectives
from jaxgen.train.optim import OptimizerConfig, make_optimizer
from jaxgen.train.sharding import make_mesh, put_batch
from jaxgen.train.state import Program, compile_train_step, init_state

TINY = {
    "hyenadna": {"d_model": 16, "n_layer": 2, "d_inner": 32, "l_max": 40, "filter_order": 8, "embed_dropout": 0.0},
    "nt_v2": {"d_model": 16, "n_layer": 2, "d_inner": 24, "n_heads": 2, "vocab_size": 30, "num_labels": 3},
    "mamba": {"d_model": 16, "n_layer": 2},
    "caduceus_ph": {"d_model": 16, "n_layer": 2},
}
# The published adapter of the Nucleotide Transformer, in the terms of each family.
IA3 = {
    "hyenadna": Adapter("ia3", ("mixer.in_proj", "mlp.fc1", "mlp.fc2"), ("mlp.fc2",)),
    "nt_v2": Adapter(
        "ia3", ("attention.self.key", "attention.self.value", "intermediate.dense", "output.dense"), ("intermediate.dense", "output.dense")
    ),
    "mamba": Adapter("ia3", ("dt_proj",)),
    "caduceus_ph": Adapter("ia3", ("dt_proj",), ("dt_proj",)),
}
LORA = {
    "hyenadna": Adapter("lora", rank=2, alpha=3.0),
    "nt_v2": Adapter("lora", ("attention.self.query", "intermediate.dense", "output.dense"), rank=2),
    "mamba": Adapter("lora", ("dt_proj",), rank=2),
    "caduceus_ph": Adapter("lora", ("dt_proj",), rank=2),
}
CASES = [pytest.param(name, adapters[name], id=f"{name}-{adapters[name].kind}") for name in TINY for adapters in (IA3, LORA)]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(6, 11, (3, 24)))


def make(name: str, seed: int = 0):
    """(model, layout) of a tiny model."""
    family = get_family(name)
    config = dataclasses.replace(family.sizes["smoke"], **TINY[name])
    return family.build(config, nnx.Rngs(seed)), Layout.of(family, config)


def disturbed(model: nnx.Module, layout: Layout) -> nnx.Module:
    """The model with adapters that do something."""
    state, rng = nnx.state(model), np.random.default_rng(1)
    named = {name: x for name, x in named_arrays(state).items() if is_adapter(name)}
    assert named
    nnx.update(model, with_arrays(state, {n: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape, np.float32)) for n, x in named.items()}))
    return model


def is_adapter(name: str) -> bool:
    return name.rpartition(".")[2] in PARAMETERS


def forward(model: nnx.Module, tokens: jax.Array) -> jax.Array:
    output = model(tokens)
    return output.hidden if output.predictions is None else output.predictions


_run = nnx.jit(forward)


def run(model: nnx.Module) -> np.ndarray:
    return np.asarray(_run(model, TOKENS))


@pytest.mark.parametrize(("name", "adapter"), CASES)
def test_does_nothing_at_first_and_merges(name, adapter, tmp_path):
    base, layout = make(name)
    before, names = run(base), set(named_arrays(nnx.state(base)))
    model = adapt(base, adapter, layout, nnx.Rngs(1))
    assert set(named_arrays(nnx.state(model))) > names, "the base's parameters keep their names"
    np.testing.assert_array_equal(run(model), before)
    after = run(disturbed(model, layout))
    assert np.abs(after - before).max() > 1e-4
    merged = merge(model, make(name)[0], adapter, layout)
    assert set(named_arrays(nnx.state(merged))) == names
    np.testing.assert_allclose(run(merged), after, atol=2e-5)
    # peft's files hold everything.
    folder = save_adapter(named_arrays(nnx.state(model)), adapter, layout, tmp_path / "adapter", base="somewhere")
    again = make(name)[0]
    assert load_adapter(again, layout, folder) == dataclasses.replace(adapter, targets=again_targets(adapter, layout))
    np.testing.assert_array_equal(run(again), after)


@pytest.mark.parametrize(("name", "adapter"), CASES)
def test_gradients_reach_every_adapter_of_every_layer(name, adapter):
    base, layout = make(name)
    graphdef, params, rest = nnx.split(disturbed(adapt(base, adapter, layout, nnx.Rngs(1)), layout), nnx.Param, ...)
    gradients = jax.jit(jax.grad(lambda params: jnp.square(forward(nnx.merge(graphdef, params, rest), TOKENS)).sum()))(params)
    largest = {path: np.abs(x).reshape(len(x), -1).max(1) for path, x in named_arrays(gradients).items() if is_adapter(path)}
    assert largest
    assert all((per_layer > 0).all() for per_layer in largest.values()), largest


def test_an_adapter_with_its_head_goes_on_a_language_model(tmp_path):
    """`jaxgen.load(..., num_labels=n)` makes the place for the head, which the adapter's folder holds."""
    trained, layout = make("nt_v2")
    family = get_family("nt_v2")
    rest = {name: x for name, x in named_arrays(nnx.state(trained)).items() if not name.startswith("classifier.")}
    language_model = family.build(dataclasses.replace(trained.config, num_labels=0), nnx.Rngs(7))
    nnx.update(language_model, with_arrays(nnx.state(language_model), rest))
    jaxgen.export(language_model, tmp_path / "base")
    adapt(trained, IA3["nt_v2"], layout, nnx.Rngs(1))
    folder = save_adapter(named_arrays(nnx.state(disturbed(trained, layout))), IA3["nt_v2"], layout, tmp_path / "adapter")
    base = jaxgen.load(str(tmp_path / "base"), num_labels=3)
    assert np.abs(run(base.model) - run(trained)).max() > 1e-4
    load_adapter(base.model, Layout.of(family, base.config), folder)
    np.testing.assert_array_equal(run(base.model), run(trained))
    with pytest.raises(InputError, match="hyenadna has no published classification head"):
        jaxgen.load(str(jaxgen.export(make("hyenadna")[0], tmp_path / "other")), num_labels=3)


def again_targets(adapter: Adapter, layout: Layout) -> tuple[str, ...]:
    """What the file says for "every linear layer"."""
    return adapter.targets or tuple(sorted({place.public.rpartition("}.")[2] for place in placements(adapter, layout.rows)}))


@pytest.mark.parametrize(("name", "adapter"), [CASES[1], CASES[2]])
def test_only_adapter_and_head_train(name, adapter):
    layout = make(name)[1]

    class Predictor(nnx.Module):
        def __init__(self, backbone):
            self.backbone = backbone

        def __call__(self, batch, *, train, key=None):
            output = self.backbone(batch["tokens"])
            return output.hidden.mean(1)[:, :3] if output.predictions is None else output.predictions

    def build(key):
        family = get_family(name)
        config = dataclasses.replace(family.sizes["smoke"], **TINY[name])
        return Predictor(adapt(family.build(config, nnx.Rngs(key)), adapter, layout, nnx.Rngs(jax.random.fold_in(key, 1))))

    mesh = make_mesh(dict.fromkeys(("data", "fsdp", "tensor", "sequence"), 1), jax.devices()[:1])
    freeze = freeze_patterns(adapter.kind, layout.own_head())
    graphdef, optimizer, state = init_state(build, freeze, lambda p: make_optimizer(OptimizerConfig(), p, 1e-2), mesh, 0, False)
    trained, frozen = (set(named_arrays(group)) for group in (state.params, state.frozen))
    own = {f"backbone.{path}" for path in layout.own_head()}
    assert own == {path for path in trained if not path.rpartition(".")[2].startswith(("ia3", "lora"))}
    assert not any(is_adapter(path) for path in frozen)
    assert not any(path.partition(".")[2] in frozen or path in frozen for path in named_arrays(state.opt_state))
    before = {path: np.asarray(x).tobytes() for path, x in named_arrays(state.frozen).items()}
    at_first = {path: np.asarray(x) for path, x in named_arrays(state.params).items()}
    program = Program(graphdef, objectives.regression, optimizer, mesh)
    batch = put_batch(mesh, {"tokens": np.asarray(TOKENS), "target": np.ones((3, 3), np.float32), "weight": np.ones(3, np.float32)})
    step = compile_train_step(program, state, batch)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert {path: np.asarray(x).tobytes() for path, x in named_arrays(state.frozen).items()} == before
    moved = {path for path, x in named_arrays(state.params).items() if (np.asarray(x) != at_first[path]).any()}
    assert len(moved) > len(trained) / 2


def test_one_suffix_means_both_output_layers_and_gated_halves_share():
    model, layout = make("nt_v2")
    found = {place.public: place for place in placements(IA3["nt_v2"], layout.rows)}
    ends = {name.rpartition("}.")[2]: place.scale_input for name, place in found.items()}
    assert ends == {
        "attention.self.key": False,
        "attention.self.value": False,
        "attention.output.dense": True,
        "intermediate.dense": True,
        "output.dense": True,
    }
    assert owners(IA3["nt_v2"], layout) == {"blocks.up": "blocks.gate"}
    before = sum(x.size for x in named_arrays(nnx.state(model)).values())
    adapt(model, IA3["nt_v2"], layout, nnx.Rngs(0))
    after = named_arrays(nnx.state(model))
    assert sum(x.size for x in after.values()) - before == 2 * (16 + 16 + 16 + 16 + 24)
    assert after["blocks.gate.ia3_in"].shape == (2, 16)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (lambda: Adapter("ia3", ("attention.self.kay",)), "did you mean"),
        (lambda: Adapter("ia3", ("output.dense",), ("intermediate.dense",)), "not among model.adapter_targets"),
        (lambda: Adapter("lora", rank=0), "must be positive"),
        (lambda: Adapter("prefix"), "ia3 or lora"),
    ],
)
def test_wrong_adapters(adapter, said):
    with pytest.raises(InputError, match=said) as error:
        placements(adapter(), make("nt_v2")[1].rows)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["width", "layers", "architecture", "kind", "regex", "option", "no file"])
def test_adapters_that_do_not_fit(what, tmp_path):
    model, layout = make("nt_v2")
    adapt(model, LORA["nt_v2"], layout, nnx.Rngs(0))
    folder = save_adapter(named_arrays(nnx.state(model)), LORA["nt_v2"], layout, tmp_path)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    other, other_layout = make("hyenadna" if what == "architecture" else "nt_v2")
    if what in ("width", "layers"):
        family = get_family("nt_v2")
        changed = {"d_model": 32} if what == "width" else {"n_layer": 1}
        shape = dataclasses.replace(family.sizes["smoke"], **TINY["nt_v2"] | changed)
        other, other_layout = family.build(shape, nnx.Rngs(0)), Layout.of(family, shape)
    config |= {"kind": {"peft_type": "VERA"}, "regex": {"target_modules": ".*dense"}, "option": {"use_dora": True}}.get(what, {})
    file.write_text(json.dumps(config))
    if what == "no file":
        file.unlink()
    with pytest.raises(InputError) as error:
        load_adapter(other, other_layout, folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    if what in ("width", "layers", "architecture"):
        assert "another base model" in str(error.value)


@pytest.mark.parametrize("kind", ["ia3", "lora"])
def test_agrees_with_peft(kind, tmp_path):
    """Files written by either side give the same predictions on the other."""
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 30,
    }
    fields = {
        "num_labels": 3,
        "max_position_embeddings": 40,
        "pad_token_id": 1,
        "mask_token_id": 2,
        "token_dropout": False,
        "hidden_dropout_prob": 0.0,
    }
    config = transformers.EsmConfig(**shape, **fields, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    base = transformers.EsmForSequenceClassification(config)
    config.save_pretrained(tmp_path / "base")  # under the published names, which newer save_pretrained changes
    write_safetensors(tmp_path / "base" / "model.safetensors", {name: x.numpy() for name, x in base.state_dict().items()})
    targets = ["attention.self.key", "attention.self.value", "intermediate.dense", "output.dense"]
    if kind == "ia3":
        chosen = peft.IA3Config(task_type="SEQ_CLS", target_modules=targets, feedforward_modules=targets[2:])
    else:
        chosen = peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets, r=2, lora_alpha=5)
    theirs = peft.get_peft_model(base, chosen)
    with torch.no_grad():
        for name, x in theirs.named_parameters():
            if "ia3_l" in name or "lora_" in name:
                x += 0.3 * torch.randn_like(x)
    theirs.eval().save_pretrained(tmp_path / "adapter")
    tokens = np.asarray(TOKENS)
    expected = theirs(input_ids=torch.tensor(tokens), attention_mask=torch.ones(tokens.shape, dtype=torch.long)).logits.detach().numpy()
    pretrained = jaxgen.load(str(tmp_path / "base"))
    family = get_family("nt_v1")
    layout = Layout.of(family, pretrained.config)
    adapter = load_adapter(pretrained.model, layout, tmp_path / "adapter")
    np.testing.assert_allclose(run(pretrained.model), expected, atol=2e-5, rtol=1e-4)
    back = save_adapter(named_arrays(nnx.state(pretrained.model)), adapter, layout, tmp_path / "ours", base=str(tmp_path / "base"))
    fresh = transformers.EsmForSequenceClassification.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(fresh, str(back)).eval()
    found = again(input_ids=torch.tensor(tokens), attention_mask=torch.ones(tokens.shape, dtype=torch.long)).logits.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_job_trains_an_adapter_and_leaves_it_in_both_forms(run_here, table, tmp_path):
    """The workdir loads with the adapter merged; the adapter's folder goes on the base model."""
    base, layout = make("hyenadna")
    jaxgen.export(base, tmp_path / "base")
    options = {"model__name": "hyenadna", "init_from": tmp_path / "base", "data__max_length": 40, "train__steps": 4}
    fields = {f"model__config__{name}": value for name, value in TINY["hyenadna"].items() if name != "l_max"}
    arguments = helpers.hyenadna(
        table, **fields, **options, model__adapter="lora", model__adapter_rank=2, model__adapter_targets="mixer.in_proj,mlp.fc2"
    )
    ran = run_here([*arguments, f"--workdir={tmp_path / 'run'}"])
    assert ran.code == 0, ran.err
    assert "adapter in peft's format" in ran.err
    merged = jaxgen.load(str(tmp_path / "run")).model
    adapter = load_adapter(base, layout, tmp_path / "run" / "adapter")
    assert adapter == Adapter("lora", ("mixer.in_proj", "mlp.fc2"), rank=2, alpha=16.0)
    np.testing.assert_allclose(run(merged), run(base), atol=2e-5)
    assert np.abs(run(base) - run(make("hyenadna")[0])).max() > 1e-6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model__adapter": "lorra"}, "lora"),
        ({"model__adapter": "ia3", "model__adapter_targets": "mixer.inproj"}, "mixer.in_proj"),
        ({"model__adapter_targets": "mixer.in_proj"}, "model.adapter=ia3 or lora, not full"),
    ],
)
def test_wrong_options_of_the_job(run_here, table, tmp_path, fields, said):
    ran = run_here([*helpers.hyenadna(table, **fields), f"--workdir={tmp_path / 'run'}"])
    assert ran.code == 2
    assert said in ran.error
    assert not (tmp_path / "run").exists()
