"""Which windows of a genome are read: BED files, the window rules of the published pipelines, and plain tiling.

All coordinates are 0-based and half-open, as in BED.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxgen.data.tables import read_text
from jaxgen.errors import InputError, nearest

MAX_WINDOW = 1 << 20  # every BED interval of the Caduceus pipeline is read as start ... start + 2**20
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Bed:
    """Columns of a BED file.

    Attributes:
        path: the file.
        contigs: n contig names.
        starts, ends: int64 (n,).
        splits: n names from the fourth column, empty strings where it is missing.
        lines: line number of every row.
    """

    path: str
    contigs: list[str]
    starts: np.ndarray
    ends: np.ndarray
    splits: list[str]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.contigs)

    def take_split(self, split: str) -> "Bed":
        """The rows whose fourth column is `split`.

        Raises:
            InputError: no such row (the nearest split is named).
        """
        rows = [i for i, name in enumerate(self.splits) if name == split]
        if not rows:
            raise InputError(f"{self.path}: no interval of split {split!r} in column 4{nearest(split, set(self.splits) - {''})}")
        pick = lambda column: [column[i] for i in rows]  # noqa: E731
        return Bed(self.path, pick(self.contigs), self.starts[rows], self.ends[rows], pick(self.splits), pick(self.lines))


def read_bed(path: str | os.PathLike) -> Bed:
    """Reads a BED file, plain or gzip: contig, start, end, and optionally a split name; further columns are ignored.

    Skipped: blank lines, comments (`#`), `track` and `browser` lines, and a header line (first line whose second and third columns
    are not numeric and read start and end).

    Raises:
        InputError: missing file, too few columns, text in a numeric column, a negative start, end not after start, or no interval at all.
    """
    contigs, starts, ends, splits, lines = [], [], [], [], []
    for number, text in enumerate(read_text(path).splitlines(), 1):
        if not text.strip() or text.startswith(("#", "track", "browser")):
            continue
        fields = text.split("\t") if "\t" in text else text.split()
        if len(fields) < 3:
            raise InputError(f"{path}:{number}: {len(fields)} columns; BED needs contig, start and end separated by tabs")
        if not lines and "start" in fields[1].lower() and ("end" in fields[2].lower() or "stop" in fields[2].lower()):
            continue
        for name, field in (("start", fields[1]), ("end", fields[2])):
            if not field.strip().removeprefix("-").isdecimal():
                raise InputError(f"{path}:{number}: {name} {field!r} is not an integer")
        start, end = int(fields[1]), int(fields[2])
        if start < 0:
            raise InputError(f"{path}:{number}: start {start} is negative; BED counts bases from 0")
        if end <= start:
            raise InputError(f"{path}:{number}: end {end} is not after start {start}")
        contigs.append(fields[0].strip())
        starts.append(start)
        ends.append(end)
        splits.append(fields[3].strip() if len(fields) > 3 else "")
        lines.append(number)
    if not lines:
        raise InputError(f"{path}: no intervals")
    return Bed(str(path), contigs, np.array(starts, np.int64), np.array(ends, np.int64), splits, lines)


def caduceus_windows(
    contig_lengths: ArrayLike, bed_starts: ArrayLike, max_length: int, shifts: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Window of each (BED row, shift) in the Caduceus hg38 pipeline. Golden: hg38/intervals.

    The BED end is replaced by start + 2**20; shift k is the k-th stretch of `max_length` bases in it. A window that runs past the
    end of the contig slides left to end there; one that begins before 0 slides right to 0.

    Args:
        contig_lengths, bed_starts, shifts: int (n,) (or broadcastable).
        max_length: a power of two up to 2**20.

    Returns:
        (starts, ends, invalid): int64, int64 and bool (n,). `invalid` marks the windows for which the reference raises an
        assertion, because the contig is shorter than the window; their start and end are those of the contig.
    """
    if max_length < 1 or max_length > MAX_WINDOW or max_length & (max_length - 1):
        raise InputError(f"max_length {max_length} must be a power of two up to {MAX_WINDOW}")
    lengths = np.asarray(contig_lengths, np.int64)
    starts = np.asarray(bed_starts, np.int64) + np.asarray(shifts, np.int64) * max_length
    lengths, starts = np.broadcast_arrays(lengths, starts)
    starts = np.maximum(np.minimum(starts, lengths - max_length), 0)
    invalid = lengths < max_length
    return starts, np.where(invalid, lengths, starts + max_length), invalid


