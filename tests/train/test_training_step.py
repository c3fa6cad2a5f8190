"""What one update does: accumulation, averages, frozen parameters, non-finite steps."""

import jax
import numpy as np
import programs
import pytest

from jaxgen.layers.variables import named_arrays


def arrays(state) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in named_arrays(state).items()}


def test_accumulation_changes_nothing():
    """The gradient is that of the whole batch, although rows of weight 0 and paddings are spread unevenly."""
    data = programs.batches("lm", 3)
    data[0]["weight"][:5] = 0
    runs = [programs.train(*programs.start("lm", programs.mesh(), accumulate=n), data)[1] for n in (1, 4)]
    for whole, parts in zip(*runs, strict=True):
        assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-5)
        assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
        assert parts["accuracy"] == pytest.approx(whole["accuracy"])
        assert parts["weight"] == whole["weight"]


def test_moving_average_is_what_evaluation_uses():
    program, state = programs.start("cnn", programs.mesh(), ema_decay=0.9)
    average = before = arrays(state.params)
    data = programs.batches("cnn", 3)
    step = programs.compile_step(program, state, data[0])
    for n, batch in enumerate(data):
        state, _ = step(state, programs.put_batch(program.mesh, batch))
        keep, now = min(0.9, (1 + n) / (10 + n)), arrays(state.params)
        average = {name: keep * average[name] + (1 - keep) * now[name] for name in now}
    found = arrays(state.inference_params())
    for name, expected in average.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)
    assert any((found[name] != before[name]).any() for name in found)


def test_frozen_parameters_have_no_moments_and_do_not_move():
    program, state = programs.start("classifier", programs.mesh(), freeze=("^backbone",))
    frozen, head = arrays(state.frozen), arrays(state.params)
    assert {name.split(".")[0] for name in frozen} == {"backbone"}
    assert not any("backbone" in name for name in arrays(state.opt_state))
    state, seen = programs.train(program, state, programs.batches("classifier", 3))
    assert {name: x.tobytes() for name, x in arrays(state.frozen).items()} == {name: x.tobytes() for name, x in frozen.items()}
    assert any((x != head[name]).any() for name, x in arrays(state.params).items())
    assert seen[-1]["loss"] != seen[0]["loss"]


def test_a_step_that_is_not_finite_changes_nothing_but_its_count():
    """Batch norm's running statistics would remember it; moments would too."""
    program, state = programs.start("cnn", programs.mesh(), ema_decay=0.9)
    data = programs.batches("cnn", 3)
    data[1]["weight"] = data[1]["weight"] * np.float32("nan")
    step = programs.compile_step(program, state, data[0])
    state, first = step(state, programs.put_batch(program.mesh, data[0]))
    kept = arrays(state)
    state, second = step(state, programs.put_batch(program.mesh, data[1]))
    after = arrays(state)
    assert not np.isfinite(second["loss"])
    assert (int(first["nan_steps"]), int(second["nan_steps"])) == (0, 1)
    changed = {name for name in kept if not np.array_equal(kept[name], after[name])}
    assert {name for name in changed if not name.startswith("ema.")} == {"step", "nan_steps"}
    state, third = step(state, programs.put_batch(program.mesh, data[2]))
    assert np.isfinite(third["loss"])
    assert all(np.isfinite(x).all() for x in arrays(state).values())


def test_rows_of_weight_zero_count_for_nothing():
    (batch,) = programs.batches("lm", 1)
    other = {name: x.copy() for name, x in batch.items()}
    other["tokens"][-1], other["targets"][-1] = 7, 8
    seen = [programs.train(*programs.start("lm", programs.mesh()), [data])[1][0] for data in (batch, other)]
    assert seen[0] == seen[1]


def test_initial_weights_depend_on_the_seed_alone():
    """Not on the mesh: a run may begin anywhere."""
    one = arrays(programs.start("lm", programs.mesh())[1])
    eight = arrays(programs.start("lm", programs.mesh(8, data=2, fsdp=2, tensor=2))[1])
    assert one.keys() == eight.keys()
    for name, x in one.items():
        np.testing.assert_allclose(eight[name], x, atol=1e-6, err_msg=name)


def test_dropout_differs_by_step_and_repeats():
    import dataclasses

    config = dataclasses.replace(programs.HYENADNA, embed_dropout=0.5)
    (batch,) = programs.batches("lm", 1)

    def two() -> list[float]:
        program, state = programs.start("lm", programs.mesh(), config=config, learning_rate=0.0)
        return [seen["loss"] for seen in programs.train(program, state, [batch, batch])[1]]

    first, second = two()
    assert first != second
    assert two() == [first, second]
    assert jax.config.jax_threefry_partitionable
