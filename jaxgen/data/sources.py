"""Where batches of labelled sequences come from, vectorised over the rows of a batch."""

from typing import Any, Protocol

import numpy as np

from jaxgen.data.augment import conjoin, reverse_complement, reverse_complement_text, shift
from jaxgen.data.buckets import padded_lengths
from jaxgen.data.random import STREAM_REVERSE_COMPLEMENT, STREAM_SHIFT, RowRandom
from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.base import Examples, Task
from jaxgen.errors import InputError
from jaxgen.tokenizers.base import Tokenizer

_CHUNK = 8192  # sequences encoded at a time


class BatchSource(Protocol):
    """A set of examples that can make a batch of any of them."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, indices: np.ndarray, random: RowRandom) -> dict[str, np.ndarray]:
        """Arrays of the examples `indices` (int64 (b,)), one per row, with the randomness of those rows.

        A source with `lengths` (n,), tokens per example, also takes `width`, the padded length of this batch.
        """
        ...


class TableSource:
    """Batches of labelled sequences.

    Batch: `tokens` int32 (b, L) and `mask` bool (b, L), true on real tokens, both (b, L, 2) when conjoined; `target` int32 (b,) or
    float32 (b, outputs). Tokens as in the GenomicBenchmarks pipeline by default: no special tokens, padding on the tokenizer's
    side, truncation on the right; reverse complements are taken of the whole sequence, before truncation.

    Args:
        examples: a split of a task.
        tokenizer: turns sequences into ids.
        max_length: L in tokens; 0 for the longest of these examples, rounded up to a multiple of 8.
        rc_aug: reverse-complement each example with probability one half.
        max_shift: move each example by a random number of bases up to this, to either side. With one id per base the row moves and gaps
            are padding; other tokenizers read the sequence without the bases that fall out.
        conjoin: pair every sequence with its reverse complement on a last axis of 2.
        padding_side: "left" or "right"; None for the tokenizer's own.
        add_special_tokens: whether the tokenizer adds its special tokens.
        cache_bytes: up to this size all ids are kept in memory, in the narrowest integer type; beyond it each batch is encoded
            when asked for.

    Attributes:
        max_length: L.
        lengths: int32 (n,) positions that an example may fill: its real tokens on the longer strand, and the room for shifts.
        truncated: number of examples that are longer than L tokens and lose their right end.
    """

    def __init__(
        self,
        examples: Examples,
        tokenizer: Tokenizer,
        max_length: int = 0,
        *,
        rc_aug: bool = False,
        max_shift: int = 0,
        conjoin: bool = False,
        padding_side: str | None = None,
        add_special_tokens: bool = False,
        cache_bytes: int = 1 << 30,
    ):
        if rc_aug and conjoin:
            raise InputError("rc_aug and conjoin exclude each other: a conjoined example already holds both strands")
        if padding_side not in (None, "left", "right"):
            raise InputError(f"padding_side {padding_side!r} is neither 'left' nor 'right'")
        if not len(examples):
            raise InputError("no examples: every split needs at least one row")
        self.examples, self.tokenizer = examples, tokenizer
        if max_shift < 0 or (max_shift and conjoin):
            raise InputError(f"data.max_shift={max_shift} must be 0 or more, and 0 for conjoined examples")
        self.rc_aug, self.max_shift, self.conjoin = rc_aug, max_shift, conjoin
        self._options: dict[str, Any] = {"add_special_tokens": add_special_tokens, "padding_side": padding_side}
        self.max_length = max_length or token_length(examples.sequences, tokenizer, add_special_tokens, both_strands=rc_aug or conjoin)
        dtype = np.uint8 if tokenizer.vocab_size <= 256 else np.uint16 if tokenizer.vocab_size <= 65536 else np.int32
        strands = (False, True) if rc_aug or conjoin else (False,)
        keep = len(examples) * self.max_length * len(strands) * np.dtype(dtype).itemsize <= cache_bytes
        encoded = [self._encode_all(turn, dtype if keep else None) for turn in strands]
        self._cache = encoded if keep else None
        self._tokens = encoded[0][1]
        self.lengths = np.minimum(np.max([lengths for _, lengths in encoded], axis=0) + max_shift, self.max_length)

    def _encode(self, sequences: list[bytes], turn: bool, width: int) -> tuple[np.ndarray, np.ndarray]:
        if turn:
            sequences = [reverse_complement_text(sequence) for sequence in sequences]
        return self.tokenizer.encode_batch(sequences, width, **self._options)

    def _encode_all(self, turn: bool, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """(ids (n, L) of `dtype`, or (0, L) for None; lengths (n,))."""
        if self.tokenizer.lookup is not None and self.tokenizer.vocab_size <= 256 and not self._options["add_special_tokens"]:
            return self._look_up_all(turn, dtype)
        n = len(self.examples)
        ids, lengths = np.empty((n if dtype else 0, self.max_length), dtype or np.uint8), np.empty(n, np.int32)
        sequences = list(self.examples.sequences)
        for start in range(0, n, _CHUNK):
            rows = slice(start, start + _CHUNK)
            chunk, lengths[rows] = self._encode(sequences[rows], turn, self.max_length)
            if dtype:
                ids[rows] = chunk
        return ids, lengths

    def _look_up_all(self, turn: bool, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """`_encode_all` where one byte is one id: all sequences at once."""
        sequences, tokenizer, width = self.examples.sequences, self.tokenizer, self.max_length
        lengths = np.minimum(sequences.lengths, width).astype(np.int32)
        if dtype is None:
            return np.empty((0, width), np.uint8), lengths
        # Turned as a whole, the buffer holds the turned sequences in reverse order.
        bases, whole = (reverse_complement(sequences.buffer), sequences.lengths[::-1]) if turn else (sequences.buffer, sequences.lengths)
        ids = np.frombuffer(bases.tobytes().translate(tokenizer.lookup.astype(np.uint8).tobytes()), np.uint8)
        if int(whole.max(initial=0)) > width:
            ids = ids[np.arange(len(ids)) - np.repeat(np.cumsum(whole) - whole, whole) < width]
        rows = np.full((len(sequences), width), tokenizer.pad_id, np.uint8)
        if (lengths == lengths[0]).all():
            self._columns(rows, int(lengths[0]))[:] = ids.reshape(len(rows), -1)
        else:
            rows[tokenizer.attention_mask(np.minimum(whole, width), width, self._options["padding_side"])] = ids
        return (rows[::-1] if turn else rows).astype(dtype, copy=False), lengths

    def __len__(self) -> int:
        return len(self.examples)

    def pad_fraction(self, buckets: tuple[int, ...] = ()) -> float:
        """Share of all token positions that is padding, with rows of `max_length` or of the padded lengths in `buckets`."""
        return 1.0 - float(self._tokens.sum(dtype=np.int64)) / float(padded_lengths(self.lengths, buckets or (self.max_length,)).sum())

    @property
    def truncated(self) -> int:
        if self.tokenizer.lookup is not None:
            special = self.tokenizer.special_tokens if self._options["add_special_tokens"] else 0
            return int((self.examples.sequences.lengths + special > self.max_length).sum())
        full, longer = np.flatnonzero(self._tokens == self.max_length), 0
        for start in range(0, len(full), _CHUNK):
            sequences = [self.examples.sequences[i] for i in full[start : start + _CHUNK].tolist()]
            longer += int((self.tokenizer.encode_batch(sequences, **self._options)[1] > self.max_length).sum())
        return longer

    def _columns(self, rows: np.ndarray, width: int) -> np.ndarray:
        """The `width` columns of (n, L) rows that lie opposite the padding."""
        left = (self._options["padding_side"] or self.tokenizer.padding_side) == "left"
        return rows[:, self.max_length - width :] if left else rows[:, :width]

    def _rows(self, indices: np.ndarray, turn: bool, cuts: np.ndarray | None, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, lengths) of one strand. `cuts`: bases to leave out, at the start of the strand where negative, else at its end."""
        if self._cache is not None and cuts is None:
            ids, lengths = self._cache[int(turn)]
            return self._columns(ids, width)[indices].astype(np.int32), lengths[indices]
        sequences = [self.examples.sequences[i] for i in indices.tolist()]
        if cuts is not None:
            cuts = -cuts if turn else cuts
            sequences = [s[-cut:] if cut < 0 else s[: max(len(s) - cut, 0)] for s, cut in zip(sequences, cuts.tolist())]
        return self._encode(sequences, turn, width)

    def _strand(self, indices: np.ndarray, turned: np.ndarray, cuts: np.ndarray | None, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask) of the strand that `turned` says."""
        tokens, lengths = np.empty((len(indices), width), np.int32), np.empty(len(indices), np.int32)
        for turn in (False, True):
            rows = np.flatnonzero(turned == turn)
            if rows.size == len(indices):
                tokens, lengths = self._rows(indices, turn, cuts, width)
            elif rows.size:
                tokens[rows], lengths[rows] = self._rows(indices[rows], turn, None if cuts is None else cuts[rows], width)
        return tokens, self.tokenizer.attention_mask(lengths, width, self._options["padding_side"])

    def batch(self, indices: np.ndarray, random: RowRandom, width: int = 0) -> dict[str, np.ndarray]:
        """See the class; rows are padded to `width`, at least the `lengths` of these examples, instead of L where it is given."""
        width = width or self.max_length
        turned = np.zeros(len(indices), bool)
        if self.rc_aug:
            turned = random.coin(len(indices), STREAM_REVERSE_COMPLEMENT)
        offsets = np.zeros(len(indices), np.int64)
        if self.max_shift:
            offsets = random.integers(len(indices), 2 * self.max_shift + 1, STREAM_SHIFT) - self.max_shift
        by_row = self.tokenizer.lookup is not None
        tokens, mask = self._strand(indices, turned, offsets if not by_row else None, width)
        if self.max_shift and by_row:
            tokens, mask = shift(tokens, offsets, self.tokenizer.pad_id), shift(mask, offsets, False)
        if self.conjoin:
            tokens, mask = map(conjoin, (tokens, mask), self._strand(indices, ~turned, None, width))
        return {"tokens": tokens, "mask": mask, "target": self.examples.targets[indices]}


def token_length(
    sequences: Sequences, tokenizer: Tokenizer, add_special_tokens: bool = False, multiple: int = 8, *, both_strands: bool = False
) -> int:
    """Tokens of the longest sequence, rounded up to a multiple of `multiple`; with `both_strands` of its reverse complement too."""
    if tokenizer.lookup is not None:
        longest = int(sequences.lengths.max(initial=1)) + (tokenizer.special_tokens if add_special_tokens else 0)
    else:
        longest, forward = 1, list(sequences)
        for start in range(0, len(forward), _CHUNK):
            chunk = forward[start : start + _CHUNK]
            for strand in (chunk, [reverse_complement_text(s) for s in chunk] if both_strands else []):
                longest = max(longest, int(tokenizer.encode_batch(strand, add_special_tokens=add_special_tokens)[1].max(initial=0)))
    return -(-max(longest, 1) // multiple) * multiple


def table_sources(
    task: Task,
    tokenizer: Tokenizer,
    max_length: int = 0,
    *,
    rc_aug: bool = False,
    max_shift: int = 0,
    conjoin_train: bool = False,
    conjoin_eval: bool = False,
    add_special_tokens: bool = False,
) -> dict[str, TableSource]:
    """A `TableSource` for every split of `task`, all of one length.

    Args:
        max_length: 0 for the longest sequence of all splits, rounded up to a multiple of 8, or `task.length` where that is less.
        rc_aug, max_shift, conjoin_train: for the train split alone.
        conjoin_eval: for the other splits.
    """
    if not max_length:
        both = rc_aug or conjoin_train or conjoin_eval
        splits = [examples.sequences for examples in task.splits.values()]
        longest = max(token_length(split, tokenizer, add_special_tokens, both_strands=both) for split in splits)
        max_length = min(longest, task.length or longest)
    train: dict[str, Any] = {"rc_aug": rc_aug, "max_shift": max_shift, "conjoin": conjoin_train}
    other: dict[str, Any] = {"conjoin": conjoin_eval}
    return {
        split: TableSource(
            examples,
            tokenizer,
            max_length,
            add_special_tokens=add_special_tokens,
            **(train if split == "train" else other),
        )
        for split, examples in task.splits.items()
    }
