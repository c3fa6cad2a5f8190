"""What of its input a model's output hangs on: outputs to compare, gradient x input of every token, probabilities of hidden bases."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgen.heads.variant import log_probability
from jaxgen.layers.core import Embedding

Batch = Mapping[str, jax.Array]


class GatedEmbedding(Embedding):
    """An embedding whose rows lie between their token's (gate 1) and the mean over the tokens that stand for bases (gate 0).

    Args:
        gate: (batch, length).
        base_tokens: ids of the tokens that stand for bases.
    """

    def __init__(self, embedding: Embedding, gate: jax.Array, base_tokens: tuple[int, ...]):
        self.table, self.gate, self.base_tokens = embedding.table, gate, base_tokens

    def __call__(self, tokens: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        table = self.table[...]
        return self._gated(jnp.take(table, tokens, axis=0), table[jnp.array(self.base_tokens)].mean(0)).astype(dtype)

    def shares(self, tokens: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return self._gated(super().shares(tokens), super().shares(jnp.array(self.base_tokens)).mean(0)).astype(dtype)

    def _gated(self, own: jax.Array, baseline: jax.Array) -> jax.Array:
        return own + (self.gate - 1)[..., None] * (own - baseline)


class Explainer(nnx.Module):
    """A model with the numbers that explanations are about.

    Batches have `tokens` int and `mask` bool (batch, length), and `bases` int (batch, length): the bases that a token stands for, 0 where
    it is not scored.

    Args:
        head: `SequencePredictor` around the same backbone, with a fine-tuned head; None where there is none, or the backbone ends in it.
        causal: as of the family.
        masked: keeps padding out of the backbone.
        base_tokens: ids of the tokens that stand for A, C, G and T alone.
    """

    def __init__(
        self, backbone: nnx.Module, *, head: nnx.Module | None, causal: bool, masked: bool = True, base_tokens: tuple[int, ...] = ()
    ):
        self.backbone, self.head, self.causal, self.masked, self.base_tokens = backbone, head, causal, masked, base_tokens

    def outputs(self, batch: Batch, gate: jax.Array | None = None) -> jax.Array:
        """float32 (batch, outputs): predictions or, of a language model, the log-likelihood in nats (batch, 1).

        The likelihood of a causal model leaves out the first token. That of a masked one is the sum of log P(token | sequence) with
        nothing hidden, in one pass: the one-pass pseudo-log-likelihood.

        Args:
            gate: (batch, length), the share to which a target of the likelihood is its token, and else any of `base_tokens`, all alike.
        """
        tokens, mask = batch["tokens"], batch["mask"] if self.masked else None
        if self.head is not None:
            return self.head({"tokens": tokens, "mask": batch["mask"]}, train=False).astype(jnp.float32)
        output = self.backbone(tokens, mask=mask)
        if output.predictions is not None:
            return output.predictions.astype(jnp.float32)
        logits, targets, scored = output.logits, tokens, batch["bases"] > 0
        if self.causal:
            # Behind padding on the left the first token has nothing before it either.
            logits, targets, scored = logits[:, :-1], tokens[:, 1:], scored[:, 1:] & batch["mask"][:, :-1]
            gate = None if gate is None else gate[:, 1:]
        likely = log_probability(logits, targets)
        if gate is not None:
            log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
            likely += (gate - 1) * (likely - log_p[..., jnp.array(self.base_tokens)].mean(-1))
        return jnp.where(scored, likely, 0).sum(1, keepdims=True)

    def grad_x_input(self, batch: Batch) -> jax.Array:
        """float32 (batch, length, 1): what every token adds to the output `weights` (batch, outputs) . outputs, to first order.

        With g the gradient with respect to the one-hot input (positions x tokens), the value at position i is g[i, token i] minus the
        mean of g[i] over the base tokens: gradient x (input - baseline), where the baseline is every base at the same share. For single
        bases this is the gradient with the mean over A, C, G, T subtracted, which takes out the part of a gradient that points off the
        simplex and means nothing (Majdandzic et al. 2023, Genome Biology 24:109). It is computed as the derivative with respect to a gate
        between the two, so that a model which embeds its tokens twice, as Caduceus-PS does, needs no rule of its own.
        """

        def explained(gate: jax.Array) -> jax.Array:
            return (self.relaxed(batch, gate) * batch["weights"]).sum()

        return jax.grad(explained)(jnp.ones(batch["tokens"].shape, jnp.float32))[..., None]

    def relaxed(self, batch: Batch, gate: jax.Array) -> jax.Array:
        """`outputs` for tokens that are themselves to the share `gate` (batch, length), and else any of the base tokens, all alike."""
        graphdef, state = nnx.split(self)
        module = nnx.merge(graphdef, state)  # a copy, whose embedding may be replaced within a gradient
        name = "embedding" if hasattr(module.backbone, "embedding") else "words"
        setattr(module.backbone, name, GatedEmbedding(getattr(module.backbone, name), gate, self.base_tokens))
        return module.outputs(batch, gate)

    def letters(self, batch: Batch) -> jax.Array:
        """float32 (batch, sites * 4): log P of the hidden tokens with A, C, G, T at each site, in nats.

        The batch is that of `jaxgen.data.mutants.HiddenTokens`: `tokens` with some hidden, their `places` int (batch, hidden), and
        `letters` int (batch, hidden, sites, 4), tokens that could stand there, -1 where a place is not used.
        """
        logits = self.backbone(batch["tokens"], mask=batch["mask"] if self.masked else None).logits
        hidden = jnp.take_along_axis(logits.astype(jnp.float32), batch["places"][..., None], axis=1)
        b, n, sites, _ = batch["letters"].shape
        wanted = batch["letters"].reshape(b, n, sites * 4)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(hidden), jnp.maximum(wanted, 0), axis=2)
        return jnp.where(wanted >= 0, log_p, 0).sum(1)
