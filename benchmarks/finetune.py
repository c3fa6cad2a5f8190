"""Part `finetune`: samples/s of fine-tuning on a table, against transformers' Trainer with models of the same shape.

Two layers of the Nucleotide Transformer v2 50m, and of DNABERT-2, on simulated DNA of mixed lengths. The peers are
EsmForSequenceClassification and BertForSequenceClassification with the gated feed-forward networks of the originals (BERT has position
embeddings where DNABERT-2 has ALiBi). The Trainer gets ids that are tokenized beforehand and pads every batch to its longest row,
or as the published scripts do to the longest of the file; jaxgen tokenizes as it goes. Rates are those that either reports for its steps:
without the compilation and the imports, which stand in a note.
"""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention import make_gated
from benchmarks.harness import Goal, Note, Options, Row, have

GOAL = Goal("ratio", ">=", 2.0)
ROWS, BATCH, LAYERS, LENGTHS = 960, 16, 2, (60, 600)
SMOKE_FIELDS = {"d_model": 32, "n_heads": 2, "d_inner": 48}


def run(options: Options) -> Iterator[Row | Note]:
    if not have("torch") or not have("transformers") or not have("accelerate"):
        yield Note("finetune", "torch, transformers or accelerate is not installed, so there is no peer (make bench installs them)")
        return
    rows = 2 * BATCH if options.smoke else ROWS
    yield Note(
        "finetune", f"{LAYERS} of 12 layers, batches of {BATCH}, {LENGTHS[0]} to {LENGTHS[1]} bases, AdamW, float32, no dropout, one epoch"
    )
    for name, model in (("NT v2 50m", "nt_v2_50m"), ("DNABERT-2", "dnabert2_117m")):
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder)
            sequences, labels = _write_table(table, rows)
            ours, whole, overhead = [], [], []
            theirs: dict[str, list[float]] = {"Trainer, batches padded": [], "Trainer, file padded": []}
            for turn in range(min(options.repeats, 3)):
                rate, seconds, metrics_seconds, tokenizer = _jaxgen(table, model, turn, options.smoke)
                ours.append(rate)
                whole.append(seconds)
                overhead.append(metrics_seconds / seconds)
                for peer, rates in theirs.items():
                    rates.append(_trainer(table, model, tokenizer, sequences, labels, whole_file="file" in peer, smoke=options.smoke))
        for peer, rates in theirs.items():
            samples = tuple(ours), tuple(rates)
            case = f"{name} shape, fine-tuning"
            yield Row("finetune", case, statistics.median(ours), "samples/s", peer, statistics.median(rates), GOAL, samples)
        share = statistics.median(overhead)
        took = f"{statistics.median(whole):.0f} s, of which {share:.1%} to compute and log metrics (goal < 1 %)"
        yield Note("finetune", f"{name}: the whole jaxgen job, with compilation, validation and test, {took}")


def _write_table(folder: Path, rows: int) -> tuple[list[str], list[int]]:
    """Simulated DNA, lengths uniform; returns the training rows."""
    random = np.random.default_rng(0)
    for split, n in (("test", BATCH), ("dev", BATCH), ("train", rows)):
        sequences = ["".join(random.choice(list("ACGT"), random.integers(*LENGTHS))) for _ in range(n)]
        labels = random.integers(0, 2, n).tolist()
        lines = [f"{sequence},{label}\n" for sequence, label in zip(sequences, labels)]
        (folder / f"{split}.csv").write_text("sequence,label\n" + "".join(lines))
    return sequences, labels


def _jaxgen(table: Path, model: str, turn: int, smoke: bool) -> tuple[float, float, float, Any]:
    """(samples/s, seconds of the whole job, of these for metrics and logs, tokenizer)."""
    from configs import finetune
    from jaxgen.jobs import finetune as job
    from jaxgen.train import metrics
    from jaxgen.train.logging import RunLog
    from jaxgen.train.termination import Termination

    c = finetune.get_config(f"{model},table")
    c.workdir, c.data.path, c.compile_cache = str(table / f"{model}_{turn}"), str(table), ""
    c.train.epochs, c.train.batch_size, c.train.report, c.train.learning_rate = 1, BATCH, False, 1e-5
    c.train.schedule.warmup_steps = 0.0
    dropout = {} if model.startswith("nt") else {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    c.model.config.update({"n_layer": LAYERS, **dropout, **(SMOKE_FIELDS if smoke else {})})
    spent = [0.0]
    began = time.perf_counter()
    with _silent(), _timed(metrics, "evaluate", spent), _timed(RunLog, "log", spent), Termination(print) as termination:
        run = job.prepare(c)
        job.train(c, run, termination)
    seconds = time.perf_counter() - began
    result = json.loads((Path(c.workdir) / "result.json").read_text())
    return result["examples_per_second"], seconds, spent[0], run.tokenizer


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _timed(owner: Any, name: str, spent: list[float]) -> Iterator[None]:
    """Inside, the seconds of every call of the function are added to `spent[0]`."""
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[0] += time.perf_counter() - began

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, function)


def _trainer(table: Path, model: str, tokenizer: Any, sequences: list[str], labels: list[int], *, whole_file: bool, smoke: bool) -> float:
    """Samples/s of the Trainer, rows padded to the longest of the file or of their batch."""
    import torch
    import transformers

    texts = [sequence.encode() for sequence in sequences]
    rows = [{"input_ids": tokenizer.encode(text, add_special_tokens=True), "labels": label} for text, label in zip(texts, labels)]
    width, heads, inner = (32, 2, 48) if smoke else (512, 16, 2048) if model.startswith("nt") else (768, 12, 3072)
    fields: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "hidden_size": width, "num_attention_heads": heads}
    fields |= {"intermediate_size": inner, "num_hidden_layers": LAYERS, "num_labels": 2, "pad_token_id": int(tokenizer.pad_id)}
    fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 1024}
    if model.startswith("nt"):
        options = {"position_embedding_type": "rotary", "token_dropout": False, "emb_layer_norm_before": False}
        peer = transformers.EsmForSequenceClassification(transformers.EsmConfig(**fields, **options))
        layers = peer.esm.encoder.layer
    else:
        peer = transformers.BertForSequenceClassification(transformers.BertConfig(**fields))
        layers = peer.bert.encoder.layer
    for layer in layers:
        make_gated(layer, width, inner)

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in (rows if whole_file else batch))
        ids = torch.full((len(batch), longest), int(tokenizer.pad_id))
        for i, row in enumerate(batch):
            ids[i, : len(row["input_ids"])] = torch.as_tensor(np.asarray(row["input_ids"], np.int64))
        mask = ids != tokenizer.pad_id
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.tensor([row["labels"] for row in batch])}

    arguments = transformers.TrainingArguments(
        str(table / "trainer"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-5,
        weight_decay=0.1,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
    )
    with _silent():
        done = transformers.Trainer(peer, arguments, data_collator=collate, train_dataset=rows).train()  # type: ignore[arg-type]
    return done.metrics["train_samples_per_second"]
