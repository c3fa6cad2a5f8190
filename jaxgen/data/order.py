"""Which examples a step reads: the global order, cut into batches, as a pure function of (seed, epoch, step)."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.buckets import bucket_of
from jaxgen.data.random import STREAM_BATCHES, permutation

_BLOCK_ROWS = 1 << 14


class Rows(NamedTuple):
    """This process's rows of one global batch.

    `indices` int64 (b,) are examples, `weight` float32 (b,) is 1 on real rows and 0 where one is repeated to fill the batch, `width`
    is the padded length of the whole global batch (None: the source's own).
    """

    indices: np.ndarray
    weight: np.ndarray
    width: int | None


@dataclass(frozen=True)
class Cut:
    """How n examples are cut into batches.

    Attributes:
        n: examples.
        batch_size: rows of the global batch.
        first_row, rows: the slice of every global batch that this process reads.
        steps: batches per epoch; the examples of the epoch's order beyond them are left out, and places beyond n are padding.
        seed: of the order; None keeps the order of the source.
    """

    n: int
    batch_size: int
    first_row: int
    rows: int
    steps: int
    seed: int | None


class _Recent:
    """The last two values of a pure function; a thread that asks for a value in the making waits for it."""

    def __init__(self, function: Callable[..., Any]):
        self._function, self._values, self._lock = function, {}, threading.Lock()

    def __call__(self, *key: int) -> Any:
        with self._lock:
            if key not in self._values:
                if len(self._values) == 2:
                    del self._values[next(iter(self._values))]
                self._values[key] = self._function(*key)
            return self._values[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Recent, (self._function,)  # to worker processes, without the lock


class ShuffledOrder:
    """All examples in one order, in O(1) memory: many steps are permuted at once, and only two such blocks are kept."""

    def __init__(self, cut: Cut):
        self.cut, self._steps = cut, max(1, _BLOCK_ROWS // cut.rows)
        self._block = _Recent(self._make_block)

    def __call__(self, epoch: int, step: int) -> Rows:
        block, at = divmod(step, self._steps)
        indices, weight = self._block(epoch, block)
        return Rows(indices[at], weight[at], None)

    def _make_block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        cut, first = self.cut, block * self._steps
        steps = np.arange(first, min(first + self._steps, cut.steps), dtype=np.int64)
        positions = (steps * cut.batch_size + cut.first_row)[:, None] + np.arange(cut.rows)
        indices, weight = np.minimum(positions, cut.n - 1), (positions < cut.n).astype(np.float32)
        return indices if cut.seed is None else permutation(indices, cut.n, cut.seed, epoch), weight


class BucketedOrder:
    """Batches of examples of like length, in random order of batches.

    An epoch reads the examples that `ShuffledOrder` reads, sorted by bucket and in random order within each. So batches are of one
    bucket, but for the few that lie across a border, and those are padded to the longer one. The plan of an epoch takes O(n) memory.

    Args:
        cut: see there.
        lengths: integers (n,), tokens per example.
        buckets: padded lengths, ascending.
    """

    def __init__(self, cut: Cut, lengths: np.ndarray, buckets: tuple[int, ...]):
        self.cut, self.buckets, self._bucket = cut, buckets, bucket_of(lengths, buckets)
        self._epoch = _Recent(self._make_epoch)

    def __call__(self, epoch: int, step: int) -> Rows:
        indices, weight, widths = self._epoch(0 if self.cut.seed is None else epoch)
        return Rows(indices[step], weight[step], int(widths[step]))

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cut = self.cut
        places, read = cut.steps * cut.batch_size, np.arange(min(cut.steps * cut.batch_size, cut.n), dtype=np.int64)
        batches = np.arange(cut.steps)
        if cut.seed is not None:
            read = permutation(read, cut.n, cut.seed, epoch)
            batches = permutation(batches, cut.steps, cut.seed, epoch, STREAM_BATCHES)
        read = read[np.argsort(self._bucket[read], kind="stable")]
        indices = np.append(read, np.full(places - len(read), read[-1])).reshape(cut.steps, cut.batch_size)[batches]
        weight = (np.arange(places) < len(read)).astype(np.float32).reshape(indices.shape)[batches]
        widths = np.asarray(self.buckets)[self._bucket[indices[:, -1]]]
        mine = slice(cut.first_row, cut.first_row + cut.rows)
        return indices[:, mine].copy(), weight[:, mine].copy(), widths
