"""SIMULATED eQTLs: a variant has an effect if and only if it hits an occurrence of the motif that its tissue listens to.

No sequence here comes from an organism. Every tissue has one motif. Half of the rows have an effect: the motif of the tissue lies over the
variant, and the alternative allele breaks it. Of the others, a quarter breaks the motif of another tissue, and three quarters lie beside
the motif of their own. Labels are then flipped at random with probability `flips`, so that no method can be sure.
"""

import numpy as np

from jaxgen.data.eqtl import EqtlSplit, in_memory
from jaxgen.errors import InputError

_BASES = np.frombuffer(b"ACGT", np.uint8)
_MOTIFS = ("GGGCGGGGCC", "TGACTCATGC", "CACGTGACCG", "GATAAGGCGC")  # after SP1, AP-1, an E-box and GATA sites
_TISSUES = tuple(f"simulated_tissue_{i}" for i in range(len(_MOTIFS)))
_WIDTH = len(_MOTIFS[0])
_APART = 2 * _WIDTH  # least distance between the variant and a motif that it does not hit
_CHROMOSOMES = {"train": ("1", "2", "3", "4", "5", "6", "7", "X"), "test": ("9", "10")}


def simulate_eqtl(
    seed: int = 1, train: int = 1500, test: int = 600, length: int = 256, flips: float = 0.05
) -> tuple[dict[str, EqtlSplit], dict[str, float]]:
    """Simulates both splits.

    Args:
        seed: of everything but the motifs.
        train, test: rows.
        length: bases per window, the variant at `length // 2`.
        flips: share of labels that are turned.

    Returns:
        (the splits; `auroc` of the true effects against the labels of test: what a perfect predictor reaches).

    Raises:
        InputError: sizes or shares out of range.
    """
    if min(train, test) < 20 or length < 6 * _APART or not 0 <= flips < 0.5:
        raise InputError(
            f"probe.simulated: at least 20 rows per split, a length of {6 * _APART} or more and flips in 0 ... 0.5 (exclusive) are needed"
        )
    splits, attainable = {}, {}
    for stream, (name, n) in enumerate({"train": train, "test": test}.items()):
        rng = np.random.default_rng([seed, stream])
        effect, tissue, ref, alt = _windows(rng, n, length)
        labels = np.where(rng.random(n) < flips, ~effect, effect).astype(int)
        labels[:2] = 0, 1  # both classes, however few rows
        # About as many rows in each of the three ranges that the probe tells apart.
        distances = rng.choice([0, 30_001, 100_001], n) + (rng.random(n) * 30_000).astype(int)
        chromosomes = rng.choice(_CHROMOSOMES[name], n)
        names = [_TISSUES[i] for i in tissue]
        splits[name] = in_memory(name, list(zip(labels.tolist(), chromosomes.tolist(), names, distances.tolist())), ref, alt)
        if name == "test":
            # The AUROC of a binary score is the mean of sensitivity and specificity.
            attainable["auroc"] = float((effect[labels == 1].mean() + (~effect[labels == 0]).mean()) / 2)
    return splits, attainable


def _windows(rng: np.random.Generator, n: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """bool (n,) effects, int (n,) tissues, uint8 (n, length) windows of either allele."""
    effect, tissue = rng.random(n) < 0.5, rng.integers(0, len(_TISSUES), n)
    elsewhere = ~effect & (rng.random(n) < 0.25)  # breaks the motif of another tissue
    motif = np.where(elsewhere, (tissue + rng.integers(1, len(_TISSUES), n)) % len(_TISSUES), tissue)
    middle = length // 2
    over = middle - rng.integers(0, _WIDTH, n)
    beside = middle + rng.choice([-1, 1], n) * rng.integers(_APART, middle - _WIDTH, n)
    start = np.where(effect | elsewhere, over, beside)
    ref = rng.integers(0, 4, (n, length))
    letters = np.array([["ACGT".index(base) for base in text] for text in _MOTIFS])
    ref[np.arange(n)[:, None], start[:, None] + np.arange(_WIDTH)] = letters[motif]
    alt = ref.copy()
    alt[:, middle] = (ref[:, middle] + rng.integers(1, 4, n)) % 4
    return effect, tissue, _BASES[ref], _BASES[alt]
