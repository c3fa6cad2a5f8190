import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.random import RowRandom, permutation, raw_rows


@given(st.integers(0, 2**63), st.integers(0, 10**9), st.integers(0, 50), st.integers(1, 9), st.integers(1, 11), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_rows_do_not_depend_on_who_draws_them(seed, step, first, rows, words, stream):
    whole = raw_rows(seed, step, 0, first + rows, words, stream)
    np.testing.assert_array_equal(raw_rows(seed, step, first, rows, words, stream), whole[first:])


def test_draws_differ_by_seed_step_row_and_stream():
    draws = [
        raw_rows(*args)[0, 0]
        for args in [(1, 2, 3, 1, 1, 0), (2, 2, 3, 1, 1, 0), (1, 3, 3, 1, 1, 0), (1, 2, 4, 1, 1, 0), (1, 2, 3, 1, 1, 1)]
    ]
    assert len(set(draws)) == len(draws)


def test_coin_is_fair():
    assert abs(RowRandom(0, 0, 0).coin(20000, 1).mean() - 0.5) < 0.015


def test_words32_halves():
    words = RowRandom(5, 6, 7).words32(4, 9, 2)
    assert words.shape == (4, 9)
    assert abs(RowRandom(5, 6, 7).words32(100, 1001, 2).mean() / 2**32 - 0.5) < 0.01


@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_permutation_is_a_bijection(n, seed, epoch):
    assert (np.sort(permutation(np.arange(n), n, seed, epoch)) == np.arange(n)).all()


def test_permutation_of_a_huge_set_and_of_few_indices():
    n = 35_000_000_000
    index = np.array([0, 1, n - 1])
    images = permutation(index, n, 1, 0)
    assert ((images >= 0) & (images < n)).all()
    np.testing.assert_array_equal(permutation(index[1:], n, 1, 0), images[1:])
    assert (images != permutation(index, n, 1, 1)).any()


def test_small_permutations_are_close_to_uniform():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), permutation(np.arange(6), 6, seed, 0)] += 1
    assert counts.min() > 400  # 500 expected
    assert counts.max() < 600


def test_permutation_rejects_indices_outside():
    with pytest.raises(ValueError, match="outside"):
        permutation(np.array([5]), 5, 0, 0)
