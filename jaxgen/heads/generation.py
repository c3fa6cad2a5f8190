"""Sampling from causal language models, one token after the other, with the model's cache where it has one."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Recomputed:
    """`prefill` and `step` for a causal model without a cache: the whole row is computed again for every token."""

    def __init__(self, model: nnx.Module):
        self.model = model

    def prefill(self, tokens_bl: jax.Array, room: int) -> tuple[jax.Array, Any]:
        """Next-token logits (batch, vocabulary) after a prompt without padding, and the row so far in `room` positions."""
        length = tokens_bl.shape[1]
        row = jnp.pad(tokens_bl, ((0, 0), (0, room - length)))
        return self._logits(row, length - 1), (row, jnp.asarray(length))

    def step(self, tokens_b: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """The same after one more token per row."""
        row, position = cache
        row = row.at[:, position].set(tokens_b)
        return self._logits(row, position), (row, position + 1)

    def _logits(self, row_bl: jax.Array, position: int | jax.Array) -> jax.Array:
        return self.model(row_bl).logits[:, position]  # what follows `position` is not seen by a causal model


def decoder_of(model: nnx.Module) -> Any:
    """The model itself where it has `prefill` and `step`, else `Recomputed`."""
    return model if hasattr(model, "prefill") and hasattr(model, "step") else Recomputed(model)


def generate(
    model: nnx.Module,
    prompts: jax.Array,
    lengths: jax.Array,
    new_tokens: int,
    key: jax.Array,
    *,
    rows: jax.Array | None = None,
    shortest: int = 0,
    allowed: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
) -> jax.Array:
    """Continue prompts of several lengths. Pure; jit it with `new_tokens`, `shortest`, `temperature` and `top_k` static.

    What a row draws depends on `key`, its number and its own length alone, not on the other rows.

    Args:
      model: causal, with logits of the next token.
      prompts: int (batch, longest), padded on the right with anything.
      lengths: int (batch,), tokens of each prompt, 1 or more.
      new_tokens: tokens added to the longest prompt; shorter ones get at least as many.
      rows: int (batch,), numbers of the rows for the draws; None for 0, 1, ...
      shortest: a lower bound of `lengths` known beforehand, which are read in one pass; 0 for 1.
      allowed: bool (vocabulary,), tokens that may be drawn; None for all.
      temperature: of the softmax; 0 takes the most probable token.
      top_k: draw among the k most probable tokens; 0 for all.

    Returns:
      int32 (batch, longest + new_tokens): prompts, each followed by its continuation.
    """
    prompts = jnp.asarray(prompts, jnp.int32)
    batch, longest = prompts.shape
    total, first = longest + new_tokens, max(shortest, 1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch) if rows is None else rows)
    decoder = decoder_of(model)
    logits, cache = decoder.prefill(prompts[:, :first], total)
    given = jnp.pad(prompts, ((0, 0), (0, new_tokens)))

    def choose(logits_bv: jax.Array, position: jax.Array) -> jax.Array:
        if allowed is not None:
            logits_bv = jnp.where(allowed, logits_bv, -jnp.inf)
        if temperature == 0:
            drawn = logits_bv.argmax(-1)
        else:
            if top_k:
                smallest = jax.lax.top_k(logits_bv, top_k)[0][:, -1:]
                logits_bv = jnp.where(logits_bv >= smallest, logits_bv, -jnp.inf)
            now = jax.vmap(jax.random.fold_in)(keys, position - lengths)
            drawn = jax.vmap(jax.random.categorical)(now, logits_bv / temperature)
        return jnp.where(position < lengths, given[:, position], drawn.astype(jnp.int32))

    def step(carry: tuple[jax.Array, Any], position: jax.Array) -> tuple[Any, jax.Array]:
        logits, cache = carry
        token = choose(logits, position)
        return decoder.step(token, cache), token

    (logits, _), tokens = jax.lax.scan(step, (logits, cache), jnp.arange(first, total - 1))
    last = choose(logits, jnp.asarray(total - 1))
    return jnp.concatenate([prompts[:, :first], tokens.T, last[:, None]], axis=1)
