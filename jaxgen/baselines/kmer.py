"""k-mer counts with logistic or ridge regression: the number that a neural model of sequences has to beat."""

import numpy as np
from scipy import sparse
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge

from jaxgen.data.sequences import Sequences

_CODE = np.full(256, 4, np.int64)
for _i, _pair in enumerate(("Aa", "Cc", "Gg", "TtUu")):
    _CODE[[ord(letter) for letter in _pair]] = _i


def kmer_counts(sequences: Sequences, max_k: int) -> sparse.csr_matrix:
    """(sequences, 4 + 16 + ... + 4**max_k) counts of all k-mers of ACGT, k = 1 ... max_k, as shares of the sequence's length."""
    lengths = np.asarray(sequences.lengths, np.int64)
    codes = _CODE[np.frombuffer(b"".join(sequences), np.uint8)]
    row = np.repeat(np.arange(len(lengths)), lengths)
    blocks = []
    for k in range(1, max_k + 1):
        if len(codes) < k:
            break
        windows = np.lib.stride_tricks.sliding_window_view(codes, k)
        inside = (row[: len(windows)] == row[k - 1 :]) & (windows < 4).all(1)
        index = windows[inside] @ (4 ** np.arange(k - 1, -1, -1))
        ones = np.ones(len(index), np.float32)
        blocks.append(sparse.coo_matrix((ones, (row[: len(windows)][inside], index)), shape=(len(lengths), 4**k)))
    return sparse.diags(1.0 / np.maximum(lengths, 1)) @ sparse.hstack(blocks).tocsr()


class KmerModel:
    """Standardised k-mer shares and a linear model: logistic regression of classes, ridge regression of values.

    Args:
      kind: "classification" or "regression".
      c: inverse strength of the L2 penalty, beside the summed cross entropy or the mean squared error.
    """

    def __init__(self, kind: str = "classification", max_k: int = 5, c: float = 0.1):
        self.kind, self.max_k, self.c = kind, max_k, c

    def fit(self, sequences: Sequences, targets: np.ndarray) -> "KmerModel":
        """`targets`: class indices (n,), or values (n, outputs)."""
        features = kmer_counts(sequences, self.max_k)
        spread = np.sqrt(np.maximum(features.multiply(features).mean(0) - np.square(features.mean(0)), 1e-12))
        self.scale = sparse.diags(1.0 / np.asarray(spread).ravel())
        model = LogisticRegression(C=self.c, max_iter=1000) if self.kind == "classification" else Ridge(alpha=len(targets) / self.c)
        self.model = model.fit(features @ self.scale, targets)
        return self

    def predictions(self, sequences: Sequences) -> np.ndarray:
        """(sequences, classes) log probabilities, or (sequences, outputs) values."""
        features = kmer_counts(sequences, self.max_k) @ self.scale
        if isinstance(self.model, Ridge):
            return self.model.predict(features).reshape(len(sequences), -1)
        scores = self.model.decision_function(features)
        if scores.ndim == 1:  # of the second of two classes
            scores = np.stack([np.zeros_like(scores), scores], 1)
        return log_softmax(scores, axis=1)
