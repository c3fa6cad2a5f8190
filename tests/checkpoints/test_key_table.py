import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import BFLOAT16

from jaxgen.checkpoints.key_table import CONV, LINEAR, KeyTableError, Row, current_norm_names, export, load, strip_prefix, unwrapped
from jaxgen.errors import InputError

TABLE = (
    Row("embed.weight", "embedding", also_public=("lm_head.weight",)),
    Row("layers.{i}.in_proj.weight", "blocks.in_proj.kernel", LINEAR),
    Row("layers.{i}.in_proj.bias", "blocks.in_proj.bias"),
    Row("layers.{i}.conv1d.weight", "blocks.conv.kernel", CONV),
    Row("layers.{i}.filter.z", "blocks.filter.z", "1 l e -> l e"),
    Row("layers.{i}.filter.0.freq", "blocks.filter.freq", "1 w -> w", also_public=("layers.{i}.filter.1.freq", "layers.{i}.filter.2.freq")),
    Row("layers.{i}.calls", "blocks.calls"),
    Row("layers.{i}.inv_freq", None),
    Row("layers.{a}.attn.Wqkv.weight", ("attn.{a}.q.kernel", "attn.{a}.k.kernel", "attn.{a}.v.kernel"), LINEAR, axis=1),
    Row(("layers.{a}.gate.weight", "layers.{a}.up.weight"), "attn.{a}.gate_up.kernel", LINEAR, axis=-1),
    Row("layers.{i}.mamba_{d}.A_log", "blocks.mamba.A_log"),
    Row("heads.weight", "heads.kernel", "(h d) c -> c h d"),
    Row("score.weight", "score.kernel", LINEAR, tied_to="heads.weight"),
)
SIZES = {"i": 3, "a": (1, 2), "d": ("fwd", "rev")}


def public_tensors(seed=0):
    rng = np.random.default_rng(seed)

    def x(*shape):
        return rng.normal(size=shape).astype(np.float32)

    tensors = {"embed.weight": x(16, 8), "lm_head.weight": None, "heads.weight": x(6, 8), "score.weight": x(6, 8)}
    tensors["lm_head.weight"] = tensors["embed.weight"]
    for i in range(3):
        p = f"layers.{i}."
        tensors |= {p + "in_proj.weight": x(24, 8), p + "in_proj.bias": x(24), p + "conv1d.weight": x(24, 1, 3), p + "filter.z": x(1, 5, 4)}
        freq = x(1, 7)
        tensors |= {f"{p}filter.{k}.freq": freq for k in range(3)}
        tensors |= {p + "calls": np.array(i, np.int64), p + "inv_freq": x(4)}
        tensors |= {p + "mamba_fwd.A_log": x(6, 2).astype(BFLOAT16), p + "mamba_rev.A_log": x(6, 2).astype(BFLOAT16)}
    for a in (1, 2):
        tensors |= {f"layers.{a}.attn.Wqkv.weight": x(16, 8), f"layers.{a}.gate.weight": x(9, 8), f"layers.{a}.up.weight": x(9, 8)}
    return tensors


SHAPES = {
    "embedding": (16, 8),
    "blocks.in_proj.kernel": (3, 8, 24),
    "blocks.in_proj.bias": (3, 24),
    "blocks.conv.kernel": (3, 3, 1, 24),
    "blocks.filter.z": (3, 5, 4),
    "blocks.filter.freq": (3, 7),
    "blocks.calls": (3,),
    **{f"attn.{a}.q.kernel": (8, 8) for a in (1, 2)},
    **{f"attn.{a}.{n}.kernel": (8, 4) for a in (1, 2) for n in "kv"},
    **{f"attn.{a}.gate_up.kernel": (8, 18) for a in (1, 2)},
    "blocks.mamba.A_log": (3, 2, 6, 2),
    "heads.kernel": (8, 2, 3),
    "score.kernel": (8, 6),
}


