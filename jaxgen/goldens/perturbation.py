"""Golden families of the TF-perturbation benchmark."""

import numpy as np

from jaxgen.baselines import embedding_mlp, lel
from jaxgen.baselines.impute import fill_missing
from jaxgen.baselines.method import Fold, PerturbationData
from jaxgen.baselines.xgboost import XGBoost
from jaxgen.checkpoints import readers
from jaxgen.checkpoints.safe_pickle import read_pickle
from jaxgen.data import perturbation_splits
from jaxgen.goldens.core import Case, golden
from jaxgen.train.perturbation_metrics import bootstrap, mean_of_finite, per_perturbation

Arrays = dict[str, np.ndarray]
# Name in the scripts of the neural and tree models -> ours.
_METRICS = {"pearson": "centered_pearson", "rmse": "rmse", "mae": "mae", "mse": "mse", "l2_loss": "l2_loss"}


def _metrics(targets: np.ndarray, predictions: np.ndarray) -> Arrays:
    found = per_perturbation(targets, predictions, empty=np.inf)
    computed = {f"{theirs}_per_pert": found[ours] for theirs, ours in _METRICS.items()}
    return computed | {f"{theirs}_mean": np.asarray(mean_of_finite(found[ours])) for theirs, ours in _METRICS.items()}


@golden("lel", inputs=("Y", "P", "lam", "k", "pert_to_gene_idx"))
def linear_embedding_models(case: Case) -> Arrays:
    (file,) = case.path.glob("cv_splits_*.pkl")
    content = read_pickle(file)
    n, n_folds, seed = content["total_samples"], content["n_splits"], content["random_state"]
    splits = perturbation_splits.from_content(content, n, n_folds, file)
    ours = perturbation_splits.kfold(n, n_folds, seed)
    checks = {
        "folds_as_drawn": np.asarray(all(np.array_equal(a, b) for one, other in zip(splits, ours) for a, b in zip(one, other))),
        "pickle_as_written": np.asarray(perturbation_splits.to_pickle(ours, n, seed) == file.read_bytes()),
    }
    if "Y" not in case.arrays:
        return checks | {f"fold{i}_{part}": rows for i, split in enumerate(splits) for part, rows in zip(("train", "test"), split)}
    return checks | _linear_folds(case, [Fold(i, train, train[:0], test) for i, (train, test) in enumerate(splits)], seed)


def _linear_folds(case: Case, folds: list[Fold], seed: int) -> Arrays:
    arrays = case.arrays
    y, ridge, first = arrays["Y"], float(arrays["lam"]), folds[0]
    rows, genes = (list(map(str, range(size))) for size in y.shape)
    with_pca = "pert_to_gene_idx" in arrays
    data = PerturbationData(rows, genes, y, arrays.get("P"), None if with_pca else arrays["G"], arrays.get("pert_to_gene_idx"))
    n_components = int(arrays["k"]) if with_pca else 0
    method = lel.PCALinear(ridge, n_components) if with_pca else lel.NTLinear(ridge)
    predictions, fitted = np.empty_like(y), fill_missing(y)
    results = list(method(data, folds, seed=seed, faithful=True))
    for result in results:
        predictions[result.fold.test] = result.test
    for result in reversed(results):
        fitted[result.fold.train] = result.train
    changes, mean = lel.centred(fill_missing(y)[first.train])
    genes, mapped = arrays["G"], slice(None)
    if with_pca:
        genes = lel.principal_scores(changes, n_components)
        genes = (genes * np.sign((genes * arrays["G"]).sum(0))).astype(np.float32)  # the sign of a component means nothing
        target = arrays["pert_to_gene_idx"][first.train]
        mapped, perturbations = target >= 0, genes[target[target >= 0]]
    else:
        perturbations = arrays["P"][first.train]
    weights = lel.bilinear_weights(lel.gene_regression(genes, ridge)(changes[:, mapped]), perturbations, ridge)
    found = per_perturbation(y, predictions)
    computed = {f"metric_{name}": x for name, x in (found | {"raw_mse": found["mse"]}).items()}
    computed |= {"train_idx": first.train, "test_idx": first.test, "pred_test": results[0].test, "pred_train": fitted[first.train]}
    computed |= {"G": genes, "W": weights, "b": mean[:, None], "Y_imputed": fill_missing(y), "cv_pred": predictions}
    computed |= {"cv_train_pred": fitted, "bootstrap_pearson": np.array(bootstrap(found["centered_pearson"], 200, seed))}
    return {name: x for name, x in computed.items() if name in arrays}


@golden("tf_mlp", inputs=("X", "Y"))
def embedding_perceptron(case: Case) -> Arrays:
    tensors = readers.read_tensors(readers.find_weights(case.path))
    layers = sorted({int(name.split(".")[1]) for name in tensors})
    params = [{"kernel": tensors[f"network.{i}.weight"].T, "bias": tensors[f"network.{i}.bias"]} for i in layers]
    scaled = embedding_mlp.standardise(case.arrays["X"], slice(None))
    predictions = np.asarray(embedding_mlp.predict(params, scaled))  # pyright: ignore[reportArgumentType]
    return {"X_scaled": scaled, "pred": predictions} | _metrics(case.arrays["Y"], predictions)


@golden("tf_xgboost", inputs=("X", "Y"))
def boosted_trees(case: Case) -> Arrays:
    x, y = case.arrays["X"], case.arrays["Y"]
    n_folds = case.config["n_folds"]
    (file,) = case.path.glob("cv_splits_*.pkl")
    splits = perturbation_splits.from_content(read_pickle(file), len(x), n_folds, file)
    folds = [Fold(i, train, np.empty(0, np.int64), test) for i, (train, test) in enumerate(splits)]
    data = PerturbationData(list(range(len(x))), list(range(y.shape[1])), y, tf_embeddings=x)  # pyright: ignore[reportArgumentType]
    predictions = np.empty_like(y)
    for result in XGBoost()(data, folds, seed=case.config["seed"], faithful=True):
        predictions[result.fold.test] = result.test
    baselines = fill_missing(np.vstack([y, np.full((1, y.shape[1]), np.nan, y.dtype)]))[-1]
    return {"Y_imputed": fill_missing(y), "baselines": baselines, "cv_pred": predictions} | _metrics(y, predictions)
