"""Apply a fine-tuned model to the sequences of a table or FASTA: class probabilities or values, into a table, resumable."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from jaxgen.checkpoints import workdir as workdirs
from jaxgen.data.embeddings import EmbeddingFile, read_named_sequences
from jaxgen.data.segments import STRANDS, Encoder, Plan, Segments, Step
from jaxgen.data.tables import Table, class_indices, class_labels, float_labels, read_columns, table_suffix
from jaxgen.errors import InputError
from jaxgen.heads.predictor import DirectPredictor
from jaxgen.jobs import training
from jaxgen.jobs.inference import RowWriter, TunedHead, compiled, load, run_plan, start_rows, tuned_head
from jaxgen.jobs.tokenizer import choose_tokenizer
from jaxgen.jobs.training import ModelSpec, model_spec, open_workdir, say, shown
from jaxgen.train import metrics
from jaxgen.train.logging import environment, write_atomic, write_result
from jaxgen.train.loop import params_digest

FILE = "predictions.tsv"


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What the predictions of a finetune run depend on, besides its weights.

    Attributes:
      head: on the backbone; None for a model that ends in its own.
      max_length: tokens that the run read of a sequence.
      one_length: whether every row is padded to `max_length`: the model takes one length, or sees its padding.
      both_strands: whether the run was evaluated on both.
      metrics: their names.
      classes: their names, in label order; none for a regression, or a run that did not write them down.
    """

    spec: ModelSpec
    head: TunedHead | None
    max_length: int
    masked: bool
    one_length: bool
    both_strands: bool
    metrics: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def classifies(self) -> bool:
        return "accuracy" in self.metrics

    def around(self, backbone: nnx.Module) -> nnx.Module:
        """The predictor that the run trained."""
        return self.head.around(backbone, self.spec, self.masked) if self.head else DirectPredictor(backbone, masked=self.masked)


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    if "://" in config.workdir:
        raise InputError(f"--workdir={config.workdir}: rows are written one by one; give a folder of this machine and copy it afterwards")
    if open_workdir(config, ".predictions.*.progress"):
        return 0
    folder, e, d = Path(config.workdir), config.embed, config.data
    tuned = _tuned(config)
    data = read_named_sequences(d.path, e.id_column, d.sequence_column)
    for note in data.notes:
        say(f"note: {note}")
    tokenizer = choose_tokenizer(config, tuned.spec)
    encoder = Encoder(data.sequences, tokenizer, tuned.spec.family.special_tokens)
    strand = "average" if tuned.both_strands or d.conjoin_eval else "forward"
    segments = Segments.of(encoder, strand, tuned.max_length, e.too_long, data.ids, d.path)
    plan = Plan.of(segments, d.buckets, e.batch_tokens, tuned.max_length)
    if tuned.one_length:
        plan = dataclasses.replace(Plan.of(segments, 1, e.batch_tokens, tuned.max_length), buckets=(tuned.max_length,))
    mesh = training.make_mesh(config.mesh)
    graphdef, state = load(config, tuned.spec, mesh, tuned.around)
    if tuned.head:
        state = tuned.head.place(state, "head.")
    predict, shape = compiled(graphdef, state, mesh, lambda model, batch: model(batch, train=False).astype(np.float32))
    example = (mesh.shape["data"] * mesh.shape["fsdp"], plan.buckets[-1])
    outputs = shape({"tokens": jax.ShapeDtypeStruct(example, np.int32), "mask": jax.ShapeDtypeStruct(example, bool)}).shape[-1]
    targets = _targets(config, tuned, outputs)

    file = EmbeddingFile(folder / "predictions.npy", (len(data.ids), outputs), "float32")
    digest = params_digest(state)
    settings = [digest, data.digest(), plan.buckets, e.batch_tokens, strand, e.too_long, config.precision, tokenizer.vocabulary()]
    order = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    done = start_rows(config, file, order)
    strands = " on both strands" * (len(STRANDS[strand]) > 1)
    say(f"{len(data.ids):,} sequences{strands}, {len(plan.buckets)} padded lengths up to {plan.buckets[-1]} on {mesh.size} devices")
    if segments.cut:
        say(f"note: {segments.cut} sequences are longer than the {tuned.max_length} tokens of the run (embed.too_long={e.too_long})")
    if done:
        say(f"resumed: {done} of {len(plan.shards)} parts are there already")

    def batch(step: Step) -> dict[str, np.ndarray]:
        tokens, mask = encoder.batch(segments, step.segments, step.width)
        return {"tokens": tokens, "mask": mask}

    writer = RowWriter(file, plan, np.arange(len(data.ids) + 1), order, tokenizer.padding_side == "left")
    rates = run_plan(config, plan, batch, predict, writer, mesh, done, segments.coefficient)
    file.close()
    if jax.process_index() != 0:
        return 0
    values = np.array(np.load(file.partial))
    write_atomic(folder / FILE, _table(data.ids, values, tuned))
    found: dict[str, Any] = {}
    if targets is not None:
        found = {"all": metrics.evaluate(tuned.metrics, values, targets)}
        say(f"all: {shown(found['all'])}")
    result = {"job": "predict", "model": tuned.spec.family.name, "metrics": found, "seed": config.seed, "params_digest": digest}
    result |= {"rows": len(data.ids), "outputs": outputs, "strand": strand, "cut": segments.cut}
    write_result(folder, result | rates | environment())
    file.discard()
    say(f"result: {folder / FILE}")
    return 0


