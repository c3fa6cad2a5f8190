"""What an export of embeddings feeds to a model: every sequence as one or more segments, batched by length.

A sequence is one segment per strand, or several windows per strand where it is longer than the model takes. Its embedding is the sum
of its segments' embeddings, each times a coefficient. Sequences are worked off in shards, from long to short; a shard is the unit of
progress, and depends on the data and the settings alone, not on processes or devices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxgen.data.augment import reverse_complement_text
from jaxgen.data.buckets import bucket_lengths, bucket_of
from jaxgen.data.sequences import Sequences
from jaxgen.errors import InputError, nearest
from jaxgen.tokenizers.base import Tokenizer

STRANDS = {"forward": (0,), "rc": (1,), "average": (0, 1)}
TOO_LONG = ("error", "truncate", "chunk")
_SHARD_BATCHES = 16
_COUNTED_BASES = 1 << 22  # encoded at a time to count tokens


class Encoder:
    """Sequences of either strand as token ids.

    Args:
        sequences: n sequences.
        tokenizer: turns them into ids.
        special_tokens: whether the tokenizer adds its special tokens, to every window of a long sequence too.
    """

    def __init__(self, sequences: Sequences, tokenizer: Tokenizer, special_tokens: bool):
        self.sequences, self.tokenizer, self.special_tokens = sequences, tokenizer, special_tokens
        self.prefix, self.suffix = frame(tokenizer) if special_tokens else (np.zeros(0, np.int32), np.zeros(0, np.int32))
        self._lengths: dict[int, np.ndarray] = {}
        self._content = lru_cache(maxsize=4)(self._encode_content)  # the windows of a sequence come one after the other

    def text(self, row: int, strand: int) -> bytes:
        """Sequence `row` as written (strand 0), or its reverse complement."""
        sequence = self.sequences[row]
        return reverse_complement_text(sequence) if strand else sequence

    def lengths(self, strand: int) -> np.ndarray:
        """int64 (n,) tokens per sequence, special ones included."""
        framing = len(self.prefix) + len(self.suffix)
        if self.tokenizer.lookup is not None:
            return self.sequences.lengths + framing
        if strand not in self._lengths:
            self._lengths[strand] = self._count(strand)
        return self._lengths[strand]

    def _count(self, strand: int) -> np.ndarray:
        ends, counted, start = self.sequences.offsets[1:], [], 0
        while start < len(ends):
            stop = max(start + 1, int(np.searchsorted(ends, self.sequences.offsets[start] + _COUNTED_BASES)))
            texts = [self.text(row, strand) for row in range(start, min(stop, len(ends)))]
            counted.append(self.tokenizer.encode_batch(texts, add_special_tokens=self.special_tokens)[1])
            start = stop
        return np.concatenate(counted).astype(np.int64)

    def batch(self, segments: "Segments", chosen: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 (len(chosen), width) and mask bool of the same shape; -1 in `chosen` gives a row of padding with one token unmasked."""
        tokenizer, real = self.tokenizer, np.flatnonzero(chosen >= 0)
        ids, lengths = np.full((len(chosen), width), tokenizer.pad_id, np.int32), np.ones(len(chosen), np.int64)
        lengths[real] = segments.tokens[chosen[real]]
        whole = real[segments.start[chosen[real]] < 0]
        if whole.size:
            texts = [self.text(int(segments.row[segment]), int(segments.strand[segment])) for segment in chosen[whole]]
            ids[whole], _ = tokenizer.encode_batch(texts, width, add_special_tokens=self.special_tokens)
        for i in np.setdiff1d(real, whole):
            segment, n = chosen[i], int(lengths[i])
            content = self._content(int(segments.row[segment]), int(segments.strand[segment]))
            piece = np.concatenate([self.prefix, content[segments.start[segment] : segments.stop[segment]], self.suffix])
            ids[i, width - n if tokenizer.padding_side == "left" else 0 :][:n] = piece
        return ids, tokenizer.attention_mask(lengths, width)

    def _encode_content(self, row: int, strand: int) -> np.ndarray:
        return self.tokenizer.encode(self.text(row, strand), add_special_tokens=False)


