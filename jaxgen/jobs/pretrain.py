"""Train a language model on a genome: next token or masked, with a BED of splits or a held-out share of every contig."""

from dataclasses import dataclass

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxgen import tokenizers
from jaxgen.data.genome import Genome
from jaxgen.data.genome_windows import WindowBases, training_texts
from jaxgen.data.intervals import Bed, BedTiles, CaduceusWindows, TiledWindows, Windows, read_bed
from jaxgen.data.pipeline import BatchSource, GenomeWindows, StagedIterator, TokenWindows, eval_batches, train_loader
from jaxgen.errors import InputError
from jaxgen.heads.predictor import LanguageModel
from jaxgen.jobs.tasks import open_genome
from jaxgen.jobs.tokenizer import choose_tokenizer, with_vocabulary
from jaxgen.jobs.training import ModelSpec, Run, limited, model_spec, open_workdir, say, sized_for, train
from jaxgen.tokenizers.base import Tokenizer
from jaxgen.tokenizers.framed import FramedTokenizer
from jaxgen.tokenizers.kmer import KmerTokenizer
from jaxgen.train import objectives
from jaxgen.train.evaluate import Evaluator, SumEvaluator
from jaxgen.train.state import Program
from jaxgen.train.termination import Termination

SPLITS = ("train", "valid", "test")
_TEXT_BASES = 1024  # per piece of the genome that a vocabulary is learned from


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    if not open_workdir(config):
        with Termination(say) as termination:
            train(config, prepare(config), termination)
    return 0


