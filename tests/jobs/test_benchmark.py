"""The benchmark job on a tiny task in the layout of GUE: the sequences are simulated."""

import csv
import json
import operator
import re
from pathlib import Path

import numpy as np
import pytest

from jaxgen.config import load_config
from jaxgen.data.tasks.published import published
from jaxgen.data.tasks.suites import SUITES
from jaxgen.errors import InputError
from jaxgen.jobs import benchmark
from jaxgen.jobs.benchmark_runs import plan
from jaxgen.train.benchmark_report import Score, TaskFacts, average_ranks, latex, paired_tests, summarise

TASKS = ("gue/tf_0",)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("suites")
    rng = np.random.default_rng(0)
    for task in TASKS:
        folder = root / task
        folder.mkdir(parents=True)
        for split, n in (("train", 48), ("dev", 16), ("test", 20)):
            rows = ["".join(rng.choice(list("ACGT"), 64)) for _ in range(n)]
            if split == "train":
                known = rows
            elif split == "test":
                rows[:2] = known[:2]
            labels = [i % 2 for i in range(n)]
            rows = [row[:10] + ("TATAAA" if label else "GCGCGC") + row[16:] for row, label in zip(rows, labels)]
            (folder / f"{split}.csv").write_text("sequence,label\n" + "".join(f"{s},{label}\n" for s, label in zip(rows, labels)))
    return root


def config(root: Path, workdir: Path, **fields: str):
    overrides = {
        "data.path": str(root),
        "workdir": str(workdir),
        "benchmark.tasks": ",".join(TASKS),
        "benchmark.models": "cnn_smoke,twin=cnn_smoke",
        "benchmark.seeds": "1",
        "benchmark.settings": "*@*:train.epochs=1,*@*:train.batch_size=16,*@*:train.report=false,twin@gue/tf_*:train.epochs=2",
        "compile_cache": "",
    }
    return load_config("configs/benchmark.py", list((overrides | {k.replace("__", "."): v for k, v in fields.items()}).items()))


def test_one_command_gives_the_table_and_goes_on_with_more_seeds(root, tmp_path, capsys):
    workdir = tmp_path / "bench"
    assert benchmark.run(config(root, workdir)) == 0
    table = list(csv.DictReader((workdir / "table.csv").open()))
    assert [(row["task"], row["model"], row["n"]) for row in table] == [(t, m, "1") for t in TASKS for m in ("cnn_smoke", "twin")]
    assert {row["metric"] for row in table} == {"mcc"}
    assert float(table[0]["published"]) == published("gue/tf_0", "cnn", "mcc")[0].value
    assert float(table[0]["difference"]) == pytest.approx(float(table[0]["mean"]) - float(table[0]["published"]))
    steps = {m: json.loads((workdir / f"runs/gue/tf_0/{m}_1/result.json").read_text())["steps"] for m in ("cnn_smoke", "twin")}
    assert steps == {"cnn_smoke": 3, "twin": 6}
    leaks = list(csv.DictReader((workdir / "leaks.csv").open()))
    assert [int(row["exact"]) for row in leaks] == [2]
    assert (float(table[0]["majority"]), float(table[0]["cnn"])) == (0, float(table[0]["mean"]))
    page = (workdir / "table.md").read_text()
    assert "20 test rows are in train or dev, or nearly" in page
    assert "gue/tf_0: 48 train rows, 32,378 in the published files" in page
    assert page in capsys.readouterr().out

    before = (workdir / "runs/gue/tf_0/twin_1/result.json").stat().st_mtime_ns
    assert benchmark.run(config(root, workdir, benchmark__seeds="1,2", benchmark__share="1/2")) == 0
    assert len(list(csv.DictReader((workdir / "runs.csv").open()))) == 3
    assert benchmark.run(config(root, workdir, benchmark__seeds="1,2", benchmark__share="2/2")) == 0
    table = list(csv.DictReader((workdir / "table.csv").open()))
    assert {row["n"] for row in table} == {"2"}
    assert (workdir / "runs/gue/tf_0/twin_1/result.json").stat().st_mtime_ns == before
    assert {row["first"] for row in csv.DictReader((workdir / "tests.csv").open())} == {"cnn_smoke"}
    assert all((workdir / name).stat().st_size for name in ("scores.png", "ranks.png", "table.tex", "benchmark.json"))
    result = json.loads((workdir / "result.json").read_text())
    assert result["failed"] == {}
    assert result["metrics"]["test"]["gue/tf_0/twin/mcc"] == result["table"]["gue/tf_0/twin"]["mcc"]
    assert json.loads((workdir / "config.json").read_text())["job"] == "benchmark"

    # What was computed with other parameters is computed again; a finished run of other settings is refused, not averaged.
    tasks = workdir / "tasks/gue/tf_0"
    baselines = (tasks / "baselines.json").read_text()
    fields = {"benchmark__leak_k": "2", "benchmark__leak_jaccard": "0.01", "baseline__max_k": "2"}
    assert benchmark.run(config(root, workdir, benchmark__seeds="1,2", **fields)) == 0
    assert json.loads((tasks / "leaks.json").read_text())["near_rows"] == list(range(20))
    assert (tasks / "baselines.json").read_text() != baselines
    before = (workdir / "table.csv").read_text()
    settings = "*@*:train.epochs=1,*@*:train.batch_size=16,*@*:train.report=false,twin@gue/tf_*:train.epochs=3"
    for dry_run in ("true", "false"):
        with pytest.raises(InputError, match=r"runs/gue/tf_0/twin_1: this run has config\.train\.epochs=2, not 3"):
            benchmark.run(config(root, workdir, benchmark__seeds="1,2,3", benchmark__settings=settings, benchmark__dry_run=dry_run))
    assert (workdir / "table.csv").read_text() == before
    assert not (workdir / "runs/gue/tf_0/cnn_smoke_3").exists()


