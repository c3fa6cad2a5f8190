"""Config files, variants and overrides."""

from pathlib import Path

import pytest

from jaxgen.config import available_configs, load_config, split_variant
from jaxgen.errors import InputError
from jaxgen.main import available_jobs, parse_flags

COMMON = "configs/common.py"


def value(field: str, text: str):
    node = load_config(COMMON, [(field, text)])
    for name in field.split("."):
        node = node[name]
    return node


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("seed", "7", 7),
        ("train.steps", "1e3", 1000),
        ("train.steps", "10_000", 10_000),
        ("train.learning_rate", "3", 3.0),
        ("train.betas", "0.9,0.95", (0.9, 0.95)),
        ("train.betas", "(0.9, 0.95)", (0.9, 0.95)),
        ("model.freeze", "^backbone,^head", ("^backbone", "^head")),
        ("paths", "a,b", ("a", "b")),
        ("paths", "", ()),
        ("paths", "[a,b]", ("a", "b")),
        ("paths", "['a,b', 'c']", ("a,b", "c")),
        ("variants.shifts", "[0]", (0,)),
        ("model.freeze", "^backbone.*(mixer|mlp)", ("^backbone.*(mixer|mlp)",)),
        ("model.freeze", "(a)|(b)", ("(a)|(b)",)),
        ("model.freeze", "[ab]", ("[ab]",)),
        ("model.freeze", "a{1,2},b", ("a{1,2}", "b")),
        ("model.freeze", "(^a,^b)", ("^a", "^b")),
        ("model.freeze", "(", ("(",)),
        ("model.freeze", r"\(,b", (r"\(", "b")),
        ("benchmark.settings", '"*@*:train.betas=0.9,0.95",b', ("*@*:train.betas=0.9,0.95", "b")),
        ("benchmark.settings", "*@*:train.betas=(0.9,0.95),b", ("*@*:train.betas=(0.9,0.95)", "b")),
        ("data.rc_aug", "True", True),
        ("data.rc_aug", "0", False),
        ("workdir", "gs://bucket/run=1", "gs://bucket/run=1"),
        ("model.config.n_layer", "3", 3),
        ("model.config.tie_embeddings", "false", False),
        ("model.config.dtype", "bfloat16", "bfloat16"),
    ],
)
def test_values_take_the_type_of_the_default(field, text, expected):
    found = value(field, text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("name", sorted(available_configs()))
def test_every_config_says_what_it_is_and_names_a_job(name):
    config = load_config(name)
    assert len(available_configs()[name]) > 20
    assert config.job in {*available_jobs(), ""}
    assert config.job or name == COMMON
    with pytest.raises(InputError, match="variant"):
        load_config(f"{name}:a,b,c,d,e")


def test_every_field_has_a_comment():
    lines = [line for line in Path(COMMON).read_text().splitlines() if line.strip().startswith("c.") and "= ConfigDict()" not in line]
    assert len(lines) > 50
    assert [line for line in lines if "  # " not in line] == []


def test_variants():
    assert load_config("configs/finetune.py:cnn,table").model.name == "cnn"
    assert load_config("configs/finetune.py:,table").data.task == "table"
    assert split_variant("", "model", "task") == ["", ""]
    assert split_variant(" a , b ", "model", "task") == ["a", "b"]


def test_a_config_is_locked():
    with pytest.raises(AttributeError):
        load_config(COMMON).train.lerning_rate = 1


def test_flags():
    spec, overrides = parse_flags(["--config=a.py:b", "--config.seed", "3", "--workdir", "x"])
    assert spec == "a.py:b"
    assert overrides == [("seed", "3"), ("workdir", "x")]
    wrongs = [["--config"], ["--config=a", "--seed=1"], ["--config=a", "stray"], ["--config=a", "--workdir"]]
    for wrong in (*wrongs, ["--config=a", "--workdir", "--config.seed=3"]):
        with pytest.raises(InputError):
            parse_flags(wrong)


def test_a_config_of_my_own(tmp_path):
    """Anywhere on the disk; mistakes in it are located."""
    file = tmp_path / "mine.py"
    file.write_text("from configs import finetune\ndef get_config(variant=''):\n    return finetune.get_config('cnn,table')\n")
    assert load_config(str(file)).job == "finetune"
    file.write_text("def get_config(variant=''):\n    return (\n")
    with pytest.raises(InputError, match=r"mine.py:\d"):
        load_config(str(file))
    file.write_text("x = 1\n")
    with pytest.raises(InputError, match="get_config"):
        load_config(str(file))
    file.write_text("from configs import finetnue\ndef get_config(variant=''):\n    return finetnue\n")
    with pytest.raises(InputError, match=r"mine.py:1: .*finetnue"):
        load_config(str(file))
    file.write_text("\ndef get_config(variant=''):\n    return commn.get_config()\n")
    with pytest.raises(InputError, match=r"mine.py:3: NameError: name 'commn' is not defined"):
        load_config(str(file))
    file.write_text("from configs import common\ndef get_config(variant=''):\n    common.get_config()\n")
    with pytest.raises(InputError, match=r"mine.py: get_config\(variant\) returned a NoneType"):
        load_config(str(file))
