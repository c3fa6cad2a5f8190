"""Every part of `python -m benchmarks` runs at its smallest size. No timing is asserted; peers that are not installed are left out."""

import json
from pathlib import Path

import pytest

from benchmarks import long_range
from benchmarks.__main__ import PARTS, main, measure
from benchmarks.gpu import measure as measure_gpu
from benchmarks.harness import Contender, Goal, Note, Options, Row, compare, have, render

CONFIG = "configs/finetune.py"


@pytest.mark.parametrize("part", sorted(set(PARTS) - {"start"}))
def test_part_runs(part: str) -> None:
    rows, notes = measure([part], Options(repeats=1, smoke=True))
    assert rows or notes
    assert all(row.part == part and row.ours >= 0 and row.case for row in rows)
    if part in ("fft", "block"):
        assert all(bool(row.peer) == have("torch") for row in rows)
        assert {row.case.split()[0] for row in rows} == {"forward", "forward+backward"}
    if part == "block" and have("torch"):  # the part raises where outputs or gradients differ
        assert any("agree with torch" in note.text for note in notes)


def test_gpu_part_works_on_any_device() -> None:
    rows = [row for row in measure_gpu(Options(repeats=1, smoke=True), "cpu") if isinstance(row, Row)]
    assert {row.unit for row in rows} >= {"ms", "Mtokens/s"}
    assert any(row.case.startswith("bfloat16 forward+backward") for row in rows)


@pytest.mark.slow
def test_start_part_runs() -> None:
    rows, _ = measure(["start"], Options(repeats=1, smoke=True, config=CONFIG))
    assert [row.unit for row in rows] == ["s", "s", "s"]


def test_command_line_writes_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "bench.json"
    assert main(["--only=padding", "--smoke", f"--output={output}"]) == 0
    assert "simulated_promoters" in capsys.readouterr().out
    content = json.loads(output.read_text())
    assert content["machine"]["cores"] >= 1
    assert content["rows"][0]["goal"] == {"goal": "< 5", "met": True}


def test_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--only=blok"])
    assert raised.value.code == 2
    assert "block" in capsys.readouterr().err


def test_contenders_take_turns_and_ratios_point_the_right_way() -> None:
    turns: list[str] = []
    contenders = [Contender(name, lambda name=name: turns.append(name)) for name in ("ours", "theirs")]
    (row,) = compare("part", "case", contenders, repeats=2)
    assert turns == ["ours", "theirs"] * 3
    assert len(row.samples[0]) == 2
    faster = Row("p", "time", 1.0, "ms", "peer", 3.0, Goal("ratio", ">=", 2.0))
    more = Row("p", "rate", 300.0, "MB/s", "peer", 100.0, Goal("value", ">=", 400.0))
    assert (faster.ratio, more.ratio) == (3.0, 3.0)
    table = render([faster, more]).splitlines()
    assert table[2].endswith("pass")
    assert table[3].endswith("MISS")


def test_loss_of_a_peer_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.fft.have", lambda package: False)
    rows, notes = measure(["fft"], Options(repeats=1, smoke=True))
    assert all(not row.peer and row.ratio is None for row in rows)
    assert isinstance(notes[0], Note)
    assert "torch" in notes[0].text


def test_long_range_measures_every_length_and_says_what_failed(tmp_path, capsys):
    out = tmp_path / "long_range.json"
    assert long_range.main(["--models=mamba_smoke,nothing", "--modes=training", "--lengths=64,32", "--repeats=1", f"--out={out}"]) == 0
    results = json.loads(out.read_text())["results"]
    assert [(r["model"], r["length"]) for r in results] == [("mamba_smoke", 32), ("mamba_smoke", 64), ("nothing", 32)]
    assert all(r["seconds"] > 0 for r in results[:2])
    assert "nothing" in results[2]["failed"]
    assert "| 64 |" in capsys.readouterr().out
