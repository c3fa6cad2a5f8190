"""Variants of a VCF, checked against the genome, and the windows of DNA around them with either allele."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgen.data.genome import Genome
from jaxgen.errors import InputError

_BASES = re.compile(rb"[ACGTN]+")


@dataclass(frozen=True, eq=False)
class Variants:
    """One row per alternative allele, in the order of the file.

    Attributes:
        contig_ids: int32 (n,) positions in `Genome.contigs`.
        positions: int64 (n,), 0-based, of the first base of the reference allele.
        refs, alts: n upper-case alleles.
        names: n ids (`.` where the file has none).
        skipped: reason -> number of alleles left out.
    """

    contig_ids: np.ndarray
    positions: np.ndarray
    refs: list[bytes]
    alts: list[bytes]
    names: list[str]
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.refs)

    @property
    def is_snv(self) -> np.ndarray:
        """bool (n,): one base for another."""
        return np.array([len(ref) == len(alt) == 1 for ref, alt in zip(self.refs, self.alts)], bool)


def read_variants(path: str | Path, genome: Genome) -> Variants:
    """Reads a VCF or BCF, plain or bgzipped, in any order and without an index; records with several alternatives give one row each.

    Symbolic alleles (`<DEL>`), breakends, `*` and records without alternatives are left out and counted.

    Raises:
      InputError: a file that cannot be read; a contig that the genome lacks; a position outside it; a REF that is not what the genome has
        there; letters that are no bases. The message names the record.
    """
    columns: tuple[list, ...] = ([], [], [], [], [])
    skipped: Counter[str] = Counter()
    for record in _records(path):
        where = f"{path}: {record.chrom}:{record.pos}"
        contig, ref = genome.contig_id(record.chrom), checked_reference(genome, record.chrom, record.start, record.ref or "", where)
        if not record.alts:
            skipped["no alternative allele"] += 1
        for alt in record.alts or ():
            if _is_symbolic(alt):
                skipped["symbolic allele"] += 1
                continue
            for column, value in zip(columns, (contig, record.start, ref, allele(alt, "ALT", where), record.id or ".")):
                column.append(value)
    contigs, positions, refs, alts, names = columns
    return Variants(np.array(contigs, np.int32), np.array(positions, np.int64), refs, alts, names, dict(skipped))


def checked_reference(genome: Genome, contig: str, start: int, ref: str, where: str) -> bytes:
    """The reference allele in upper case.

    Args:
        start: 0-based, of its first base.
        where: names the record in messages.

    Raises:
        InputError: letters that are no bases, a position outside the contig, or other bases in the genome.
    """
    letters = allele(ref, "REF", where)
    end = start + len(letters)
    if start < 0 or end > genome.contigs[contig]:
        raise InputError(f"{where}: lies beyond the {genome.contigs[contig]:,} bases of {contig} in {genome.path}")
    found = genome.fetch(contig, start, end).tobytes().upper()
    if found != letters:
        raise InputError(f"{where}: REF is {_short(letters)}, but {genome.path} has {_short(found)} there; is it the same assembly?")
    return letters


def allele(text: str, what: str, where: str) -> bytes:
    """An allele in upper case.

    Raises:
        InputError: letters that are no bases.
    """
    letters = text.upper().encode()
    if not _BASES.fullmatch(letters):
        raise InputError(f"{where}: {what} {text!r} is not a sequence of bases")
    return letters


def _is_symbolic(alt: str) -> bool:
    return alt == "*" or any(mark in alt for mark in "<[]")


def annotate_vcf(source: str | Path, target: Path, names: Sequence[str], values: np.ndarray) -> None:
    """Writes the VCF `source` with INFO fields `JG_NAME`, a number per alternative allele, as it is read by `read_variants`.

    Args:
        target: appears when it is whole.
        values: (alleles, names); NaN and alleles that were left out become missing values.
    """
    import pysam

    temporary, row = target.with_name(f".{target.name}.tmp"), 0
    with pysam.VariantFile(str(source)) as file:
        header = file.header.copy()
        for name in names:
            header.add_line(f'##INFO=<ID=JG_{name.upper()},Number=A,Type=Float,Description="jaxgen: {name} of the allele">')
        with pysam.VariantFile(str(temporary), "w", header=header) as out:
            for record in file:
                record.translate(out.header)
                scores = []
                for alt in record.alts or ():
                    scores.append(None if _is_symbolic(alt) else values[row].tolist())
                    row += not _is_symbolic(alt)
                for i, name in enumerate(names):
                    column = [None if score is None or np.isnan(score[i]) else score[i] for score in scores]
                    if any(value is not None for value in column):
                        record.info[f"JG_{name.upper()}"] = column
                out.write(record)
    os.replace(temporary, target)


def _records(path: str | Path) -> Iterator:
    try:
        import pysam
    except ImportError:
        raise InputError("variants need the package pysam: install jaxgen with its extra, pip install 'jaxgen[variants]'") from None
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    verbosity = pysam.set_verbosity(0)  # a missing index is no problem here
    try:
        with pysam.VariantFile(str(path)) as file:
            yield from file
    except NotImplementedError:
        raise InputError(f"{path}: compressed by gzip; a VCF is read plain or compressed by bgzip") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable VCF ({error})") from None
    finally:
        pysam.set_verbosity(verbosity)


def _short(allele: bytes) -> str:
    text = allele.decode()
    return text if len(text) <= 12 else f"{text[:12]}... ({len(text)} bases)"


def allele_windows(genome: Genome, variants: Variants, rows: np.ndarray, length: int, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Windows of `length` bases with the reference and the alternative allele, the allele's first base at column `length // 2 + shift`.

    Both begin at the same base; after an insertion or deletion the following DNA moves, so that both are full. Outside the contig is N.

    Args:
        rows: int (b,) of `variants`.
        shift: columns by which the variant is moved to the right of the middle.

    Returns:
        uint8 (b, length) each, upper case.

    Raises:
        InputError: an allele that does not fit into the window behind the column.
    """
    middle = length // 2 + shift
    longest = max((max(len(variants.refs[row]), len(variants.alts[row])) for row in rows.tolist()), default=1)
    if not 0 <= middle <= length - longest:
        raise InputError(f"alleles of {longest} bases do not fit into windows of {length}; give a larger length")
    extra = max((len(variants.refs[row]) - len(variants.alts[row]) for row in rows.tolist()), default=0)
    starts = variants.positions[rows] - middle
    wide = genome.gather(variants.contig_ids[rows], starts, length + max(extra, 0), fill=ord("N"))
    wide &= np.uint8(0xDF)  # upper case
    ref, alt = wide[:, :length].copy(), wide[:, :length].copy()
    for out, source, row in zip(alt, wide, rows.tolist()):
        before, after = variants.refs[row], variants.alts[row]
        rest = length - middle - len(after)
        out[middle : middle + len(after)] = np.frombuffer(after, np.uint8)
        out[middle + len(after) :] = source[middle + len(before) :][:rest]
    return ref, alt


def variant_index(ref_ids: np.ndarray, alt_ids: np.ndarray, *, reverse: bool = False) -> np.ndarray:
    """int32 (n,): where two rows of ids (n, length) differ, as the published eQTL pipeline finds it.

    The middle token (the one before it with `reverse`, for rows of the other strand) if the rows differ there, else the last one at which
    they differ, else -1. Golden: vep/window_embedding.
    """
    differ = ref_ids != alt_ids
    length = differ.shape[1]
    guess = length // 2 - reverse
    last = length - 1 - differ[:, ::-1].argmax(1)
    return np.where(differ[:, guess], guess, np.where(differ.any(1), last, -1)).astype(np.int32)
