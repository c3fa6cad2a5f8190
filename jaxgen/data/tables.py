"""Delimited tables of sequences and labels, read in one pass with every mistake named by file, line and column."""

import contextlib
import csv
import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from jaxgen.errors import InputError, nearest

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
_DELIMITER_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}

# IUPAC nucleotide letters; U is written as T once read.
LETTERS = b"ACGTUNRYSWKMBDHV"
_LEGAL = LETTERS + LETTERS.lower()
_GZIP = b"\x1f\x8b"
U_TO_T = bytes.maketrans(b"Uu", b"Tt")


@dataclass(frozen=True)
class Table:
    """Columns of one file.

    Attributes:
        path: the file.
        sequences: n byte strings, stripped, `U` written as `T`, lower case kept.
        labels: n label texts, stripped (empty list when no label column was asked for).
        lines: line number of every row, for messages.
        notes: what was found and kept or converted.
    """

    path: str
    sequences: list[bytes]
    labels: list[str]
    lines: list[int]
    notes: tuple[str, ...]


def table_suffix(path: str | os.PathLike) -> str:
    """`.csv` for `x.csv` and `x.csv.gz`; "" when the name is not one of a table."""
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] == ".gz":
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes and suffixes[-1] in DELIMITERS else ""


def read_text(path: str | os.PathLike) -> str:
    """The text of a plain or gzip file, without a byte order mark.

    Raises:
        InputError: missing or unreadable file, truncated or corrupt gzip, or content that is not UTF-8 text.
    """
    with _readable(path):
        with open(path, "rb") as file:
            data = file.read()
        if data[:2] == _GZIP:
            data = gzip.decompress(data)
    if b"\0" in data:
        raise InputError(f"{path}: not a text table (NUL bytes); expected UTF-8 CSV or TSV, plain or gzip")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text (byte {data[error.start]:#04x}); expected CSV or TSV, plain or gzip") from None


def read_columns(path: str | os.PathLike, *names: str, optional: Sequence[str] = ()) -> tuple[dict[str, list[str]], list[int]]:
    """Columns of a CSV (`,`) or TSV (tab) file by name, as stripped texts, and the line number of every row.

    Blank lines are skipped, other columns ignored; an `optional` column that is not there is left out of the result.

    Raises:
        InputError: see `read_text`; unknown table type, wrong delimiter, missing or repeated column, ragged row, empty table.
    """
    delimiter = _delimiter(path)
    rows = _parse(path, io.StringIO(read_text(path), newline=""), delimiter, names, optional)
    wanted = next(rows)[1]
    columns: list[list[str]] = [[] for _ in wanted]
    lines: list[int] = []
    for line, cells in rows:
        lines.append(line)
        for column, cell in zip(columns, cells):
            column.append(cell)
    return dict(zip(wanted, columns)), lines


def stream_columns(path: str | os.PathLike, *names: str, optional: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """The table of `read_columns` row by row, for files that memory would not hold.

    Yields (line number, cells), stripped; the first item is the names of the columns.

    Raises:
        InputError: see `read_columns`.
    """
    delimiter = _delimiter(path)
    with _readable(path):
        with open(path, "rb") as file:
            is_gzip = file.read(2) == _GZIP
        with (gzip.open if is_gzip else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
            yield from _parse(path, text, delimiter, names, optional)


@contextlib.contextmanager
def _readable(path: str | os.PathLike) -> Iterator[None]:
    """What goes wrong while a file is read, in one line."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: truncated or corrupt gzip file ({error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); expected CSV or TSV, plain or gzip") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _delimiter(path: str | os.PathLike) -> str:
    delimiter = DELIMITERS.get(table_suffix(path))
    if delimiter is None:
        raise InputError(f"{path}: unknown table type; expected a name ending in {', '.join(DELIMITERS)} (or one of them + .gz)")
    return delimiter


def _parse(
    path: str | os.PathLike, text: Iterable[str], delimiter: str, names: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    """(line, names of the columns), then (line, cells) of every row that is not blank."""
    csv.field_size_limit(sys.maxsize)  # sequences may be longer than csv's default of 131072 characters
    reader = csv.reader(text, delimiter=delimiter)
    empty = True
    try:
        header = [name.strip() for name in next(reader, [])]
        wanted = [*names, *(name for name in optional if name in header)]
        indices = _columns(path, header, delimiter, wanted)
        yield reader.line_num, wanted
        for row in reader:
            if len(row) != len(header):
                if not row:
                    continue
                raise InputError(f"{path}:{reader.line_num}: {len(row)} columns, but the header has {len(header)} ({', '.join(header)})")
            empty = False
            yield reader.line_num, [row[index].strip() for index in indices]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from None
    if empty:
        raise InputError(f"{path}: empty table (a header but no rows)")


def read_table(path: str | os.PathLike, sequence_column: str = "sequence", label_column: str | None = "label") -> Table:
    """Reads the sequence column and, unless it is None, the label column of a CSV (`,`) or TSV (tab) file.

    Sequences: outer white space is stripped; lower case is kept; `U` becomes `T`; IUPAC letters are kept; anything else is
    an error. Blank lines are skipped. Other columns are ignored.

    Raises:
        InputError: see `read_columns`; empty sequence or illegal character, each with file and line.
    """
    columns, lines = read_columns(path, *(name for name in (sequence_column, label_column) if name is not None))
    labels = columns[label_column] if label_column is not None else []
    return Table(str(path), *check_sequences(path, columns[sequence_column], lines, sequence_column, labels))


def _columns(path: str | os.PathLike, header: list[str], delimiter: str, wanted: Sequence[str]) -> list[int]:
    if not header:
        raise InputError(f"{path}: empty file")
    for name in wanted:
        if name in header:
            if header.count(name) > 1:
                raise InputError(f"{path}:1: column {name!r} occurs more than once")
            continue
        for other, title in _DELIMITER_NAMES.items():
            if other != delimiter and len(header) == 1 and name in [part.strip() for part in header[0].split(other)]:
                raise InputError(f"{path}:1: columns are separated by {title}, but this file type means {_DELIMITER_NAMES[delimiter]}")
        shown = ", ".join(repr(column[:40]) for column in header[:12])
        raise InputError(f"{path}:1: no column {name!r}{nearest(name, [c for c in header if len(c) < 40])} (columns: {shown})")
    return [header.index(name) for name in wanted]


def check_sequences(
    path: str | os.PathLike, texts: list[str], lines: list[int], column: str, labels: list[str]
) -> tuple[list[bytes], list[str], list[int], tuple[str, ...]]:
    """The columns of a `Table`. Checks all sequences at once, and looks for the culprit only when there is one.

    Raises:
        InputError: empty sequence or illegal character, with file and line.
    """
    if not all(texts):
        raise InputError(f"{path}:{lines[texts.index('')]}: empty {column!r}")
    whole = "\n".join(texts).encode("ascii", "replace")
    # A quoted cell may hold a line break, which the separator of `whole` would hide.
    if whole.translate(None, _LEGAL + b"\n") or whole.count(b"\n") != len(texts) - 1:
        illegal = re.compile(rf"[^{_LEGAL.decode()}]")
        for text, line in zip(texts, lines):
            if found := illegal.search(text):
                raise InputError(
                    f"{path}:{line}: column {column!r}: illegal character {found[0]!r} at base {found.start() + 1}; "
                    f"expected the letters {LETTERS.decode()} in either case"
                )
    notes = []
    lower = len(whole.translate(None, LETTERS + b"\n"))
    if lower:
        notes.append(f"{path}: {lower} lower-case (soft-masked) bases kept; tokenizers that do not upper-case read them as unknown")
    converted = whole.count(b"U") + whole.count(b"u")
    if converted:
        notes.append(f"{path}: {converted} U read as T")
        whole = whole.translate(U_TO_T)
    ambiguous = len(whole.translate(None, b"ACGTacgt\n"))
    if ambiguous:
        notes.append(f"{path}: {ambiguous} ambiguous bases (N and other IUPAC letters) kept")
    return whole.split(b"\n"), labels, lines, tuple(notes)


def class_labels(table: Table, column: str = "label", classes: int | None = None) -> np.ndarray:
    """int32 (n,) class indices from a table's labels.

    Args:
        classes: number of classes of the train split; None for the train split itself, whose labels must then be exactly
            0 ... C-1 with every class present.

    Raises:
        InputError: a label that is not an integer, is negative, has a gap below it, or is unknown to the train split.
    """
    integer = re.compile(r"[+-]?[0-9]{1,9}")
    for text, line in zip(table.labels, table.lines):
        if not integer.fullmatch(text):
            raise InputError(f"{table.path}:{line}: column {column!r}: {text[:40]!r} is not an integer class label")
    values = np.array([int(text) for text in table.labels], np.int32)

    def fail(mask: np.ndarray, text: str) -> NoReturn:
        row = int(np.flatnonzero(mask)[0])
        raise InputError(f"{table.path}:{table.lines[row]}: column {column!r}: label {values[row]} {text}")

    if (values < 0).any():
        fail(values < 0, "is negative; classes count from 0")
    if classes is None:
        present = np.unique(values)
        gaps = np.flatnonzero(present != np.arange(len(present)))
        if gaps.size:
            fail(
                values == present[gaps[0]], f"is out of range: no row has label {gaps[0]}, and train labels must be 0 ... C-1 without gaps"
            )
        if len(present) < 2:
            raise InputError(f"{table.path}: column {column!r}: only one class (label 0); classification needs at least two")
    elif (values >= classes).any():
        fail(values >= classes, f"does not occur in the train split (classes 0 ... {classes - 1})")
    return values


def class_indices(path: str | os.PathLike, labels: list[str], lines: list[int], classes: Sequence[str], owner: str) -> np.ndarray:
    """int32 (n,) class indices; a label is the number or the name of one of the `classes` of `owner`.

    Raises:
        InputError: a label that is neither.
    """
    known = {name: i for i, name in enumerate(classes)} | {str(i): i for i in range(len(classes))}
    try:
        return np.array([known[label] for label in labels], np.int32)
    except KeyError as error:
        unknown = error.args[0]
        line = lines[labels.index(unknown)]
        raise InputError(f"{path}:{line}: unexpected class {unknown[:40]!r}; {owner} has {', '.join(classes)}") from None


def float_labels(table: Table, column: str = "label") -> np.ndarray:
    """float32 (n, 1) regression targets from a table's labels.

    Raises:
        InputError: a label that is not a number, or is NaN or infinite.
    """
    values = np.empty((len(table.labels), 1), np.float64)
    for i, text in enumerate(table.labels):
        try:
            values[i] = float(text)
        except ValueError:
            raise InputError(f"{table.path}:{table.lines[i]}: column {column!r}: {text[:40]!r} is not a number") from None
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(narrow))
    if bad.size:
        i = int(bad[0])
        raise InputError(f"{table.path}:{table.lines[i]}: column {column!r}: target {table.labels[i]!r} is not finite in float32")
    return narrow
