"""Golden families of BERT-like models: DNABERT and DNABERT-2."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen.goldens.attention import everything, loss, of_case
from jaxgen.goldens.core import Case, golden
from jaxgen.goldens.models import survives_export
from jaxgen.layers.alibi import alibi_slopes
from jaxgen.layers.output import Output

Arrays = dict[str, np.ndarray]
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels")


@golden("dnabert", inputs=INPUTS)
def dnabert(case: Case) -> Arrays:
    pretrained = jaxgen.load(str(case.path))
    output = forward(pretrained.model, case.arrays)
    computed = everything(output)
    if "labels" in case.arrays:
        computed["loss"] = loss(output, case, case.arrays["labels"], shift=0)
    if pretrained.model.pooler is not None:
        computed["pooler_output"] = pretrained.model.pool(output.hidden)
    return of_case(case, computed) | {"export_round_trip": np.asarray(survives_export(pretrained))}


@golden("dnabert2", inputs=INPUTS)
def dnabert2(case: Case) -> Arrays:
    pretrained, arrays = jaxgen.load(str(case.path)), case.arrays
    model, mask = pretrained.model, arrays.get("attention_mask", np.ones_like(arrays["input_ids"])) > 0
    output = forward(model, arrays)
    computed = everything(output)
    _, *layers = np.asarray(output.hidden_states)
    computed |= {f"layer_{i}_unpadded": layer[mask] for i, layer in enumerate(layers)}
    computed["embedding_output"] = model.embed(*(jnp.asarray(arrays[name]) for name in ("input_ids", "token_type_ids") if name in arrays))
    if model.pooler is not None:
        computed["pooler_output"] = model.pool(output.hidden)
    if "labels" in arrays:
        # The original's loss leaves out label 0 as well as -100, and its logits are zero where there is no label.
        labels = arrays["labels"]
        computed["loss"] = loss(output, case, labels if model.config.num_labels else np.where(labels > 0, labels, -100), shift=0)
        if "logits_with_labels" in arrays:
            computed["logits_with_labels"] = np.where((labels > 0)[..., None], computed["logits"], 0)
    positions = np.arange(mask.shape[1])
    distances = np.abs(positions[:, None] - positions).astype(np.float32)
    computed["alibi"] = -alibi_slopes(model.config.n_heads)[None, :, None, None] * distances
    computed["last_hidden_nomask"] = model(jnp.asarray(arrays["input_ids"])).hidden
    checks = {
        "padding_is_zero": np.asarray(not np.asarray(output.hidden)[~mask].any()),
        "export_round_trip": np.asarray(survives_export(pretrained)),
    }
    return of_case(case, computed) | checks


def forward(model: Any, arrays: Arrays) -> Output:
    """Everything that the model returns for a case's inputs."""
    run = jax.jit(lambda tokens, mask, types: model(tokens, mask=mask, token_types=types, hidden_states=True))
    tokens, mask, types = (jnp.asarray(x) if (x := arrays.get(name)) is not None else None for name in INPUTS[:3])
    return run(tokens, None if mask is None else mask > 0, types)
