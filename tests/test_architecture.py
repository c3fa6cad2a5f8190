"""The house rules: imports go down the list of rooms only, and the front door is light."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest

from jaxgen.main import main

PACKAGE = helpers.ROOT / "jaxgen"
# Room -> the rooms that it may import.
FLOOR = {"errors"}
SHELL = {"config", "fields", "main"}
ALLOWED = {
    "errors": set(),
    "ops": FLOOR,
    "layers": FLOOR | {"ops"},
    "tokenizers": FLOOR,
    "checkpoints": FLOOR,
    "data": FLOOR | {"tokenizers"},
    "baselines": FLOOR | {"layers", "tokenizers", "data"},
    "models": FLOOR | {"ops", "layers", "tokenizers", "checkpoints"},
    "heads": FLOOR | {"ops", "layers", "checkpoints"},
    "train": FLOOR | {"ops", "layers", "checkpoints"},
    "goldens": FLOOR | {"ops", "layers", "tokenizers", "checkpoints", "models", "heads", "train", "data", "baselines"},
    "jobs": FLOOR | {"config", "ops", "layers", "tokenizers", "checkpoints", "models", "heads", "train", "data", "baselines", "goldens"},
    "fields": FLOOR,
    "config": FLOOR | {"fields"},
    "main": FLOOR | {"config", "data", "jobs", "models"},
    "__init__": {"models"},  # lazily
}
# Data is numpy alone: it must be usable, and testable, without an accelerator library.
FORBIDDEN = {"data": {"jax", "flax", "optax", "orbax", "torch"}, "tokenizers": {"jax", "flax", "torch"}, "ops": {"flax"}, "errors": {"jax"}}
EVERYWHERE = {"torch", "tensorflow", "transformers"}


def imports(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_imports_go_down(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ALLOWED, f"{room} is a new room: say in this test what it may import"
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "jaxgen" and rest and rest[0] not in ("load", "export", "Pretrained", "__version__"):
            assert rest[0] == room or rest[0] in ALLOWED[room], f"{file}: {room} imports {name}"
        assert top not in EVERYWHERE | FORBIDDEN.get(room, set()), f"{file}: {room} imports {name}"
        assert top not in ("configs", "tests", "benchmarks"), f"{file}: the package imports {name}"


def test_models_do_not_import_each_other():
    architectures = {file.stem for file in (PACKAGE / "models").glob("*.py")} - {"__init__", "family", "registry", "pretrained"}
    for name in architectures:
        others = {f"jaxgen.models.{other}" for other in architectures - {name}}
        for imported in imports(PACKAGE / "models" / f"{name}.py"):
            assert not any(imported == other or imported.startswith(other + ".") for other in others), f"{name} imports {imported}"


def test_import_is_light():
    code = "import json, sys, jaxgen; jaxgen.__all__; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    ended = helpers.finish(helpers.start_python(["-c", code]))
    assert ended.code == 0, ended.err
    assert not {"jax", "flax", "numpy", "torch", "orbax"} & set(json.loads(ended.out))


def test_help_lists_jobs_and_configs_without_jax():
    code = "import sys; from jaxgen.main import main; main(['--help']); assert 'jax' not in sys.modules"
    ended = helpers.finish(helpers.start_python(["-c", code]))
    assert (ended.code, ended.err) == (0, "")
    for name in ("finetune", "pretrain", "verify", *(f"configs/{file.name}" for file in (helpers.ROOT / "configs").glob("[a-z]*.py"))):
        assert f"  {name} " in ended.out
    assert "Exit codes" in ended.out
    assert "--models" in ended.out


def test_models_and_tasks_are_listed(capsys):
    assert main(["--models"]) == main(["--tasks"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert {"cnn", "hyenadna_smoke", "nt_v2_50m", "table", "simulated_promoters", "gue/tf_0"} <= set(listed)


def test_a_reader_that_leaves_early_is_no_error():
    reads, writes = os.pipe()
    os.close(reads)
    try:
        ended = subprocess.run([sys.executable, "-m", "jaxgen.main", "--help"], cwd=helpers.ROOT, stdout=writes, stderr=subprocess.PIPE)
    finally:
        os.close(writes)
    assert (ended.returncode, ended.stderr) == (0, b"")
