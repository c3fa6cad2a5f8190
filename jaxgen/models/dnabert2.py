"""DNABERT-2: MosaicBERT over byte-pair encoded DNA (Zhou et al. 2023, arXiv 2306.15006).

Source of the numerics: `bert_layers.py` of zhihan1996/DNABERT-2-117M, its PyTorch attention branch in float32: no position embedding but
ALiBi in every layer, gated feed-forward, padding taken out before the blocks and put back as zeros.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgen.checkpoints import bert_format
from jaxgen.checkpoints.key_table import LINEAR, Row, linear_rows, norm_rows
from jaxgen.layers import bert
from jaxgen.layers.alibi import alibi_slopes
from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.core import LayerNorm, Linear, dropout, normal
from jaxgen.models.family import Family


@dataclasses.dataclass(frozen=True)
class Config(bert.BertConfig):
    """`BertConfig`; `alibi_starting_size` is the length of training. Longer inputs are allowed, without limit."""

    vocab_size: int = 4096
    attention_dropout: float = 0.0
    add_pooling_layer: bool = False
    alibi_starting_size: int = 512


SIZES = {"117m": Config(), "smoke": Config(vocab_size=256, d_model=64, n_layer=2, n_heads=4, d_inner=128)}
HUB = {"117m": "zhihan1996/DNABERT-2-117M"}


class Block(nnx.Module):
    """Attention with ALiBi and a gated feed-forward, each added to its input and then normed."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        d, eps, init = config.d_model, config.layer_norm_epsilon, normal(config.initializer_range)
        self.dropout, self.n_heads = config.hidden_dropout, config.n_heads
        self.attention = SelfAttention(d, config.n_heads, rngs, dropout=config.attention_dropout, init=init)
        self.attention_norm = LayerNorm(d, rngs, eps=eps)
        self.gate, self.up = (Linear(d, config.d_inner, rngs, use_bias=False, init=init) for _ in range(2))
        self.down = Linear(config.d_inner, d, rngs, axes=("mlp", "embed"), init=init)
        self.norm = LayerNorm(d, rngs, eps=eps)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, key: jax.Array | None, return_weights: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        weights_key, attention_key, mlp_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        slopes = jnp.asarray(alibi_slopes(self.n_heads))
        y, weights = self.attention(x, mask=mask, slopes=slopes, key=weights_key, return_weights=return_weights)
        x = self.attention_norm(x + dropout(y, self.dropout, attention_key))
        gated = jax.nn.gelu(self.gate(x), approximate=False) * self.up(x)
        return self.norm(x + self.down(dropout(gated, self.dropout, mlp_key))), weights


class DNABert2(bert.Bert):
    """BPE ids (batch, length) -> Output, zero at padding; see `Bert`."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        super().__init__(config, lambda r: Block(config, r), rngs, drop_padding=True)


# Public checkpoints -------------------------------------------------------------------------------------------------------------


def key_table(config: Config) -> tuple[Row, ...]:
    """Public names (see `bert_format`) <-> ours; `{i}` is the layer."""
    layer, rows = "encoder.layer.{i}.", bert_format.shared_rows(config)
    qkv = [f"blocks.attention.{name}" for name in ("query", "key", "value")]
    rows += [
        Row(layer + "attention.self.Wqkv.weight", tuple(name + ".kernel" for name in qkv), LINEAR, axis=1),
        Row(layer + "attention.self.Wqkv.bias", tuple(name + ".bias" for name in qkv)),
        Row(layer + "mlp.gated_layers.weight", ("blocks.gate.kernel", "blocks.up.kernel"), LINEAR, axis=1),
    ]
    rows += linear_rows(layer + "attention.output.dense", "blocks.attention.out")
    rows += norm_rows(layer + "attention.output.LayerNorm", "blocks.attention_norm")
    rows += linear_rows(layer + "mlp.wo", "blocks.down")
    rows += norm_rows(layer + "mlp.layernorm", "blocks.norm")
    return tuple(rows)


def _read_config(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray], weights_file: str) -> Config:
    return Config(**bert_format.read_fields(public, tensors), alibi_starting_size=public.get("alibi_starting_size", 512))


def _write_config(config: Config) -> dict[str, Any]:
    return {
        "architectures": ["BertForSequenceClassification" if config.num_labels else "BertForMaskedLM"],
        "auto_map": {
            "AutoConfig": "configuration_bert.BertConfig",
            "AutoModel": "bert_layers.BertModel",
            "AutoModelForMaskedLM": "bert_layers.BertForMaskedLM",
            "AutoModelForSequenceClassification": "bert_layers.BertForSequenceClassification",
        },
        "alibi_starting_size": config.alibi_starting_size,
        "max_position_embeddings": config.alibi_starting_size,
        "position_embedding_type": "absolute",
        **bert_format.write_fields(config),
    }


FAMILY = Family(
    name="dnabert2",
    config=Config,
    build=DNABert2,
    sizes=SIZES,
    default_size="117m",
    hub=HUB,
    recognises=lambda public, tensors: any(name.endswith("encoder.layer.0.attention.self.Wqkv.weight") for name in tensors),
    read_config=_read_config,
    write_config=_write_config,
    public_names=bert_format.without_prefix,
    key_table=key_table,
    table_sizes=lambda config: {"i": config.n_layer},
    export_name=bert_format.with_prefix,
    head_keys=r"^head\.",
    own_head=r"^(lm_head|pooler|classifier)\.",
    special_tokens=True,
    tokenizer=lambda config: ("dnabert2_bpe", {}),
    token_flops=lambda config, length: bert.encoder_flops(config, length, 3),
    for_task=lambda config, length, classes: dataclasses.replace(config, num_labels=classes),
)
