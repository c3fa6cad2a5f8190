"""What tokenizers of whole batches share: cutting, special tokens around every row, padding."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxgen.tokenizers.base import Tokenizer


class FramedTokenizer(Tokenizer):
    """A row is `prefix`, tokens, `suffix`. A subclass implements `_content` and `decode`, and sets the special tokens."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    # Sets of files, any of which holds a vocabulary; `file=` takes the first of a set.
    files: ClassVar[tuple[tuple[str, ...], ...]] = ()

    @abstractmethod
    def _content(self, sequences: Sequence[bytes | str], budget: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens without the special ones around them.

        Returns:
            (integers (B, n), each row's tokens from column 0 and anything after them; int64 (B,) tokens per row). Tokens beyond
            `budget` per row may be missing.
        """

    def encode(self, sequence: bytes | str, *, add_special_tokens: bool = True, max_length: int | None = None) -> np.ndarray:
        ids, _ = self._rows([sequence], add_special_tokens, self._budget(max_length, add_special_tokens))
        return ids[0]

    def encode_batch(
        self,
        sequences: Sequence[bytes | str],
        max_length: int | None = None,
        *,
        add_special_tokens: bool = True,
        padding_side: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        budget = self._budget(max_length or None, add_special_tokens)
        ids, lengths = self._rows(sequences, add_special_tokens, budget, max_length or 0)
        if (padding_side or self.padding_side) == "left":
            padded = np.full_like(ids, self.pad_id)
            width = ids.shape[1]
            padded[self.attention_mask(lengths, width, "left")] = ids[self.attention_mask(lengths, width, "right")]
            ids = padded
        return ids, lengths

    def _rows(
        self, sequences: Sequence[bytes | str], add_special_tokens: bool, budget: int | None, width: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(int32 (B, width or longest), padded on the right; int32 (B,) lengths)."""
        content, counts = self._content(sequences, budget)
        if budget is not None:
            counts = np.minimum(counts, budget)
        prefix, suffix = (self.prefix, self.suffix) if add_special_tokens else ((), ())
        longest, first = int(counts.max(initial=0)), len(prefix)
        lengths = (counts + first + len(suffix)).astype(np.int32)
        ids = np.full((len(counts), width or int(lengths.max(initial=0))), self.pad_id, np.int32)
        ids[:, :first] = prefix
        block = ids[:, first : first + longest]
        block[...] = content[:, :longest]
        if counts.min(initial=longest) < longest:
            block[np.arange(longest) >= counts[:, None]] = self.pad_id
        for i, token in enumerate(suffix):
            ids[np.arange(len(counts)), first + counts + i] = token
        return ids, lengths


def as_rows(flat: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B, longest) rows of `counts` (B,) elements each, taken one after the other from `flat`; zeros after them."""
    longest = int(counts.max(initial=0))
    if len(flat) == len(counts) * longest:
        return flat.reshape(len(counts), longest)
    rows = np.zeros((len(counts), longest), flat.dtype)
    rows[np.arange(longest) < counts[:, None]] = flat
    return rows
