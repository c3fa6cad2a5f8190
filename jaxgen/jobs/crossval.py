"""Predict expression changes under TF perturbation with every method on the same folds, and compare them."""

import math
import time
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxgen.baselines.method import Fold
from jaxgen.checkpoints.safe_pickle import read_pickle
from jaxgen.data import perturbation, perturbation_files, perturbation_splits, simulated_perturbation
from jaxgen.data.splits import torch_permutation
from jaxgen.errors import InputError
from jaxgen.jobs.crossval_folds import FINISHED, Outcome, run_methods
from jaxgen.jobs.crossval_methods import METHODS, chosen, make
from jaxgen.jobs.training import open_workdir, say
from jaxgen.train import perturbation_report as report
from jaxgen.train.logging import environment, write_atomic, write_json, write_result
from jaxgen.train.termination import Termination

SOUND = (
    "Sound: missing targets are filled and inputs scaled from training rows alone, training stops on a fifth of the training rows and the "
    "best weights predict, every method holds out the same perturbations."
)
FAITHFUL = (
    "FAITHFUL to the published scripts, leaks included: missing targets are filled and inputs scaled from all rows, concat and nt_ia3 stop "
    "on the test fold, the MLPs predict with their last weights, MLPs and XGBoost apply the folds to perturbations sorted by gene id."
)


def run(config: ConfigDict) -> int:
    """Cross-validate `perturbation.methods` on `data.path`, or on simulated data; a run that was killed goes on with the next fold.

    Returns:
      0, also when SIGTERM asked to stop.
    """
    with Termination(say):
        return _run(config)
    return 0


def _run(config: ConfigDict) -> int:
    if open_workdir(config, FINISHED):
        return 0
    if jax.process_count() > 1:
        raise InputError("crossval runs in one process, on all devices of that process")
    p, workdir, began = config.perturbation, epath.Path(config.workdir), time.monotonic()
    names = chosen(p.methods)
    methods = {name: make(name, config) for name in names}
    tables = load_tables(config, names)
    splits, folds_file = load_splits(config, len(tables.ids))
    folds = [with_validation(i, train, test, config.seed) for i, (train, test) in enumerate(splits)]
    write_json(workdir / "config.json", config.to_dict())
    loaded = time.monotonic() - began
    say(f"{len(tables.ids)} perturbations x {len(tables.genes)} genes in {len(folds)} folds: {', '.join(names)}")
    outcomes = run_methods(methods, tables, folds, workdir, seed=config.seed, faithful=config.faithful)
    truth = report.Truth(tables.ids, tables.genes, tables.targets, bool(tables.simulated))
    scored: list[report.Scored] = []
    for name in names:
        about = {"method": name, "faithful": config.faithful, "cv_splits_file": str(folds_file), "bootstrap": p.bootstrap}
        about |= {"folds": outcomes[name].info, **_options(name, config, outcomes[name], loaded)}
        scored.append(_score(config, name, truth, outcomes[name], scored[0] if scored else None, about))
        entry = METHODS[name]
        stem = entry.stem or entry.published
        report.write_method(workdir / name, truth, scored[-1], len(folds), stem=stem, clip=entry.clips_plot, figures=config.train.report)
    simulated = "SIMULATED DATA: " if truth.simulated else ""
    title = f"{simulated}{len(truth.ids)} TF perturbations x {len(truth.genes)} genes, {len(folds)}-fold cross-validation"
    notes = [FAITHFUL if config.faithful else SOUND, *tables.notes]
    if tables.simulated:
        notes.append(f"Attainable, by the expected changes themselves: {tables.simulated['attainable']}.")
    table = report.write_comparison(workdir, truth, scored, title, notes, config.train.report)
    for line in [title, *table.splitlines()]:
        say(line)
    methods = {one.name: one.means() for one in scored}
    flat = {f"{name}/{metric}": value for name, means in methods.items() for metric, value in means.items()}
    result = {"job": "crossval", "metrics": {"test": flat}, "methods": methods, "seed": config.seed, "faithful": config.faithful}
    result |= {"perturbations": len(truth.ids), "genes": len(truth.genes), "simulated": truth.simulated, "notes": notes}
    result |= {"attainable": tables.simulated.get("attainable"), "wall_seconds": time.monotonic() - began, **environment()}
    write_result(workdir, result)
    say(f"table: {workdir / 'comparison.md'}" + (f"  report: {workdir / 'report' / 'index.html'}" if config.train.report else ""))
    return 0


