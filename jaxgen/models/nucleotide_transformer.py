"""Nucleotide Transformer v1 and v2: masked language models of DNA in 6-mers (Dalla-Torre et al. 2024, doi 10.1038/s41592-024-02523-z).

An ESM encoder: v1 has learned positions and a GELU network, v2 rotary positions and a gated one. Sources of the numerics: the hub's
`InstaDeepAI/nucleotide-transformer-*` (stock ESM of transformers for v1, remote code for v2) and, as `numerics="haiku"`, the official
instadeepai/nucleotide-transformer, which differs in what padding positions hold and, through its files, in the epsilon of the norms.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgen.checkpoints.key_table import LINEAR, Row, current_norm_names, linear_rows, norm_rows, strip_prefix
from jaxgen.errors import InputError
from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.core import Embedding, Initializer, LayerNorm, Linear, dropout, normal
from jaxgen.layers.output import Output
from jaxgen.layers.rotary import Rotary, rotary_tables
from jaxgen.layers.stack import make_stack, scan_stack
from jaxgen.models.family import Family


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and numerics of either version.

    `max_positions` are the rows of the table of learned positions, two more than tokens; rotary models only record it. `num_labels` > 0
    puts the public classification (or regression) head in place of the language-model head.
    """

    d_model: int = 512
    n_layer: int = 12
    n_heads: int = 16
    d_inner: int = 2048
    vocab_size: int = 4107
    max_positions: int = 2050
    rotary: bool = True
    gated: bool = True
    activation: str = "silu"
    ffn_bias: bool = False
    norm_embeddings: bool = False
    # Scales embeddings by how many tokens are masked (ESM's trick), also in evaluation; the share expected from training is this.
    token_dropout: bool = False
    expected_masked: float = 0.12
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    pad_id: int = 1
    mask_id: int = 2
    initializer_range: float = 0.02
    numerics: str = "hf"
    num_labels: int = 0
    dtype: str = "float32"
    remat: str = "none"


@dataclasses.dataclass(frozen=True)
class ConfigV2(Config):
    """Rotary positions, gated feed-forward network without biases."""


@dataclasses.dataclass(frozen=True)
class ConfigV1(Config):
    """Learned positions, GELU feed-forward network with biases."""

    d_model: int = 1280
    n_layer: int = 24
    n_heads: int = 20
    d_inner: int = 5120
    vocab_size: int = 4105
    max_positions: int = 1002
    rotary: bool = False
    gated: bool = False
    activation: str = "gelu"
    ffn_bias: bool = True


# "gelu" is the exact one. Of the names in a Haiku checkpoint, these were published or are the same.
_ACTIVATIONS = {"gelu": functools.partial(jax.nn.gelu, approximate=False), "gelu_tanh": jax.nn.gelu, "silu": jax.nn.silu}
_HAIKU_ACTIVATIONS = {"gelu-no-approx": "gelu", "gelu": "gelu_tanh", "swish": "silu", "silu": "silu"}

SIZES_V2 = {
    "50m": ConfigV2(),
    "100m": ConfigV2(n_layer=22),
    "250m": ConfigV2(d_model=768, n_layer=24, d_inner=3072),
    "500m": ConfigV2(d_model=1024, n_layer=29, d_inner=4096),
    "smoke": ConfigV2(d_model=128, n_layer=2, n_heads=4, d_inner=256),
}
_LARGE_V1 = ConfigV1(d_model=2560, n_layer=32, d_inner=10240, remat="full")
SIZES_V1 = {
    "500m_human_ref": ConfigV1(),
    "500m_1000g": ConfigV1(),
    "2b5_1000g": _LARGE_V1,
    "2b5_multi_species": _LARGE_V1,
    "smoke": ConfigV1(d_model=128, n_layer=2, n_heads=4, d_inner=256),
}
_HUB = "InstaDeepAI/nucleotide-transformer-"
HUB_V2 = {size: f"{_HUB}v2-{size}-multi-species" for size in ("50m", "100m", "250m", "500m")}
HUB_V1 = {size: _HUB + size.replace("2b5", "2.5b").replace("_", "-") for size in SIZES_V1 if size != "smoke"}


