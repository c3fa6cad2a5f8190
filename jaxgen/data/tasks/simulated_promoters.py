"""Task `simulated_promoters`: SIMULATED core promoters whose class lies in the spacing of three motifs.

No sequence here comes from an organism. All sequences share a second-order Markov background.

- class 1, promoter: TATA box, initiator (Inr) and downstream element (DPE) at the spacing of real core promoters (TATA about 28
  bases before the Inr, DPE about 30 after it, each give or take one).
- class 0, half of it decoys: the same three motifs in the same order at other spacings; half of it background alone.

Counts of k-mers can tell motifs from background but not promoters from decoys; a model that sees distances can. The generating
model's own likelihood-ratio classifier is evaluated on the test split and stored in `Task.attainable`.
"""

import numpy as np

from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.base import Examples, Target, Task
from jaxgen.errors import InputError

_BASES = np.frombuffer(b"ACGT", np.uint8)
_IUPAC = {"A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "W": "AT", "V": "ACG", "N": "ACGT"}
# Consensus sequences as in reviews of core promoter elements (Juven-Gershon and Kadonaga 2010).
_TATA, _INR, _DPE = "TATAWAAR", "YYANWYY", "RGWYVT"
_SPACINGS = range(14, 45)  # distances between motif starts that decoys use
_TATA_TO_INR, _INR_TO_DPE, _JITTER = 28, 30, 1
_INR_POSITIONS = 21  # the Inr starts at one of this many positions around the middle
_SHORTEST = 2 * (_SPACINGS[-1] + 8) + _INR_POSITIONS
_BACKGROUND_SEED = 20  # the background model is the same for every seed of the task


def load(
    seed: int = 1, train: int = 20000, dev: int = 2000, test: int = 2000, length: int = 128, consensus: float = 0.9, decoys: float = 0.5
) -> Task:
    """Simulates the task.

    Args:
        seed: of the sequences (the generating model itself is fixed).
        train, dev, test: sequences per split; half of each, on average, are promoters.
        length: bases per sequence, at least 125.
        consensus: probability that a motif position agrees with its consensus.
        decoys: share of class 0 that carries motifs at wrong spacings.

    Raises:
        InputError: an option out of range.
    """
    if min(train, dev, test) < 2:
        raise InputError("simulated_promoters: train, dev and test must each be at least 2")
    if length < _SHORTEST:
        raise InputError(f"simulated_promoters: length {length} is too short for the motifs; use at least {_SHORTEST}")
    if not 0.25 <= consensus < 1.0 or not 0.0 <= decoys <= 1.0:
        raise InputError("simulated_promoters: consensus must lie in 0.25 ... 1 (exclusive) and decoys in 0 ... 1")
    model = _Model(length, consensus, decoys)
    splits, attainable = {}, {}
    for stream, (name, n) in enumerate({"train": train, "dev": dev, "test": test}.items()):
        bases, labels = model.sample(n, np.random.default_rng([seed, stream]))
        splits[name] = Examples(Sequences.from_array(_BASES[bases]), labels.astype(np.int32))
        if name == "test":
            attainable = _scores(labels, model.log_odds(bases) > 0)
    return Task(
        name="simulated_promoters",
        splits=splits,
        target=Target.classification(("simulated background or decoy", "simulated promoter")),
        description=f"Simulated {length}-base sequences with promoter motifs at correct (class 1) or wrong spacing, or none (class 0).",
        simulated=True,
        attainable=attainable,
        notes=("simulated sequences, not from any organism",),
    )


class _Model:
    """The generating model: sampling and exact likelihood ratios. Bases are 0 ... 3 for A, C, G, T."""

    def __init__(self, length: int, consensus: float, decoys: float):
        self.length, self.decoys = length, decoys
        self.motifs = [_weights(text, consensus) for text in (_TATA, _INR, _DPE)]
        # Transition probabilities (two previous bases, next base), mildly uneven.
        self.background = np.random.default_rng(_BACKGROUND_SEED).dirichlet(np.full(4, 12.0), 16)
        self.inr = (length - _INR_POSITIONS) // 2 + np.arange(_INR_POSITIONS)
        wide = np.array(_SPACINGS)
        # Distances of promoters, and of decoys (never those of promoters), before and after the Inr.
        self.right = [np.arange(center - _JITTER, center + _JITTER + 1) for center in (_TATA_TO_INR, _INR_TO_DPE)]
        self.wrong = [wide[~np.isin(wide, right)] for right in self.right]

    def sample(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n, length) bases and bool (n,) labels."""
        labels = rng.random(n) < 0.5
        motifs = labels | (rng.random(n) < self.decoys)
        inr = rng.choice(self.inr, n)
        before, after = (np.where(labels, rng.choice(r, n), rng.choice(w, n)) for r, w in zip(self.right, self.wrong))
        # Which row of the emission table each position uses: -1 is the background.
        emission = np.full((n, self.length), -1)
        first, rows = 16, np.flatnonzero(motifs)
        for weights, start in zip(self.motifs, (inr - before, inr, inr + after)):
            columns = np.arange(len(weights))
            emission[rows[:, None], start[rows, None] + columns] = first + columns
            first += len(weights)
        cumulative = np.cumsum(np.concatenate([self.background, *self.motifs]), axis=1)[:, :3]
        bases = np.zeros((n, self.length), np.uint8)
        context = rng.integers(0, 16, n)
        draws = rng.random((self.length, n))
        for i in range(self.length):
            row = np.where(emission[:, i] < 0, context, emission[:, i])
            bases[:, i] = (draws[i][:, None] > cumulative[row]).sum(axis=1)
            context = (context % 4) * 4 + bases[:, i]
        return bases, labels

    def log_odds(self, bases: np.ndarray) -> np.ndarray:
        """float64 (n,): log P(sequence | class 1) - log P(sequence | class 0); positive means class 1 is likelier."""
        n = len(bases)
        padded = np.concatenate([np.zeros((n, 2), np.int64), bases.astype(np.int64)], axis=1)
        background = np.log(self.background)[padded[:, :-2] * 4 + padded[:, 1:-1], bases]
        ratios = []  # likelihood ratio of a motif starting at each position
        for weights in self.motifs:
            width, starts = len(weights), self.length - len(weights) + 1
            score = np.zeros((n, starts))
            for i in range(width):
                score += np.log(weights[i])[bases[:, i : i + starts]] - background[:, i : i + starts]
            ratios.append(np.exp(score))
        tata, inr, dpe = ratios

        def placed(distances: list[np.ndarray]) -> np.ndarray:
            before = tata[:, self.inr[:, None] - distances[0]].mean(axis=2)
            after = dpe[:, self.inr[:, None] + distances[1]].mean(axis=2)
            return (before * inr[:, self.inr] * after).mean(axis=1)

        return np.log(placed(self.right)) - np.log(self.decoys * placed(self.wrong) + (1 - self.decoys))


def _weights(text: str, consensus: float) -> np.ndarray:
    """Position weights (length, 4): `consensus` shared by the letters of the IUPAC code, the rest by the others."""
    allowed = np.array([[base in _IUPAC[letter] for base in "ACGT"] for letter in text], float)
    inside = allowed.sum(axis=1, keepdims=True)
    outside = 4 - inside
    share = np.where(outside > 0, consensus, 1.0)
    return allowed * share / inside + (1 - allowed) * (1 - share) / np.maximum(outside, 1)


def _scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    tp, tn = float((labels & predicted).sum()), float((~labels & ~predicted).sum())
    fp, fn = float((~labels & predicted).sum()), float((labels & ~predicted).sum())
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {"accuracy": (tp + tn) / len(labels), "mcc": float((tp * tn - fp * fn) / spread) if spread else 0.0}
