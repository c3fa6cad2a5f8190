"""k-mer counts with logistic regression: the number that a neural sequence classifier has to beat."""

import numpy as np
from scipy import sparse
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

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


class KmerClassifier:
    """Standardised k-mer shares and L2 logistic regression (inverse strength `c`)."""

    def __init__(self, max_k: int = 5, c: float = 0.1, seed: int = 0):
        self.max_k, self.model = max_k, LogisticRegression(C=c, max_iter=1000, random_state=seed)

    def fit(self, sequences: Sequences, labels: np.ndarray) -> "KmerClassifier":
        features = kmer_counts(sequences, self.max_k)
        spread = np.sqrt(np.maximum(features.multiply(features).mean(0) - np.square(features.mean(0)), 1e-12))
        self.scale = sparse.diags(1.0 / np.asarray(spread).ravel())
        self.model.fit(features @ self.scale, labels)
        return self

    def logits(self, sequences: Sequences) -> np.ndarray:
        """(sequences, classes) log probabilities."""
        scores = self.model.decision_function(kmer_counts(sequences, self.max_k) @ self.scale)
        if scores.ndim == 1:  # of the second of two classes
            scores = np.stack([np.zeros_like(scores), scores], 1)
        return log_softmax(scores, axis=1)
