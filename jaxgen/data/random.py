"""Randomness by number: a draw is a function of (seed, stream, step, row), not of who asks for it or in which order.

So any number of processes and threads, and a resumed run, see the same numbers. Generator: PCG-64 DXSM (O'Neill 2014), which jumps
to any row of a step at once; each (seed, stream, step) has its own state through numpy's SeedSequence.
"""

from dataclasses import dataclass

import numpy as np

# Streams keep the uses of one seed apart.
STREAM_REVERSE_COMPLEMENT = 1
STREAM_MLM = 2
STREAM_SHIFT = 3
STREAM_BATCHES = 4

_MASK64 = (1 << 64) - 1


def raw_rows(seed: int, step: int, first_row: int, n_rows: int, words_per_row: int, stream: int = 0) -> np.ndarray:
    """Uniform random words for rows `first_row ... first_row + n_rows - 1` of one step.

    Rows [a, b) drawn alone equal the slice [a:b] of a larger draw with the same seed, step, stream and words_per_row.

    Args:
        seed: any integer (its low 64 bits count).
        step: the step (or 0 where rows are numbered over a whole split).
        first_row: number of the first row within the step.
        n_rows: rows.
        words_per_row: words per row.
        stream: keeps independent uses of one seed apart.

    Returns:
        uint64 (n_rows, words_per_row).
    """
    generator = np.random.PCG64DXSM(np.random.SeedSequence((seed & _MASK64, stream, step)))
    generator.advance(first_row * words_per_row)
    return generator.random_raw(n_rows * words_per_row).reshape(n_rows, words_per_row)


@dataclass(frozen=True)
class RowRandom:
    """The randomness of one batch slice: rows `first_row ...` of global step `step`."""

    seed: int
    step: int
    first_row: int

    def words(self, n_rows: int, words_per_row: int, stream: int) -> np.ndarray:
        """uint64 (n_rows, words_per_row); see `raw_rows`."""
        return raw_rows(self.seed, self.step, self.first_row, n_rows, words_per_row, stream)

    def words32(self, n_rows: int, words_per_row: int, stream: int) -> np.ndarray:
        """uint32 (n_rows, words_per_row)."""
        words = self.words(n_rows, -(-words_per_row // 2), stream)
        return np.ascontiguousarray(words).astype("<u8", copy=False).view("<u4")[:, :words_per_row]

    def coin(self, n_rows: int, stream: int) -> np.ndarray:
        """bool (n_rows,), each true with probability one half."""
        return (self.words(n_rows, 1, stream)[:, 0] >> np.uint64(63)).astype(bool)

    def integers(self, n_rows: int, n: int, stream: int) -> np.ndarray:
        """int64 (n_rows,), uniform on range(n) for n far below 2**32."""
        return ((self.words(n_rows, 1, stream)[:, 0] >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit finaliser (the constants of splitmix64), element-wise on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(index: np.ndarray, n: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """Images of `index` under the pseudo-random bijection of range(n) given by (seed, epoch, stream), in O(1) memory.

    A Feistel network over the smallest power of two that holds n; values that land outside range(n) are sent through
    again (cycle walking), less than two rounds on average.

    Args:
        index: integers in [0, n), any shape.
        n: size of the set.
        seed, epoch, stream: choose the permutation.

    Returns:
        int64, shape of `index`.
    """
    index = np.asarray(index)
    if index.size and (index.min() < 0 or index.max() >= n):
        raise ValueError(f"index outside [0, {n})")
    bits = max(2, (n - 1).bit_length())
    low, high = bits // 2, bits - bits // 2
    keys = raw_rows(seed, epoch, 0, 1, 8, stream)[0]

    def encrypt(x: np.ndarray) -> np.ndarray:
        # Unbalanced halves swap their widths each round; an even number of rounds restores them.
        widths = (np.uint64(low), np.uint64(high))
        left, right = x >> widths[0], x & np.uint64((1 << low) - 1)  # `high` and `low` bits
        for i, key in enumerate(keys):
            left_width = widths[1 - i % 2]
            mask = (np.uint64(1) << left_width) - np.uint64(1)
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << widths[0]) | right

    out = encrypt(index.reshape(-1).astype(np.uint64))
    while (outside := np.flatnonzero(out >= n)).size:
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64).reshape(index.shape)
