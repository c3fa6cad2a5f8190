"""Which bases of a sequence matter to a model: in-silico mutagenesis and gradient x input, as arrays, table and logos, resumable."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxgen.data import mutants
from jaxgen.data.embeddings import EmbeddingFile, NamedSequences, read_named_sequences
from jaxgen.data.intervals import read_bed
from jaxgen.data.mutants import HiddenTokens, Mutants
from jaxgen.data.segments import STRANDS, Encoder, Plan, Segments, Step
from jaxgen.data.sequences import Sequences
from jaxgen.errors import InputError, nearest
from jaxgen.heads.explainer import Explainer
from jaxgen.jobs import training
from jaxgen.jobs.inference import Batch, RowWriter, compiled, load, meet, run_plan, start_rows, tuned_head
from jaxgen.jobs.tasks import open_genome
from jaxgen.jobs.tokenizer import choose_tokenizer
from jaxgen.jobs.training import ModelSpec, model_spec, open_workdir, say, sized_for
from jaxgen.train import logo, plots
from jaxgen.train.logging import environment, write_arrays, write_atomic, write_result
from jaxgen.train.loop import params_digest
from jaxgen.train.report import html_page
from jaxgen.train.state import TrainState

METHODS = ("ism", "grad_x_input")
ARRAYS, TABLE = "explain.npz", "explain.tsv"
COLUMNS = ("id", "position", "base", "ism_A", "ism_C", "ism_G", "ism_T", "ism_mean", "grad_x_input")


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    x, strand, folder = config.explain, config.embed.strand, Path(config.workdir)
    if "://" in config.workdir:
        raise InputError(f"--workdir={config.workdir}: rows are written one by one; give a folder of this machine and copy it afterwards")
    if open_workdir(config, ".explain.*.progress"):
        return 0
    for method in x.methods or ("",):
        if method not in METHODS:
            raise InputError(f"explain.methods: unknown method {method!r}{nearest(method, METHODS)}")
    if strand not in STRANDS:
        raise InputError(f"embed.strand={strand!r}{nearest(strand, STRANDS)}")
    data = _read(config)
    sites = mutants.sites(data.sequences, x.window, data.ids)
    encoder, spec = _prepare(config, data)
    mesh, head = training.make_mesh(config.mesh), tuned_head(config, spec)
    base_tokens = tuple(np.flatnonzero(encoder.tokenizer.bases_per_token() > 0).tolist())

    def wrap(backbone: Any) -> Explainer:
        around = head.around(backbone, spec, config.model.masked) if head else None
        return Explainer(backbone, head=around, causal=spec.family.causal, masked=config.model.masked, base_tokens=base_tokens)

    graphdef, state = load(config, spec, mesh, wrap)
    if head:
        state = head.place(state)
    ends_in_head = bool(head or spec.family.emits == "predictions" or getattr(spec.config, "num_labels", 0))
    width = compiled(graphdef, state, mesh, Explainer.outputs)[1](_example(mesh, spec)).shape[-1]
    chosen = _chosen(x.output, width if ends_in_head else 0)
    if not config.init_from:
        say("note: the weights are random; give trained ones with --config.init_from")
    say(f"{len(data.ids):,} sequences, {len(sites):,} bases, {' and '.join(x.methods)}, on {mesh.size} devices")

    turns = STRANDS[strand]
    settings = [params_digest(state), data.digest(), config.to_dict()["explain"], strand, config.embed.batch_tokens, config.data.buckets]
    digest = hashlib.sha256(json.dumps([*settings, encoder.tokenizer.vocabulary()]).encode()).hexdigest()
    runner = _Runner(config, encoder, spec, mesh, graphdef, state, digest)
    # A masked language model is asked for all letters at a hidden place; every other model reads every mutant.
    hides = not ends_in_head and not spec.family.causal and encoder.tokenizer.fixed_tokens
    mutated = Mutants.of(encoder, sites if "ism" in x.methods and not hides else sites[:0], turns)
    values = runner.rows("outputs", mutated.segments, mutated.batch, Explainer.outputs, width)
    outputs = values[mutated.code < 0]
    weights = output_weights(outputs, chosen)
    ism = gradient = None
    if "ism" in x.methods:
        ism = _hidden_effects(runner, sites, turns) if hides else _mutant_effects(data.sequences, mutated, values, weights)
    if "grad_x_input" in x.methods:
        gradient = _gradients(runner, sites, turns, weights)
    if jax.process_index() != 0:
        return 0
    _write(config, data, sites, outputs, weights, ism, gradient, "nats" if not ends_in_head else "logit" if width > 1 else "output")
    metrics: dict[str, float] = {"bases": float(len(sites))}
    if ism is not None and gradient is not None:
        with np.errstate(invalid="ignore"):  # scores that are all the same have no correlation
            metrics["ism_gradient_correlation"] = float(np.corrcoef(_importance(ism)[sites], gradient[sites])[0, 1])
    result = {"job": "explain", "model": spec.family.name, "metrics": {"all": metrics}, "seed": config.seed}
    result |= {"params_digest": settings[0], "rows": len(data.ids), "unknown_bases": int((mutants.codes(data.sequences) < 0).sum())}
    write_result(folder, result | {"stages": runner.rates} | environment())
    runner.discard()
    say(f"result: {folder / TABLE}, {folder / 'report' / 'index.html'}")
    return 0


def _read(config: ConfigDict) -> NamedSequences:
    """Sequences in upper case, with N for what is no base: of a table, a FASTA, or the regions of a BED."""
    path, e = config.data.path, config.embed
    if not path.removesuffix(".gz").endswith(".bed"):
        data = read_named_sequences(path, e.id_column, config.data.sequence_column, e.duplicates)
        for note in data.notes:
            if "lower-case" not in note:
                say(f"note: {note}")
    else:
        if not config.data.fasta:
            raise InputError(f"data.path={path} has regions of a genome: give it with --config.data.fasta=FILE")
        bed, genome = read_bed(path), open_genome(config)
        ids = [f"{contig}:{start}-{end}" for contig, start, end in zip(bed.contigs, bed.starts, bed.ends)]
        if len(set(ids)) < len(ids):
            raise InputError(f"{path}: {next(name for name in ids if ids.count(name) > 1)} stands there twice")
        regions = zip(bed.contigs, bed.starts.tolist(), bed.ends.tolist())
        pieces = [genome.fetch(contig, start, end).tobytes() for contig, start, end in regions]
        data = NamedSequences(ids, Sequences.from_list(pieces), ())
    clean = mutants.plain(data.sequences)
    unknown = int((mutants.codes(clean) < 0).sum())
    if unknown:
        say(f"note: {unknown:,} letters other than A, C, G, T are read as N, and have no scores")
    return dataclasses.replace(data, sequences=clean)


def _prepare(config: ConfigDict, data: NamedSequences) -> tuple[Encoder, ModelSpec]:
    """The sequences under the model's tokenizer, and the model, for sequences of their length."""
    spec = model_spec(config)
    if spec.family.inputs != "tokens":
        raise InputError(f"model {spec.family.name!r} reads no tokens; choose another")
    encoder = Encoder(data.sequences, choose_tokenizer(config, spec, data.sequences), spec.family.special_tokens)
    lengths = np.max([encoder.lengths(turn) for turn in STRANDS[config.embed.strand]], axis=0)
    if spec.arrays is None:
        spec = sized_for(config, spec, int(lengths.max()), 2 if spec.family.emits == "predictions" else 0)
    longest, worst = _longest(config, spec), int(lengths.argmax())
    if longest and lengths[worst] > longest:
        name = data.ids[worst]
        raise InputError(f"{config.data.path}: sequence {name!r} has {lengths[worst]} tokens, but the model takes {longest}; shorten it")
    if not lengths.min():
        raise InputError(f"{config.data.path}: sequence {data.ids[int(lengths.argmin())]!r} is too short for a single token; remove it")
    return encoder, spec


