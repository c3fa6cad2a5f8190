"""Attention with linear biases (Press et al. 2021, arXiv 2108.12409): scores fall with distance, at a slope of each head's own."""

import numpy as np


def alibi_slopes(n_heads: int) -> np.ndarray:
    """float32 (heads,): a geometric series from 2^(-8/n); for n not a power of two, that of the power below, then every other one of the
    power above."""
    power = 1 << (n_heads.bit_length() - 1)
    below, above = (2.0 ** (-8.0 / n * np.arange(1, n + 1)) for n in (power, 2 * power))
    return np.concatenate([below, above[::2][: n_heads - power]]).astype(np.float32)
