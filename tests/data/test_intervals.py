import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen.data.intervals import CaduceusWindows, TiledWindows, caduceus_windows, read_bed
from jaxgen.errors import InputError


def test_contig_shorter_than_the_window_is_marked():
    starts, ends, invalid = caduceus_windows([1000], [10], 1024, [0])
    assert (starts[0], ends[0], invalid[0]) == (0, 1000, True)


def bed_file(tmp_path, text: str):
    path = tmp_path / "x.bed"
    path.write_text(text)
    return path


def test_bed_with_everything_to_skip(tmp_path):
    path = bed_file(
        tmp_path, "# comment\ntrack name=x\nbrowser position\nchrom\tchromStart\tchromEnd\tsplit\n\nchr1\t5\t9\ttrain\textra\r\nchr2 1 2\n"
    )
    bed = read_bed(path)
    assert bed.contigs == ["chr1", "chr2"]
    assert bed.starts.tolist() == [5, 1]
    assert bed.ends.tolist() == [9, 2]
    assert bed.splits == ["train", ""]
    packed = tmp_path / "x.bed.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_bed(packed).contigs == bed.contigs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t5\t9\nchr1\tfive\t9\n", r"x.bed:2: start 'five' is not an integer"),
        ("chr1\t5\t9.5\n", r"x.bed:1: end '9.5' is not an integer"),
        ("chr1\t5\n", r"x.bed:1: 2 columns"),
        ("chr1\t5\t5\n", r"x.bed:1: end 5 is not after start 5"),
        ("# nothing\n", "no intervals"),
        ("", "no intervals"),
    ],
)
def test_bad_bed(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        read_bed(bed_file(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("max_length", "split", "contigs", "message"),
    [
        (1024, "trian", {"chr1": 1 << 20}, "did you mean 'train'"),
        (1000, "train", {"chr1": 1 << 20}, "power of two"),
        (1 << 21, "train", {"chr1": 1 << 22}, "power of two"),
        (1024, "train", {"chr2": 1 << 20}, r"x.bed:1: the genome has no contig 'chr1'"),
        (1024, "train", {"chr1": 300}, r"x.bed:1: the interval ends at 400, outside contig 'chr1' \(300 bases\)"),
        (1024, "train", {"chr1": 500}, r"x.bed:1: contig 'chr1' \(500 bases\) is shorter than max_length=1024"),
    ],
)
def test_bad_windows(tmp_path, max_length, split, contigs, message):
    bed = read_bed(bed_file(tmp_path, "chr1\t100\t400\ttrain\n"))
    with pytest.raises(InputError, match=message):
        CaduceusWindows(bed, contigs, max_length, split)


def test_caduceus_windows_number_all_shifts(tmp_path):
    bed = read_bed(bed_file(tmp_path, "chr1\t100\t131172\ttrain\nchr1\t5\t9\tvalid\nchr1\t7\t131079\ttrain\n"))
    windows = CaduceusWindows(bed, {"chr0": 5, "chr1": 1 << 21}, 1 << 19, "train")
    contigs, starts, ends = windows.locate(np.arange(len(windows)))
    assert contigs.tolist() == [1] * 4
    assert starts.tolist() == [100, 100 + (1 << 19), 7, 7 + (1 << 19)]
    assert (ends - starts == 1 << 19).all()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.3]))
def test_tiles_cover_every_base_and_keep_the_borders(sizes, length, holdout):
    contigs = {f"c{i}": size for i, size in enumerate(sizes)}
    seen = [np.zeros(size, int) for size in sizes]
    for number, split in enumerate(("train", "valid", "test")):
        windows = TiledWindows(contigs, length, split, holdout)
        for contig, start, end in zip(*windows.locate(np.arange(len(windows)))):
            assert 0 < end - start <= length
            part = seen[contig][start:end]
            assert ((part == 0) | (part == number + 1)).all()  # no base belongs to two splits
            part[:] = number + 1
    for size, part in zip(sizes, seen):
        assert (part > 0).all()
        assert (part > 1).sum() == int(np.floor(size * holdout))


def test_tiling_rejects_nonsense():
    with pytest.raises(InputError, match="did you mean 'valid'"):
        TiledWindows({"a": 10}, 5, "vald")
    with pytest.raises(InputError, match="out of range"):
        TiledWindows({"a": 10}, 0, "train")
