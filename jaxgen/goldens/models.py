"""Golden families of architectures and heads."""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxgen
from jaxgen.checkpoints import key_table, readers
from jaxgen.goldens.core import Case, golden
from jaxgen.heads import decoder
from jaxgen.heads.pooling import last_before_pad
from jaxgen.layers.variables import named_arrays, with_arrays
from jaxgen.models import hyenadna
from jaxgen.ops.fft_conv import causal_fft_conv
from jaxgen.train import objectives

Arrays = dict[str, np.ndarray]


def survives_export(pretrained: jaxgen.Pretrained) -> bool:
    """Whether every array comes back bit for bit from the exported folder."""
    before = named_arrays(nnx.state(pretrained.model))
    with tempfile.TemporaryDirectory() as folder:
        after = named_arrays(nnx.state(jaxgen.load(str(jaxgen.export(pretrained, folder))).model))
    return before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


@golden("hyenadna", inputs=("input_ids", "score_weight", "head_weight", "head_bias"))
def hyena_dna(case: Case) -> Arrays:
    pretrained, arrays = jaxgen.load(str(case.path)), case.arrays
    model, tokens = pretrained.model, jnp.asarray(case.arrays["input_ids"])
    length = tokens.shape[1]

    @jax.jit
    def run(tokens: jax.Array) -> dict[str, jax.Array]:
        output = model(tokens, hidden_states=True)
        _, block_hidden, block_residual = model.trace(tokens)
        everything = {
            "layer0_filter": _first_filter(model)(length),
            "hidden_states": output.hidden_states,
            "block_hidden": block_hidden,
            "block_residual": block_residual,
            "last_hidden_state": output.hidden,
            "logits": output.logits,
        }
        if "lm_loss" in arrays:  # the hub class averages over all positions, pads included
            batch = {"targets": tokens[:, 1:], "weight": jnp.ones(len(tokens))}
            total, count, _ = objectives.token_cross_entropy(-1)(output.logits[:, :-1], batch)
            everything["lm_loss"] = (total / count)[None]
        if "score_weight" in arrays:
            everything["seqcls_logits"] = last_before_pad(output.hidden, tokens, 4) @ arrays["score_weight"].T
        if "head_weight" in arrays:
            everything["head_logits"] = output.hidden.mean(1) @ arrays["head_weight"].T + arrays["head_bias"]
        return everything

    computed = {name: np.asarray(x) for name, x in run(tokens).items() if name in arrays}
    return computed | {"export_round_trip": np.asarray(survives_export(pretrained))}


def _first_filter(model: hyenadna.HyenaDNA) -> hyenadna.ImplicitFilter:
    graphdef, stacked = nnx.split(model.blocks.mixer.filter)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[0], stacked))


@golden("hyena_filter", inputs=("u",))
def hyena_filter(case: Case) -> Arrays:
    c = case.config
    config = hyenadna.Config(
        d_model=c["d_model"],
        l_max=c["l_max"],
        emb_dim=c["emb_dim"],
        filter_order=c["filter_order"],
        num_inner_mlps=c["num_inner_mlps"],
        activation_freq=float(c["w"]),
        modulate=c["modulate"],
        modulation_shift=c["shift"],
    )
    graphdef, state = nnx.split(hyenadna.ImplicitFilter(config, nnx.Rngs(0)))
    tensors = readers.read_tensors(readers.find_weights(case.path))
    rows = [
        key_table.Row("bias", "bias"),
        key_table.Row("pos_emb.z", "z", "1 l e -> l e"),
        key_table.Row("pos_emb.t", "t", "1 l 1 -> l"),
        key_table.Row("modulation.deltas", "deltas", "1 1 d -> d"),
        *hyenadna.filter_rows(config.num_inner_mlps, "", ""),
    ]
    shapes = {name: tuple(x.shape) for name, x in named_arrays(state).items()}
    loaded = key_table.load(tensors, rows, shapes, where=str(case.path))
    module = nnx.merge(graphdef, with_arrays(state, {name: jnp.asarray(x) for name, x in loaded.items()}))
    k_ld = module(c["L"])
    u_bld = jnp.swapaxes(case.arrays["u"], 1, 2)
    y_bld = causal_fft_conv(u_bld, k_ld, module.bias[...])
    z, t = hyenadna.positional_features(config.l_max, config.emb_dim)
    deltas = hyenadna.decay_rates(config.d_model, c["fast_decay_pct"], c["slow_decay_pct"], c["target"])
    computed = {"z": z[None], "t": t[None, :, None], "deltas": deltas[None, None], "k": k_ld, "bias": module.bias[...]}
    return {name: np.asarray(x) for name, x in (computed | {"y": jnp.swapaxes(y_bld, 1, 2)}).items()}


@golden("genomic_benchmark_cnn", inputs=("input_ids",))
def cnn(case: Case) -> Arrays:
    pretrained = jaxgen.load(str(case.path))
    tokens = jnp.asarray(case.arrays["input_ids"])
    model = pretrained.model
    computed = {
        "features": model.features(tokens),
        "logits": model(tokens).hidden,
        "export_round_trip": np.asarray(survives_export(pretrained)),
    }
    computed["train_logits"] = model(tokens, train=True).hidden  # moves the running statistics
    for layer, stage in zip((1, 5, 8), model.stages):
        computed[f"after_cnn_model_{layer}_running_mean"] = stage.norm.mean[...]
        computed[f"after_cnn_model_{layer}_running_var"] = stage.norm.var[...]
    return {name: np.asarray(x) for name, x in computed.items()}


@golden("sequence_decoder", inputs=("hidden", "lengths"))
def sequence_decoder(case: Case) -> Arrays:
    c, hidden = case.config, jnp.asarray(case.arrays["hidden"])
    n_features, n_outputs = c["d_model"], c["d_output"]
    graphdef, state = nnx.split(decoder.SequenceHead(n_features, n_outputs, nnx.Rngs(0)))
    tensors = key_table.strip_prefix(readers.read_tensors(readers.find_weights(case.path)), ("decoder.0.", "decoder."))
    shapes = {name: tuple(x.shape) for name, x in named_arrays(state).items()}
    loaded = key_table.load(tensors, decoder.KEY_TABLE, shapes, where=str(case.path))
    head = nnx.merge(graphdef, with_arrays(state, {name: jnp.asarray(x) for name, x in loaded.items()}))
    lengths: Any = case.arrays.get("lengths")

    mode, kept, each = c["mode"], c.get("l_output", 0), bool(c.get("use_lengths"))

    def predict(strand: jax.Array) -> jax.Array:
        if each:  # every sequence up to its own end
            rows = [decoder.restrict(row[None, :n], mode, kept) for row, n in zip(strand, lengths)]
            return head.linear(jnp.concatenate(rows))
        return head.linear(decoder.restrict(strand, mode, kept, lengths))

    if hidden.ndim == 4:
        logits = (predict(hidden[..., 0]) + predict(hidden[..., 1])) / 2
        logits = logits[0] if len(logits) == 1 else logits  # the original loses the axis of a batch of one here
    else:
        logits = predict(hidden)
    computed: Mapping[str, Any] = {"logits": logits}
    if kept == 0 and mode != "ragged" and not each:  # the head that fine-tuning uses is the same function
        head.pooling = {"pool": "mean"}.get(mode, mode)
        computed = computed | {"head_agrees": np.allclose(head(hidden), logits, atol=1e-5)}
    return {name: np.asarray(x) for name, x in computed.items()}