def test_a_failing_run_is_named_and_the_others_go_on(root, tmp_path, capfd):
    settings = "*@*:train.epochs=1,*@*:train.batch_size=16,*@*:train.report=false,twin@gue/tf_0:train.batch_size=500"
    fields = {"benchmark__settings": settings, "benchmark__tasks": "gue/tf_0", "benchmark__leaks": "false", "benchmark__kmer": "false"}
    assert benchmark.run(config(root, tmp_path, **fields)) == 1
    failed = json.loads((tmp_path / "result.json").read_text())["failed"]
    assert list(failed) == ["twin on gue/tf_0, seed 1"]
    assert "500" in failed["twin on gue/tf_0, seed 1"]
    assert [row["model"] for row in csv.DictReader((tmp_path / "table.csv").open())] == ["cnn_smoke"]
    assert "FAILED twin" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"benchmark__models": ""}, "benchmark.models is empty"),
        ({"benchmark__models": "cnn_smok"}, "did you mean 'smoke'"),
        ({"benchmark__models": "cnn_smoke,cnn_smoke"}, "one label"),
        ({"benchmark__tasks": "gue/tf_0,gue/tf_0=/nowhere"}, "benchmark.tasks: two entries have one label"),
        ({"benchmark__tasks": "mine=/nowhere"}, "cnn_smoke on mine: /nowhere: no such file or folder"),
        ({"benchmark__tasks": "../mine=/nowhere"}, "benchmark.tasks: '../mine=/nowhere' is not NAME=PATH"),
        ({"benchmark__tasks": "mine="}, "benchmark.tasks: 'mine=' is not NAME=PATH"),
        (
            {"benchmark__overrides": "*@mine:train.epochs=1"},
            "'*@mine:train.epochs=1' is for no run; models are cnn_smoke, twin, tasks gue/tf_0",
        ),
        ({"benchmark__seeds": "1,2,1"}, "benchmark.seeds=1, 2, 1: every seed counts once"),
        ({"data__sequence_column": "dna", "benchmark__tasks": "mine={root}/gue/tf_0"}, "train.csv:1: no column 'dna'"),
        ({"benchmark__overrides": "train.epochs=1"}, "benchmark.overrides: 'train.epochs=1' is not MODELS@"),
        ({"benchmark__settings": "train.epochs=1"}, "MODELS@TASKS:field=value"),
        ({"benchmark__settings": "*@*:train.epoch=1"}, "train.epoch"),
        ({"benchmark__tasks": "gue/tf_9"}, "unknown task gue/tf_9; did you mean 'tf_4'?"),
        ({"benchmark__tasks": "geu/tf_0"}, "unknown task 'geu/tf_0'; did you mean 'gue'?"),
        ({"benchmark__tasks": "eqtl"}, "probed, not fine-tuned on; see configs/probe_variants.py"),
        ({"benchmark__tasks": "gue/tf_1"}, "no files of gue/tf_1"),
        ({"data__path": "/nowhere"}, "cnn_smoke on gue/tf_0: /nowhere: no such folder"),
        ({"data__path": "/nowhere", "benchmark__dry_run": "true"}, "/nowhere: no such folder"),
        ({"benchmark__settings": "twin@*:model.name=cnm"}, "model.name='cnm': no such model"),
        ({"benchmark__settings": "twin@*:head.kind=pooled"}, "cnn ends in its own classifier"),
        ({"benchmark__settings": "*@*:train.steps=3"}, "set one of train.steps and train.epochs"),
        ({"benchmark__share": "3/2"}, "expected auto, or i/n"),
        ({"benchmark__models": "cnn=mamba_smoke"}, "benchmark.models: cnn is the CNN beside all models"),
        ({"benchmark__settings": "*@*:model.adapter=lorra"}, "model.adapter='lorra'; did you mean 'lora'?"),
        ({"init_from": "/nowhere", "benchmark__dry_run": "true"}, "/nowhere: no such folder"),
    ],
)
def test_mistakes_are_found_before_anything_runs(root, tmp_path, fields, message):
    with pytest.raises(InputError, match=re.escape(message)):
        benchmark.run(config(root, tmp_path / "w", **{name: value.replace("{root}", str(root)) for name, value in fields.items()}))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("variant", "model", "task", "expected"),
    [
        ("gue", "dnabert2_117m", "prom_core_all", {"epochs": 4, "batch_size": 8, "learning_rate": 3e-5, "data.max_length": 20}),
        ("gue", "dnabert2_117m", "prom_core_tata", {"epochs": 10, "eval_every": 200, "schedule.warmup_steps": 50}),
        ("gue", "dnabert2_117m", "mouse_2", {"epochs": 0, "steps": 1000, "schedule.warmup_steps": 30, "data.max_length": 30}),
        ("gue", "dnabert2_117m", "virus_covid", {"epochs": 8, "batch_size": 32, "data.max_length": 256}),
        ("gue", "dnabert_6mer", "virus_covid", {"epochs": 9, "batch_size": 32, "data.max_length": 512}),
        ("gue", "nt_v1_500m_human_ref", "tf_0", {"epochs": 3, "model.adapter": "lora", "model.adapter_rank": 8, "model.adapter_alpha": 16}),
        ("gue", "nt_v2_500m", "mouse_0", {"epochs": 6, "steps": 0, "batch_size": 32, "model.adapter": "full", "learning_rate": 1e-4}),
        ("gue", "gpt_neo_125m", "mouse_0", {"epochs": 4, "steps": 0, "batch_size": 8, "learning_rate": 3e-5}),
        ("gue", "mamba_smoke", "tf_0", {"epochs": 10, "batch_size": 128, "learning_rate": 1e-3, "data.rc_aug": True}),
        ("gue,study", "mamba_smoke", "tf_0", {"epochs": 10, "batch_size": 128, "learning_rate": 2e-4, "data.rc_aug": True}),
        ("gue,study", "mamba_bpe=mamba_smoke", "tf_0", {"learning_rate": 1e-4}),
        ("genomic_benchmarks", "dnabert2_117m", "human_or_worm", {"epochs": 4, "batch_size": 32, "eval_every": 400, "select": "loss"}),
        ("genomic_benchmarks", "gpt_neo_125m", "human_or_worm", {"epochs": 4, "batch_size": 8, "learning_rate": 1e-4}),
        ("genomic_benchmarks,study", "gpt_neo_125m", "human_or_worm", {"learning_rate": 3e-5}),
        ("nt_revised", "nt_v2_500m", "H3K9ac", {"epochs": 3, "batch_size": 8, "learning_rate": 3e-5, "model.adapter": "lora"}),
        ("nt_revised", "dnabert2_117m", "H3K9ac", {"epochs": 10, "batch_size": 8, "data.max_length": 0}),
        ("nt_revised", "dnabert_6mer", "splice_sites_donors", {"epochs": 3, "batch_size": 32, "data.max_length": 512}),
        ("nt_revised", "caduceus_ph_1k", "H3K9ac", {"epochs": 20, "learning_rate": 1e-3, "data.conjoin_eval": True}),
        ("nt,study", "caduceus_ps_1k", "H3K9ac", {"epochs": 20, "learning_rate": 1e-3, "data.conjoin_eval": False}),
        ("nt", "cnn", "H3K9ac", {"epochs": 20, "batch_size": 64, "learning_rate": 1e-3, "data.rc_aug": False}),
    ],
)
def test_published_settings_of_one_model_on_one_task(variant, model, task, expected, monkeypatch):
    """Values stated by the public scripts, see the comments of the config."""
    monkeypatch.setattr("jaxgen.jobs.finetune.check", lambda config: None)  # no data here
    suite, name = variant.split(",")[0], next(name for name in SUITES[variant.split(",")[0]].tasks if task in name)
    given = [("benchmark.models", model), ("benchmark.tasks", f"{suite}/{name}"), ("benchmark.seeds", "1"), ("workdir", "/nowhere")]
    given.append(("benchmark.cnn", "false"))
    (cell,) = plan(load_config(f"configs/benchmark.py:{variant}", given))
    found = {
        field: operator.attrgetter(field if "." in field.replace("schedule.", "") else f"train.{field}")(cell.config) for field in expected
    }
    assert found == expected


