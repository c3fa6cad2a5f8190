import dataclasses

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import tokenizers
from jaxgen.data import tasks
from jaxgen.data.pipeline import TableSource, eval_batches, table_sources, train_loader
from jaxgen.data.random import RowRandom
from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.base import Examples
from jaxgen.errors import InputError

TEXTS = [b"ACGTN", b"GATTACA", b"A", b"acgtTTTTTT", b"CCC", b"GGGTR", b"TTATATTA", b"NNN", b"CATCATCATCAT", b"GC", b"TACG"]


def source(n: int = 11, **options) -> TableSource:
    examples = Examples(Sequences.from_list(TEXTS[:n]), np.arange(n, dtype=np.int32))
    return TableSource(examples, tokenizers.get("character"), **options)


class Counting:
    """Batches that show which example and which randomness each row got."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def batch(self, indices, random):
        return {"index": indices, "word": random.words(len(indices), 1, 1)[:, 0]}


def take(loader, steps):
    batches = [next(loader) for _ in range(steps)]
    loader.close()
    return batches


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_global_batches_do_not_depend_on_the_process_count(processes, drop_last):
    options = {"batch_size": 4, "seed": 3, "drop_last": drop_last}
    alone = take(train_loader(source(rc_aug=True), **options), 7)
    shards = [
        take(train_loader(source(rc_aug=True), process_index=p, process_count=processes, num_threads=p % 2, **options), 7)
        for p in range(processes)
    ]
    for step, batch in enumerate(alone):
        same(batch, joined([shard[step] for shard in shards]))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_state_is_the_step_and_resumes_on_other_process_counts(before, after):
    options = {"batch_size": 4, "seed": 3}
    uninterrupted = take(train_loader(Counting(11), **options), 8)
    loaders = [train_loader(Counting(11), process_index=p, process_count=before, **options) for p in range(before)]
    for loader in loaders:
        for _ in range(3):
            next(loader)
    state = loaders[0].get_state()
    assert state == {"step": 3}
    resumed = [train_loader(Counting(11), process_index=p, process_count=after, **options) for p in range(after)]
    for loader in resumed:
        loader.set_state(state)
    for step in range(3, 8):
        same(uninterrupted[step], joined([next(loader) for loader in resumed]))
    same(uninterrupted[5], next(train_loader(Counting(11), start_step=5, **options)))
    for loader in loaders + resumed:
        loader.close()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_visits_each_example_once(n, batch_size, seed):
    loader = train_loader(Counting(n), batch_size=batch_size, seed=seed, drop_last=False, num_threads=0)
    orders = []
    for _ in range(2):
        epoch = joined([next(loader) for _ in range(loader.steps_per_epoch)])
        real = epoch["index"][epoch["weight"] == 1]
        assert sorted(real) == list(range(n))
        orders.append(real.tolist())
    if n > 8:
        assert orders[0] != orders[1]


def test_drop_last_and_no_shuffle():
    loader = train_loader(Counting(11), batch_size=4, seed=0, shuffle=False)
    assert loader.steps_per_epoch == 2
    batches = take(loader, 3)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert (batches[0]["weight"] == 1).all()
    assert batches[0]["weight"].dtype == np.float32


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.sampled_from([4, 8]), st.sampled_from([1, 2, 4]))
def test_eval_counts_each_example_once(n, batch_size, processes):
    shards = [list(eval_batches(Counting(n), batch_size, p, processes, num_threads=0)) for p in range(processes)]
    batches = [joined(parts) for parts in zip(*shards)]
    assert all(len(batch["weight"]) == batch_size for batch in batches)
    everything = joined(batches)
    assert everything["index"][everything["weight"] == 1].tolist() == list(range(n))
    assert len(eval_batches(Counting(n), batch_size)) == len(batches)
    other = joined(list(eval_batches(Counting(n), 3, num_threads=0)))
    np.testing.assert_array_equal(other["word"][:n], everything["word"][:n])  # randomness belongs to the example


def test_eval_can_be_repeated():
    batches = eval_batches(Counting(5), 2)
    assert batches.num_examples == 5
    assert [b["index"].tolist() for b in batches] == [b["index"].tolist() for b in batches] == [[0, 1], [2, 3], [4, 4]]


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_table_rows_are_the_tokenizer(cache_bytes):
    rows = source(max_length=8, cache_bytes=cache_bytes)
    batch = rows.batch(np.array([3, 0]), RowRandom(0, 0, 0))
    tokenizer = tokenizers.get("character")
    expected, lengths = tokenizer.encode_batch([TEXTS[3], TEXTS[0]], 8, add_special_tokens=False)
    np.testing.assert_array_equal(batch["tokens"], expected)
    np.testing.assert_array_equal(batch["mask"].sum(axis=1), lengths)
    assert batch["target"].tolist() == [3, 0]
    assert rows.truncated == 2
    assert rows.pad_fraction() == pytest.approx(1 - np.minimum([len(text) for text in TEXTS], 8).sum() / 88)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_reverse_complement_comes_before_truncation(cache_bytes):
    rows = source(max_length=8, rc_aug=True, cache_bytes=cache_bytes)
    indices = np.full(64, 8)
    tokens = rows.batch(indices, RowRandom(0, 0, 0))["tokens"]
    decode = tokenizers.get("character").decode
    assert {decode(row) for row in tokens} == {"CATCATCA", "ATGATGAT"}


def test_conjoined_rows_hold_both_strands():
    batch = source(conjoin=True, padding_side="right").batch(np.array([1]), RowRandom(0, 0, 0))
    decode = tokenizers.get("character").decode
    assert batch["tokens"].shape == (1, 16, 2)
    assert [decode(batch["tokens"][0, batch["mask"][0, :, i], i]) for i in (0, 1)] == ["GATTACA", "TGTAATC"]
    assert batch["mask"][0].tolist() == [[True, True]] * 7 + [[False, False]] * 9


def kmer_source(sequences, **options):
    examples = Examples(Sequences.from_list(sequences), np.zeros(len(sequences), np.int32))
    return TableSource(examples, tokenizers.get("nt_v2"), add_special_tokens=True, **options)


def test_kmers_of_both_strands_are_read_from_the_bases():
    data = kmer_source([b"GATTACAGA", b"ACGTAC"], conjoin=True)
    batch = data.batch(np.arange(2), RowRandom(0, 0, 0))
    for strand, texts in enumerate((["GATTACAGA", "ACGTAC"], ["TCTGTAATC", "GTACGT"])):
        ids, lengths = data.tokenizer.encode_batch(texts, data.max_length, add_special_tokens=True)
        np.testing.assert_array_equal(batch["tokens"][..., strand], ids)
        np.testing.assert_array_equal(batch["mask"][..., strand].sum(1), lengths)


@pytest.mark.parametrize("rc_aug", [False, True])
def test_kmers_shift_by_bases_and_keep_their_special_tokens(rc_aug):
    text = "GATTACAGACCTGA"
    data = kmer_source([text.encode()], max_shift=3, rc_aug=rc_aug, max_length=16)
    turned = text[::-1].translate(str.maketrans("ACGT", "TGCA"))
    allowed = {t[cut:] for t in (text, turned)[: 1 + rc_aug] for cut in range(4)} | {
        t[: len(t) - cut] for t in (text, turned)[: 1 + rc_aug] for cut in range(1, 4)
    }
    batch = data.batch(np.zeros(200, np.int64), RowRandom(0, 0, 0))
    seen = {data.tokenizer.decode(row[mask][1:]) for row, mask in zip(batch["tokens"], batch["mask"])}
    assert seen == allowed
    assert set(batch["tokens"][:, 0]) == {data.tokenizer.cls_id}


def test_special_tokens_and_length():
    rows = source(add_special_tokens=True)
    assert rows.max_length == 16
    assert rows.batch(np.array([2]), RowRandom(0, 0, 0))["tokens"][0].tolist() == [4] * 13 + [0, 7, 1]


@pytest.mark.parametrize("name", ["caduceus", "dnabert"])
def test_table_sources_read_the_longest_sequence_of_any_split(name):
    longest = {"train": 20, "dev": 31, "test": 50}
    splits = {
        split: Examples(Sequences.from_list([b"ACGT", b"GATTC" * (n // 5) + b"A" * (n % 5)]), np.array([0, 1]))
        for split, n in longest.items()
    }
    task = dataclasses.replace(tasks.get("simulated_promoters", train=20, dev=4, test=4), splits=splits, length=0)
    whole, cut = (table_sources(task, tokenizers.get(name), max_length) for max_length in (0, 24))
    assert {rows.max_length for rows in whole.values()} == {56 if name == "caduceus" else 48}
    assert {split: rows.truncated for split, rows in whole.items()} == {"train": 0, "dev": 0, "test": 0}
    assert {split: rows.truncated for split, rows in cut.items()} == {"train": 0, "dev": 1, "test": 1}


def test_table_sources_share_the_length_and_augment_train_only():
    task = tasks.get("simulated_promoters", train=20, dev=4, test=4)
    sources = table_sources(task, tokenizers.get("caduceus"), rc_aug=True)
    assert {rows.max_length for rows in sources.values()} == {128}
    assert {name: rows.rc_aug for name, rows in sources.items()} == {"train": True, "dev": False, "test": False}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_loader(Counting(3), batch_size=4, seed=0), "train.batch_size=4 is larger than the 3 training examples"),
        (lambda: train_loader(Counting(9), batch_size=3, seed=0, process_count=2), "multiple of the 2 processes"),
        (lambda: eval_batches(Counting(9), 0), "positive multiple"),
        (lambda: eval_batches(Counting(9), 4, 2, 2), "process index 2 outside"),
        (lambda: source(rc_aug=True, conjoin=True), "exclude each other"),
        (lambda: source(padding_side="up"), "neither"),
        (lambda: source(n=0), "no examples"),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    if not flags.FLAGS.is_parsed():  # grain hands the command-line flags on to its workers
        flags.FLAGS.mark_as_parsed()
    options = {"batch_size": 4, "seed": 3}
    expected = take(train_loader(source(), **options), 5)
    for batch, other in zip(expected, take(train_loader(source(), num_workers=2, **options), 5)):
        same(batch, other)
