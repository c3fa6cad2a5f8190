"""What BERT and MosaicBERT share: embeddings, heads, and the order in which a model runs them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen.errors import InputError
from jaxgen.layers.core import Embedding, LayerNorm, Linear, dropout, normal, param, zeros
from jaxgen.layers.output import Output
from jaxgen.layers.stack import make_stack, scan_stack


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Shape and numerics. `num_labels` 0 ends in the masked-language-model head, more in the public classification head.

    `add_pooling_layer` says whether a model without classification head has a pooler; with one it always has.
    """

    vocab_size: int = 4101
    d_model: int = 768
    n_layer: int = 12
    n_heads: int = 12
    d_inner: int = 3072
    type_vocab_size: int = 2
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-12
    lm_head_epsilon: float = 1e-12
    initializer_range: float = 0.02
    num_labels: int = 0
    add_pooling_layer: bool = True
    dtype: str = "float32"
    remat: str = "none"


class MaskedLanguageModelHead(nnx.Module):
    """hidden (..., features) -> logits (..., vocabulary): dense, GELU, norm, the transposed word embedding and a bias."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.dense = Linear(config.d_model, config.d_model, rngs, axes=("embed", None), init=normal(config.initializer_range))
        self.norm = LayerNorm(config.d_model, rngs, eps=config.lm_head_epsilon)
        self.bias = param(rngs, zeros, (config.vocab_size,), ("vocab",), decay=False)

    def __call__(self, hidden: jax.Array, words: Embedding) -> jax.Array:
        return words.attend(self.norm(jax.nn.gelu(self.dense(hidden), approximate=False))) + self.bias[...]


class Bert(nnx.Module):
    """Token ids (batch, length) -> Output, for the post-norm blocks that `make_block` builds.

    A block maps (x, mask, key, return_weights) to (x, attention maps or None).

    Args:
      max_positions: rows of the table of learned positions; 0 for none.
      drop_padding: padding leaves the encoder as zeros, as if it had been taken out and put back.
    """

    def __init__(
        self,
        config: BertConfig,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        rngs: nnx.Rngs,
        *,
        max_positions: int = 0,
        drop_padding: bool = False,
    ):
        self.config, self.max_positions, self.drop_padding = config, max_positions, drop_padding
        d, init = config.d_model, normal(config.initializer_range)
        if d % config.n_heads:
            raise InputError(f"model.config.d_model={d} does not divide into n_heads={config.n_heads} heads")
        self.words = Embedding(config.vocab_size, d, rngs, init=init)
        self.positions = Embedding(max_positions, d, rngs, init=init) if max_positions else None
        self.types = Embedding(config.type_vocab_size, d, rngs, init=init)
        self.norm = LayerNorm(d, rngs, eps=config.layer_norm_epsilon)
        self.blocks = make_stack(make_block, config.n_layer, rngs)
        pooled = config.add_pooling_layer or config.num_labels
        self.pooler = Linear(d, d, rngs, axes=("embed", None), init=init) if pooled else None
        self.lm_head = None if config.num_labels else MaskedLanguageModelHead(config, rngs)
        self.classifier = Linear(d, config.num_labels, rngs, axes=("embed", None), init=init) if config.num_labels else None

    def embed(self, tokens: jax.Array, token_types: jax.Array | None = None) -> jax.Array:
        """(batch, length, features) after the norm; `token_types` (batch, length) are segments, 0 by default."""
        length, dtype = tokens.shape[1], jnp.dtype(self.config.dtype)
        if self.positions is not None and length > self.max_positions:
            raise InputError(
                f"an input of {length} tokens is longer than the model's {self.max_positions} positions; set data.max_length lower"
            )
        x = self.words(tokens) + self.types(jnp.zeros_like(tokens) if token_types is None else token_types)
        if self.positions is not None:
            x = x + self.positions.table[...][:length]
        return self.norm(x, dtype)

    def pool(self, hidden: jax.Array) -> jax.Array:
        """(batch, features) in float32, from the first position.

        Raises:
          InputError: a model without pooler.
        """
        if self.pooler is None:
            raise InputError("this model has no pooler; pool its hidden states, or load it with add_pooling_layer or num_labels")
        return jnp.tanh(self.pooler(hidden[:, 0].astype(jnp.float32)))

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        hidden_states: bool = False,
        attentions: bool = False,
        token_types: jax.Array | None = None,
    ) -> Output:
        """`mask` (batch, length), true at real tokens; without it padding is attended to, as in the original.

        `key` turns dropout on. `hidden_states` are the embedding and each block's output.
        """
        del train  # nothing here depends on it but dropout
        embed_key, blocks_key, head_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = dropout(self.embed(tokens, token_types), self.config.hidden_dropout, embed_key)

        def step(block: Any, carry: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            x, key = carry
            mine, key = (None, None) if key is None else jax.random.split(key)
            x, weights = block(x, mask, mine, attentions)
            return (x, key), (x if hidden_states else None, weights)

        (hidden, _), (states, weights) = scan_stack(self.blocks, step, (x, blocks_key), remat=self.config.remat)
        if self.drop_padding and mask is not None:
            hidden = jnp.where(mask[..., None], hidden, 0)
            states = None if states is None else jnp.where(mask[..., None], states, 0)
        logits = predictions = None
        if self.lm_head is not None:
            logits = self.lm_head(hidden.astype(jnp.float32), self.words)
        if self.classifier is not None:
            predictions = self.classifier(dropout(self.pool(hidden), self.config.classifier_dropout, head_key))
        if states is not None:
            states = jnp.concatenate([x[None], states])
        return Output(hidden, logits, states, predictions, weights)


def encoder_flops(config: BertConfig, length: int, ffn_matrices: int) -> float:
    """Floating-point operations of the blocks and the head per token, multiply-adds counted twice."""
    d = config.d_model
    blocks = config.n_layer * (8 * d * d + 2 * ffn_matrices * d * config.d_inner + 4 * length * d)
    return blocks + (0 if config.num_labels else 2 * d * (d + config.vocab_size))
