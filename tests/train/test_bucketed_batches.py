"""Padding of another length changes neither predictions nor their order."""

import json

import helpers
import numpy as np
import programs

from jaxgen import tokenizers
from jaxgen.data.buckets import bucket_lengths
from jaxgen.data.pipeline import TableSource, eval_batches
from jaxgen.data.sequences import Sequences
from jaxgen.data.tasks.base import Examples
from jaxgen.train.evaluate import PredictionEvaluator


def test_predictions_are_those_of_one_length_in_the_order_of_the_examples():
    rng = np.random.default_rng(0)
    texts = [bytes(rng.choice(list(b"ACGT"), n).tolist()) for n in rng.integers(20, programs.LENGTH + 1, 45)]
    examples = Examples(Sequences.from_list(texts), rng.integers(0, 2, 45).astype(np.int32))
    data = TableSource(examples, tokenizers.get("character"))
    program, state = programs.start("classifier", programs.mesh())
    buckets = bucket_lengths(data.lengths, 3)
    assert len(buckets) == 3
    results = [
        PredictionEvaluator(program, lambda b=b: eval_batches(data, 16, buckets=b), ("accuracy",)).predictions(state) for b in ((), buckets)
    ]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_array_equal(results[1][1], examples.targets)
    np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-6)
    assert abs(results[0][2] - results[1][2]) < 1e-6


def test_a_run_compiles_once_per_length_and_says_what_is_padding(tmp_path, run_here):
    rng = np.random.default_rng(0)
    for split, n in (("train", 64), ("dev", 16), ("test", 16)):
        rows = [f"{rng.choice(helpers.BASES, length).tobytes().decode()},{i % 2}" for i, length in enumerate(rng.choice([20, 40, 96], n))]
        (tmp_path / f"{split}.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")
    ended = run_here(
        [*helpers.hyenadna(tmp_path, data__rc_aug="false", model__config__n_layer=1, train__steps=6), f"--workdir={tmp_path / 'run'}"]
    )
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["buckets"] == [24, 40, 96]
    assert result["pad_fraction"] < 0.05
    for tokens in (24 * 16, 40 * 16, 96 * 16):
        assert ended.err.count(f"step for {tokens:,} tokens") == 1