def _longest(config: ConfigDict, spec: ModelSpec) -> int:
    return config.embed.max_length or getattr(spec.config, "input_len", 0) or spec.family.longest(spec.config)


def _example(mesh: Mesh, spec: ModelSpec) -> dict[str, jax.ShapeDtypeStruct]:
    rows, length = mesh.shape["data"] * mesh.shape["fsdp"], getattr(spec.config, "input_len", 8)
    kinds = {"tokens": np.int32, "mask": bool, "bases": np.int32}
    return {name: jax.ShapeDtypeStruct((rows, length), kind) for name, kind in kinds.items()}


def _chosen(given: str, outputs: int) -> int | None:
    """The number in `explain.output`, None if it is empty.

    Raises:
      InputError: not a number of an output.
    """
    if not given:
        return None
    if not outputs:
        raise InputError(f"explain.output={given}: a language model has no classes; leave it empty, or give a fine-tuned run as init_from")
    if not re.fullmatch(r"\d{1,6}", given) or int(given) >= outputs:
        raise InputError(f"explain.output={given}: the model has outputs 0 ... {outputs - 1}; leave it empty for the predicted class")
    return int(given)


def output_weights(outputs: np.ndarray, chosen: int | None) -> np.ndarray:
    """float32 (n, outputs): weights whose product with the outputs (n, outputs) is explained.

    Output number `chosen`; for None the only one, or of several classes the logit of the predicted one minus the mean of the others.
    """
    n = outputs.shape[1]
    if chosen is not None or n == 1:
        return np.repeat(np.eye(n, dtype=np.float32)[[chosen or 0]], len(outputs), axis=0)
    predicted = np.eye(n, dtype=np.float32)[outputs.argmax(1)]
    return predicted - (1 - predicted) / (n - 1)


