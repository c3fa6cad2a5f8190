"""Wrong input: exit code 2, one line that names what is wrong, nothing left half-written."""

import contextlib
import gzip
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import helpers
import numpy as np
import pytest

HYENADNA = helpers.ROOT / "tests" / "goldens" / "hyenadna"


@pytest.fixture
def refused(run_here, tmp_path) -> Callable[..., str]:
    """`refused(arguments, *words)`: the command is refused, and its one line holds all the words. Returns the line."""

    def run(arguments: list[str], *words: str, devices: int = 1, workdir: Path | None = None) -> str:
        folder = workdir or tmp_path / "run"
        ended = run_here([*arguments, f"--workdir={folder}"], devices)
        assert ended.code == 2, ended.err
        assert "Traceback" not in ended.err
        assert ended.err.splitlines()[-1] == ended.error  # the last thing that is said
        for word in words:
            assert str(word) in ended.error
        left = {path.name for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else set()
        assert left <= {"config.json", "model.json"}  # written whole, before the first step
        return ended.error

    return run


# The command line ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/finetune.py", "--config.train.learning_rat=1"], ["train.learning_rat", "'learning_rate'"]),
        (["--config=configs/finetune.py", "--config.trian.steps=1"], ["'trian'", "'train'"]),
        (["--config=configs/finetune.py", "--config.train=1"], ["is a group"]),
        (["--config=configs/finetune.py", "--config.train.steps=many"], ["train.steps=many", "whole number"]),
        (["--config=configs/finetune.py", "--config.train.steps=1.5"], ["train.steps=1.5", "whole number"]),
        (["--config=configs/finetune.py", "--config.train.learning_rate=fast"], ["learning_rate=fast", "a number"]),
        (["--config=configs/finetune.py", "--config.data.rc_aug=perhaps"], ["rc_aug=perhaps", "true or false"]),
        (["--config=configs/finetune.py", "--config.train.betas=a,b"], ["betas", "numbers"]),
        (["--config=configs/finetune.py:hyenadma_smoke"], ["hyenadma_smoke", "'hyenadna_smoke'"]),
        (["--config=configs/finetune.py:hyenadna_smok"], ["'smok'", "'smoke'"]),
        (["--config=configs/finetune.py:enformer"], ["'enformer'", "; choose one of caduceus_ph, caduceus_ps, cnn, dnabert,"]),
        (["--config=configs/finetune.py", "--config.model.adapter=loar"], ["model.adapter='loar'; did you mean 'lora'?"]),
        (["--config=configs/finetune.py", "--config.train.ema_decay=2"], ["train.ema_decay=2.0 must be at least 0 and below 1"]),
        (["--config=configs/finetune.py:hyenadna,tabel"], ["'tabel'", "'table'"]),
        (["--config=configs/finetune.py:hyenadna,table"], ["data.path"]),
        (["--config=configs/finetune.py:a,b,c"], ["MODEL,TASK"]),
        (["--config=configs/finetun.py"], ["configs/finetun.py", "configs/finetune.py"]),
        (["--config=configs/finetune.py", "--config.job=finetnue"], ["'finetnue'", "'finetune'"]),
        (["--config=configs/finetune.py", "--confg.seed=1"], ["--confg.seed"]),
        (["--config=configs/finetune.py", "--config.precision=bf16"], ["precision", "bf16", "'bfloat16'"]),
        (["--config=configs/finetune.py", "--config.model.config.n_layers=3"], ["n_layers", "'n_layer'"]),
        (["--config=configs/finetune.py", "--config.model.config.n_layer=two"], ["n_layer", "int"]),
        (["--config=configs/finetune.py", "--config.train.steps=5"], ["train.steps", "train.epochs"]),
        (["--config=configs/pretrain.py"], ["data.fasta"]),
        (["--config=configs/verify.py"], ["--config.paths"]),
        (["--config.seed=1"], ["--config=FILE"]),
    ],
)
def test_command_line(refused, arguments, words):
    refused(arguments, *words)


def test_no_workdir(run_here):
    ended = run_here(["--config=configs/finetune.py"])
    assert ended.code == 2
    assert "--workdir" in ended.error


@pytest.mark.parametrize("where", ["is a file", "lies in a file"])
def test_workdir_that_cannot_be(run_here, table, tmp_path, where):
    file = tmp_path / "file"
    file.write_text("keep me")
    ended = run_here([*helpers.cnn(table), f"--workdir={file if where == 'is a file' else file / 'run'}"])
    assert ended.code == 2
    assert str(file) in ended.error
    assert file.read_text() == "keep me"


