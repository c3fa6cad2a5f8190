"""Records of a suite's task: written once, and never taken for those of other data."""

import json

import pytest

from jaxgen.config import load_config
from jaxgen.data.records import records_folder
from jaxgen.errors import InputError
from jaxgen.jobs import prepare


def run(tmp_path, task="gue/tf_0", data="a", **fields):
    overrides = {"workdir": str(tmp_path / "out"), "data.path": str(tmp_path / data), "compile_cache": "", **fields}
    return prepare.run(load_config(f"configs/prepare.py:{task}", [(name, str(value)) for name, value in overrides.items()]))


@pytest.fixture
def written(tmp_path):
    for folder in ("a/tf_0", "a/tf_1", "b/tf_0"):
        (tmp_path / folder).mkdir(parents=True)
        for split in ("train", "test"):
            (tmp_path / folder / f"{split}.csv").write_text("sequence,label\n" + "ACGT,0\nTTTT,1\n" * 10)
    assert run(tmp_path) == 0
    return tmp_path


def test_the_same_records_are_there_already(written, capsys):
    assert run(written, task="gue/human_tf_0", data="b/../a") == 0
    assert "records are there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": "gue/tf_1"}, "name='gue/tf_0', not 'gue/tf_1'"),
        ({"data": "b"}, "path='.*/a', not '.*/b'"),
        ({"data.split_seed": 5}, "split_seed=42, not 5"),
    ],
)
def test_records_of_other_data_are_refused(written, other, message):
    with pytest.raises(InputError, match=f"out holds records with {message}; choose another --workdir or delete it"):
        run(written, **other)


def test_a_suite_is_refused_before_anything_is_written(written):
    (written / "out/jaxgen_task").rename(written / "jaxgen_task")
    (written / "out/tf_1").mkdir()
    (written / "jaxgen_task").rename(written / "out/tf_1/jaxgen_task")
    with pytest.raises(InputError, match="out/tf_1 holds records with name='gue/tf_0'"):
        run(written, task="gue")
    assert not (written / "out/tf_0").exists()


def test_records_of_earlier_versions_are_known_by_their_name(written):
    file = records_folder(written / "out") / "metadata.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in meta.items() if key not in ("path", "split_seed")}))
    assert run(written) == 0
    with pytest.raises(InputError, match="name='gue/tf_0'"):
        run(written, task="gue/tf_1")
