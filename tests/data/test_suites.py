"""The public suites, read from folders in their public layouts."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxgen.data import tasks
from jaxgen.data.splits import hf_split_indices, random_split_indices
from jaxgen.data.tasks.suite import members_in
from jaxgen.data.tasks.suites import SUITES
from jaxgen.errors import InputError

ROWS = [("ACGTAC", 0), ("TTGACA", 1), ("GGGACC", 1), ("CATCAT", 0)] * 5


def write_csv(path: Path, rows=ROWS, header="sequence,label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\r\n".join([header, *(f"{s},{label}" for s, label in rows)]) + "\r\n")


def content(examples):
    return [(examples[i]["sequence"].decode(), int(examples[i]["target"])) for i in range(len(examples))]


def test_the_suites_are_complete():
    assert {name: len(suite.tasks) for name, suite in SUITES.items()} == {"genomic_benchmarks": 8, "gue": 28, "nt": 18, "nt_revised": 18}
    for suite in SUITES.values():
        for card in suite.tasks.values():
            assert len(card.classes) >= 2
            assert card.rows["train"] > 0
            assert list(card.classes) == sorted(card.classes)


@pytest.mark.parametrize("folder", ["tf_0", "human_tf_0", "tf/0", "GUE/tf/0", ""])
@pytest.mark.parametrize("name", ["tf_0", "human_tf_0"])
def test_gue_in_every_layout(tmp_path, folder, name):
    for split, rows in (("train", ROWS), ("dev", ROWS[:3]), ("test", ROWS[:4])):
        write_csv(tmp_path / folder / f"{split}.csv", rows)
    task = tasks.get(f"gue/{name}", path=str(tmp_path))
    assert task.name == "gue/tf_0"
    assert {split: content(examples) for split, examples in task.splits.items()} == {"train": ROWS, "dev": ROWS[:3], "test": ROWS[:4]}
    assert task.target.select == "mcc"
    assert "gue/tf_0: 20 train rows, 32,378 in the published files" in task.notes


def test_genomic_benchmarks_folders_number_classes_alphabetically(tmp_path):
    for split, n in (("train", 20), ("test", 4)):
        for name, base in (("worm", "T"), ("human", "A")):
            folder = tmp_path / "demo_human_or_worm" / split / name
            folder.mkdir(parents=True)
            for i in range(n // 2):
                (folder / f"{i}.txt").write_text(base * (i + 1) + "\n")
    task = tasks.get("genomic_benchmarks/demo_human_or_worm", path=str(tmp_path), seed=3)
    assert task.target.names == ("human", "worm")
    assert content(task.splits["test"]) == [("A", 0), ("AA", 0), ("T", 1), ("TT", 1)]
    held_out, rest = random_split_indices(20, 3)
    everything = [("A" * (i + 1), 0) for i in range(10)] + [("T" * (i + 1), 1) for i in range(10)]
    assert content(task.splits["dev"]) == [everything[i] for i in sorted(held_out)]
    assert content(task.splits["train"]) == [everything[i] for i in sorted(rest)]


@pytest.mark.parametrize(("text", "message"), [(b"AC\xff", "not UTF-8"), (b"\n", "empty"), (b"AC\nGT\n", r"illegal character '\\n'")])
def test_a_bad_file_of_a_class_is_named(tmp_path, text, message):
    for split in ("train", "test"):
        for name in ("negative", "positive"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            (folder / "._0.txt").write_bytes(b"\0\5\x16\7")  # of macOS
            for i in range(10):
                (folder / f"{i}.txt").write_text("ACGT\n")
    assert len(tasks.get("genomic_benchmarks/human_enhancers_cohn", path=str(tmp_path)).splits["test"]) == 20
    (tmp_path / "train/negative/7.txt").write_bytes(text)
    with pytest.raises(InputError, match=rf"train/negative/7.txt:1: .*{message}"):
        tasks.get("genomic_benchmarks/human_enhancers_cohn", path=str(tmp_path))


@pytest.mark.parametrize("layout", ["parquet", "fna", "csv.gz"])
def test_nucleotide_transformer_files(tmp_path, layout):
    folder = tmp_path / "promoter_tata"
    folder.mkdir()
    for split in ("train", "test"):
        if layout == "parquet":
            table = pa.table({"sequence": [s for s, _ in ROWS], "label": [label for _, label in ROWS], "name": ["x"] * len(ROWS)})
            pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
        elif layout == "fna":
            (folder / f"{split}.fna").write_text("".join(f">seq{i}|{label}\n{s[:3]}\n{s[3:]}\n" for i, (s, label) in enumerate(ROWS)))
        else:
            with gzip.open(folder / f"{split}.csv.gz", "wt") as file:
                file.write("sequence,label\n" + "".join(f"{s},{label}\n" for s, label in ROWS))
    task = tasks.get("nt/promoter_tata", path=str(tmp_path), seed=7)
    assert content(task.splits["test"]) == ROWS
    assert content(task.splits["dev"]) == [ROWS[i] for i in np.sort(hf_split_indices(len(ROWS), 7)[0])]
    assert task.target.select == "f1_binary"
    assert "f1_binary" in task.target.metrics


@pytest.mark.parametrize(
    ("name", "label"),
    [("seq7|1", "1"), ("chr1:1-100|0", "0"), ("chr1:1-100_1", "1"), ("chr1:1-100 1", "1"), ("x label: 1", "1"), ("1", "1")],
)
def test_a_fasta_name_ends_in_the_label(tmp_path, name, label):
    (tmp_path / "test.fna").write_text(f">{name}\nACGT\n")
    (tmp_path / "train.fna").write_text(">a|0\nAC\n>b|1\nGT\n" * 10)
    assert content(tasks.get("nt/promoter_tata", path=str(tmp_path)).splits["test"]) == [("ACGT", int(label))]


@pytest.mark.parametrize("name", ["chr1:1-100", "chr1:90-1", "seq_10", "seq1"])
def test_the_last_digit_of_a_number_is_no_label(tmp_path, name):
    for split in ("train", "test"):
        (tmp_path / f"{split}.fna").write_text(f">{name}\nACGT\n")
    with pytest.raises(InputError, match=f"train.fna:1: record name '{name}' does not end in a label"):
        tasks.get("nt/promoter_tata", path=str(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "train.csv").unlink(), "no train split"),
        (lambda d: write_csv(d / "train.tsv"), "more than one train split"),
        (lambda d: write_csv(d / "train.csv", [("ACGT", 2)]), r"train.csv:2: unexpected class '2'"),
        (lambda d: write_csv(d / "train.csv", [("ACGT", 0), ("AXGT", 1)]), r"train.csv:3: .*illegal character 'X'"),
        (lambda d: write_csv(d / "train.csv", []), "empty table"),
        (lambda d: write_csv(d / "train.csv", [("ACGT", 1)] * 20), r"train has no row of class '0' of gue/mouse_0 \(0, 1\)"),
        (lambda d: write_csv(d / "train.csv", ROWS, "dna,label"), "no column 'sequence'"),
        (lambda d: ((d / "train.csv").unlink(), (d / "train.parquet").write_bytes(b"PAR1half")), "not a readable Parquet"),
    ],
)
def test_bad_files_are_one_line(tmp_path, spoil, message):
    for split in ("train", "dev", "test"):
        write_csv(tmp_path / f"{split}.csv")
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        tasks.get("gue/mouse_0", path=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_folder_of_one_task_is_not_taken_for_another(tmp_path):
    folder = tmp_path / "mouse" / "0"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        write_csv(folder / f"{split}.csv")
    assert members_in(str(tmp_path), "gue") == ["mouse_0"]
    with pytest.raises(InputError, match="no folder of any task of"):
        members_in(str(folder), "gue")
    assert tasks.get("gue/mouse_0", path=str(folder)).splits
    with pytest.raises(InputError, match="is the folder of gue/mouse_0, not of tf_0"):
        tasks.get("gue/tf_0", path=str(folder))
    (tmp_path / "mouse").rename(tmp_path / "EMP")
    (tmp_path / "EMP/0").rename(tmp_path / "EMP/H3")
    with pytest.raises(InputError, match="no files of nt/H3"):  # which is another task than EMP/H3
        tasks.get("nt/H3", path=str(tmp_path))


def test_of_two_copies_one_must_be_chosen(tmp_path):
    for copy in ("new", "old"):
        for split in ("train", "dev", "test"):
            write_csv(tmp_path / copy / "tf_0" / f"{split}.csv")
    with pytest.raises(InputError, match=r"more than one folder of gue/tf_0 \(.*/new/tf_0, .*/old/tf_0\); give one of them"):
        tasks.get("gue/tf_0", path=str(tmp_path))
    assert tasks.get("gue/tf_0", path=str(tmp_path / "old")).splits


def test_half_unpacked_folders_and_unknown_names(tmp_path):
    (tmp_path / "human_ocr_ensembl" / "train" / "negative").mkdir(parents=True)
    with pytest.raises(InputError, match="found the classes negative, expected negative, positive"):
        tasks.get("genomic_benchmarks/human_ocr_ensembl", path=str(tmp_path))
    (tmp_path / "human_ocr_ensembl" / "train" / "positive").mkdir()
    with pytest.raises(InputError, match="unpacked completely"):
        tasks.get("genomic_benchmarks/human_ocr_ensembl", path=str(tmp_path))
    with pytest.raises(InputError, match="prom_core_tata"):
        tasks.get("gue/prom_core_tat", path=str(tmp_path))
    with pytest.raises(InputError, match="no files of gue/tf_1"):
        tasks.get("gue/tf_1", path=str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        tasks.get("gue/tf_1", path=str(tmp_path / "missing"))
