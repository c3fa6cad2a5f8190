import numpy as np
import pytest
from helpers import golden_case, real

from jaxgen import tokenizers
from jaxgen.data.genome import Genome
from jaxgen.data.intervals import CaduceusWindows, TiledWindows, read_bed
from jaxgen.data.pipeline import GenomeWindows, train_loader
from jaxgen.data.random import RowRandom
from jaxgen.errors import InputError
from jaxgen.goldens.core import Case

RANDOM = RowRandom(0, 0, 0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))


def test_next_token_rows_from_fasta_and_bed(tmp_path, cache):
    """Rebuilds the chromosome around the sequences the fixture lists, then goes the whole way a user takes."""
    case = Case(golden_case("hg38", "ntp_rows"))
    arrays, config = case.arrays, case.config
    length, bed = config["max_length"], tmp_path / "x.bed"
    bed.write_text("\n".join("\t".join(row.split()) for row in config["bed"]))
    windows = CaduceusWindows(read_bed(bed), {"chr1": config["chrom_length"]}, length, "train")
    assert len(windows) == arrays["dataset_len"][0]
    chromosome = np.full(config["chrom_length"], ord("A"), np.uint8)
    for start, sequence in zip(windows.locate(arrays["index"])[1], config["sequences"]):
        chromosome[start : start + length] = np.frombuffer(sequence.encode(), np.uint8)
    (tmp_path / "x.fa").write_bytes(b">chr1\n" + chromosome.tobytes() + b"\n")
    source = GenomeWindows(Genome.open(tmp_path / "x.fa"), windows, tokenizers.get("caduceus"), length)
    batch = source.batch(arrays["index"], RANDOM)
    np.testing.assert_array_equal(batch["tokens"], arrays["data"])
    np.testing.assert_array_equal(batch["targets"], arrays["target"])
    # Masked rows see the same ids before masking.
    source = GenomeWindows(source.genome, windows, tokenizers.get("caduceus"), length, "mlm", mlm_probability=0.0)
    np.testing.assert_array_equal(source.batch(arrays["index"], RANDOM)["tokens"], arrays["data"])


@pytest.fixture
def genome(tmp_path, cache):
    (tmp_path / "g.fa").write_text(">a\nACGTNacgtnAACC\n>b\nGGG\n")
    return Genome.open(tmp_path / "g.fa")


def test_short_windows_are_padded_on_the_left(genome):
    windows = TiledWindows(genome.contigs, 8, "train", holdout=0.0)
    source = GenomeWindows(genome, windows, tokenizers.get("caduceus"), 8)
    batch = source.batch(np.arange(3), RANDOM)
    assert batch["tokens"].tolist() == [
        [7, 8, 9, 10, 4, 7, 8, 9],
        [8, 9, 10, 4, 7, 7, 8, 8],
        [4, 4, 4, 4, 4, 9, 9, 9],
    ]
    assert batch["targets"][2].tolist() == [4, 4, 4, 4, 9, 9, 9, 1]
    assert source.ignore_id == 4


def test_reverse_complement_turns_the_bases_only(genome):
    windows = TiledWindows(genome.contigs, 8, "train", holdout=0.0)
    source = GenomeWindows(genome, windows, tokenizers.get("caduceus"), 8, rc_aug=True)
    rows = {row.tobytes() for row in source.bases(np.full(40, 2), RANDOM)}
    assert rows == {b"\0\0\0\0\0GGG", b"\0\0\0\0\0CCC"}
    assert {row.tobytes() for row in source.bases(np.zeros(40, int), RANDOM)} == {b"ACGTNacg", b"cgtNACGT"}


def test_hyenadna_layout(genome):
    tokenizer = tokenizers.get("character", upper=True)
    windows = TiledWindows(genome.contigs, 8, "train", holdout=0.0)
    source = GenomeWindows(genome, windows, tokenizer, 8, layout="hyenadna")
    batch = source.batch(np.arange(3), RANDOM)
    texts = [genome.fetch(*window).tobytes() for window in (("a", 0, 8), ("a", 6, 14), ("b", 0, 3))]
    full = [tokenizer(text, padding="max_length", max_length=8, truncation=True)["input_ids"] for text in texts]
    np.testing.assert_array_equal(batch["tokens"], np.stack(full)[:, :-1])
    np.testing.assert_array_equal(batch["targets"], np.stack(full)[:, 1:])
    turned = GenomeWindows(genome, windows, tokenizer, 8, layout="hyenadna", rc_aug=True)
    # Of ACGTNacg and of its reverse complement cgtNACGT.
    assert {row.tobytes() for row in turned.bases(np.zeros(40, int), RANDOM)} == {b"ACGTNa", b"cgtNAC"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "mml"}, "did you mean 'mlm'"),
        ({"layout": "caduceos"}, "did you mean 'caduceus'"),
        ({"layout": "hyenadna", "objective": "mlm"}, "next-token"),
        ({"mlm_probability": 1.5}, "not in 0 ... 1"),
    ],
)
def test_wrong_options(genome, options, message):
    with pytest.raises(InputError, match=message):
        GenomeWindows(genome, TiledWindows(genome.contigs, 8, "train"), tokenizers.get("caduceus"), 8, **options)


def test_empty_split(genome):
    with pytest.raises(InputError, match="no windows"):
        GenomeWindows(genome, TiledWindows(genome.contigs, 8, "valid", holdout=0.0), tokenizers.get("caduceus"), 8)


@pytest.mark.parametrize("objective", ["ntp", "mlm"])
def test_real_genome_batches_are_shard_invariant(objective, cache):
    genome = Genome.open(real("human_chr1_hg38_1mb/chr1_hg38_first1mb.fa.gz"))
    source = GenomeWindows(genome, TiledWindows(genome.contigs, 256, "train"), tokenizers.get("caduceus"), 256, objective, rc_aug=True)
    loaders = [train_loader(source, batch_size=8, seed=1, process_index=p, process_count=n) for n in (1, 2) for p in range(n)]
    for _ in range(3):
        whole, *parts = (next(loader) for loader in loaders)
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))
        assert not (whole["targets"] == 11).any()  # N never enters the loss
    for loader in loaders:
        loader.close()