class Block(nnx.Module):
    """Pre-norm attention and feed-forward network."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        d, init = config.d_model, normal(config.initializer_range)
        self.attention_norm = LayerNorm(d, rngs, eps=config.layer_norm_eps)
        self.attention = SelfAttention(d, config.n_heads, rngs, dropout=config.attention_dropout, init=init)
        self.ffn_norm = LayerNorm(d, rngs, eps=config.layer_norm_eps)
        self.gate = Linear(d, config.d_inner, rngs, use_bias=config.ffn_bias, init=init) if config.gated else None
        self.up = Linear(d, config.d_inner, rngs, use_bias=config.ffn_bias, init=init)
        self.down = Linear(config.d_inner, d, rngs, axes=("mlp", "embed"), use_bias=config.ffn_bias, init=init)

    def __call__(
        self, x_bld: jax.Array, mask_bl: jax.Array | None, rotary: Rotary | None, key: jax.Array | None, attentions: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        c = self.config
        probs_key, attention_key, ffn_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        attended, weights = self.attention(
            self.attention_norm(x_bld),
            mask=mask_bl,
            rotary=rotary,
            key=probs_key,
            uniform_padding=c.numerics == "haiku",
            return_weights=attentions,
        )
        x_bld = x_bld + dropout(attended, c.hidden_dropout, attention_key)
        h = self.ffn_norm(x_bld)
        activation = _ACTIVATIONS[c.activation]
        h = activation(self.up(h)) if self.gate is None else activation(self.gate(h)) * self.up(h)
        return x_bld + dropout(self.down(h), c.hidden_dropout, ffn_key), weights


class LanguageModelHead(nnx.Module):
    """Dense, exact GELU, norm, then logits of the vocabulary (not tied to the embedding)."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        d, init = config.d_model, normal(config.initializer_range)
        self.dense = Linear(d, d, rngs, axes=("embed", None), init=init)
        self.norm = LayerNorm(d, rngs, eps=config.layer_norm_eps)
        self.decoder = Linear(d, config.vocab_size, rngs, axes=("embed", "vocab"), init=init)

    def __call__(self, hidden_bld: jax.Array) -> jax.Array:
        return self.decoder(self.norm(jax.nn.gelu(self.dense(hidden_bld), approximate=False))).astype(jnp.float32)


