import csv
import gzip

import numpy as np
import pytest

from jaxgen.data import gene_windows
from jaxgen.data.genome import Genome
from jaxgen.errors import InputError

RNG = np.random.default_rng(0)
CONTIGS = {"1": 900, "chr2": 500, "MT": 40}
SEQUENCES = {name: "".join(RNG.choice(list("ACGTacgtNRy"), n, p=[0.11] * 8 + [0.06, 0.03, 0.03])) for name, n in CONTIGS.items()}
# contig, start, end, strand, id, name
GENES = [
    ("1", 300, 420, "+", "ENSG1", "ALPHA"),
    ("1", 300, 420, "-", "ENSG2", "BETA"),
    ("2", 20, 90, "+", "ENSG3", "ALPHA"),  # chr2 in the genome; its name is taken
    ("2", 400, 490, "-", "ENSG4", ""),
    ("MT", 1, 30, "+", "ENSG5", "MITO"),
    ("X", 10, 20, "+", "ENSG6", "LOST"),
    ("1", 5, 25, "-", "ENSG7", "EDGE"),
    ("1", 600, 700, ".", "ENSG8", "DOT"),
]


def gtf(genes=GENES) -> str:
    lines = ["#!genome-build test"]
    for contig, start, end, strand, gene_id, name in genes:
        attributes = f'gene_id "{gene_id}"; gene_version "5";' + (f' gene_name "{name}";' if name else "") + ' gene_biotype "x";'
        for kind in ("gene", "transcript", "exon"):
            lines.append("\t".join([contig, "havana", kind, str(start), str(end), ".", strand, ".", attributes]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def genome(tmp_path) -> Genome:
    (tmp_path / "g.fa").write_text("".join(f">{name} test\n{bases}\n" for name, bases in SEQUENCES.items()))
    return Genome.open(tmp_path / "g.fa", tmp_path / "cache")


def by_the_rules(contig: str, start: int, end: int, strand: str, length: int) -> str:
    """A window a letter at a time."""
    bases, tss = SEQUENCES[contig], start if strand == "+" else end
    cut = bases[max(0, tss - length // 2) : tss + length // 2]
    if strand == "-":
        pair = dict(zip("ACGTNRYacgtnry", "TGCANYRtgcanyr"))
        cut = "".join(pair[base] for base in reversed(cut))
    return cut.ljust(length, "N").upper()


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("length", [2, 30, 200, 2000])
def test_windows_follow_the_published_rules(genome, tmp_path, length):
    (tmp_path / "a.gtf.gz").write_bytes(gzip.compress(gtf().encode()))
    path, notes = gene_windows.write_table(tmp_path / "out", genome, tmp_path / "a.gtf.gz", length=length)
    rows = {row["gene_id"]: row for row in table(path)}
    assert list(rows) == [gene[4] for gene in GENES if gene[0] != "X"]
    for contig, start, end, strand, gene_id, name in GENES:
        if contig == "X":
            continue
        row = rows[gene_id]
        known = "chr2" if contig == "2" else contig
        assert row["sequence"] == by_the_rules(known, start, end, strand, length)
        assert (row["gene_name"], row["chrom"], row["strand"]) == (name, known, strand)
        assert int(row["tss"]) == (start if strand == "+" else end)
    assert notes == [f"1 genes left out, whose contigs {genome.path} does not have: X"]


def test_where_the_start_stands(genome):
    plus, minus = (gene_windows.windows(genome, [gene_windows.Gene("g", "", "1", 300, strand)], 100)[0] for strand in "+-")
    tss = SEQUENCES["1"][299].upper()
    assert chr(plus[49]) == tss
    assert chr(minus[50]) == {"A": "T", "C": "G", "G": "C", "T": "A", "R": "Y", "Y": "R"}.get(tss, tss)


def test_listed_by_name_or_by_id(genome, tmp_path):
    (tmp_path / "a.gtf").write_text(gtf())
    (tmp_path / "names.txt").write_text("BETA\nALPHA\nNOBODY\nLOST\nENSG4\n")
    path, notes = gene_windows.write_table(tmp_path, genome, tmp_path / "a.gtf", tmp_path / "names.txt", 40)
    assert path.name == "tf_sequences.csv"
    assert list(table(path)[0]) == ["gene_name", "gene_id", "chrom", "tss", "strand", "sequence"]
    assert [row["gene_id"] for row in table(path)] == ["ENSG2", "ENSG1", "ENSG4"]  # the first gene of a name counts
    assert "NOBODY" in notes[0]
    assert "X" in notes[1]
    (tmp_path / "ids.txt").write_text("ENSG4\nENSG1\n")
    path, _ = gene_windows.write_table(tmp_path, genome, tmp_path / "a.gtf", tmp_path / "ids.txt", 40)
    assert path.name == "gene_sequences.csv"
    assert list(table(path)[0]) == ["gene_id", "chrom", "tss", "strand", "sequence"]
    assert [row["gene_id"] for row in table(path)] == ["ENSG4", "ENSG1"]


def test_many_genes_are_cut_piece_by_piece(genome, tmp_path, monkeypatch):
    (tmp_path / "a.gtf").write_text(gtf())
    whole, _ = gene_windows.write_table(tmp_path / "whole", genome, tmp_path / "a.gtf", length=60)
    monkeypatch.setattr(gene_windows, "_BASES_AT_ONCE", 130)
    pieces, _ = gene_windows.write_table(tmp_path / "pieces", genome, tmp_path / "a.gtf", length=60)
    assert whole.read_text() == pieces.read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (gtf([("1", 5000, 5100, "+", "ENSG1", "A")]), ["ENSG1", "another assembly"]),
        (gtf([("X", 1, 2, "+", "ENSG1", "A")]), ["none of its genes"]),
        ('1\thavana\tgene\tten\t20\t.\t+\t.\tgene_id "a";\n', [":1", "ten"]),
        ("#\n1\thavana\tgene\t10\t20\t.\t+\n", [":2", "7 columns"]),
        ('1\thavana\tgene\t10\t20\t.\t+\t.\tname "a";\n', [":1", "no gene_id"]),
        ('1\thavana\texon\t10\t20\t.\t+\t.\tgene_id "a";\n', ["no rows of genes"]),
        (b"\x1f\x8b" + b"\0" * 9, ["gzip"]),
    ],
)
def test_bad_annotations(genome, tmp_path, text, words):
    file = tmp_path / "a.gtf"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        gene_windows.write_table(tmp_path / "out", genome, file)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").rglob("*"))


def test_bad_lists_and_lengths(genome, tmp_path):
    (tmp_path / "a.gtf").write_text(gtf())
    (tmp_path / "twice.txt").write_text("ALPHA\nALPHA\n")
    (tmp_path / "nobody.txt").write_text("NOBODY\n")
    with pytest.raises(InputError, match="listed more than once"):
        gene_windows.write_table(tmp_path, genome, tmp_path / "a.gtf", tmp_path / "twice.txt")
    with pytest.raises(InputError, match="none of its genes"):
        gene_windows.write_table(tmp_path, genome, tmp_path / "a.gtf", tmp_path / "nobody.txt")
    with pytest.raises(InputError, match=r"data\.window"):
        gene_windows.write_table(tmp_path, genome, tmp_path / "a.gtf", length=11)
    with pytest.raises(InputError, match="no such GTF"):
        gene_windows.write_table(tmp_path, genome, tmp_path / "b.gtf")


def test_prepare_job(run_here, genome, tmp_path):
    (tmp_path / "a.gtf").write_text(gtf())
    arguments = ["--config=configs/prepare.py", f"--config.data.gtf={tmp_path / 'a.gtf'}", "--config.data.window=50"]
    ended = run_here([*arguments, f"--config.data.fasta={genome.path}", f"--workdir={tmp_path / 'out'}"])
    assert ended.code == 0, ended.err
    assert len(table(tmp_path / "out" / "tf_sequences.csv")) == 7
    assert "1 genes left out" in ended.err
    assert "--config.data.fasta" in run_here([*arguments, f"--workdir={tmp_path / 'out'}"]).error
    assert "--workdir" in run_here([*arguments, f"--config.data.fasta={genome.path}"]).error
