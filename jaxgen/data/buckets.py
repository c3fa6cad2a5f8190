"""Length buckets: the few padded lengths that sequences of many lengths share, so that little is padding and nothing recompiles."""

import numpy as np

MULTIPLE = 8
ENOUGH = 0.05  # another padded length is not worth its compilation once less than this share is padding
_CANDIDATES = 512


def bucket_lengths(lengths: np.ndarray, most: int, longest: int = 0, batch_size: int = 1) -> tuple[int, ...]:
    """The padded lengths that leave the least padding when every sequence is padded to the next one.

    The optimum by dynamic programming over the histogram of lengths. As few as leave less than 5 % of the positions to padding,
    `most` at the most.

    Args:
        lengths: integers (n,), tokens per sequence.
        most: largest number of padded lengths, at least 1; 1 gives `longest` alone.
        longest: the last padded length, not below any of `lengths`; 0 for the largest of them, rounded up to a multiple of 8.
        batch_size: rows per batch. One batch lies across each border and is padded to the longer length; in a small table that counts.

    Returns:
        ascending; the last is `longest`, all others are multiples of 8 (of a larger number where lengths exceed 4096).
    """
    longest = longest or max(MULTIPLE, -(-int(np.max(lengths, initial=1)) // MULTIPLE) * MULTIPLE)
    step = MULTIPLE * -(-longest // (MULTIPLE * _CANDIDATES))
    candidates = np.append(np.arange(0, longest, step), longest).astype(np.float64)
    fitting = np.searchsorted(np.sort(lengths), candidates, side="right")
    fitting[0] = 0
    # cost[j]: fewest positions for all sequences that fit candidate j, which is the longest bucket; choices: the bucket below it.
    cost = np.where(candidates == 0, 0.0, np.inf)
    positions = (fitting[None, :] - fitting[:, None]) * candidates[None, :]
    positions[np.tril_indices(len(candidates))] = np.inf
    choices, real = [], float(np.sum(lengths, dtype=np.int64))
    # Half a batch, as it falls, at every border; from the shortest length to the longest the borders add up to the same, many or few.
    across = (batch_size - 1) / 2 * (longest - np.min(lengths, initial=longest))
    for _ in range(most):
        total = cost[:, None] + positions
        choices.append(total.argmin(0))
        cost = total.min(0)
        cost[0] = 0.0
        if real > (1 - ENOUGH) * (cost[-1] + across * (len(choices) > 1)):
            break
    buckets, at = [], len(candidates) - 1
    for choice in reversed(choices):
        if at:
            buckets.append(int(candidates[at]))
            at = int(choice[at])
    return tuple(reversed(buckets))


def bucket_of(lengths: np.ndarray, buckets: tuple[int, ...]) -> np.ndarray:
    """int64 (n,): index of the padded length of every sequence."""
    return np.searchsorted(buckets, lengths)


def padded_lengths(lengths: np.ndarray, buckets: tuple[int, ...]) -> np.ndarray:
    """int64 (n,): the padded length of every sequence, none of which is longer than the last bucket."""
    return np.asarray(buckets, np.int64)[bucket_of(lengths, buckets)]