@pytest.mark.parametrize(
    ("models", "labels"),
    [("mamba_smoke", ["mamba_smoke", "cnn"]), ("mamba_smoke,small=cnn_smoke", ["mamba_smoke", "small"]), ("cnn", ["cnn"])],
)
def test_a_cnn_stands_beside_every_model(root, tmp_path, models, labels):
    cells = plan(config(root, tmp_path / "bench", benchmark__models=models, benchmark__tasks="gue/tf_0"))
    assert [cell.label for cell in cells] == labels


def test_tasks_with_data_of_their_own_and_further_settings(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "gue").mkdir(parents=True)
    (elsewhere / "gue" / "tf_1").symlink_to((root / "gue" / "tf_0").resolve())
    fields = {
        "benchmark__models": "cnn_smoke",
        "benchmark__tasks": f"gue/tf_0,gue/tf_1={elsewhere},mine={root / 'gue/tf_0'}",
        "benchmark__overrides": "*@mine:train.epochs=3,*@*:train.select=accuracy",
        "benchmark__kmer": "false",
    }
    cells = plan(config(root, tmp_path / "bench", **fields))
    assert [(cell.task, cell.config.data.task, cell.config.data.path) for cell in cells] == [
        ("gue/tf_0", "gue/tf_0", str(root)),
        ("gue/tf_1", "gue/tf_1", str(elsewhere)),
        ("mine", "table", str(root / "gue/tf_0")),
    ]
    assert [(cell.config.train.epochs, cell.config.train.select) for cell in cells] == [(1, "accuracy"), (1, "accuracy"), (3, "accuracy")]
    only = config(root, tmp_path / "bench", **(fields | {"benchmark__tasks": f"mine={root / 'gue/tf_0'}"}))
    assert benchmark.run(only) == 0
    (row,) = csv.DictReader((tmp_path / "bench" / "table.csv").open())
    assert (row["task"], row["model"]) == ("mine", "cnn_smoke")


