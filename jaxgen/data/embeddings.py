"""Embeddings on disk: a table of sequences with ids in, one `.npy` file out, written row by row and resumed after a kill."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data.fasta import parse_fasta
from jaxgen.data.sequences import Sequences
from jaxgen.data.tables import check_sequences, read_columns, table_suffix
from jaxgen.errors import InputError, nearest

FASTA = (".fa", ".fasta", ".fna", ".fas")
DUPLICATES = ("error", "last")


@dataclass(frozen=True, eq=False)
class NamedSequences:
    """Sequences with their ids, in file order; `notes` say what was found in them and kept or converted."""

    ids: list[str]
    sequences: Sequences
    notes: tuple[str, ...]

    def digest(self) -> str:
        """SHA-256 of ids and sequences."""
        content = hashlib.sha256("\n".join(self.ids).encode())
        content.update(self.sequences.offsets.tobytes())
        content.update(self.sequences.buffer.tobytes())
        return content.hexdigest()


def read_named_sequences(path: str, id_column: str, sequence_column: str, duplicates: str = "error") -> NamedSequences:
    """Reads a CSV or TSV table (plain or gzip) with an id and a sequence column, or a FASTA (plain, gzip or bgzip).

    Args:
        id_column: empty: rows are numbered from 1.
        duplicates: "error", or "last": of rows with the same id the last one counts, in the place of the first.

    Raises:
        InputError: see `read_columns`, `check_sequences` and `parse_fasta`; an empty or repeated id.
    """
    if duplicates not in DUPLICATES:
        raise InputError(f"embed.duplicates={duplicates!r}{nearest(duplicates, DUPLICATES)}")
    if not os.path.isfile(path):
        raise InputError(f"data.path={path}: no such file" if path else "data.path is empty: give a table or FASTA of sequences")
    if Path(path.removesuffix(".gz").removesuffix(".bgz")).suffix.lower() in FASTA:
        ids, texts, found = _read_fasta(path)
        lines = list(range(1, len(ids) + 1))
    elif table_suffix(path):
        try:
            columns, lines = read_columns(path, *filter(None, (id_column, sequence_column)))
        except InputError as error:
            hint = "; set embed.id_column (empty: rows are numbered)" if f"no column {id_column!r}" in str(error) else ""
            raise InputError(f"{error}{hint}") from None
        texts, found = columns[sequence_column], ()
        ids = columns[id_column] if id_column else [str(number) for number in range(1, len(texts) + 1)]
        if "" in ids:
            raise InputError(f"{path}:{lines[ids.index('')]}: empty {id_column!r}")
    else:
        raise InputError(f"{path}: expected a table (.csv, .tsv) or a FASTA ({', '.join(FASTA)}), plain or .gz")
    last = dict(zip(ids, range(len(ids))))
    if len(last) < len(ids) and duplicates == "error":
        repeated = sorted({name for row, name in enumerate(ids) if last[name] != row})
        shown = ", ".join(repr(name) for name in repeated[:5]) + (", ..." if len(repeated) > 5 else "")
        raise InputError(f"{path}: {id_column!r} occurs more than once for {shown}; remove rows, or set embed.duplicates=last")
    sequences, _, _, notes = check_sequences(path, texts, lines, sequence_column, ids)
    notes = (*found, *notes)
    if len(last) < len(ids):
        notes = (*notes, f"{path}: {len(ids) - len(last)} rows left out, whose id occurs again further down")
    return NamedSequences(list(last), Sequences.from_list([sequences[row] for row in last.values()]), tuple(notes))


def _read_fasta(path: str) -> tuple[list[str], list[str], tuple[str, ...]]:
    pieces: list[bytes] = []
    contigs, notes = parse_fasta(path, pieces.append)
    whole, ends = b"".join(pieces).decode(), np.cumsum(list(contigs.values())).tolist()
    return list(contigs), [whole[start:end] for start, end in zip([0, *ends], ends)], notes


class EmbeddingFile:
    """An `.npy` matrix that several processes fill, each its own rows, under a temporary name until `finish`.

    Rows are written at their place in the file, not through a memory map: two machines that share a page of a network disk would
    overwrite each other's rows.

    Args:
        path: of the finished file.
        shape: (rows, width).
        dtype: "float32" or "float16".
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: str):
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.partial = path.with_name(f".{path.name}.partial")
        self._progress = path.with_name(f".{path.name}.progress")
        self._file = self._header = -1

    def done(self, plan: str) -> int:
        """Shards of `plan` (a digest) that an interrupted export finished."""
        try:
            record = json.loads(self._progress.read_text())
            return int(record["shards"]) if record["plan"] == plan and self.partial.exists() else 0
        except (OSError, ValueError, KeyError):
            return 0

    def create(self) -> None:
        """Starts an empty file (one process alone)."""
        self._progress.unlink(missing_ok=True)
        np.lib.format.open_memmap(self.partial, mode="w+", dtype=self.dtype, shape=self.shape)

    def open(self) -> None:
        """Opens the file that `create` made, for writing."""
        self._header = os.path.getsize(self.partial) - int(np.prod(self.shape)) * self.dtype.itemsize
        self._file = os.open(self.partial, os.O_RDWR)

    def write(self, first_row: int, values: np.ndarray) -> None:
        """Puts (k, width), or (width,), at the rows from `first_row` on."""
        with np.errstate(over="ignore"):
            content = np.ascontiguousarray(values, self.dtype).tobytes()
        at, left = self._header + first_row * self.shape[1] * self.dtype.itemsize, memoryview(content)
        while left:
            written = os.pwrite(self._file, left, at)
            at, left = at + written, left[written:]

    def flush(self) -> None:
        """Returns when everything written is on the disk."""
        os.fsync(self._file)

    def record(self, shards: int, plan: str) -> None:
        """Notes that so many shards are on the disk (one process alone)."""
        write_whole(self._progress, json.dumps({"shards": shards, "plan": plan}).encode())

    def non_finite(self, rows_at_once: int = 1 << 14) -> np.ndarray:
        """bool (rows,), true where a row holds NaN or infinity."""
        values = np.load(self.partial if self.partial.exists() else self.path, mmap_mode="r")
        parts = [~np.isfinite(values[at : at + rows_at_once]).all(axis=1) for at in range(0, len(values), rows_at_once)]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def close(self) -> None:
        """Ends writing."""
        os.close(self._file)

    def finish(self) -> None:
        """Gives the file its name (one process alone)."""
        os.replace(self.partial, self.path)
        self._progress.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the unfinished file, whose content went elsewhere (one process alone)."""
        self._progress.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)


def write_array(path: Path, values: np.ndarray) -> None:
    """An `.npy` file that appears when it is whole."""
    content = io.BytesIO()
    np.save(content, values)
    write_whole(path, content.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """A file that appears when it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


