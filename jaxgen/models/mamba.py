"""Mamba: causal language model of DNA on a selective state space (Gu and Dao 2023, arXiv 2312.00752).

Source of the numerics: state-spaces/mamba v1.2.0 `models/mixer_seq_simple.py`; the DNA recipes are those of kuleshov-group/caduceus.
Array names end in their axes: b batch, l length, d features.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgen.checkpoints.key_table import Row, strip_prefix
from jaxgen.checkpoints.mamba_format import projection_rows, ssm_rows
from jaxgen.errors import InputError
from jaxgen.layers.core import Embedding, LayerNorm, Linear, RMSNorm, normal
from jaxgen.layers.mamba import BackboneConfig, Block, Mixer, read_mixer, write_mixer
from jaxgen.layers.output import Output
from jaxgen.layers.stack import make_stack, scan_stack
from jaxgen.models.family import Family


@dataclasses.dataclass(frozen=True)
class Config(BackboneConfig):
    """Shape and numerics. `dt_rank` 0 means ceil(d_model / 16)."""

    n_layer: int = 8
    tie_embeddings: bool = True


SIZES = {
    "1k": Config(),
    "1k_d128": Config(d_model=128, n_layer=4),
    "4k": Config(n_layer=4),
    "4k_bpe": Config(n_layer=4, vocab_size=4096),
    "smoke": Config(d_model=64, n_layer=2),
}


Cache = tuple[jax.Array, jax.Array]  # of every layer: last inputs of the convolution (b, d_conv, d_inner) and state (b, d_inner, d_state)


class Mamba(nnx.Module):
    """Token ids (batch, length) -> Output with language-model logits."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config

        def norm(r: nnx.Rngs) -> nnx.Module:
            return (RMSNorm if config.rms_norm else LayerNorm)(config.d_model, r, eps=config.norm_epsilon)

        init = normal(config.initializer_range)
        self.embedding = Embedding(config.n_tokens, config.d_model, rngs, init=init)
        self.blocks = make_stack(lambda r: Block(Mixer(config.mixer, r, residuals=config.n_layer), norm(r)), config.n_layer, rngs)
        self.norm = norm(rngs)
        tied = config.tie_embeddings
        self.lm_head = None if tied else Linear(config.d_model, config.n_tokens, rngs, axes=("embed", "vocab"), use_bias=False, init=init)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        hidden_states: bool = False,
    ) -> Output:
        """`mask` (batch, length), true at real tokens, keeps padding out of convolutions and states (the original lets it in: pass None).

        `hidden_states` are the embedding, each block's output with its residual, and `hidden`.
        """
        del train, key  # no dropout
        dtype = jnp.dtype(self.config.dtype)
        x_bld = self.embedding(tokens, dtype)
        start = jnp.zeros_like(x_bld, jnp.float32 if self.config.residual_in_fp32 else dtype)

        def step(block: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            hidden, residual = block(*carry, mask)
            return (hidden, residual), hidden + residual if hidden_states else None

        (hidden, residual), collected = scan_stack(self.blocks, step, (x_bld, start), remat=self.config.remat)
        hidden = self.norm(hidden + residual, dtype)
        states = jnp.concatenate([x_bld[None], collected.astype(dtype), hidden[None]]) if hidden_states else None
        return Output(hidden, self._logits(hidden), states)

    def _logits(self, hidden: jax.Array) -> jax.Array:
        hidden = hidden.astype(jnp.float32)
        return self.embedding.attend(hidden) if self.lm_head is None else self.lm_head(hidden)

    def prefill(self, tokens_bl: jax.Array, room: int = 0) -> tuple[jax.Array, Cache]:
        """Next-token logits (batch, vocabulary) after a prompt without padding, and the cache to go on from with `step`.

        The cache has one size whatever the length, so `room` means nothing here.
        """
        del room
        return self._cached(tokens_bl, lambda mixer, x_bld, _: mixer.prefill(x_bld), None)

    def step(self, tokens_b: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The same after one more token per row, in constant time."""
        return self._cached(tokens_b, lambda mixer, x_bd, cache: mixer.step(x_bd, *cache), cache)

    def _cached(self, tokens: jax.Array, mix: Callable[..., tuple[jax.Array, ...]], cache: Cache | None) -> tuple[jax.Array, Cache]:
        dtype = jnp.dtype(self.config.dtype)
        x = self.embedding(tokens, dtype)

        def step(block: Any, carry: tuple[jax.Array, jax.Array], before: Any = None) -> tuple[Any, Any]:
            hidden, residual = carry
            residual = residual + hidden.astype(residual.dtype)
            y, window, state = mix(block.mixer, block.norm(residual, dtype), before)
            return (y, residual), (window, state)

        start = jnp.zeros_like(x, jnp.float32 if self.config.residual_in_fp32 else dtype)
        (hidden, residual), after = scan_stack(self.blocks, step, (x, start), per_layer=cache)
        hidden = self.norm(hidden + residual, dtype)
        return self._logits(hidden if hidden.ndim == 2 else hidden[:, -1]), after


# Public checkpoints -------------------------------------------------------------------------------------------------------------


def public_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Lightning keeps the model under `model.` and metrics beside it; the hub has neither. transformers says `embeddings`."""
    if any(name.startswith("model.") for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "decoder."))}
    named = strip_prefix(tensors, ("model.backbone.", "model.", "backbone."))
    return {re.sub(r"^embeddings\.", "embedding.", name): tensor for name, tensor in named.items()}


