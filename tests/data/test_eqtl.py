"""eQTL tables in every form against the rows that the test wrote, and wrong ones named by line."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from jaxgen.data import eqtl
from jaxgen.data.eqtl import encode_tissues, load_eqtl
from jaxgen.data.genome import Genome
from jaxgen.data.simulated_eqtl import simulate_eqtl
from jaxgen.data.streams import stream_rows
from jaxgen.errors import InputError

LENGTH = 24
HEADER = (*eqtl.SEQUENCES, "label", *eqtl.FIELDS)


def make_rows(n: int, seed: int = 0, tissues=("liver", "blood", "lung")) -> list[dict[str, str]]:
    """Windows of `LENGTH` with a changed base in the middle; every fifth reference is half N."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        ref = rng.choice(list("ACGT"), LENGTH)
        if i % 5 == 4:
            ref[: LENGTH // 2] = "N"
        alt = ref.copy()
        alt[LENGTH // 2] = "ACGT"[("ACGT".index(ref[LENGTH // 2]) + 1) % 4]
        chromosome = ["1", "chr2", "X"][i % 3]
        values = ("".join(ref), "".join(alt), str(i % 2), chromosome, tissues[i % len(tissues)], str(i * 10_000))
        rows.append(dict(zip(HEADER, values)))
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        typed = [row | {"label": int(row["label"]), "distance_to_nearest_tss": int(row["distance_to_nearest_tss"])} for row in rows]
        parquet.write_table(pa.Table.from_pylist(typed), path, row_group_size=7)
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)


def folder(tmp_path: Path, train: list[dict[str, str]], test: list[dict[str, str]] | None = None) -> Path:
    write(tmp_path / "train.csv", train)
    write(tmp_path / "test.csv", test or make_rows(6, 1))
    return tmp_path


def windows(split: eqtl.EqtlSplit, first: int, rows: int) -> list[tuple[str, str]]:
    blocks = list(split.read(first, rows))
    assert all(len(ref) == rows for ref, _ in blocks[:-1])
    return [(a.tobytes().decode(), b.tobytes().decode()) for ref, alt in blocks for a, b in zip(ref, alt)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz", ".parquet"])
def test_every_form_gives_the_same_rows_from_any_row_on(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(eqtl, "_BLOCK", 4)
    rows = make_rows(33)
    write(tmp_path / f"train{suffix}", rows)
    for i, part in enumerate((rows[:20], rows[20:])):  # shards
        write(tmp_path / f"test-{i:05}-of-00002{suffix}", part)
    splits = load_eqtl(tmp_path)
    kept = [row for row in rows if "N" not in row["ref_forward_sequence"]]
    for split in splits.values():
        assert split.length == LENGTH
        assert split.labels.tolist() == [int(row["label"]) for row in kept]
        assert split.chromosomes.tolist() == [{"1": 1, "chr2": 2, "X": -1}[row["chromosome"]] for row in kept]
        assert split.tissues.tolist() == [row["tissue"] for row in kept]
        assert split.distances.tolist() == [int(row["distance_to_nearest_tss"]) for row in kept]
        assert any("6 rows left out" in note for note in split.notes)
        expected = [tuple(row[name] for name in eqtl.SEQUENCES) for row in kept]
        for first in (0, 5, 17, len(kept) - 1):
            assert windows(split, first, 4) == expected[first:]
    assert splits["train"].digest == splits["test"].digest


def test_longer_sequences_are_cut_around_the_variant(tmp_path):
    rows = make_rows(4)
    split = load_eqtl(folder(tmp_path, rows), length=10)["train"]
    assert windows(split, 0, 4) == [tuple(row[name][7:17] for name in eqtl.SEQUENCES) for row in rows]
    assert all(ref[5] != alt[5] for ref, alt in windows(split, 0, 4))


def test_letters_are_cleaned_and_few_n_kept(tmp_path):
    rows = make_rows(4)
    wide = 201  # one N is less than 0.5 %
    for row in rows:
        row |= {name: "a" * (wide - LENGTH) + row[name] for name in eqtl.SEQUENCES}
    rows[1]["ref_forward_sequence"] = "uR" + rows[1]["ref_forward_sequence"][2:]
    split = load_eqtl(folder(tmp_path, rows, rows))["train"]
    assert len(split) == 4
    assert windows(split, 1, 1)[0][0][:4] == "TNAA"


def test_windows_cut_from_a_genome_are_those_of_the_table(tmp_path):
    rng = np.random.default_rng(4)
    dna = "".join(rng.choice(list("ACGT"), 300))
    (tmp_path / "g.fa").write_text(f">chr1\n{dna[:100]}{'N' * 20}{dna[120:]}\n>X\n{dna}\n")
    (tmp_path / "cut").mkdir()
    (tmp_path / "written").mkdir()
    cut, written = [], []
    for i, position in enumerate((40, 200, 110, 250, 60)):
        ref, alt = dna[position - 1], "ACGT"[("ACGT".index(dna[position - 1]) + 1 + i % 3) % 4]
        name, context = ("X", dna) if i % 2 else ("1", dna[:100] + "N" * 20 + dna[120:])
        ref = context[position - 1]
        values = {"label": str(i % 2), "chromosome": name, "tissue": "t", "distance_to_nearest_tss": "5"}
        window = context[position - 1 - LENGTH // 2 :][:LENGTH]
        changed = window[: LENGTH // 2] + alt + window[LENGTH // 2 + 1 :]
        cut.append({"position": str(position), "ref": ref.lower(), "alt": alt} | values)
        written.append(dict(zip(eqtl.SEQUENCES, (window, changed))) | values)
    for split in eqtl.SPLITS:
        write(tmp_path / "cut" / f"{split}.csv", cut)
        write(tmp_path / "written" / f"{split}.csv", written)
    genome = Genome.open(tmp_path / "g.fa", cache_dir=tmp_path)
    ours, theirs = load_eqtl(tmp_path / "cut", LENGTH, genome)["train"], load_eqtl(tmp_path / "written")["train"]
    assert len(ours) == 4
    assert windows(ours, 0, 3) == windows(theirs, 0, 2)
    assert windows(ours, 2, 1) == windows(theirs, 2, 1)
    assert ours.digest == theirs.digest
    cut[2]["position"] = "41"
    write(tmp_path / "cut" / "train.csv", cut)
    with pytest.raises(InputError, match=r"train.csv:4: REF is"):
        load_eqtl(tmp_path / "cut", LENGTH, genome)
    with pytest.raises(InputError, match="need a length"):
        load_eqtl(tmp_path / "cut", 0, genome)


def edited(row: int, **values: str) -> list[dict[str, str]]:
    rows = make_rows(8)
    rows[row] |= values
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{k: v for k, v in row.items() if k != "tissue"} for row in make_rows(4)], "train.csv:1: no column 'tissue'"),
        (
            [{k: v for k, v in row.items() if k != "alt_forward_sequence"} for row in make_rows(4)],
            "train.csv: no column 'alt_forward_sequence'; for windows around position, ref, alt give data.fasta",
        ),
        ([{k: v for k, v in row.items() if k != "label"} for row in make_rows(4)], "train.csv: no column 'label'"),
        (edited(2, label="2"), "train.csv:4: unexpected label '2'"),
        (edited(2, chromosome="chrUn"), "train.csv:4: unexpected chromosome 'chrUn'"),
        (edited(2, distance_to_nearest_tss="far"), "train.csv:4: distance_to_nearest_tss 'far' is not a number"),
        (edited(2, alt_forward_sequence="ACGT"), "train.csv:4: alt_forward_sequence has 4 bases, but the first one 24"),
        (edited(2, ref_forward_sequence="ACGT" * 5 + "AC!T"), "train.csv:4: column 'ref_forward_sequence': illegal character '!'"),
        (make_rows(8)[::2], "all 3 rows of train have the label 0"),
        (make_rows(5)[4:], "no rows in the train split"),
    ],
)
def test_wrong_tables_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as caught:
        load_eqtl(folder(tmp_path, rows))
    assert "\n" not in str(caught.value)


def test_missing_files_and_wrong_parquet(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_eqtl(tmp_path / "none")
    write(tmp_path / "train.csv", make_rows(6))
    with pytest.raises(InputError, match="no test table"):
        load_eqtl(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        load_eqtl(tmp_path)
    write(tmp_path / "test.csv", make_rows(6))
    with pytest.raises(InputError, match="more than one test table"):
        load_eqtl(tmp_path)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(InputError, match=r"fewer than probe\.length=30"):
        load_eqtl(tmp_path, 30)


def test_broken_tables_are_one_line(tmp_path):
    folder(tmp_path, make_rows(200))
    whole = gzip.compress((tmp_path / "train.csv").read_bytes())
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated or corrupt gzip file"):
        load_eqtl(tmp_path)
    (tmp_path / "train.csv.gz").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        load_eqtl(tmp_path)
    (tmp_path / "train.csv.gz").write_text(",".join(HEADER) + "\n")
    with pytest.raises(InputError, match="empty table"):
        load_eqtl(tmp_path)


def test_parquet_lacks_a_column(tmp_path):
    parquet.write_table(pa.table({"chromosome": ["1"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column 'tissue'"):
        list(stream_rows(tmp_path / "a.parquet", ("chromosome", "tissue")))


def test_tissues_are_numbered_by_sorted_names(tmp_path):
    splits = load_eqtl(folder(tmp_path, make_rows(4, tissues=("b", "c")), make_rows(4, tissues=("c", "a"))))
    numbers = encode_tissues(splits, faithful=False)
    assert {name: x.tolist() for name, x in numbers.items()} == {"train": [1, 2, 1, 2], "test": [2, 0, 2, 0]}
    with pytest.raises(InputError, match="tissue 'b' of train does not occur in test"):
        encode_tissues(splits, faithful=True)
    splits = load_eqtl(folder(tmp_path, make_rows(4, tissues=("c",)), make_rows(4, tissues=("c", "a"))))
    assert encode_tissues(splits, faithful=True)["train"].tolist() == [1, 1, 1, 1]


def test_simulated_effects_are_those_of_the_motifs():
    splits, attainable = simulate_eqtl(seed=3, train=40, test=400, length=128, flips=0.1)
    assert 0.85 < attainable["auroc"] < 0.95
    from jaxgen.data.simulated_eqtl import _MOTIFS

    test = splits["test"]
    found = []
    for (ref, alt), tissue in zip(windows(test, 0, 100), test.tissues):
        assert [i for i in range(128) if ref[i] != alt[i]] == [64]
        motif = _MOTIFS[int(tissue[-1])]
        found.append(any(ref[start:].startswith(motif) for start in range(55, 65)))
    agree = np.array(found) == test.labels
    assert 0.85 < agree.mean() < 0.95  # the rest is flipped
    assert set(splits["train"].chromosomes) & set(test.chromosomes) == set()
    assert simulate_eqtl(seed=3, train=40, test=400, length=128, flips=0.1)[0]["test"].digest == test.digest
    with pytest.raises(InputError, match=r"probe.simulated"):
        simulate_eqtl(train=2)
