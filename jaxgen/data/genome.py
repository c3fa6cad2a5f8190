"""A genome as one memory-mapped file: one byte per base, random access without parsing.

Store file, built once per FASTA: the bases of all contigs one after the other, then a JSON trailer (contigs, source stamp), its
length as 8 little-endian bytes, and 8 bytes of magic. A base is the ASCII letter of the FASTA as written, so bit 0x20 of every
byte IS the soft mask (lower case = repeat-masked) and `base & 0xDF` is the upper-case letter; U is stored as T.

The trailer is the store's own index: its contig lengths come out of the pass that writes the bases, for plain gzip too (which
pyfaidx refuses). A `.fai` next to the FASTA, read through pyfaidx, is checked against them; none is written.
"""

import hashlib
import json
import mmap
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data.fasta import check_fai, parse_fasta
from jaxgen.errors import InputError, nearest

_MAGIC = b"jaxgenG2"
_EDGE = 1 << 16
SOFT_MASK_BIT = np.uint8(0x20)


def cache_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """`cache_dir`, or $JAXGEN_CACHE, or ~/.cache/jaxgen."""
    return Path(cache_dir or os.environ.get("JAXGEN_CACHE") or Path.home() / ".cache" / "jaxgen").expanduser()


class Genome:
    """Read-only access to a genome store; made by `Genome.open`.

    Attributes:
        path: the FASTA it was built from.
        contigs: contig name -> length in bases, in file order.
        bases: uint8 (total,), memory-mapped, all contigs one after the other.
        offsets: int64 (contigs + 1,), contig i is `bases[offsets[i]:offsets[i + 1]]`.
        notes: what was found in the FASTA and converted, for people.
    """

    def __init__(self, path: str, store: Path):
        self.path, self._store = path, store
        with open(store, "rb") as file:
            trailer, size = _read_trailer(file)
            # A plain array over the map: slicing np.memmap is several times slower.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bases = np.frombuffer(mapped, np.uint8, count=size)
        self.contigs: dict[str, int] = dict(trailer["contigs"])
        self.notes: tuple[str, ...] = tuple(trailer["notes"])
        self.offsets = np.concatenate([[0], np.cumsum(list(self.contigs.values()), dtype=np.int64)])
        self._ids = {name: i for i, name in enumerate(self.contigs)}

    @classmethod
    def open(cls, fasta_path: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> "Genome":
        """Opens a FASTA (plain, gzip or bgzip), building the store if it is missing or the FASTA has changed.

        Nothing is written next to the FASTA. The store is renamed into place when complete.

        Args:
            fasta_path: the FASTA.
            cache_dir: where stores are kept; see `cache_root`.

        Raises:
            InputError: missing, empty, truncated or corrupt file; sequence before the first header; repeated or empty contig; a
                letter that is no nucleotide; a `.fai` that disagrees; a cache folder that cannot be written.
        """
        path = os.path.realpath(fasta_path)
        if not os.path.isfile(path):
            raise InputError(f"{fasta_path}: no such FASTA file")
        try:
            stamp = _stamp(path)
        except OSError as error:
            raise InputError(f"{fasta_path}: cannot be read ({error.strerror or error})") from None
        folder = cache_root(cache_dir) / "genomes"
        store = folder / f"{os.path.basename(path)}-{hashlib.sha256(path.encode()).hexdigest()[:16]}.bases"
        if not _is_current(store, stamp):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _build(path, store, stamp)
            except OSError as error:
                raise InputError(f"{folder}: genome cache cannot be written ({error.strerror or error}); set JAXGEN_CACHE") from None
        genome = cls(path, store)
        genome.notes += check_fai(path, genome.contigs)
        return genome

    def __reduce__(self) -> tuple[Any, ...]:
        return Genome, (self.path, self._store)  # map the file again instead of copying the bases

    def __len__(self) -> int:
        """Total number of bases."""
        return int(self.offsets[-1])

    def contig_id(self, contig: str) -> int:
        """Position of `contig` in `contigs`.

        Raises:
            InputError: unknown contig (the nearest one is named).
        """
        if contig not in self._ids:
            raise InputError(f"{self.path}: no contig {contig!r}{nearest(contig, list(self.contigs)[:2000])}")
        return self._ids[contig]

    def fetch(self, contig: str, start: int = 0, end: int | None = None) -> np.ndarray:
        """uint8 (end - start,) view of the bases [start, end), 0-based, case as in the FASTA.

        Raises:
            InputError: unknown contig, or an interval outside it.
        """
        i = self.contig_id(contig)
        length = self.contigs[contig]
        end = length if end is None else end
        if not 0 <= start <= end <= length:
            raise InputError(f"{self.path}: interval {contig}:{start}-{end} is not within the {length} bases of {contig}")
        offset = int(self.offsets[i])
        return self.bases[offset + start : offset + end]

    def soft_mask(self, contig: str, start: int = 0, end: int | None = None) -> np.ndarray:
        """bool (end - start,), true where the FASTA is in lower case; errors as for `fetch`."""
        return (self.fetch(contig, start, end) & SOFT_MASK_BIT) != 0

    def gather(
        self,
        contig_ids: np.ndarray,
        starts: np.ndarray,
        length: int,
        fill: int = 0,
        *,
        ends: np.ndarray | None = None,
        left_pad: bool = False,
    ) -> np.ndarray:
        """Many windows at once.

        Args:
            contig_ids: int (B,), positions in `contigs`.
            starts: int (B,), 0-based; may be negative.
            length: columns L.
            fill: byte for positions outside a contig or a window.
            ends: int (B,), ends of windows not longer than L; None for start + L.
            left_pad: put windows shorter than L at the right end of the row.

        Returns:
            uint8 (B, L).
        """
        starts = np.asarray(starts, np.int64)
        ends = starts + length if ends is None else np.asarray(ends, np.int64)
        contig_ids = np.asarray(contig_ids)
        lows, highs = self.offsets[contig_ids], self.offsets[contig_ids + 1]
        column = length - (ends - starts) if left_pad else np.zeros_like(starts)
        first = np.clip(lows + starts, lows, highs)
        last = np.clip(lows + ends, first, highs)
        column += np.where(last > first, first - (lows + starts), 0)
        covered = bool(((last - first) == length).all())
        out = np.empty((len(starts), length), np.uint8) if covered else np.full((len(starts), length), fill, np.uint8)
        bases = self.bases
        # A memcpy per row beats any index array, which costs eight bytes per base.
        for row, a, b, c in zip(out, first.tolist(), last.tolist(), column.tolist()):
            row[c : c + b - a] = bases[a:b]
        return out


def _stamp(path: str) -> dict[str, Any]:
    """What identifies a version of the FASTA: size, modification time and a hash of both its ends."""
    info = os.stat(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, info.st_size - _EDGE))
        digest.update(file.read(_EDGE))
    return {"source": path, "size": info.st_size, "mtime_ns": info.st_mtime_ns, "edges": digest.hexdigest()}


