"""What a variant does to hidden states: the window average of the published eQTL probe, and distances between alleles."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxgen.heads.pooling import pool


def window_mean(hidden: jax.Array, index: jax.Array, window_bp: int = 1536, bp_per_token: int = 1) -> jax.Array:
    """Mean of the hidden states around a token, (batch, length, features) -> float32 (batch, features).

    With w = window_bp // bp_per_token, offsets run from floor(-w / 2) to w // 2, both included: w + 1 positions for even w, the left side
    one longer for odd w. Positions outside the sequence repeat its first or last token. Source: kuleshov-group/caduceus,
    `vep_embeddings.py`.

    Args:
      index: int (batch,), the token of the variant; -1 counts as 0 does after clamping.
    """
    window = window_bp // bp_per_token
    offsets = jnp.arange(-window // 2, window // 2 + 1)
    positions = jnp.clip(index[:, None] + offsets, 0, hidden.shape[1] - 1)
    return jnp.take_along_axis(hidden.astype(jnp.float32), positions[..., None], axis=1).mean(1)


def allele_embedding(ref: jax.Array, alt: jax.Array, index: jax.Array, window_bp: int = 1536, bp_per_token: int = 1) -> jax.Array:
    """(batch, 2 * features): `window_mean` of the reference, then of the alternative."""
    return jnp.concatenate([window_mean(x, index, window_bp, bp_per_token) for x in (ref, alt)], axis=-1)


def distances(ref: jax.Array, alt: jax.Array) -> dict[str, jax.Array]:
    """Between embeddings (batch, features) of the alleles: `l2`, `l1`, and `cosine` distance (0 where they are the same)."""
    difference = alt - ref
    norms = jnp.linalg.norm(ref, axis=-1) * jnp.linalg.norm(alt, axis=-1)
    cosine = jnp.where(norms > 0, 1 - (ref * alt).sum(-1) / jnp.where(norms > 0, norms, 1.0), 0.0)
    return {"l2": jnp.linalg.norm(difference, axis=-1), "l1": jnp.abs(difference).sum(-1), "cosine": cosine}


class VariantScorer(nnx.Module):
    """Both alleles of a batch -> float32 (batch, 3 + 2 * outputs): log-likelihood ratio, L2 and cosine distance, then the predictions.

    The batch has `tokens` int and `mask` bool (batch, length, 2), reference and alternative on the last axis; `index` int (batch,), the
    token of the variant; and `aligned` bool (batch,), false after an insertion or deletion. Where tokens differ in length, as byte pairs
    do, it also has `near` bool (batch, length, 2): whose hidden states are averaged.

    The ratio is that of `log_likelihood_ratio`; NaN for a model without a language-model head. Distances are between the hidden states
    averaged over a window around the variant.

    Args:
      causal: as of the family.
      bases: by token, how many of A, C, G, T it stands for.
      masked: keeps padding out of the backbone.
      mask_id: what hides a token under a masked model.
      window_bp: bases of the window; 0 = all real tokens.
      bp_per_token: bases that a token stands for.
      head: `SequencePredictor` around the same backbone, with a fine-tuned head; None where there is none, or the backbone ends in it.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        *,
        causal: bool,
        bases: tuple[int, ...],
        masked: bool = True,
        mask_id: int = 0,
        window_bp: int = 0,
        bp_per_token: int = 1,
        head: nnx.Module | None = None,
    ):
        self.backbone, self.causal, self.bases, self.masked, self.mask_id = backbone, causal, bases, masked, mask_id
        self.window_bp, self.bp_per_token, self.head = window_bp, bp_per_token, head

    def __call__(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        tokens, mask = (jnp.concatenate([batch[name][..., 0], batch[name][..., 1]]) for name in ("tokens", "mask"))
        output = self.backbone(tokens, mask=mask if self.masked else None)
        if "near" in batch:
            pooled = pool(output.hidden, "mean", jnp.concatenate([batch["near"][..., 0], batch["near"][..., 1]]))
        elif self.window_bp:
            index = jnp.concatenate([batch["index"]] * 2)
            pooled = window_mean(output.hidden, index, self.window_bp, self.bp_per_token)
        else:
            pooled = pool(output.hidden, "mean", mask)
        apart = distances(*jnp.split(pooled, 2))
        ratio = log_likelihood_ratio(
            self.backbone, output.logits, batch, causal=self.causal, bases=self.bases, masked=self.masked, mask_id=self.mask_id
        )
        columns = [ratio, apart["l2"], apart["cosine"]]
        predictions = output.predictions if self.head is None else self.head({"tokens": tokens, "mask": mask}, train=False)
        if predictions is not None:
            columns += [x[:, i] for x in jnp.split(predictions, 2) for i in range(x.shape[1])]
        return jnp.stack([column.astype(jnp.float32) for column in columns], axis=1)


class VariantEmbedder(nnx.Module):
    """What the eQTL probe reads: both alleles -> float32 (batch, 2 * features) of either strand, and (batch, 4) zero-shot scores.

    The batch has `tokens` int (batch, length, 2, s), without padding, reference and alternative on the third axis, and on the last the
    forward strand and, for a backbone that reads one strand, the reverse complement; `index` int (batch,), the token of the variant on the
    forward strand; and `aligned` as for `VariantScorer`.

    The embeddings are those of `allele_embedding`. Hidden states of the reverse complement are turned along the length first, so that a
    position is the same base in both. Scores, each the mean over the strands that were read: log-likelihood ratio as of `VariantScorer`,
    and L2, L1 and cosine distance between the window averages.

    Args:
      strands: as of the family; None for a backbone that reads one strand.
      causal: as of the family.
      bases: by token, how many of A, C, G, T it stands for.
      mask_id: what hides a token under a masked model.
      window_bp: bases of the window.
      bp_per_token: bases that a token stands for.
      ratio: whether to compute the ratio, for which a masked model runs again; otherwise it is NaN.
      turned_back: whether the second strand of `strands` is turned along the length too; the published pipeline forgets it.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        *,
        strands: Callable[[jax.Array], jax.Array] | None,
        causal: bool,
        bases: tuple[int, ...],
        mask_id: int,
        window_bp: int,
        bp_per_token: int,
        ratio: bool,
        turned_back: bool,
    ):
        self.backbone, self.strands, self.causal, self.bases, self.mask_id = backbone, strands, causal, bases, mask_id
        self.window_bp, self.bp_per_token, self.ratio, self.turned_back = window_bp, bp_per_token, ratio, turned_back

    def __call__(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden, ratios = [], []
        for tokens in jnp.moveaxis(batch["tokens"], -1, 0):
            output = self.backbone(jnp.concatenate([tokens[..., 0], tokens[..., 1]]), mask=None)
            hidden.append(output.hidden)
            one = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool), "aligned": batch["aligned"]}
            logits = output.logits if self.ratio else None
            ratios.append(
                log_likelihood_ratio(self.backbone, logits, one, causal=self.causal, bases=self.bases, masked=False, mask_id=self.mask_id)
            )
        if self.strands is None:
            forward, reverse = hidden
            reverse = jnp.flip(reverse, 1)
        else:
            forward, reverse = jnp.moveaxis(self.strands(hidden[0]), -1, 0)
            reverse = jnp.flip(reverse, 1) if self.turned_back else reverse
        forward, reverse = (self._embedding(stream, batch["index"]) for stream in (forward, reverse))
        apart = [distances(*jnp.split(embedding, 2, axis=-1)) for embedding in (forward, reverse)]
        columns = [sum(ratios) / len(ratios), *(sum(one[name] for one in apart) / 2 for name in ("l2", "l1", "cosine"))]
        return forward, reverse, jnp.stack([jnp.asarray(column, jnp.float32) for column in columns], axis=1)

    def _embedding(self, hidden: jax.Array, index: jax.Array) -> jax.Array:
        ref, alt = jnp.split(hidden, 2)
        return allele_embedding(ref, alt, index, self.window_bp, self.bp_per_token)


def log_likelihood_ratio(
    backbone: nnx.Module,
    logits: jax.Array | None,
    batch: Mapping[str, jax.Array],
    *,
    causal: bool,
    bases: tuple[int, ...],
    masked: bool,
    mask_id: int,
) -> jax.Array:
    """float32 (batch,): log P(alternative) - log P(reference) in nats.

    Of the whole windows under a causal model, as far as tokens stand for A, C, G and T; NaN where the windows hold different numbers of
    these, as around an insertion near N. Of the tokens that differ, all of them hidden, under a masked model; NaN where the rows are not
    aligned or their tokens are cut at other bases.

    Args:
      logits: (2 * batch, length, vocabulary), of all references and then of all alternatives; None gives NaN.
      batch: `tokens`, `mask` and `aligned`.
    """
    ref, alt = batch["tokens"][..., 0], batch["tokens"][..., 1]
    if logits is None:
        return jnp.full(len(ref), jnp.nan)
    count_ref, count_alt = (jnp.asarray(bases, jnp.int32)[tokens] for tokens in (ref, alt))
    if causal:
        scored = jnp.concatenate([count_ref, count_alt])[:, 1:] > 0
        likely = log_probability(logits[:, :-1], jnp.concatenate([ref, alt])[:, 1:])
        before, after = jnp.split(jnp.where(scored, likely, 0).sum(1), 2)
        return jnp.where(count_ref[:, 1:].sum(1) == count_alt[:, 1:].sum(1), after - before, jnp.nan)
    differ = ref != alt
    hidden = backbone(jnp.where(differ, mask_id, ref), mask=batch["mask"][..., 0] if masked else None).logits
    # Both tokens stand at the same place, so the softmax's denominator cancels.
    logit_alt, logit_ref = (jnp.take_along_axis(hidden, x[..., None], axis=2)[..., 0].astype(jnp.float32) for x in (alt, ref))
    ratio = jnp.where(differ, logit_alt - logit_ref, 0).sum(1)
    return jnp.where(batch["aligned"] & (count_ref == count_alt).all(1), ratio, jnp.nan)


def log_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """(batch, length, vocabulary), (batch, length) -> float32 (batch, length): of each token, in nats."""
    return -optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens)
