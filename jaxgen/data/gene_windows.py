"""DNA around transcription start sites (TSS), cut from a GTF annotation and its genome into the sequence tables of the TF benchmark.

The windows are those of molocyxu/10701GenomicEmbeddings `seq_extract.ipynb`, byte for byte: the TSS is the 1-based start of a gene on the
plus strand, its end on the minus strand; [max(0, TSS - half), TSS + half) is cut as if it were 0-based, so the TSS base stands at offset
half - 1 (half on the minus strand); minus-strand windows are reverse-complemented; shorter ones are padded with N on the right after that.
"""

import csv
import gzip
import os
import re
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgen.data.genome import SOFT_MASK_BIT, Genome
from jaxgen.data.perturbation_files import first_repeated, read_ids
from jaxgen.errors import InputError

_BASES_AT_ONCE = 1 << 26
_ATTRIBUTE = {name: re.compile(rf'\b{name} "([^"]*)"'.encode()) for name in ("gene_id", "gene_name")}
# Ambiguity codes have complements too.
_COMPLEMENT = bytes.maketrans(b"ACGTRYKMBDHVacgtrykmbdhv", b"TGCAYRMKVHDBtgcayrmkvhdb")


@dataclass(frozen=True)
class Gene:
    """A `gene` row of a GTF; `tss` is 1-based, `name` is "" where the row has none."""

    id: str
    name: str
    contig: str
    tss: int
    strand: str


def read_gtf(path: str | os.PathLike) -> list[Gene]:
    """The `gene` rows of a GTF (plain or gzip), in file order.

    Raises:
      InputError: a missing, damaged or empty file, or a gene row that is not as the format wants it (named by line).
    """
    genes, number = [], 0
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 (errors name the line)
                if b"\tgene\t" in line and not line.startswith(b"#"):  # most rows are exons
                    fields = line.rstrip(b"\r\n").split(b"\t")
                    if fields[2:3] == [b"gene"]:
                        genes.append(_gene(fields))
    except FileNotFoundError:
        raise InputError(f"{path}: no such GTF file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: truncated or corrupt gzip file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}:{number}: not a GTF row of a gene ({error})") from None
    if not genes:
        raise InputError(f"{path}: holds no rows of genes; expected a GTF, plain or gzip")
    return genes


def _gene(fields: Sequence[bytes]) -> Gene:
    if len(fields) != 9:
        raise ValueError(f"{len(fields)} columns instead of 9")
    found = {name: match[1].decode() for name, pattern in _ATTRIBUTE.items() if (match := pattern.search(fields[8]))}
    if "gene_id" not in found:
        raise ValueError("no gene_id")
    strand = fields[6].decode()
    tss = int(fields[3] if strand == "+" else fields[4])
    return Gene(found["gene_id"], found.get("gene_name", ""), fields[0].decode(), tss, strand)


def select(genes: Sequence[Gene], wanted: Sequence[str]) -> tuple[list[Gene], list[str], bool]:
    """Genes by id or name, in the order wanted; the first gene of a name counts, and the last of an id, as published.

    Returns:
      the genes, what was not found, and whether any was asked for by its name.
    """
    by_name = {gene.name: gene for gene in reversed(genes) if gene.name}
    by_id = {gene.id: gene for gene in genes}
    found = [by_id.get(name) or by_name.get(name) for name in wanted]
    missing = [name for name, gene in zip(wanted, found) if gene is None]
    return [gene for gene in found if gene is not None], missing, any(name not in by_id and name in by_name for name in wanted)


