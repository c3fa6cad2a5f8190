"""Part `tokens`: bases -> batches of token ids, in MB of bases, or in sequences, per second of one core.

The clock is the CPU time of this process, which reads without threads: what one core does, whatever else the machine is busy with.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import Contender, Goal, Note, Options, Row, compare, have
from benchmarks.peers import dict_tokenizer, hf_kmer_tokenizer, hf_tokenizer, read_windows

LENGTHS = (1024, 32768, 131072)
GOAL = Goal("value", ">=", 200.0)
KMER_GOAL = Goal("ratio", ">=", 100.0)
MB = 1e6
CONTIG = "simulated"


def run(options: Options) -> Iterator[Row | Note]:
    """Windows of a simulated genome, read in random order; then the shipped table task, from text to the batches of one epoch."""
    bases, batch_bases, batches, lengths = (1 << 16, 1 << 12, 2, (1024,)) if options.smoke else (1 << 26, 1 << 18, 64, LENGTHS)
    encoders: dict[str, Callable[[str], list[int]]] = {"pyfaidx + dict": dict_tokenizer()}
    if have("transformers"):
        encoders["pyfaidx + HF tokenizer"] = hf_tokenizer()
    else:
        yield Note("tokens", "transformers is not installed, so its tokenizer is left out (make bench installs it)")
    with tempfile.TemporaryDirectory() as folder:
        fasta = write_genome(Path(folder) / "genome.fa", bases)
        for length in lengths:
            cases = [("ntp", False)] if length != 1024 else [("ntp", False), ("ntp", True), ("mlm", False)]
            for objective, rc_aug in cases:
                ours = genome_reader(fasta, folder, length, batch_bases // length, batches, objective, rc_aug)
                peers = [] if rc_aug or objective == "mlm" else [peer(fasta, length, name, encode) for name, encode in encoders.items()]
                case = f"genome {objective}{' + rc_aug' if rc_aug else ''} L={length}"
                yield from compare("tokens", case, [ours, *peers], options.repeats, unit="MB/s", goal=GOAL, clock=time.process_time)
    yield from tables(options, encoders)
    if have("transformers"):
        yield from kmers(options)


def write_genome(path: Path, bases: int) -> Path:
    """A random FASTA with one contig and 60 bases per line, not compressed: pyfaidx at its fastest."""
    letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, bases, np.uint8)]
    lines = letters[: bases - bases % 60].reshape(-1, 60)
    with open(path, "wb") as file:
        file.write(f">{CONTIG}\n".encode())
        np.concatenate([lines, np.full((len(lines), 1), ord("\n"), np.uint8)], axis=1).tofile(file)
    return path


def genome_reader(fasta: Path, cache: str, length: int, rows: int, batches: int, objective: str, rc_aug: bool) -> Contender:
    """`batches` batches through the loader of the training jobs."""
    from jaxgen import tokenizers
    from jaxgen.data.genome import Genome
    from jaxgen.data.intervals import TiledWindows
    from jaxgen.data.pipeline import GenomeWindows, train_loader

    genome = Genome.open(fasta, cache_dir=cache)
    windows = TiledWindows(genome.contigs, length, "train", holdout=0.0)
    source = GenomeWindows(genome, windows, tokenizers.get("caduceus"), length, objective, rc_aug=rc_aug)
    loader = train_loader(source, batch_size=rows, seed=1, num_threads=0)

    def read() -> None:
        for _ in range(batches):
            next(loader)

    return Contender("jaxgen", read, batches * rows * length / MB)


def peer(fasta: Path, length: int, name: str, encode: Callable[[str], list[int]]) -> Contender:
    """One small batch (these are slow) of windows at random places."""
    from pyfaidx import Fasta

    reader = Fasta(str(fasta), as_raw=False)
    rows = max(1, (1 << 17) // length) if os.path.getsize(fasta) > 1 << 20 else 2
    last = len(reader[CONTIG]) - length
    starts = np.random.default_rng(1).integers(0, last, rows).tolist()
    return Contender(name, lambda: read_windows(reader, CONTIG, starts, length, encode), rows * length / MB)


def tables(options: Options, encoders: dict[str, Callable[[str], list[int]]]) -> Iterator[Row]:
    """From the sequences of the shipped task to all batches of an epoch: encoding once, then shuffled batches."""
    from jaxgen import tokenizers
    from jaxgen.data import tasks
    from jaxgen.data.pipeline import TableSource, train_loader

    examples = tasks.get("simulated_promoters", seed=1).splits["train"]
    if options.smoke:
        examples = examples.take(np.arange(64))
    texts = [sequence.decode() for sequence in examples.sequences]
    megabases, rows = sum(map(len, texts)) / MB, 32 if options.smoke else 128

    def ours() -> None:
        loader = train_loader(TableSource(examples, tokenizers.get("caduceus")), batch_size=rows, seed=1, num_threads=0)
        for _ in range(loader.steps_per_epoch):
            next(loader)

    def theirs(encode: Callable[[str], list[int]]) -> None:
        order = np.random.default_rng(1).permutation(len(texts))
        for start in range(0, len(order) - rows + 1, rows):
            np.stack([np.array(encode(texts[i])[:-1], np.int64) for i in order[start : start + rows]])

    contenders = [Contender("jaxgen", ours, megabases)]
    for name, encode in encoders.items():
        contenders.append(Contender(name.removeprefix("pyfaidx + "), lambda e=encode: theirs(e), megabases))
    case = f"table simulated_promoters, first epoch, L={len(texts[0])}"
    yield from compare("tokens", case, contenders, options.repeats, unit="MB/s", goal=GOAL, clock=time.process_time)


def kmers(options: Options) -> Iterator[Row]:
    """Padded batches of k-mer ids of the sequences that fine-tuning sees, against the tokenizers that the published models come with."""
    from jaxgen import tokenizers

    lengths, rows = ((251,), 32) if options.smoke else ((251, 1000), 2048)
    for name, length in itertools.product(("nt_v2", "dnabert"), lengths):
        letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, (rows, length), np.uint8)]
        texts = [row.tobytes().decode() for row in letters]
        ours, few = tokenizers.get(name), texts[: max(1, rows // 64)]  # the peers are slow
        peer_name, theirs = hf_kmer_tokenizer(ours)
        contenders = [
            Contender("jaxgen", lambda t=ours, x=texts: t.encode_batch(x), rows),
            Contender(peer_name, lambda encode=theirs, x=few: encode(x), len(few)),
        ]
        case = f"{name} {ours.k}-mers, L={length}"
        yield from compare("tokens", case, contenders, options.repeats, unit="sequences/s", goal=KMER_GOAL, clock=time.process_time)
