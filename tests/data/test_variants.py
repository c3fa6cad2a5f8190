"""Variants from real VCF files written by the test, and windows against plain string surgery."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.genome import Genome
from jaxgen.data.variants import Variants, allele_windows, annotate_vcf, longest_allele, read_variants, variant_index
from jaxgen.errors import InputError

pysam = pytest.importorskip("pysam")
CONTIGS = {"one": "ACGTACGTTTGACCATGACCAnnacgtACGATC", "two": "GGGTTTACACAC"}
HEADER = "##fileformat=VCFv4.2\n" + "".join(f"##contig=<ID={name},length={len(dna)}>\n" for name, dna in CONTIGS.items())
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Genome:
    folder = tmp_path_factory.mktemp("genome")
    fasta = folder / "g.fa"
    fasta.write_text("".join(f">{name}\n{dna}\n" for name, dna in CONTIGS.items()))
    return Genome.open(fasta, cache_dir=folder)


def vcf(path: Path, *records: str) -> Path:
    text = HEADER + COLUMNS + "".join("\t".join([*record.split(), ".", ".", "."]) + "\n" for record in records)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    plain.write_text(text)
    if path.suffix == ".gz":
        pysam.tabix_compress(str(plain), str(path))
    return path


@pytest.mark.parametrize("name", ["v.vcf", "v.vcf.gz"])
def test_reads_unsorted_files_and_splits_alternatives(genome, tmp_path, name):
    found = read_variants(
        vcf(tmp_path / name, "two 4 x T G", "one 3 rs1 GT G,GTA,<DEL>", "one 1 . A .", "one 5 . N <DUP>,*", "one 1 . A ACGTAC"), genome, 5
    )
    assert found.contig_ids.tolist() == [1, 0, 0]
    assert found.positions.tolist() == [3, 2, 2]
    assert list(zip(found.refs, found.alts)) == [(b"T", b"G"), (b"GT", b"G"), (b"GT", b"GTA")]
    assert found.names == ["x", "rs1", "rs1"]
    assert found.skipped == {
        "symbolic allele": 3,
        "no alternative allele": 1,
        "longer than 5 bases, which is what the window has room for": 1,
    }
    assert found.is_snv.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("one 3 . A T", "one:3: REF is A, but"),
        ("three 3 . A T", r"v.vcf:5: three:3: .*g.fa has no contig 'three'"),
        ("two 12 . CA T", "two:12: lies beyond the 12 bases"),
        ("one 3 . G T!", "readable|not a sequence of bases"),
    ],
)
def test_wrong_records_are_named(genome, tmp_path, record, message):
    with pytest.raises(InputError, match=message) as caught:
        read_variants(vcf(tmp_path / "v.vcf", record), genome, 9)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_vcf(genome, tmp_path):
    (tmp_path / "v.vcf").write_text("hello\n")
    with pytest.raises(InputError, match="not a readable VCF"):
        read_variants(tmp_path / "v.vcf", genome, 9)
    with pytest.raises(InputError, match="no such file"):
        read_variants(tmp_path / "none.vcf", genome, 9)
    (tmp_path / "v.vcf.gz").write_bytes(gzip.compress((HEADER + COLUMNS).encode()))
    with pytest.raises(InputError, match="bgzip"):
        read_variants(tmp_path / "v.vcf.gz", genome, 9)


def test_longest_allele():
    assert longest_allele(48, (0,)) == 24
    assert longest_allele(47, (-3, 5)) == 19
    for shifts in ((0, 24), (-25,), ()):
        with pytest.raises(InputError, match=r"variants\.shifts"):
            longest_allele(48, shifts)


@pytest.mark.parametrize("kind", ["vcf", "vcf.gz", "bcf"])
def test_annotated_records_stay_as_they_were(genome, tmp_path, kind):
    header = "##fileformat=VCFv4.2\n" + '##INFO=<ID=DP,Number=1,Type=Integer,Description="x">\n' * (kind == "bcf")
    records = ["two\t4\tx\tT\tG,<DEL>\t7\tPASS\tDP=3", "one\t1\t.\tA\t<DEL>\t.\t.\t.", "one\t5\t.\ta\tacgtac,c\t.\t.\t."]
    if kind == "bcf":
        header += '##INFO=<ID=END,Number=1,Type=Integer,Description="x">\n'
        header += "".join(f"##contig=<ID={name},length={len(dna)}>\n" for name, dna in CONTIGS.items())
    else:
        records[2] += "\tGT\t0|1"
    columns = COLUMNS if kind == "bcf" else COLUMNS.replace("INFO", "INFO\tFORMAT\tone")
    source = tmp_path / "v.vcf"
    source.write_text(header + columns + "".join(record + "\n" for record in records))
    if kind == "vcf.gz":
        pysam.tabix_compress(str(source), str(source := tmp_path / "v.vcf.gz"))
    elif kind == "bcf":
        with (
            pysam.VariantFile(str(source)) as plain,
            pysam.VariantFile(str(source := tmp_path / "v.bcf"), "wb", header=plain.header) as out,
        ):
            for record in plain:
                out.write(record)
    variants = read_variants(source, genome, 4)
    assert len(variants) == 2
    for _ in range(2):  # the second time over fields of the first
        annotate_vcf(source, tmp_path / "out.vcf", genome, variants, ["llr", "l2"], np.array([[0.5, 2.0], [np.nan, 3.0]]))
        source = tmp_path / "out.vcf"
    lines = source.read_text().splitlines()
    infos = ["DP=3;JG_LLR=0.5,.;JG_L2=2,.", ".", "JG_L2=.,3"]
    if kind != "bcf":  # htslib writes END into a BCF
        assert [line for line in lines if line[0] != "#"] == [
            "\t".join([*fields[:7], info, *fields[8:]]) for fields, info in zip((r.split("\t") for r in records), infos)
        ]
    for name, dna in CONTIGS.items():
        assert lines.count(f"##contig=<ID={name},length={len(dna)}>") == 1
    assert sum(line.startswith("##INFO=<ID=JG_L2,") for line in lines) == 1
    with pysam.VariantFile(str(source)) as annotated:
        assert [record.info.get("JG_L2") for record in annotated] == [(2.0, None), None, (None, 3.0)]
    with pytest.raises(InputError, match="has changed"):
        annotate_vcf(vcf(tmp_path / "other.vcf"), tmp_path / "none.vcf", genome, variants, ["llr"], np.zeros((2, 1)))
    assert not (tmp_path / "none.vcf").exists()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_windows_are_cut_from_the_changed_sequence(genome, data):
    name = data.draw(st.sampled_from(sorted(CONTIGS)))
    dna = CONTIGS[name].upper()
    start = data.draw(st.integers(0, len(dna) - 1))
    ref = dna[start : start + data.draw(st.integers(1, min(4, len(dna) - start)))]
    alt = data.draw(st.text("ACGT", min_size=1, max_size=4))
    length = data.draw(st.integers(12, 40))
    shift = data.draw(st.integers(-3, 2))
    variants = Variants(np.array([list(CONTIGS).index(name)]), np.array([start]), [ref.encode()], [alt.encode()], ["."], {})
    windows = allele_windows(genome, variants, np.array([0]), length, shift)
    middle = length // 2 + shift
    for window, allele in zip(windows, (ref, alt)):
        padded = "N" * 50 + dna[:start] + allele + dna[start + len(ref) :] + "N" * 50
        assert window.tobytes().decode() == padded[50 + start - middle :][:length]


def test_an_allele_that_does_not_fit(genome):
    variants = Variants(np.array([0]), np.array([4]), [b"A"], [b"A" * 30], ["."], {})
    with pytest.raises(InputError, match=re.escape("alleles of 30 bases do not fit into windows of 40")):
        allele_windows(genome, variants, np.array([0]), 40)


@given(st.integers(2, 30), st.lists(st.integers(0, 29), max_size=4), st.booleans())
def test_the_search_finds_the_middle_or_the_last_difference(length, places, reverse):
    ref = np.zeros((1, length), np.int32)
    alt = ref.copy()
    alt[0, [p for p in places if p < length]] = 1
    differ = np.flatnonzero(alt[0])
    guess = length // 2 - reverse
    expected = guess if guess in differ else differ[-1] if differ.size else -1
    assert variant_index(ref, alt, reverse=reverse).tolist() == [expected]
