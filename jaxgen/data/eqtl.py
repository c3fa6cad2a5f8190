"""Variants that change the expression of a gene (eQTLs) or do not: labels, where they lie, and the windows of both alleles.

The table is that of the long-range benchmark (InstaDeepAI/genomics-long-range-benchmark, `variant_effect_causal_eqtl`), in a local folder:
`train` and `test`, each a CSV, TSV (plain or gzip) or Parquet file, or Parquet shards. Its windows are in the table, or are cut from a
genome. Either way they are read as they are needed: nothing here holds the sequences of a split.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from jaxgen.data.augment import PLAIN
from jaxgen.data.genome import Genome
from jaxgen.data.streams import split_files, stream_rows
from jaxgen.data.tables import check_sequences
from jaxgen.data.variants import Variants, allele, allele_windows, checked_reference
from jaxgen.errors import InputError, nearest

SPLITS = ("train", "test")
SEQUENCES = ("ref_forward_sequence", "alt_forward_sequence")
ALLELES = ("position", "ref", "alt")
FIELDS = ("chromosome", "tissue", "distance_to_nearest_tss")
LABELS = ("label", "labels")  # one of them
MOST_N = 0.005  # share of N in the reference window from which a row is left out
_BLOCK = 64  # windows checked at a time

Windows = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class EqtlSplit:
    """One row per variant and tissue, in the order of the table.

    Attributes:
        labels: int8 (n,), 1 where the variant changes expression.
        chromosomes: int16 (n,), X is -1.
        tissues: n names.
        distances: int64 (n,), bases to the nearest transcription start site.
        length: bases per window.
        read: (first row, rows at a time) -> blocks of uint8 (<= rows, length) reference and alternative windows in A, C, G, T, N.
        digest: SHA-256 of labels, fields and windows.
        notes: what was found and left out.
    """

    labels: np.ndarray
    chromosomes: np.ndarray
    tissues: np.ndarray
    distances: np.ndarray
    length: int
    read: Callable[[int, int], Iterator[Windows]]
    digest: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def load_eqtl(folder: str | Path, length: int = 0, genome: Genome | None = None) -> dict[str, EqtlSplit]:
    """Train and test, each read once from end to end and checked.

    Args:
        folder: see the module.
        length: bases per window, the variant in the middle; 0 = those of the table, as they are.
        genome: where windows are cut around `position` (from 1), `ref` and `alt`; None reads the sequences of the table.

    Raises:
        InputError: missing file or column; an unexpected label, chromosome or distance; windows of different lengths or with odd letters; a
            reference allele that is not that of the genome; a split without rows, or with one class only. The message names the line.
    """
    if genome is not None and length < 1:
        raise InputError(f"probe.length={length}: windows that are cut from data.fasta need a length in bases")
    splits = {}
    for split in SPLITS:
        files = split_files(folder, split)
        splits[split] = _from_sequences(split, files, length) if genome is None else _from_alleles(split, files, length, genome)
    lengths = {split: data.length for split, data in splits.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{folder}: train has windows of {lengths['train']} bases, test of {lengths['test']}; set probe.length")
    return splits


def encode_tissues(splits: dict[str, EqtlSplit], faithful: bool) -> dict[str, np.ndarray]:
    """int32 (n,) per split: the place of a tissue among the sorted names of all splits or, `faithful`, of test alone.

    Raises:
        InputError: a tissue of train that the faithful encoding does not know.
    """
    known = np.unique(np.concatenate([data.tissues for split, data in splits.items() if split == "test" or not faithful]))
    unknown = sorted(set(splits["train"].tissues.tolist()) - set(known.tolist()))
    if unknown:
        raise InputError(f"tissue {unknown[0]!r} of train does not occur in test, from which faithful=true numbers the tissues")
    return {split: np.searchsorted(known, data.tissues).astype(np.int32) for split, data in splits.items()}


class _Fields:
    """Labels and fields of the rows that are kept, as they come."""

    def __init__(self) -> None:
        self.columns: tuple[list, ...] = ([], [], [], [])
        self.content = hashlib.sha256()

    def add(self, where: str, row: dict[str, str]) -> None:
        """Takes in a row.

        Raises:
            InputError: a value that is none.
        """
        label = row.get("label", row.get("labels", ""))
        if label not in ("0", "1", "0.0", "1.0"):
            raise InputError(f"{where}: unexpected label {label[:40]!r}; expected 0 or 1")
        chromosome = row["chromosome"].removeprefix("chr")
        if chromosome != "X" and not chromosome.isdecimal():
            raise InputError(f"{where}: unexpected chromosome {row['chromosome'][:40]!r}; expected a number or X")
        try:
            distance = int(float(row["distance_to_nearest_tss"]))
        except (ValueError, OverflowError):
            raise InputError(f"{where}: distance_to_nearest_tss {row['distance_to_nearest_tss'][:40]!r} is not a number") from None
        if not row["tissue"]:
            raise InputError(f"{where}: empty 'tissue'")
        values = (int(label[0]), -1 if chromosome == "X" else int(chromosome), row["tissue"], distance)
        self.content.update(repr(values).encode())
        for column, value in zip(self.columns, values):
            column.append(value)

    def split(
        self, name: str, where: str | Path, found: Sequence[str], length: int, read: Callable[[int, int], Iterator[Windows]]
    ) -> EqtlSplit:
        """The split.

        Raises:
            InputError: no rows, or one class only.
        """
        labels, chromosomes, tissues, distances = self.columns
        if not labels:
            raise InputError(f"{where}: no rows in the {name} split" + "".join(f" ({note})" for note in found))
        if len(set(labels)) < 2:
            raise InputError(f"{where}: all {len(labels)} rows of {name} have the label {labels[0]}; the probe needs both classes")
        negative = sum(distance < 0 for distance in distances)
        found = [*found, *([f"{negative:,} rows with a negative distance, which no bucket holds"] if negative else [])]
        notes = (f"{name}: {len(labels):,} rows, {sum(labels):,} with an effect", *(f"{name}: {note}" for note in found))
        arrays = np.array(labels, np.int8), np.array(chromosomes, np.int16), np.array(tissues), np.array(distances, np.int64)
        return EqtlSplit(*arrays, length, read, self.content.hexdigest(), notes)


def _checked(path: Path, rows: Iterator[tuple[int, dict[str, str]]], alleles: bool) -> Iterator[tuple[int, dict[str, str]]]:
    for line, row in rows:
        if not any(name in row for name in LABELS):
            raise InputError(f"{path}: no column 'label'{nearest('label', row)}")
        for name in () if alleles else SEQUENCES:
            if name not in row:
                raise InputError(f"{path}: no column {name!r}; for windows around {', '.join(ALLELES)} give data.fasta and probe.length")
        yield line, row


def _from_sequences(split: str, files: list[Path], length: int) -> EqtlSplit:
    """A first pass over the files checks everything; `read` then trusts them."""
    fields, counts, kept, given, same = _Fields(), [], [], 0, 0
    for path in files:
        rows = _checked(path, stream_rows(path, FIELDS, (*LABELS, *SEQUENCES)), alleles=False)
        counts.append(0)
        while block := list(islice(rows, _BLOCK)):
            lines = [line for line, _ in block]
            texts = [check_sequences(path, [row[name] for _, row in block], lines, name, [])[0] for name in SEQUENCES]
            for name, column in zip(SEQUENCES, texts):
                given = given or len(column[0])
                for line, text in zip(lines, column):
                    if len(text) != given:
                        raise InputError(
                            f"{path}:{line}: {name} has {len(text)} bases, but the first one {given}; all must be of one length"
                        )
            if length > given:
                raise InputError(f"{path}: sequences of {given} bases, fewer than probe.length={length}")
            windows = [_middle(column, length) for column in texts]
            for (line, row), ref, alt in zip(block, *windows):
                keep = _is_known(ref)
                kept.append(keep)
                if keep:
                    fields.add(f"{path}:{line}", row)
                    fields.content.update(ref)
                    fields.content.update(alt)
                    same += np.array_equal(ref, alt)
            counts[-1] += len(block)
    places = np.flatnonzero(kept)

    def read(first: int, rows: int) -> Iterator[Windows]:
        skip = int(places[first]) if first < len(places) else len(kept)
        wanted = (row for at, row in zip(range(skip, len(kept)), _rows_from(files, counts, skip)) if kept[at])
        while block := list(islice(wanted, rows)):
            ref, alt = (_middle([row[name].encode() for row in block], length) for name in SEQUENCES)
            yield ref, alt

    return fields.split(split, files[0], _found(len(kept) - len(places), same), length or given, read)


def _rows_from(files: list[Path], counts: list[int], skip: int) -> Iterator[dict[str, str]]:
    """The sequences of all files, one after the other, from row `skip` on."""
    for path, count in zip(files, counts):
        if skip < count:
            yield from (row for _, row in stream_rows(path, SEQUENCES, first=skip))
        skip = max(0, skip - count)


def _middle(texts: Sequence[bytes], length: int) -> np.ndarray:
    """uint8 (n, length): the middle of texts of one length, cleaned; base `len // 2` comes to column `length // 2`."""
    rows = np.frombuffer(b"".join(texts).translate(PLAIN.tobytes()), np.uint8).reshape(len(texts), -1)
    first = rows.shape[1] // 2 - length // 2 if length else 0
    return rows[:, first : first + length] if length else rows


def _is_known(ref: np.ndarray) -> bool:
    return int((ref == ord("N")).sum()) < MOST_N * len(ref)


def _found(unknown: int, same: int) -> list[str]:
    notes = [f"{unknown:,} rows left out, whose reference has {MOST_N:.1%} N or more"] if unknown else []
    return notes + ([f"{same:,} rows whose alleles are the same"] if same else [])


def _from_alleles(split: str, files: list[Path], length: int, genome: Genome) -> EqtlSplit:
    """The alleles of the table are few bytes each and are kept; windows are cut where they are needed."""
    fields, parts, unknown = _Fields(), [], 0
    for path in files:
        rows = _checked(path, stream_rows(path, (*ALLELES, *FIELDS), LABELS), alleles=True)
        while block := list(islice(rows, _BLOCK)):
            variants = _variants(path, block, genome)
            windows = [PLAIN[x] for x in allele_windows(genome, variants, np.arange(len(variants)), length)]
            keep = [_is_known(ref) for ref in windows[0]]
            for (line, row), chosen, ref, alt in zip(block, keep, *windows):
                if chosen:
                    fields.add(f"{path}:{line}", row)
                    fields.content.update(ref)
                    fields.content.update(alt)
            unknown += len(keep) - sum(keep)
            parts.append((variants, np.flatnonzero(keep)))
    every = Variants(
        np.concatenate([v.contig_ids[rows] for v, rows in parts]) if parts else np.zeros(0, np.int32),
        np.concatenate([v.positions[rows] for v, rows in parts]) if parts else np.zeros(0, np.int64),
        [v.refs[row] for v, rows in parts for row in rows],
        [v.alts[row] for v, rows in parts for row in rows],
        [],
        {},
    )

    def read(first: int, rows: int) -> Iterator[Windows]:
        for start in range(first, len(every), rows):
            ref, alt = allele_windows(genome, every, np.arange(start, min(start + rows, len(every))), length)
            yield PLAIN[ref], PLAIN[alt]

    return fields.split(split, files[0], _found(unknown, 0), length, read)


def _variants(path: Path, block: list[tuple[int, dict[str, str]]], genome: Genome) -> Variants:
    contigs, starts, refs, alts = [], [], [], []
    for line, row in block:
        where, name = f"{path}:{line}", row["chromosome"]
        contig = next((c for c in (name, f"chr{name}", name.removeprefix("chr")) if c in genome.contigs), name)
        if not row["position"].isdecimal():
            raise InputError(f"{where}: position {row['position'][:40]!r} is not a whole number")
        starts.append(int(row["position"]) - 1)
        refs.append(checked_reference(genome, contig, starts[-1], row["ref"], where))
        contigs.append(genome.contig_id(contig))
        alts.append(allele(row["alt"], "ALT", where))
    return Variants(np.array(contigs, np.int32), np.array(starts, np.int64), refs, alts, [], {})


def in_memory(name: str, fields: Sequence[tuple[int, str, str, int]], ref: np.ndarray, alt: np.ndarray) -> EqtlSplit:
    """A split out of (label, chromosome, tissue, distance) per row and its uint8 (n, length) windows."""
    kept = _Fields()
    for row, values in enumerate(fields):
        kept.add(f"{name}:{row + 1}", dict(zip(("label", *FIELDS), map(str, values))))
    kept.content.update(ref.tobytes() + alt.tobytes())

    def read(first: int, rows: int) -> Iterator[Windows]:
        return ((ref[at : at + rows], alt[at : at + rows]) for at in range(first, len(ref), rows))

    return kept.split(name, name, (), ref.shape[1], read)
