"""Batches through grain. The global order of examples does not depend on the number of processes, threads or restarts.

Element s of a training stream is this process's slice of global batch s; epoch e visits the examples in the order of
`permutation(..., seed, e)`, and the randomness of a row depends on (seed, step, row in the global batch) alone. The only state is
the global step, so a checkpoint continues identically on another number of processes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from jaxgen.data.random import RowRandom, permutation
from jaxgen.data.sources import BatchSource, GenomeWindows, TableSource, table_sources, token_length
from jaxgen.errors import InputError

__all__ = [
    "BatchSource",
    "EvalBatches",
    "GenomeWindows",
    "TableSource",
    "TrainIterator",
    "eval_batches",
    "table_sources",
    "token_length",
    "train_loader",
]

Batch = dict[str, np.ndarray]
_FOREVER = 1 << 62


class _TrainStep:
    """Step number -> this process's rows of that global batch. A class, so that worker processes can unpickle it."""

    def __init__(
        self, source: BatchSource, batch_size: int, seed: int, process_index: int, process_count: int, shuffle: bool, drop_last: bool
    ):
        rows = _rows_per_process(batch_size, process_index, process_count)
        n = len(source)
        self.steps_per_epoch = n // batch_size if drop_last else -(-n // batch_size)
        if not self.steps_per_epoch:
            raise InputError(f"batch size {batch_size} is larger than the {n} training examples; lower it")
        self.source, self.batch_size, self.seed, self.shuffle = source, batch_size, seed, shuffle
        self.first_row, self.rows = process_index * rows, rows

    def __call__(self, step: int) -> Batch:
        epoch, step_in_epoch = divmod(int(step), self.steps_per_epoch)
        positions, weight = _positions(step_in_epoch * self.batch_size + self.first_row, self.rows, len(self.source))
        indices = permutation(positions, len(self.source), self.seed, epoch) if self.shuffle else positions
        batch = self.source.batch(indices, RowRandom(self.seed, int(step), self.first_row))
        return batch | {"weight": weight}


class _EvalStep:
    """Step number -> this process's rows of that batch, in the order of the examples."""

    def __init__(self, source: BatchSource, batch_size: int, seed: int, process_index: int, process_count: int):
        self.rows = _rows_per_process(batch_size, process_index, process_count)
        self.source, self.batch_size, self.seed, self.first_row = source, batch_size, seed, process_index * self.rows

    def __call__(self, step: int) -> Batch:
        first = int(step) * self.batch_size + self.first_row
        positions, weight = _positions(first, self.rows, len(self.source))
        # Rows are numbered over the whole split, so that random masks do not change with the batch size.
        return self.source.batch(positions, RowRandom(self.seed, 0, first)) | {"weight": weight}


def _rows_per_process(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch size {batch_size} must be a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise InputError(f"process index {process_index} outside 0 ... {process_count - 1}")
    return batch_size // process_count


def _positions(first: int, rows: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions first ... first + rows - 1; those beyond n repeat the last example with weight 0, so that shapes never change."""
    positions = np.arange(first, first + rows, dtype=np.int64)
    return np.minimum(positions, n - 1), (positions < n).astype(np.float32)


class TrainIterator(Iterator[Batch]):
    """An endless stream of batches. Its state is the global step alone.

    Attributes:
        steps_per_epoch: optimiser steps per pass over the examples.
    """

    def __init__(self, make: Callable[[int], Any], steps_per_epoch: int, start_step: int):
        self._make, self.steps_per_epoch = make, steps_per_epoch
        self.set_state({"step": start_step})

    def __next__(self) -> Batch:
        if self._inner is None:
            self._inner = iter(self._make(self._step))
        batch = next(self._inner)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """`{"step": the global step whose batch comes next}`."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues at `state["step"]`, whatever the process count of the run that wrote it."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stops reading ahead."""
        if getattr(self, "_inner", None) is not None:
            self._inner.close()
        self._inner = None


def train_loader(
    source: BatchSource,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    num_threads: int = 2,
    prefetch: int = 4,
    num_workers: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
) -> TrainIterator:
    """Training batches, infinitely many.

    Args:
        source: examples.
        batch_size: rows of the GLOBAL batch; a multiple of `process_count`.
        seed: seeds order and augmentation.
        process_index, process_count: which contiguous slice of each global batch this process reads.
        start_step: global step of the first batch.
        num_threads: threads that make batches ahead of time; 0 makes them when asked for.
        prefetch: batches made ahead of time.
        num_workers: worker processes (each with its own threads); 0 stays in this process.
        shuffle: a new order in every epoch, or the order of the source.
        drop_last: leave out the rest that does not fill a batch; otherwise it comes padded, with weight 0 on the padding.

    Returns:
        An iterator over dicts of arrays with b = batch_size / process_count rows: those of `source.batch` and `weight`
        float32 (b,), 1 on real rows.

    Raises:
        InputError: a batch size that does not fit the examples or the processes.
    """
    step = _TrainStep(source, batch_size, seed, process_index, process_count, shuffle, drop_last)
    options = _read_options(num_threads, prefetch)

    def make(first_step: int) -> grain.IterDataset:
        dataset = grain.MapDataset.range(first_step, _FOREVER).map(step).to_iter_dataset(options)
        return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers)) if num_workers else dataset

    return TrainIterator(make, step.steps_per_epoch, start_step)


class EvalBatches:
    """A finite sequence of batches that can be gone through again and again.

    Attributes:
        num_examples: examples over all processes, the sum of all weights.
    """

    def __init__(self, dataset: grain.IterDataset, steps: int, num_examples: int):
        self._dataset, self._steps, self.num_examples = dataset, steps, num_examples

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._dataset)


def eval_batches(
    source: BatchSource,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    seed: int = 0,
    num_threads: int = 2,
    prefetch: int = 4,
) -> EvalBatches:
    """All examples in order, each exactly once over all processes.

    The last batch is padded with rows of weight 0, so shapes never change. Row r of global batch s is example
    s * batch_size + r, and process p holds rows [p * b, (p + 1) * b) with b = batch_size / process_count.

    Args:
        source: examples.
        batch_size: rows of the GLOBAL batch; a multiple of `process_count`.
        seed: seeds random masks, which depend on the example alone and not on the batch size.
        num_threads, prefetch: as for `train_loader`.
    """
    step = _EvalStep(source, batch_size, seed, process_index, process_count)
    steps = -(-len(source) // batch_size)
    dataset = grain.MapDataset.range(steps).map(step).to_iter_dataset(_read_options(num_threads, prefetch))
    return EvalBatches(dataset, steps, len(source))


def _read_options(num_threads: int, prefetch: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0)
