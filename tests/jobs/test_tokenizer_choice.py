"""`model.tokenizer=bpe:N`: a model of single bases changes to byte pairs learned from the training split."""

import json

import helpers
import pytest


def test_byte_pairs_are_learned_and_kept(run_here, tmp_path):
    table = helpers.write_table(tmp_path / "table")
    flags = ["--config=configs/finetune.py:mamba_smoke,table", f"--config.data.path={table}", f"--workdir={tmp_path / 'run'}"]
    flags += ["--config.train.epochs=1", "--config.train.batch_size=8", "--config.train.report=false", "--config.model.tokenizer=bpe:40"]
    assert run_here(flags).code == 0
    assert json.loads((tmp_path / "run/model.json").read_text())["config"]["vocab_size"] == 40
    assert len(json.loads((tmp_path / "run/tokenizer.json").read_text())["model"]["vocab"]) <= 40


@pytest.mark.parametrize("model", ["dnabert_smoke", "hyenadna_smoke"])
def test_other_models_say_that_they_cannot(run_here, tmp_path, model):
    table = helpers.write_table(tmp_path / "table")
    flags = [f"--config=configs/finetune.py:{model},table", f"--config.data.path={table}", f"--workdir={tmp_path / 'run'}"]
    ran = run_here([*flags, "--config.train.epochs=1", "--config.model.tokenizer=bpe:40"])
    assert ran.code == 2
    assert "bpe:40" in ran.error
