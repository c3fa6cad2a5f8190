"""Genome windows as rows of k-mers and byte pairs: what is fed, what is predicted, what is left out."""

import numpy as np
import pytest

from jaxgen import tokenizers
from jaxgen.data.augment import masked_rows, reverse_complement_text
from jaxgen.data.genome import Genome
from jaxgen.data.genome_windows import TokenWindows, WindowBases, training_texts
from jaxgen.data.intervals import BedTiles, TiledWindows, read_bed
from jaxgen.data.pipeline import StagedIterator, train_loader
from jaxgen.data.random import RowRandom
from jaxgen.errors import InputError
from jaxgen.tokenizers.bpe import train_bpe

RANDOM = RowRandom(0, 0, 0)
TEXT = b"ACGTTGCAAGGCCATTAGACCAGTTTACGGATCCGATACAGGTACCATGACA"


@pytest.fixture
def genome(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    body = TEXT * 40
    (tmp_path / "g.fa").write_bytes(b">a\n" + body[:1000] + b"NNNNNNNN" + body[:500].lower() + b"\n>b\nGATTACA\n")
    return Genome.open(tmp_path / "g.fa")


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([TEXT * 8], 40)


def source(genome, tokenizer, length, objective, bases, **options):
    return TokenWindows(genome, TiledWindows(genome.contigs, bases, "train", 0.0), tokenizer, length, objective, bases, **options)


def test_next_token_rows_of_byte_pairs(genome, bpe):
    """The published rows: encoded with special tokens, padded and cut to max_length, the first id dropped, the last one a target only."""
    rows = source(genome, bpe, 24, "ntp", 64)
    batch = rows.batch(np.arange(len(rows)), RANDOM)
    assert batch["tokens"].shape == batch["targets"].shape == batch["mask"].shape == (len(rows), 22)
    texts = [genome.fetch("a", start, min(start + 64, 1508)).tobytes().upper() for start in range(0, 1444, 64)]
    for tokens, targets, mask, text in zip(batch["tokens"], batch["targets"], batch["mask"], texts):
        ids = bpe.encode(text, max_length=24)[1:]
        full = np.full(23, bpe.pad_id)
        full[: len(ids)] = np.where(ids == bpe.unk_id, bpe.pad_id, ids)  # N is padding
        assert tokens.tolist() == full[:-1].tolist()
        assert targets.tolist() == full[1:].tolist()
        assert mask.tolist() == (np.arange(22) < len(ids)).tolist()
    assert bpe.sep_id in batch["targets"]
    assert "mask" not in source(genome, bpe, 24, "ntp", 64, masked=False).batch(np.arange(2), RANDOM)


def test_byte_level_rows_have_no_frame(genome):
    tokenizer = train_bpe([TEXT * 8], 290, "gpt2")
    rows = source(genome, tokenizer, 32, "ntp", 64)
    tokens, targets = (rows.batch(np.array([0]), RANDOM)[name][0] for name in ("tokens", "targets"))
    ids = tokenizer.encode(genome.fetch("a", 0, 64).tobytes())
    assert tokens[: len(ids)].tolist() == ids.tolist()
    assert targets[: len(ids) - 1].tolist() == ids[1:].tolist()
    assert set(targets[len(ids) - 1 :].tolist()) == {tokenizer.pad_id}


@pytest.mark.parametrize(("name", "options"), [("nt_v2", {"k": 3}), ("dnabert", {"k": 3})])
def test_masked_rows_of_kmers(genome, name, options):
    tokenizer = tokenizers.get(name, **options)
    length = 20
    bases = tokenizer.bases_in(length - tokenizer.special_tokens)
    rows = source(genome, tokenizer, length, "mlm", bases, mlm_probability=0.15)
    unmasked = source(genome, tokenizer, length, "mlm", bases, mlm_probability=0.0).batch(np.arange(len(rows)), RANDOM)
    assert (unmasked["targets"] == rows.ignore_id).all()
    first = genome.fetch("a", 0, bases).tobytes()
    assert unmasked["tokens"][0].tolist() == tokenizer.encode(first).tolist()  # every position of the row is filled
    many = [rows.batch(np.arange(len(rows)), RowRandom(0, step, 0)) for step in range(60)]
    tokens, targets = (np.stack([batch[field] for batch in many]) for field in ("tokens", "targets"))
    original = np.broadcast_to(unmasked["tokens"], tokens.shape)
    chosen = targets != rows.ignore_id
    dna = tokenizer.bases_per_token()[original] > 0
    np.testing.assert_array_equal(targets[chosen], original[chosen])
    np.testing.assert_array_equal(tokens[~chosen], original[~chosen])
    assert dna[chosen].all()  # special tokens, padding, N and unknown k-mers are never predicted
    shares = [(tokens[chosen] == tokenizer.mask_id).mean(), (tokens[chosen] == original[chosen]).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=0.03)
    assert (tokenizer.bases_per_token()[tokens[chosen & (tokens != tokenizer.mask_id)]] > 0).all()
    if name == "nt_v2":
        np.testing.assert_allclose(chosen[dna].mean(), 0.15, atol=0.02)
    else:  # a whole row inside: runs of at least k selected tokens
        inside = chosen[:, 0, 1:-1]
        runs = np.diff(np.flatnonzero(np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(int).reshape(-1))))[::2]
        assert (runs >= 2).all()
        assert (runs >= 3).mean() > 0.8  # those at the ends of a row are cut


