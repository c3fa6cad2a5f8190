"""Many sequences in one byte buffer: no Python object per sequence, random access by offset."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, eq=False)
class Sequences:
    """A read-only column of byte strings.

    Attributes:
        buffer: uint8 (total,), all sequences one after the other.
        offsets: int64 (n + 1,), sequence i is `buffer[offsets[i]:offsets[i + 1]]`.
    """

    buffer: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_list(cls, sequences: Iterable[bytes]) -> "Sequences":
        """Packs byte strings."""
        sequences = list(sequences)
        offsets = np.zeros(len(sequences) + 1, np.int64)
        np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
        return cls(np.frombuffer(b"".join(sequences), np.uint8), offsets)

    @classmethod
    def from_array(cls, array: np.ndarray) -> "Sequences":
        """From uint8 (n, length) ASCII rows."""
        n, length = array.shape
        return cls(np.ascontiguousarray(array, np.uint8).reshape(-1), np.arange(n + 1, dtype=np.int64) * length)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        return self.buffer[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        data, ends = self.buffer.tobytes(), self.offsets.tolist()
        return (data[start:end] for start, end in pairwise(ends))

    @property
    def lengths(self) -> np.ndarray:
        """int64 (n,) bases per sequence."""
        return np.diff(self.offsets)

    def take(self, indices: np.ndarray) -> "Sequences":
        """The sequences at `indices`, in that order."""
        return Sequences.from_list([self[i] for i in np.asarray(indices).tolist()])
