"""FASTA in one streaming pass: header lines found and line breaks removed chunk by chunk, never base by base."""

import contextlib
import gzip
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyfaidx

from jaxgen.data.tables import LETTERS, U_TO_T
from jaxgen.errors import InputError

_CHUNK = 1 << 22
_LEGAL = LETTERS + LETTERS.lower() + b"Xx"  # X: an unknown base in some assemblies
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BGZF_EOF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def parse_fasta(path: str, write: Callable[[bytes], object]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Streams a FASTA: `write` gets the bases of all contigs in order, without line breaks, letters as written but T for U.

    Args:
        path: plain, gzip or bgzip FASTA (told apart by content, not by name).
        write: called with pieces of sequence.

    Returns:
        contig name (first word of the header) -> length, in file order; and notes of what was converted.

    Raises:
        InputError: see `jaxgen.data.genome.Genome.open`.
    """
    contigs: dict[str, int] = {}
    name: str | None = None
    line, header, converted = 1, b"", 0
    in_header, at_line_start = False, True
    for chunk in _chunks(path):
        position = 0
        while position < len(chunk):
            if in_header:
                end = chunk.find(b"\n", position)
                header += chunk[position : end if end >= 0 else len(chunk)]
                if end < 0:
                    break
                name, in_header = _contig(path, line, header, name, contigs), False
                position, line, at_line_start = end + 1, line + 1, True
                continue
            if at_line_start and chunk[position] == ord(">"):
                in_header, header, position = True, b"", position + 1
                continue
            end = chunk.find(b"\n>", position)
            block = chunk[position : end + 1 if end >= 0 else len(chunk)]
            bases = block.translate(None, b"\r\n")
            if bases:
                if name is None or bases.translate(None, _LEGAL):
                    raise _mistake(path, line, block, name)
                contigs[name] += len(bases)
                if uracils := bases.count(b"U") + bases.count(b"u"):
                    bases, converted = bases.translate(U_TO_T), converted + uracils
                write(bases)
            line += block.count(b"\n")
            at_line_start = block.endswith(b"\n")
            position += len(block)
    if in_header:
        name = _contig(path, line, header, name, contigs)
    if name is None:
        raise InputError(f"{path}: empty FASTA file")
    if not contigs[name]:
        raise InputError(f"{path}:{line}: contig {name!r} has no sequence; the file may be truncated")
    return contigs, (f"{path}: {converted:,} U read as T",) if converted else ()


def _contig(path: str, line: int, header: bytes, previous: str | None, contigs: dict[str, int]) -> str:
    words = header.decode("utf-8", "replace").split()
    if not words:
        raise InputError(f"{path}:{line}: header without a contig name")
    if previous is not None and not contigs[previous]:
        raise InputError(f"{path}:{line}: contig {previous!r} has no sequence before the next header")
    if words[0] in contigs:
        raise InputError(f"{path}:{line}: contig {words[0]!r} occurs more than once")
    contigs[words[0]] = 0
    return words[0]


def _mistake(path: str, line: int, block: bytes, name: str | None) -> InputError:
    """The error that names the line of the first mistake in `block`, which begins on `line`."""
    for number, text in enumerate(block.split(b"\n"), line):
        text = text.rstrip(b"\r")
        illegal = text.translate(None, _LEGAL)
        if name is None and text:
            what = "not a FASTA file (no '>' header line)" if illegal else "sequence before the first header line"
            return InputError(f"{path}:{number}: {what}")
        if illegal:
            return InputError(f"{path}:{number}: {chr(illegal[0])!r} is not a nucleotide letter (contig {name!r}); corrupt file?")
    raise AssertionError("the caller found a mistake in this block")


def _chunks(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as raw:
            magic = raw.read(18)
            raw.seek(len(_BYTE_ORDER_MARK) if magic.startswith(_BYTE_ORDER_MARK) else 0)
            if magic[:2] != b"\x1f\x8b":
                while chunk := raw.read(_CHUNK):
                    yield chunk
                return
            _check_bgzf(path, raw, magic)
            with gzip.GzipFile(fileobj=raw) as file:
                if file.peek(len(_BYTE_ORDER_MARK)).startswith(_BYTE_ORDER_MARK):
                    file.read(len(_BYTE_ORDER_MARK))
                while chunk := file.read(_CHUNK):
                    yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise InputError(f"{path}: truncated or corrupt gzip file ({error})") from None


def _check_bgzf(path: str, raw: BinaryIO, magic: bytes) -> None:
    """A bgzip file cut between two blocks is valid gzip; only its missing end-of-file block gives it away."""
    if len(magic) == 18 and magic[3] & 4 and magic[12:14] == b"BC":
        raw.seek(-min(len(_BGZF_EOF), os.fstat(raw.fileno()).st_size), os.SEEK_END)
        if raw.read() != _BGZF_EOF:
            raise InputError(f"{path}: truncated bgzip file (no end-of-file block)")
        raw.seek(0)


def check_fai(path: str, contigs: dict[str, int]) -> tuple[str, ...]:
    """Compares `<path>.fai`, where there is one, with the contigs of the FASTA itself.

    Returns:
        a note if the index is older than the FASTA although they agree.

    Raises:
        InputError: the index is unreadable, or names other contigs or lengths (usually because it is older than the FASTA).
    """
    index = f"{path}.fai"
    if not os.path.isfile(index):
        return ()
    stale = "; the index is older than the FASTA" if os.path.getmtime(index) < os.path.getmtime(path) else ""
    remedy = f"{stale}; delete it or rebuild it with `samtools faidx`"
    listed = _read_index(index, remedy)
    for name, length in contigs.items():
        if name not in listed:
            raise InputError(f"{index}: does not list contig {name!r} of the FASTA{remedy}")
        if listed[name] != length:
            raise InputError(f"{index}: says {listed[name]} bases for contig {name!r}, but the FASTA has {length}{remedy}")
    if extra := listed.keys() - contigs.keys():
        raise InputError(f"{index}: lists contig {min(extra)!r}, which the FASTA does not have{remedy}")
    return (f"{index}: older than the FASTA, though contigs and lengths agree; rebuild it with `samtools faidx`",) if stale else ()


def _read_index(index: str, remedy: str) -> dict[str, int]:
    """Contig name -> length, as pyfaidx reads the index."""
    try:
        # The index stands in for the FASTA, which pyfaidx would open but not need, and refuse when it is compressed.
        with contextlib.closing(pyfaidx.Faidx(index, indexname=index, build_index=False)) as reader:
            return {name: record.rlen for name, record in reader.index.items()}
    except (ValueError, pyfaidx.FastaIndexingError):
        names = set()
        with open(index, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                name, *numbers = line.rstrip().split("\t")
                if len(numbers) != 4 or not all(field.isdigit() for field in numbers):
                    raise InputError(f"{index}:{number}: not a FASTA index line{remedy}") from None
                if name in names:
                    raise InputError(f"{index}:{number}: lists contig {name!r} a second time{remedy}") from None
                names.add(name)
        raise InputError(f"{index}: not a FASTA index{remedy}") from None
