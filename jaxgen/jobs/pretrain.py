"""Train a language model on a genome: next token or masked, with a BED of splits or a held-out share of every contig."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxgen import tokenizers
from jaxgen.data.genome import Genome
from jaxgen.data.intervals import CaduceusWindows, TiledWindows, Windows, read_bed
from jaxgen.data.pipeline import GenomeWindows, eval_batches, train_loader
from jaxgen.errors import InputError
from jaxgen.heads.predictor import LanguageModel
from jaxgen.jobs.training import Run, limited, model_spec, open_workdir, say, sized_for, train
from jaxgen.train import objectives
from jaxgen.train.evaluate import Evaluator, SumEvaluator
from jaxgen.train.state import Program

SPLITS = ("train", "valid", "test")


def run(config: ConfigDict) -> int:
    """See the module; returns the exit code."""
    if open_workdir(config):
        return 0
    d, t = config.data, config.train
    if not d.fasta:
        raise InputError("data.fasta is empty: give a FASTA file to train on, e.g. --config.data.fasta=genome.fa")
    if not d.max_length:
        raise InputError("data.max_length=0: say how many bases a training window has, e.g. --config.data.max_length=1024")
    spec = sized_for(config, model_spec(config), d.max_length + 2)
    name, options = spec.family.tokenizer(spec.config)
    # Pre-training reads soft-masked (lower-case) bases as bases.
    tokenizer = tokenizers.get("caduceus" if name == "character" else name, **options)
    genome = Genome.open(d.fasta, cache_dir=d.cache or None)
    bed = read_bed(d.bed) if d.bed else None

    def windows(split: str) -> Windows:
        if bed is not None:
            return CaduceusWindows(bed, genome.contigs, d.max_length, split)
        return TiledWindows(genome.contigs, d.max_length, split, d.holdout, d.stride if split == "train" else 0)

    sources = {
        split: GenomeWindows(
            genome,
            windows(split),
            tokenizer,
            d.max_length,
            d.objective,
            rc_aug=d.rc_aug and split == "train",
            mlm_probability=d.mlm_probability,
        )
        for split in SPLITS
    }
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    reading = {"num_threads": d.threads, "prefetch": d.prefetch}
    loader = train_loader(sources["train"], batch_size=t.batch_size, seed=config.seed, **process, **reading)
    counts = ", ".join(f"{len(sources[split]):,} {split}" for split in SPLITS)
    say(f"{d.fasta}: {sum(genome.contigs.values()):,} bases, windows of {d.max_length}: {counts}")

    special = tuple(i for i in (tokenizer.sep_id, tokenizer.cls_id, tokenizer.unk_id) if i is not None)

    def evaluators(program: Program) -> dict[str, Evaluator]:
        rows = t.eval_batch_size or t.batch_size
        return {
            split: SumEvaluator(program, limited(eval_batches(sources[split], rows, **process, **reading), t.eval_batches))
            for split in ("valid", "test")
        }

    def build(backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        return LanguageModel(backbone)

    return train(
        config,
        Run(
            spec=spec,
            build=build,
            objective=objectives.token_cross_entropy(tokenizer.pad_id, special),
            stream=loader,
            steps_per_epoch=loader.steps_per_epoch,
            evaluators=evaluators,
            select="loss",
            tokens_per_example=d.max_length,
            title=str(d.fasta).rsplit("/", 1)[-1],
            loss_label="cross entropy (nats per base)",
            extra_result={"fasta": d.fasta, "objective": d.objective, "max_length": d.max_length},
        ),
    )
