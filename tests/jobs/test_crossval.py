"""The TF-perturbation benchmark by its command: outputs, folds that are kept, faithful and sound, wrong input."""

import csv
import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import helpers
import numpy as np
import pytest
from pyarrow import parquet

from jaxgen.baselines import lel
from jaxgen.baselines.method import PerturbationData
from jaxgen.data import simulated_perturbation
from jaxgen.jobs import crossval, crossval_folds, crossval_methods

P, G = 20, 16
LINEAR = "lel_nt,lel_pca"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return simulated_perturbation.write(tmp_path_factory.mktemp("tf") / "data", 1, P, G, 120)


def command(data, workdir, methods=LINEAR, **fields):
    fields = {"data__path": data, "perturbation__bootstrap": 20, "perturbation__top_k": 4, "train__report": "false"} | fields
    return [f"--config=configs/tf_perturbation.py:{methods}", *helpers.flags(**fields), f"--workdir={workdir}"]


def predictions(workdir, method, published):
    """(ids, values) of the Parquet file."""
    table = parquet.read_table(workdir / method / f"predictions_{published}.parquet")
    assert table.schema.pandas_metadata["index_columns"] == ["__index_level_0__"]
    ids = table["__index_level_0__"].to_pylist()
    return ids, np.stack([column.to_numpy() for column in table.drop(["__index_level_0__"]).columns], 1)


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_simulated_by_default_and_every_published_file(run_here, tmp_path):
    workdir = tmp_path / "run"
    sizes = {"perturbation__simulated__perturbations": P, "perturbation__simulated__genes": G, "perturbation__simulated__length": 120}
    sizes["train__report"] = "true"
    ended = run_here(command("", workdir, **sizes))
    assert ended.code == 0, ended.err
    assert "SIMULATED" in ended.err
    for method, published, stem in (
        ("mean", "mean_response", "mean_response"),
        ("lel_nt", "linear_nt_embed", "linear_nt"),
        ("lel_pca", "linear_pca", "linear"),
    ):
        names = {path.name for path in (workdir / method).iterdir()}
        expected = {f"predictions_{published}.parquet", f"metrics_{stem}_5fold.json", f"ci_summary_{stem}_5fold.json", "pred_vs_gt.png"}
        assert names == expected | {"pred_vs_gt_train.png", "metrics_per_perturbation.csv", "metrics_per_gene.csv", "summary.json", "folds"}
        ids, values = predictions(workdir, method, published)
        assert values.shape == (P, G)
        assert np.isfinite(values).all()
        per_row = rows_of(workdir / method / "metrics_per_perturbation.csv")
        assert [row["perturbation"] for row in per_row] == ids
        assert {"centered_pearson", "centered_rmse", "centered_mae", "centered_mse", "raw_mse", "l2_loss", "rmse", "mae", "mse"} < set(
            per_row[0]
        )
        summary = json.loads((workdir / method / "summary.json").read_text())
        assert (summary["P"], summary["G"], summary["simulated"]) == (P, G, True)
        mean = np.mean([float(row["centered_pearson"]) for row in per_row])
        assert summary["metrics"]["centered_pearson_mean"] == pytest.approx(mean)
        interval = json.loads((workdir / method / f"ci_summary_{stem}_5fold.json").read_text())
        assert interval["pearson_mean_ci_lower"] <= interval["pearson_mean"] <= interval["pearson_mean_ci_upper"]
    splits = pickle.loads((workdir / "cv_splits_5fold_42.pkl").read_bytes())
    assert splits["total_samples"] == P
    result = json.loads((workdir / "result.json").read_text())
    assert result["simulated"]
    assert result["attainable"]["centered_pearson"] > result["metrics"]["test"]["lel_nt/centered_pearson"]
    comparison = json.loads((workdir / "comparison.json").read_text())
    assert "SIMULATED" in comparison["title"]
    assert any(note.startswith("Sound") for note in comparison["notes"])
    assert [row["method"] for row in rows_of(workdir / "comparison.csv")] == ["mean", "lel_nt", "lel_pca"]
    assert "SIMULATED" in (workdir / "comparison.md").read_text()
    assert "SIMULATED" in (workdir / "report" / "index.html").read_text()
    assert len(list((workdir / "report").glob("*.png"))) == 3
    again = run_here(command("", workdir, **sizes))
    assert again.code == 0
    assert "finished already" in again.err


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stopped_run_goes_on_with_the_folds_that_are_left(run_here, data, tmp_path, monkeypatch, stop, code):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_here(command(data, whole, "lel_nt")).code == 0
    computed = []

    def dying(self, data, folds, *, seed, faithful):
        for result in original(self, data, folds, seed=seed, faithful=faithful):
            if len(computed) == 2:
                os.kill(os.getpid(), stop)
                time.sleep(1)  # the main thread hears it; this one ends with its fold
            computed.append(result.fold.index)
            yield result

    original = lel.NTLinear.__call__
    monkeypatch.setattr(lel.NTLinear, "__call__", dying)
    stopped = run_here(command(data, cut, "lel_nt"))
    assert (stopped.code, "the same command continues" in stopped.err) == (code, code == 0)
    assert not (cut / "result.json").exists()
    assert len(list((cut / "lel_nt" / "folds").iterdir())) == 3
    monkeypatch.setattr(lel.NTLinear, "__call__", lambda self, data, folds, **options: count(original(self, data, folds, **options)))

    def count(results):
        for result in results:
            computed.append(result.fold.index)
            yield result

    ended = run_here(command(data, cut, "lel_nt"))
    assert ended.code == 0, ended.err
    assert "3 of 5 folds are finished already" in ended.err
    assert sorted(computed) == [0, 1, 2, 3, 4]
    for file in ("predictions_linear_nt_embed.parquet", "metrics_per_perturbation.csv"):
        assert (whole / "lel_nt" / file).read_bytes() == (cut / "lel_nt" / file).read_bytes()


