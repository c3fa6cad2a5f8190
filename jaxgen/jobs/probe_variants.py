"""Probe what a frozen model knows of variants that change expression (eQTLs): embeddings of both alleles, an SVM, zero-shot scores."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgen.baselines import variant_svm
from jaxgen.baselines.variant_svm import BUCKETS, Bucket, Features, Protocol
from jaxgen.data.augment import reverse_complement
from jaxgen.data.embeddings import EmbeddingFile
from jaxgen.data.eqtl import EqtlSplit, encode_tissues, load_eqtl
from jaxgen.data.simulated_eqtl import simulate_eqtl
from jaxgen.data.variants import variant_index
from jaxgen.errors import InputError
from jaxgen.heads.variant import VariantEmbedder
from jaxgen.jobs import training
from jaxgen.jobs.inference import compiled, first_row, load, meet, run_in_order, start_rows, variant_model
from jaxgen.jobs.tasks import open_genome
from jaxgen.jobs.training import ModelSpec, open_workdir, say, sized_for
from jaxgen.tokenizers import Tokenizer
from jaxgen.train.logging import environment, write_arrays, write_result
from jaxgen.train.loop import params_digest
from jaxgen.train.variant_report import BucketScores, spread, write_probe

SCORES = ("llr", "l2", "l1", "cosine")
FILES = ("forward", "reverse", "zero_shot")
LABELS = ("0-30 kb", "30-100 kb", "100 kb and more")
_MOST_DIFFERENT = 16  # bases; windows that differ in more hold an insertion or deletion


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    folder, p = Path(config.workdir), config.probe
    if "://" in config.workdir:
        raise InputError(
            f"--workdir={config.workdir}: embeddings are written row by row; give a folder of this machine and copy it afterwards"
        )
    if open_workdir(config, ".*.npy.progress"):
        return 0
    spec, tokenizer = variant_model(config)
    if not tokenizer.fixed_tokens:
        raise InputError(
            f"model {spec.family.name!r} reads byte pairs, whose tokens change far from a variant; choose one of bases or k-mers"
        )
    protocol = _protocol(config, spec)
    splits, attainable = _data(config)
    tissues = encode_tissues(splits, config.faithful)
    reader = AlleleReader(tokenizer, splits["train"].length, both=spec.family.strands is None)
    if spec.arrays is None:
        spec = sized_for(config, spec, reader.width)
    longest = spec.family.longest(spec.config)
    if longest and reader.width > longest:
        raise InputError(
            f"windows of {splits['train'].length} bases are {reader.width} tokens, but the model takes {longest}; set probe.length"
        )
    mesh = training.make_mesh(config.mesh)
    window = p.window if config.data.path else p.simulated.window
    if window > splits["train"].length:
        say(f"note: the average over {window} bases is wider than the windows, whose ends count more than once")

    def wrap(backbone: nnx.Module) -> VariantEmbedder:
        return VariantEmbedder(
            backbone,
            strands=spec.family.strands,
            causal=spec.family.causal,
            bases=tuple(tokenizer.bases_per_token().tolist()),
            mask_id=0 if tokenizer.mask_id is None else tokenizer.mask_id,
            window_bp=window,
            bp_per_token=reader.bp_per_token,
            ratio=p.zero_shot,
            turned_back=not config.faithful,
        )

    graphdef, state = load(config, spec, mesh, wrap)
    embed, shapes = compiled(graphdef, state, mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = -(-p.batch_size // ways) * ways
    weights = params_digest(state)
    widths = [shape.shape[1] for shape in shapes(reader.example(rows))]
    settings = [weights, config.precision, rows, window, p.zero_shot, config.faithful, tokenizer.name, tokenizer.vocabulary()]
    files, rates = {}, {}
    for split, data in splits.items():
        files[split] = [EmbeddingFile(folder / f"{split}_{name}.npy", (len(data), width), "float32") for name, width in zip(FILES, widths)]
        digest = hashlib.sha256(json.dumps([*settings, data.digest]).encode()).hexdigest()
        done = min(start_rows(config, file, digest) for file in files[split])
        first = first_row(done, rows)
        say(f"{split}: {len(data):,} variants in windows of {data.length:,} bases, {reader.width:,} tokens, on {mesh.size} devices")
        if done:
            say(f"resumed: {min(first, len(data)):,} variants are there already")
        tokens = 2 * rows * reader.width * (2 if reader.both else 1)
        rates[split] = run_in_order(len(data), rows, reader.batches(data, first, rows), embed, files[split], done, digest, tokens)
        for file in files[split]:
            file.close()
    if jax.process_index() == 0:
        features = {split: _features(data, tissues[split], files[split]) for split, data in splits.items()}
        zero_shot = np.load(files["test"][2].partial, mmap_mode="r")
        result = _probe(config, spec, protocol, features, zero_shot, attainable)
        for split, data in splits.items():
            arrays = {"labels": data.labels, "chromosomes": data.chromosomes, "tissues": data.tissues, "distances": data.distances}
            write_arrays(folder / f"{split}_rows.npz", arrays | {"tissue_numbers": tissues[split]})
            for file in files[split]:
                file.finish()
        sizes = {f"{split}_rows": len(data) for split, data in splits.items()}
        result |= {"params_digest": weights, "seed": config.seed, "embedding": rates, **sizes, **environment()}
        write_result(folder, result)
        say(f"result: {folder / 'result.json'}  ({folder / 'probe.md'})")
    meet("the probe is done")  # the others wait: the first process keeps the run together
    return 0


class AlleleReader:
    """Windows of bases -> the batches of `VariantEmbedder`.

    Args:
        tokenizer: of single bases or k-mers; no special tokens are added.
        length: bases of a window.
        both: whether the reverse complement is read too.

    Attributes:
        bp_per_token: bases that a token stands for.
        width: tokens of a window, cut on the right where k-mers do not fill it.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, both: bool):
        self.tokenizer, self.both = tokenizer, both
        self.bp_per_token = int(tokenizer.bases_per_token().max())
        self.width = min(length // self.bp_per_token, len(tokenizer.encode(b"A" * length, add_special_tokens=False)))
        if self.width < 1:
            raise InputError(f"windows of {length} bases are too short for a single token of {tokenizer.name!r}")

    def example(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch over all processes."""
        shapes: Mapping[str, tuple[tuple[int, ...], Any]] = {
            "tokens": ((rows, self.width, 2, 1 + self.both), np.int32),
            "index": ((rows,), np.int32),
            "aligned": ((rows,), bool),
        }
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}

    def batches(self, data: EqtlSplit, first: int, rows: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's share of every batch of `rows` variants from `first` on; the last row fills up the last batch."""
        each = rows // jax.process_count()
        mine = jax.process_index() * each + np.arange(each)
        for ref, alt in data.read(first, rows):
            chosen = np.minimum(mine, len(ref) - 1)
            yield self.batch(ref[chosen], alt[chosen])

    def batch(self, ref: np.ndarray, alt: np.ndarray) -> dict[str, np.ndarray]:
        """From uint8 (b, length) windows of either allele."""
        tokens = np.stack([self._encode(ref, alt), self._encode(*map(reverse_complement, (ref, alt)))][: 1 + self.both], -1)
        index = variant_index(tokens[..., 0, 0], tokens[..., 1, 0])
        return {"tokens": tokens, "index": index, "aligned": (ref != alt).sum(1) <= _MOST_DIFFERENT}

    def _encode(self, *windows: np.ndarray) -> np.ndarray:
        """int32 (b, width, 2)."""
        texts = ([row.tobytes() for row in window] for window in windows)
        return np.stack([self.tokenizer.encode_batch(text, self.width, add_special_tokens=False)[0] for text in texts], -1)


def _protocol(config: ConfigDict, spec: ModelSpec) -> Protocol:
    """Auto streams as published: both strands where the model reads them itself, in test alone for Caduceus-Ph, else the forward one."""
    p, streams = config.probe, config.probe.streams
    if streams == "auto":
        streams = "average" if spec.family.strands is not None else "average_test" if spec.family.name == "caduceus_ph" else "forward"
    return Protocol(
        streams=streams,
        use_tissue=p.use_tissue,
        strengths=tuple(p.strengths),
        seeds=tuple(p.seeds),
        rows=p.rows,
        validation=p.validation,
        split_seed=config.seed,
        faithful=config.faithful,
        n_jobs=p.n_jobs,
    )


def _data(config: ConfigDict) -> tuple[dict[str, EqtlSplit], float]:
    """Both splits, and the attainable AUROC of simulated ones (else NaN); notes are printed."""
    if config.data.path:
        genome = open_genome(config) if config.data.fasta else None
        splits, attainable = load_eqtl(config.data.path, config.probe.length, genome), math.nan
    else:
        options = {name: value for name, value in config.probe.simulated.to_dict().items() if name != "window"}
        splits, known = simulate_eqtl(config.seed, **options)
        attainable = known["auroc"]
        say(f"note: SIMULATED variants; the true effects themselves reach an AUROC of {attainable:.4f}")
    for note in (note for data in splits.values() for note in data.notes):
        say(f"note: {note}")
    shared = np.intersect1d(splits["train"].chromosomes, splits["test"].chromosomes)
    if len(shared):
        say(f"note: train and test share {len(shared)} chromosomes; the same locus may be in both")
    return splits, attainable


def _features(data: EqtlSplit, tissues: np.ndarray, files: list[EmbeddingFile]) -> Features:
    forward, reverse = (np.load(file.partial, mmap_mode="r") for file in files[:2])
    usable = ~(files[0].non_finite() | files[1].non_finite())
    return Features(forward, reverse, data.labels, data.chromosomes, tissues, data.distances, usable)


def _probe(
    config: ConfigDict,
    spec: ModelSpec,
    protocol: Protocol,
    features: Mapping[str, Features],
    zero_shot: np.ndarray,
    attainable: float,
) -> dict[str, Any]:
    """Fits the classifiers bucket by bucket and writes the report; returns the fields of `result.json`."""
    train, test = features["train"], features["test"]
    notes = [_about(config, protocol), "Zero-shot scores are untrained; a larger score means an effect."]
    dropped = {split: int((~one.usable).sum()) for split, one in features.items()}
    notes += [f"{count:,} rows of {split} left out, whose embeddings are not finite." for split, count in dropped.items() if count]
    buckets: list[BucketScores] = []
    runs: list[dict[str, Any]] = []
    model = config.model.name or spec.family.name
    for number in range(len(BUCKETS)):
        bucket = variant_svm.probe_bucket(train, test, number, protocol)
        for note in bucket.notes:
            say(f"note: {note}")
        notes += bucket.notes
        runs += [_run(model, bucket, fit, protocol) for fit in bucket.fits]
        chosen = [fit for fit in bucket.fits if fit.selected]
        scores = variant_svm.zero_shot_auroc(np.asarray(zero_shot[bucket.test_rows]), test.labels[bucket.test_rows])
        sizes = len(bucket.train_rows), len(bucket.test_rows)
        c = chosen[0].c if chosen else math.nan
        buckets.append(BucketScores(LABELS[number], *sizes, c, [fit.decision for fit in chosen], [fit.hard for fit in chosen], scores))
        decision, hard = spread(buckets[-1].decision)[0], spread(buckets[-1].hard)[0]
        say(f"{LABELS[number]}: AUROC {decision:.4f} by decision values, {hard:.4f} by hard predictions")
    if not runs:
        where = config.data.path or "simulated variants"
        raise InputError(f"{where}: no range of distances has finite embeddings of both classes in train and test")
    simulated = not config.data.path
    title = f"{'SIMULATED eQTLs' if simulated else 'eQTLs'}: {model}"
    if simulated:
        notes.append(f"Attainable AUROC, by the true effects themselves: {attainable:.4f}.")
    table = write_probe(config.workdir, runs, buckets, title, notes, attainable)
    for line in [title, *table.splitlines()]:
        say(line)
    result: dict[str, Any] = {"job": "probe_variants", "model": spec.family.name, "metrics": _metrics(buckets, config.faithful)}
    result |= {
        "faithful": config.faithful,
        "seeds": list(protocol.seeds),
        "streams": protocol.streams,
        "dropped": dropped,
        "notes": notes,
        "simulated": simulated,
    }
    return result | {"fits": runs, "attainable": {"auroc": attainable} if simulated else None}


def _about(config: ConfigDict, protocol: Protocol) -> str:
    inputs = {"forward": "forward strand", "average": "mean of both strands", "average_test": "forward strand, in test the mean of both"}
    how = f"SVM on the {inputs[protocol.streams]}{' and the tissue' if protocol.use_tissue else ''}; mean and deviation over seeds."
    if config.faithful:
        return f"As published: C is the best on TEST, so the figures are optimistic; the published score is that of hard predictions. {how}"
    return f"Sound: C is chosen on chromosomes held out of train, and test is scored with it alone. {how}"


def _run(model: str, bucket: Bucket, fit: variant_svm.Fit, protocol: Protocol) -> dict[str, Any]:
    """A line of probe.csv: the published columns, then ours. AUROC is that of hard predictions in the faithful protocol alone."""
    published = {"model_name": model, "bucket_id": bucket.number, "use_tissue": protocol.use_tissue, "C": fit.c, "seed": fit.seed}
    ours = {"auroc_decision": fit.decision, "auroc_hard": fit.hard, "auroc_validation": fit.validation, "selected": fit.selected}
    return published | {"AUROC": fit.hard if protocol.faithful else fit.decision} | ours


def _metrics(buckets: list[BucketScores], faithful: bool) -> dict[str, dict[str, float]]:
    """`test`: means over seeds per bucket, and `auroc` over the buckets; `test_std`; `zero_shot`."""
    test, std, zero_shot = {}, {}, {}
    for number, bucket in enumerate(buckets):
        for name, values in (("auroc", bucket.decision), ("auroc_hard", bucket.hard)):
            test[f"{name}_bucket_{number}"], std[f"{name}_bucket_{number}"] = spread(values)
        zero_shot |= {f"{name}_bucket_{number}": value for name, value in bucket.zero_shot.items()}
    main = "auroc_hard" if faithful else "auroc"
    means = [test[f"{main}_bucket_{number}"] for number in range(len(buckets))]
    return {"test": {"auroc": float(np.nanmean(means)), **test}, "test_std": std, "zero_shot": zero_shot}
