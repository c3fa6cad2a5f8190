"""One device and eight, however they are arranged: the same losses, parameters in shards, nothing gathered that need not be."""

import re

import jax
import numpy as np
import programs
import pytest

from jaxgen.errors import InputError
from jaxgen.layers.variables import named_arrays
from jaxgen.train.sharding import make_mesh, put_batch

STEPS = 4
MESHES = {
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "tensor=8": {"tensor": 8},
    "data=4,tensor=2": {"data": 4, "tensor": 2},
    "data=2,fsdp=2,tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence=8": {"sequence": 8},
    "data=2,fsdp=2,sequence=2": {"data": 2, "fsdp": 2, "sequence": 2},
    "tensor=4,sequence=2": {"tensor": 4, "sequence": 2},
}
_reference = {}


def reference(kind: str) -> list[dict[str, float]]:
    if kind not in _reference:
        _reference[kind] = programs.train(*programs.start(kind, programs.mesh()), programs.batches(kind, STEPS))[1]
    return _reference[kind]


# Compiling costs seconds a case; the others run with `make test-slow`.
QUICK = {("lm", "data=8"), ("lm", "data=2,fsdp=2,tensor=2"), ("lm", "data=2,fsdp=2,sequence=2"), ("cnn", "tensor=4,sequence=2")}
CASES = [(kind, name) for kind in ("lm", "cnn") for name in MESHES] + [("classifier", "data=2,fsdp=2,sequence=2")]


@pytest.mark.parametrize(("kind", "name"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES])
def test_same_losses_as_one_device(kind, name):
    mesh = programs.mesh(8, **MESHES[name])
    _, seen = programs.train(*programs.start(kind, mesh), programs.batches(kind, STEPS))
    for ours, theirs in zip(seen, reference(kind), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours.get("accuracy") == pytest.approx(theirs.get("accuracy"))
    assert len({ours["loss"] for ours in seen}) == STEPS


def shards(array: jax.Array) -> tuple[int, ...]:
    """Into how many parts each axis is cut."""
    (shape,) = {shard.data.shape for shard in array.addressable_shards}
    return tuple(whole // part for whole, part in zip(array.shape, shape))


@pytest.mark.parametrize(
    ("sizes", "name", "expected"),
    [
        ({"fsdp": 8}, "backbone.blocks.fc1.kernel", (1, 8, 1)),
        ({"fsdp": 8}, "backbone.blocks.fc1.bias", (1, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "backbone.blocks.fc1.kernel", (1, 2, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "backbone.blocks.mixer.out_proj.kernel", (1, 2, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "backbone.blocks.fc1.bias", (1, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "backbone.blocks.norm1.scale", (1, 2)),
    ],
)
def test_parameters_and_moments_are_in_shards(sizes, name, expected):
    mesh = programs.mesh(8, **sizes)
    arrays = named_arrays(programs.start("lm", mesh, ema_decay=0.9)[1])
    placed = {key: shards(x) for key, x in arrays.items() if key.endswith(name)}
    assert len(placed) == 4  # parameter, average, two moments
    assert set(placed.values()) == {expected}


def gathered(hlo: str) -> list[tuple[int, ...]]:
    """Shapes that the all-gathers of a compiled program produce."""
    found = re.findall(r"= \(?\w+\[([\d,]*)\][^\n]*? all-gather(?:-start)?\(", hlo)
    return [tuple(int(size) for size in shape.split(",") if size) for shape in found]


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_rows_stay_on_their_devices_around_the_fft(remat):
    """XLA alone would gather the batch before a transform."""
    import dataclasses

    mesh = programs.mesh(8, data=8)
    program, state = programs.start("lm", mesh, config=dataclasses.replace(programs.HYENADNA, remat=remat))
    hlo = programs.compile_step(program, state, programs.batches("lm", 1)[0]).as_text()
    assert "fft" in hlo
    assert gathered(hlo) == []
    assert "all-to-all" not in hlo


@pytest.mark.slow
def test_a_sharded_length_is_never_whole_for_the_whole_batch():
    """Under `sequence`, a transform sees all positions of a share of the channels; only small arrays (filters) are gathered."""
    mesh = programs.mesh(8, data=4, sequence=2)
    program, state = programs.start("lm", mesh)
    hlo = programs.compile_step(program, state, programs.batches("lm", 1)[0]).as_text()
    whole = programs.ROWS * programs.LENGTH * programs.HYENADNA.d_model
    assert all(np.prod(shape) < whole for shape in gathered(hlo)), gathered(hlo)


@pytest.mark.slow
def test_memory_of_fsdp_is_a_share():
    """Arguments of the compiled step, per device: parameters, moments and batch."""
    sizes = {}
    for n, name in ((1, "data"), (8, "fsdp")):
        program, state = programs.start("lm", programs.mesh(n, **{name: n}))
        analysis = programs.compile_step(program, state, programs.batches("lm", 1)[0]).memory_analysis()
        sizes[name] = analysis.argument_size_in_bytes
    assert sizes["fsdp"] < 0.6 * sizes["data"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "there are 8"),
        ({"data": -1, "fsdp": 3}, "needs 3 devices"),
        ({"data": -1, "fsdp": -1}, "at most one -1"),
        ({"data": 0}, "must be positive"),
        ({"data": 16}, "needs 16 devices"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | sizes)


def test_minus_one_is_the_rest():
    assert dict(make_mesh({"data": -1, "fsdp": 2, "tensor": 2, "sequence": 1}).shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}


def test_rows_that_do_not_divide():
    with pytest.raises(InputError, match="12 rows do not divide over 8"):
        put_batch(programs.mesh(8, data=8), {"tokens": np.zeros((12, 4), np.int32)})


def test_every_row_reaches_one_device_in_order():
    mesh = programs.mesh(8, data=2, fsdp=2, tensor=2)
    tokens = np.arange(8 * 4, dtype=np.int32).reshape(8, 4)
    placed = put_batch(mesh, {"tokens": tokens, "target": tokens[:, 0]})
    np.testing.assert_array_equal(placed["tokens"], tokens)
    assert shards(placed["tokens"]) == (4, 1)
    assert shards(placed["target"]) == (4,)
