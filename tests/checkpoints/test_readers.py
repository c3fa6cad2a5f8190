import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from torch_files import BFLOAT16, Call, Tensor, zip_bytes

from jaxgen.checkpoints.readers import find_weights, flatten, read_config, read_directory, read_tensors, state_dict_of
from jaxgen.checkpoints.safe_pickle import Skipped
from jaxgen.checkpoints.safetensors_io import read_safetensors, write_safetensors
from jaxgen.errors import InputError

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens"
WEIGHTS = ("*.pt", "*.bin", "*.ckpt", "*.safetensors", "*.npz", "*.tar.gz", "orbax", "checkpoint")
golden_files = sorted(path for pattern in WEIGHTS for path in GOLDENS.rglob(pattern))

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(4).astype(BFLOAT16)
I = np.arange(3, dtype=np.int64)
TREE = {"net/~/linear": {"w": A, "b": B}, "net/~/norm": {"scale": I}}
FLAT = {"net/~/linear/w": A, "net/~/linear/b": B, "net/~/norm/scale": I}


def assert_same(got, want):
    assert sorted(got) == sorted(want)
    for name, x in want.items():
        assert got[name].dtype == x.dtype
        assert got[name].shape == x.shape
        assert got[name].tobytes() == x.tobytes()


@pytest.mark.skipif(not golden_files, reason="the shared goldens are not here")
@pytest.mark.parametrize("path", golden_files, ids=lambda path: str(path.relative_to(GOLDENS)))
def test_every_golden_weight_file_is_readable(path):
    tensors = read_tensors(path)
    assert tensors
    assert all(isinstance(x, np.ndarray) and x.dtype.isnative for x in tensors.values())


@pytest.mark.skipif(not golden_files, reason="the shared goldens are not here")
def test_two_formats_of_one_golden_model_agree():
    malinois = GOLDENS / "malinois" / "published_layout_tiny"
    archive = next(malinois.glob("*.tar.gz"))
    for other in ("torch_checkpoint.pt", archive.name):
        assert_same(read_tensors(malinois / other), read_tensors(malinois / "state_dict.npz"))
    alphagenome = GOLDENS / "alphagenome" / "encoder_lengths"
    assert_same(read_tensors(alphagenome / "orbax"), read_directory(alphagenome))


# --- safetensors


def test_safetensors_round_trip(tmp_path):
    tensors = {
        "a.weight": A,
        "b": B,
        "i": I,
        "transposed": A.T,
        "scalar": np.array(3, np.int64),
        "flag": np.array([True]),
        "c": A.astype("c8"),
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors)
    assert_same(read_tensors(path), tensors)
    assert json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"] == {"format": "pt"}
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_safetensors_whose_first_byte_begins_a_pickle(tmp_path):
    """The file begins with the length of its header, of which every multiple of 8 occurs."""
    tensors = {f"layer.{i}.weight": np.full(2, i, np.float32) for i in range(9)}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    padding = (0x80 - size) % 256
    path.write_bytes((size + padding).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * padding + raw[8 + size :])
    assert path.read_bytes()[:1] == b"\x80"
    assert_same(read_tensors(path), tensors)


def test_safetensors_writing_leaves_nothing_half_done(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": A})
    with pytest.raises((InputError, KeyError, TypeError, ValueError)):
        write_safetensors(path, {"a": np.array([object()])})
    assert_same(read_safetensors(path), {"a": A})
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="cannot be written"):
        write_safetensors(tmp_path / "absent" / "x.safetensors", {"a": A})


def test_safetensors_damaged(tmp_path):
    write_safetensors(tmp_path / "whole", {"a": A})
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "m.safetensors"
    for length in (0, 4, 8, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"m\.safetensors: ") as error:
            read_tensors(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded(tmp_path, kind):
    parts = {f"model-1-of-2.{kind}": {"a": A}, f"model-2-of-2.{kind}": {"b": B, "i": I}}
    for name, tensors in parts.items():
        if kind == "bin":
            (tmp_path / name).write_bytes(zip_bytes({k: Tensor(x) for k, x in tensors.items()}))
        else:
            write_safetensors(tmp_path / name, tensors)
    index = tmp_path / ("model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json")
    weight_map = {name: shard for shard, tensors in parts.items() for name in tensors}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(read_directory(tmp_path), {"a": A, "b": B, "i": I})
    index.write_text(json.dumps({"weight_map": weight_map | {"absent": next(iter(parts))}}))
    with pytest.raises(InputError, match="absent"):
        read_tensors(index)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="own folder"):
        read_tensors(index)
    (tmp_path / next(iter(parts))).unlink()
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"model-1-of-2.*no such file"):
        read_tensors(index)


# --- PyTorch


def test_state_dict_of():
    layers = {"weight": A, "sub": {"bias": I, "0": [B]}, "note": "text"}
    assert_same(state_dict_of({"state_dict": {"a": A}, "optimizer": {"b": B}, "epoch": 3}), {"a": A})
    assert_same(state_dict_of({"model_state_dict": {"a": A}, "hparams": Skipped("argparse.Namespace")}), {"a": A})
    assert_same(state_dict_of({"net": layers, "epoch": 3}), {"net.weight": A, "net.sub.bias": I, "net.sub.0.0": B})
    assert state_dict_of(None) == {}


