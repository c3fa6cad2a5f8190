"""What scoring feeds to a language model: every sequence as it is, or once for every group of tokens that is hidden together."""

import dataclasses

import numpy as np

from jaxgen.data.augment import spread
from jaxgen.data.segments import Encoder, Segments, Step
from jaxgen.errors import InputError


class Scoring:
    """Batches whose likelihoods add up to those of the sequences.

    Only tokens of A, C, G, T are scored: neither special tokens nor any that holds another letter.

    Causal models read a segment once; its first token has nothing before it and is not scored. Masked models read it in several passes:
    pass i hides tokens i, i + stride, ..., with their neighbours as far as they share bases, and scores them.

    Args:
        encoder: of the sequences.
        segments: of the sequences.
        strands: over which the likelihood is averaged.
        causal: see above.
        stride: passes over a segment; 0 for one pass per token.

    Attributes:
        segments: one for every pass over a segment.
        shares: float64, the part of the work on its sequence that each of them is.
    """

    def __init__(self, encoder: Encoder, segments: Segments, strands: int, *, causal: bool, stride: int = 0):
        tokenizer = encoder.tokenizer
        if not causal and tokenizer.mask_id is None:
            raise InputError(f"a pseudo-likelihood needs a tokenizer with a mask token; {tokenizer.name!r} has none")
        self.encoder, self.whole, self.causal = encoder, segments, causal
        self._bases, self._mask_id = tokenizer.bases_per_token(), tokenizer.mask_id or 0
        content = segments.tokens - len(encoder.prefix) - len(encoder.suffix)
        passes = np.ones_like(content) if causal else np.maximum(np.minimum(content, stride) if stride else content, 1)
        self._owner = np.repeat(np.arange(len(passes)), passes)
        self._first = np.arange(len(self._owner)) - np.repeat(np.cumsum(passes) - passes, passes)
        self._passes = passes[self._owner]
        fields = {name: getattr(segments, name)[self._owner] for name in ("row", "strand", "start", "stop", "tokens")}
        self.shares = segments.coefficient[self._owner] / self._passes
        # Likelihoods of windows and passes add up; those of strands are averaged.
        coefficient = np.full(len(self._owner), 1 / strands, np.float32)
        self.segments = dataclasses.replace(segments, **fields, coefficient=coefficient)

    def batch(self, step: Step) -> dict[str, np.ndarray]:
        """`tokens`, `targets`, `bases` int32 (b, width) and `mask` bool (b, width); see `jaxgen.heads.scorer`."""
        encoder, real = self.encoder, step.segments >= 0
        wanted, inverse = np.unique(np.where(real, self._owner[step.segments], -1), return_inverse=True)
        targets, mask = (rows[inverse] for rows in encoder.batch(self.whole, wanted, step.width))
        positions, n = np.arange(step.width), np.where(real, self.segments.tokens[step.segments], 0)[:, None]
        begin = step.width - n if encoder.tokenizer.padding_side == "left" else np.zeros_like(n)
        first, last = begin + len(encoder.prefix), begin + n - len(encoder.suffix)
        content = (positions >= first) & (positions < last) & real[:, None]
        scored = content & (self._bases[targets] > 0)
        tokens = targets
        if self.causal:
            scored &= positions > begin
        else:
            offset, stride = self._first[step.segments][:, None], self._passes[step.segments][:, None]
            scored &= (positions - first) % stride == offset
            tokens = np.where(spread(scored, encoder.tokenizer.mask_span) & content, np.int32(self._mask_id), targets)
        bases = np.where(scored, self._bases[targets], 0).astype(np.int32)
        return {"tokens": tokens, "targets": targets, "bases": bases, "mask": mask}
