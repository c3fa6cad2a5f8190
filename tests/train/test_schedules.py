import jax
import numpy as np
import optax
import pytest

from jaxgen.errors import InputError
from jaxgen.train import schedules


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "cosine", "warmup_steps": 10, "min_lr": 1e-4}, optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100, 1e-4)),
        ({"name": "cosine"}, optax.cosine_decay_schedule(1e-2, 100)),
        ({"name": "linear"}, optax.linear_schedule(1e-2, 0.0, 100)),
        ({"name": "linear", "total_steps": 50, "min_lr_fraction": 0.1}, optax.linear_schedule(1e-2, 1e-3, 50)),
        ({"name": "constant"}, optax.constant_schedule(1e-2)),
        ({"name": "constant", "warmup_fraction": 0.1}, optax.linear_schedule(0.0, 1e-2, 10)),
        ({}, optax.constant_schedule(1e-2)),
    ],
)
def test_agrees_with_optax(config, expected):
    steps = np.arange(120)
    ours = jax.vmap(schedules.from_config(config, 1e-2, 100))(steps)
    np.testing.assert_allclose(ours, [float(expected(step)) for step in steps], rtol=1e-5, atol=1e-9)


def test_linear_is_that_of_hugging_face():
    schedule = schedules.from_config({"name": "linear", "warmup_steps": 50}, 3e-5, 400)
    for step in (0, 1, 49, 50, 51, 399, 400, 500):
        share = step / 50 if step < 50 else max(0.0, (400 - step) / (400 - 50))
        assert float(schedule(step)) == pytest.approx(3e-5 * share, rel=1e-5, abs=1e-12)


def test_config_reaches_the_published_recipes():
    pretrain = {"name": "cosine_timm", "warmup_fraction": 0.1, "warmup_init": 1e-6, "min_lr": 1e-4, "warmup_prefix": True}
    same = schedules.make("cosine_timm", lr=8e-3, t_initial=900, warmup_prefix=True, warmup_lr_init=1e-6, warmup_t=100.0, lr_min=1e-4)
    finetune = {"name": "cosine_timm", "warmup_fraction": 0.01, "warmup_init": 1e-6, "min_lr_fraction": 0.1}
    also = schedules.make("cosine_timm", lr=8e-3, t_initial=1000, warmup_lr_init=1e-6, warmup_t=10.0, lr_min=8e-4)
    for config, expected in ((pretrain, same), (finetune, also)):
        ours = schedules.from_config(config, 8e-3, 1000)
        np.testing.assert_allclose(jax.vmap(ours)(np.arange(1100)), jax.vmap(expected)(np.arange(1100)), rtol=1e-6)


def test_accurate_near_the_end_of_a_long_run():
    steps = np.arange(999_000, 1_000_001)
    exact = 1e-3 * np.sin(0.5 * np.pi * (1_000_000 - steps) / 1e6) ** 2
    np.testing.assert_allclose(jax.vmap(schedules.from_config({"name": "cosine"}, 1e-3, 1_000_000))(steps), exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"warmup_step": 3}, "did you mean 'warmup_steps'"),
        ({"name": "linear", "warmup_steps": 3, "warmup_fraction": 0.1}, "keep one"),
        ({"name": "linear", "warmup_steps": 100}, "leaves nothing"),
        ({"name": "constant", "min_lr": 1e-5}, "no meaning"),
        ({"name": "linear", "warmup_prefix": True}, "belongs to cosine_timm"),
    ],
)
def test_wrong_config(config, words):
    with pytest.raises(InputError) as error:
        schedules.from_config(config, 1e-3, 100)
    assert words in str(error.value)
