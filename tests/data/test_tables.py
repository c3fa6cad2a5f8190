import gzip

import numpy as np
import pytest
from helpers import real

from jaxgen.data import tasks
from jaxgen.data.splits import random_split_indices, three_way_indices
from jaxgen.data.tables import read_table
from jaxgen.errors import InputError

GOOD = "sequence,label\nACGT,0\nTTGA,1\nCCAA,1\n"


def folder(tmp_path, **files: str | bytes):
    for name, content in files.items():
        (tmp_path / f"{name}.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return str(tmp_path)


def many(n: int, classes: int = 2) -> str:
    return "sequence,label\n" + "".join(f"ACGT{'A' * (i % 5)},{i % classes}\n" for i in range(n))


def test_folder_with_all_splits(tmp_path):
    task = tasks.get("table", path=folder(tmp_path, train=GOOD, valid=GOOD, test=GOOD))
    assert list(task.splits) == ["train", "dev", "test"]
    assert task.splits["train"][1]["sequence"] == b"TTGA"
    assert task.splits["dev"].targets.tolist() == [0, 1, 1]
    assert task.splits["dev"].targets.dtype == np.int32
    assert (task.target.kind, task.target.num_classes, task.target.select) == ("classification", 2, "mcc")
    assert not task.simulated


def test_missing_dev_is_split_off_by_seed(tmp_path):
    path = folder(tmp_path, train=many(50), test=GOOD)
    first, second = tasks.get("table", path=path, seed=1), tasks.get("table", path=path, seed=2)
    assert [len(first.splits[name]) for name in ("train", "dev", "test")] == [45, 5, 3]
    rows = [line.split(",")[0].encode() for line in many(50).splitlines()[1:]]
    assert list(first.splits["dev"].sequences) == [rows[i] for i in sorted(random_split_indices(50, 1)[0])]
    assert list(first.splits["dev"].sequences) != list(second.splits["dev"].sequences)


def test_single_table_is_split_80_10_10(tmp_path):
    path = tmp_path / "all.tsv.gz"
    path.write_bytes(gzip.compress(many(100).replace(",", "\t").encode()))
    task = tasks.get("table", path=str(path))
    assert [len(task.splits[name]) for name in ("train", "dev", "test")] == [80, 10, 10]


def test_regression_and_column_names(tmp_path):
    text = "id,seq,mean_value\n" + "".join(f"{i},ACGT,{i / 4}\n" for i in range(10))
    path = tmp_path / "mpra.csv"
    path.write_text(text)
    task = tasks.get("table", path=str(path), kind="regression", sequence_column="seq", label_column="mean_value", select="spearman")
    targets = np.concatenate([task.splits[name].targets for name in task.splits])
    assert targets.dtype == np.float32
    assert sorted(targets[:, 0].tolist()) == [i / 4 for i in range(10)]
    assert task.target.select == "spearman"
    assert task.target.num_classes == 0


def test_tolerated_forms_are_noted(tmp_path):
    text = "\ufeffsequence,label\r\n  acGT ,0\r\n\r\nAUGC, 1\r\nANRT,1\r\n"
    table = read_table(folder(tmp_path, train=text) + "/train.csv")
    assert table.sequences == [b"acGT", b"ATGC", b"ANRT"]
    assert table.labels == ["0", "1", "1"]
    assert table.lines == [2, 4, 5]
    assert [note.split(": ")[1] for note in table.notes] == [
        "2 lower-case (soft-masked) bases kept; tokenizers that do not upper-case read them as unknown",
        "1 U read as T",
        "2 ambiguous bases (N and other IUPAC letters) kept",
    ]


def test_sequences_longer_than_the_csv_default(tmp_path):
    table = read_table(folder(tmp_path, train=f"sequence,label\n{'ACGT' * 50000},0\n") + "/train.csv")
    assert len(table.sequences[0]) == 200000


def test_table_without_labels(tmp_path):
    assert read_table(folder(tmp_path, train="sequence\nAC\n") + "/train.csv", label_column=None).labels == []


BAD_TRAIN = {
    "empty file": ("", "train.csv: empty"),
    "no rows": ("sequence,label\n", "train.csv: empty table"),
    "missing column": (
        "sequence,lable\nAC,0\n",
        r"train.csv:1: no column 'label'; did you mean 'lable'\? \(columns: 'sequence', 'lable'\)",
    ),
    "repeated column": ("sequence,label,label\nAC,0,0\n", "train.csv:1: column 'label' occurs more than once"),
    "tabs in csv": ("sequence\tlabel\nAC\t0\n", "train.csv:1: columns are separated by tabs"),
    "semicolons": ("sequence;label\nAC;0\n", "train.csv:1: columns are separated by semicolons"),
    "non-integer label": ("sequence,label\nAC,0\nAC,one\n", "train.csv:3: column 'label': 'one' is not an integer"),
    "float label": ("sequence,label\nAC,0.5\n", "train.csv:2: column 'label': '0.5' is not an integer"),
    "empty label": ("sequence,label\nAC,\n", "train.csv:2: column 'label': '' is not an integer"),
    "negative label": ("sequence,label\nAC,0\nAC,-1\n", "train.csv:3: column 'label': label -1 is negative"),
    "gap": ("sequence,label\nAC,0\nAC,2\n", "train.csv:3: column 'label': label 2 is out of range: no row has label 1"),
    "one class": ("sequence,label\nAC,0\nAC,0\n", "train.csv: column 'label': only one class"),
    "ragged": ("sequence,label\nAC,0\nAC,1,x\n", "train.csv:3: 3 columns, but the header has 2"),
    "short row": ("sequence,label\nAC,0\nAC\n", "train.csv:3: 1 columns"),
    "empty sequence": ("sequence,label\nAC,0\n ,1\n", "train.csv:3: empty 'sequence'"),
    "inner space": ("sequence,label\nAC,0\nA C,1\n", "train.csv:3: column 'sequence': illegal character ' ' at base 2"),
    "inner line break": ('sequence,label\nAC,0\n"A\nC",1\n', r"train.csv:4: column 'sequence': illegal character '\\n' at base 2"),
    "letter": ("sequence,label\nAC,0\nACJ,1\n", "train.csv:3: column 'sequence': illegal character 'J' at base 3"),
    "accent": ("sequence,label\nACé,1\n", "train.csv:2: column 'sequence': illegal character 'é' at base 3"),
    "binary": (b"\x89PNG\x00\x01\x02", "train.csv: not a text table"),
    "latin-1": (b"sequence,label\nAC,0\nAC\xe9,1\n", "train.csv:3: not UTF-8"),
    "cut gzip": (gzip.compress(GOOD.encode())[:-6], "train.csv: truncated or corrupt gzip"),
}


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_bad_train_table(name, tmp_path):
    content, message = BAD_TRAIN[name]
    with pytest.raises(InputError, match=message) as error:
        tasks.get("table", path=folder(tmp_path, train=content, dev=GOOD, test=GOOD))
    assert "\n" not in str(error.value)


def test_test_label_that_train_lacks(tmp_path):
    path = folder(tmp_path, train=GOOD, dev=GOOD, test=GOOD + "ACGT,2\n")
    with pytest.raises(InputError, match=r"test.csv:5: column 'label': label 2 does not occur in the train split \(classes 0 ... 1\)"):
        tasks.get("table", path=path)


@pytest.mark.parametrize(
    ("value", "message"), [("nan", "not finite"), ("inf", "not finite"), ("1e50", "not finite"), ("x", "is not a number")]
)
def test_bad_regression_target(tmp_path, value, message):
    text = "sequence,label\nAC,0.5\nAC," + value + "\n"
    with pytest.raises(InputError, match=rf"train.csv:3: column 'label': .*{message}"):
        tasks.get("table", path=folder(tmp_path, train=text, dev=text, test=text), kind="regression")


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, "no train table.*no tables found"),
        ({"train": GOOD}, {}, "no test table.*found train.csv"),
        ({"train": GOOD, "dev": GOOD, "val": GOOD, "test": GOOD}, {}, "more than one dev table"),
        ({"train": GOOD, "test": GOOD}, {"kind": "classificaton"}, "did you mean 'classification'"),
        ({"train": GOOD, "test": GOOD}, {"select": "acuracy"}, "did you mean 'accuracy'"),
        ({"train": GOOD, "test": GOOD}, {"label_colum": "x"}, "unknown option 'label_colum'; did you mean 'label_column'"),
    ],
)
def test_bad_folder_or_option(tmp_path, files, options, message):
    with pytest.raises(InputError, match=message) as error:
        tasks.get("table", path=folder(tmp_path, **files), **options)
    assert "\n" not in str(error.value)


