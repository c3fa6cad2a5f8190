"""Seeded splits that reproduce the ones of PyTorch and Hugging Face datasets without either package."""

import math

import numpy as np


def torch_permutation(n: int, seed: int) -> np.ndarray:
    """int64 (n,): `torch.randperm(n, generator=torch.Generator().manual_seed(seed))` on CPU.

    Fisher-Yates with one 32-bit MT19937 draw per step: position i is swapped with i + draw % (n - i).
    """
    order = list(range(n))
    if n > 1:
        draws = np.frombuffer(np.random.RandomState(seed & 0xFFFFFFFF).bytes(4 * (n - 1)), "<u4").astype(np.int64)
        partners = np.arange(n - 1) + draws % np.arange(n, 1, -1)
        for i, j in enumerate(partners.tolist()):
            order[i], order[j] = order[j], order[i]
    return np.array(order, np.int64)


def random_split_indices(n: int, seed: int, fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """`torch.utils.data.random_split(range(n), [fraction, 1 - fraction])` with a generator seeded by `seed`.

    Returns:
        (held out, rest): int64 index arrays in torch's order. Golden: splits/train_val.
    """
    held_out, rest = math.floor(n * fraction), math.floor(n * (1 - fraction))
    # torch hands out the items that both floors leave over one by one, beginning with the first part.
    held_out += (n - held_out - rest + 1) // 2
    order = torch_permutation(n, seed)
    return order[:held_out], order[held_out:]


def hf_split_indices(n: int, seed: int, fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """`datasets.Dataset.train_test_split(test_size=fraction, seed=seed)` of n rows.

    Returns:
        (held out, rest): int64 index arrays in that library's order. Golden: splits/train_val.
    """
    held_out = math.ceil(n * fraction)
    order = np.random.default_rng(seed).permutation(n)
    return order[:held_out], order[held_out:]


def three_way_indices(n: int, seed: int) -> dict[str, np.ndarray]:
    """An 80 / 10 / 10 split by `seed`: int64 indices under `train`, `dev` and `test`, each sorted."""
    order = torch_permutation(n, seed)
    test, dev = round(n * 0.1), round(n * 0.1)
    parts = {"train": order[test + dev :], "dev": order[test : test + dev], "test": order[:test]}
    return {name: np.sort(part) for name, part in parts.items()}
