"""Jobs that read a trained model, by two processes and by one."""

from pathlib import Path

import helpers
import numpy as np
import pytest

MAMBA = {f"model__config__{name}": value for name, value in {"d_model": 16, "n_layer": 1}.items()}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("sequences") / "table.csv"
    texts = [rng.choice(helpers.BASES, n).tobytes().decode() for n in rng.integers(10, 60, 23)]
    path.write_text("\n".join(["gene_id,sequence", *(f"g{i},{text}" for i, text in enumerate(texts))]) + "\n")
    return path


def test_two_processes_score_as_one_does(table, tmp_path):
    arguments = ["--config=configs/score.py:mamba_smoke", *helpers.flags(data__path=table, embed__batch_tokens=256, **MAMBA)]
    alone = helpers.run_job([*arguments, f"--workdir={tmp_path / 'one'}"])
    assert alone.code == 0, alone.err
    command = ["launch/local.py", "--processes=2", "--cpu", "--", *arguments, f"--workdir={tmp_path / 'two'}"]
    both = helpers.finish(helpers.start_python(command))
    assert both.code == 0, both.err
    tables = [[line.split("\t") for line in (tmp_path / name / "scores.tsv").read_text().splitlines()] for name in ("one", "two")]
    assert [row[0] for row in tables[0]] == [row[0] for row in tables[1]]
    one, two = (np.array([row[1:] for row in lines[1:]], float) for lines in tables)
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_two_processes_predict_as_one_does(table, tmp_path):
    folder = helpers.write_table(tmp_path / "table", {"train": 32, "dev": 16, "test": 16})
    tuned = helpers.run_job([*helpers.hyenadna(folder, train__steps=2), f"--workdir={tmp_path / 'tuned'}"])
    assert tuned.code == 0, tuned.err
    arguments = ["--config=configs/predict.py", *helpers.flags(init_from=tmp_path / "tuned", data__path=table, embed__batch_tokens=512)]
    alone = helpers.run_job([*arguments, f"--workdir={tmp_path / 'one'}"])
    assert alone.code == 0, alone.err
    command = ["launch/local.py", "--processes=2", "--cpu", "--", *arguments, f"--workdir={tmp_path / 'two'}"]
    both = helpers.finish(helpers.start_python(command))
    assert both.code == 0, both.err
    one, two = ([line.split("\t") for line in (tmp_path / name / "predictions.tsv").read_text().splitlines()] for name in ("one", "two"))
    assert [row[0] for row in two] == [row[0] for row in one]
    np.testing.assert_allclose(*(np.array([row[1:] for row in rows[1:]], float) for rows in (two, one)), atol=1e-5)


def test_generation_says_that_it_takes_one_process(table, tmp_path):
    arguments = ["--config=configs/generate.py:mamba_smoke", *helpers.flags(data__path=table, **MAMBA), f"--workdir={tmp_path / 'run'}"]
    ended = helpers.finish(helpers.start_python(["launch/local.py", "--processes=2", "--cpu", "--", *arguments]))
    assert ended.code == 2
    assert "generate runs in one process" in ended.err
