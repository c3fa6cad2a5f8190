"""Golden families of attention language models with an ESM or GPT layout of inputs and outputs."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgen
from jaxgen.goldens.core import Case, golden
from jaxgen.goldens.models import survives_export
from jaxgen.heads.pooling import pool
from jaxgen.layers.output import Output
from jaxgen.train import objectives

Arrays = dict[str, np.ndarray]
MAP = re.compile(r"attention_map_layer_(\d+)_number_(\d+)")
INPUTS = ("input_ids", "attention_mask", "labels", "tokens")


@golden("nucleotide_transformer", inputs=INPUTS)
def nucleotide_transformer(case: Case) -> Arrays:
    pretrained = jaxgen.load(str(case.path))
    output, mask = run(pretrained, case)
    computed = everything(output)
    computed |= {f"embeddings_{i}": computed[f"hidden_states_{i}"] for i in range(1, pretrained.config.n_layer + 1)}
    for name in case.arrays:
        if found := MAP.fullmatch(name):  # the official code counts layers from 1 and returns the head after the one it was asked for
            computed[name] = computed[f"attentions_{int(found[1]) - 1}"][:, int(found[2]) + 1]
    if mask is not None:
        computed["mean_pooled"] = pool(output.hidden, "mean", mask)
        computed["mean_pooled_no_cls"] = pool(output.hidden, "mean", mask.at[:, 0].set(False))
    if "labels" in case.arrays:
        computed["loss"] = loss(output, case, case.arrays["labels"], shift=0)
    return of_case(case, computed) | {"export_round_trip": np.asarray(survives_export(pretrained))}


@golden("gpt_neo", inputs=INPUTS)
def gpt_neo(case: Case) -> Arrays:
    pretrained = jaxgen.load(str(case.path))
    output, _ = run(pretrained, case)
    computed = everything(output)
    if "labels" in case.arrays:
        computed["loss"] = loss(output, case, case.arrays["labels"], shift=1)
    return of_case(case, computed) | {"export_round_trip": np.asarray(survives_export(pretrained))}


def run(pretrained: jaxgen.Pretrained, case: Case) -> tuple[Output, jax.Array | None]:
    """Everything that the model returns for a case's inputs, and the mask that these hold, if any."""
    arrays = case.arrays
    mask = jnp.asarray(arrays["attention_mask"] != 0) if "attention_mask" in arrays else None
    attentions = any(name.startswith(("attentions_", "attention_map_")) for name in arrays)
    model = pretrained.model
    forward = jax.jit(lambda tokens, mask: model(tokens, mask=mask, hidden_states=True, attentions=attentions))
    return forward(jnp.asarray(arrays["input_ids" if "input_ids" in arrays else "tokens"]), mask), mask


def everything(output: Output) -> dict[str, Any]:
    """The outputs under the fixtures' names."""
    computed = {"last_hidden_state": output.hidden, "logits": output.logits if output.predictions is None else output.predictions}
    for name, layers in (("hidden_states", output.hidden_states), ("attentions", output.attentions)):
        computed |= {} if layers is None else {f"{name}_{i}": layer for i, layer in enumerate(layers)}
    return computed


def loss(output: Output, case: Case, labels: np.ndarray, shift: int) -> jax.Array:
    """The public classes' loss: mean cross-entropy of tokens (`shift` to the right) or of classes, mean squared error of one output or for
    the `problem_type` regression, and of other float labels the binary cross-entropy."""
    if output.logits is not None:
        length = labels.shape[1] - shift
        batch = {"targets": jnp.asarray(labels[:, shift:]), "weight": jnp.ones(len(labels))}
        total, count, _ = objectives.token_cross_entropy(-100)(output.logits[:, :length], batch)
        return total / count
    predictions: Any = output.predictions
    one = predictions.shape[-1] == 1
    batch = {"target": jnp.asarray(labels.reshape(-1, 1) if one else labels), "weight": jnp.ones(len(labels))}
    total, count, _ = objective_of(case, labels, one)(predictions, batch)
    return total / count


def objective_of(case: Case, labels: np.ndarray, one: bool) -> objectives.Objective:
    """Of a public classifier with `one` output or several; see `loss`."""
    if one or case.config.get("problem_type") == "regression":
        return objectives.regression
    return _several_labels if labels.dtype.kind == "f" else objectives.classification


def _several_labels(predictions: jax.Array, batch: objectives.Batch) -> tuple[jax.Array, jax.Array, objectives.Sums]:
    losses = optax.sigmoid_binary_cross_entropy(predictions, batch["target"]).mean(-1)
    return jnp.sum(losses * batch["weight"]), jnp.sum(batch["weight"]), {}


def of_case(case: Case, computed: dict[str, Any]) -> Arrays:
    """Those of the computed arrays that the case expects."""
    return {name: np.asarray(x) for name, x in computed.items() if name in case.arrays}
