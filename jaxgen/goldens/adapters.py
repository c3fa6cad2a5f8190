"""Golden family of adapters in peft's format: predictions, hidden states, and five steps of training."""

import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxgen
from jaxgen.checkpoints import key_table
from jaxgen.goldens.attention import objective_of
from jaxgen.goldens.core import Case, golden
from jaxgen.heads.adapters import Adapter, Layout, freeze_patterns, merge
from jaxgen.heads.peft_format import adapter_rows, load_adapter, save_adapter
from jaxgen.layers.output import Output
from jaxgen.layers.variables import named_arrays
from jaxgen.models.registry import family_of
from jaxgen.train.optim import OptimizerConfig, make_optimizer, split_trainable

Arrays = dict[str, np.ndarray]


@golden("ia3", inputs=("input_ids", "attention_mask", "labels"))
def ia3(case: Case) -> Arrays:
    pretrained, arrays = jaxgen.load(str(case.path)), case.arrays
    layout = Layout.of(family_of(pretrained.config), pretrained.config)
    tokens, mask, labels = (jnp.asarray(arrays[name]) for name in ("input_ids", "attention_mask", "labels"))
    base = pretrained.model
    computed: dict[str, Any] = {"logits_base": _run(nnx.split(base), tokens, mask).predictions}
    adapter = load_adapter(base, layout, case.path / "adapter")
    graphdef, params, rest = nnx.split(base, nnx.Param, ...)
    trainable: Any
    trainable, frozen = split_trainable(params, freeze_patterns("ia3", layout.own_head(), prefix=""))
    objective = objective_of(case, arrays["labels"], computed["logits_base"].shape[-1] == 1)
    batch = {"target": labels, "weight": jnp.ones(len(labels))}

    optimizer = make_optimizer(OptimizerConfig(), trainable, 1e-3)

    @jax.jit
    def step(trainable: Any, moments: Any) -> tuple[jax.Array, Any, Any]:
        def mean_loss(trainable: Any) -> jax.Array:
            predictions = nnx.merge(graphdef, trainable, frozen, rest)(tokens, mask=mask > 0).predictions
            total, weight, _ = objective(predictions, batch)
            return total / weight

        loss, grads = jax.value_and_grad(mean_loss)(trainable)
        updates, moments = optimizer.update(grads, moments, trainable)
        return loss, optax.apply_updates(trainable, updates), moments

    output: Any = _run(nnx.split(base), tokens, mask)
    states: Any = output.hidden_states
    states = {f"hidden_states_{i}": state for i, state in enumerate(states)}
    computed |= {"logits": output.predictions, **states}
    merged: Any = _run(nnx.split(merge(base, jaxgen.load(str(case.path)).model, adapter, layout)), tokens, mask)
    computed["merged_agrees"] = np.allclose(merged.predictions, output.predictions, atol=case.meta["atol"], rtol=case.meta["rtol"])
    with tempfile.TemporaryDirectory() as folder:
        again = jaxgen.load(str(case.path)).model
        survived = load_adapter(again, layout, save_adapter(named_arrays(nnx.state(base)), adapter, layout, folder)) == adapter
        before, after = (named_arrays(nnx.state(model)) for model in (base, again))
        computed["round_trip"] = survived and all(np.array_equal(after[name], x) for name, x in before.items())
    moments, losses = optimizer.init(trainable), []
    for _ in range(len(arrays["train_losses"])):
        loss, trainable, moments = step(trainable, moments)
        losses.append(loss)
    computed |= {"train_losses": jnp.stack(losses), "loss": losses[0]}
    computed["logits_after_5_steps"] = _run((graphdef, nnx.merge_state(trainable, frozen, rest)), tokens, mask).predictions
    computed |= _public_vectors(named_arrays(trainable), adapter, layout)
    return {name: np.asarray(x) for name, x in computed.items() if name in arrays or np.asarray(x).dtype == bool}


def _run(model: tuple, tokens: jax.Array, mask: jax.Array) -> Output:
    graphdef, *state = model
    return _jitted(graphdef)(state, tokens, mask)


@functools.cache
def _jitted(graphdef: nnx.GraphDef):
    return jax.jit(lambda state, tokens, mask: nnx.merge(graphdef, *state)(tokens, mask=mask > 0, hidden_states=True))


def _public_vectors(arrays: dict[str, jax.Array], adapter: Adapter, layout: Layout) -> Arrays:
    """The adapter's parameters under peft's names in memory."""
    rows = adapter_rows(adapter, layout)
    ours = {name: np.asarray(arrays[name]) for row in rows for name in row.parameters}
    public = key_table.export(ours, rows, sizes=layout.sizes)
    return {f"after__base_model.model.{layout.export_name(name)}.default": x for name, x in public.items()}