def test_masking_depends_on_the_place_alone(genome):
    rows = source(genome, tokenizers.get("nt_v2", k=3), 20, "mlm", 57, rc_aug=True)
    loaders = [train_loader(rows, batch_size=8, seed=1, process_index=p, process_count=n) for n in (1, 2) for p in range(n)]
    for _ in range(3):
        whole, *parts = (next(loader) for loader in loaders)
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))
    for loader in loaders:
        loader.close()


def test_spans_and_words():
    ids, eligible = np.arange(20, 36, dtype=np.int32)[None], np.ones((1, 16), bool)
    eligible[0, 7] = False
    words = np.full((1, 16), 2**64 - 1, np.uint64)
    words[0, 5] = 0  # drawn; and becomes the mask
    words[0, 3] = (2**63) + 2**31  # not drawn; the mask where it is selected with a neighbour
    data, target = masked_rows(ids, words, 0.1, eligible=eligible, mask_id=4, ignore_id=0, choices=np.array([9], np.int32), span=(2, 3))
    assert np.flatnonzero(target[0]).tolist() == [3, 4, 5, 6, 8]
    assert np.flatnonzero(data[0] == 4).tolist() == [3, 5]
    assert data[0, 4] == 24  # kept


def test_short_windows_turn_in_place(genome):
    reader = WindowBases(genome, TiledWindows({"a": 1508, "b": 7}, 10, "train", 0.0), 10, rc_aug=True)
    last = np.full(20, len(reader) - 1)
    assert {row.tobytes() for row in reader.rows(last, RANDOM)} == {
        b"GATTACA\0\0\0",
        reverse_complement_text(b"GATTACA") + b"\0\0\0",
    }
    texts = list(training_texts(reader, 0))
    assert sorted(map(len, texts)) == [7] + [10] * (len(reader) - 1)


def test_tiles_of_intervals_stay_inside(tmp_path):
    (tmp_path / "x.bed").write_text("a\t5\t30\ttrain\nb\t0\t4\ttrain\na\t40\t60\tvalid\n")
    tiles = BedTiles(read_bed(tmp_path / "x.bed"), {"a": 70, "b": 9}, 10, "train")
    contigs, starts, ends = tiles.locate(np.arange(len(tiles)))
    assert list(zip(contigs.tolist(), starts.tolist(), ends.tolist())) == [(0, 5, 15), (0, 15, 25), (0, 20, 30), (1, 0, 4)]


@pytest.mark.parametrize(
    ("length", "objective", "message"), [(2, "ntp", "leaves no room"), (20, "nmt", "unknown objective"), (20, "mlm", "mask token")]
)
def test_wrong_options(genome, bpe, length, objective, message):
    tokenizer = train_bpe([TEXT], 270, "gpt2") if message == "mask token" else bpe
    with pytest.raises(InputError, match=message):
        source(genome, tokenizer, length, objective, 64)


def test_stages_follow_the_global_step(genome):
    def loader(length):
        return train_loader(source(genome, tokenizers.get("nt_v2", k=3), length, "mlm", 3 * length), batch_size=64 // length, seed=1)

    def stream():
        return StagedIterator([loader(8), loader(16)], [0, 3])

    whole = stream()
    batches = [next(whole) for _ in range(6)]
    assert [batch["tokens"].shape for batch in batches] == [(8, 8)] * 3 + [(4, 16)] * 3
    assert whole.get_state() == {"step": 6}
    for step in (2, 3, 5):
        resumed = stream()
        resumed.set_state({"step": step})
        for batch in batches[step:]:
            np.testing.assert_array_equal(next(resumed)["tokens"], batch["tokens"])
        resumed.close()
    whole.close()
