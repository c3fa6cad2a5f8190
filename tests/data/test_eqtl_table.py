"""The published table of eQTLs, as programs that read it describe it."""

import gzip

import pytest

from jaxgen.config import load_config
from jaxgen.data.eqtl import load_eqtl
from jaxgen.data.eqtl_table import split_eqtl_table
from jaxgen.data.genome import Genome
from jaxgen.errors import InputError
from jaxgen.jobs import prepare

HEADER = "CHROM,POS,REF,ALT,label,Tissue,distance_to_nearest_TSS,gene"
ROWS = [f"chr{c},{10 + i},{'ACGT'[(9 + i) % 4]},{'ACGT'[(10 + i) % 4]},{i % 2},Liver,{1000 * i},g" for i in range(6) for c in (1, 9)]


def test_chromosomes_9_and_10_are_test_and_the_probe_reads_the_files(tmp_path, capsys):
    table = tmp_path / "All_Tissues.csv"
    table.write_text("\n".join([HEADER, *ROWS]) + "\n")
    fasta = tmp_path / "genome.fa"
    fasta.write_text(">chr1\n" + "ACGT" * 20 + "\n>chr9\n" + "ACGT" * 20 + "\n")
    overrides = [("workdir", str(tmp_path / "out")), ("data.path", str(table)), ("compile_cache", "")]
    assert prepare.run(load_config("configs/prepare.py:eqtl", overrides)) == 0
    assert "eqtl: 6 test rows\neqtl: 88,717 train rows in the published files" in capsys.readouterr().err
    splits = load_eqtl(tmp_path / "out", 8, Genome.open(fasta, cache_dir=tmp_path / "cache"))
    assert {split: len(data) for split, data in splits.items()} == {"train": 6, "test": 6}
    assert splits["test"].chromosomes.tolist() == [9] * 6
    assert splits["train"].distances.tolist() == [1000 * i for i in range(6)]


def test_a_split_column_decides(tmp_path):
    table = tmp_path / "t.csv.gz"
    with gzip.open(table, "wt") as file:
        file.write("\n".join([HEADER + ",split", *(f"{row},{'test' if i < 2 else 'train'}" for i, row in enumerate(ROWS))]))
    assert split_eqtl_table(table, tmp_path / "out")[:2] == ["eqtl: 10 train rows", "eqtl: 2 test rows"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("POS", "x") + "\n" + ROWS[0], r":1: no column 'position' \(position or pos\)"),
        ("\n".join([HEADER, *ROWS])[:-30], "fields instead of 8; is the file whole"),
        (HEADER + "\n" + ROWS[0], "no rows of the test split"),
    ],
)
def test_a_damaged_table_leaves_nothing(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        split_eqtl_table(tmp_path / "t.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
