import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from configs import common
from jaxgen.data import perturbation, perturbation_files, simulated_perturbation
from jaxgen.errors import InputError

FILES = common.get_config().perturbation.files.to_dict()
P, G = 12, 15


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return simulated_perturbation.write(tmp_path_factory.mktemp("tf") / "data", 3, P, G, 120)


@pytest.fixture
def folder(simulated, tmp_path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(simulated, tmp_path / "data"))


def load(folder, needs=perturbation.NEEDS, files=None, limits=None, **options):
    return perturbation.load(folder, FILES | (files or {}), needs, limits, **options)


def edit(path: Path, change) -> None:
    """Rewrites a CSV file: `change(rows)` works on its rows in place."""
    rows = list(csv.reader(path.read_text().splitlines()))
    change(rows)
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")


def put(row: int, column: int, text: str):
    def change(rows):
        rows[row][column] = text

    return change


def permute(folder: Path, order) -> None:
    """Another row order in the embedding files."""
    for name, ids in (("nt_tf", "nt_tf_ids"), ("nt_gene", "nt_gene_ids")):
        n = len(np.load(folder / FILES[ids]))
        new = order(n)
        np.save(folder / FILES[name], np.load(folder / FILES[name])[new])
        np.save(folder / FILES[ids], np.load(folder / FILES[ids])[new])


# Simulation ----------------------------------------------------------------------------------------------------------------------


def test_simulated_files_are_whole_seeded_and_say_what_they_are(simulated, tmp_path):
    tables = load(simulated)
    assert tables.targets.shape == (P, G)
    assert tables.targets.dtype == tables.nt_tf.dtype == tables.nt_gene.dtype == np.float32
    assert "SIMULATED" in tables.simulated["about"]
    assert 0.7 < tables.simulated["attainable"]["centered_pearson"] < 0.95
    again = load(simulated_perturbation.write(tmp_path / "again", 3, P, G, 120))
    np.testing.assert_array_equal(tables.targets, again.targets)
    assert tables.sequences == again.sequences
    other = load(simulated_perturbation.write(tmp_path / "other", 4, P, G, 120))
    assert (other.targets != tables.targets).all()
    assert not list(tmp_path.glob(".*"))
    assert simulated_perturbation.write(tmp_path / "other", 4, P, G, 120) == tmp_path / "other"
    with pytest.raises(InputError, match="something else"):
        simulated_perturbation.write(tmp_path / "other", 5, P, G, 120)
    with pytest.raises(InputError, match="at least"):
        simulated_perturbation.write(tmp_path / "small", 5, 4, G, 120)


def test_a_tf_that_is_read_out_has_one_promoter(simulated):
    tables = load(simulated)
    read_out = tables.target_gene >= 0
    assert 0 < read_out.sum() < P
    np.testing.assert_array_equal(tables.nt_tf[read_out], tables.nt_gene[tables.target_gene[read_out]])
    for row in np.flatnonzero(read_out):
        assert tables.genes[tables.target_gene[row]] == tables.gene_ids[row]


# Reading -------------------------------------------------------------------------------------------------------------------------


def test_by_name_by_id_from_parquet_and_from_the_published_folders(folder, tmp_path):
    by_name = load(folder)
    by_id = load(folder, files={"targets": f"targets_{P}.csv"})
    assert by_name.ids[0] == "SIMTF0001"
    assert by_id.ids == by_id.gene_ids == by_name.gene_ids
    genes = by_name.genes
    index = "__index_level_0__"  # where pandas keeps an index without a name
    columns = {gene: by_name.targets[:, i].astype(np.float64) for i, gene in enumerate(genes)} | {index: by_name.ids}
    table = pa.table(columns).replace_schema_metadata({"pandas": f'{{"index_columns": ["{index}"]}}'})
    for name in (f"targets_{P}.csv", f"targets_{P}_overlap.csv"):
        (folder / name).unlink()
    parquet.write_table(table, folder / "targets.parquet")
    published = tmp_path / "published"
    (published / "artifacts").mkdir(parents=True)
    (published / "NT-v2-50M").mkdir()
    for file in folder.iterdir():
        target = "artifacts" if file.name in ("targets.parquet", "gene_index.txt") else "NT-v2-50M" if file.name.startswith("NT") else ""
        shutil.copy(file, published / target / file.name)
    for tables in (by_id, load(folder), load(published)):
        for column in ("targets", "nt_tf", "hyena_tf", "nt_gene", "target_gene"):
            np.testing.assert_array_equal(getattr(tables, column), getattr(by_name, column))
        assert tables.sequences == by_name.sequences


