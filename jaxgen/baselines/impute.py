"""Missing targets, and the scale of features."""

import numpy as np


def fill_missing(targets: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Targets (P, G) with NaN replaced by the gene's mean over those of `rows` that have it; a gene that none of them has gets 0."""
    known = targets[rows]
    count = np.isfinite(known).sum(0)
    means = np.nansum(known, axis=0, dtype=np.float64) / np.maximum(count, 1)
    return np.where(np.isnan(targets), means.astype(targets.dtype), targets)
