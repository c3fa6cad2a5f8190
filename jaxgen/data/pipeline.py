"""Batches through grain. The global order of examples does not depend on the number of processes, threads or restarts.

Element s of a training stream is this process's slice of global batch s; the order of an epoch is a function of (seed, epoch) (see
order.py), and the randomness of a row depends on (seed, step, row in the global batch) alone. The only state is the global step, so
a checkpoint continues identically on another number of processes. With length buckets a batch is as long as its longest bucket, the
same on all processes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxgen.data.genome_windows import GenomeWindows, TokenWindows
from jaxgen.data.order import BucketedOrder, Cut, Rows, ShuffledOrder
from jaxgen.data.random import RowRandom
from jaxgen.data.sources import BatchSource, TableSource, table_sources, token_length
from jaxgen.errors import InputError

__all__ = [
    "BatchSource",
    "EvalBatches",
    "GenomeWindows",
    "StagedIterator",
    "TableSource",
    "TokenWindows",
    "TrainIterator",
    "eval_batches",
    "table_sources",
    "token_length",
    "train_loader",
]

Batch = dict[str, np.ndarray]
_FOREVER = 1 << 62


class _Step:
    """Step number -> this process's rows of that global batch. A class, so that worker processes can unpickle it."""

    def __init__(
        self,
        source: BatchSource,
        batch_size: int,
        seed: int,
        process_index: int,
        process_count: int,
        buckets: tuple[int, ...],
        *,
        shuffle: bool,
        drop_last: bool,
    ):
        if batch_size < 1 or batch_size % process_count:
            batch = "train.batch_size" if drop_last else "train.eval_batch_size (or train.batch_size)"
            raise InputError(f"{batch}={batch_size} must be a positive multiple of the {process_count} processes")
        if not 0 <= process_index < process_count:
            raise InputError(f"process index {process_index} outside 0 ... {process_count - 1}")
        n, rows = len(source), batch_size // process_count
        steps = n // batch_size if drop_last else -(-n // batch_size)
        if not steps:
            raise InputError(f"train.batch_size={batch_size} is larger than the {n} training examples; lower it")
        self.source, self.seed, self.cut = source, seed, Cut(n, batch_size, process_index * rows, rows, steps, seed if shuffle else None)
        if len(buckets) > 1:
            self.order = BucketedOrder(self.cut, source.lengths, buckets)
        else:
            self.order = ShuffledOrder(self.cut)

    def read(self, rows: Rows, random: RowRandom) -> Batch:
        width = {} if rows.width is None else {"width": rows.width}
        return self.source.batch(rows.indices, random, **width) | {"weight": rows.weight}


class _TrainStep(_Step):
    def __call__(self, step: int) -> Batch:
        epoch, step_in_epoch = divmod(int(step), self.cut.steps)
        return self.read(self.order(epoch, step_in_epoch), RowRandom(self.seed, int(step), self.cut.first_row))


class _EvalStep(_Step):
    def __call__(self, step: int) -> Batch:
        rows = self.order(0, int(step))
        # Places are numbered over the whole split, so that random masks do not change with the batch size.
        batch = self.read(rows, RowRandom(self.seed, 0, int(step) * self.cut.batch_size + self.cut.first_row))
        return batch if rows.width is None else batch | {"index": rows.indices.astype(np.int32)}


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
    buckets: tuple[int, ...] = (),
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
        drop_last: leave out the rest that does not fill a batch, n % batch_size random examples of every epoch; otherwise it comes
            padded, with weight 0 on the padding.
        buckets: padded lengths, from `bucket_lengths` of `source.lengths`; a batch has one of them. Fewer than two: all batches alike.

    Returns:
        An iterator over dicts of arrays with b = batch_size / process_count rows: those of `source.batch` and `weight`
        float32 (b,), 1 on real rows.

    Raises:
        InputError: a batch size that does not fit the examples or the processes.
    """
    step = _TrainStep(source, batch_size, seed, process_index, process_count, buckets, shuffle=shuffle, drop_last=drop_last)
    options = _read_options(num_threads, prefetch)

    def make(first_step: int) -> grain.IterDataset:
        dataset = grain.MapDataset.range(first_step, _FOREVER).map(step).to_iter_dataset(options)
        return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers)) if num_workers else dataset

    return TrainIterator(make, step.cut.steps, start_step)


class StagedIterator(Iterator[Batch]):
    """Streams one after the other: the global steps from `starts[i]` on come from `stages[i]`. Its state is the global step alone.

    Args:
        stages: streams, which number their batches by the global step.
        starts: ascending, the first is 0.

    Attributes:
        steps_per_epoch: of the last stage.
    """

    def __init__(self, stages: Sequence[TrainIterator], starts: Sequence[int]):
        self._stages, self._starts = stages, np.asarray(starts)
        self.steps_per_epoch = stages[-1].steps_per_epoch
        self.set_state({"step": 0})

    def __next__(self) -> Batch:
        stage = int(np.searchsorted(self._starts, self._step, side="right")) - 1
        if stage != self._stage:
            self.close()
            self._stages[stage].set_state({"step": self._step})
            self._stage = stage
        batch = next(self._stages[stage])
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """`{"step": the global step whose batch comes next}`."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues at `state["step"]`, in whatever stage that is."""
        self._stage, self._step = -1, int(state["step"])

    def close(self) -> None:
        """Stops reading ahead."""
        for stage in self._stages:
            stage.close()


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
    buckets: tuple[int, ...] = (),
) -> EvalBatches:
    """All examples, each exactly once over all processes, in order or, with buckets, from short to long.

    The last batch is padded with rows of weight 0. Without buckets, row r of global batch s is example s * batch_size + r; with
    them, `index` int32 (b,) in the batch says which example a row is. Process p holds rows [p * b, (p + 1) * b) of every global
    batch, with b = batch_size / process_count.

    Args:
        source: examples.
        batch_size: rows of the GLOBAL batch; a multiple of `process_count`.
        seed: seeds random masks, which depend on the example alone and not on the batch size.
        num_threads, prefetch, buckets: as for `train_loader`.
    """
    step = _EvalStep(source, batch_size, seed, process_index, process_count, buckets, shuffle=False, drop_last=False)
    dataset = grain.MapDataset.range(step.cut.steps).map(step).to_iter_dataset(_read_options(num_threads, prefetch))
    return EvalBatches(dataset, step.cut.steps, len(source))


def _read_options(num_threads: int, prefetch: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0)