def test_one_line_in_a_process_of_its_own(tmp_path):
    ended = helpers.run_job(["--config=configs/finetune.py", "--config.train.learning_rat=1", f"--workdir={tmp_path / 'run'}"])
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("error: ")
    assert not (tmp_path / "run").exists()


# The model and its training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"train__batch_size": 12}, ["train.batch_size=12", "8 devices"]),
        ({"train__eval_batch_size": 12}, ["train.eval_batch_size=12", "8 devices"]),
        ({"train__accumulate": 3}, ["train.batch_size=16", "train.accumulate=3"]),
        ({"train__accumulate": 0}, ["train.accumulate=0"]),
        ({"mesh__data": 3}, ["mesh", "8"]),
        ({"mesh__fsdp": 3}, ["mesh", "needs 3 devices"]),
        ({"train__batch_size": 1000}, ["1000", "120 training examples"]),
        ({"train__schedule__name": "cosin"}, ["cosin", "'cosine'"]),
        ({"train__select": "mcb"}, ["mcb", "mcc"]),
        ({"train__select": "pearson"}, ["pearson", "not computed"]),
        ({"train__nan_policy": "ignore"}, ["nan_policy", "ignore"]),
        ({"train__lr_scale": "^haed=10"}, ["^haed"]),
        ({"model__freeze": "^backbome"}, ["^backbome"]),
        ({"model__freeze": "("}, ["'('", "not a regular expression"]),
        ({"data__max_length": 40}, ["input_len", "57"]),
    ],
)
def test_training_fields(refused, table, fields, words):
    refused(helpers.cnn(table, **fields), *words, devices=8)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"head__pooling": "avg"}, ["pooling", "avg"]),
        ({"model__remat": "ful"}, ["remat", "ful", "'full'"]),
        ({"data__rc_aug": "true", "data__conjoin_train": "true"}, ["rc_aug", "conjoin"]),
    ],
)
def test_model_fields(refused, table, fields, words):
    refused(helpers.hyenadna(table, **fields), *words)


@pytest.mark.parametrize("adapter", ["ia3", "lora"])
def test_a_model_without_layers_to_adapt(refused, table, adapter):
    refused(helpers.cnn(table, model__adapter=adapter), f"model.adapter={adapter}: this model has no layers to adapt")


# Tables -------------------------------------------------------------------------------------------------------------------------


def rows(*lines: str) -> str:
    return "\n".join(lines) + "\n"


GOOD = rows("sequence,label", *(f"{'ACGTACGTAC' * 9},{i % 2}" for i in range(40)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["train.csv"]),
        ("sequence,label\n", ["train.csv"]),
        (GOOD.replace("sequence,label", "seq,label"), ["train.csv", "sequence", "seq"]),
        (GOOD.replace("sequence,label", "sequence,y"), ["train.csv", "label"]),
        (GOOD + "ACGT,promoter\n", ["train.csv:42", "promoter"]),
        (GOOD + "ACGT,1.5\n", ["train.csv:42", "1.5"]),
        (GOOD + "ACGT,-1\n", ["train.csv:42", "-1"]),
        (GOOD + "ACGT,100000000\n", ["train.csv", "100000000"]),
        (GOOD + "ACG T;,1\n", ["train.csv:42"]),
        (GOOD + ",1\n", ["train.csv:42"]),
        (GOOD + "ACGT\n", ["train.csv:42"]),
    ],
)
def test_tables(refused, tmp_path, content, words):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.csv").write_text(content)
    (folder / "test.csv").write_text(GOOD)
    refused(helpers.cnn(folder), *words)


@pytest.mark.parametrize(("model", "tokenizer"), [("cnn_smoke", "'character'"), ("dnabert_smoke", "'dnabert'"), ("nt_v2_smoke", "'nt")])
def test_lower_case_for_a_tokenizer_that_does_not_know_it(refused, table, tmp_path, model, tokenizer):
    lower = tmp_path / "lower"
    lower.mkdir()
    for file in table.iterdir():
        (lower / file.name).write_text(file.read_text().lower())
    words = ["100% of the tokens of the training split are unknown", tokenizer, "upper case"]
    refused([f"--config=configs/finetune.py:{model},table", f"--config.data.path={lower}"], *words)


def test_label_that_training_never_saw(refused, table, tmp_path):
    folder = Path(shutil.copytree(table, tmp_path / "data"))
    with open(folder / "test.csv", "a") as file:
        file.write("ACGTACGT,7\n")
    refused(helpers.cnn(folder), "test.csv", "7")


