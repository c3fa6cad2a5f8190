import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from jaxgen import tokenizers
from jaxgen.data import tasks
from jaxgen.data.pipeline import table_sources
from jaxgen.data.random import RowRandom
from jaxgen.data.records import from_array_record, to_array_record
from jaxgen.errors import InputError


def small(**options):
    return tasks.get("simulated_promoters", train=30, dev=5, test=5, **options)


def test_round_trip_with_random_access(tmp_path, capsys):
    task = small()
    to_array_record(task, tmp_path)
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["jaxgen_task"]
    again = from_array_record(tmp_path)
    assert (again.name, again.target, again.simulated, again.attainable) == (task.name, task.target, True, task.attainable)
    for name, examples in task.splits.items():
        assert len(again.splits[name]) == len(examples)
        for i in (3, 0, -1):
            assert again.splits[name][i]["sequence"] == examples[i]["sequence"]
            assert again.splits[name][i]["target"] == examples[i]["target"]
    tokenizer, random = tokenizers.get("caduceus"), RowRandom(0, 0, 0)
    batches = [table_sources(t, tokenizer)["dev"].batch(np.arange(5), random) for t in (task, again)]
    for key in batches[0]:
        np.testing.assert_array_equal(batches[0][key], batches[1][key])


def test_regression_targets(tmp_path):
    (tmp_path / "t.csv").write_text("sequence,label\n" + "".join(f"ACGT,{i / 8}\n" for i in range(10)))
    task = tasks.get("table", path=str(tmp_path / "t.csv"), kind="regression")
    to_array_record(task, tmp_path / "records")
    again = from_array_record(tmp_path / "records").splits["train"]
    np.testing.assert_array_equal(again.targets, task.splits["train"].targets)
    assert again[0]["target"].dtype == np.float32


def test_the_published_length_comes_back_and_earlier_records_have_none(tmp_path):
    folder = to_array_record(dataclasses.replace(small(), length=512), tmp_path)
    assert from_array_record(tmp_path).length == 512
    meta = json.loads((folder / "metadata.json").read_text())
    del meta["length"]
    (folder / "metadata.json").write_text(json.dumps(meta))
    assert from_array_record(tmp_path).length == 0


def test_existing_or_missing_records(tmp_path):
    with pytest.raises(InputError, match="no records"):
        from_array_record(tmp_path)
    folder = to_array_record(small(), tmp_path)
    with pytest.raises(InputError, match="already holds records"):
        to_array_record(small(), tmp_path)
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match="damaged records"):
        from_array_record(tmp_path)


def test_tensorflow_is_not_imported(tmp_path):
    code = f"""
import sys
from jaxgen.data import tasks
from jaxgen.data.records import from_array_record, to_array_record
to_array_record(tasks.get("simulated_promoters", train=4, dev=2, test=2), {str(tmp_path)!r})
from_array_record({str(tmp_path)!r}).splits["train"][0]
loaded = {{name.split(".")[0] for name in sys.modules}} & {{"tensorflow", "torch"}}
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