def test_torch_files_by_content(tmp_path):
    for name in ("weights.ckpt", "pytorch_model.bin", "model.pth", "weights"):
        path = tmp_path / name
        path.write_bytes(zip_bytes({"state_dict": {"a": Tensor(A)}, "hyper_parameters": Call("argparse.Namespace", state={"d": 1})}))
        assert_same(read_tensors(path), {"a": A})


def test_flatten_refuses_trees_that_hold_themselves():
    loop = {}
    loop["again"] = loop
    with pytest.raises(InputError, match="nested too deeply"):
        flatten(loop, ".")
    wide = {"a": 1}
    for _ in range(40):
        wide = {"a": wide, "b": wide}
    with pytest.raises(InputError, match="too many"):
        flatten(wide, ".")
    with pytest.raises(InputError, match="two tensors"):
        flatten({"a": {"b": A}, "a.b": A}, ".")


def test_tar_gz(tmp_path):
    path = tmp_path / "model_artifacts__1.tar.gz"

    def write(*names):
        content = zip_bytes({"model_state_dict": {"a": Tensor(A)}})
        with tarfile.open(path, "w:gz") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    write("artifacts/torch_checkpoint.pt")
    assert_same(read_directory(tmp_path), {"a": A})
    write("a.pt", "b.pt")
    with pytest.raises(InputError, match="2 PyTorch checkpoints"):
        read_tensors(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"tar\.gz: "):
        read_tensors(path)


# --- JAX trees


def test_haiku_npz(tmp_path):
    np.savez(tmp_path / "params.npz", **FLAT)
    np.savez(tmp_path / "state.npz", **{"net/~/norm/var_ema": I})
    assert_same(read_tensors(tmp_path / "params.npz"), FLAT)
    assert_same(read_directory(tmp_path), FLAT | {"net/~/norm/var_ema": I})
    np.savez(tmp_path / "params.npz", **{"net/~/linear|w": A, "net/~/linear|b": A.astype(">f4")})
    assert_same(read_tensors(tmp_path / "params.npz"), {"net/~/linear/w": A, "net/~/linear/b": A})


def test_npz_with_python_objects(tmp_path):
    np.savez(tmp_path / "params.npz", a=np.array([{}], object))
    with pytest.raises(InputError, match=r"params\.npz: "):
        read_tensors(tmp_path / "params.npz")


def flax_bytes(tree):
    def encode(x):
        if isinstance(x, np.ndarray):
            return msgpack.ExtType(1, msgpack.packb((x.shape, x.dtype.name, x.tobytes())))
        if isinstance(x, np.generic):
            return msgpack.ExtType(3, msgpack.packb(((), x.dtype.name, x.tobytes())))
        raise TypeError(type(x))

    return msgpack.packb(tree, default=encode, strict_types=True)


def test_flax_msgpack(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}, "chunks": {"0": A.ravel()[:4], "1": A.ravel()[4:]}}
    path.write_bytes(flax_bytes({"params": {"dense": {"kernel": A, "bias": B}, "big": chunked}, "count": np.int32(3), "step": 4}))
    want = {"params/dense/kernel": A, "params/dense/bias": B, "params/big": A, "count": np.array(3, np.int32)}
    assert_same(read_directory(tmp_path), want)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-1], b"\xc1", flax_bytes({"a": A}).replace(b"float32", b"object_")):
        path.write_bytes(content)
        with pytest.raises(InputError, match="flax_model"):
            read_tensors(path)


def test_what_flax_writes(tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.msgpack_serialize({"params": {"w": A, "b": B}, "count": np.int32(3)}))
    assert_same(read_tensors(path), {"params/w": A, "params/b": B, "count": np.array(3, np.int32)})