def prepare(config: ConfigDict) -> Run:
    """The genome, the model for it, and the batches that they make together.

    Raises:
      InputError: settings that do not fit the genome or the model.
    """
    d, t = config.data, config.train
    if not d.fasta:
        raise InputError("data.fasta is empty: give a FASTA file to train on, e.g. --config.data.fasta=genome.fa")
    if not d.max_length:
        raise InputError("data.max_length=0: say how many tokens a training window has, e.g. --config.data.max_length=1024")
    stages = _stages(config)
    spec = with_vocabulary(config, model_spec(config))
    objective = _objective(config, spec)
    genome = open_genome(config)
    corpus = Corpus(config, genome, read_bed(d.bed) if d.bed else None, objective)
    tokenizer = corpus.tokenizer(spec)
    spec = _sized(config, spec, tokenizer)

    sources = {split: corpus.source(split, d.max_length, tokenizer, spec) for split in SPLITS}
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    reading = {"num_threads": d.threads, "prefetch": d.prefetch}
    loaders = [
        train_loader(
            sources["train"] if length == d.max_length else corpus.source("train", length, tokenizer, spec),
            batch_size=t.batch_size * d.max_length // length,
            seed=config.seed,
            **process,
            **reading,
        )
        for _, length in stages
    ]
    loader = StagedIterator(loaders, [start for start, _ in stages])
    counts = ", ".join(f"{len(sources[split]):,} {split}" for split in SPLITS)
    say(f"{d.fasta}: {sum(genome.contigs.values()):,} bases, windows of {corpus.bases(d.max_length, tokenizer):,}: {counts}")

    def evaluators(program: Program) -> dict[str, Evaluator]:
        rows = t.eval_batch_size or t.batch_size
        return {
            split: SumEvaluator(program, limited(eval_batches(sources[split], rows, **process, **reading), t.eval_batches))
            for split in ("valid", "test")
        }

    def build(backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        return LanguageModel(backbone)

    return Run(
        spec=spec,
        build=build,
        objective=objectives.token_cross_entropy(tokenizer.pad_id, tokenizer.bases_per_token()),
        stream=loader,
        steps_per_epoch=loader.steps_per_epoch,
        evaluators=evaluators,
        select="loss",
        tokens_per_example=d.max_length,
        title=str(d.fasta).rsplit("/", 1)[-1],
        loss_label=f"cross entropy (nats per {'base' if tokenizer.lookup is not None else 'token'})",
        extra_result={
            "fasta": d.fasta,
            "objective": objective,
            "max_length": d.max_length,
            "window_bases": corpus.bases(d.max_length, tokenizer),
            "tokenizer": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
        },
        tokenizer=tokenizer,
    )


@dataclass(frozen=True)
class Corpus:
    """The windows of a genome that a config means, as batches for any tokenizer."""

    config: ConfigDict
    genome: Genome
    bed: Bed | None
    objective: str

    def tokenizer(self, spec: ModelSpec) -> Tokenizer:
        """The one that `choose_tokenizer` finds; models of single bases read soft-masked (lower-case) bases as bases."""
        name, options = spec.family.tokenizer(spec.config)
        published = tokenizers.published(name, **options)
        if published is not None and published.lookup is not None:
            return tokenizers.get("caduceus" if name == "character" else name, **options)
        reader = WindowBases(self.genome, self._tiles("train", _TEXT_BASES, 0), _TEXT_BASES)
        return choose_tokenizer(self.config, spec, training_texts(reader, self.config.seed))

    def bases(self, length: int, tokenizer: Tokenizer) -> int:
        """Bases of the windows that rows of `length` tokens are made from."""
        if isinstance(tokenizer, FramedTokenizer) and self.config.data.window_bases:
            return int(self.config.data.window_bases)
        return tokenizer.bases_in(length - tokenizer.special_tokens) if isinstance(tokenizer, KmerTokenizer) else length

    def source(self, split: str, length: int, tokenizer: Tokenizer, spec: ModelSpec) -> BatchSource:
        """Rows of `length` tokens."""
        d, bases = self.config.data, self.bases(length, tokenizer)
        options = {"rc_aug": d.rc_aug and split == "train", "mlm_probability": d.mlm_probability}
        # The published windows of the other tokenizers are powers of two that run beyond their intervals.
        if self.bed is None or isinstance(tokenizer, KmerTokenizer):
            windows: Windows = self._tiles(split, bases, d.stride if split == "train" else 0)
        else:
            windows = CaduceusWindows(self.bed, self.genome.contigs, bases, split)
        if isinstance(tokenizer, FramedTokenizer):
            options |= {"special_tokens": spec.family.special_tokens, "masked": self.config.model.masked}
            return TokenWindows(self.genome, windows, tokenizer, length, self.objective, bases, **options)
        return GenomeWindows(self.genome, windows, tokenizer, length, self.objective, **options)

    def _tiles(self, split: str, bases: int, stride: int) -> Windows:
        contigs = self.genome.contigs
        if self.bed is not None:
            return BedTiles(self.bed, contigs, bases, split, stride)
        return TiledWindows(contigs, bases, split, self.config.data.holdout, stride)


def _objective(config: ConfigDict, spec: ModelSpec) -> str:
    """`data.objective`, or what the family is for.

    Raises:
      InputError: a model without a language-model head, or one that would see the token that it is to predict.
    """
    family = spec.family
    if family.emits != "hidden" or family.inputs != "tokens":
        raise InputError(f"model {family.name!r} has no language-model head; choose a language model")
    objective = config.data.objective or ("ntp" if family.causal else "mlm")
    if objective == "ntp" and not family.causal:
        raise InputError(f"data.objective=ntp: {family.name} sees both sides of a token, so the next one is no prediction; use mlm")
    return objective


def _sized(config: ConfigDict, spec: ModelSpec, tokenizer: Tokenizer) -> ModelSpec:
    """`spec` for rows of data.max_length tokens.

    Raises:
      InputError: longer than the model takes.
    """
    length = int(config.data.max_length)
    sized = sized_for(config, spec, length + (0 if isinstance(tokenizer, FramedTokenizer) else 2))
    longest = sized.family.longest(sized.config)
    if 0 < longest < length:
        raise InputError(f"data.max_length={length}: {sized.family.name} takes {longest} tokens; set it lower")
    return sized


def _stages(config: ConfigDict) -> list[tuple[int, int]]:
    """(first step, tokens per row) of every stage of `data.length_warmup`, and of the rest of the run.

    Raises:
      InputError: a stage that is not STEPS:LENGTH, or whose length does not divide data.max_length.
    """
    longest, start, stages = int(config.data.max_length), 0, []
    for text in config.data.length_warmup:
        steps, _, length = str(text).partition(":")
        if not (steps.strip().isdecimal() and length.strip().isdecimal() and int(steps) and int(length)):
            raise InputError(f"data.length_warmup: {text!r} is not of the form STEPS:LENGTH, such as 500:1024")
        if longest % int(length):
            raise InputError(f"data.length_warmup: length {length} does not divide data.max_length={longest}; updates would differ in size")
        stages.append((start, int(length)))
        start += int(steps)
    return [*stages, (start, longest)]
