"""Every golden case under the roots, array by array at the case's own tolerance, and the `verify` commands that do the same."""

import json
import shutil
from pathlib import Path

import helpers
import jax
import numpy as np
import pytest

from jaxgen.checkpoints.safetensors_io import write_safetensors
from jaxgen.goldens import data
from jaxgen.goldens.core import FAMILIES, check, compare, find_cases
from jaxgen.jobs.verify import main as verify

CASES = list(find_cases(helpers.GOLDEN_ROOTS))


def _ids(cases):
    """family/case; a case of which roots hold different versions gets the root too."""
    names = [case.name for case in cases]
    return [case.name if names.count(case.name) == 1 else f"{case.name}@{case.path.parents[1].name}" for case in cases]


@pytest.mark.golden
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for case, name in zip(CASES, _ids(CASES))])
def test_golden(case):
    with jax.default_matmul_precision("highest"):
        lines = check(case)
    assert lines
    assert all(line.ok for line in lines), "\n".join(map(str, lines))


def test_the_suite_brings_a_case_of_every_family():
    assert {case.family for case in find_cases([helpers.ROOT / "tests" / "goldens"])} == set(FAMILIES)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(helpers.ROOT / "tests" / "goldens" / "hyenadna" / "hf_wide_filter", tmp_path / "hyenadna" / "any_name"))


def change(case: Path, **arrays: np.ndarray) -> None:
    with np.load(case / "io.npz") as stored:
        content = dict(stored)
    np.savez(case / "io.npz", **content | arrays)


def test_verify_in_a_process_of_its_own(case):
    ok = helpers.finish(helpers.start_python(["-m", "jaxgen.checkpoints.verify", case]))
    assert (ok.code, ok.err) == (0, "")
    with np.load(case / "io.npz") as stored:
        names = set(stored) - {"input_ids", "score_weight", "head_weight", "head_bias"}
        change(case, logits=stored["logits"] + np.float32(1e-2))
    lines = {line.split()[0]: line for line in ok.out.splitlines()}
    for name in names:
        assert lines[f"hyenadna/any_name/{name}"].endswith("ok")
        assert "max abs error" in lines[f"hyenadna/any_name/{name}"]
    folder = helpers.ROOT / "tests" / "goldens" / "splits"
    bad = helpers.run_job(["--config=configs/verify.py", f"--config.paths={folder},{case}"])
    assert bad.code == 1
    assert [line.split()[0] for line in bad.out.splitlines() if "FAIL" in line] == ["hyenadna/any_name/logits"]
    assert "splits/train_val" in bad.out


def test_an_array_that_nobody_computes_fails(case, capsys):
    change(case, mystery=np.zeros(3))
    assert verify([str(case)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert "mystery" in line
    assert "nothing computes" in line


def test_another_shape_fails(case, capsys):
    with np.load(case / "io.npz") as stored:
        change(case, logits=stored["logits"][:, :-1])
    assert verify([str(case)]) == 1
    assert "expected" in capsys.readouterr().out


def test_nan_equals_nan_and_what_a_case_leaves_out_is_not_compared(case, capsys):
    found = compare("x", np.float32([np.nan, np.inf, 1]), np.float32([np.nan, np.inf, 1]), 0, 1e-3)
    assert found.ok
    assert not compare("x", np.float32([np.nan]), np.float32([1]), 1, 1).ok
    filters = helpers.ROOT / "tests" / "goldens" / "hyena_filter"
    folder = shutil.copytree(next(filters.iterdir()), case.parent / "hyena_filter" / "fewer")
    with np.load(folder / "io.npz") as stored:
        content = {name: stored[name] for name in ("u", "y")}
    np.savez(folder / "io.npz", **content)
    assert verify([str(folder)]) == 0
    assert "1 arrays" in capsys.readouterr().out


def test_one_case_that_raises_does_not_end_the_others(case, capsys, monkeypatch):
    monkeypatch.setattr(data, "re", None)
    assert verify([str(helpers.ROOT / "tests" / "goldens" / "splits"), str(case)]) == 1
    out = capsys.readouterr().out
    assert "AttributeError" in out
    assert "any_name/logits" in out


def test_weights_that_do_not_fit_fail_and_name_the_tensors(case, capsys):
    from jaxgen.checkpoints.readers import read_tensors

    (weights,) = case.glob("*.safetensors")
    tensors = read_tensors(weights)
    removed = next(name for name in tensors if "ln_f" in name)
    write_safetensors(weights, {name: x for name, x in tensors.items() if name != removed} | {"extra.weight": np.zeros(2, np.float32)})
    assert verify([str(case)]) == 1
    out = capsys.readouterr().out
    assert "missing" in out
    assert "extra.weight" in out


@pytest.mark.parametrize("what", ["missing folder", "no case", "unknown family", "no io.npz", "meta.json is not JSON"])
def test_what_cannot_be_verified(case, capsys, tmp_path, what):
    """Wrong input is exit code 2; a case that cannot be computed fails, exit code 1. Never a traceback."""
    path, code = case, 1
    if what == "missing folder":
        path, code = tmp_path / "nowhere", 2
    elif what == "no case":
        path, code = tmp_path / "empty", 2
        path.mkdir()
    elif what == "unknown family":
        (case / "meta.json").write_text(json.dumps({"family": "hyena_dna", "atol": 0, "rtol": 0}))
    elif what == "no io.npz":
        (case / "io.npz").unlink()
    else:
        (case / "meta.json").write_text("{")
    assert verify([str(path)]) == code
    out, err = capsys.readouterr()
    assert str(path) in out + err
    if code == 2:
        assert err.startswith("error:")
        assert err.count("\n") == 1


def test_cases_of_tokenizers_may_be_files(tmp_path, capsys):
    source = helpers.ROOT / "tests" / "goldens" / "tokenizers"
    assert verify([str(source / "nt6mer.json"), str(source / "bpe_tiny")]) == 0
    out = capsys.readouterr().out
    assert "tokenizers/nt6mer/ids" in out
    assert "tokenizers/bpe_tiny/ids" in out
    rows = json.loads((source / "nt6mer.json").read_text())
    rows[0]["ids"][-1] += 1
    (tmp_path / "nt6mer_spoilt.json").write_text(json.dumps(rows))
    assert verify([str(tmp_path)]) == 1
    for name, content in (("nt6mer_broken.json", "{}"), ("another.json", json.dumps(rows))):
        (tmp_path / name).write_text(content)
        assert verify([str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().out