def test_folds_of_other_data_or_settings_are_not_mixed(run_here, data, tmp_path):
    workdir, copy = tmp_path / "run", tmp_path / "copy"
    shutil.copytree(data, copy)
    assert run_here(command(copy, workdir, "lel_nt")).code == 0
    (workdir / "result.json").unlink()
    assert "perturbation.lel.ridge" in run_here(command(copy, workdir, "lel_nt", perturbation__lel__ridge=1)).error
    np.save(copy / "NTv2_50m_tf_embeddings.npy", np.load(copy / "NTv2_50m_tf_embeddings.npy") * 2)
    error = run_here(command(copy, workdir, "lel_nt")).error
    assert "other data" in error
    assert "fold_0.npz" in error


def test_methods_share_the_folds_of_the_file(run_here, data, tmp_path):
    """A file that lies beside the data is used and left alone; one that is named is written."""
    copy, named = tmp_path / "copy", tmp_path / "mine.pkl"
    shutil.copytree(data, copy)
    assert run_here(command(copy, tmp_path / "a", "lel_nt", perturbation__folds_file=named)).code == 0
    shutil.copy(named, copy / "cv_splits_5fold_7.pkl")  # drawn with seed 42
    ended = run_here(command(copy, tmp_path / "b", "lel_nt", seed=7))
    assert ended.code == 0
    assert str(copy / "cv_splits_5fold_7.pkl") in ended.err
    assert not (tmp_path / "b" / "cv_splits_5fold_7.pkl").exists()
    one, other = (predictions(tmp_path / run, "lel_nt", "linear_nt_embed")[1] for run in "ab")
    np.testing.assert_array_equal(one, other)


def test_learned_methods_run_beside_the_others_and_faithful_says_so(run_here, data, tmp_path):
    small = {"perturbation__mlp__hidden": "8,8,8", "perturbation__mlp__epochs": 3, "perturbation__xgboost__n_estimators": 2}
    ended = run_here(command(data, tmp_path / "run", "mlp_nt,xgboost,lel_nt", faithful="true", **small))
    assert ended.code == 0, ended.err
    assert "FAITHFUL" in (tmp_path / "run" / "comparison.md").read_text()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["methods"]) == ["mean", "lel_nt", "mlp_nt", "xgboost"]
    assert result["faithful"]
    assert all(np.isfinite(values["rmse"]) for values in result["methods"].values())


class Echo:
    """Predicts of a row what its data say of it, so that a wrong order shows."""

    def __call__(self, data: PerturbationData, folds, *, seed, faithful):
        self.names = list(data.names)
        for fold in folds:
            rows = crossval_folds.training_rows(fold)
            yield crossval_folds.FoldResult(fold, data.targets[fold.test], data.targets[rows])


