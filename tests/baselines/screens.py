"""A tiny screen whose changes are a low-rank function of the embeddings, and its folds."""

import numpy as np

from jaxgen.baselines.method import Fold, FoldResult, Method, PerturbationData


def screen(n: int = 60, n_genes: int = 40, width: int = 12, noise: float = 0.2, missing: bool = False, seed: int = 0) -> PerturbationData:
    rng = np.random.default_rng(seed)
    tf, gene = rng.normal(size=(n, width)), rng.normal(size=(n_genes, width))
    mixing = rng.normal(size=(width, 3)) @ rng.normal(size=(3, width)) / width
    targets = (0.5 * tf @ mixing @ gene.T + noise * rng.normal(size=(n, n_genes))).astype(np.float32)
    if missing:
        targets[rng.random(targets.shape) < 0.05] = np.nan
        targets[:, 3] = np.nan  # a gene that nobody measured
        targets[5] = np.nan  # a perturbation without any value
    names, genes = [f"TF{i}" for i in range(n)], [f"ENSG{i}" for i in range(n_genes)]
    return PerturbationData(names, genes, targets, tf.astype(np.float32), gene.astype(np.float32))


def folds(n: int = 60, n_folds: int = 3, seed: int = 0) -> list[Fold]:
    rng = np.random.default_rng(seed)
    made = []
    for i, test in enumerate(np.array_split(rng.permutation(n), n_folds)):
        rest = rng.permutation(np.setdiff1d(np.arange(n), test))
        made.append(Fold(i, np.sort(rest[len(rest) // 5 :]), np.sort(rest[: len(rest) // 5]), np.sort(test)))
    return made


def out_of_fold(results: list[FoldResult], like: np.ndarray) -> np.ndarray:
    predictions = np.full_like(like, np.nan)
    for result in results:
        predictions[result.fold.test] = result.test
    return predictions


def run(method: Method, data: PerturbationData, chosen: list[Fold], *, seed: int = 1, faithful: bool = False) -> list[FoldResult]:
    return list(method(data, chosen, seed=seed, faithful=faithful))


def without_rows(data: PerturbationData, rows: np.ndarray) -> PerturbationData:
    """The same screen with other changes in some rows: what a method must not see."""
    import dataclasses

    targets = data.targets.copy()
    targets[rows] = 100.0
    return dataclasses.replace(data, targets=targets)


def mean_correlation(targets: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(y, p)[0, 1] for y, p in zip(targets, predictions)]))
