"""Golden families of state-space models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxgen
from jaxgen.checkpoints import key_table, readers
from jaxgen.checkpoints.mamba_format import projection_rows, ssm_rows
from jaxgen.goldens.core import Case, golden
from jaxgen.goldens.models import survives_export
from jaxgen.heads.pooling import pool
from jaxgen.layers.mamba import Mixer, read_mixer
from jaxgen.layers.variables import named_arrays, with_arrays
from jaxgen.models import caduceus
from jaxgen.ops.selective_scan import selective_scan

Arrays = dict[str, np.ndarray]


@golden("selective_scan", inputs=("u", "delta", "A", "B", "C", "D", "z", "delta_bias"))
def scan(case: Case) -> Arrays:
    a = {name: jnp.asarray(x) for name, x in case.arrays.items()}

    def channels_last(x: Any) -> Any:
        return jnp.moveaxis(x, -1, 1) if x is not None and x.ndim > 2 else x

    out, last = selective_scan(
        channels_last(a["u"]),
        channels_last(a["delta"]),
        a["A"],
        channels_last(a["B"]),
        channels_last(a["C"]),
        a.get("D"),
        channels_last(a.get("z")),
        a.get("delta_bias"),
        delta_softplus=case.config["delta_softplus"],
    )
    return {"out": np.asarray(jnp.moveaxis(out, 1, -1)), "last_state": np.asarray(last)}


@golden("mamba", inputs=("input_ids", "hidden_states", "step_inputs"))
def mamba(case: Case) -> Arrays:
    if "input_ids" not in case.arrays:
        return _mixer(case)
    pretrained = jaxgen.load(str(case.path))
    output = pretrained.model(jnp.asarray(case.arrays["input_ids"]), hidden_states=True)
    computed = {"layer_residual": output.hidden_states[1:-1], "last_hidden_state": output.hidden, "logits": output.logits}
    return {name: np.asarray(x) for name, x in computed.items()} | {"export_round_trip": np.asarray(survives_export(pretrained))}


def _mixer(case: Case) -> Arrays:
    """A bare mixer: a whole sequence, the states after it, then one position at a time."""
    config = read_mixer(case.config["d_model"], case.config)
    graphdef, state = nnx.split(Mixer(config, nnx.Rngs(0)))
    rows = [*projection_rows("", "", config.bias), *ssm_rows("", "ssm.", config.conv_bias)]
    shapes = {name: tuple(x.shape) for name, x in named_arrays(state).items()}
    loaded = key_table.load(readers.read_tensors(readers.find_weights(case.path)), rows, shapes, where=str(case.path))
    mixer = nnx.merge(graphdef, with_arrays(state, {name: jnp.asarray(x) for name, x in loaded.items()}))
    output, window, ssm_state = mixer.prefill(jnp.asarray(case.arrays["hidden_states"]))
    computed: dict[str, Any] = {"output": output, "conv_state": jnp.swapaxes(window, 1, 2), "ssm_state": ssm_state}
    steps = []
    for x in jnp.swapaxes(jnp.asarray(case.arrays["step_inputs"]), 0, 1):
        y, window, ssm_state = mixer.step(x, window, ssm_state)
        steps.append(y)
    return {name: np.asarray(x) for name, x in (computed | {"step_outputs": jnp.stack(steps, 1)}).items()}


@golden("caduceus_ph", inputs=("input_ids",))
def caduceus_ph(case: Case) -> Arrays:
    return _caduceus(case)


@golden("caduceus_ps", inputs=("input_ids", "rc_input_ids"))
def caduceus_ps(case: Case) -> Arrays:
    return _caduceus(case)


def _caduceus(case: Case) -> Arrays:
    pretrained, arrays = jaxgen.load(str(case.path)), case.arrays
    model, tokens = pretrained.model, jnp.asarray(arrays["input_ids"])
    if "score.weight" in pretrained.head:
        computed = _scores(pretrained, tokens, "max" if "max" in case.meta["notes"].split(",")[0] else "mean")
    else:
        embedding, _, (block_hidden, block_residual) = model.trace(tokens)
        output = jax.jit(model)(tokens)
        computed = {"embedding": embedding, "block_hidden": block_hidden, "block_residual": block_residual}
        computed |= {"last_hidden_state": output.hidden, "logits": output.logits}
        if "rc_input_ids" in arrays:
            output = jax.jit(model)(jnp.asarray(arrays["rc_input_ids"]))
            computed |= {"rc_logits": output.logits, "rc_last_hidden_state": output.hidden}
    return {name: np.asarray(x) for name, x in computed.items()} | {"export_round_trip": np.asarray(survives_export(pretrained))}


def _scores(pretrained: jaxgen.Pretrained, tokens: jax.Array, pooling: str) -> dict[str, jax.Array]:
    """Logits of the public classifier: mean over strands, of PS halves or of conjoined inputs (batch, length, 2)."""
    weight, complement = jnp.asarray(pretrained.head["score.weight"]), jnp.asarray(pretrained.config.complement_map)

    def score(tokens: jax.Array) -> jax.Array:
        hidden = pretrained.model(tokens).hidden
        both = caduceus.strands(hidden) if pretrained.config.rcps else hidden[..., None]
        return jnp.stack([pool(h, pooling) @ weight.T for h in jnp.moveaxis(both, -1, 0)]).mean(0)

    if tokens.ndim == 3:
        return {"logits": (score(tokens[..., 0]) + score(tokens[..., 1])) / 2}
    reverse = {"rc_logits": score(complement[jnp.flip(tokens, 1)])} if pretrained.config.rcps else {}
    return {"logits": score(tokens)} | reverse
