"""Settings chosen on the validation split, on the tiny task of test_benchmark."""

import csv
import json

import pytest

from jaxgen.errors import InputError
from jaxgen.jobs import benchmark, sweep
from jaxgen.jobs.benchmark_runs import plan
from tests.jobs.test_benchmark import config, root  # noqa: F401

FIELDS = {
    "benchmark__models": "cnn_smoke,fixed=cnn_smoke",
    "benchmark__seeds": "1,2",
    "benchmark__settings": "*@*:train.epochs=2,*@*:train.batch_size=16,*@*:train.report=false,*@*:train.select=loss",
    "benchmark__sweep": "cnn_smoke@gue/*:train.learning_rate=1e-7|3e-3",
    "benchmark__kmer": "false",
    "benchmark__leaks": "false",
}


def test_validation_chooses_and_the_runs_that_count_use_it(root, tmp_path, capsys):  # noqa: F811
    assert benchmark.run(config(root, tmp_path, **FIELDS)) == 0
    chosen = json.loads((tmp_path / "sweep/gue/tf_0/cnn_smoke/chosen.json").read_text())
    assert chosen["metric"] == "loss"
    assert chosen["grid"] == [["train.learning_rate=1e-7"], ["train.learning_rate=3e-3"]]
    best = chosen["valid"].index(min(chosen["valid"]))
    assert chosen["chosen"] == chosen["grid"][best] == ["train.learning_rate=3e-3"]
    for label, rate in (("cnn_smoke", 3e-3), ("fixed", 1e-3)):
        for seed in (1, 2):
            stored = json.loads((tmp_path / f"runs/gue/tf_0/{label}_{seed}/config.json").read_text())
            assert stored["train"]["learning_rate"] == pytest.approx(rate if label == "cnn_smoke" else stored["train"]["learning_rate"])
    trials = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [(row["settings"], row["chosen"]) for row in trials] == [
        ("train.learning_rate=1e-7", "False"),
        ("train.learning_rate=3e-3", "True"),
    ]
    assert len(list(csv.DictReader((tmp_path / "runs.csv").open()))) == 4  # without trials

    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/result.json")}
    capsys.readouterr()
    assert benchmark.run(config(root, tmp_path, **FIELDS)) == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/result.json")}


def test_test_scores_do_not_choose(root, tmp_path):  # noqa: F811
    fields = FIELDS | {"benchmark__models": "cnn_smoke", "benchmark__seeds": "1"}
    assert benchmark.run(config(root, tmp_path, **fields)) == 0
    file = tmp_path / "sweep/gue/tf_0/cnn_smoke/chosen.json"
    before = json.loads(file.read_text())
    for result in (tmp_path / "sweep").rglob("result.json"):
        content = json.loads(result.read_text())
        content["metrics"]["test"] = {name: -value if value is not None else None for name, value in content["metrics"]["test"].items()}
        result.write_text(json.dumps(content))
    file.unlink()
    assert benchmark.run(config(root, tmp_path, **fields)) == 0
    assert json.loads(file.read_text()) == before


def test_trials_of_the_cnn_that_stands_beside_the_models(root, tmp_path):  # noqa: F811
    """It is no part of the trials of another model, and may have its own."""
    fields = FIELDS | {"benchmark__models": "mamba_smoke", "benchmark__sweep": "*@*:train.learning_rate=1e-7|3e-3"}
    c = config(root, tmp_path, **fields)
    assert {cell.label for cell in plan(c)} == {"mamba_smoke", "cnn"}
    for label in ("mamba_smoke", "cnn"):
        trials = sweep._trials(c, (label, "gue/tf_0"))
        assert [[(cell.label, cell.seed) for cell in trial.cells] for trial in trials] == [[(label, 1)], [(label, 1)]]
        sweep._folder(c, (label, "gue/tf_0")).mkdir(parents=True)
        record = {"model": label, "task": "gue/tf_0", "grid": sweep._grid(c, (label, "gue/tf_0")), "chosen": ["train.learning_rate=3e-3"]}
        (sweep._folder(c, (label, "gue/tf_0")) / "chosen.json").write_text(json.dumps(record))
    pairs = [("mamba_smoke", "gue/tf_0"), ("cnn", "gue/tf_0")]
    assert list(sweep.chosen_settings(c, pairs)) == pairs


def test_a_single_value_needs_no_trials_and_a_later_entry_replaces_an_earlier(root, tmp_path):  # noqa: F811
    c = config(root, tmp_path, **FIELDS | {"benchmark__sweep": "*@*:train.learning_rate=7e-3,fixed@*:train.learning_rate=1e-3|2e-3"})
    assert sweep._grid(c, ("fixed", "gue/tf_0")) == [["train.learning_rate=1e-3"], ["train.learning_rate=2e-3"]]
    assert sweep.chosen_settings(c, [(label, "gue/tf_0") for label in ("cnn_smoke", "fixed")]) == {
        ("cnn_smoke", "gue/tf_0"): ("train.learning_rate=7e-3",)
    }


def test_a_pair_whose_trials_all_fail_is_named_and_the_others_go_on(root, tmp_path):  # noqa: F811
    settings = FIELDS["benchmark__settings"].replace("*@*:train.batch_size=16", "*@*:train.batch_size=16,fixed@*:train.batch_size=500")
    fields = FIELDS | {"benchmark__settings": settings, "benchmark__sweep": "*@*:train.learning_rate=1e-3|3e-3", "benchmark__seeds": "1"}
    assert benchmark.run(config(root, tmp_path, **fields)) == 1
    assert "nothing to choose by" in json.loads((tmp_path / "result.json").read_text())["failed"]["fixed on gue/tf_0"]
    assert [row["model"] for row in csv.DictReader((tmp_path / "table.csv").open())] == ["cnn_smoke"]
    # A longer list for one share is no matter of the finished runs of another, whose choice it drops.
    grown = fields | {"benchmark__sweep": "*@*:train.learning_rate=1e-3|3e-3|5e-3"}
    assert benchmark.run(config(root, tmp_path, **grown, benchmark__share="2/2")) == 1
    assert benchmark.run(config(root, tmp_path, **grown, benchmark__dry_run="true")) == 0


def test_a_sweep_that_does_not_parse_is_refused(root, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=r"benchmark\.sweep: 'cnn:lr' is not MODELS@TASKS:field=value"):
        benchmark.run(config(root, tmp_path, **FIELDS | {"benchmark__sweep": "cnn:lr"}))
