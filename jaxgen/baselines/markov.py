"""Order-k Markov models of DNA: the number that a language model of a genome has to beat."""

import numpy as np

_CODE = np.full(256, 4, np.uint8)
for _i, _pair in enumerate(("Aa", "Cc", "Gg", "Tt")):
    _CODE[[ord(letter) for letter in _pair]] = _i


class MarkovModel:
    """P(base | the k bases before it), from counts with additive smoothing.

    Contexts and bases other than ACGT (either case) are left out of fitting and scoring.

    Args:
      order: k.
      pseudocount: added to each of the four counts of a context.
      both_strands: count the reverse complement too, as a model trained with reverse-complement augmentation sees it.
    """

    def __init__(self, order: int, *, pseudocount: float = 1.0, both_strands: bool = True):
        self.order, self.pseudocount, self.both_strands = order, pseudocount, both_strands
        self.counts = np.zeros((4**order, 4))

    def fit(self, sequences: list[np.ndarray]) -> "MarkovModel":
        """Adds the counts of uint8 ASCII sequences."""
        for sequence in sequences:
            codes = _CODE[sequence]
            strands = (codes, np.where(codes < 4, 3 - codes, 4)[::-1]) if self.both_strands else (codes,)
            for strand in strands:
                context, base = self._pairs(strand)
                self.counts += np.bincount(context * 4 + base, minlength=self.counts.size).reshape(self.counts.shape)
        return self

    def loss(self, sequences: list[np.ndarray]) -> tuple[float, int]:
        """(mean cross entropy in nats per base, number of bases) of uint8 ASCII sequences."""
        probability = self.counts + self.pseudocount
        log_p = np.log(probability / probability.sum(1, keepdims=True))
        total, n = 0.0, 0
        for sequence in sequences:
            context, base = self._pairs(_CODE[sequence])
            total, n = total - float(log_p[context, base].sum()), n + len(base)
        return total / max(n, 1), n

    def _pairs(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(context index, next base) of every position with a full context of ACGT."""
        k = self.order
        if len(codes) <= k:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(codes, k + 1)
        windows = windows[(windows < 4).all(1)].astype(np.int64)
        return windows[:, :k] @ (4 ** np.arange(k - 1, -1, -1)), windows[:, k]