def key_table(config: Config) -> tuple[Row, ...]:
    """Public names without their prefix <-> ours; `{i}` is the layer."""
    mixer, block = "layers.{i}.mixer.", "layers.{i}.norm."
    rows = [*projection_rows(mixer, "blocks.mixer.", config.bias), *ssm_rows(mixer, "blocks.mixer.ssm.", config.conv_bias)]
    for theirs, ours in (("weight", "scale"), ("bias", "bias"))[: 1 if config.rms_norm else 2]:
        rows += [Row(block + theirs, f"blocks.norm.{ours}"), Row(f"norm_f.{theirs}", f"norm.{ours}")]
    if config.tie_embeddings:
        rows.append(Row("embedding.weight", "embedding.table", also_public=("lm_head.weight",)))
    else:
        rows += [Row("embedding.weight", "embedding.table"), Row("lm_head.weight", "lm_head.kernel", "v d -> d v")]
    return tuple(rows)


def _read_config(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray], weights_file: str) -> Config:
    """The config.json of mamba_ssm or of transformers, or the model_config.json of a pre-training run, which has it under `config`."""
    del weights_file
    public = public.get("config", public)
    if "hidden_size" in public:
        return _read_transformers_config(public)
    mixer = dataclasses.asdict(read_mixer(public["d_model"], public.get("ssm_cfg")))
    return Config(
        n_layer=public["n_layer"],
        vocab_size=public["vocab_size"],
        pad_vocab_size_multiple=public.get("pad_vocab_size_multiple", 8),
        rms_norm=public.get("rms_norm", True),
        residual_in_fp32=public.get("residual_in_fp32", True),
        tie_embeddings=public.get("tie_embeddings", True),
        **mixer,
    )


def _read_transformers_config(public: Mapping[str, Any]) -> Config:
    """The config.json of transformers' MambaForCausalLM."""
    if public.get("hidden_act", "silu") != "silu" or public.get("intermediate_size", 0) not in (
        0,
        public["expand"] * public["hidden_size"],
    ):
        raise InputError("config.json: only hidden_act='silu' and intermediate_size = expand * hidden_size are supported")
    theirs = {
        "d_state": "state_size",
        "d_conv": "conv_kernel",
        "expand": "expand",
        "dt_rank": "time_step_rank",
        "conv_bias": "use_conv_bias",
        "bias": "use_bias",
    }
    mixer = read_mixer(public["hidden_size"], {ours: public[name] for ours, name in theirs.items() if name in public})
    return Config(
        n_layer=public["num_hidden_layers"],
        vocab_size=public["vocab_size"],
        pad_vocab_size_multiple=1,
        norm_epsilon=public.get("layer_norm_epsilon", 1e-5),
        residual_in_fp32=public.get("residual_in_fp32", True),
        tie_embeddings=public.get("tie_word_embeddings", True),
        **dataclasses.asdict(mixer),
    )


def _write_config(config: Config) -> dict[str, Any]:
    return {
        "d_model": config.d_model,
        "n_layer": config.n_layer,
        "vocab_size": config.vocab_size,
        "ssm_cfg": write_mixer(config.mixer),
        "rms_norm": config.rms_norm,
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,  # chooses a kernel of the original; the numbers are the same
        "pad_vocab_size_multiple": config.pad_vocab_size_multiple,
        "tie_embeddings": config.tie_embeddings,
    }


def _token_flops(config: Config, length: int) -> float:
    """Multiply-adds counted twice; 9 operations per state element of the scan (state-spaces/mamba issue 110)."""
    del length
    m = config.mixer
    d, e, n = m.d_model, m.d_inner, m.d_state
    dense = 2 * (3 * d * e + e * (m.rank + 2 * n) + m.rank * e + m.d_conv * e)
    return config.n_layer * (dense + 9 * e * n) + 2 * d * config.n_tokens


FAMILY = Family(
    name="mamba",
    config=Config,
    build=Mamba,
    sizes=SIZES,
    default_size="1k",
    recognises=lambda public, tensors: any(name.endswith(".mixer.A_log") for name in tensors),
    read_config=_read_config,
    write_config=_write_config,
    public_names=public_names,
    key_table=key_table,
    table_sizes=lambda config: {"i": config.n_layer},
    export_name=lambda name: name if name.startswith("lm_head") else "backbone." + name,
    tokenizer=lambda config: ("caduceus", {}) if config.vocab_size <= 16 else ("dnabert2_bpe", {}),
    token_flops=_token_flops,
    causal=True,
)
