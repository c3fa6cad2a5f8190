"""Readers of the TF-perturbation files: targets (CSV, Parquet), embeddings with their ids, and the table of TF sequences.

Formats: molocyxu/10701GenomicEmbeddings, listed in docs/tf_perturbation.md.
"""

import csv
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgen.data.tables import check_sequences, read_columns, read_text
from jaxgen.errors import InputError

# Folders of the published layout, below the data folder; the first that has a file counts.
_FOLDERS = ("", "artifacts", "data", "data/artifacts", "NT-v2-50M", "HyenaDNA_outputs")
_TARGETS = ("targets_*_overlap.csv", "targets_*.csv", "targets*.parquet", "targets*.pq")
_NULLS = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]


@dataclasses.dataclass(frozen=True)
class Targets:
    """Expression changes as read.

    Attributes:
      path: the file.
      ids: (P,) perturbation ids: gene ids where the file has a column `gene_id`, else its first column.
      names: (P,) gene names, None when the file has no column `gene_name` beside the ids.
      genes: (G,) read-out gene ids.
      values: float32 (P, G), NaN = missing.
    """

    path: Path
    ids: list[str]
    names: list[str] | None
    genes: list[str]
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """float32 (n, K) `values` with the id of every row."""

    path: Path
    ids: list[str]
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Genes:
    """The table of perturbed genes: ids, names ("" = none) and DNA."""

    path: Path
    ids: list[str]
    names: list[str]
    sequences: list[bytes]


def find(folder: str | os.PathLike, name: str) -> Path | None:
    """A file by name in the data folder or one of the published layout's folders; None when there is none."""
    return next((path for below in _FOLDERS if (path := Path(folder) / below / name).is_file()), None)


def require(folder: str | os.PathLike, name: str, field: str) -> Path:
    """`find`, or an `InputError` that names the field of the config that names the file."""
    path = find(folder, name)
    if path is None:
        looked = ", ".join(below for below in _FOLDERS if below)
        raise InputError(f"{folder}: holds no {name!r} (nor do its folders {looked}); name the file in perturbation.files.{field}")
    return path


def find_targets(folder: str | os.PathLike, name: str) -> Path:
    """The targets file: `name`, or when that is empty the only one of the usual names.

    Raises:
      InputError: none, or several of one kind.
    """
    if name:
        return require(folder, name, "targets")
    for pattern in _TARGETS:
        found = sorted({path for below in _FOLDERS for path in (Path(folder) / below).glob(pattern)})
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise InputError(f"{folder}: holds several targets ({names}); choose one with --config.perturbation.files.targets=NAME")
        if found:
            return found[0]
    raise InputError(f"{folder}: holds no targets ({', '.join(_TARGETS)}); name the file in perturbation.files.targets")


def read_targets(path: Path) -> Targets:
    """A table of changes: one row per perturbation, id columns first, then one column per read-out gene.

    Raises:
      InputError: not such a table; an infinite or unreadable value, named by row and column; repeated columns; empty ids.
    """
    table = _read_parquet(path) if path.suffix in (".parquet", ".pq") else _read_csv(path)
    header = table.column_names
    repeated = next((name for name in header if header.count(name) > 1), None) if len(set(header)) < len(header) else None
    if repeated is not None:
        raise InputError(f"{path}: column {repeated!r} occurs more than once")
    if not table.num_rows:
        raise InputError(f"{path}: empty table (a header but no rows)")
    id_column = "gene_id" if "gene_id" in header else header[0]
    genes = [name for name in header if name not in ("gene_id", "gene_name", id_column)]
    if not genes:
        raise InputError(f"{path}: has no columns of genes beside {id_column!r}")
    text = {name: [_text(x) for x in table[name].to_pylist()] for name in {id_column, "gene_name"} & set(header)}
    ids = text[id_column]
    if "" in ids:
        raise InputError(f"{path}: row {ids.index('') + 1} has no perturbation id in column {id_column!r}")
    values = np.empty((table.num_rows, len(genes)), np.float32)
    for i, gene in enumerate(genes):
        try:
            column = table[gene].cast("float64").to_numpy()
        except (ValueError, NotImplementedError) as error:  # pyarrow's errors
            raise InputError(f"{path}: column {gene!r} is not numeric ({_line(error)})") from error
        with np.errstate(over="ignore"):
            values[:, i] = column
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise InputError(f"{path}: perturbation {ids[row]!r}, gene {genes[column]!r}: the value is infinite; write NaN for missing values")
    return Targets(path, ids, text.get("gene_name") if id_column == "gene_id" else None, genes, values)