def test_own_tables_without_a_test_split_share_one(root, tmp_path):
    """Every seed is scored on the same rows, whose leaks and baselines stand beside it; values as well as classes."""
    rng, rows = np.random.default_rng(1), []
    for _ in range(60):
        text = "".join(rng.choice(list("ACGT"), 64))
        rows.append((text, text.count("G") / 64))
    table = tmp_path / "own.tsv"
    table.write_text("seq\tvalue\n" + "".join(f"{text}\t{value:.4f}\n" for text, value in [*rows, *rows[:5]]))
    own = "*@own:data.kind=regression,*@own:data.sequence_column=seq,*@own:data.label_column=value"
    fields = {"benchmark__models": "cnn_smoke", "benchmark__tasks": f"own={table}", "benchmark__seeds": "1,2", "benchmark__overrides": own}
    workdir = tmp_path / "bench"
    assert benchmark.run(config(root, workdir, **fields)) == 0
    targets = [np.load(workdir / f"runs/own/cnn_smoke_{seed}/predictions.npz")["test_targets"] for seed in (1, 2)]
    np.testing.assert_array_equal(*targets)
    (row,) = csv.DictReader((workdir / "table.csv").open())
    assert (row["metric"], row["n"], row["majority"]) == ("pearson", "2", "")
    assert float(row["kmer"]) > 0.3