def test_rows_are_matched_by_id_and_not_by_place(folder):
    before = load(folder)
    permute(folder, lambda n: np.random.default_rng(0).permutation(n))
    edit(folder / "tf_sequences.csv", lambda rows: rows[1:].reverse())
    (folder / f"targets_{P}_overlap.csv").write_text((folder / f"targets_{P}_overlap.csv").read_text().replace("SIMTF", "simtf"))
    after = load(folder)
    for column in ("targets", "nt_tf", "nt_gene", "target_gene"):
        np.testing.assert_array_equal(getattr(after, column), getattr(before, column))
    assert after.sequences == before.sequences


def test_gene_index_orders_and_selects(folder):
    before = load(folder)
    chosen = [before.genes[i] for i in (5, 2, 9)]
    (folder / "gene_index.txt").write_text("\n".join(chosen) + "\n")
    after = load(folder)
    assert after.genes == chosen
    np.testing.assert_array_equal(after.targets, before.targets[:, [5, 2, 9]])
    np.testing.assert_array_equal(after.nt_gene, before.nt_gene[[5, 2, 9]])


def test_gzip_and_ids_as_text(folder):
    before = load(folder, ["nt_tf"])
    file = folder / f"targets_{P}_overlap.csv"
    (folder / "all.csv.gz").write_bytes(gzip.compress(file.read_bytes()))
    (folder / "ids.txt").write_text("\n".join(np.load(folder / FILES["nt_tf_ids"])))
    after = load(folder, ["nt_tf"], {"targets": "all.csv.gz", "nt_tf_ids": "ids.txt"})
    np.testing.assert_array_equal(after.targets, before.targets)
    np.testing.assert_array_equal(after.nt_tf, before.nt_tf)


def test_limits_apply_before_the_embeddings_are_matched(folder):
    whole = load(folder)
    tables = load(folder, limits=perturbation.Limits(max_perturbations=7, max_genes=9, top_genes=4))
    strongest = np.sort(np.argsort(np.abs(whole.targets[:7, :9]).mean(0))[-4:])
    assert tables.ids == whole.ids[:7]
    assert tables.genes == [whole.genes[i] for i in strongest]
    np.testing.assert_array_equal(tables.nt_gene, whole.nt_gene[strongest])


def test_missing_values_stay_missing(folder):
    edit(folder / f"targets_{P}_overlap.csv", put(3, 4, "NaN"))
    edit(folder / f"targets_{P}_overlap.csv", put(5, 6, ""))
    tables = load(folder)
    assert np.argwhere(np.isnan(tables.targets)).tolist() == [[2, 3], [4, 5]]
    assert any("2 of 180 targets are missing" in note for note in tables.notes)
    # As published, a gene with a missing value counts as stronger than any other.
    top = load(folder, limits=perturbation.Limits(top_genes=2), faithful=True)
    assert top.genes == [tables.genes[3], tables.genes[5]]
    assert load(folder, limits=perturbation.Limits(top_genes=2)).genes != top.genes


def test_genes_without_any_value_are_left_out(folder):
    def empty(rows):
        for row in rows[1:]:
            row[4] = ""

    whole = load(folder)
    edit(folder / f"targets_{P}_overlap.csv", empty)
    tables = load(folder)
    assert tables.genes == whole.genes[:3] + whole.genes[4:]
    np.testing.assert_array_equal(tables.nt_gene, np.delete(whole.nt_gene, 3, 0))
    assert any("1 genes without any value" in note for note in tables.notes)
    assert load(folder, faithful=True).genes == whole.genes
    edit(folder / f"targets_{P}_overlap.csv", lambda rows: [row.__setitem__(slice(1, None), [""] * G) for row in rows[1:]])
    with pytest.raises(InputError, match="every value is missing"):
        load(folder)


def drop_rows(folder: Path, need: str, keep: slice) -> None:
    for field in (need, f"{need}_ids"):
        np.save(folder / FILES[field], np.load(folder / FILES[field])[keep])


def test_what_a_table_lacks_is_refused_or_left_out(folder):
    whole = load(folder)
    drop_rows(folder, "nt_tf", slice(2, None))
    with pytest.raises(InputError, match=r"lacks 2 of 12 perturbations \(SIMTF0001, SIMTF0002\).*drop_missing"):
        load(folder)
    for options in ({"drop_missing": True}, {"faithful": True}):
        tables = load(folder, **options)
        assert tables.ids == whole.ids[2:]
        np.testing.assert_array_equal(tables.nt_tf, whole.nt_tf[2:])
        np.testing.assert_array_equal(tables.target_gene, whole.target_gene[2:])
        assert tables.sequences == whole.sequences[2:]
        assert any("2 perturbations left out" in note for note in tables.notes)
    load(folder, ["hyena_tf"])  # does not need that table
    drop_rows(folder, "nt_gene", slice(3, None))
    with pytest.raises(InputError, match="lacks 3 of 15 genes"):
        load(folder, ["nt_gene"])
    tables = load(folder, drop_missing=True)
    assert len(tables.genes) == G - 3
    drop_rows(folder, "nt_gene", slice(0, 0))
    with pytest.raises(InputError, match="no perturbation or no gene is left"):
        load(folder, drop_missing=True)