class Windows(Protocol):
    """A numbered set of windows."""

    def __len__(self) -> int:
        """Number of windows."""
        ...

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(contig ids, starts, ends): int64 (b,) each, for int (b,) window numbers."""
        ...


def _contig_rows(bed: Bed, contigs: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(contig ids, contig lengths) of every BED row, all of which must lie in the genome."""
    ids = {name: i for i, name in enumerate(contigs)}
    for name, line in zip(bed.contigs, bed.lines):
        if name not in ids:
            raise InputError(f"{bed.path}:{line}: the genome has no contig {name!r}{nearest(name, list(ids)[:2000])}")
    rows = np.array([ids[name] for name in bed.contigs], np.int64)
    lengths = np.array(list(contigs.values()), np.int64)[rows]
    if (past := bed.ends > lengths).any():
        i = int(np.flatnonzero(past)[0])
        contig = f"contig {bed.contigs[i]!r} ({lengths[i]} bases)"
        raise InputError(f"{bed.path}:{bed.lines[i]}: the interval ends at {bed.ends[i]}, outside {contig}; is it of another assembly?")
    return rows, lengths


class CaduceusWindows:
    """The hg38 dataset of Caduceus: 2**20 / max_length windows per BED row of a split.

    Windows run beyond the BED interval, so those of train, valid and test overlap; that is how the published models were trained.

    Args:
        bed: intervals with split names.
        contigs: contig name -> length, as in `Genome.contigs`.
        max_length: a power of two up to 2**20.
        split: "train", "valid" or "test".

    Raises:
        InputError: bad max_length, unknown split or contig, or a contig shorter than a window.
    """

    def __init__(self, bed: Bed, contigs: Mapping[str, int], max_length: int, split: str):
        rows = bed.take_split(split)
        self.max_length, self.starts = max_length, rows.starts
        self.contig_ids, self.contig_lengths = _contig_rows(rows, contigs)
        invalid = caduceus_windows(self.contig_lengths, self.starts, max_length, 0)[2]
        if invalid.any():
            i = int(np.flatnonzero(invalid)[0])
            short = f"contig {rows.contigs[i]!r} ({self.contig_lengths[i]} bases)"
            raise InputError(f"{bed.path}:{rows.lines[i]}: {short} is shorter than max_length={max_length}")
        self.shifts = MAX_WINDOW // max_length

    def __len__(self) -> int:
        return len(self.starts) * self.shifts

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, shifts = np.divmod(np.asarray(indices, np.int64), self.shifts)
        starts, ends, _ = caduceus_windows(self.contig_lengths[rows], self.starts[rows], self.max_length, shifts)
        return self.contig_ids[rows], starts, ends


class Tiles:
    """Parts of contigs tiled into windows that never cross their borders.

    The last window of a part slides left to end at its border; a part shorter than a window is one window of its own length.

    Args:
        contig_ids, lows, highs: int64 (n,), the parts; empty ones have no window.
        length: bases per window.
        stride: bases between window starts; 0 for `length`.
    """

    def __init__(self, contig_ids: np.ndarray, lows: np.ndarray, highs: np.ndarray, length: int, stride: int = 0):
        if length < 1 or stride < 0:
            raise InputError(f"window length {length} or stride {stride} out of range")
        self.contig_ids, self.lows, self.highs, self.length, self.stride = contig_ids, lows, highs, length, stride or length
        counts = np.where(highs > lows, 1 + -(-np.maximum(highs - lows - length, 0) // self.stride), 0)
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        indices = np.asarray(indices, np.int64)
        part = np.searchsorted(self._first, indices, side="right") - 1
        low, high = self.lows[part], self.highs[part]
        starts = np.maximum(np.minimum(low + (indices - self._first[part]) * self.stride, high - self.length), low)
        return self.contig_ids[part], starts, np.minimum(starts + self.length, high)


class BedTiles(Tiles):
    """The intervals of a split, each tiled into windows of any length; unlike those of `CaduceusWindows` they stay inside.

    Raises:
        InputError: unknown split or contig.
    """

    def __init__(self, bed: Bed, contigs: Mapping[str, int], length: int, split: str, stride: int = 0):
        rows = bed.take_split(split)
        super().__init__(_contig_rows(rows, contigs)[0], rows.starts, rows.ends, length, stride)


class TiledWindows(Tiles):
    """A small genome tiled into windows, with the last part of every contig held out.

    Of each contig, the first 1 - holdout is `train`; the first half of the rest is `valid`, the second half `test`.

    Args:
        contigs: contig name -> length, as in `Genome.contigs`.
        length, stride: as for `Tiles`.
        split: "train", "valid" or "test".
        holdout: fraction held out.

    Raises:
        InputError: unknown split, or numbers out of range.
    """

    def __init__(self, contigs: Mapping[str, int], length: int, split: str, holdout: float = 0.1, stride: int = 0):
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}{nearest(split, SPLITS)}")
        if not 0.0 <= holdout < 1.0:
            raise InputError(f"holdout {holdout} out of range")
        sizes = np.array(list(contigs.values()), np.int64)
        held = np.floor(sizes * holdout).astype(np.int64)
        borders = {"train": (0 * sizes, sizes - held), "valid": (sizes - held, sizes - held // 2), "test": (sizes - held // 2, sizes)}
        lows, highs = borders[split]
        super().__init__(np.arange(len(sizes)), lows, highs, length, stride)
