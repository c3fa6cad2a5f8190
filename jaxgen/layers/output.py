"""What every backbone returns."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """`hidden` (batch, positions, features) after the final norm; `logits` (batch, positions, vocabulary) in float32 if the model has a
    language-model head; `hidden_states` (layers, batch, positions, features) when asked for."""

    hidden: jax.Array
    logits: jax.Array | None = None
    hidden_states: jax.Array | None = None