def double(rows):
    rows.append(list(rows[2]))


@pytest.mark.parametrize("file", [f"targets_{P}_overlap.csv", "tf_sequences.csv"])
def test_repeated_ids_in_a_table(folder, file):
    edit(folder / file, double)
    with pytest.raises(InputError, match=rf"{file}.*occurs more than once"):
        load(folder)
    assert len(load(folder, faithful=True).ids) == P


def test_repeated_ids_of_embeddings(folder):
    ids = np.load(folder / FILES["nt_tf_ids"])
    ids[4] = ids[0]
    np.save(folder / FILES["nt_tf_ids"], ids)
    with pytest.raises(InputError, match="occurs more than once"):
        load(folder)
    first = np.load(folder / FILES["nt_tf"])[0]
    np.testing.assert_array_equal(load(folder, ["nt_tf"], faithful=True).nt_tf[0], first)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(2, 3, "inf"), ["'SIMTF0002'", "infinite", "NaN"]),
        (put(2, 3, "-1e60"), ["'SIMTF0002'", "infinite"]),
        (put(2, 3, "high"), ["cannot be read as a table of numbers", "high"]),
        (put(2, 0, ""), ["no perturbation id"]),
        (lambda rows: rows[0].__setitem__(3, rows[0][4]), ["column", "more than once"]),
        (lambda rows: rows[3].pop(), ["cannot be read"]),
        (lambda rows: rows.__delitem__(slice(1, None)), ["empty table"]),
    ],
)
def test_bad_targets(folder, change, words):
    file = folder / f"targets_{P}_overlap.csv"
    edit(file, change)
    with pytest.raises(InputError) as error:
        load(folder)
    for word in (str(file), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def save(name: str, value) -> object:
    return lambda folder: np.save(folder / FILES[name], value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (save("nt_tf", np.zeros((P, 32), np.float32)), ["width 32", "have 64"]),
        (save("nt_tf", np.zeros((P - 1, 64), np.float32)), ["11 rows", "12 ids"]),
        (save("nt_tf", np.zeros(P, np.float32)), ["matrix"]),
        (save("nt_tf", np.zeros((P, 64), np.int32)), ["int32"]),
        (save("nt_tf", np.full((P, 64), np.nan, np.float32)), ["ENSG90000000001", "not finite"]),
        (save("nt_tf", np.array([[None]], object)), ["plain .npy"]),
        (save("nt_tf_ids", np.arange(P)), ["text"]),
        (lambda folder: (folder / FILES["nt_tf"]).write_bytes(b"\x93NUMPY"), ["plain .npy"]),
        (lambda folder: (folder / FILES["nt_tf_ids"]).unlink(), ["NTv2_50m_tf_ids.npy", "perturbation.files.nt_tf_ids"]),
        (lambda folder: (folder / "tf_sequences.csv").unlink(), ["tf_sequences.csv", "perturbation.files.tf_sequences"]),
        (lambda folder: edit(folder / "tf_sequences.csv", put(3, 5, "")), ["tf_sequences.csv:4", "empty 'sequence'"]),
        (lambda folder: edit(folder / "tf_sequences.csv", put(3, 5, "ACXGT")), ["tf_sequences.csv:4", "'X'"]),
        (lambda folder: edit(folder / "tf_sequences.csv", put(0, 1, "id")), ["no column 'gene_id'"]),
        (lambda folder: (folder / "gene_index.txt").write_text("ENSG1\nENSG2\n"), ["none of its 2 genes"]),
        (lambda folder: (folder / "gene_index.txt").write_text("ENSG1\nENSG1\n"), ["more than once"]),
        (lambda folder: (folder / "targets_9_overlap.csv").write_text("x"), ["several targets", "files.targets"]),
        (lambda folder: [file.unlink() for file in folder.glob("targets*")], ["no targets", "files.targets"]),
        (shutil.rmtree, ["no such folder"]),
    ],
)
def test_bad_tables(folder, spoil, words):
    spoil(folder)
    with pytest.raises(InputError) as error:
        load(folder)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_file(folder):
    (folder / "t.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"t\.parquet.*Parquet"):
        perturbation_files.read_targets(folder / "t.parquet")
