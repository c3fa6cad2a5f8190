"""The plan of an export: every segment once, the same shapes for every process, little filler."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import tokenizers
from jaxgen.data.segments import Encoder, Plan, Segments
from jaxgen.data.sequences import Sequences
from jaxgen.errors import InputError


def segments_of(lengths, *, strand="forward", longest=0, too_long="error", tokenizer="character", special_tokens=True, **options):
    texts = [b"ACGT"[i % 4 : i % 4 + 1] * n for i, n in enumerate(lengths)]
    encoder = Encoder(Sequences.from_list(texts), tokenizers.get(tokenizer, **options), special_tokens)
    return encoder, Segments.of(encoder, strand, longest, too_long, [f"s{i}" for i in range(len(texts))], "x.csv")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=60),
    st.sampled_from(["forward", "average"]),
    st.sampled_from([0, 20, 33]),
    st.integers(1, 4),
    st.sampled_from([8, 100, 700, 5000]),
    st.sampled_from([(1, 1), (8, 1), (2, 2), (4, 2)]),
)
def test_processes_share_every_segment(lengths, strand, longest, buckets, batch_tokens, split):
    ways, processes = split
    _, segments = segments_of(lengths, strand=strand, longest=longest, too_long="chunk")
    np.testing.assert_allclose(np.bincount(segments.row, segments.coefficient), 1, atol=1e-6)
    plan = Plan.of(segments, buckets, batch_tokens, longest)
    assert sorted(np.concatenate(plan.shards).tolist()) == list(range(len(lengths)))
    runs = [list(plan.steps(0, ways, process, processes)) for process in range(processes)]
    shapes = [[(step.shard, step.width, len(step.segments)) for step in run] for run in runs]
    assert all(shape == shapes[0] for shape in shapes)
    assert len({shape[1:] for shape in shapes[0]}) <= len(plan.buckets) <= buckets
    chosen = np.concatenate([step.segments for run in runs for step in run])
    assert sorted(chosen[chosen >= 0].tolist()) == list(range(len(segments.row)))
    for process, run in enumerate(runs):
        for step in run:
            real = step.segments[step.segments >= 0]
            assert (segments.tokens[real] <= step.width).all()
            assert set(segments.row[real]) <= set(plan.own_rows(step.shard, process, processes))
            assert len(step.segments) * processes % ways == 0
            assert len(step.segments) * processes * step.width <= max(batch_tokens, ways * step.width)
    # A resumed run goes on with the same batches.
    later = [step for step in runs[0] if step.shard >= 1]
    for ours, theirs in zip(plan.steps(1, ways, 0, processes), later, strict=True):
        np.testing.assert_array_equal(ours.segments, theirs.segments)


def test_short_tables_are_not_padded_to_whole_batches():
    _, segments = segments_of([60, 61, 62, 300, 301])
    (long, short) = Plan.of(segments, 4, 1 << 15).steps(0, 1)
    assert (long.width, len(long.segments), short.width, len(short.segments)) == (304, 2, 64, 3)


def test_a_sequence_without_tokens_is_refused():
    _, segments = segments_of([8, 2], tokenizer="dnabert", k=6)
    assert segments.tokens.tolist() == [5, 2]
    with pytest.raises(InputError, match=r"x\.csv: sequence 's1' is too short for a single token"):
        segments_of([8, 2], tokenizer="dnabert", k=6, special_tokens=False)
