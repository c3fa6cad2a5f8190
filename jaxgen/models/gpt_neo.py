"""GPT-Neo: causal language model whose layers alternate between global and local attention (Black et al. 2021, doi 10.5281/zenodo.5297715).

Source of the numerics: transformers' `GPTNeoForCausalLM` and `GPTNeoForSequenceClassification`. The public weights know no DNA; tokenizer
studies fine-tune them as "BPE from text, decoder only".
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgen.checkpoints.key_table import LINEAR, Row, strip_prefix
from jaxgen.errors import InputError
from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.core import Embedding, LayerNorm, Linear, dropout, normal
from jaxgen.layers.output import Output
from jaxgen.layers.stack import make_stack, scan_stack
from jaxgen.models.family import Family


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and numerics. `attention_layers` names every layer "global" or "local" (each position sees itself and window - 1 before).

    `num_labels` > 0 puts the public classification head, which reads the last real token, in place of the language-model head.
    """

    d_model: int = 768
    n_layer: int = 12
    n_heads: int = 12
    d_inner: int = 3072
    vocab_size: int = 50257
    max_positions: int = 2048
    window: int = 256
    attention_layers: tuple[str, ...] = ("global", "local") * 6
    layer_norm_epsilon: float = 1e-5
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    resid_dropout: float = 0.0
    bos_id: int = 50256
    eos_id: int = 50256
    initializer_range: float = 0.02
    tie_embeddings: bool = True
    num_labels: int = 0
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        object.__setattr__(self, "attention_layers", tuple(self.attention_layers))  # JSON brings a list


