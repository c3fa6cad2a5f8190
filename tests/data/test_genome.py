import gzip
import os
import pickle
import shutil

import numpy as np
import pyfaidx
import pytest
from helpers import real
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data import fasta
from jaxgen.data.fasta import parse_fasta
from jaxgen.data.genome import Genome
from jaxgen.errors import InputError

SMALL = b">chr1 first\nACGTNacgtn\nRYAA\n>chr2\r\nGGGG\r\nCC\r\n\n>chr3\nT"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path, cache):
    path = tmp_path / "g.fa"
    path.write_bytes(SMALL)
    return path


def stores(cache):
    return sorted(cache.rglob("*.bases"))


def test_contigs_bases_and_mask(small, cache):
    genome = Genome.open(small)
    assert genome.contigs == {"chr1": 14, "chr2": 6, "chr3": 1}
    assert genome.fetch("chr1").tobytes() == b"ACGTNacgtnRYAA"
    assert genome.fetch("chr2", 3, 5).tobytes() == b"GC"
    assert genome.soft_mask("chr1", 4, 7).tolist() == [False, True, True]
    assert len(genome) == 21
    assert not genome.fetch("chr1").flags.writeable


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_chunk_borders_do_not_matter(small, chunk, monkeypatch):
    monkeypatch.setattr(fasta, "_CHUNK", chunk)
    pieces = []
    assert parse_fasta(str(small), pieces.append) == ({"chr1": 14, "chr2": 6, "chr3": 1}, ())
    assert b"".join(pieces) == b"ACGTNacgtnRYAAGGGGCCT"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("chunk", [1, 1000])
def test_byte_order_mark_and_rna(tmp_path, cache, monkeypatch, pack, chunk):
    monkeypatch.setattr(fasta, "_CHUNK", chunk)
    path = tmp_path / "rna.fa"
    path.write_bytes(pack(b"\xef\xbb\xbf>a\nACGU\nuUT\n"))
    for _ in range(2):  # the notes are those of the store too
        genome = Genome.open(path)
        assert genome.fetch("a").tobytes() == b"ACGTtTT"
        assert genome.notes == (f"{path}: 3 U read as T",)


def test_gzip_is_told_by_content(small, cache):
    packed = small.with_name("packed.fasta")
    packed.write_bytes(gzip.compress(SMALL[:20]) + gzip.compress(SMALL[20:]))
    np.testing.assert_array_equal(Genome.open(packed).bases, Genome.open(small).bases)


def test_store_is_reused_and_rebuilt_when_the_source_changes(small, cache):
    Genome.open(small)
    (store,) = stores(cache)
    written = store.stat().st_mtime_ns
    Genome.open(small)
    assert store.stat().st_mtime_ns == written
    small.write_bytes(b">chr1\nAC\n")
    assert Genome.open(small).contigs == {"chr1": 2}
    small.write_bytes(b">chr1\nAG\n")  # same size; even with the same time the hash tells
    os.utime(small, ns=(written, written))
    assert Genome.open(small).fetch("chr1").tobytes() == b"AG"
    store.write_bytes(b"damaged")
    assert Genome.open(small).fetch("chr1").tobytes() == b"AG"
    assert [file.name for file in store.parent.iterdir()] == [store.name]  # no temporary file stays


def test_read_only_source_folder(small, cache):
    small.parent.chmod(0o555)
    try:
        before = sorted(small.parent.iterdir())
        assert Genome.open(small, cache_dir=cache / "elsewhere").contigs["chr3"] == 1
        assert [p for p in sorted(small.parent.iterdir()) if p != cache] == [p for p in before if p != cache]
    finally:
        small.parent.chmod(0o755)


def test_pickle_maps_the_file_again(small, cache):
    genome = Genome.open(small)
    data = pickle.dumps(genome)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).bases, genome.bases)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gather_equals_fetch_with_padding(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "gather.fa"
    if not path.exists():
        path.write_bytes(SMALL)
    genome = Genome.open(path, cache_dir=folder / "cache")
    length = data.draw(st.integers(1, 20))
    rows = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(-25, 25)), min_size=1, max_size=5))
    ids, starts = np.array(rows).T
    names = list(genome.contigs)
    for got, (contig, start) in zip(genome.gather(ids, starts, length, ord("-")), rows):
        sequence = genome.fetch(names[contig]).tobytes()
        expected = bytes(sequence[i] if 0 <= i < len(sequence) else ord("-") for i in range(start, start + length))
        assert got.tobytes() == expected


def test_gather_short_windows_on_the_right(small, cache):
    genome = Genome.open(small)
    out = genome.gather(np.array([0, 1]), np.array([1, 0]), 6, ends=np.array([4, 6]), left_pad=True)
    assert [row.tobytes() for row in out] == [b"\0\0\0CGT", b"GGGGCC"]