def test_bad_path_or_name(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        tasks.get("table", path=str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"needs data\.path"):
        tasks.get("table")
    with pytest.raises(InputError, match="did you mean 'table'"):
        tasks.get("tabel")
    with pytest.raises(InputError, match="takes no path"):
        tasks.get("simulated_promoters", path="x")
    (tmp_path / "x.xlsx").write_text("")
    with pytest.raises(InputError, match="unknown table type"):
        tasks.get("table", path=str(tmp_path / "x.xlsx"))
    with pytest.raises(InputError, match="too few"):
        tasks.get("table", path=folder(tmp_path, only=GOOD) + "/only.csv")


def test_rare_class_missing_from_the_random_train_split(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text(many(11) + "ACGT,2\n")
    seeds = {label: [seed for seed in range(30) if (11 in three_way_indices(12, seed)["train"]) == label] for label in (True, False)}
    assert 2 in tasks.get("table", path=str(path), seed=seeds[True][0]).splits["train"].targets
    with pytest.raises(InputError, match="use another seed"):
        tasks.get("table", path=str(path), seed=seeds[False][0])


@pytest.mark.parametrize(("name", "train"), [("mouse_3", 1904), ("prom_core_tata", 4904)])
def test_real_gue_tables(name, train):
    task = tasks.get("table", path=str(real(f"gue/{name}")))
    assert len(task.splits["train"]) == train
    assert task.notes == ()


def test_real_regression_table():
    path = real("mpra_wtc11/WTC11_valid.tsv.gz")
    task = tasks.get("table", path=str(path), kind="regression", sequence_column="seq", label_column="mean_value")
    assert sum(map(len, task.splits.values())) == 4617
    assert (task.splits["train"].sequences.lengths == 230).all()
