"""What every backbone returns."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """The results of one forward pass; what a model lacks or nobody asked for is None.

    Attributes:
      hidden: (batch, positions, features) after the final norm.
      logits: (batch, positions, vocabulary) in float32, of the language-model head.
      hidden_states: (layers + 1, batch, positions, features), as the public implementation lists them.
      predictions: (batch, outputs) in float32, of the model's own classification or regression head.
      attentions: (layers, batch, heads, queries, keys) in float32.
    """

    hidden: jax.Array
    logits: jax.Array | None = None
    hidden_states: jax.Array | None = None
    predictions: jax.Array | None = None
    attentions: jax.Array | None = None
