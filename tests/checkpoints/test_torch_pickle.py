import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from torch_files import BFLOAT16, STORAGES, Call, Named, Tensor, legacy_bytes, zip_bytes

from jaxgen.checkpoints.safe_pickle import Global, Skipped, read_pickle
from jaxgen.checkpoints.torch_pickle import read_torch
from jaxgen.errors import InputError

LAYOUTS = {
    "zip": zip_bytes,
    "zip_protocol_4": lambda obj: zip_bytes(obj, protocol=4),
    "zip_no_prefix": lambda obj: zip_bytes(obj, prefix=""),
    "zip_deflated": lambda obj: zip_bytes(obj, compression=zipfile.ZIP_DEFLATED),
    "legacy": legacy_bytes,
}


@pytest.fixture(params=LAYOUTS)
def save(request, tmp_path):
    """Writes an object in one of the layouts and gives the path."""

    def write(obj):
        path = tmp_path / "model.pt"
        path.write_bytes(LAYOUTS[request.param](obj))
        return path

    return write


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", STORAGES)
def test_every_dense_dtype(save, dtype):
    x = np.arange(12).astype(BFLOAT16 if dtype == "bfloat16" else dtype).reshape(3, 4)
    got = read_torch(save({"x": Tensor(x)}))["x"]
    assert got.dtype == x.dtype
    assert got.shape == (3, 4)
    assert got.tobytes() == x.tobytes()


def test_views_and_shared_storages(save):
    flat = np.arange(24, dtype=np.float32)
    tensors = {
        "whole": Tensor(flat, (4, 6), (6, 1)),
        "transposed": Tensor(flat, (6, 4), (1, 6)),
        "offset": Tensor(flat, (2, 3), (6, 1), offset=8),
        "expanded": Tensor(flat, (5, 2), (0, 1), offset=3),
        "scalar": Tensor(flat, (), (), offset=23),
        "empty": Tensor(flat, (0, 7), (7, 1)),
    }
    got = read_torch(save(tensors))
    grid = flat.reshape(4, 6)
    expected = (grid, grid.T, flat[8:20].reshape(2, 6)[:, :3], np.broadcast_to([3, 4], (5, 2)), np.float32(23), np.zeros((0, 7)))
    for name, want in zip(tensors, expected, strict=True):
        np.testing.assert_array_equal(got[name], want)
        assert got[name].shape == want.shape
    assert np.shares_memory(got["whole"], got["transposed"])
    with pytest.raises(ValueError):
        got["whole"][0, 0] = 1


def test_plain_values_around_the_tensors(save):
    saved = {
        "numbers": [1, -(2**70), 2.5, True, None, 1 + 2j],
        "text": ("a", "β", b"\x00\xff", bytearray(b"xy")),
        "sets": ({1, 2}, frozenset({3})),
        "size": Call("torch.Size", [2, 3]),
        "dtype": Named("torch.float16"),
        "device": Call("torch.device", "cuda", 0),
        "default": Call("collections.defaultdict", Named("builtins.int")),
        "ordered": Call("collections.OrderedDict", [["b", 1], ["a", 2]], state={"_metadata": {"": {"version": 1}}}),
        "array": np.arange(6, dtype=">i2").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "words": np.array(["ab", "c"]),
        "bf16": np.arange(3).astype(BFLOAT16),
        "scalar": np.float64(0.1),
        7: "integer key",
    }
    got = read_torch(save(saved))
    for name in ("numbers", "text", "sets", 7, "scalar"):
        assert got[name] == saved[name]
    assert got["size"] == (2, 3)
    assert got["dtype"] == Global("torch.float16")
    assert got["device"].args == ("cuda", 0)
    assert got["default"] == {}
    assert list(got["ordered"].items()) == [("b", 1), ("a", 2)]
    for name in ("array", "fortran", "words", "bf16"):
        assert got[name].dtype == saved[name].dtype.newbyteorder("=")
        assert got[name].flags.f_contiguous == saved[name].flags.f_contiguous
        np.testing.assert_array_equal(got[name], saved[name])


def test_cycles_and_shared_containers_survive(save):
    loop = [1]
    loop.append(loop)
    got = read_torch(save({"a": loop, "b": loop}))
    assert got["a"] is got["b"]
    assert got["a"][1] is got["a"]


def test_parameters_are_tensors(save):
    x = np.arange(4.0)
    np.testing.assert_array_equal(read_torch(save({"p": Tensor(x, wrapper="torch._utils._rebuild_parameter")}))["p"], x)


