"""Variants from real VCF files written by the test, and windows against plain string surgery."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.genome import Genome
from jaxgen.data.variants import Variants, allele_windows, read_variants, variant_index
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
    found = read_variants(vcf(tmp_path / name, "two 4 x T G", "one 3 rs1 GT G,GTA,<DEL>", "one 1 . A .", "one 5 . A *"), genome)
    assert found.contig_ids.tolist() == [1, 0, 0]
    assert found.positions.tolist() == [3, 2, 2]
    assert list(zip(found.refs, found.alts)) == [(b"T", b"G"), (b"GT", b"G"), (b"GT", b"GTA")]
    assert found.names == ["x", "rs1", "rs1"]
    assert found.skipped == {"symbolic allele": 2, "no alternative allele": 1}
    assert found.is_snv.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("one 3 . A T", "one:3: REF is A, but"),
        ("three 3 . A T", "no contig 'three'"),
        ("two 12 . CA T", "two:12: lies beyond the 12 bases"),
        ("one 3 . G T!", "readable|not a sequence of bases"),
    ],
)
def test_wrong_records_are_named(genome, tmp_path, record, message):
    with pytest.raises(InputError, match=message) as caught:
        read_variants(vcf(tmp_path / "v.vcf", record), genome)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_vcf(genome, tmp_path):
    (tmp_path / "v.vcf").write_text("hello\n")
    with pytest.raises(InputError, match="not a readable VCF"):
        read_variants(tmp_path / "v.vcf", genome)
    with pytest.raises(InputError, match="no such file"):
        read_variants(tmp_path / "none.vcf", genome)
    (tmp_path / "v.vcf.gz").write_bytes(gzip.compress((HEADER + COLUMNS).encode()))
    with pytest.raises(InputError, match="bgzip"):
        read_variants(tmp_path / "v.vcf.gz", genome)


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