def _is_current(store: Path, stamp: dict[str, Any]) -> bool:
    try:
        with open(store, "rb") as file:
            return _read_trailer(file)[0]["stamp"] == stamp
    except (OSError, ValueError, KeyError):
        return False


def _read_trailer(file: Any) -> tuple[dict[str, Any], int]:
    """(trailer, number of bases before it)."""
    end = file.seek(0, os.SEEK_END)
    if end < 16:
        raise ValueError("not a genome store")
    file.seek(end - 16)
    tail = file.read(16)
    size = int.from_bytes(tail[:8], "little")
    if tail[8:] != _MAGIC or size > end - 16:
        raise ValueError("not a genome store")
    file.seek(end - 16 - size)
    return json.loads(file.read(size)), end - 16 - size


def _build(path: str, store: Path, stamp: dict[str, Any]) -> None:
    temporary = store.with_name(f".{store.name}.{uuid.uuid4().hex}")  # processes that build at the same time do not meet
    try:
        with open(temporary, "wb", buffering=0) as out:
            contigs, notes = parse_fasta(path, out.write)
            trailer = json.dumps({"stamp": stamp, "contigs": list(contigs.items()), "notes": notes}).encode()
            out.write(trailer + len(trailer).to_bytes(8, "little") + _MAGIC)
        os.replace(temporary, store)
    finally:
        temporary.unlink(missing_ok=True)