class Manifest:
    """What the embeddings in a folder were made with, so that those of two models or settings never stand side by side.

    `manifest.json`: `settings`, shared by all exports of the folder, and `exports`: name -> data, rows, files, and whether finished.
    """

    def __init__(self, folder: Path):
        self.path = folder / "manifest.json"
        try:
            content = json.loads(self.path.read_text()) if self.path.exists() else {"settings": None, "exports": {}}
            self.settings, self.exports = content["settings"], dict(content["exports"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.path}: not a manifest of embeddings; choose another --workdir") from None

    def check(self, settings: Mapping[str, Any], name: str, export: Mapping[str, Any]) -> bool:
        """Whether the export is here and finished.

        Raises:
            InputError: embeddings of another model, setting or input are in the way (the first difference is named).
        """
        folder = self.path.parent
        for field, value in settings.items() if self.settings is not None else ():
            if self.settings.get(field) != value:
                was = self.settings.get(field)
                raise InputError(f"--workdir={folder} holds embeddings with {field}={was!r}, not {value!r}; choose another --workdir")
        known = self.exports.get(name)
        if known is None:
            taken = {file: other for other, entry in self.exports.items() for file in entry["files"].values()}
            for file in export["files"].values():
                if file in taken or (folder / file).exists():
                    owner = f"of the export {taken[file]!r}" if file in taken else "and no export of this manifest"
                    raise InputError(f"{folder / file}: exists already, {owner}; choose another embed.name or --workdir")
            return False
        for field, value in export.items():
            if known.get(field) != value:
                was = f"{name!r} with {field}={known.get(field)!r}"
                raise InputError(f"--workdir={folder} holds {was}, not {value!r}; choose another embed.name or --workdir")
        return bool(known["finished"])

    def write(self, settings: Mapping[str, Any], name: str, export: Mapping[str, Any], finished: bool) -> None:
        """Adds or replaces an export."""
        self.settings, self.exports = dict(settings), self.exports | {name: {**export, "finished": finished}}
        content = {"settings": self.settings, "exports": self.exports}
        write_whole(self.path, (json.dumps(content, indent=2) + "\n").encode())
