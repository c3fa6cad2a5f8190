"""Files beside the weights with a field missing: one line that names both, and the other cases are verified."""

import json
import shutil
from pathlib import Path

import helpers

from jaxgen.jobs.verify import verify

GOLDENS = helpers.ROOT / "tests" / "goldens"


def a_case(family: str) -> Path:
    return sorted(GOLDENS.glob(f"{family}/*/config.json"))[0].parent


def spoilt(case: Path, folder: Path, file: str, field: str) -> Path:
    """A copy without one field."""
    shutil.copytree(case, folder)
    content = json.loads((folder / file).read_text())
    del content[field]
    (folder / file).write_text(json.dumps(content))
    return folder


def test_verify_goes_on_with_the_other_cases(tmp_path, capsys):
    case = a_case("dnabert")
    folders = [
        spoilt(case, tmp_path / "a" / "x", "config.json", "num_hidden_layers"),
        spoilt(case, tmp_path / "b" / "x", "meta.json", "atol"),
    ]
    text = tmp_path / "c" / "x"
    shutil.copytree(GOLDENS / "metrics" / "three_class", text)
    assert verify([str(folder) for folder in (*folders, text)]) == 1
    out = capsys.readouterr().out
    assert f"{folders[0]}: the config lacks 'num_hidden_layers'" in out
    assert f"{folders[1]}/meta.json: atol=None is not a tolerance" in out
    assert out.count("FAIL") == 2
    assert "of 3 cases compared, 2 failed" in out


def test_init_from_names_file_and_field(run_here, table, tmp_path):
    folder = spoilt(a_case("dnabert"), tmp_path / "weights", "config.json", "num_hidden_layers")
    ended = run_here([*helpers.finetune("", table, init_from=folder), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 2, ended.err
    assert f"{folder}: the config lacks 'num_hidden_layers'" in ended.error
    (folder / "model.json").write_text('{"family": "dnabert", "config": {"layers": 3}}')
    ended = run_here([*helpers.finetune("", table, init_from=folder), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 2, ended.err
    assert f"{folder}/model.json" in ended.error