def frame(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens before and after a sequence."""
    whole, content = tokenizer.encode(b"ACGTACGTACGT"), tokenizer.encode(b"ACGTACGTACGT", add_special_tokens=False)
    for at in range(len(whole) - len(content) + 1):
        if np.array_equal(whole[at : at + len(content)], content):
            return whole[:at], whole[at + len(content) :]
    raise AssertionError(f"{tokenizer.name}: special tokens are not around the sequence")


@dataclass(frozen=True, eq=False)
class Segments:
    """Columns of m segments.

    Attributes:
        row: int64 (m,), ascending: the sequence.
        strand: 0 or 1 (reverse complement).
        start, stop: the window in tokens without special ones; -1 for a whole sequence, cut on the right where it is too long.
        tokens: int64 (m,), special ones included.
        coefficient: float32 (m,); they add up to 1 over the segments of a sequence.
        cut: number of sequences that are truncated or chunked.
    """

    row: np.ndarray
    strand: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    tokens: np.ndarray
    coefficient: np.ndarray
    cut: int

    @classmethod
    def of(cls, encoder: Encoder, strand: str, longest: int, too_long: str, ids: Sequence[str], where: str) -> "Segments":
        """The segments of all sequences.

        Args:
            strand: "forward", "rc" or "average".
            longest: most tokens of a segment, special ones included; 0 for no limit.
            too_long: "error", "truncate", or "chunk": windows, averaged by their number of tokens.
            ids, where: names of the sequences and of their file, for messages.

        Raises:
            InputError: unknown strand or choice; a sequence without a token, or one that is too long under "error".
        """
        if strand not in STRANDS:
            raise InputError(f"embed.strand={strand!r}{nearest(strand, STRANDS)}")
        if too_long not in TOO_LONG:
            raise InputError(f"embed.too_long={too_long!r}{nearest(too_long, TOO_LONG)}")
        framing, turns = len(encoder.prefix) + len(encoder.suffix), STRANDS[strand]
        window = longest - framing
        if longest and window < 1:
            raise InputError(f"embed.max_length={longest} leaves no room beside the {framing} special tokens")
        lengths = np.stack([encoder.lengths(turn) for turn in turns], axis=1).reshape(-1)  # (n x strands)
        if not lengths.min():
            raise InputError(
                f"{where}: sequence {ids[int(lengths.argmin()) // len(turns)]!r} is too short for a single token; "
                "remove it, or set embed.special_tokens=true"
            )
        over = lengths > longest if longest else np.zeros(len(lengths), bool)
        cut = int(over.reshape(-1, len(turns)).any(1).sum())
        if cut and too_long == "error":
            first = int(np.flatnonzero(over)[0])
            raise InputError(
                f"{where}: sequence {ids[first // len(turns)]!r} has {lengths[first]} tokens, but the model takes {longest} "
                f"({cut} such sequences); set embed.too_long to truncate or chunk"
            )
        content = lengths - framing
        windows = np.where(over & (too_long == "chunk"), -(-content // max(window, 1)), 1)
        entry = np.repeat(np.arange(len(lengths)), windows)  # of `lengths`, per segment
        number = np.arange(len(entry)) - np.repeat(np.cumsum(windows) - windows, windows)
        chunked = windows[entry] > 1
        start = np.where(chunked, number * window, -1)
        stop = np.where(chunked, np.minimum((number + 1) * window, content[entry]), -1)
        tokens = np.where(chunked, stop - start + framing, np.minimum(lengths[entry], longest or lengths[entry]))
        share = np.where(chunked, (stop - start) / np.maximum(content[entry], 1), 1.0) / len(turns)
        row, turn = np.divmod(entry, len(turns))
        return cls(row, np.asarray(turns)[turn], start, stop, tokens, share.astype(np.float32), cut)


class Step(NamedTuple):
    """One batch of this process: `segments` int64 (b,), -1 where a row is filler, padded to `width`."""

    shard: int
    width: int
    segments: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """How the segments are worked off.

    Attributes:
        segments: all of them.
        buckets: padded lengths.
        shards: rows (sequences) of every shard.
        batch_tokens: wanted token positions per global batch.
    """

    segments: Segments
    buckets: tuple[int, ...]
    shards: tuple[np.ndarray, ...]
    batch_tokens: int

    @classmethod
    def of(cls, segments: Segments, most_buckets: int, batch_tokens: int, longest: int = 0) -> "Plan":
        """The plan for at most `most_buckets` padded lengths, none above `longest` (0: no limit)."""
        top = -(-int(segments.tokens.max()) // 8) * 8
        buckets = bucket_lengths(segments.tokens, most_buckets, min(top, longest) if longest else top)
        firsts = np.flatnonzero(np.diff(segments.row, prepend=-1))
        largest, counts = np.maximum.reduceat(segments.tokens, firsts), np.diff(np.append(firsts, len(segments.row)))
        bucket, shards = bucket_of(largest, buckets), []
        for at in reversed(range(len(buckets))):
            rows = np.flatnonzero(bucket == at)
            room = _SHARD_BATCHES * max(1, batch_tokens // buckets[at])
            number = (np.cumsum(counts[rows]) - 1) // room
            shards += np.split(rows, np.flatnonzero(np.diff(number)) + 1) if len(rows) else []
        return cls(segments, buckets, tuple(shards), batch_tokens)

    def own_rows(self, shard: int, process_index: int, process_count: int) -> np.ndarray:
        """Rows of a shard whose embeddings this process makes and writes."""
        return self.shards[shard][process_index::process_count]

    def steps(self, first_shard: int, ways: int, process_index: int = 0, process_count: int = 1) -> Iterator[Step]:
        """Batches of this process, shard by shard; all processes get the same number of the same shapes.

        Args:
            first_shard: where to begin.
            ways: devices that the rows of a batch are divided over; a multiple of `process_count`.
        """
        n_buckets, unit = len(self.buckets), ways // process_count
        owner = np.empty(int(self.segments.row[-1]) + 1, np.int64)  # of every sequence: shard and process as one number
        for shard, rows in enumerate(self.shards):
            owner[rows] = shard * process_count + np.arange(len(rows)) % process_count
        queue = owner[self.segments.row] * n_buckets + bucket_of(self.segments.tokens, self.buckets)
        order = np.argsort(queue, kind="stable")
        counts = np.bincount(queue, minlength=len(self.shards) * process_count * n_buckets)
        ends = np.cumsum(counts).reshape(-1, process_count, n_buckets)[:, process_index]
        counts = counts.reshape(-1, process_count, n_buckets)
        mine, most = counts[:, process_index], counts.max(1)
        # As few batches as the tokens allow, then as few rows as these batches need: short tables are not padded to whole batches.
        full = np.array([max(1, self.batch_tokens // width // ways) * unit for width in self.buckets])
        needed = -(-most.max(0) // np.maximum(-(-most.max(0) // full), 1))
        sizes = -(-needed // unit) * unit
        for shard in range(first_shard, len(self.shards)):
            for at in reversed(range(n_buckets)):
                waiting = order[ends[shard, at] - mine[shard, at] : ends[shard, at]]
                for first in range(0, int(most[shard, at]), int(sizes[at])):
                    chosen = np.full(sizes[at], -1, np.int64)
                    taken = waiting[first : first + sizes[at]]
                    chosen[: len(taken)] = taken
                    yield Step(shard, self.buckets[at], chosen)