def load_tables(config: ConfigDict, names: Sequence[str]) -> perturbation.Tables:
    """What the methods read, from `data.path` or simulated; notes are printed."""
    p, folder = config.perturbation, config.data.path
    if not folder:
        if "://" in config.workdir:
            raise InputError("simulated data need a local --workdir; give one, or real data with --config.data.path=FOLDER")
        folder = simulated_perturbation.write(epath.Path(config.workdir) / "simulated_data", config.seed, **p.simulated.to_dict())
    needs = [need for need in perturbation.NEEDS if any(need in METHODS[name].needs for name in names)]
    limits = perturbation.Limits(p.max_perturbations, p.max_genes, p.top_genes)
    tables = perturbation.load(folder, p.files.to_dict(), needs, limits, drop_missing=p.drop_missing, faithful=config.faithful)
    if tables.simulated:
        say(f"note: SIMULATED data in {folder}; the expected changes themselves reach {tables.simulated['attainable']}")
    for note in tables.notes:
        say(f"note: {note}")
    return tables


def load_splits(config: ConfigDict, n: int) -> tuple[list[perturbation_splits.Split], epath.Path]:
    """The folds of `perturbation.folds_file`, which is written when it is not there, and the file.

    Raises:
      InputError: a file with folds of other data, or of another structure.
    """
    p, name = config.perturbation, config.perturbation.folds_file
    if name == "auto":
        name = f"cv_splits_{p.folds}fold_{config.seed}.pkl"
        beside = perturbation_files.find(config.data.path, name) if config.data.path else None
        name = beside or epath.Path(config.workdir) / name
    file = epath.Path(name)
    if file.exists():
        try:
            content = read_pickle(file)
        except InputError as error:
            raise InputError(f"{file}: not a file of folds ({error}); delete it to have one written") from error
        splits = perturbation_splits.from_content(content, n, p.folds, file)
        say(f"folds of {file}")
        return splits, file
    splits = perturbation_splits.kfold(n, p.folds, config.seed)
    write_atomic(file, perturbation_splits.to_pickle(splits, n, config.seed))
    return splits, file


def with_validation(index: int, train: np.ndarray, test: np.ndarray, seed: int) -> Fold:
    """The fold with a random fifth of its training rows, at least one, set apart for selection."""
    if len(train) < 2:
        raise InputError(f"fold {index} trains on {len(train)} perturbations; at least 2 are needed")
    order, n_valid = torch_permutation(len(train), seed + index), max(1, len(train) // 5)
    return Fold(index, np.sort(train[order[n_valid:]]), np.sort(train[order[:n_valid]]), test)


def _options(name: str, config: ConfigDict, outcome: Outcome, loaded: float) -> dict:
    """The options of a method, under the published names where there are some."""
    group = METHODS[name].options
    values = config.perturbation.get(group, ConfigDict()).to_dict() if group else {}
    published = {"lambda_ridge": values.get("ridge"), "k_components": values.get("n_components") if name == "lel_pca" else None}
    timings = {"load_artifacts": loaded, "training": outcome.seconds, "total": loaded + outcome.seconds}
    return {"options": values, **{key: value for key, value in published.items() if value is not None}, "timings_seconds": timings}


def _score(
    config: ConfigDict, name: str, truth: report.Truth, outcome: Outcome, baseline: report.Scored | None, about: dict
) -> report.Scored:
    p, entry = config.perturbation, METHODS[name]
    return report.score(
        truth,
        name,
        entry.published,
        outcome.predictions,
        outcome.fitted,
        baseline=baseline,
        top_k=p.top_k,
        draws=p.bootstrap,
        seed=config.seed,
        empty=math.inf if config.faithful and entry.infinite_when_empty else math.nan,
        seconds=outcome.seconds,
        about=about,
    )