def _read_csv(path: Path):
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    data = read_text(path).encode()
    header = next(csv.reader([data[: data.find(b"\n") + 1 or None].decode()]), [])
    if not header:
        raise InputError(f"{path}: empty file")
    # Text for the id columns, numbers for everything else.
    ids = {"gene_id", "gene_name"} if "gene_id" in header else {header[0], "gene_name"}
    types = {name: pa.string() if name in ids else pa.float64() for name in header}
    convert = pa_csv.ConvertOptions(column_types=types, null_values=_NULLS, strings_can_be_null=False)
    block = max(1 << 22, 16 * sum(map(len, header)))
    try:
        return pa_csv.read_csv(pa.BufferReader(data), pa_csv.ReadOptions(block_size=block), convert_options=convert)
    except pa.ArrowInvalid as error:
        where = re.search(r"[Cc]olumn #(\d+)", str(error))
        column = f" in column {header[int(where[1])]!r}" if where else ""
        raise InputError(f"{path}: cannot be read as a table of numbers{column}: {_line(error)}") from error


def _read_parquet(path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({_line(error)})") from error
    # pandas keeps the index behind the columns, and says which column it is.
    index = [name for name in (table.schema.pandas_metadata or {}).get("index_columns", []) if isinstance(name, str)]
    first = [name for name in index if name in table.column_names]
    return table.select([*first, *(name for name in table.column_names if name not in first)])


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def read_ids(path: Path) -> list[str]:
    """Ids, one per row of an embedding file: `.npy` of text, or a text file with one per line.

    Raises:
      InputError: unreadable, or not text.
    """
    if path.suffix != ".npy":
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    ids = _load_npy(path)
    if ids.ndim != 1 or ids.dtype.kind not in "US":
        raise InputError(f"{path}: expected a one-dimensional array of text, found {ids.dtype} of shape {ids.shape}")
    return [str(name).strip() for name in (np.char.decode(ids) if ids.dtype.kind == "S" else ids).tolist()]


def read_embeddings(path: Path, ids_path: Path) -> Embeddings:
    """Embeddings and the ids of their rows.

    Raises:
      InputError: not a numeric matrix, or another number of ids than rows.
    """
    values, ids = _load_npy(path), read_ids(ids_path)
    if values.ndim != 2 or values.dtype.kind != "f" or not values.shape[1]:
        raise InputError(f"{path}: expected a matrix of embeddings (rows, width), found {values.dtype} of shape {values.shape}")
    if len(values) != len(ids):
        raise InputError(f"{path}: {len(values)} rows, but {ids_path.name} has {len(ids)} ids; make both in one export")
    return Embeddings(path, ids, values.astype(np.float32))


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a plain .npy array ({_line(error)})") from error


def read_genes(path: Path) -> Genes:
    """The table `gene_name,gene_id,chrom,tss,strand,sequence` (names are optional, other columns ignored).

    Raises:
      InputError: see `jaxgen.data.tables.read_columns` and `check_sequences`.
    """
    columns, lines = read_columns(path, "gene_id", "sequence", optional=("gene_name",))
    sequences, ids, _, _ = check_sequences(path, columns["sequence"], lines, "sequence", columns["gene_id"])
    return Genes(path, ids, columns.get("gene_name", [""] * len(ids)), sequences)


def first_repeated(ids: Sequence[str]) -> str | None:
    """The first id that occurs a second time, case ignored."""
    seen: set[str] = set()
    for name in ids:
        if name.upper() in seen:
            return name
        seen.add(name.upper())
    return None
