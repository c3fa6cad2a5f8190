import numpy as np
import pytest

from jaxgen.data import tasks
from jaxgen.data.tasks.simulated_promoters import _Model
from jaxgen.errors import InputError


def test_seeded_and_labelled_as_simulated():
    first, again, other = (tasks.get("simulated_promoters", seed=seed, train=50, dev=20, test=20) for seed in (1, 1, 2))
    assert first.simulated
    assert "imulated" in first.description
    np.testing.assert_array_equal(first.splits["train"].sequences.buffer, again.splits["train"].sequences.buffer)
    assert (first.splits["train"].sequences.buffer != other.splits["train"].sequences.buffer).any()
    assert set(first.splits["dev"].sequences[0]) <= set(b"ACGT")
    assert (first.splits["dev"].sequences.lengths == 128).all()


def test_attainable_accuracy_lies_where_it_was_tuned():
    task = tasks.get("simulated_promoters", train=2, dev=2, test=5000)
    assert 0.93 < task.attainable["accuracy"] < 0.97
    assert abs(task.splits["test"].targets.mean() - 0.5) < 0.03


def test_likelihood_ratio_is_calibrated():
    """Among sequences whose log odds are near x, the share of class 1 must be sigmoid(x)."""
    model = _Model(128, 0.8, 0.5)
    bases, labels = model.sample(20000, np.random.default_rng(0))
    odds = model.log_odds(bases)
    for low in (-2.0, -1.0, 0.0, 1.0):
        inside = (odds > low) & (odds < low + 1)
        assert abs(labels[inside].mean() - (1 / (1 + np.exp(-odds[inside]))).mean()) < 0.04


def test_decoys_share_the_composition_of_promoters():
    bases, labels = _Model(128, 0.9, 1.0).sample(6000, np.random.default_rng(0))
    words = bases[:, :-3].astype(int) * 64 + bases[:, 1:-2] * 16 + bases[:, 2:-1] * 4 + bases[:, 3:]
    counts = np.zeros((len(bases), 256))
    np.add.at(counts, (np.arange(len(bases))[:, None], words), 1)
    promoters, decoys = counts[labels], counts[~labels]
    z = (promoters.mean(0) - decoys.mean(0)) / np.sqrt(promoters.var(0) / len(promoters) + decoys.var(0) / len(decoys))
    assert np.abs(z).max() < 4.5  # 256 words: standard normal values stay below this in 998 of 1000 seeds


@pytest.mark.parametrize("options", [{"length": 100}, {"train": 0}, {"consensus": 1.0}, {"decoys": 2.0}])
def test_bad_options(options):
    with pytest.raises(InputError, match="simulated_promoters"):
        tasks.get("simulated_promoters", **options)