def test_framework_objects_are_skipped_not_imported(save):
    saved = {
        "hyper_parameters": Call("omegaconf.dictconfig.DictConfig", state={"_content": {"d": 4}}),
        "args": Call("argparse.Namespace", state={"lr": 1e-3}),
        "path": Call("pathlib.PosixPath", "/", "tmp"),
        "kind": Named("typing.Any"),
        "weight": Tensor(np.ones(2, np.float32)),
    }
    got = read_torch(save(saved))
    assert isinstance(got["hyper_parameters"], Skipped)
    assert got["args"].state == {"lr": 1e-3}
    assert got["path"].args == ("/", "tmp")
    assert got["weight"].tolist() == [1, 1]


def test_big_endian_archives(tmp_path):
    x = np.arange(5, dtype=np.float32)
    z = np.array([1 + 2j, 3 - 4j], np.complex64)
    (tmp_path / "m.pt").write_bytes(zip_bytes({"x": Tensor(x), "z": Tensor(z)}, byteorder="big"))
    got = read_torch(tmp_path / "m.pt")
    np.testing.assert_array_equal(got["x"], x)
    np.testing.assert_array_equal(got["z"], z)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "uint16"])
def test_untyped_storages(tmp_path, name):
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    x = np.arange(6).astype(dtype)
    raw = x.view(np.uint8)
    # Rebuilt by _rebuild_tensor_v3 from bytes: the writer's tensor call with another function and two more arguments.
    tensor = Tensor(raw)
    content = zip_bytes({"x": tensor})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        data = archive.read("archive/data.pkl")
    data = data.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3")
    data = data.replace(b"K\x00" + _short(raw.size), b"K\x00" + _short(6))
    data = data.replace(b"ccollections\nOrderedDict\n)Rt", b"ccollections\nOrderedDict\n)Rctorch\n" + name.encode() + b"\nt")
    (tmp_path / "m.pt").write_bytes(zip_bytes({"x": tensor}, data=data))
    got = read_torch(tmp_path / "m.pt")["x"]
    assert got.dtype == dtype
    assert got.tobytes() == x.tobytes()


def _short(n):
    return b"K" + bytes([n]) + b"\x85"


def test_plain_pickles(tmp_path):
    splits = {"n_splits": 2, "folds": [(np.arange(3), np.arange(2))], "label": np.array(["a"]), "five": np.float32(5)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / "splits.pkl"
        path.write_bytes(pickle.dumps(splits, protocol))
        got = read_pickle(path)
        assert got["n_splits"] == 2
        assert got["five"] == 5
        np.testing.assert_array_equal(got["folds"][0][1], [0, 1])
        assert got["label"].tolist() == ["a"]
    path.write_bytes(pickle.dumps(np.array([{}, None], object)))
    with pytest.raises(InputError, match="only numbers and text"):
        read_pickle(path)


# --- against torch itself, where it is installed


@pytest.mark.parametrize("new_format", [True, False])
def test_what_torch_writes(tmp_path, new_format):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    parameter = torch.nn.Parameter(base.clone())
    parameter.note = "extra"
    noted = torch.arange(3.0)
    noted.note = "extra"
    saved = {
        **{str(d): (base * 9).to(d) for d in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64)},
        **{str(d): (base.abs() * 9).to(d) for d in (torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2)},
        "view": base.t()[1:, ::2],
        "parameter": parameter,
        "noted": noted,
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(5),
    }
    extra = {
        "size": base.shape,
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "layout": torch.strided,
        "storage": torch.zeros(3).untyped_storage(),
    }
    path = tmp_path / "m.pt"
    torch.save({"state_dict": saved, "extra": extra}, path, _use_new_zipfile_serialization=new_format)
    got = read_torch(path)
    for name, tensor in saved.items():
        tensor = tensor.detach().resolve_conj().contiguous()
        x = got["state_dict"][name]
        assert x.shape == tuple(tensor.shape)
        assert str(tensor.dtype) == f"torch.{x.dtype.name}"
        assert x.tobytes() == tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else x == tensor.numpy()
    assert got["extra"]["size"] == (6, 4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torch_sparse_and_quantised_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    for tensor in (torch.eye(2).to_sparse(), torch.eye(2).to_sparse_csr(), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)):
        torch.save({"x": tensor}, tmp_path / "m.pt")
        with pytest.raises(InputError, match=r"sparse|quantised"):
            read_torch(tmp_path / "m.pt")