@pytest.mark.parametrize("faithful", [True, False])
def test_published_row_order_is_undone(data, tmp_path, faithful, monkeypatch):
    from jaxgen.config import load_config

    config = load_config("configs/tf_perturbation.py", [("data.path", str(data)), ("perturbation.files.targets", f"targets_{P}.csv")])
    tables = crossval.load_tables(config, ["mlp_nt"])
    tables.gene_ids.reverse()  # so that sorting by id turns the rows round
    folds = [crossval.with_validation(i, a, b, 1) for i, (a, b) in enumerate(crossval.perturbation_splits.kfold(P))]
    method = Echo()
    outcome = crossval_folds.run_methods({"mlp_nt": method}, tables, folds, crossval.epath.Path(tmp_path), seed=1, faithful=faithful)[
        "mlp_nt"
    ]
    assert method.names == (tables.ids[::-1] if faithful else tables.ids)
    np.testing.assert_array_equal(outcome.predictions, tables.targets)
    np.testing.assert_array_equal(outcome.fitted, tables.targets)


def test_validation_is_a_fifth_of_the_training_rows():
    train = np.arange(0, 40, 2)
    one, again, other = (crossval.with_validation(i, train, np.array([1]), 42) for i in (0, 0, 1))
    assert (len(one.train), len(one.valid)) == (16, 4)
    np.testing.assert_array_equal(np.union1d(one.train, one.valid), train)
    np.testing.assert_array_equal(one.valid, again.valid)
    assert not np.array_equal(one.valid, other.valid)
    assert len(crossval.with_validation(0, np.array([3, 4]), np.array([1]), 42).valid) == 1


def test_an_error_of_one_lane_ends_the_other(run_here, data, tmp_path, monkeypatch):
    def broken(self, data, folds, *, seed, faithful):
        raise crossval.InputError("no luck")
        yield

    monkeypatch.setattr(lel.PCALinear, "__call__", broken)
    ended = run_here(command(data, tmp_path / "run", "lel_pca,mlp_nt", perturbation__mlp__hidden="8,8,8", perturbation__mlp__epochs=1))
    assert ended.code == 2
    assert ended.error == "error: no luck"


def test_every_method_of_the_table_can_be_made():
    from jaxgen.config import load_config

    config = load_config("configs/tf_perturbation.py")
    for name, entry in crossval_methods.METHODS.items():
        if entry.options:
            assert callable(crossval_methods.make(name, config))
    assert crossval_methods.make("lel_nt", load_config("configs/common.py", [("perturbation.lel.ridge", "2")])).ridge == 2.0


@pytest.mark.parametrize(
    ("methods", "fields", "words"),
    [
        ("lel", {}, ["no method 'lel'", "lel_nt"]),
        (LINEAR, {"perturbation__methods": "mpl_nt"}, ["perturbation.methods", "'mlp_nt'"]),
        (LINEAR, {"perturbation__folds": 1}, ["perturbation.folds=1"]),
        (LINEAR, {"perturbation__folds": 21}, ["perturbation.folds=21"]),
        (LINEAR, {"perturbation__lel__ridge": 0}, ["ridge=0"]),
        (LINEAR, {"perturbation__bootstrap": 0}, ["perturbation.bootstrap=0"]),
        (LINEAR, {"perturbation__top_genes": -1}, ["perturbation.top_genes=-1"]),
        (LINEAR, {"data__path": "/nowhere"}, ["/nowhere"]),
        (LINEAR, {"data__path": "", "perturbation__simulated__genes": 3}, ["perturbation.simulated"]),
        ("nt_ia3", {"perturbation__ia3__model": "hyenadna_smoke"}, ["perturbation.ia3.model=hyenadna_smoke", "no classification head"]),
        (LINEAR, {"perturbation__files__nt_gene": "x.npy"}, ["x.npy", "files.nt_gene"]),
    ],
)
def test_wrong_settings_are_one_line(run_here, data, tmp_path, methods, fields, words):
    ended = run_here(command(data, tmp_path / "run", methods, **fields))
    assert ended.code == 2
    for word in words:
        assert word in ended.error
    assert not (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run").rglob("fold_*"))  # no method ran


@pytest.mark.parametrize("what", ["another size", "a command", "cut short"])
def test_folds_file_that_is_none(run_here, data, tmp_path, what):
    file = tmp_path / "folds.pkl"
    if what == "another size":
        file.write_bytes(crossval.perturbation_splits.to_pickle(crossval.perturbation_splits.kfold(P + 1), P + 1, 42))
    else:
        file.write_bytes(pickle.dumps(print) if what == "a command" else b"\x80\x04")
    ended = run_here(command(data, tmp_path / "run", perturbation__folds_file=file))
    assert ended.code == 2
    assert str(file) in ended.error
    assert {"another size": "not 20", "a command": "builtins.print", "cut short": "damaged"}[what] in ended.error
