"""Tables too large for memory, row by row: CSV and TSV (plain or gzip), and Parquet."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from jaxgen.data.tables import DELIMITERS, stream_columns, table_suffix
from jaxgen.errors import InputError, nearest

_BATCH = 64  # Parquet rows decoded at a time


def split_files(folder: str | Path, split: str) -> list[Path]:
    """The files of a split: `train.csv`, `train.tsv.gz`, `train.parquet`, or its shards `train-00000-of-00004.parquet`, ....

    Raises:
        InputError: no folder, no file, or files of several kinds.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{folder}: no such folder")
    tables = [file for file in sorted(path.iterdir()) if table_suffix(file) or file.suffix == ".parquet"]
    whole = [file for file in tables if file.name.split(".")[0] == split]
    shards = [file for file in tables if file.name.startswith(f"{split}-")]
    if not whole and not shards:
        raise InputError(f"{folder}: no {split} table; expected {split} with one of {', '.join((*DELIMITERS, '.parquet'))}")
    if len(whole) > 1 or (whole and shards):
        raise InputError(f"{folder}: more than one {split} table ({', '.join(file.name for file in whole + shards)}); keep one")
    return whole or shards


def stream_rows(
    path: str | Path, names: Sequence[str], optional: Sequence[str] = (), first: int = 0
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line or row number, column name -> stripped text) of every row from row `first` (counted from 0) on.

    Row groups of a Parquet file that lie before it are not read. An `optional` column that is not there is left out.

    Raises:
        InputError: see `stream_columns`; an unreadable Parquet file, or one that lacks a column.
    """
    if Path(path).suffix == ".parquet":
        yield from _stream_parquet(Path(path), names, optional, first)
        return
    rows = stream_columns(path, *names, optional=optional)
    wanted = next(rows)[1]
    for line, cells in islice(rows, first, None):
        yield line, dict(zip(wanted, cells))


def _stream_parquet(path: Path, names: Sequence[str], optional: Sequence[str], first: int) -> Iterator[tuple[int, dict[str, str]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            there = file.schema_arrow.names
            for name in names:
                if name not in there:
                    raise InputError(f"{path}: no column {name!r}{nearest(name, there)} (columns: {', '.join(map(repr, there[:12]))})")
            wanted = [*names, *(name for name in optional if name in there)]
            group = row = 0
            while group < file.num_row_groups and row + file.metadata.row_group(group).num_rows <= first:
                row += file.metadata.row_group(group).num_rows
                group += 1
            for batch in file.iter_batches(_BATCH, row_groups=range(group, file.num_row_groups), columns=wanted):
                columns = [batch.column(name).to_pylist() for name in wanted]
                for values in zip(*columns):
                    row += 1
                    if row > first:
                        yield row, {name: "" if value is None else str(value).strip() for name, value in zip(wanted, values)}
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
