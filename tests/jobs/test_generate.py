"""Continuations from flags to a FASTA."""

import helpers
import pytest

TINY = {"model__config__d_model": 16, "model__config__n_layer": 2, "generate__tokens": 20}


def records(workdir) -> dict[str, str]:
    parts = (workdir / "generated.fa").read_text().split(">")[1:]
    return {part.split()[0]: "".join(part.splitlines()[1:]) for part in parts}


def generate(model, workdir, **fields) -> list[str]:
    return [f"--config=configs/generate.py:{model}", f"--workdir={workdir}", *helpers.flags(**TINY | fields)]


def test_prompts_of_a_table(tmp_path, run_here):
    prompts = {"a": "ACGT" * 20, "b": "GATTACA", "c": "T" * 66}
    (tmp_path / "x.csv").write_text("gene_id,sequence\n" + "".join(f"{name},{text}\n" for name, text in prompts.items()))
    fields = {"data__path": tmp_path / "x.csv", "generate__samples": 2, "generate__batch_size": 4}
    ended = run_here(generate("mamba_smoke", tmp_path / "run", **fields))
    assert ended.code == 0, ended.err
    made = records(tmp_path / "run")
    assert list(made) == [f"{name}_{i}" for name in prompts for i in (1, 2)]
    for name, text in made.items():
        assert text.startswith(prompts[name[0]])
        assert len(text) == len(prompts[name[0]]) + 20
        assert not set(text) - set("ACGT")
    assert made["a_1"] != made["a_2"]
    ended = run_here(generate("mamba_smoke", tmp_path / "again", **fields, mesh__data=8), devices=8)
    assert ended.code == 0, ended.err
    assert records(tmp_path / "again") == made  # on eight devices


@pytest.mark.slow
def test_a_prompt_of_the_config(tmp_path, run_here):
    fields = {"model__config__d_inner": 32, "model__config__filter_order": 8, "generate__temperature": 0, "generate__samples": 2}
    ended = run_here(generate("hyenadna_smoke", tmp_path / "run", **fields, generate__prompt="ACGTACGA", generate__top_k=2))
    assert ended.code == 0, ended.err
    first, second = records(tmp_path / "run").values()
    assert first == second
    assert len(first) == 28


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("caduceus_ps_smoke", {"generate__prompt": "A"}, "'caduceus_ps' is not causal"),
        ("mamba_smoke", {}, "no prompt: set --config.generate.prompt"),
        ("mamba_smoke", {"generate__prompt": "A", "generate__tokens": 0}, "generate.tokens=0 must be at least 1"),
        ("mamba_smoke", {"generate__prompt": "hello"}, "generate.prompt='hello': letter 2, 'e', is not a base"),
        ("mamba_smoke", {"generate__prompt": "ÄCGT"}, "letter 1, 'Ä', is not a base"),
        ("mamba_smoke", {"generate__prompt": "A", "data__path": "x.fa"}, "both set"),
        ("mamba_smoke", {"generate__prompt": "A", "generate__temperature": -1.0}, "generate.temperature=-1.0"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, run_here, model, fields, message):
    ended = run_here(generate(model, tmp_path / "run", **fields))
    assert ended.code == 2, ended.err
    assert message in ended.error
    assert not (tmp_path / "run").exists()


def test_a_workdir_holds_one_run(tmp_path, run_here):
    fields = {"generate__prompt": "ACGT", "generate__tokens": 4}
    assert run_here(generate("mamba_smoke", tmp_path, **fields)).code == 0
    before = (tmp_path / "result.json").read_bytes()
    assert "finished already" in run_here(generate("mamba_smoke", tmp_path, **fields)).err
    ended = run_here(generate("mamba_smoke", tmp_path, **fields | {"generate__tokens": 5}))
    assert ended.code == 2
    assert "config.generate.tokens=4, not 5" in ended.error
    assert (tmp_path / "result.json").read_bytes() == before