def joblib_bytes(tree, alignment=16):
    """`tree` as joblib writes it: after the header object of each array its bytes follow, inside the pickle."""
    file = io.BytesIO()

    class Writer(pickle._Pickler):
        def save(self, obj, save_persistent_id=True):
            if not isinstance(obj, np.ndarray):
                return super().save(obj, save_persistent_id)
            self.write(pickle.GLOBAL + b"joblib.numpy_pickle\nNumpyArrayWrapper\n" + pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            order = "F" if obj.flags.f_contiguous and not obj.flags.c_contiguous else "C"
            state = {"shape": obj.shape, "order": order, "dtype": obj.dtype, "allow_mmap": False}
            super().save(state | ({"numpy_array_alignment_bytes": alignment} if alignment else {}))
            self.write(pickle.BUILD)
            self.framer.commit_frame(force=True)
            if alignment:
                padding = alignment - (file.tell() + 1) % alignment
                file.write(bytes([padding]) + b"\xff" * padding)
            file.write(obj.tobytes(order))
            return None

    Writer(file, 3).dump(tree)
    return file.getvalue()


@pytest.mark.parametrize("alignment", [16, None])
@pytest.mark.parametrize("compress", [bytes, zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_joblib(tmp_path, compress, alignment):
    tree = TREE | {"fortran": {"w": np.asfortranarray(A), "empty": np.zeros((0, 4)), "step": 7}}
    path = tmp_path / "pytree_ckpt.joblib"
    path.write_bytes(compress(joblib_bytes(tree, alignment)))
    assert_same(read_directory(tmp_path), FLAT | {"fortran/w": A, "fortran/empty": np.zeros((0, 4))})


def test_joblib_pair_of_params_and_state(tmp_path):
    path = tmp_path / "pytree_ckpt.joblib"
    path.write_bytes(joblib_bytes((TREE, {"net/~/norm": {"var_ema": A}})))
    assert_same(read_tensors(path), FLAT | {"net/~/norm/var_ema": A})
    path.write_bytes(joblib_bytes((TREE, {"net/~/norm": {"scale": A}})))
    with pytest.raises(InputError, match="both as a parameter and as state"):
        read_tensors(path)


def test_joblib_damaged_or_hostile(tmp_path):
    path = tmp_path / "x.joblib"
    target = tmp_path / "created"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {target}",)

    for content in (pickle.dumps(Evil()), zlib.compress(joblib_bytes([A, Evil()])), joblib_bytes({"state_dict": Evil(), "a": A})):
        path.write_bytes(content)
        with pytest.raises(InputError, match="system"):
            read_tensors(path)
    assert not target.exists()
    for whole in (joblib_bytes(TREE), zlib.compress(joblib_bytes(TREE)), gzip.compress(joblib_bytes(TREE))):
        for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"x\.joblib: ") as error:
                read_tensors(path)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)])
def test_what_joblib_writes(tmp_path, compress):
    joblib = pytest.importorskip("joblib")
    path = tmp_path / "x.joblib"
    joblib.dump(TREE, path, compress=compress)
    assert_same(read_tensors(path), FLAT)


def test_haiku_mappings_and_jax_arrays_in_pickles(tmp_path):
    jax = pytest.importorskip("jax")
    path = tmp_path / "params.pkl"
    path.write_bytes(pickle.dumps({"m": {"w": jax.numpy.asarray(A), "b": jax.numpy.asarray(B)}}))
    assert_same(read_tensors(path), {"m/w": A, "m/b": B})
    file = io.BytesIO()
    writer = pickle._Pickler(file, 2)
    writer.write(pickle.PROTO + b"\2" + pickle.GLOBAL + b"haiku._src.data_structures\nFlatMapping\n")
    writer.save(({"m": {"w": A}},))
    writer.write(pickle.REDUCE + pickle.STOP)
    path.write_bytes(file.getvalue())
    assert_same(read_tensors(path), {"m/w": A})


def test_orbax(tmp_path):
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(tmp_path / "pair", (TREE, {"net/~/norm": {"var_ema": A}}))
    assert_same(read_tensors(tmp_path / "pair"), FLAT | {"net/~/norm/var_ema": A})
    assert find_weights(tmp_path / "pair") == tmp_path / "pair"
    with ocp.CheckpointManager(tmp_path / "run" / "orbax") as manager:
        for step in (2, 10):
            manager.save(step, args=ocp.args.StandardSave({"layers": [{"q": A * step}], "count": np.array(step)}))
    want = {"layers/0/q": A * 10, "count": np.array(10)}
    assert_same(read_directory(tmp_path / "run"), want)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="_METADATA"):
        read_tensors(tmp_path / "empty")
    (tmp_path / "pair" / "_METADATA").write_text("{")
    with pytest.raises(InputError, match="pair: "):
        read_tensors(tmp_path / "pair")


# --- folders


def test_find_weights(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_weights(tmp_path / "absent")
    with pytest.raises(InputError, match="found nothing"):
        find_weights(tmp_path)
    for name in ("io.npz", "config.json", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"found config\.json, io\.npz, notes\.txt") as error:
        find_weights(tmp_path)
    assert "\n" not in str(error.value)
    for name in ("model_artifacts__1.tar.gz", "x.joblib", "a.pt", "params.npz", "last.ckpt", "pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
        assert find_weights(tmp_path).name == name


def test_find_weights_is_not_ambiguous(tmp_path):
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"holds a\.pt, b\.pt"):
        find_weights(tmp_path)


def test_read_config(tmp_path):
    with pytest.raises(InputError, match="put the model's config"):
        read_config(tmp_path)
    (tmp_path / "model_config.json").write_text('{"d_model": 4}')
    assert read_config(tmp_path) == {"d_model": 4}
    (tmp_path / "config.json").write_text('{"d_model": 5}')
    assert read_config(tmp_path) == {"d_model": 5}
    for broken in ("{", "[]", ""):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(InputError, match=r"config\.json: "):
            read_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b"ATCG\n", bytes(range(1, 65))], ids=["empty", "text", "bytes"])
def test_unknown_formats(tmp_path, content):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(InputError, match="weights: "):
        read_tensors(path)
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "absent")
