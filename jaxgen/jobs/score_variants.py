"""Score the variants of a VCF: likelihood ratio, embedding distances, predictions of a fine-tuned head; TSV and VCF out, resumable."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgen.data.augment import reverse_complement
from jaxgen.data.embeddings import EmbeddingFile
from jaxgen.data.genome import Genome
from jaxgen.data.segments import STRANDS, frame
from jaxgen.data.variants import Variants, allele_windows, annotate_vcf, longest_allele, read_variants
from jaxgen.errors import InputError, nearest
from jaxgen.heads.variant import VariantScorer
from jaxgen.jobs import training
from jaxgen.jobs.inference import compiled, first_row, load, run_in_order, start_rows, tuned_head, variant_model
from jaxgen.jobs.tasks import open_genome
from jaxgen.jobs.training import ModelSpec, open_workdir, say, sized_for
from jaxgen.tokenizers import Tokenizer
from jaxgen.train.logging import environment, write_atomic, write_result
from jaxgen.train.loop import params_digest

FILE, VCF = "variants.tsv", "variants.vcf"
SCORES = ("llr", "l2", "cosine")
_CHUNK = 4096  # alleles encoded at a time


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    v, folder = config.variants, Path(config.workdir)
    if "://" in config.workdir:
        raise InputError(f"--workdir={config.workdir}: scores are written row by row; give a folder of this machine and copy it afterwards")
    if open_workdir(config, ".variants.*.progress"):
        return 0
    for field, value in (("variants.vcf", v.vcf), ("data.fasta", config.data.fasta)):
        if not value:
            raise InputError(f"{field} is empty: give --config.{field}=FILE")
    if v.strand not in STRANDS:
        raise InputError(f"variants.strand={v.strand!r}{nearest(v.strand, STRANDS)}")
    longest = longest_allele(v.length, v.shifts)
    genome = open_genome(config)
    variants = read_variants(v.vcf, genome, longest)
    if not len(variants):
        left_out = "; ".join(f"{count} left out: {reason}" for reason, count in variants.skipped.items())
        raise InputError(f"{v.vcf}: no variants to score ({left_out or 'it has no records'})")
    for reason, count in variants.skipped.items():
        say(f"note: {count} alleles left out: {reason}")
    mesh = training.make_mesh(config.mesh)
    spec, tokenizer, windows = _prepare(config, genome, variants)
    graphdef, state, outputs = _load(config, spec, tokenizer, windows, mesh)
    score, _ = compiled(graphdef, state, mesh)

    file = EmbeddingFile(folder / "variants.npy", (len(variants), len(SCORES) + 2 * outputs), "float32")
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = -(-v.batch_size // ways) * ways
    settings = [
        params_digest(state),
        rows,
        config.to_dict()["variants"],
        variants.positions.tolist(),
        list(map(bytes.decode, variants.alts)),
    ]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()
    done = start_rows(config, file, digest)
    say(f"{len(variants):,} alleles, windows of {windows.length:,} bases in {len(windows.views)} views, on {mesh.size} devices")
    if done:
        say(f"resumed: {min(first_row(done, rows), len(variants)):,} alleles are there already")

    def mean(views: list[dict[str, np.ndarray]]) -> list[jax.Array]:
        return [_average(*map(score, views))]

    tokens = 2 * rows * windows.width * len(windows.views)
    rate = run_in_order(len(variants), rows, windows.batches(first_row(done, rows), rows), mean, [file], done, digest, tokens)
    file.close()
    if jax.process_index() != 0:
        return 0
    values = np.array(np.load(file.partial))
    names = [*SCORES, *(f"{allele}_{i}" for allele in ("ref", "alt") for i in range(outputs))]
    write_atomic(folder / FILE, _table(genome, variants, names, values))
    if v.write_vcf:
        annotate_vcf(v.vcf, folder / VCF, genome, variants, names, values)
    missing = int(np.isnan(values[:, 0]).sum())
    if missing:
        why = "no language-model head, insertions and deletions under a masked model or near N, byte pairs cut at other bases"
        say(f"note: {missing} alleles without a likelihood ratio ({why})")
    metrics = {"all": {name: float(np.nanmean(column)) for name, column in zip(names, values.T) if np.isfinite(column).any()}}
    result = {"job": "score_variants", "model": spec.family.name, "metrics": metrics, "rows": len(variants), "missing": missing, **rate}
    write_result(
        folder, {**result, "skipped": variants.skipped, "params_digest": params_digest(state), "seed": config.seed, **environment()}
    )
    file.discard()
    say(f"result: {folder / FILE}")
    return 0


class Windows:
    """Batches of both alleles in a window, in every view: a strand and a shift of the variant from the middle.

    Args:
      near: bases around the variant that `near` of the batches is about; 0 for all.

    Attributes:
      width: tokens of a row.
    """

    def __init__(
        self,
        genome: Genome,
        variants: Variants,
        tokenizer: Tokenizer,
        special_tokens: bool,
        length: int,
        strand: str,
        shifts: Any,
        near: int = 0,
    ):
        self.genome, self.variants, self.tokenizer, self.special_tokens = genome, variants, tokenizer, special_tokens
        self.length, self.near = length, near
        self.views = [(turn, int(shift)) for turn in STRANDS[strand] for shift in shifts]
        self.before = len(frame(tokenizer)[0]) if special_tokens else 0
        # Rows of one width compile once. K-mer tokenizers spell windows with N out base by base: the longest row says how wide.
        longest = np.argmax([max(len(ref), len(alt)) for ref, alt in zip(variants.refs, variants.alts)])
        rows = np.arange(len(variants)) if tokenizer.lookup is None else np.array([longest])
        chunks = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
        self.width = max(self._encode(rows, view, None)[1].shape[1] for rows in chunks for view in self.views)

    def batches(self, first: int, rows: int) -> Iterator[list[dict[str, np.ndarray]]]:
        """This process's share of every batch of `rows` alleles from `first` on, in all views."""
        each = rows // jax.process_count()
        for start in range(first + jax.process_index() * each, len(self.variants) + rows, rows):
            chosen = np.minimum(np.arange(start, start + each), len(self.variants) - 1)
            yield [self.batch(chosen, view, self.width) for view in self.views]

    def batch(self, rows: np.ndarray, view: tuple[int, int], width: int) -> dict[str, np.ndarray]:
        """The arrays of `VariantScorer` for the alleles `rows`."""
        turn, shift = view
        texts, tokens, mask = self._encode(rows, view, width)
        differ = tokens[..., 0] != tokens[..., 1]
        # The variant is where the rows begin to differ on the forward strand, and where they end to on the other one.
        index = width - 1 - differ[:, ::-1].argmax(1) if turn else differ.argmax(1)
        same = np.array([len(self.variants.refs[row]) == len(self.variants.alts[row]) for row in rows.tolist()])
        batch = {"tokens": tokens, "mask": mask, "index": index.astype(np.int32), "aligned": same}
        if self.tokenizer.fixed_tokens:
            return batch
        place = self.length // 2 + shift
        return batch | {"near": self._near(texts, mask, self.length - 1 - place if turn else place) if self.near else mask}

    def _encode(self, rows: np.ndarray, view: tuple[int, int], width: int | None) -> tuple[Sequence[np.ndarray], np.ndarray, np.ndarray]:
        """Windows with the reference and with the alternative; their tokens and mask (b, width or longest, 2)."""
        turn, shift = view
        texts = allele_windows(self.genome, self.variants, rows, self.length, shift)
        if turn:
            texts = [reverse_complement(text) for text in texts]
        encoded = [
            self.tokenizer.encode_batch([row.tobytes() for row in text], width, add_special_tokens=self.special_tokens) for text in texts
        ]
        wide = max(ids.shape[1] for ids, _ in encoded)
        ids = [np.pad(x, ((0, 0), (0, wide - x.shape[1])), constant_values=self.tokenizer.pad_id) for x, _ in encoded]
        masks = [self.tokenizer.attention_mask(lengths, wide) for _, lengths in encoded]
        return texts, np.stack(ids, -1), np.stack(masks, -1)

    def _near(self, texts: Sequence[np.ndarray], mask: np.ndarray, place: int) -> np.ndarray:
        """bool (b, width, 2): the tokens that reach into the window around the base `place`."""
        near, half = np.zeros_like(mask), self.near // 2
        for allele, text in enumerate(texts):
            for row in range(len(mask)):
                first, count = self.tokenizer.spans(text[row].tobytes())
                content = np.flatnonzero(mask[row, :, allele])[self.before :][: len(first)]
                near[row, content, allele] = (first <= place + half) & (first + count > place - half)
        return near


