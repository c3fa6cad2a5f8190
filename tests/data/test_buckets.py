import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import tokenizers
from jaxgen.data.buckets import bucket_lengths, padded_lengths
from jaxgen.data.pipeline import TableSource, eval_batches, train_loader
from jaxgen.data.random import RowRandom
from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.base import Examples

lengths_of = st.lists(st.integers(1, 70), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(lengths_of, st.integers(1, 4))
def test_buckets_are_the_optimum(lengths, most):
    lengths = np.array(lengths)
    buckets = bucket_lengths(lengths, most)
    cost = padded_lengths(lengths, buckets).sum()
    assert list(buckets) == sorted(set(buckets))
    assert all(bucket % 8 == 0 for bucket in buckets)
    assert len(buckets) <= most
    top = -(-lengths.max() // 8) * 8
    assert buckets[-1] == top
    others = [(*some, top) for some in itertools.combinations(range(8, top, 8), min(len(buckets) - 1, (top - 8) // 8))]
    assert cost == min(padded_lengths(lengths, other).sum() for other in others)
    assert len(buckets) == most or cost <= padded_lengths(lengths, bucket_lengths(lengths, most)).sum()


def test_no_more_buckets_than_it_takes():
    assert bucket_lengths(np.array([96, 96, 96]), 8) == (96,)
    assert bucket_lengths(np.array([10, 100, 400]), 8) == (16, 104, 400)
    assert bucket_lengths(np.array([10, 100, 400]), 1) == (400,)
    assert bucket_lengths(np.array([10, 90]), 8, longest=99) == (16, 96, 99)
    uneven = np.random.default_rng(0).integers(100, 800, 5000)
    buckets = bucket_lengths(uneven, 20)
    assert 10 < len(buckets) < 20
    assert 0.03 < 1 - uneven.sum() / padded_lengths(uneven, buckets).sum() < 0.05
    assert bucket_lengths(np.array([7, 900_000, 1_000_000]), 3) == (1960, 901_600, 1_000_000)  # a coarser grid for very long ones


def test_a_small_table_counts_the_batches_across_borders():
    lengths, batch_size = np.random.default_rng(1).integers(100, 800, 1200), 32
    buckets = bucket_lengths(lengths, 24, batch_size=batch_size)
    assert len(bucket_lengths(lengths, 24)) < len(buckets) < 24
    masks = [
        batch["mask"] for batch in take(train_loader(source(lengths), batch_size=batch_size, seed=1, num_threads=0, buckets=buckets), 37)
    ]
    assert 1 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks) < 0.055
    assert bucket_lengths(np.array([90] * 20 + [96]), 8, batch_size=64) == (96,)  # without borders nothing lies across one


def source(lengths, **options):
    rng = np.random.default_rng(0)
    texts = [bytes(rng.choice(list(b"ACGT"), n).tolist()) for n in lengths]
    return TableSource(Examples(Sequences.from_list(texts), np.arange(len(texts), dtype=np.int32)), tokenizers.get("character"), **options)


def take(loader, steps):
    batches = [next(loader) for _ in range(steps)]
    loader.close()
    return batches


@settings(max_examples=25, deadline=None)
@given(lengths_of, st.sampled_from([4, 8]), st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 3))
def test_every_epoch_reads_each_example_once_in_one_shape_for_all(lengths, batch_size, processes, drop_last, seed):
    if drop_last and len(lengths) < batch_size:
        return
    data, buckets = source(lengths), bucket_lengths(np.array(lengths), 4)
    options = {"batch_size": batch_size, "seed": seed, "drop_last": drop_last, "buckets": buckets, "num_threads": 0}
    loaders = [train_loader(data, process_index=p, process_count=processes, **options) for p in range(processes)]
    alone = train_loader(data, **options)
    for _ in range(2):
        seen = []
        for _ in range(alone.steps_per_epoch):
            whole, parts = next(alone), [next(loader) for loader in loaders]
            for name, value in whole.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)
            assert whole["tokens"].shape[1] in buckets
            real = whole["weight"] > 0
            assert (whole["mask"].sum(1) == np.array(lengths)[whole["target"]]).all()  # nothing is cut off
            seen += whole["target"][real].tolist()
        assert len(set(seen)) == len(seen) == (len(lengths) // batch_size * batch_size if drop_last else len(lengths))


def test_a_step_depends_on_its_number_alone():
    lengths = np.random.default_rng(1).integers(10, 90, 40)
    options = {"batch_size": 8, "seed": 5, "buckets": bucket_lengths(lengths, 4)}
    data = source(lengths, rc_aug=True)
    whole = take(train_loader(data, **options), 12)
    for step in (3, 11):
        (batch,) = take(train_loader(data, start_step=step, num_threads=3, **options), 1)
        for name, value in batch.items():
            np.testing.assert_array_equal(value, whole[step][name])
    order = [batch["tokens"].shape[1] for batch in whole]
    assert order[:5] != sorted(order[:5]) or order[5:10] != sorted(order[5:10])


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
@pytest.mark.parametrize("options", [{"rc_aug": True}, {"max_shift": 5}, {"padding_side": "right"}, {"conjoin": True}])
def test_a_shorter_row_holds_the_same_tokens(options, cache_bytes):
    lengths = np.random.default_rng(1).integers(10, 90, 40)
    data = source(lengths, cache_bytes=cache_bytes, **options)
    by_example = {}
    for width in (0, int(data.lengths[:8].max())):
        batch = data.batch(np.arange(8), RowRandom(3, 4, 0), *([width] if width else []))
        assert batch["mask"].shape[1] == (width or data.max_length)
        for row in range(8):
            real = batch["tokens"][row][batch["mask"][row]]
            np.testing.assert_array_equal(by_example.setdefault(row, real), real)


@settings(max_examples=25, deadline=None)
@given(lengths_of, st.sampled_from([4, 8]), st.sampled_from([1, 2]))
def test_eval_names_its_examples(lengths, batch_size, processes):
    data, buckets = source(lengths), bucket_lengths(np.array(lengths), 4)
    shards = [eval_batches(data, batch_size, p, processes, num_threads=0, buckets=buckets) for p in range(processes)]
    seen = []
    for parts in zip(*shards):
        assert len({part["tokens"].shape for part in parts}) == 1
        for part in parts:
            if len(buckets) > 1:
                np.testing.assert_array_equal(part["index"], part["target"])
            seen += part["target"][part["weight"] > 0].tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_tables_of_one_length_and_of_many_are_looked_up_alike():
    for lengths in ([20] * 6, [20, 13, 30, 5, 20, 11]):
        for options in ({}, {"rc_aug": True}, {"max_length": 12}, {"max_length": 12, "rc_aug": True}, {"padding_side": "right"}):
            data = source(lengths, **options)
            for turn, (ids, got) in enumerate(data._cache):
                ours, theirs = data._encode(list(data.examples.sequences), bool(turn), data.max_length)
                np.testing.assert_array_equal(ids, ours)
                np.testing.assert_array_equal(got, theirs)
