"""Public names and config fields that BERT and MosaicBERT share.

`config` is a `jaxgen.layers.bert.BertConfig`. Public names are without their prefix `bert.`, which only files of a bare encoder lack.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.checkpoints.key_table import Row, current_norm_names, linear_rows, norm_rows
from jaxgen.errors import InputError

_EMBEDDINGS, _HEAD = "embeddings.", "cls.predictions."
_DECODER = _HEAD + "decoder."


def shared_rows(config: Any, max_positions: int = 0) -> list[Row]:
    """Rows of all but the blocks; `max_positions` 0 for a model without learned positions."""
    rows = [
        Row(_EMBEDDINGS + "word_embeddings.weight", "words.table", also_public=() if config.num_labels else (_DECODER + "weight",)),
        Row(_EMBEDDINGS + "token_type_embeddings.weight", "types.table"),
        Row(_EMBEDDINGS + "position_ids", None),
        *norm_rows(_EMBEDDINGS + "LayerNorm", "norm"),
    ]
    if max_positions:
        rows.append(Row(_EMBEDDINGS + "position_embeddings.weight", "positions.table"))
    if config.add_pooling_layer or config.num_labels:
        rows += linear_rows("pooler.dense", "pooler")
    if config.num_labels:
        return rows + linear_rows("classifier", "classifier")
    rows += linear_rows(_HEAD + "transform.dense", "lm_head.dense") + norm_rows(_HEAD + "transform.LayerNorm", "lm_head.norm")
    return [*rows, Row(_DECODER + "bias", "lm_head.bias", also_public=(_HEAD + "bias",))]


def without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return current_norm_names({name.removeprefix("bert."): tensor for name, tensor in tensors.items()})


def with_prefix(name: str) -> str:
    return name if name.startswith(("cls.", "classifier.")) else "bert." + name


def read_fields(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of `BertConfig` in a public config.json; the head is the one that the file holds.

    Raises:
      InputError: an activation that no published model has.
    """
    if public.get("hidden_act", "gelu") != "gelu":
        raise InputError(f"config.json: hidden_act={public['hidden_act']!r} is not supported; published models have 'gelu'")
    labels = tensors.get("classifier.weight")
    classifier_dropout, hidden_dropout = public.get("classifier_dropout"), public.get("hidden_dropout_prob", 0.1)
    return {
        "vocab_size": public["vocab_size"],
        "d_model": public["hidden_size"],
        "n_layer": public["num_hidden_layers"],
        "n_heads": public["num_attention_heads"],
        "d_inner": public["intermediate_size"],
        "type_vocab_size": public.get("type_vocab_size", 2),
        "hidden_dropout": float(hidden_dropout),
        "attention_dropout": float(public.get("attention_probs_dropout_prob", 0.1)),
        "classifier_dropout": float(hidden_dropout if classifier_dropout is None else classifier_dropout),
        "layer_norm_epsilon": float(public.get("layer_norm_eps", 1e-12)),
        "initializer_range": float(public.get("initializer_range", 0.02)),
        "num_labels": 0 if labels is None else len(labels),
        "add_pooling_layer": "pooler.dense.weight" in tensors,
    }


def write_fields(config: Any) -> dict[str, Any]:
    """The public names of the same."""
    fields: dict[str, Any] = {
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.classifier_dropout,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.hidden_dropout,
        "hidden_size": config.d_model,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.d_inner,
        "layer_norm_eps": config.layer_norm_epsilon,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layer,
        "torch_dtype": "float32",
        "type_vocab_size": config.type_vocab_size,
        "vocab_size": config.vocab_size,
    }
    if config.num_labels:
        fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        fields["label2id"] = {f"LABEL_{i}": i for i in range(config.num_labels)}
    return fields
