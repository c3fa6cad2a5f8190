import numpy as np
import pytest

from jaxgen.data.splits import hf_split_indices, random_split_indices, three_way_indices


@pytest.mark.parametrize("split", [random_split_indices, hf_split_indices])
@pytest.mark.parametrize("n", [2, 11, 1000])
def test_every_row_once(split, n):
    held_out, rest = split(n, 3)
    assert sorted([*held_out, *rest]) == list(range(n))


def test_three_way_is_80_10_10():
    parts = three_way_indices(100, 1)
    assert [len(parts[name]) for name in ("train", "dev", "test")] == [80, 10, 10]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(100))
    assert (parts["test"] != three_way_indices(100, 2)["test"]).any()