class _Runner:
    """Computes files of rows one after the other, each resumed where an interrupted run left it."""

    def __init__(
        self, config: ConfigDict, encoder: Encoder, spec: ModelSpec, mesh: Mesh, graphdef: nnx.GraphDef, state: TrainState, digest: str
    ):
        self.config, self.encoder, self.mesh, self.graphdef, self.state, self.digest = config, encoder, mesh, graphdef, state, digest
        self.longest, self.fixed = _longest(config, spec), getattr(spec.config, "input_len", 0)
        self.files: list[EmbeddingFile] = []
        self.rates: dict[str, Any] = {}

    def rows(
        self,
        name: str,
        segments: Segments,
        make_batch: Callable[[Step], Batch],
        method: Callable[[Any, Any], jax.Array],
        width: int,
        per_token: bool = False,
    ) -> np.ndarray:
        """float32 (rows, width) of all processes: a row per row of the segments, or (`per_token`) per token of every segment."""
        config, one_length = self.config, self.fixed or not self.config.model.masked
        plan = Plan.of(segments, 1 if one_length else config.data.buckets, config.embed.batch_tokens, self.longest)
        if self.fixed:  # a dense layer over positions
            plan = dataclasses.replace(plan, buckets=(self.fixed,))
        offsets = np.concatenate([[0], np.cumsum(segments.tokens)]) if per_token else np.arange(int(segments.row[-1]) + 2)
        file = EmbeddingFile(Path(config.workdir) / f"explain.{name}.npy", (int(offsets[-1]), width), "float32")
        done = start_rows(config, file, self.digest)
        if done:
            say(f"resumed: {done} of {len(plan.shards)} parts of {name} are there already")
        say(f"{name}: {len(segments.row):,} passes, padded to {', '.join(map(str, plan.buckets))} tokens")
        compute, _ = compiled(self.graphdef, self.state, self.mesh, method)
        writer = RowWriter(file, plan, offsets, self.digest, self.encoder.tokenizer.padding_side == "left")
        self.rates[name] = run_plan(config, plan, make_batch, compute, writer, self.mesh, done, segments.coefficient)
        file.close()
        self.files.append(file)
        rows = np.array(np.load(file.partial))
        meet(f"{name} are read")  # before the main process removes them
        return rows

    def discard(self) -> None:
        """Removes the files, whose content went elsewhere."""
        for file in self.files:
            file.discard()