def _prepare(config: ConfigDict, genome: Genome, variants: Variants) -> tuple[ModelSpec, Tokenizer, Windows]:
    """The model, its tokenizer, and the windows that it reads."""
    v = config.variants
    spec, tokenizer = variant_model(config)
    windows = Windows(genome, variants, tokenizer, spec.family.special_tokens, v.length, v.strand, v.shifts, v.window)
    if spec.arrays is None:
        spec = sized_for(config, spec, windows.width)
    longest = spec.family.longest(spec.config)
    if longest and windows.width > longest:
        raise InputError(f"variants.length={v.length} gives {windows.width} tokens, but the model takes {longest}")
    return spec, tokenizer, windows


def _load(config: ConfigDict, spec: ModelSpec, tokenizer: Tokenizer, windows: Windows, mesh: Any) -> tuple[nnx.GraphDef, Any, int]:
    """(graph, state, outputs of the fine-tuned head or 0)."""
    tuned = tuned_head(config, spec)
    outputs = tuned.outputs if tuned else getattr(spec.config, "num_labels", 0)
    special = tokenizer.special_tokens if windows.special_tokens else 0
    per_token = max(1, round(windows.length / max(windows.width - special, 1)))

    def wrap(backbone: nnx.Module) -> VariantScorer:
        return VariantScorer(
            backbone,
            causal=spec.family.causal,
            bases=tuple(tokenizer.bases_per_token().tolist()),
            masked=config.model.masked,
            mask_id=0 if tokenizer.mask_id is None else tokenizer.mask_id,
            window_bp=config.variants.window,
            bp_per_token=per_token,
            head=tuned.around(backbone, spec, config.model.masked) if tuned else None,
        )

    graphdef, state = load(config, spec, mesh, wrap)
    return graphdef, tuned.place(state) if tuned else state, outputs


@jax.jit
def _average(*views: jax.Array) -> jax.Array:
    """The mean of the scores (rows, columns) over views; the ratio, the first column, is that of the views that have one."""
    scores = jnp.stack(views)
    return scores.mean(0).at[:, 0].set(jnp.nanmean(scores[..., 0], axis=0))


def _table(genome: Genome, variants: Variants, names: list[str], values: np.ndarray) -> str:
    """One line per allele; positions count from 1, as in the VCF; nothing stands where there is no score."""
    contigs = list(genome.contigs)
    lines = ["\t".join(["contig", "position", "id", "ref", "alt", *names])]
    rows = zip(variants.contig_ids.tolist(), variants.positions.tolist(), variants.names, variants.refs, variants.alts, values.tolist())
    for contig, position, name, ref, alt, scores in rows:
        cells = ["" if np.isnan(score) else f"{score:.6g}" for score in scores]
        lines.append("\t".join([contigs[contig], str(position + 1), name, ref.decode(), alt.decode(), *cells]))
    return "\n".join(lines) + "\n"