def windows(genome: Genome, genes: Sequence[Gene], length: int) -> np.ndarray:
    """uint8 (genes, length): upper-case windows around the starts of genes whose contigs the genome has.

    Raises:
      InputError: a gene beyond the end of its contig.
    """
    names, half = list(genome.contigs), length // 2
    contigs = np.array([genome.contig_id(gene.contig) for gene in genes], np.int64)
    tss, minus = np.array([gene.tss for gene in genes], np.int64), np.array([gene.strand == "-" for gene in genes])
    sizes = np.array([genome.contigs[name] for name in names], np.int64)[contigs]
    if (tss > sizes).any():
        gene = genes[int(np.argmax(tss > sizes))]
        raise InputError(f"{genome.path}: gene {gene.id} starts at {gene.contig}:{gene.tss}, past its end; the GTF is of another assembly")
    starts, ends = np.maximum(tss - half, 0), np.minimum(tss + half, sizes)
    out = np.empty((len(genes), length), np.uint8)
    for strand, rows in ((False, np.flatnonzero(~minus)), (True, np.flatnonzero(minus))):
        cut = genome.gather(contigs[rows], starts[rows], length, ord("N"), ends=ends[rows], left_pad=strand)
        if strand:
            turned = cut[:, ::-1].tobytes().translate(_COMPLEMENT)
            cut = np.frombuffer(turned, np.uint8).reshape(cut.shape)
        out[rows] = cut & ~SOFT_MASK_BIT
    return out


def write_table(
    folder: str | os.PathLike, genome: Genome, gtf: str | os.PathLike, gene_list: str | os.PathLike = "", length: int = 12_000
) -> tuple[Path, list[str]]:
    """Cuts the windows of some genes into a CSV file, which appears whole.

    Args:
      folder: where to write `tf_sequences.csv` (gene_name,gene_id,chrom,tss,strand,sequence), or, when all genes are listed by id,
        `gene_sequences.csv` (without gene_name).
      gtf: annotation; a contig that the genome does not have is also looked for with `chr` before its name.
      gene_list: text file with a gene name or id per line; empty for every gene.
      length: bases per window.

    Returns:
      the file, and notes on genes that were left out.

    Raises:
      InputError: see `read_gtf` and `windows`; an odd length; a list with repeated entries, or with no gene of the GTF.
    """
    if length < 2 or length % 2:
        raise InputError(f"data.window={length} must be an even number of bases")
    genes, notes, with_names = read_gtf(gtf), [], True
    if gene_list:
        wanted = read_ids(Path(gene_list))
        if repeated := first_repeated(wanted):
            raise InputError(f"{gene_list}: {repeated!r} is listed more than once")
        genes, missing, with_names = select(genes, wanted)
        if missing:
            notes.append(f"{len(missing)} of {len(wanted)} genes of {gene_list} are not in the GTF: {_some(missing)}")
    placed = [Gene(gene.id, gene.name, contig, gene.tss, gene.strand) for gene in genes if (contig := _contig(genome, gene.contig))]
    if len(placed) < len(genes):
        lost = sorted({gene.contig for gene in genes if not _contig(genome, gene.contig)})
        notes.append(f"{len(genes) - len(placed)} genes left out, whose contigs {genome.path} does not have: {_some(lost)}")
    if not placed:
        raise InputError(f"{gene_list or gtf}: none of its genes is in {gtf if gene_list else genome.path}; check names and assembly")
    path = Path(folder) / ("tf_sequences.csv" if with_names else "gene_sequences.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*(["gene_name"] if with_names else []), "gene_id", "chrom", "tss", "strand", "sequence"])
            for row in _rows(genome, placed, length):
                writer.writerow(row if with_names else row[1:])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path, notes


def _rows(genome: Genome, genes: Sequence[Gene], length: int) -> Iterator[list[str | int]]:
    at_once = max(1, _BASES_AT_ONCE // length)
    for start in range(0, len(genes), at_once):
        some = genes[start : start + at_once]
        for gene, bases in zip(some, windows(genome, some, length)):
            yield [gene.name, gene.id, gene.contig, gene.tss, gene.strand, bases.tobytes().decode()]


def _contig(genome: Genome, name: str) -> str:
    """The genome's name of a contig, "" when it has none."""
    return next((known for known in (name, f"chr{name}") if known in genome.contigs), "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