def _mutant_effects(sequences: Sequences, mutated: Mutants, outputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float32 (total bases, 4): output of the mutant less that of the sequence; 0 at the base itself, NaN where nothing was mutated."""
    value = (outputs.astype(np.float64) * weights[mutated.owner]).sum(1)
    changed = mutated.code >= 0
    sites, own = mutated.site[changed], value[~changed][mutated.owner[changed]]
    effects = np.full((len(sequences.buffer), 4), np.nan, np.float32)
    effects[sites, mutants.codes(sequences)[sites]] = 0
    effects[sites, mutated.code[changed]] = value[changed] - own
    return effects


def _hidden_effects(runner: _Runner, sites: np.ndarray, turns: tuple[int, ...]) -> np.ndarray:
    """float32 (total bases, 4): log P(letter) - log P(base) with the tokens of the base hidden, averaged over strands; NaN but at sites."""
    sequences, hidden = runner.encoder.sequences, HiddenTokens.of(runner.encoder, sites, turns)
    slots = hidden.site.shape[1]
    log_p = runner.rows("letters", hidden.segments, hidden.batch, Explainer.letters, slots * 4).reshape(-1, slots, 4)
    asked = hidden.site >= 0
    places, values = hidden.site[asked], log_p[asked]
    own = mutants.codes(sequences)[places].astype(np.int64)
    total = np.full((len(sequences.buffer), 4), np.nan)
    total[sites] = 0
    np.add.at(total, places, (values - np.take_along_axis(values, own[:, None], axis=1)) / len(turns))
    return total.astype(np.float32)


def _gradients(runner: _Runner, sites: np.ndarray, turns: tuple[int, ...], weights: np.ndarray) -> np.ndarray:
    """float32 (total bases,): gradient x input of tokens, spread over their bases and averaged over strands; NaN but at the sites."""
    encoder = runner.encoder
    sequences, per_token = encoder.sequences, encoder.tokenizer.bases_per_token()
    whole = Mutants.of(encoder, sites[:0], turns)
    owner = whole.segments.row
    # A row for every strand: their tokens are not the same bases.
    segments = dataclasses.replace(whole.segments, row=np.arange(len(owner)))
    rows = dataclasses.replace(whole, owner=owner, site=whole.site[owner], code=whole.code[owner], segments=segments)

    def batch(step: Step) -> dict[str, np.ndarray]:
        return rows.batch(step) | {"weights": np.where(step.segments[:, None] >= 0, weights[owner[step.segments]], 0)}

    scores = runner.rows("gradients", segments, batch, Explainer.grad_x_input, 1, per_token=True)[:, 0]
    total, ends = np.full(len(sequences.buffer), np.nan, np.float32), np.cumsum(segments.tokens)
    total[sites] = 0
    for row, turn, end, n in zip(owner.tolist(), segments.strand.tolist(), ends.tolist(), segments.tokens.tolist()):
        content = scores[end - n + len(encoder.prefix) : end - len(encoder.suffix)]
        ids = encoder.tokenizer.encode(encoder.text(row, turn), add_special_tokens=False)
        values = np.where(per_token[ids] > 0, content, 0)  # what a token with N adds says nothing of a base
        total[slice(*sequences.offsets[row : row + 2])] += mutants.spread_over_bases(encoder, row, turn, values) / len(turns)
    return total


def _importance(ism: np.ndarray) -> np.ndarray:
    """(bases,): minus the mean effect of the three mutations."""
    return -ism.sum(1) / 3


def _write(
    config: ConfigDict,
    data: NamedSequences,
    sites: np.ndarray,
    outputs: np.ndarray,
    weights: np.ndarray,
    ism: np.ndarray | None,
    gradient: np.ndarray | None,
    unit: str,
) -> None:
    """Arrays, table and report."""
    folder, offsets = Path(config.workdir), data.sequences.offsets
    scores = {name: values for name, values in (("ism", ism), ("grad_x_input", gradient)) if values is not None}
    arrays = {"ids": np.array(data.ids, dtype=np.str_), "offsets": offsets, "outputs": outputs, "weights": weights, **scores}
    write_arrays(folder / ARRAYS, arrays)

    nothing = np.full(len(data.sequences.buffer), np.nan)
    columns = [*(ism.T if ism is not None else [nothing] * 4), nothing if ism is None else _importance(ism)]
    columns.append(nothing if gradient is None else gradient)
    owner = np.searchsorted(offsets, sites, side="right") - 1
    values = np.stack(columns, 1)[sites].tolist()
    lines = ["\t".join(COLUMNS)]
    for row, position, base, cells in zip(owner, sites - offsets[owner] + 1, data.sequences.buffer[sites].tobytes().decode(), values):
        lines.append("\t".join([data.ids[row], str(position), base, *("" if np.isnan(cell) else f"{cell:.6g}" for cell in cells)]))
    write_atomic(folder / TABLE, "\n".join(lines) + "\n")

    images = {}
    for row in range(min(config.explain.plots, len(data.ids))):
        own = sites[slice(*np.searchsorted(sites, offsets[row : row + 2]))]
        if not len(own):
            continue
        part = slice(own[0], own[-1] + 1)  # the window, without N at its ends
        logos = {"in-silico mutagenesis": _importance(ism)[part]} if ism is not None else {}
        logos |= {"gradient x input": gradient[part]} if gradient is not None else {}
        what = "likelihood" if unit == "nats" else f"output {(outputs[row] * weights[row]).sum():.3g}"
        title = f"{data.ids[row]}: {what}" if unit != "logit" else f"{data.ids[row]}: class {weights[row].argmax()}, {what}"
        first = int(own[0] - offsets[row]) + 1
        letters = data.sequences.buffer[part].tobytes().decode()
        figure = logo.importance_figure(letters, logos, None if ism is None else ism[part], title, unit, first)
        images[f"{row + 1:03}_{re.sub(r'[^A-Za-z0-9.-]+', '_', data.ids[row])[:60]}"] = plots.png(figure)
    for name, image in images.items():
        write_atomic(folder / "report" / f"{name}.png", image)
    write_atomic(folder / "report" / "index.html", html_page("What matters to the model", {}, images, []))
