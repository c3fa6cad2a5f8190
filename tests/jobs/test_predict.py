"""Predictions of a fine-tuned run through the command, against the run's own on its test split."""

import gzip
import json
import shutil
from pathlib import Path

import helpers
import numpy as np
import pytest


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return helpers.write_table(tmp_path_factory.mktemp("table"), {"train": 48, "dev": 16, "test": 23})


@pytest.fixture(scope="module")
def tuned(table, tmp_path_factory):
    """The workdir of a finished two-step run, made once for this module."""
    arguments = {
        "cnn": lambda: helpers.cnn(table, train__steps=2),
        "both strands": lambda: helpers.hyenadna(table, train__steps=2, data__conjoin_eval="true"),
        "adapter and own head": lambda: helpers.finetune(
            "nt_v2_smoke", table, train__steps=2, model__config__n_layer=1, model__adapter="ia3"
        ),
        "regression": lambda: helpers.hyenadna(table, train__steps=2, data__kind="regression", model__masked="false"),
    }
    made: dict[str, Path] = {}

    def workdir(kind: str, run_here) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("tuned") / "run"
            ended = run_here([*arguments[kind](), f"--workdir={made[kind]}"])
            assert ended.code == 0, ended.err
        return made[kind]

    return workdir


def predict(init_from: object, data: object, workdir: Path, **fields) -> list[str]:
    return ["--config=configs/predict.py", f"--workdir={workdir}", *helpers.flags(init_from=init_from, data__path=data, **fields)]


