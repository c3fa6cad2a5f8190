import contextlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from torch_files import Call, Named, Tensor, legacy_bytes, zip_bytes

from jaxgen.checkpoints.safe_pickle import read_pickle
from jaxgen.checkpoints.torch_pickle import read_torch
from jaxgen.errors import InputError

LAYOUTS = {"zip": zip_bytes, "zip_protocol_4": lambda obj: zip_bytes(obj, protocol=4), "legacy": legacy_bytes}


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


def payloads(target):
    """Objects whose unpickling would create `target`, or otherwise call what it must not."""
    code = f"open({str(target)!r}, 'w').close()"
    return {
        "os.system": Call("os.system", f"touch {target}"),
        "posix.system": Call("posix.system", f"touch {target}"),
        "builtins.eval": Call("builtins.eval", code),
        "__builtin__.exec": Call("__builtin__.exec", code),
        "functools.partial": Call("functools.partial", Named("builtins.print")),
        "subprocess.Popen": Call("subprocess.Popen", ["touch", str(target)]),
        "torch.load": Call("torch.load", "x"),
        "torch.storage._load_from_bytes": Call("torch.storage._load_from_bytes", b"x"),
        "torch.nn.modules.linear.Linear": Call("torch.nn.modules.linear.Linear", 1, 1),
        "numpy.load": Call("numpy.load", "x"),
        "builtins.getattr": Call("builtins.getattr", Named("builtins.int"), "real"),
    }


@pytest.mark.parametrize("nested", [False, True], ids=["top", "in_lightning_hparams"])
@pytest.mark.parametrize("name", payloads("x"))
def test_nothing_in_a_file_runs(save, tmp_path, name, nested):
    target = tmp_path / "created"
    payload = payloads(target)[name]
    if nested:
        payload = {"state_dict": {}, "hyper_parameters": Call("omegaconf.DictConfig", state={"_content": payload})}
    path = save(payload)
    with pytest.raises(InputError, match=r"model\.pt: names '") as error:
        read_torch(path)
    assert name.replace("__builtin__", "builtins") in str(error.value)
    assert one_line(error)
    assert not target.exists()


def test_real_os_system_pickle(tmp_path):
    target = tmp_path / "created"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {target}",)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({"a": Evil()}, protocol)
        path = tmp_path / f"{protocol}.pt"
        path.write_bytes(zip_bytes({}, data=data))
        plain = tmp_path / f"{protocol}.pkl"
        plain.write_bytes(data)
        for read, file in ((read_torch, path), (read_pickle, plain)):
            with pytest.raises(InputError, match="system"):
                read(file)
    assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"(S'touch x'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch x'\no.",  # OBJ
        b"\x80\x02cos\nsystem\n)\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",  # NEWOBJ_EX
        b"\x80\x02\x82\x01.",  # EXT1: the copyreg registry
        b"\x80\x02]cos\nsystem\na.",  # named, never called
    ],
)
def test_other_opcodes_that_reach_for_code(tmp_path, data):
    path = tmp_path / "m.pt"
    path.write_bytes(zip_bytes({}, data=data))
    with pytest.raises(InputError) as error:
        read_torch(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02h\x05.",  # memo that was never written
        b"\x80\x02q\xff.",  # nothing to memoise
        b"\x80\x02}K\x01s.",
        b"\x80\x02K\x01K\x02b.",  # state of a number
        b"\x80\x02K\x01)R.",  # call of a number
        b"\x80\x02t.",  # no mark
        b"\x80\x02}(]K\x01u.",  # unhashable key
        b"\x80\x05\x97.",  # out-of-band buffer
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # text longer than the file
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",  # 2**63 bytes
        b"\x80\x02" + b"(" * 50 + b".",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01R.",
        b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x02K\x03K\x04tQ.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",  # Python objects
    ],
)
def test_malformed_pickles(tmp_path, data):
    path = tmp_path / "m.pt"
    path.write_bytes(zip_bytes({}, data=data))
    with pytest.raises(InputError, match=r"m\.pt: ") as error:
        read_torch(path)
    assert one_line(error)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((4,), (2,), 0),
        ((2**62, 2**62), (1, 1), 0),
        ((2,), (-1,), 1),
        ((-1,), (1,), 0),
        ((1,), (1,), -1),
        ((1,), (1,), 2**70),
        ((2, 2), (1,), 0),
        ((1.0,), (1,), 0),
    ],
)
def test_views_beyond_the_storage(save, size, stride, offset):
    path = save({"x": Tensor(np.arange(4.0), size, stride, offset)})
    with pytest.raises(InputError, match="damaged"):
        read_torch(path)


def test_storage_longer_than_its_member(tmp_path):
    content = zip_bytes({"x": Tensor(np.arange(4, dtype=np.float32))})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        data = archive.read("archive/data.pkl")
    for numel in (b"K\x05", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"):
        path = tmp_path / "m.pt"
        path.write_bytes(zip_bytes({"x": Tensor(np.arange(4, dtype=np.float32))}, data=data.replace(b"K\x04", numel, 1)))
        with pytest.raises(InputError, match="damaged"):
            read_torch(path)


@pytest.mark.parametrize("kind", ["sparse", "sparse_csr", "q", "nested", "meta"])
def test_tensors_that_are_not_dense(save, kind):
    name = {"q": "_rebuild_qtensor", "nested": "_rebuild_nested_tensor", "meta": "_rebuild_meta_tensor_no_storage"}.get(
        kind, f"_rebuild_{kind}_tensor"
    )
    with pytest.raises(InputError, match="only dense"):
        read_torch(save({"x": Call(f"torch._utils.{name}", 1, 2)}))


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_truncated_anywhere(tmp_path, layout):
    content = LAYOUTS[layout]({"state_dict": {"a": Tensor(np.arange(50.0)), "b": Tensor(np.ones((3, 3), np.float32))}})
    path = tmp_path / "m.pt"
    for length in sorted({*range(24), *range(24, len(content), 41), len(content) - 1}):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"m\.pt: ") as error:
            read_torch(path)
        assert one_line(error)


def test_flipped_bytes_never_escape_as_other_errors(tmp_path):
    content = zip_bytes({"a": Tensor(np.arange(3.0)), "n": np.arange(3), "hp": Call("argparse.Namespace", state={"x": 1})})
    rng = np.random.default_rng(0)
    path = tmp_path / "m.pt"
    for position in rng.integers(0, len(content), 300):
        broken = bytearray(content)
        broken[position] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(broken))
        with contextlib.suppress(InputError):
            read_torch(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n", b"PK\x03\x04 not a zip", pickle.dumps({"a": 1})])
def test_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.pt: "):
        read_torch(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_torch(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="cannot be read"):
        read_torch(tmp_path)


def test_whole_modules_are_refused(tmp_path):
    data = b"\x80\x02(X\x06\x00\x00\x00modulectorch\nTensor\nNNtQ."
    (tmp_path / "m.pt").write_bytes(zip_bytes({}, data=data))
    with pytest.raises(InputError, match="state_dict"):
        read_torch(tmp_path / "m.pt")
