"""DNABERT: BERT over overlapping k-mers of DNA (Ji et al. 2021, doi 10.1093/bioinformatics/btab083).

Source of the numerics: jerryji1993/DNABERT `src/transformers/modeling_bert.py`, the same maths as transformers' BertModel.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxgen.checkpoints import bert_format
from jaxgen.checkpoints.key_table import Row, linear_rows, norm_rows
from jaxgen.layers import bert
from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.core import LayerNorm, Linear, dropout, normal
from jaxgen.models.family import Family

K = (3, 4, 5, 6)


@dataclasses.dataclass(frozen=True)
class Config(bert.BertConfig):
    """`BertConfig` and the longest input, `max_positions` tokens."""

    max_positions: int = 512


SIZES = {f"{k}mer": Config(vocab_size=5 + 4**k) for k in K} | {
    "smoke": Config(vocab_size=5 + 4**3, d_model=64, n_layer=2, n_heads=4, d_inner=256)
}
HUB = {f"{k}mer": f"zhihan1996/DNA_bert_{k}" for k in K}


class Block(nnx.Module):
    """Attention and feed-forward, each added to its input and then normed."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        d, eps, init = config.d_model, config.layer_norm_epsilon, normal(config.initializer_range)
        self.dropout = config.hidden_dropout
        self.attention = SelfAttention(d, config.n_heads, rngs, dropout=config.attention_dropout, init=init)
        self.attention_norm = LayerNorm(d, rngs, eps=eps)
        self.fc1 = Linear(d, config.d_inner, rngs, init=init)
        self.fc2 = Linear(config.d_inner, d, rngs, axes=("mlp", "embed"), init=init)
        self.norm = LayerNorm(d, rngs, eps=eps)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, key: jax.Array | None, return_weights: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        weights_key, attention_key, mlp_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        y, weights = self.attention(x, mask=mask, key=weights_key, return_weights=return_weights)
        x = self.attention_norm(x + dropout(y, self.dropout, attention_key))
        y = self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
        return self.norm(x + dropout(y, self.dropout, mlp_key)), weights


class DNABert(bert.Bert):
    """k-mer ids (batch, length) -> Output; see `Bert`."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        super().__init__(config, lambda r: Block(config, r), rngs, max_positions=config.max_positions)


# Public checkpoints -------------------------------------------------------------------------------------------------------------


def key_table(config: Config) -> tuple[Row, ...]:
    """Public names (see `bert_format`) <-> ours; `{i}` is the layer."""
    layer, rows = "encoder.layer.{i}.", bert_format.shared_rows(config, config.max_positions)
    for name in ("query", "key", "value"):
        rows += linear_rows(f"{layer}attention.self.{name}", f"blocks.attention.{name}")
    rows += linear_rows(layer + "attention.output.dense", "blocks.attention.out")
    rows += norm_rows(layer + "attention.output.LayerNorm", "blocks.attention_norm")
    rows += linear_rows(layer + "intermediate.dense", "blocks.fc1")
    rows += linear_rows(layer + "output.dense", "blocks.fc2")
    rows += norm_rows(layer + "output.LayerNorm", "blocks.norm")
    return tuple(rows)


def _recognises(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bool:
    names = {name.removeprefix("bert.") for name in tensors}
    return {"encoder.layer.0.attention.self.query.weight", "embeddings.token_type_embeddings.weight"} <= names


def _read_config(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray], weights_file: str) -> Config:
    fields = bert_format.read_fields(public, tensors)
    return Config(**fields, lm_head_epsilon=fields["layer_norm_epsilon"], max_positions=public.get("max_position_embeddings", 512))


def _write_config(config: Config) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification" if config.num_labels else "BertForMaskedLM"],
        "max_position_embeddings": config.max_positions,
        "pad_token_id": 0,
        **bert_format.write_fields(config),
    }


def k_of(config: Config) -> int:
    """Letters per token: the vocabulary is five special tokens and all k-mers."""
    return max((k for k in K if 5 + 4**k <= config.vocab_size), default=K[0])


FAMILY = Family(
    name="dnabert",
    config=Config,
    build=DNABert,
    sizes=SIZES,
    default_size="6mer",
    hub=HUB,
    recognises=_recognises,
    read_config=_read_config,
    write_config=_write_config,
    public_names=bert_format.without_prefix,
    key_table=key_table,
    table_sizes=lambda config: {"i": config.n_layer},
    export_name=bert_format.with_prefix,
    head_keys=r"^head\.",
    own_head=r"^(lm_head|pooler|classifier)\.",
    special_tokens=True,
    tokenizer=lambda config: ("dnabert", {"k": k_of(config)}),
    token_flops=lambda config, length: bert.encoder_flops(config, length, 2),
    longest=lambda config: config.max_positions,
    for_task=lambda config, length, classes: dataclasses.replace(
        config, num_labels=classes, max_positions=max(config.max_positions, length)
    ),
)
