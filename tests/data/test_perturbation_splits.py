import argparse
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from jaxgen.checkpoints.safe_pickle import read_pickle
from jaxgen.data.perturbation_splits import from_content, kfold, to_pickle
from jaxgen.errors import InputError


@given(st.integers(2, 400), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_folds_are_those_of_scikit_learn(n, n_splits, seed):
    if n_splits > n:
        with pytest.raises(InputError, match=r"perturbation\.folds"):
            kfold(n, n_splits, seed)
        return
    for ours, theirs in zip(kfold(n, n_splits, seed), KFold(n_splits, shuffle=True, random_state=seed).split(np.arange(n)), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_is_written_is_read_and_is_the_published_structure(tmp_path):
    file = tmp_path / "cv_splits_5fold_7.pkl"
    splits = kfold(23, 5, 7)
    file.write_bytes(to_pickle(splits, 23, 7))
    content = pickle.loads(file.read_bytes())
    assert {key: content[key] for key in ("method", "n_splits", "random_state", "total_samples")} == {
        "method": "5fold",
        "n_splits": 5,
        "random_state": 7,
        "total_samples": 23,
    }
    for ours, theirs in zip(from_content(read_pickle(file), 23, 5, file), splits, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def content(**changes):
    return pickle.loads(to_pickle(kfold(10, 5), 10, 42)) | changes


class Command:
    def __reduce__(self):
        return print, ("must not run",)


def loop():
    endless = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (content(total_samples=11), ["11 perturbations, not 10"]),
        (content(total_samples=np.arange(3)), ["is a ndarray"]),
        (content(total_samples=None), ["None perturbations"]),
        (content(n_splits=4), ["4 folds, not 5"]),
        (content(fold_splits=kfold(10, 4)), ["holds 4 folds"]),
        (content(fold_splits=kfold(11, 5)), ["not a pair of index arrays"]),
        (content(fold_splits=[(np.arange(9), np.array([9]))] * 5), ["held out 0 times"]),
        (content(fold_splits=[(np.arange(10), np.array([i, i + 5])) for i in range(5)]), ["in both of its parts"]),
        (content(fold_splits=[(np.array([]), np.arange(10))] * 5), ["not a pair"]),
        (content(fold_splits=[(0.5, 1)] * 5), ["not a pair"]),
        (content(fold_splits="abcde"), ["fold_splits"]),
        (content(fold_splits=loop()), ["holds 1 folds"]),
        (content(extra=argparse.Namespace(a=1)), ["argparse.Namespace"]),
        (content(method=Command()), ["builtins.print", "nothing in it ran"]),
        ([1, 2], ["fold_splits"]),
        (argparse.Namespace(), ["fold_splits"]),
    ],
)
def test_other_content_is_one_line(found, words, tmp_path, capsys):
    file = tmp_path / "splits.pkl"
    file.write_bytes(pickle.dumps(found))
    with pytest.raises(InputError) as error:
        from_content(read_pickle(file), 10, 5, file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert "must not run" not in capsys.readouterr().out
