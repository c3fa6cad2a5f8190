"""Linear models between embeddings (LEL), in closed form: changes (genes x perturbations) are about G W P' + b.

G holds an embedding per read-out gene, P one per perturbation, b the mean change of each gene over the training perturbations. W comes from
two ridge regressions, solved in float64. Method: Ahlmann-Eltze, Huber and Anders (Nature Methods 2025). Published scripts:
molocyxu/10701GenomicEmbeddings `scripts/LEL_embed.py` (`NTLinear`) and `scripts/Hs27_LEL.py` (`PCALinear`).

The scripts form G'G, G'Y and P'P in float32, which the ridge of 0.1 does not drown for wide embeddings; `faithful` does the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxgen.baselines.impute import fill_missing
from jaxgen.baselines.method import Fold, FoldResult, PerturbationData, training_rows
from jaxgen.errors import InputError


@dataclasses.dataclass(frozen=True)
class NTLinear:
    """`Method` with given embeddings of genes and TFs, such as those of the Nucleotide Transformer.

    Attributes:
      ridge: lambda of both regressions.
    """

    ridge: float = 0.1

    def __call__(self, data: PerturbationData, folds: Sequence[Fold], *, seed: int, faithful: bool) -> Iterator[FoldResult]:
        return self._as_published(data, folds) if faithful else self._all_at_once(data, folds)

    def _as_published(self, data: PerturbationData, folds: Sequence[Fold]) -> Iterator[FoldResult]:
        """W of every fold, from products in float32, with missing targets filled from all rows."""
        assert data.gene_embeddings is not None
        assert data.tf_embeddings is not None
        genes, tfs, targets = data.gene_embeddings, data.tf_embeddings, fill_missing(data.targets)
        regress = gene_regression(genes, self.ridge)
        genes64 = genes.astype(np.float64)
        for fold in folds:
            rows = training_rows(fold)
            changes, mean = centred(targets[rows])
            weights = bilinear_weights(regress(changes), tfs[rows], self.ridge)
            test, train = ((tfs[of] @ weights.T @ genes64.T + mean).astype(np.float32) for of in (fold.test, rows))
            yield FoldResult(fold, test, train)

    def _all_at_once(self, data: PerturbationData, folds: Sequence[Fold]) -> Iterator[FoldResult]:
        """The same predictions in float64 without W: G W P' = H Y P (P'P + ridge I)^-1 P', and P (P'P + ridge I)^-1 P' is
        K (K + ridge I)^-1 with K = PP'. The smoother H = G (G'G + ridge I)^-1 G' and K are shared by all folds, and H acts on every
        perturbation alone, so that only those with missing targets are smoothed anew in each fold.
        """
        assert data.gene_embeddings is not None
        assert data.tf_embeddings is not None
        genes, tfs = data.gene_embeddings.astype(np.float64), data.tf_embeddings.astype(np.float64)
        regress, kernel = gene_regression(genes, self.ridge), tfs @ tfs.T
        targets, incomplete = fill_missing(data.targets).astype(np.float64), np.asarray(np.isnan(data.targets).any(1))

        def smooth(y: np.ndarray) -> np.ndarray:
            return regress(y.T).T @ genes.T

        smoothed = smooth(targets)
        for fold in folds:
            rows = training_rows(fold)
            y, smooth_y, some = targets[rows], smoothed[rows], incomplete[rows]
            if some.any():
                y[some] = fill_missing(data.targets, rows)[rows][some]
                smooth_y[some] = smooth(y[some])
            mixture = np.linalg.solve(kernel[np.ix_(rows, rows)] + self.ridge * np.eye(len(rows)), kernel[rows])
            predictions = (mixture.T @ (smooth_y - smooth_y.mean(0)) + y.mean(0)).astype(np.float32)
            yield FoldResult(fold, predictions[fold.test], predictions[rows])


@dataclasses.dataclass(frozen=True)
class PCALinear:
    """`Method` without sequence: genes are embedded by principal components of the training changes, and a perturbation by the row of the
    gene that it targets. One whose gene is not read out is predicted as the mean b.

    Attributes:
      ridge: lambda of both regressions.
      n_components: principal components.
    """

    ridge: float = 0.1
    n_components: int = 10

    def __call__(self, data: PerturbationData, folds: Sequence[Fold], *, seed: int, faithful: bool) -> Iterator[FoldResult]:
        assert data.target_gene is not None
        if faithful and np.isnan(data.targets).any():
            raise InputError("lel_pca as published takes no missing targets; leave it out, or fill them in with --config.faithful=false")
        for fold in folds:
            rows = training_rows(fold)
            targets = fill_missing(data.targets, rows)[rows].astype(np.float32 if faithful else np.float64)
            yield self._fold(fold, rows, targets, data.target_gene)

    def _fold(self, fold: Fold, rows: np.ndarray, targets: np.ndarray, target_gene: np.ndarray) -> FoldResult:
        changes, mean = centred(targets)
        genes = principal_scores(changes, self.n_components).astype(targets.dtype)
        mapped = target_gene[rows] >= 0
        if mapped.sum() < 2:
            test, train = (np.broadcast_to(mean.astype(np.float32), (len(of), len(mean))) for of in (fold.test, rows))
            return FoldResult(fold, test, train, {"mapped": int(mapped.sum())})
        perturbations = genes[target_gene[rows][mapped]]
        weights = bilinear_weights(gene_regression(genes, self.ridge)(changes[:, mapped]), perturbations, self.ridge)

        def predict(of: np.ndarray) -> np.ndarray:
            effect = genes[target_gene[of]].astype(np.float64) @ weights.T @ genes.T
            return np.where(target_gene[of][:, None] >= 0, effect + mean, mean).astype(np.float32)

        return FoldResult(fold, predict(fold.test), predict(rows), {"mapped": int(mapped.sum())})


def centred(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training targets (N, G) -> changes (G, N) less their mean, and that mean b (G,)."""
    mean = targets.mean(0)
    return (targets - mean).T, mean


def gene_regression(genes: np.ndarray, ridge: float) -> Callable[[np.ndarray], np.ndarray]:
    """The function that maps changes (G, N) to (G'G + ridge I)^-1 G' changes, float64 (K, N), for gene embeddings (G, K)."""
    gram = genes.T @ genes + ridge * np.eye(genes.shape[1])
    return lambda changes: np.linalg.solve(gram, genes.T @ changes)


def bilinear_weights(coefficients: np.ndarray, perturbations: np.ndarray, ridge: float) -> np.ndarray:
    """W (K, K') = A P (P'P + ridge I)^-1 in float64, from A (K, N) of `gene_regression` and perturbation embeddings P (N, K')."""
    gram = perturbations.T @ perturbations + ridge * np.eye(perturbations.shape[1])
    return np.linalg.solve(gram, (coefficients @ perturbations).T).T


def principal_scores(changes: np.ndarray, n_components: int) -> np.ndarray:
    """Genes (G, K) on the principal components of changes (G, N), K = min(n_components, G, N), float64.

    Each perturbation (column) is centred over genes first. The largest loading of every component is positive.
    """
    x = changes.astype(np.float64)
    x -= x.mean(0)
    k = min(n_components, *x.shape)
    components = np.linalg.eigh(x.T @ x).eigenvectors[:, ::-1][:, :k]
    signs = np.sign(components[np.abs(components).argmax(0), np.arange(k)])
    return x @ (components * signs)
