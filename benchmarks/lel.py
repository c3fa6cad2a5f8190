"""Part `lel`: five folds of the linear embedding model at the size of the published data, against the published loop over NumPy."""

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.harness import Contender, Note, Options, Row, compare
from jaxgen.baselines.lel import NTLinear
from jaxgen.baselines.method import Fold, PerturbationData
from jaxgen.data.perturbation_splits import kfold

SIZE, SMOKE_SIZE = (377, 4912, 512), (20, 30, 8)  # perturbations, genes, width of the embeddings
RIDGE = 0.1


def run(options: Options) -> Iterator[Row | Note]:
    """Both keep float32 inputs and float32 products, as published, so that they can be compared; ours in float64 is a row of its own."""
    p, g, k = SMOKE_SIZE if options.smoke else SIZE
    rng = np.random.default_rng(0)
    tf, gene, targets = (rng.standard_normal(shape, np.float32) for shape in ((p, k), (g, k), (p, g)))
    data = PerturbationData([str(i) for i in range(p)], [str(i) for i in range(g)], targets, tf, gene)
    folds = [Fold(i, train, train[:0], test) for i, (train, test) in enumerate(kfold(p))]

    def ours(faithful: bool) -> list[np.ndarray]:
        return [result.test for result in NTLinear(RIDGE)(data, folds, seed=0, faithful=faithful)]

    theirs = plain_loop(targets, gene, tf, folds)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(ours(True), theirs))
    yield Note("lel", f"predictions agree with the NumPy loop to {apart:.1e} (float32 products)")
    case = f"5 folds, {p} perturbations x {g} genes x {k}"
    peer = Contender("NumPy loop", lambda: plain_loop(targets, gene, tf, folds))
    for faithful, name in ((True, "float32 products"), (False, "float64")):
        yield from compare(
            "lel", f"{name}, {case}", [Contender("jaxgen", lambda f=faithful: ours(f)), peer], options.repeats, clock=options.clock
        )


def plain_loop(targets: np.ndarray, gene: np.ndarray, tf: np.ndarray, folds: Sequence[Fold]) -> list[np.ndarray]:
    """The formulas fold by fold, each written out as in the paper: everything is computed anew, test and training rows are predicted."""
    eye, held_out = RIDGE * np.eye(gene.shape[1]), []
    for fold in folds:
        y = targets[fold.train].T
        mean = y.mean(axis=1, keepdims=True)
        p = tf[fold.train]
        a = np.linalg.solve(gene.T @ gene + eye, gene.T @ (y - mean))
        w = a @ p @ np.linalg.inv(p.T @ p + eye)
        held_out.append((gene @ w @ tf[fold.test].T + mean).T.astype(np.float32))
        (gene @ w @ p.T + mean).T.astype(np.float32)
    return held_out