def test_load_moves_every_tensor():
    tensors = public_tensors()
    params = load(tensors, TABLE, SHAPES, sizes=SIZES)
    assert list(params) == list(SHAPES)
    assert {name: x.shape for name, x in params.items()} == SHAPES
    np.testing.assert_array_equal(params["blocks.in_proj.kernel"][1], tensors["layers.1.in_proj.weight"].T)
    np.testing.assert_array_equal(params["blocks.conv.kernel"][2, :, 0], tensors["layers.2.conv1d.weight"][:, 0].T)
    np.testing.assert_array_equal(params["blocks.filter.z"][0], tensors["layers.0.filter.z"][0])
    np.testing.assert_array_equal(params["blocks.filter.freq"][2], tensors["layers.2.filter.0.freq"][0])
    assert params["blocks.calls"].tolist() == [0, 1, 2]
    assert params["blocks.calls"].dtype == np.int64
    fused = tensors["layers.2.attn.Wqkv.weight"]
    for name, rows in (("q", fused[:8]), ("k", fused[8:12]), ("v", fused[12:])):
        np.testing.assert_array_equal(params[f"attn.2.{name}.kernel"], rows.T)
    gate_up = np.concatenate([tensors["layers.1.gate.weight"], tensors["layers.1.up.weight"]]).T
    np.testing.assert_array_equal(params["attn.1.gate_up.kernel"], gate_up)
    np.testing.assert_array_equal(params["blocks.mamba.A_log"][1, 1], tensors["layers.1.mamba_rev.A_log"])
    np.testing.assert_array_equal(params["heads.kernel"][:, 1, 2], tensors["heads.weight"][5])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_round_trip_is_bit_exact(seed):
    tensors = public_tensors(seed)
    back = export(load(tensors, TABLE, SHAPES, sizes=SIZES), TABLE, sizes=SIZES, duplicates=True)
    assert sorted(back) == sorted(name for name in tensors if "inv_freq" not in name)
    for name, x in back.items():
        assert x.dtype == tensors[name].dtype
        assert x.shape == tensors[name].shape
        assert x.tobytes() == tensors[name].tobytes()
    once = export(load(back, TABLE, SHAPES, sizes=SIZES), TABLE, sizes=SIZES)
    assert sorted(back.keys() - once.keys()) == sorted(
        ["lm_head.weight", *(f"layers.{i}.filter.{k}.freq" for i in range(3) for k in (1, 2))]
    )
    again = load(once, TABLE, SHAPES, sizes=SIZES)
    assert all(x.tobytes() == load(tensors, TABLE, SHAPES, sizes=SIZES)[name].tobytes() for name, x in again.items())


