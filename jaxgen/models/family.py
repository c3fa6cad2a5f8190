"""What the rest of jaxgen needs to know of an architecture: one `Family` per file of this room."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxgen.checkpoints.key_table import Row, Sizes
from jaxgen.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture, its published sizes, and how its public checkpoints are read and written.

    Attributes:
      name: as in `--config.model.name=NAME_SIZE`.
      config: frozen dataclass of shape and numerics.
      build: (config, rngs) -> module.
      sizes: size -> config. "smoke" trains on two CPU cores in a minute or two.
      default_size: what the bare family name means.
      hub: size -> public repository of the weights.
      recognises: (public config.json, public tensor names) -> is this checkpoint of this family?
      read_config: (public config.json, tensors under `public_names`, weight file name) -> config.
      write_config: config -> public config.json.
      public_names: raw tensors -> tensors under the names of `key_table`, whatever the layout.
      key_table: config -> rows.
      table_sizes: config -> how many layers each letter of the table runs over.
      export_name: name of the key table -> name in an exported file.
      head_keys: regular expression of task-head tensors (under `public_names`), kept aside when a backbone is loaded.
      tokenizer: config -> (name, options) for `jaxgen.tokenizers.get`.
      inputs: "tokens" or "one_hot".
      token_flops: config, length -> floating-point operations of one forward pass per token, None where it is not defined.
      for_task: (config, longest input, classes) -> config: the fields that a new task sets when the model is trained from scratch.
      emits: "hidden" for a backbone that takes a head, "predictions" for a model that ends in its own classifier.
      own_head: regular expression of the parameters of the published heads; empty if there are none. Such a family has a config field
        `num_labels`, and with it > 0 the model ends in its published classification head, `Output.predictions`.
      strands: how a model that reads both strands itself holds them, hidden -> (batch, positions, features, 2), each strand read along
        itself; None for all others.
      longest: config -> most tokens of an input, special ones included; 0 for no limit.
      causal: whether a position sees only those before it, so that the logits are those of the next token.
      special_tokens: whether the model was trained on sequences between the tokenizer's special tokens.
    """

    name: str
    config: type
    build: Callable[[Any, nnx.Rngs], nnx.Module]
    sizes: Mapping[str, Any]
    default_size: str
    recognises: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], bool]
    read_config: Callable[[Mapping[str, Any], Mapping[str, np.ndarray], str], Any]
    write_config: Callable[[Any], dict[str, Any]]
    public_names: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    key_table: Callable[[Any], tuple[Row, ...]]
    export_name: Callable[[str], str]
    tokenizer: Callable[[Any], tuple[str, dict[str, Any]]]
    table_sizes: Callable[[Any], Sizes] = lambda config: {}
    head_keys: str = r"^(head|decoder|score|classifier)\b"
    hub: Mapping[str, str] = dataclasses.field(default_factory=dict)
    inputs: str = "tokens"
    token_flops: Callable[[Any, int], float] | None = None
    for_task: Callable[[Any, int, int], Any] = lambda config, length, classes: config
    emits: str = "hidden"
    own_head: str = ""
    strands: Callable[[jax.Array], jax.Array] | None = None
    longest: Callable[[Any], int] = lambda config: 0
    causal: bool = False
    special_tokens: bool = False


def override(config: Any, fields: Mapping[str, Any], where: str = "model.config") -> Any:
    """`dataclasses.replace` that names an unknown field or a wrong type in one line."""
    known = {field.name: field for field in dataclasses.fields(config)}
    clean = {}
    for name, value in fields.items():
        if name not in known:
            raise InputError(f"{where}.{name}: no such field of {type(config).__module__.rsplit('.', 1)[-1]}{nearest(name, known)}")
        current = getattr(config, name)
        if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if current is not None and type(value) is not type(current):
            raise InputError(f"{where}.{name}: expected {type(current).__name__} like {current!r}, got {value!r}")
        clean[name] = value
    return dataclasses.replace(config, **clean)


def check_fields(config: Any, where: str) -> None:
    """Numbers and names are what they are declared as, and whole numbers are not negative; truth is taken as Python takes it."""
    kinds = {int: (int, "a whole number from 0 on"), float: (int | float, "a number"), str: (str, "a name")}
    for field in dataclasses.fields(config):
        kind, what = kinds.get(field.type, (object, ""))  # pyright: ignore[reportArgumentType]
        value = getattr(config, field.name)
        if not isinstance(value, kind) or (what and isinstance(value, bool)) or (field.type is int and value < 0):
            raise InputError(f"{where} gives {field.name}={value!r}, which should be {what}")
