"""Pre-training of every kind of tokenizer from flags to files, and fine-tuning from what it leaves."""

import json
from pathlib import Path

import helpers
import numpy as np
import pytest

import jaxgen
from jaxgen.config import load_config
from jaxgen.tokenizers.bpe import train_bpe

RUN = {"train__steps": 6, "train__batch_size": 8, "train__eval_batch_size": 8, "train__eval_every": 3, "train__eval_batches": 2}
RUN |= {"train__log_every": 1, "train__report": "false", "data__max_length": 32, "train__checkpoint_every": 3}
TINY = {"model__config__d_model": 16, "model__config__n_layer": 2}
ATTENTION = TINY | {"model__config__d_inner": 32, "model__config__n_heads": 2}


def pretrain(model: str, fasta: Path, workdir: Path, **fields) -> list[str]:
    return [f"--config=configs/pretrain.py:{model}", f"--workdir={workdir}", *helpers.flags(**RUN | {"data__fasta": fasta} | fields)]


def result_of(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def vocabulary(fasta, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    train_bpe([line for line in fasta.read_text().split() if line[0] != ">"], 48).save(folder)
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("model", "fields", "objective"),
    [
        ("dnabert2_smoke", ATTENTION | {"model__config__vocab_size": 48}, "mlm"),
        pytest.param("caduceus_ps_smoke", TINY, "mlm", marks=pytest.mark.slow),
        pytest.param("dnabert_smoke", ATTENTION, "mlm", marks=pytest.mark.slow),
        pytest.param("nt_v2_smoke", ATTENTION, "mlm", marks=pytest.mark.slow),
        pytest.param("gpt_neo_smoke", ATTENTION | {"model__config__vocab_size": 270}, "ntp", marks=pytest.mark.slow),
    ],
)
def test_every_family_pretrains(fasta, tmp_path, run_here, model, fields, objective):
    ended = run_here(pretrain(model, fasta, tmp_path, **fields))
    assert ended.code == 0, ended.err
    result = result_of(tmp_path)
    assert result["objective"] == objective
    assert np.isfinite(result["metrics"]["test"]["loss_per_base"])
    loaded = jaxgen.load(str(tmp_path))
    assert loaded.tokenizer.vocab_size == result["vocab_size"]
    if "gpt" not in model and "dnabert2" not in model:
        return
    assert loaded.tokenizer.vocabulary() == {"tokenizer.json": (tmp_path / "tokenizer.json").read_text()}
    (tmp_path / "result.json").unlink()  # killed before it was written: nothing is learned again
    ended = run_here(pretrain(model, fasta, tmp_path, **fields))
    assert ended.code == 0, ended.err
    assert "learned" not in ended.err
    assert result_of(tmp_path)["params_digest"] == result["params_digest"]


def test_fine_tuning_reads_the_tokens_of_pre_training(fasta, table, tmp_path, run_here):
    fields = ATTENTION | {"model__config__vocab_size": 48}
    ended = run_here(pretrain("dnabert2_smoke", fasta, tmp_path / "lm", **fields))
    assert ended.code == 0, ended.err
    fields = {"init_from": tmp_path / "lm", "train__steps": 2, "train__eval_every": 2, "data__buckets": 1}
    ended = run_here([*helpers.finetune("", table, **fields), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (tmp_path / "lm" / "tokenizer.json").read_text()


@pytest.mark.slow
def test_mamba_takes_byte_pairs_and_is_fine_tuned_with_them(fasta, table, vocabulary, tmp_path, run_here):
    ended = run_here(pretrain("mamba_smoke", fasta, tmp_path / "lm", **TINY, model__tokenizer=vocabulary))
    assert ended.code == 0, ended.err
    assert result_of(tmp_path / "lm")["vocab_size"] == 48
    fields = {"init_from": tmp_path / "lm", "train__steps": 2, "train__eval_every": 2}
    ended = run_here([*helpers.finetune("", table, **fields), f"--workdir={tmp_path / 'run'}"])
    assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (tmp_path / "lm" / "tokenizer.json").read_text()


@pytest.mark.slow
def test_stages_of_length_resume_bit_for_bit(fasta, tmp_path, run_here):
    fields = TINY | {"train__steps": 5, "data__length_warmup": "2:16", "model__config__d_inner": 32, "model__config__filter_order": 8}
    arguments = [pretrain("hyenadna_smoke", fasta, tmp_path / name, **fields, train__checkpoint_every=1, train__keep=9) for name in "ab"]
    ended = run_here(arguments[0])
    assert ended.code == 0, ended.err
    assert ended.err.count("compiled the training step for 256 tokens") == 2
    stopped = [argument.replace("steps=5", "steps=3") for argument in arguments[1]]
    assert run_here([*stopped, "--config.train.schedule.total_steps=5"]).code == 0
    for path in (tmp_path / "b").glob("result.json"):
        path.unlink()
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["train"] |= {"steps": 5}
    config["train"]["schedule"]["total_steps"] = 0
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    ended = run_here(arguments[1])
    assert ended.code == 0, ended.err
    assert "resumed from step 3" in ended.err
    assert result_of(tmp_path / "b")["params_digest"] == result_of(tmp_path / "a")["params_digest"]


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("caduceus_ps_smoke", {"data__objective": "ntp"}, "caduceus_ps sees both sides of a token"),
        ("cnn_smoke", {}, "'cnn' has no language-model head"),
        ("mamba_smoke", {"data__length_warmup": "3-8"}, "'3-8' is not of the form STEPS:LENGTH"),
        ("mamba_smoke", {"data__length_warmup": "3:7"}, "length 7 does not divide data.max_length=32"),
        ("gpt_neo_smoke", {"data__objective": "mlm", "model__config__vocab_size": 270}, "needs a tokenizer with a mask token"),
    ],
)
def test_wrong_input_is_one_line(fasta, tmp_path, run_here, model, fields, message):
    ended = run_here(pretrain(model, fasta, tmp_path / "run", **fields))
    assert ended.code == 2
    assert message in ended.error


@pytest.mark.parametrize(
    ("model", "length", "rows", "rate", "rc_aug"),
    [
        ("caduceus_ps_1k", 1024, 1024, 8e-3, False),
        ("caduceus_ph_32k", 32768, 32, 8e-3, True),
        ("caduceus_ps_131k", 131072, 8, 8e-3, False),
        ("mamba_1k", 1024, 1024, 8e-3, True),
        ("mamba_4k_bpe", 4096, 128, 8e-6, True),
        ("hyenadna_1k", 1024, 1024, 6e-4, True),
        ("hyenadna_medium_160k", 131072, 8, 6e-4, True),
        ("dnabert_6mer", 512, 2000, 4e-4, False),
    ],
)
def test_recipes(model, length, rows, rate, rc_aug):
    c = load_config(f"configs/pretrain.py:{model}")
    assert (c.data.max_length, c.train.batch_size, c.train.learning_rate, c.data.rc_aug) == (length, rows, rate, rc_aug)