BAD = {
    "empty": (b"", "empty FASTA"),
    "blank": (b"\n\n", "empty FASTA"),
    "headless": (b"ACGT\n>chr1\nAC\n", ":1: sequence before the first header"),
    "binary": (bytes(range(128, 256)), "not a FASTA"),
    "duplicate": (b">a\nAC\n>b\nAC\n>a\nAC\n", ":5: contig 'a' occurs more than once"),
    "letter": (b">a\nAC\nAJ\n", ":3: 'J' is not a nucleotide"),
    "truncated": (b">a\nAC\n>b\n", "contig 'b' has no sequence; the file may be truncated"),
    "hollow": (b">a\n>b\nAC\n", ":2: contig 'a' has no sequence"),
    "nameless": (b"> \nAC\n", ":1: header without"),
    "cut gzip": (gzip.compress(SMALL * 50)[:-9], "truncated or corrupt gzip"),
    "corrupt gzip": (gzip.compress(os.urandom(2000).hex().encode())[:900] + b"\0" * 900, "truncated or corrupt gzip"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_fasta_is_one_line(name, tmp_path, cache):
    content, message = BAD[name]
    path = tmp_path / "bad.fa"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        Genome.open(path)
    assert "bad.fa" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*bad*"))


def test_bgzip_without_its_end_block(tmp_path, cache):
    source = real("human_chr20_1mb/chr20_1mb.fa.gz").read_bytes()
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(source[:-28])
    with pytest.raises(InputError, match="truncated bgzip"):
        Genome.open(path)


def test_missing_file_and_unusable_cache(small, tmp_path):
    with pytest.raises(InputError, match="no such FASTA"):
        Genome.open(tmp_path / "absent.fa")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache cannot be written"):
        Genome.open(small, cache_dir=tmp_path / "file")


@pytest.mark.parametrize(
    ("fai", "message"),
    [
        ("chr1\t14\t12\t10\t11\nchr2\t7\t0\t4\t6\nchr3\t1\t0\t1\t1\n", "says 7 bases for contig 'chr2', but the FASTA has 6"),
        ("chr1\t14\t12\t10\t11\n", "does not list contig 'chr2'"),
        ("chr1\t14\t1\t1\t1\nchr2\t6\t0\t4\t6\nchr3\t1\t0\t1\t1\nchr9\t1\t0\t1\t1\n", "lists contig 'chr9'"),
        ("chr1 14\n", ":1: not a FASTA index line"),
        ("chr1\t14\t12\t10\t11\nchr2\t6\t0\tfour\t6\n", ":2: not a FASTA index line"),
        ("chr1\t14\t12\t10\t11\nchr1\t14\t12\t10\t11\n", ":2: lists contig 'chr1' a second time"),
    ],
)
def test_disagreeing_index(small, cache, fai, message):
    index = small.with_name("g.fa.fai")
    index.write_text(fai)
    os.utime(index, (0, 0))
    with pytest.raises(InputError, match=message) as error:
        Genome.open(small)
    assert "older than the FASTA; delete it" in str(error.value)


def test_an_old_index_that_agrees_is_noted(small, cache):
    index = small.with_name("g.fa.fai")
    index.write_text("chr1\t14\t12\t10\t11\nchr2\t6\t0\t4\t6\nchr3\t1\t0\t1\t1\n")
    assert Genome.open(small).notes == ()
    os.utime(index, (0, 0))
    (note,) = Genome.open(small).notes
    assert note.startswith(f"{index}: older than the FASTA")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.fetch("chr4", 0, 1), "did you mean"),
        (lambda g: g.fetch("chr1", 0, 15), "chr1:0-15 is not within the 14 bases"),
        (lambda g: g.fetch("chr1", -1, 3), "not within"),
        (lambda g: g.fetch("chr1", 3, 2), "not within"),
    ],
)
def test_bad_request(small, cache, call, message):
    with pytest.raises(InputError, match=message):
        call(Genome.open(small))


@pytest.mark.parametrize("name", ["human_chr20_1mb/chr20_1mb.fa.gz", "genomes/alpha_globin_softmasked.fa.gz", "genomes/yeast_chrI.fa.gz"])
def test_real_genomes_equal_pyfaidx(name, tmp_path, cache):
    source = real(name)
    plain = tmp_path / "plain.fa"
    with gzip.open(source) as packed, open(plain, "wb") as out:
        shutil.copyfileobj(packed, out)
    genome, peer = Genome.open(source), pyfaidx.Fasta(str(plain))
    assert genome.contigs == {record.name: len(record) for record in peer}
    for contig, length in genome.contigs.items():
        assert genome.fetch(contig).tobytes() == str(peer[contig][0:length]).encode()