def test_a_slurm_array_takes_shares(monkeypatch):
    cells = list(range(7))
    assert benchmark.share(cells, "auto") == cells
    for index in (4, 5, 6):
        for name, value in (("ID", index), ("MIN", 4), ("COUNT", 3)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert benchmark.share(cells, "auto") == cells[index - 4 :: 3]
    for index, first in ((1, 0), (5, 1), (9, 2)):  # --array=1-9:4
        for name, value in (("ID", index), ("MIN", 1), ("STEP", 4), ("COUNT", 3)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert benchmark.share(cells, "auto") == cells[first::3]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "20")
    with pytest.raises(InputError, match="number them evenly, as --array=1-3"):
        benchmark.share(cells, "auto")


def test_runs_that_another_share_finishes_while_baselines_are_fitted_are_in_the_table(root, tmp_path, monkeypatch):
    workdir = tmp_path / "shared"
    fields = {"benchmark__leaks": "false", "benchmark__kmer": "true"}
    fitted = benchmark.kmer_predictions

    def meanwhile(*args):
        monkeypatch.setattr(benchmark, "kmer_predictions", fitted)
        assert benchmark.run(config(root, workdir, benchmark__share="2/2", **fields)) == 0
        return fitted(*args)

    monkeypatch.setattr(benchmark, "kmer_predictions", meanwhile)
    assert benchmark.run(config(root, workdir, benchmark__share="1/2", **fields)) == 0
    assert [row["model"] for row in csv.DictReader((workdir / "table.csv").open())] == ["cnn_smoke", "twin"]


def test_failures_of_another_share_stay_until_they_are_mended(root, tmp_path):
    fields = {"benchmark__leaks": "false", "benchmark__kmer": "false"}
    settings = "*@*:train.epochs=1,*@*:train.batch_size=16,*@*:train.report=false,twin@*:train.epochs=2"
    broken = fields | {"benchmark__settings": f"{settings},twin@*:train.batch_size=500"}
    assert benchmark.run(config(root, tmp_path, benchmark__share="2/2", **broken)) == 1
    assert not (tmp_path / "result.json").exists()  # nothing finished, no table
    assert benchmark.run(config(root, tmp_path, **broken)) == 1
    assert benchmark.run(config(root, tmp_path, benchmark__share="1/2", **broken)) == 0
    assert list(json.loads((tmp_path / "result.json").read_text())["failed"]) == ["twin on gue/tf_0, seed 1"]
    assert benchmark.run(config(root, tmp_path, benchmark__settings=settings, **fields)) == 0
    assert json.loads((tmp_path / "result.json").read_text())["failed"] == {}


def test_a_baseline_without_a_score_leaves_its_cell_empty(root, tmp_path):
    """The Pearson correlation of one test row is NaN, which JSON keeps as null."""
    table = tmp_path / "own.tsv"
    rng = np.random.default_rng(3)
    rows = ["".join(rng.choice(list("ACGT"), 64)) for _ in range(12)]
    table.write_text("sequence\tlabel\n" + "".join(f"{row}\t{i / 7:.3f}\n" for i, row in enumerate(rows)))
    settings = "*@*:train.epochs=1,*@*:train.batch_size=8,*@*:train.report=false"
    fields = {"benchmark__models": "cnn_smoke", "benchmark__tasks": f"own={table}", "benchmark__overrides": "*@own:data.kind=regression"}
    workdir = tmp_path / "bench"
    for _ in range(2):  # the second reads what the first kept
        assert benchmark.run(config(root, workdir, benchmark__settings=settings, **fields)) == 0
        (row,) = csv.DictReader((workdir / "table.csv").open())
        assert (row["kmer"], row["mean"]) == ("", "")
    assert "majority class" not in (workdir / "table.md").read_text()


def test_the_cnn_beside_the_models_takes_neither_their_weights_nor_their_adapters(root, tmp_path):
    from jaxgen.jobs.benchmark_runs import plan

    fields = {"benchmark__models": "nt_v2_smoke", "model__adapter": "lora", "model__adapter_targets": "query"}
    models = {cell.label: cell.config.model for cell in plan(config(root, tmp_path, **fields))}
    adapters = {label: (model.adapter, model.adapter_targets) for label, model in models.items()}
    assert adapters == {"nt_v2_smoke": ("lora", ("query",)), "cnn": ("full", ())}


def test_dry_run_lists_what_would_start(root, tmp_path, capsys):
    assert benchmark.run(config(root, tmp_path / "w", benchmark__dry_run="true", benchmark__seeds="1,2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("to do\t") for line in lines)
    assert not (tmp_path / "w").exists()


def scores(values: dict[str, list[float]]) -> list[Score]:
    return [
        Score(model, "gue/tf_0", seed, {"mcc": v}, {"mcc": v}, 0, 1.0) for model, column in values.items() for seed, v in enumerate(column)
    ]


def test_statistics_of_the_table():
    facts = {"gue/tf_0": TaskFacts("mcc", "transcription factors")}
    found = scores({"a": [0.5, 0.6, 0.7], "b": [0.4, 0.5, 0.61], "c": [0.1, 0.9, 0.2]})
    lines = summarise(found, facts)
    assert lines[0].mean == pytest.approx(0.6)
    assert lines[0].std == pytest.approx(0.1)
    tests = paired_tests(found, facts)
    assert [(t["first"], t["second"], t["pairs"]) for t in tests] == [("a", "b", 3), ("a", "c", 3), ("b", "c", 3)]
    assert tests[0]["p"] < 0.01 < tests[1]["p"]
    assert tests[0]["p_holm"] == pytest.approx(3 * tests[0]["p"])
    assert all(t["p"] <= t["p_holm"] <= 1 for t in tests)
    ranks, _, tasks = average_ranks(lines)
    assert (ranks, tasks) == ({"a": 1.0, "b": 2.0, "c": 3.0}, 1)


def test_a_run_without_a_score_costs_its_model_alone():
    facts = {"gue/tf_0": TaskFacts("mcc", "transcription factors")}
    found = scores({"c": [0.1, np.nan, 0.2], "a": [0.5, 0.6, 0.7], "b": [0.4, 0.5, 0.61]})
    tests = {(t["first"], t["second"]): t for t in paired_tests(found, facts)}
    assert np.isnan([tests["c", "a"]["p_holm"], tests["c", "b"]["p"]]).all()
    assert tests["a", "b"]["p_holm"] == pytest.approx(3 * tests["a", "b"]["p"])
    lines = summarise(found, facts)
    assert average_ranks(lines)[0] == {"c": 3.0, "a": 1.0, "b": 2.0}
    assert r"\textbf{0.600" in latex(lines)
    assert r"\textbf{0.600 $\pm$ 0.100}" in latex(lines)
