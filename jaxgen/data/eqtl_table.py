"""The published table of eQTLs, one file for all tissues, as the two files that `load_eqtl` reads."""

import csv
import gzip
import io
import os
from pathlib import Path

from jaxgen.data.eqtl import ALLELES, FIELDS, SPLITS
from jaxgen.errors import InputError

# Ours -> names in the published files, in any case.
_NAMES = {
    "chromosome": ("chromosome", "chrom", "chr"),
    "position": ("position", "pos"),
    "ref": ("ref",),
    "alt": ("alt",),
    "label": ("label", "int_label"),
    "tissue": ("tissue",),
    "distance_to_nearest_tss": ("distance_to_nearest_tss", "distance"),
}
_TEST = ("9", "10")  # chromosomes of the test split, where the file does not name the splits itself
ROWS = {"train": 88_717, "test": 8_846}  # of variant_effect_causal_eqtl


def split_eqtl_table(path: str | Path, folder: str | Path) -> list[str]:
    """Writes `folder/train.csv` and `folder/test.csv`, with positions in place of sequences; both or neither.

    Args:
        path: CSV, plain or gzip, with chromosome, position (from 1), both alleles, label, tissue, distance to the nearest start site, and
            perhaps `split`; without it chromosomes 9 and 10 are test.

    Returns:
        what was found: rows per split, and whether they are as many as published.

    Raises:
        InputError: no such file, a missing column, a row cut short, an empty split.
    """
    path, folder = Path(path), Path(folder)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    columns = ("label", *FIELDS, *ALLELES)
    texts = {split: io.StringIO(newline="") for split in SPLITS}
    writers = {split: csv.writer(text) for split, text in texts.items()}
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for writer in writers.values():
        writer.writerow(columns)
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="") as file:
        reader = csv.reader(file)
        header = [name.strip().lower() for name in next(reader, [])]
        places = [_place(path, header, name) for name in columns]
        split_at = header.index("split") if "split" in header else -1
        chromosome_at = places[columns.index("chromosome")]
        for row in reader:
            if len(row) != len(header):
                raise InputError(f"{path}:{reader.line_num}: {len(row)} fields instead of {len(header)}; is the file whole?")
            chromosome = row[chromosome_at].removeprefix("chr")
            split = row[split_at].strip().lower() if split_at >= 0 else "test" if chromosome in _TEST else "train"
            if split in writers:  # the published validation split is empty
                writers[split].writerow([row[place] for place in places])
                counts[split] += 1
    for split, count in counts.items():
        if not count:
            raise InputError(f"{path}: no rows of the {split} split")
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in texts.items():
        (folder / f".{split}.csv").write_text(text.getvalue())
    for split in SPLITS:
        os.replace(folder / f".{split}.csv", folder / f"{split}.csv")
    found = [f"eqtl: {count:,} {split} rows" for split, count in counts.items()]
    return found + [f"eqtl: {ROWS[split]:,} {split} rows in the published files" for split in SPLITS if counts[split] != ROWS[split]]


def _place(path: Path, header: list[str], name: str) -> int:
    for known in _NAMES[name]:
        if known in header:
            return header.index(known)
    raise InputError(f"{path}:1: no column {name!r} ({' or '.join(_NAMES[name])})")