def _size(d_model: int, n_layer: int, n_heads: int, remat: str = "none", **fields: Any) -> Config:
    layers = ("global", "local") * (n_layer // 2)
    return Config(d_model=d_model, n_layer=n_layer, n_heads=n_heads, d_inner=4 * d_model, attention_layers=layers, remat=remat, **fields)


SIZES = {
    "125m": _size(768, 12, 12),
    "1_3b": _size(2048, 24, 16, "full"),
    "2_7b": _size(2560, 32, 20, "full"),
    "smoke": _size(128, 2, 4, vocab_size=512, window=64, bos_id=0, eos_id=0),
}
HUB = {"125m": "EleutherAI/gpt-neo-125m", "1_3b": "EleutherAI/gpt-neo-1.3B", "2_7b": "EleutherAI/gpt-neo-2.7B"}


class Block(nnx.Module):
    """Pre-norm causal attention, with unscaled scores, and feed-forward network."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        d, init = config.d_model, normal(config.initializer_range)
        self.norm1 = LayerNorm(d, rngs, eps=config.layer_norm_epsilon)
        self.attention = SelfAttention(
            d, config.n_heads, rngs, use_bias=False, causal=True, scale=1.0, dropout=config.attention_dropout, init=init
        )
        self.norm2 = LayerNorm(d, rngs, eps=config.layer_norm_epsilon)
        self.fc1 = Linear(d, config.d_inner, rngs, init=init)
        self.fc2 = Linear(config.d_inner, d, rngs, axes=("mlp", "embed"), init=init)

    def __call__(
        self, x_bld: jax.Array, mask_bl: jax.Array | None, window: jax.Array, key: jax.Array | None, attentions: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        rate = self.config.resid_dropout
        probs_key, attention_key, ffn_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        attended, weights = self.attention(self.norm1(x_bld), mask=mask_bl, window=window, key=probs_key, return_weights=attentions)
        x_bld = x_bld + dropout(attended, rate, attention_key)
        return x_bld + dropout(self._feed_forward(x_bld), rate, ffn_key), weights

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(self.norm2(x)), approximate=True))

    def keys_and_values(self, x_bld: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What `step` needs of the positions before: (batch, length, heads, head_dim) each."""
        attention, h = self.attention, self.norm1(x_bld)
        keys, values = (project(h).reshape(*h.shape[:2], attention.n_heads, -1) for project in (attention.key, attention.value))
        return keys, values

    def step(
        self, x_bd: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array, window: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One position, and the caches with it filled in."""
        attended, keys, values = self.attention.step(self.norm1(x_bd), keys, values, position, window)
        x_bd = x_bd + attended
        return x_bd + self._feed_forward(x_bd), keys, values


Cache = tuple[jax.Array, jax.Array, jax.Array]  # keys and values of every layer (layers, b, room, heads, head_dim), next position


class GPTNeo(nnx.Module):
    """Token ids (batch, length) -> Output with next-token logits or, if `num_labels`, predictions. Padding belongs on the right."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        if len(config.attention_layers) != config.n_layer or not set(config.attention_layers) <= {"global", "local"}:
            raise InputError(f"model.config.attention_layers: {config.n_layer} times 'global' or 'local', got {config.attention_layers}")
        self.config = config
        init = normal(config.initializer_range)
        self.embedding = Embedding(config.vocab_size, config.d_model, rngs, init=init)
        self.positions = Embedding(config.max_positions, config.d_model, rngs, init=init)
        self.blocks = make_stack(lambda r: Block(config, r), config.n_layer, rngs)
        self.norm = LayerNorm(config.d_model, rngs, eps=config.layer_norm_epsilon)
        own = not (config.tie_embeddings or config.num_labels)
        self.lm_head = Linear(config.d_model, config.vocab_size, rngs, axes=("embed", "vocab"), use_bias=False, init=init) if own else None
        self.score = (
            Linear(config.d_model, config.num_labels, rngs, axes=("embed", None), use_bias=False, init=init) if config.num_labels else None
        )

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> Output:
        """One forward pass.

        Args:
          tokens: int (batch, length).
          mask: bool (batch, length), true at real tokens; None: all are real.
          key: turns dropout on.
          hidden_states: also return the embedding, every block's output but the last, and `hidden`.
          attentions: also return the attention maps of every layer, with all scores in memory.
        """
        del train  # nothing here depends on it but dropout
        c, length = self.config, tokens.shape[1]
        if length > c.max_positions:
            raise InputError(f"GPT-Neo: input of {length} tokens is longer than its {c.max_positions} positions; set data.max_length lower")
        embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
        x_bld = (self.embedding(tokens) + self.positions(jnp.arange(length))).astype(c.dtype)
        embedded_bld = dropout(x_bld, c.embed_dropout, embed_key)

        def step(block: Any, x_bld: jax.Array, layer: dict[str, Any]) -> tuple[jax.Array, Any]:
            x_bld, weights = block(x_bld, mask, layer["window"], layer["key"], attentions)
            return x_bld, (x_bld if hidden_states else None, weights)

        layers = {"window": self._windows(), "key": None if blocks_key is None else jax.random.split(blocks_key, c.n_layer)}
        x_bld, (states, weights) = scan_stack(self.blocks, step, embedded_bld, per_layer=layers, remat=c.remat)
        hidden = self.norm(x_bld)
        return Output(
            hidden,
            logits=None if self.score else self._logits(hidden),
            hidden_states=jnp.concatenate([embedded_bld[None], states[:-1], hidden[None]]) if hidden_states else None,
            predictions=self.score(_last_real(hidden, mask).astype(jnp.float32)) if self.score else None,
            attentions=weights,
        )

    def _logits(self, hidden: jax.Array) -> jax.Array:
        return (self.lm_head or self.embedding.attend)(hidden).astype(jnp.float32)

    def _windows(self) -> jax.Array:
        c = self.config
        return jnp.asarray([c.window if kind == "local" else c.max_positions for kind in c.attention_layers])

    def prefill(self, tokens_bl: jax.Array, room: int) -> tuple[jax.Array, Cache]:
        """Next-token logits (batch, vocabulary) after a prompt without padding, and the cache to go on from with `step`.

        Args:
          room: positions of the prompt and all that may follow.
        """
        c, length = self.config, tokens_bl.shape[1]
        if room > c.max_positions:
            raise InputError(f"GPT-Neo: prompt and continuation of {room} tokens are longer than its {c.max_positions} positions")
        x_bld = (self.embedding(tokens_bl) + self.positions(jnp.arange(length))).astype(c.dtype)
        padding = ((0, 0), (0, room - length), (0, 0), (0, 0))

        def step(block: Any, x_bld: jax.Array, window: jax.Array) -> tuple[jax.Array, Any]:
            cache = tuple(jnp.pad(x, padding) for x in block.keys_and_values(x_bld))
            return block(x_bld, None, window, None, False)[0], cache

        x_bld, (keys, values) = scan_stack(self.blocks, step, x_bld, per_layer=self._windows())
        return self._logits(self.norm(x_bld[:, -1])), (keys, values, jnp.asarray(length))

    def step(self, tokens_b: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The same after one more token per row, in time linear in `room`."""
        keys, values, position = cache
        x_bd = (self.embedding(tokens_b) + self.positions(position)).astype(self.config.dtype)

        def step(block: Any, x_bd: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            x_bd, *cache = block.step(x_bd, *layer[:2], position, layer[2])
            return x_bd, tuple(cache)

        x_bd, (keys, values) = scan_stack(self.blocks, step, x_bd, per_layer=(keys, values, self._windows()))
        return self._logits(self.norm(x_bd)), (keys, values, position + 1)


def _last_real(hidden_bld: jax.Array, mask_bl: jax.Array | None) -> jax.Array:
    if mask_bl is None:
        return hidden_bld[:, -1]
    last_b = jnp.where(mask_bl, jnp.arange(mask_bl.shape[1]), 0).max(1)
    return jnp.take_along_axis(hidden_bld, last_b[:, None, None], axis=1)[:, 0]


# Public checkpoints -------------------------------------------------------------------------------------------------------------


def key_table(config: Config) -> tuple[Row, ...]:
    """Names of the hub's state dict, without `transformer.`, <-> ours; `{i}` is the layer."""
    block, attention = "h.{i}.", "h.{i}.attn.attention."
    own = not (config.tie_embeddings or config.num_labels)
    rows = [
        Row("wte.weight", "embedding.table", also_public=() if own else ("lm_head.weight",)),
        Row("wpe.weight", "positions.table"),
        Row(attention + "bias", None),  # buffers of the causal mask, in older files
        Row(attention + "masked_bias", None),
    ]
    for public, ours in (("ln_1", "norm1"), ("ln_2", "norm2")):
        rows += [Row(f"{block}{public}.weight", f"blocks.{ours}.scale"), Row(f"{block}{public}.bias", f"blocks.{ours}.bias")]
    for name in ("query", "key", "value"):
        rows.append(Row(f"{attention}{name[0]}_proj.weight", f"blocks.attention.{name}.kernel", LINEAR))
    for public, ours in (("attn.attention.out_proj", "attention.out"), ("mlp.c_fc", "fc1"), ("mlp.c_proj", "fc2")):
        rows += [Row(f"{block}{public}.weight", f"blocks.{ours}.kernel", LINEAR), Row(f"{block}{public}.bias", f"blocks.{ours}.bias")]
    rows += [Row("ln_f.weight", "norm.scale"), Row("ln_f.bias", "norm.bias")]
    rows += [Row("lm_head.weight", "lm_head.kernel", LINEAR, tied_to="wte.weight")] if own else []
    return (*rows, Row("score.weight", "score.kernel", LINEAR)) if config.num_labels else tuple(rows)


def _read_config(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray], weights_file: str) -> Config:
    del weights_file
    if public.get("activation_function", "gelu_new") != "gelu_new":
        raise InputError(f"config.json: activation_function {public['activation_function']!r} was never published and is not supported")
    kinds = [kind for kinds, n in public["attention_types"] for kind in kinds * n] if "attention_types" in public else None
    d_model = public["hidden_size"]
    bos_id, eos_id = public.get("bos_token_id"), public.get("eos_token_id")
    return Config(
        d_model=d_model,
        n_layer=public["num_layers"],
        n_heads=public["num_heads"],
        d_inner=public.get("intermediate_size") or 4 * d_model,
        vocab_size=public["vocab_size"],
        max_positions=public["max_position_embeddings"],
        window=public.get("window_size", 256),
        attention_layers=tuple(kinds or public["attention_layers"]),
        layer_norm_epsilon=float(public.get("layer_norm_epsilon", 1e-5)),
        embed_dropout=float(public.get("embed_dropout", 0)),
        attention_dropout=float(public.get("attention_dropout", 0)),
        resid_dropout=float(public.get("resid_dropout", 0)),
        bos_id=50256 if bos_id is None else bos_id,
        eos_id=50256 if eos_id is None else eos_id,
        initializer_range=float(public.get("initializer_range", 0.02)),
        tie_embeddings=public.get("tie_word_embeddings", True),
        num_labels=len(tensors["score.weight"]) if "score.weight" in tensors else 0,
    )


def _write_config(config: Config) -> dict[str, Any]:
    """The hub's config.json."""
    public = {
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForSequenceClassification" if config.num_labels else "GPTNeoForCausalLM"],
        "activation_function": "gelu_new",
        "attention_dropout": config.attention_dropout,
        "attention_layers": list(config.attention_layers),
        "attention_types": [[[kind], 1] for kind in config.attention_layers],
        "bos_token_id": config.bos_id,
        "embed_dropout": config.embed_dropout,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.eos_id,
        "hidden_size": config.d_model,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.d_inner,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "max_position_embeddings": config.max_positions,
        "num_heads": config.n_heads,
        "num_layers": config.n_layer,
        "resid_dropout": config.resid_dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": config.vocab_size,
        "window_size": config.window,
    }
    if config.num_labels:
        public["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        public["label2id"] = {f"LABEL_{i}": i for i in range(config.num_labels)}
    return public


def _token_flops(config: Config, length: int) -> float:
    """Multiply-adds counted twice; a query sees half of the positions, or at most the window."""
    d = config.d_model
    seen = sum(min(length / 2, config.window if kind == "local" else math.inf) for kind in config.attention_layers)
    dense = config.n_layer * 2 * (4 * d * d + 2 * d * config.d_inner)
    return dense + 4 * d * seen + (0 if config.num_labels else 2 * d * config.vocab_size)


FAMILY = Family(
    name="gpt_neo",
    config=Config,
    build=GPTNeo,
    sizes=SIZES,
    default_size="125m",
    hub=HUB,
    recognises=lambda public, tensors: (
        public.get("model_type") == "gpt_neo" or any(name.endswith("h.0.attn.attention.q_proj.weight") for name in tensors)
    ),
    read_config=_read_config,
    write_config=_write_config,
    public_names=lambda tensors: strip_prefix(tensors, ("transformer.",)),
    key_table=key_table,
    table_sizes=lambda config: {"i": config.n_layer},
    export_name=lambda name: name if name in ("score.weight", "lm_head.weight") else "transformer." + name,
    tokenizer=lambda config: ("gpt2_bpe", {}),
    head_keys=r"^head\.",
    own_head=r"^(lm_head|score)\.",
    token_flops=_token_flops,
    causal=True,
    longest=lambda config: config.max_positions,
    for_task=lambda config, length, classes: dataclasses.replace(
        config, num_labels=classes, max_positions=max(config.max_positions, length)
    ),
)
