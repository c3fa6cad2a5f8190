"""The range of every number of a config, and paths."""

import os

import pytest
from ml_collections import ConfigDict

from jaxgen.config import available_configs, load_config, settled
from jaxgen.errors import InputError
from jaxgen.fields import LARGEST, PATHS, RANGES

COMMON = "configs/common.py"


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, value in config.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
    return found


def test_every_number_has_a_range_and_every_range_a_field():
    numbers = set()
    for field, value in leaves(load_config(COMMON)).items():
        first = value[0] if isinstance(value, tuple) and value else value
        numbers |= {field} if isinstance(first, int | float) and not isinstance(first, bool) else set()
    assert numbers == set(RANGES)
    assert set(PATHS) <= set(leaves(load_config(COMMON)))


@pytest.mark.parametrize("name", sorted(available_configs()))
def test_the_configs_lie_in_the_ranges(name):
    load_config(name)


@pytest.mark.parametrize("field", sorted(RANGES))
def test_both_ends(field):
    """The ends are taken unless they are excluded, and what lies beyond them is refused by name, value and range."""
    found, number = RANGES[field], leaves(load_config(COMMON))[field]
    number = number[0] if isinstance(number, tuple) else number
    pair = field == "train.betas"
    for end, excluded, beyond in ((found.low, found.above, -1), (found.high, found.below, 1)):
        values = [int(end) + beyond if end <= LARGEST else 2 * end] + ([end] if excluded else [])
        for value in values:
            with pytest.raises(InputError) as error:
                load_config(COMMON, [(field, f"{value},{value}" if pair else str(value))])
            assert str(error.value).startswith(f"{field}=")
            assert str(value) in str(error.value)
            assert f"must be {found}" in str(error.value)
        if not excluded:
            load_config(COMMON, [(field, f"{int(end)},{int(end)}" if pair else str(int(end) if isinstance(number, int) else end))])


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("seed", "99999999999999999999", "seed=99999999999999999999 must be at least 0 and at most 2147483647"),
        ("train.learning_rate", "nan", "train.learning_rate=nan must be at least 0"),
        ("train.learning_rate", "inf", "train.learning_rate=inf must be at least 0 and finite"),
        ("train.betas", "0.9", "train.betas=0.9 must be 2 numbers separated by commas, not 1"),
        ("train.betas", "0.9,0.99,0.999", "not 3"),
        ("train.betas", "0.9,2", "train.betas=0.9,2.0 must be at least 0 and below 1"),
        ("variants.shifts", "", "variants.shifts is empty"),
        ("baseline.strengths", "0", "baseline.strengths=0.0 must be above 0"),
    ],
)
def test_what_is_said(field, text, said):
    with pytest.raises(InputError, match=said):
        load_config(COMMON, [(field, text)])


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fields = [(field, "~/x,~/y" if field == "paths" else "~/x") for field in PATHS]
    found = leaves(load_config(COMMON, fields))
    assert {field: found[field] for field in PATHS} == dict.fromkeys(PATHS, f"{tmp_path}/x") | {"paths": (f"{tmp_path}/x", f"{tmp_path}/y")}
    os.symlink(os.path.abspath("configs"), tmp_path / "configs")
    assert load_config("~/configs/verify.py").job == "verify"
    assert load_config(COMMON, [("init_from", "gs://a/~b")]).init_from == "gs://a/~b"


def test_a_config_of_somebody_else_may_lack_fields():
    assert settled(ConfigDict({"job": "x", "seed": 1, "data": {}})).seed == 1
    with pytest.raises(InputError, match="seed=-1"):
        settled(ConfigDict({"job": "x", "seed": -1}))