def read(workdir: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(columns, ids, numbers)."""
    header, *lines = [line.split("\t") for line in (workdir / "predictions.tsv").read_text().splitlines()]
    return header, [line[0] for line in lines], np.array([line[1:] for line in lines], float)


def probabilities(logits: np.ndarray) -> np.ndarray:
    likely = np.exp(logits - logits.max(1, keepdims=True))
    return likely / likely.sum(1, keepdims=True)


@pytest.mark.parametrize(("kind", "devices"), [("cnn", 1), ("both strands", 8), ("adapter and own head", 1), ("regression", 1)])
def test_predictions_are_those_of_the_run(tuned, table, tmp_path, run_here, kind, devices):
    run = tuned(kind, run_here)
    ended = run_here(predict(run, table / "test.csv", tmp_path / "run", embed__batch_tokens=512), devices)
    assert ended.code == 0, ended.err
    header, ids, values = read(tmp_path / "run")
    expected = np.load(run / "predictions.npz")["test_predictions"].astype(np.float64)
    assert ids == [str(i) for i in range(1, len(expected) + 1)]
    if kind == "regression":
        assert header == ["id", "value_0"]
        np.testing.assert_allclose(values, expected, atol=1e-5)
    else:
        assert header == ["id", "p_0", "p_1", "class"]
        np.testing.assert_allclose(values[:, :2], probabilities(expected), atol=1e-5)
        assert (values[:, 2] == expected.argmax(1)).all()
    own, found = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, tmp_path / "run"))
    assert found["all"] == pytest.approx({name: x for name, x in own["test"].items() if name != "loss"}, abs=1e-5)
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def named(tuned, tmp_path, run_here) -> Path:
    """A run whose task named its classes."""
    run = Path(shutil.copytree(tuned("cnn", run_here), tmp_path / "named"))
    result = json.loads((run / "result.json").read_text())
    assert result["classes"] == ["0", "1"]
    (run / "result.json").write_text(json.dumps(result | {"classes": ["enhancer", "promoter"]}))
    return run


def test_classes_with_names(named, table, tmp_path, run_here):
    assert run_here(predict(named, table / "test.csv", tmp_path / "run")).code == 0
    header, *lines = [line.split("\t") for line in (tmp_path / "run" / "predictions.tsv").read_text().splitlines()]
    assert header == ["id", "p_enhancer", "p_promoter", "class"]
    assert all(line[3] == ("enhancer" if float(line[1]) > float(line[2]) else "promoter") for line in lines)


def test_labels_are_numbers_or_names_of_the_classes(named, table, tmp_path, run_here):
    header, *rows = (table / "test.csv").read_text().splitlines()
    texts = [row.split(",") for row in rows]
    found = []
    for name, label in {"numbers": str, "names": lambda i: ("enhancer", "promoter")[int(i)]}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *(f"{text},{label(i)}" for text, i in texts)]))
        ended = run_here(predict(named, tmp_path / f"{name}.csv", tmp_path / name))
        assert ended.code == 0, ended.err
        found.append(json.loads((tmp_path / name / "result.json").read_text())["metrics"]["all"])
    assert found[0] == found[1]
    (tmp_path / "x.csv").write_text(f"{header}\n{texts[0][0]},promoter\n{texts[1][0]},silencer\n")
    ended = run_here(predict(named, tmp_path / "x.csv", tmp_path / "x"))
    assert ended.code == 2
    assert "x.csv:3: unexpected class 'silencer'" in ended.error
    assert "has enhancer, promoter" in ended.error
    assert not (tmp_path / "x").exists()


def test_without_labels_and_from_a_fasta(tuned, table, tmp_path, run_here):
    """Ids from a column or from the records; no metrics; long sequences are cut and counted; a killed run goes on."""
    run = tuned("both strands", run_here)
    texts = [line.split(",")[0] for line in (table / "test.csv").read_text().splitlines()[1:]]
    texts[1] *= 3
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress("\n".join(["name\tsequence", *(f"s{i}\t{x}" for i, x in enumerate(texts))]).encode()))
    (tmp_path / "x.fa").write_text("".join(f">s{i}\n{x}\n" for i, x in enumerate(texts)))
    found = []
    for name, fields in {"x.tsv.gz": {"embed__id_column": "name"}, "x.fa": {}}.items():
        ended = run_here(predict(run, tmp_path / name, tmp_path / f"{name}.out", **fields))
        assert ended.code == 0, ended.err
        assert "1 sequences are longer" in ended.err
        found.append((tmp_path / f"{name}.out" / "predictions.tsv").read_text())
        assert json.loads((tmp_path / f"{name}.out" / "result.json").read_text())["metrics"] == {}
    assert found[0] == found[1]
    assert found[0].splitlines()[1].startswith("s0\t")
    assert "finished already" in run_here(predict(run, tmp_path / "x.fa", tmp_path / "x.fa.out")).err


def test_a_killed_run_goes_on(tuned, table, tmp_path, run_here, monkeypatch):
    from jaxgen.jobs import inference

    run, arguments = tuned("both strands", run_here), {"embed__batch_tokens": 96}
    assert run_here(predict(run, table / "test.csv", tmp_path / "whole", **arguments)).code == 0
    with monkeypatch.context() as patch:
        finish, shards = inference.RowWriter.finish_shard, []

        def once(self):
            if shards.count(self.shard) or len(shards) > 2:
                raise KeyboardInterrupt
            finish(self)
            shards.append(self.shard)

        patch.setattr(inference.RowWriter, "finish_shard", once)
        assert run_here(predict(run, table / "test.csv", tmp_path / "run", **arguments)).code == 130
    ended = run_here(predict(run, table / "test.csv", tmp_path / "run", **arguments))
    assert "resumed: " in ended.err
    assert (tmp_path / "run" / "predictions.tsv").read_bytes() == (tmp_path / "whole" / "predictions.tsv").read_bytes()


def test_wrong_input_is_one_line_and_leaves_nothing(tuned, table, tmp_path, run_here):
    run = tuned("cnn", run_here)
    (tmp_path / "x.csv").write_text(f"sequence,label\n{'ACGT' * 20},0\n{'ACGT' * 20},2\n")
    for init_from, data, said in (
        ("", table / "test.csv", "init_from is empty"),
        (helpers.ROOT / "tests/goldens/hyenadna/hf_wide_filter", table / "test.csv", "not the workdir of a finished finetune run"),
        (run, tmp_path / "x.csv", "x.csv:3: column 'label': label 2"),
        (run, "", "data.path is empty"),
    ):
        ended = run_here(predict(init_from, data, tmp_path / "out"))
        assert ended.code == 2, ended.err
        assert said in ended.error
        assert not (tmp_path / "out").exists()
