"""Which test sequences the training split holds already: exact copies and near ones, on either strand."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from jaxgen.data.augment import reverse_complement_text
from jaxgen.data.sequences import Sequences

_CHUNK = 512  # test sequences compared at a time
_CODES = np.full(256, 4, np.uint8)
_CODES[np.frombuffer(b"ACGTacgt", np.uint8)] = np.tile(np.arange(4, dtype=np.uint8), 2)


@dataclass(frozen=True, eq=False)
class Leaks:
    """Per test sequence, in order.

    Attributes:
        exact: bool (n,), a training sequence or its reverse complement is the same, in either case of letters.
        nearest: float32 (n,), the largest Jaccard index with any training sequence over sets of k-mers, a k-mer and its reverse complement
            being one; 0 for sequences without a k-mer of plain bases.
        threshold: of `near`.
    """

    exact: np.ndarray
    nearest: np.ndarray
    threshold: float

    @property
    def near(self) -> np.ndarray:
        """bool (n,): exact, or at least `threshold` alike."""
        return self.exact | (self.nearest >= self.threshold)

    def record(self) -> dict[str, float | int]:
        """Counts and shares for reports."""
        return {
            "test_rows": len(self.exact),
            "exact": int(self.exact.sum()),
            "near": int(self.near.sum()),
            "near_share": float(self.near.mean()),
            "threshold": self.threshold,
        }


def find_leaks(train: Sequences, test: Sequences, k: int = 8, threshold: float = 0.7) -> Leaks:
    """Compares every test sequence with every training sequence, by sparse products over the k-mers that they share.

    Args:
        k: bases per k-mer, at most 12.
        threshold: Jaccard index from which a test sequence counts as known.
    """
    seen = {sequence.upper() for sequence in train}
    exact = np.array([s.upper() in seen or reverse_complement_text(s.upper()) in seen for s in test])
    ours, theirs = kmer_sets(test, k), kmer_sets(train, k).T.tocsc()
    size, sizes = np.diff(ours.indptr), np.diff(theirs.indptr)
    nearest = np.zeros(len(test), np.float32)
    for start in range(0, len(test), _CHUNK):
        rows = slice(start, start + _CHUNK)
        shared = (ours[rows] @ theirs).tocoo()
        both = size[rows][shared.row] + sizes[shared.col] - shared.data
        np.maximum.at(nearest[rows], shared.row, (shared.data / both).astype(np.float32))
    return Leaks(exact, nearest, threshold)


def kmer_sets(sequences: Sequences, k: int) -> sparse.csr_matrix:
    """int32 (n, 4^k) of ones: which k-mers a sequence holds, each under the smaller of its number and that of its reverse complement."""
    if not 1 <= k <= 12:
        raise ValueError(f"k={k} is not in 1 ... 12")
    bases = _CODES[sequences.buffer].astype(np.int64)
    ends = np.cumsum(sequences.lengths)
    if len(bases) < k:
        return sparse.csr_matrix((len(sequences), 4**k), dtype=np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(bases, k)
    forward, turned = windows @ 4 ** np.arange(k)[::-1], (3 - windows) @ 4 ** np.arange(k)
    starts = np.arange(len(windows))
    row = np.searchsorted(ends, starts, side="right")
    real = (windows < 4).all(1) & (starts + k <= ends[row])
    codes = np.unique(row[real] * 4**k + np.minimum(forward, turned)[real])
    rows, columns = codes // 4**k, codes % 4**k
    return sparse.csr_matrix((np.ones(len(codes), np.int32), (rows, columns)), (len(sequences), 4**k))
