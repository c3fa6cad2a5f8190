"""Variants of a VCF, checked against the genome, and the windows of DNA around them with either allele."""

import gzip
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jaxgen.data.genome import Genome
from jaxgen.errors import InputError, nearest

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


def read_variants(path: str | Path, genome: Genome, longest: int) -> Variants:
    """Reads a VCF or BCF, plain or bgzipped, in any order and without an index; records with several alternatives give one row each.

    Symbolic alleles (`<DEL>`), breakends, `*`, records without alternatives, and rows with an allele of more than `longest` bases (see
    `longest_allele`) are left out and counted.

    Raises:
      InputError: a file that cannot be read; a contig that the genome lacks; a position outside it; a REF that is not what the genome has
        there; letters that are no bases. The message names the record and, in a VCF, its line.
    """
    columns: tuple[list, ...] = ([], [], [], [], [])
    skipped: Counter[str] = Counter()
    for line, record in _records(path):
        where = f"{path}{f':{line}' if line else ''}: {record.chrom}:{record.pos}"
        alts = [alt for alt in record.alts or () if not _is_symbolic(alt)]
        if not record.alts:
            skipped["no alternative allele"] += 1
        elif symbolic := len(record.alts) - len(alts):
            skipped["symbolic allele"] += symbolic
        if not alts:
            continue  # callers of structural variants write N as the REF
        ref = checked_reference(genome, record.chrom, record.start, record.ref or "", where)
        contig = genome.contig_id(record.chrom)
        for alt in alts:
            letters = allele(alt, "ALT", where)
            if max(len(ref), len(letters)) > longest:
                skipped[f"longer than {longest} bases, which is what the window has room for"] += 1
                continue
            for column, value in zip(columns, (contig, record.start, ref, letters, record.id or ".")):
                column.append(value)
    contigs, positions, refs, alts, names = columns
    return Variants(np.array(contigs, np.int32), np.array(positions, np.int64), refs, alts, names, dict(skipped))


def checked_reference(genome: Genome, contig: str, start: int, ref: str, where: str) -> bytes:
    """The reference allele in upper case.

    Args:
        start: 0-based, of its first base.
        where: names the record in messages.

    Raises:
        InputError: letters that are no bases, a contig that the genome lacks, a position outside it, or other bases in the genome.
    """
    if contig not in genome.contigs:
        raise InputError(f"{where}: {genome.path} has no contig {contig!r}{nearest(contig, list(genome.contigs)[:2000])}")
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


def annotate_vcf(source: str | Path, target: Path, genome: Genome, variants: Variants, names: Sequence[str], values: np.ndarray) -> None:
    """Writes the VCF `source` with INFO fields `JG_NAME`, a number per alternative allele; records stay as they are otherwise.

    The text is edited and not written by htslib, which ends the process where a contig is not declared, and adds END to symbolic alleles.

    Args:
        target: appears when it is whole.
        genome: its contigs are declared where the header does not.
        variants: what `read_variants` found in `source`.
        values: (alleles, names); NaN and alleles that were left out become missing values.

    Raises:
        InputError: `source` has changed since it was read.
    """
    fields = [f"JG_{name.upper()}" for name in names]
    ours = tuple(f"##INFO=<ID={field}," for field in fields)
    contigs, row, declared = list(genome.contigs), 0, set()
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as out:
            for line in _text(source):
                if line.startswith("##"):
                    declared.update(re.findall(r"##contig=<ID=([^,>]+)", line))
                    if not line.startswith(ours):
                        out.write(f"{line}\n")
                    continue
                if line.startswith("#"):
                    out.writelines(f"##contig=<ID={name},length={genome.contigs[name]}>\n" for name in contigs if name not in declared)
                    for start, name in zip(ours, names):
                        out.write(f'{start}Number=A,Type=Float,Description="jaxgen: {name} of the allele">\n')
                    out.write(f"{line}\n")
                    continue
                chrom, position, name, ref, alts, quality, passed, info, *samples = line.split("\t")
                scores: list[list[float] | None] = []
                for alt in alts.split(","):
                    key = (chrom, int(position) - 1, ref.upper(), alt.upper())
                    # Rows come in the order of the file, so an allele that is not the next row was left out.
                    found = row < len(variants) and key == (
                        contigs[variants.contig_ids[row]],
                        variants.positions[row],
                        variants.refs[row].decode(),
                        variants.alts[row].decode(),
                    )
                    scores.append(values[row].tolist() if found else None)
                    row += found
                entries = [entry for entry in info.split(";") if entry != "." and entry.partition("=")[0] not in fields]
                for i, field in enumerate(fields):
                    texts = ["." if score is None or np.isnan(score[i]) else f"{score[i]:.6g}" for score in scores]
                    if any(text != "." for text in texts):
                        entries.append(f"{field}={','.join(texts)}")
                out.write("\t".join([chrom, position, name, ref, alts, quality, passed, ";".join(entries) or ".", *samples]) + "\n")
        if row < len(variants):
            raise InputError(f"{source}: has changed since it was scored; start again with another --workdir")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _text(path: str | Path) -> Iterator[str]:
    """The lines of a VCF; those of a BCF as htslib writes them."""
    file = _open_text(path)
    if file is not None:
        with file:
            yield from (line.rstrip("\r\n") for line in file if line.strip())
        return
    import pysam

    with pysam.VariantFile(str(path)) as records:
        yield from str(records.header).splitlines()
        yield from (str(record).rstrip("\n") for record in records)


def _open_text(path: str | Path) -> TextIO | None:
    """None for a BCF."""
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    file = (gzip.open if packed else open)(path, "rb")
    if file.read(3) == b"BCF":
        file.close()
        return None
    file.seek(0)
    return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="\n")


def _header_lines(path: str | Path) -> int:
    """Lines of a VCF before its first record; 0 for a BCF."""
    file = _open_text(path)
    if file is None:
        return 0
    with file:
        return sum(1 for _ in itertools.takewhile(lambda line: line.startswith("#"), file))


def _records(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line, record); lines count from 1 and are 0 in a BCF."""
    try:
        import pysam
    except ImportError:
        raise InputError("variants need the package pysam: install jaxgen with its extra, pip install 'jaxgen[variants]'") from None
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    verbosity = pysam.set_verbosity(0)  # a missing index is no problem here
    try:
        with pysam.VariantFile(str(path)) as file:
            header = _header_lines(path)
            yield from ((header and header + i, record) for i, record in enumerate(file, 1))
    except NotImplementedError:
        raise InputError(f"{path}: compressed by gzip; a VCF is read plain or compressed by bgzip") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable VCF ({error})") from None
    finally:
        pysam.set_verbosity(verbosity)


def _short(allele: bytes) -> str:
    text = allele.decode()
    return text if len(text) <= 12 else f"{text[:12]}... ({len(text)} bases)"


def longest_allele(length: int, shifts: Sequence[int]) -> int:
    """Bases that windows of `length` have from the variant's column on, whichever of `shifts` moves it.

    Raises:
        InputError: no window, no shift, or one that moves the variant out of the window.
    """
    if length < 1:
        raise InputError(f"variants.length={length}: give 1 or more")
    if not shifts:
        raise InputError("variants.shifts is empty: give 0 for the variant in the middle")
    middle = length // 2
    for shift in shifts:
        if not 0 <= middle + shift < length:
            bounds = f"give numbers from {-middle} to {length - middle - 1}"
            raise InputError(f"variants.shifts: {shift} moves the variant out of a window of variants.length={length} bases; {bounds}")
    return length - middle - max(shifts)


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