def _tuned(config: ConfigDict) -> Tuned:
    """The finished finetune run `init_from`.

    Raises:
      InputError: none is given, or it is no such run.
    """
    if not config.init_from:
        raise InputError("init_from is empty: give the workdir of a finished finetune run, --config.init_from=RUN")
    spec = model_spec(config)
    run, result = epath.Path(spec.folder or "") / "config.json", epath.Path(spec.folder or "") / "result.json"
    if not (workdirs.is_workdir(spec.folder) and run.exists() and result.exists()):
        raise InputError(f"init_from={config.init_from} is not the workdir of a finished finetune run; predictions need one")
    settings, finished = json.loads(run.read_text()), json.loads(result.read_text())
    if finished["job"] != "finetune":
        raise InputError(f"init_from={config.init_from} is a run of {finished['job']}, which has no head for a task; fine-tune it first")
    masked, ends_in_head = settings["model"]["masked"], spec.family.emits == "predictions"
    return Tuned(
        spec=spec,
        head=tuned_head(config, spec),
        max_length=finished["max_length"],
        masked=masked,
        one_length=ends_in_head or not masked,
        both_strands=settings["data"]["conjoin_eval"],
        metrics=tuple(name for name in finished["metrics"]["test"] if name != "loss"),
        classes=tuple(finished.get("classes", ())),
    )


def _targets(config: ConfigDict, tuned: Tuned, outputs: int) -> np.ndarray | None:
    """The labels of the table; None for a FASTA and where there is no such column."""
    path, column = config.data.path, config.data.label_column
    if not column or not table_suffix(path):
        return None
    columns, lines = read_columns(path, optional=(column,))
    if column not in columns:
        return None
    if tuned.classifies and not all(name.isdecimal() for name in tuned.classes):
        return class_indices(path, columns[column], lines, tuned.classes, config.init_from)
    table = Table(path, [], columns[column], lines, ())
    return class_labels(table, column, outputs) if tuned.classifies else float_labels(table, column)


def _table(ids: list[str], values: np.ndarray, tuned: Tuned) -> str:
    """The lines of `FILE`: probabilities and the most probable class, or the values of a regression."""
    if tuned.classifies:
        classes = tuned.classes or tuple(map(str, range(values.shape[1])))
        likely = np.exp(values.astype(np.float64) - values.max(1, keepdims=True))
        rows = [[*(f"{p:.6g}" for p in row), classes[np.argmax(row)]] for row in likely / likely.sum(1, keepdims=True)]
        names = [*(f"p_{name}" for name in classes), "class"]
    else:
        rows = [[f"{x:.6g}" for x in row] for row in values]
        names = [f"value_{i}" for i in range(values.shape[1])]
    return "\n".join("\t".join(cells) for cells in (["id", *names], *([name, *row] for name, row in zip(ids, rows)))) + "\n"