def test_table_that_is_not_there(refused, tmp_path):
    refused(helpers.cnn(tmp_path / "nowhere"), "nowhere")


def test_truncated_gzip(refused, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    packed = gzip.compress(GOOD.encode())
    (folder / "train.csv.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "test.csv").write_text(GOOD)
    refused(helpers.cnn(folder), "train.csv.gz")


# Genomes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bed", "words"),
    [
        ("c9\t0\t64\ttrain\n", ["x.bed:1", "c9"]),
        ("c1\t5990\t6054\ttrain\nc1\t0\t64\tvalid\nc2\t0\t64\ttest\n", ["x.bed:1", "6054", "c1"]),
        ("c1\t0\t64\ttrain\nc1\t-5\t64\tvalid\n", ["x.bed:2", "start -5 is negative"]),
        ("c1\tstart\t64\ttrain\n", ["x.bed:1", "start"]),
        ("c1\t0\t64\ttrian\n", ["trian"]),
        ("", ["x.bed"]),
    ],
)
def test_intervals(refused, fasta, tmp_path, bed, words):
    (tmp_path / "x.bed").write_text(bed)
    refused(helpers.pretrain(fasta, data__bed=tmp_path / "x.bed"), *words)


def test_truncated_fasta(refused, fasta, tmp_path):
    packed = gzip.compress(fasta.read_bytes())
    (tmp_path / "cut.fa.gz").write_bytes(packed[: len(packed) // 2])
    refused(helpers.pretrain(tmp_path / "cut.fa.gz"), "cut.fa.gz")


@pytest.mark.parametrize("content", ["", "ACGT\n", ">c1\n>c2\nACGT\n>c1\nAC\n", ">c1\n" + "\x00\x01" * 50])
def test_files_that_are_no_fasta(refused, tmp_path, content):
    (tmp_path / "x.fa").write_text(content)
    refused(helpers.pretrain(tmp_path / "x.fa"), "x.fa")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__max_length": 0}, ["data.max_length"]),
        ({"data__objective": "mml"}, ["mml", "'mlm'"]),
        ({"data__fasta": "nowhere.fa"}, ["nowhere.fa"]),
    ],
)
def test_pretraining_fields(refused, fasta, fields, words):
    refused(helpers.pretrain(fasta, **fields), *words)


# Checkpoints --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(table, fasta, tmp_path_factory) -> Callable[[str, Callable[..., object]], Path]:
    """The workdir of a finished two-step run, made once for this module."""
    made: dict[str, Path] = {}

    def workdir(kind: str, run_here: Callable[..., object]) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "run"
            arguments = helpers.cnn(table, train__steps=2) if kind == "cnn" else helpers.pretrain(fasta, train__steps=2)
            assert run_here([*arguments, f"--workdir={made[kind]}"]).code == 0
        return made[kind]

    return workdir


def test_checkpoint_of_another_architecture(refused, run_here, trained, table):
    cnn = trained("cnn", run_here)
    refused(helpers.hyenadna(table, init_from=cnn), str(cnn), "cnn checkpoint", "hyenadna")


def test_checkpoint_of_another_task(refused, run_here, trained, tmp_path):
    """A model that ends in its own classifier fits one length and one number of classes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.csv").write_text(rows("sequence,label", *(f"{'ACGTACGTAC' * 9},{i % 3}" for i in range(40))))
    cnn = trained("cnn", run_here)
    refused(helpers.cnn(folder, init_from=cnn, data__max_length=96), str(cnn), "number_of_classes=2, not 3")
    refused(helpers.cnn(folder, init_from=cnn, data__max_length=104), "input_len=96, not 104")


def test_input_longer_than_the_pretrained_model(refused, run_here, trained, table):
    model = trained("pretrain", run_here)
    refused([*helpers.hyenadna(table, init_from=model)], "96 tokens", "l_max 66", "data.max_length")


def test_workdir_of_another_architecture(run_here, trained, table):
    """The same, when the difference hides in a checkpoint and not in the config."""
    cnn = trained("cnn", run_here)
    ended = run_here([*helpers.cnn(table, train__steps=2, model__config__embedding_dim=16), f"--workdir={cnn}"])
    assert ended.code == 2
    assert "embedding_dim" in ended.error


def finetune(table: Path, **fields: object) -> list[str]:
    """HyenaDNA as published: the checkpoint says of which size."""
    return ["--config=configs/finetune.py:hyenadna,table", *helpers.flags(data__path=table, **fields)]


def test_public_checkpoint_that_does_not_fit(refused, table, tmp_path):
    """Missing, unused and misshapen tensors are all named, with their number."""
    from jaxgen.checkpoints.readers import find_weights, read_tensors
    from jaxgen.checkpoints.safetensors_io import write_safetensors

    folder = Path(shutil.copytree(HYENADNA / "hf_wide_filter", tmp_path / "checkpoint"))
    file = find_weights(folder)
    tensors = read_tensors(file)
    missing = next(name for name in tensors if name.endswith("ln_f.bias"))
    misshapen = next(name for name in tensors if name.endswith("norm1.weight"))
    file.unlink()
    changed = {name: x for name, x in tensors.items() if name != missing}
    changed |= {misshapen: np.zeros(3, np.float32), "hyena.extra.weight": np.zeros(2, np.float32)}
    write_safetensors(folder / "model.safetensors", changed)
    error = refused(finetune(table, init_from=folder), str(folder), "extra.weight", "ln_f.bias", "norm1.weight")
    assert "missing" in error
    assert "unused" in error


def test_corrupt_zip(refused, table, tmp_path):
    folder = Path(shutil.copytree(HYENADNA / "repo_trained_shift0", tmp_path / "checkpoint"))
    (weights,) = folder.glob("*.ckpt")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    refused(finetune(table, init_from=folder), weights.name)


class Hostile:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_hostile_pickle_runs_nothing(refused, table, tmp_path):
    folder = Path(shutil.copytree(HYENADNA / "repo_trained_shift0", tmp_path / "checkpoint"))
    (weights,) = folder.glob("*.ckpt")
    weights.write_bytes(pickle.dumps({"state_dict": Hostile(f"touch {tmp_path / 'owned'}")}))
    refused(finetune(table, init_from=folder), weights.name)
    assert not (tmp_path / "owned").exists()


def test_no_network_for_a_hub_id(refused, table):
    refused(finetune(table, init_from="LongSafari/no-such-model-hf"), "LongSafari/no-such-model-hf", "Hub")


def test_checkpoint_folder_that_is_not_there(refused, table):
    refused(finetune(table, init_from="../nowhere/at/all"), "../nowhere/at/all", "no such folder")


# The disk -----------------------------------------------------------------------------------------------------------------------


def test_writing_fails_while_saving(run_here, table, tmp_path, monkeypatch):
    """The error of a save in the background surfaces, and what was saved before it stays."""
    from orbax.checkpoint import CheckpointManager

    save = CheckpointManager.save

    def failing(self, step, *args, **kwargs):
        if step == 8:
            raise OSError(28, "No space left on device")
        return save(self, step, *args, **kwargs)

    arguments = [*helpers.cnn(table), f"--workdir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", failing)
        ended = run_here(arguments)
    assert ended.code == 2
    assert "No space left" in ended.error
    assert "run the same command again" in ended.error
    assert not (tmp_path / "run" / "result.json").exists()
    ended = run_here(arguments)  # as the message says
    assert ended.code == 0
    assert "resumed from step 4" in ended.err


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 600 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("a small disk takes root and the right to mount")
    try:
        yield folder
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["umount", "-l", folder], capture_output=True, check=True)


def fill(disk: Path, room: int) -> None:
    (disk / "filler").write_bytes(b"\0" * (600 * 1024 - room - 8192))


@pytest.mark.parametrize("room", [20_000, 0])
def test_disk_full_from_the_start(small_disk, table, run_here, room):
    """Room for the config alone, or for nothing."""
    fill(small_disk, room)
    ended = run_here([*helpers.cnn(table), f"--workdir={small_disk / 'run'}"])
    assert ended.code == 2, ended.err
    assert str(small_disk) in ended.error
    assert "free space" in ended.error
    assert "Traceback" not in ended.err
    assert not (small_disk / "run" / "result.json").exists()


def test_disk_full_while_saving(small_disk, table):
    """Room for a first checkpoint but not for all; in a process of its own, for what its threads may print at the end."""
    arguments = [*helpers.cnn(table, train__keep=20, train__eval_every=2), f"--workdir={small_disk / 'run'}"]
    ended = helpers.run_job(arguments)
    assert ended.code == 2, ended.err
    (error,) = (line for line in ended.err.splitlines() if line.startswith("error:"))
    assert str(small_disk) in error
    assert "No space left on device" in error
    assert "run the same command again" in error
    assert "Traceback" not in ended.err
    assert not (small_disk / "run" / "result.json").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)  # as the message says
    ended = helpers.run_job(arguments)
    assert ended.code == 0, ended.err
    assert "resumed from step" in ended.err