class ClassificationHead(nnx.Module):
    """The first token (`<cls>`) through dense, tanh and a projection to the outputs, in float32."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        d, init = config.d_model, normal(config.initializer_range)
        self.rate = config.hidden_dropout
        self.dense = Linear(d, d, rngs, axes=("embed", None), init=init)
        self.out = Linear(d, config.num_labels, rngs, axes=("embed", None), init=init)

    def __call__(self, hidden_bld: jax.Array, key: jax.Array | None) -> jax.Array:
        first, second = (None, None) if key is None else jax.random.split(key)
        x_bd = dropout(hidden_bld[:, 0].astype(jnp.float32), self.rate, first)
        return self.out(dropout(jnp.tanh(self.dense(x_bd)), self.rate, second))


def _without_padding(init: Initializer, pad_id: int, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return init(key, shape, dtype).at[pad_id].set(0)


class NucleotideTransformer(nnx.Module):
    """Token ids (batch, length), `<cls>` first -> Output with masked-language-model logits or, if `num_labels`, predictions."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        if config.numerics not in ("hf", "haiku"):
            raise InputError(f"model.config.numerics={config.numerics!r} is neither 'hf' nor 'haiku'")
        if config.activation not in _ACTIVATIONS:
            raise InputError(f"model.config.activation={config.activation!r} is none of {', '.join(_ACTIVATIONS)}")
        if config.d_model % config.n_heads or (config.rotary and config.d_model // config.n_heads % 2):
            raise InputError(f"model.config: d_model={config.d_model} makes no {config.n_heads} heads (of even width, if rotary)")
        self.config = config
        init = functools.partial(_without_padding, normal(config.initializer_range), config.pad_id)
        self.embedding = Embedding(config.vocab_size, config.d_model, rngs, init=init)
        self.positions = None if config.rotary else Embedding(config.max_positions, config.d_model, rngs, init=init)
        self.embedding_norm = LayerNorm(config.d_model, rngs, eps=config.layer_norm_eps) if config.norm_embeddings else None
        self.blocks = make_stack(lambda r: Block(config, r), config.n_layer, rngs)
        self.norm = LayerNorm(config.d_model, rngs, eps=config.layer_norm_eps)
        self.lm_head = None if config.num_labels else LanguageModelHead(config, rngs)
        self.classifier = ClassificationHead(config, rngs) if config.num_labels else None

    def _embed(self, tokens_bl: jax.Array, mask_bl: jax.Array | None) -> jax.Array:
        c = self.config
        x_bld = self.embedding(tokens_bl)
        if c.token_dropout:
            masked_bl = tokens_bl == c.mask_id
            real_bl = jnp.ones_like(masked_bl) if mask_bl is None else mask_bl
            share_b = masked_bl.sum(1) / jnp.maximum((tokens_bl != c.pad_id if c.numerics == "haiku" else real_bl).sum(1), 1)
            x_bld = jnp.where(masked_bl[..., None], 0, x_bld) * ((1 - c.expected_masked) / jnp.maximum(1 - share_b, 1e-6))[:, None, None]
        if self.positions is not None:
            if tokens_bl.shape[1] > c.max_positions - c.pad_id - 1:
                raise InputError(
                    f"Nucleotide Transformer: input of {tokens_bl.shape[1]} tokens is longer than the {c.max_positions - c.pad_id - 1} "
                    "positions of this model; set data.max_length lower"
                )
            real_bl = (tokens_bl != c.pad_id).astype(jnp.int32)
            x_bld = x_bld + self.positions(jnp.cumsum(real_bl, 1) * real_bl + c.pad_id)
        if self.embedding_norm is not None:
            x_bld = self.embedding_norm(x_bld)
        if c.numerics == "hf" and mask_bl is not None:
            x_bld = jnp.where(mask_bl[..., None], x_bld, 0)
        return x_bld.astype(c.dtype)

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
          mask: bool (batch, length), true at real tokens. None: all are real ("hf"), or all but `<pad>` ("haiku").
          key: turns dropout on.
          hidden_states: also return the embedding, every block's output but the last, and `hidden`.
          attentions: also return the attention maps of every layer, with all scores in memory.
        """
        del train  # nothing here depends on it but dropout
        c = self.config
        haiku = c.numerics == "haiku"
        if mask is None and haiku:
            mask = tokens != c.pad_id
        embedded_bld = self._embed(tokens, mask)
        rotary = rotary_tables(tokens.shape[1], c.d_model // c.n_heads) if c.rotary else None
        head_key, blocks_key = (None, None) if key is None else jax.random.split(key)

        def step(block: Any, x_bld: jax.Array, layer: dict[str, Any]) -> tuple[jax.Array, Any]:
            x_bld, weights = block(x_bld, mask, rotary, layer["key"], attentions)
            return x_bld, (x_bld if hidden_states else None, weights)

        keys = None if blocks_key is None else jax.random.split(blocks_key, c.n_layer)
        x_bld, (states, weights) = scan_stack(self.blocks, step, embedded_bld, per_layer={"key": keys}, remat=c.remat)
        hidden = self.norm(x_bld)
        logits = None if self.lm_head is None else self.lm_head(hidden)
        if logits is not None and mask is not None and haiku:
            logits = jnp.where(mask[..., None], logits, 0)
        return Output(
            hidden,
            logits=logits,
            hidden_states=jnp.concatenate([embedded_bld[None], states[:-1], hidden[None]]) if hidden_states else None,
            predictions=None if self.classifier is None else self.classifier(hidden, head_key),
            attentions=weights,
        )


# Public checkpoints -------------------------------------------------------------------------------------------------------------

_LAYER = "encoder.layer.{i}."
# Modules of the official Haiku checkpoints, as published and as their loader renames them -> modules of the hub's state dict.
_HAIKU_MODULES = (
    (r".*/~/esm_learned_positional_embeddings/~/embed", "embeddings.position_embeddings"),
    (r".*/~/embed", "embeddings.word_embeddings"),
    (r".*/~/emb_layer_norm_before", "embeddings.layer_norm"),
    (r".*/attention_layer_(\d+)/~/(?:self_attention|mha)_layer_norm", r"encoder.layer.\1.attention.LayerNorm"),
    (r".*/attention_layer_(\d+)/~/(?:self_attention|mha)/(query|key|value)", r"encoder.layer.\1.attention.self.\2"),
    (r".*/attention_layer_(\d+)/~/(?:self_attention|mha)/mha_output", r"encoder.layer.\1.attention.output.dense"),
    (r".*/attention_layer_(\d+)/~/final_layer_norm", r"encoder.layer.\1.LayerNorm"),
    (r".*/attention_layer_(\d+)/~/fc1", r"encoder.layer.\1.intermediate.dense"),
    (r".*/attention_layer_(\d+)/~/fc2", r"encoder.layer.\1.output.dense"),
    (r".*roberta_lm_head/~/emb_layer_norm_after", "encoder.emb_layer_norm_after"),
    (r".*roberta_lm_head/~/lm_head_fc_1", "lm_head.dense"),
    (r".*roberta_lm_head/~/lm_head_layer_norm", "lm_head.layer_norm"),
    (r".*roberta_lm_head/~/lm_final_fc", "lm_head.decoder"),
)
_HAIKU_PARAMS = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias", "embeddings": "weight"}


def public_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names and axes of the hub's state dict, without `esm.`; a Haiku tree is turned into one."""
    if not any("/~/" in name for name in tensors):
        return current_norm_names(strip_prefix(tensors, ("esm.",)))
    renamed = {}
    for name, tensor in tensors.items():
        module, _, parameter = name.rpartition("/")
        matches = (re.sub(pattern, new, module) for pattern, new in _HAIKU_MODULES if re.fullmatch(pattern, module))
        public = f"{next(matches, module)}.{_HAIKU_PARAMS.get(parameter, parameter)}"
        renamed[public.replace("lm_head.decoder.bias", "lm_head.bias")] = tensor.T if parameter == "w" else tensor
    return renamed


def key_table(config: Config) -> tuple[Row, ...]:
    """Names of the hub's state dict, without `esm.`, <-> ours; `{i}` is the layer."""
    attention = _LAYER + "attention."
    rows = [
        Row("embeddings.word_embeddings.weight", "embedding.table"),
        Row("embeddings.position_embeddings.weight", None if config.rotary else "positions.table"),
        Row("embeddings.position_ids", None),
        Row(attention + "self.rotary_embeddings.inv_freq", None),
        # Once for all layers, as transformers 5 has it in files and in memory.
        Row("encoder.layer.*.attention.self.rotary_embeddings.inv_freq", None),
        Row("rotary_embeddings.inv_freq", None),
        Row("contact_head.regression.weight", None),
        Row("contact_head.regression.bias", None),
    ]
    if config.norm_embeddings:
        rows += norm_rows("embeddings.layer_norm", "embedding_norm")
    rows += norm_rows(attention + "LayerNorm", "blocks.attention_norm") + norm_rows(_LAYER + "LayerNorm", "blocks.ffn_norm")
    for name in ("query", "key", "value"):
        rows += linear_rows(f"{attention}self.{name}", f"blocks.attention.{name}")
    rows += linear_rows(attention + "output.dense", "blocks.attention.out")
    if config.gated:
        rows.append(Row(_LAYER + "intermediate.dense.weight", ("blocks.gate.kernel", "blocks.up.kernel"), LINEAR, axis=1))
        if config.ffn_bias:
            rows.append(Row(_LAYER + "intermediate.dense.bias", ("blocks.gate.bias", "blocks.up.bias")))
    else:
        rows += linear_rows(_LAYER + "intermediate.dense", "blocks.up", config.ffn_bias)
    rows += linear_rows(_LAYER + "output.dense", "blocks.down", config.ffn_bias)
    rows += norm_rows("encoder.emb_layer_norm_after", "norm")
    if config.num_labels:
        return (*rows, *linear_rows("classifier.dense", "classifier.dense"), *linear_rows("classifier.out_proj", "classifier.out"))
    rows += linear_rows("lm_head.dense", "lm_head.dense") + norm_rows("lm_head.layer_norm", "lm_head.norm")
    tied_to = "embeddings.word_embeddings.weight"
    rows.append(Row("lm_head.decoder.weight", "lm_head.decoder.kernel", LINEAR, tied_to=tied_to))
    return (*rows, Row("lm_head.bias", "lm_head.decoder.bias", also_public=("lm_head.decoder.bias",)))


def _is_gated(tensors: Mapping[str, np.ndarray]) -> bool | None:
    """Whether the feed-forward network of an ESM checkpoint is a gated one; None for other checkpoints."""
    tensors = public_names(tensors)
    up, down = (tensors.get(f"encoder.layer.0.{name}.dense.weight") for name in ("intermediate", "output"))
    if up is None or down is None or "encoder.layer.0.attention.LayerNorm.weight" not in tensors:
        return None
    return up.shape[0] == 2 * down.shape[1]


def _read_config(kind: type[Config], public: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Config:
    """Config of a hub `config.json`, or of the `hyperparams.json` of a Haiku checkpoint."""
    classifier = tensors.get("classifier.out_proj.weight")
    shared = {
        "vocab_size": len(tensors["embeddings.word_embeddings.weight"]) if "embeddings.word_embeddings.weight" in tensors else 0,
        "num_labels": 0 if classifier is None else len(classifier),
        "gated": kind is ConfigV2,
    }
    if "attention_heads" in public:
        if public.get("ffn_activation_name", "gelu-no-approx") not in _HAIKU_ACTIVATIONS:
            raise InputError(f"hyperparams.json: ffn_activation_name {public['ffn_activation_name']!r} is not supported")
        return kind(**shared, **_haiku_fields(public))
    if public.get("hidden_act", "gelu") not in ("gelu", "silu", "swish"):
        raise InputError(f"config.json: hidden_act {public['hidden_act']!r} was never published for this model and is not supported")
    return kind(
        **shared,
        d_model=public["hidden_size"],
        n_layer=public["num_hidden_layers"],
        n_heads=public["num_attention_heads"],
        d_inner=public["intermediate_size"],
        max_positions=public.get("max_position_embeddings", 1026),
        rotary=public.get("position_embedding_type", "absolute") == "rotary",
        ffn_bias="encoder.layer.0.intermediate.dense.bias" in tensors,
        norm_embeddings=bool(public.get("emb_layer_norm_before")),
        token_dropout=bool(public.get("token_dropout", False)),
        layer_norm_eps=float(public.get("layer_norm_eps", 1e-12)),
        hidden_dropout=float(public.get("hidden_dropout_prob", 0.1)),
        attention_dropout=float(public.get("attention_probs_dropout_prob", 0.1)),
        pad_id=_or(public.get("pad_token_id"), 1),
        mask_id=_or(public.get("mask_token_id"), 2),
        initializer_range=float(public.get("initializer_range", 0.02)),
        numerics=public.get("numerics", "hf"),
        expected_masked=float(public.get("expected_masked", 0.12)),
        activation=public.get("activation", kind.activation),
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _haiku_fields(public: Mapping[str, Any]) -> dict[str, Any]:
    unsupported = {"add_bias_kv": False, "embed_scale": 1.0, "key_dim": public["embed_dim"] // public["attention_heads"]}
    for name, only in unsupported.items():
        if public.get(name) not in (None, only):
            raise InputError(f"hyperparams.json: {name} {public[name]!r} was never published and is not supported")
    return {
        "d_model": public["embed_dim"],
        "n_layer": public["num_layers"],
        "n_heads": public["attention_heads"],
        "d_inner": public["ffn_embed_dim"],
        "max_positions": public["max_positions"] + 2,
        "rotary": bool(public.get("use_rotary_embedding", False)),
        "ffn_bias": bool(public.get("add_bias_ffn", True)),
        "norm_embeddings": bool(public["emb_layer_norm_before"]),
        "token_dropout": bool(public["token_dropout"]),
        "expected_masked": public.get("masking_ratio", 0.1) * public.get("masking_prob", 0.8),
        "activation": _HAIKU_ACTIVATIONS[public.get("ffn_activation_name", "gelu-no-approx")],
        "layer_norm_eps": 1e-5,
        "numerics": "haiku",
    }


def _write_config(config: Config) -> dict[str, Any]:
    """The hub's config.json; of Haiku numerics, with three fields that the format lacks."""
    public = {
        "architectures": ["EsmForSequenceClassification" if config.num_labels else "EsmForMaskedLM"],
        "attention_probs_dropout_prob": config.attention_dropout,
        "emb_layer_norm_before": config.norm_embeddings,
        "esmfold_config": None,
        "hidden_dropout_prob": config.hidden_dropout,
        "hidden_size": config.d_model,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.d_inner,
        "is_folding_model": False,
        "layer_norm_eps": config.layer_norm_eps,
        "mask_token_id": config.mask_id,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layer,
        "pad_token_id": config.pad_id,
        "position_embedding_type": "rotary" if config.rotary else "absolute",
        "tie_word_embeddings": False,
        "token_dropout": config.token_dropout,
        "torch_dtype": "float32",
        "use_cache": False,
        "vocab_list": None,
        "vocab_size": config.vocab_size,
    }
    if config.num_labels:
        public["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        public["label2id"] = {label: int(i) for i, label in public["id2label"].items()}
    if config.numerics == "haiku":
        public |= {"numerics": "haiku", "expected_masked": config.expected_masked, "activation": config.activation}
    if not config.gated:
        return {"model_type": "esm"} | public
    classes = ("MaskedLM", "TokenClassification", "SequenceClassification")
    auto_map = {"AutoConfig": "esm_config.EsmConfig"} | {f"AutoModelFor{name}": f"modeling_esm.EsmFor{name}" for name in classes}
    return {"add_bias_fnn": config.ffn_bias, "auto_map": auto_map} | public


def _token_flops(config: Config, length: int) -> float:
    """Multiply-adds counted twice: projections, scores and weighted values, feed-forward network, and the head over all tokens."""
    d, n_up = config.d_model, 2 if config.gated else 1
    block = 2 * (4 * d * d + (n_up + 1) * d * config.d_inner) + 4 * length * d
    return config.n_layer * block + (0 if config.num_labels else 2 * d * (d + config.vocab_size))


def _for_task(config: Config, length: int, classes: int) -> Config:
    needed = length + config.pad_id + 1
    return dataclasses.replace(config, num_labels=classes, max_positions=max(config.max_positions, needed))


def _kmer(config: Config) -> int:
    """k of the tokenizer: the vocabulary is 4^k k-mers and a few more."""
    return (config.vocab_size.bit_length() - 1) // 2


def _family(name: str, kind: type[Config], sizes: Mapping[str, Config], hub: Mapping[str, str], default_size: str) -> Family:
    return Family(
        name=name,
        config=kind,
        build=NucleotideTransformer,
        sizes=sizes,
        default_size=default_size,
        hub=hub,
        recognises=lambda public, tensors: (public.get("model_type", "esm") == "esm") and _is_gated(tensors) is (kind is ConfigV2),
        read_config=lambda public, tensors, weights_file: _read_config(kind, public, tensors),
        write_config=_write_config,
        public_names=public_names,
        key_table=key_table,
        table_sizes=lambda config: {"i": config.n_layer},
        export_name=lambda name: name if name.startswith(("lm_head.", "classifier.")) else "esm." + name,
        tokenizer=lambda config: (name, {"k": _kmer(config)}),
        head_keys=r"^head\.",
        own_head=r"^(lm_head|classifier)\.",
        special_tokens=True,
        token_flops=_token_flops,
        # The rotary models read longer inputs too, but never saw any.
        longest=lambda config: config.max_positions - config.pad_id - 1,
        for_task=_for_task,
    )


V2 = _family("nt_v2", ConfigV2, SIZES_V2, HUB_V2, "50m")
V1 = _family("nt_v1", ConfigV1, SIZES_V1, HUB_V1, "500m_human_ref")
