"""Leaks between splits, against the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.augment import reverse_complement_text
from jaxgen.data.leaks import find_leaks, kmer_sets
from jaxgen.data.sequences import Sequences

dna = st.lists(st.text("ACGTN", min_size=1, max_size=14).map(str.encode), min_size=1, max_size=8)


def sets_by_definition(sequence: bytes, k: int) -> set[bytes]:
    words = [sequence[i : i + k] for i in range(len(sequence) - k + 1)]
    return {min(word, reverse_complement_text(word)) for word in words if b"N" not in word}


@settings(max_examples=60, deadline=None)
@given(dna, dna, st.integers(1, 5))
def test_agrees_with_the_definition(train, test, k):
    leaks = find_leaks(Sequences.from_list(train), Sequences.from_list(test), k)
    for i, sequence in enumerate(test):
        ours = sets_by_definition(sequence, k)
        best = max(
            (len(ours & other) / len(ours | other) for other in (sets_by_definition(t, k) for t in train) if ours | other), default=0
        )
        assert leaks.nearest[i] == pytest.approx(best, abs=1e-6)
        assert leaks.exact[i] == (sequence in train or reverse_complement_text(sequence) in train)


def test_copies_on_either_strand_are_found_whatever_their_case():
    rng = np.random.default_rng(0)
    train = [bytes(rng.choice(np.frombuffer(b"ACGT", np.uint8), 60)) for _ in range(50)]
    changed = train[3][:30] + bytes([reverse_complement_text(train[3][30:31])[0]]) + train[3][31:]
    test = [train[0], reverse_complement_text(train[1]), train[2].lower(), changed, b"A" * 60]
    leaks = find_leaks(Sequences.from_list(train), Sequences.from_list(test))
    assert leaks.exact.tolist() == [True, True, True, False, False]
    assert leaks.near.tolist() == [True, True, True, True, False]
    assert leaks.record() == {"test_rows": 5, "exact": 3, "near": 4, "near_share": 0.8, "threshold": 0.7}


def test_no_kmer_spans_two_sequences():
    both = kmer_sets(Sequences.from_list([b"ACGT", b"TTTT"]), 4)
    assert both.sum(1).ravel().tolist() == [[1, 1]]