@st.composite
def layouts(draw):
    """A random layout and a shape of ours that it describes."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    sizes = {name: draw(st.integers(1, 4)) for name in names}
    left, ours = draw(st.permutations(names)), list(names)
    groups, rest = [], list(left)
    while rest:
        n = draw(st.integers(1, len(rest)))
        groups.append(f"({' '.join(rest[:n])})" if n > 1 else rest[0])
        rest = rest[n:]
    for side in (groups, ours):
        for _ in range(draw(st.integers(0, 2))):
            side.insert(draw(st.integers(0, len(side))), "1")
    return f"{' '.join(groups)} -> {' '.join(ours)}", tuple(sizes.get(name, 1) for name in ours)


@settings(max_examples=80, deadline=None)
@given(layouts(), st.integers(0, 3))
def test_every_layout_goes_both_ways(layout, n_layer):
    text, shape = layout
    row = Row("x.{i}.w", "x.w", text)
    params = {"x.w": np.arange(n_layer * int(np.prod(shape))).reshape(n_layer, *shape)} if n_layer else {}
    public = export(params, [row], sizes={"i": n_layer})
    assert len(public) == n_layer
    back = load(public, [row], {name: x.shape for name, x in params.items()}, sizes={"i": n_layer})
    assert all(np.array_equal(back[name], x) for name, x in params.items())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 1), st.data())
def test_fused_and_split_names_go_both_ways(n_public, n_ours, width, axis, data):
    public = tuple(f"p{k}.{{i}}" for k in range(n_public))
    row = Row(public, tuple(f"o{k}" for k in range(n_ours)), "x y -> y x", axis=axis)
    cuts = data.draw(st.lists(st.integers(1, 5), min_size=n_ours, max_size=n_ours))
    cuts[0] += -sum(cuts) % n_public
    shapes = {f"o{k}": (2, *np.insert([width], axis, cut).tolist()) for k, cut in enumerate(cuts)}
    params = {name: np.random.default_rng(k).normal(size=shape) for k, (name, shape) in enumerate(shapes.items())}
    tensors = export(params, [row], sizes={"i": 2})
    assert len(tensors) == 2 * n_public
    back = load(tensors, [row], shapes, sizes={"i": 2})
    assert all(np.array_equal(back[name], x) for name, x in params.items())


def test_all_problems_are_listed_at_once():
    tensors = public_tensors()
    tensors["layers.1.in_proj.bias"] = np.zeros(7)
    del tensors["layers.2.in_proj.weight"], tensors["layers.0.calls"], tensors["heads.weight"], tensors["score.weight"]
    tensors |= {"stray": np.ones(1), "layers.3.in_proj.bias": np.ones(24), "lm_head.weight": tensors["embed.weight"] + 1}
    shapes = SHAPES | {"extra": (2,), "blocks.in_proj.bias": (4, 24)}
    with pytest.raises(KeyTableError) as caught:
        load(tensors, TABLE, SHAPES | {"extra": (2,)}, sizes=SIZES, where="model.safetensors")
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == [
        "differs  lm_head.weight",
        "missing  heads.weight",
        "missing  layers.0.calls",
        "missing  layers.2.in_proj.weight",
        "missing  score.weight",
        "no row   extra",
        "shape    layers.1.in_proj.bias",
        "unused   layers.3.in_proj.bias",
        "unused   stray",
    ]
    first, *rest = str(caught.value).split("\n")
    assert first.startswith("model.safetensors does not fit the model (")
    for part in ("4 missing", "1 shape", "1 differs", "2 unused", "1 no row", "layers.2.in_proj.weight"):
        assert part in first
    assert [line.strip() for line in rest] == list(caught.value.problems)
    assert "(7,) in the file, (24,) expected" in str(caught.value)
    assert isinstance(caught.value, InputError)
    with pytest.raises(KeyTableError, match=r"no slot.*blocks\.in_proj\.bias.*\(4, 24\) in the model"):
        load(public_tensors(), TABLE, shapes, sizes=SIZES)


def test_shapes_are_reported_as_the_file_has_them():
    with pytest.raises(KeyTableError, match=r"w: \(8, 24\) in the file, \(24, 8\) expected"):
        load({"w": np.zeros((8, 24))}, [Row("w", "w", LINEAR)], {"w": (8, 24)})


def test_ignored_names_must_match_whole():
    row = [Row("w", "w")]
    tensors = {"w": np.ones(2), "train_metrics.count": np.ones(1)}
    assert list(load(tensors, row, {"w": (2,)}, ignore=[r"train_metrics\..*"])) == ["w"]
    with pytest.raises(KeyTableError, match="1 unused"):
        load(tensors, row, {"w": (2,)}, ignore=["train"])


def test_duplicates_and_ties():
    rows = [Row("a.w", "w", also_public=("b.w", "c.w")), Row("head.w", "head", tied_to="a.w")]
    shapes = {"w": (2,), "head": (2,)}
    x, y = np.array([1.0, np.nan]), np.array([3.0, 4.0])
    for names in ({"a.w"}, {"a.w", "c.w"}, {"a.w", "b.w", "c.w"}):
        params = load(dict.fromkeys(names, x), rows, shapes)
        assert params["w"].tobytes() == params["head"].tobytes() == x.tobytes()
    assert load({"c.w": x, "head.w": y}, rows, shapes)["head"].tolist() == [3, 4]
    with pytest.raises(KeyTableError, match="1 differs"):
        load({"a.w": x, "b.w": y}, rows, shapes)
    with pytest.raises(KeyTableError, match="missing head"):
        load({"b.w": x}, rows, shapes)
    assert sorted(export({"w": x, "head": y}, rows)) == ["a.w", "head.w"]
    assert sorted(export({"w": x, "head": y}, rows, duplicates=True)) == ["a.w", "b.w", "c.w", "head.w"]


def test_casting_leaves_integers_alone():
    tensors = {"w": np.ones(2, BFLOAT16), "n": np.arange(2), "h": np.ones(2, np.float16), "b": np.ones(2, bool)}
    rows = [Row(name, name) for name in tensors]
    params = load(tensors, rows, dict.fromkeys(tensors, (2,)), dtype=np.float32)
    assert [params[name].dtype.name for name in tensors] == ["float32", "int64", "float32", "bool"]


def test_scalars_stay_arrays():
    rows = [Row("n", "n"), Row("m.{i}", "m"), Row("k.{i}", "k.{i}")]
    tensors = {"n": np.array(3), "m.0": np.array(1), "m.1": np.array(2), "k.0": np.array(5), "k.1": np.array(6)}
    params = load(tensors, rows, {"n": (), "m": (2,), "k.0": (), "k.1": ()}, sizes={"i": 2})
    back = export(params, rows, sizes={"i": 2})
    assert all(isinstance(x, np.ndarray) and x.shape == () and x == tensors[name] for name, x in back.items())


def test_export_is_strict():
    with pytest.raises(KeyTableError) as error:
        export({"extra": np.ones(1)}, [Row("w", "w")])
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [Row("w", "w", "o i -> i")],
        [Row("w", "w", "o i -> i o o")],
        [Row("w", "w", "a b c -> c b a")],
        [Row("w.{j}", "w")],
    ],
)
def test_wrong_tables_are_programming_errors(rows):
    with pytest.raises(ValueError) as error:
        load({"w": np.ones((2, 2))}, rows, {"w": (2, 2)})
    assert not isinstance(error.value, InputError)


def test_two_rows_for_one_parameter():
    with pytest.raises(KeyTableError, match="1 two rows"):
        load({"a": np.ones(1), "b": np.ones(1)}, [Row("a", "w"), Row("b", "w")], {"w": (1,)})
    with pytest.raises(ValueError, match="single public name"):
        Row(("a", "b"), "w", tied_to="c")


def test_strip_prefix():
    tensors = {"model.backbone.w": 1, "model._orig_mod.x": 2, "lm_head.w": 3}
    assert strip_prefix(tensors, ["model.", "model._orig_mod.", "hyena.", ""]) == {"backbone.w": 1, "x": 2, "lm_head.w": 3}
    with pytest.raises(InputError, match="second time"):
        strip_prefix({"w": np.ones(1), "model.w": np.ones(1)}, ["model."])


def test_names_of_wrappers_and_of_old_norms():
    assert unwrapped({"module._orig_mod.a": 1, "module._orig_mod.b": 2}) == {"a": 1, "b": 2}
    assert unwrapped({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}
    assert current_norm_names({"x.LayerNorm.gamma": 1, "x.LayerNorm.beta": 2, "gamma": 3}) == {
        "x.LayerNorm.weight": 1,
        "x.LayerNorm.bias": 2,
        "gamma": 3,
    }
