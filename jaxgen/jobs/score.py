"""Score sequences by their likelihood under a language model (masked models: pseudo-likelihood), into a table, resumable."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxgen.data.embeddings import EmbeddingFile, read_named_sequences
from jaxgen.data.scoring import Scoring
from jaxgen.data.segments import STRANDS, Encoder, Plan, Segments
from jaxgen.errors import InputError
from jaxgen.heads.scorer import Scorer
from jaxgen.jobs import training
from jaxgen.jobs.inference import RowWriter, compiled, enlarged, load, run_plan, start_rows
from jaxgen.jobs.tokenizer import choose_tokenizer
from jaxgen.jobs.training import ModelSpec, model_spec, open_workdir, say
from jaxgen.train.logging import environment, write_atomic, write_result
from jaxgen.train.loop import params_digest

FILE = "scores.tsv"
COLUMNS = ("id", "log_likelihood", "tokens", "bases", "per_token", "per_base")


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    if "://" in config.workdir:
        raise InputError(f"--workdir={config.workdir}: scores are written row by row; give a folder of this machine and copy it afterwards")
    if open_workdir(config, ".scores.*.progress"):
        return 0
    folder, e = Path(config.workdir), config.embed
    data = read_named_sequences(config.data.path, e.id_column, config.data.sequence_column, e.duplicates)
    for note in data.notes:
        say(f"note: {note}")
    spec = _model(config)
    causal = spec.family.causal
    tokenizer = choose_tokenizer(config, spec, data.sequences)
    encoder = Encoder(data.sequences, tokenizer, spec.family.special_tokens)
    spec = enlarged(config, spec, encoder)
    longest = e.max_length or spec.family.longest(spec.config)
    segments = Segments.of(encoder, e.strand, longest, e.too_long, data.ids, config.data.path)
    scoring = Scoring(encoder, segments, len(STRANDS[e.strand]), causal=causal, stride=config.score.stride)
    plan = Plan.of(scoring.segments, config.data.buckets if config.model.masked else 1, e.batch_tokens, longest)
    mesh = training.make_mesh(config.mesh)
    graphdef, state = load(config, spec, mesh, lambda backbone: Scorer(backbone, causal=causal, masked=config.model.masked))
    compute, _ = compiled(graphdef, state, mesh)
    if not config.init_from:
        say("note: the weights are random; give trained ones with --config.init_from")

    file = EmbeddingFile(folder / "scores.npy", (len(data.ids), 3), "float64")
    digest = params_digest(state)
    settings = [digest, data.digest(), plan.buckets, e.batch_tokens, e.strand, e.too_long, config.score.stride, tokenizer.vocabulary()]
    order = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    done = start_rows(config, file, order)
    what = "log-likelihoods" if causal else f"pseudo-log-likelihoods in {len(scoring.segments.row):,} passes"
    say(f"{len(data.ids):,} sequences, {what}, {len(plan.buckets)} padded lengths up to {plan.buckets[-1]} on {mesh.size} devices")
    if done:
        say(f"resumed: {done} of {len(plan.shards)} parts are there already")
    writer = RowWriter(file, plan, np.arange(len(data.ids) + 1), order, tokenizer.padding_side == "left")
    rates = run_plan(config, plan, scoring.batch, compute, writer, mesh, done, scoring.shares)
    file.close()
    if jax.process_index() != 0:
        return 0
    values = np.array(np.load(file.partial))
    write_atomic(folder / FILE, _table(data.ids, values))
    total, tokens, bases = values.sum(0)
    metrics = {"all": {"loss": -total / max(tokens, 1), "loss_per_base": -total / max(bases, 1), "tokens": tokens}}
    result = {"job": "score", "model": spec.family.name, "metrics": metrics, "seed": config.seed, "params_digest": digest}
    result |= {"rows": len(data.ids), "kind": "log-likelihood" if causal else "pseudo-log-likelihood", "cut": segments.cut}
    write_result(folder, result | rates | environment())
    file.discard()
    say(f"result: {folder / FILE}")
    return 0


def _model(config: ConfigDict) -> ModelSpec:
    spec = model_spec(config)
    if spec.family.emits != "hidden" or spec.family.inputs != "tokens":
        raise InputError(f"model {spec.family.name!r} has no language-model head; choose a language model")
    if getattr(spec.config, "num_labels", 0):
        raise InputError(f"init_from={config.init_from}: a classifier without a language-model head; give the model before fine-tuning")
    return spec


def _table(ids: list[str], values: np.ndarray) -> str:
    """The lines of `FILE`."""
    lines = ["\t".join(COLUMNS)]
    for name, (total, tokens, bases) in zip(ids, values.tolist()):
        means = (total / n if n else float("nan") for n in (tokens, bases))
        lines.append("\t".join([name, f"{total:.6f}", f"{tokens:g}", f"{bases:g}", *(f"{mean:.6f}" for mean in means)]))
    return "\n".join(lines) + "\n"
