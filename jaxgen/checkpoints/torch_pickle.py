"""PyTorch checkpoint files as numpy arrays, without torch and without running the pickle in them (see safe_pickle.py).

Two layouts: a zip archive (torch >= 1.6: `data.pkl` and one member per storage) and a stream of pickles followed by the storages.
Tensors are views of the memory-mapped file, so what a caller does not look at (an optimiser's state) is never read from disk.
"""

import io
import os
import pickletools
import struct
import sys
import zipfile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from jaxgen.checkpoints.safe_pickle import BUILDERS, INERT, SKIPPED, Global, Interpreter, located, sequence
from jaxgen.errors import InputError

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what a stream file begins with: the pickle of its magic number
_LEGACY_PROTOCOL = 1001

_SMALL_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
_PLAIN = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
DTYPES = {name: np.dtype(name) for name in (*_PLAIN, "complex64", "complex128")}
DTYPES |= {name: np.dtype(getattr(ml_dtypes, name)) for name in _SMALL_FLOATS}
_STORAGES = {
    "DoubleStorage": DTYPES["float64"],
    "FloatStorage": DTYPES["float32"],
    "HalfStorage": DTYPES["float16"],
    "BFloat16Storage": DTYPES["bfloat16"],
    "LongStorage": DTYPES["int64"],
    "IntStorage": DTYPES["int32"],
    "ShortStorage": DTYPES["int16"],
    "CharStorage": DTYPES["int8"],
    "ByteStorage": DTYPES["uint8"],
    "BoolStorage": DTYPES["bool"],
    "ComplexFloatStorage": DTYPES["complex64"],
    "ComplexDoubleStorage": DTYPES["complex128"],
    "UntypedStorage": DTYPES["uint8"],
}


def _storage_dtype(kind: object) -> np.dtype:
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else str(kind)
    if name not in _STORAGES:
        raise InputError(f"holds a {name}; quantised tensors cannot be read, save it dequantised")
    return _STORAGES[name]


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, grad: Any = False, hooks: Any = None, flags: Any = None) -> np.ndarray:
    """A read-only view of a flat storage. Bounds are checked here, because numpy does not check strides."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and n >= 0 for n in numbers) or len(size) != len(stride):
        raise ValueError("a tensor whose offset, shape or strides are not sizes")
    if 0 in size:
        return np.empty(size, storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride)) >= storage.size:
        raise ValueError(f"a tensor of shape {size}, strides {stride}, offset {offset} reaches beyond its storage of {storage.size}")
    strides = [step * storage.itemsize for step in stride]
    view = np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * storage.itemsize, strides)
    view.flags.writeable = False
    if flags:  # torch conjugates and negates lazily
        view = np.conj(view) if flags.get("conj") else view
        view = np.negative(view) if flags.get("neg") else view
    return view


def _tensor_v3(
    storage: Any, offset: int, size: tuple, stride: tuple, grad: Any, hooks: Any, dtype: Global, flags: Any = None
) -> np.ndarray:
    """As `_tensor`, from untyped bytes: for dtypes that never had a storage class."""
    return _tensor(storage.view(DTYPES[dtype.name.removeprefix("torch.")]), offset, size, stride, flags=flags)


def _parameter(data: np.ndarray, requires_grad: bool = True, hooks: Any = None, state: Any = None) -> np.ndarray:
    return data


def _from_type(function: Global, kind: Global, args: tuple, state: Any) -> np.ndarray:
    """A tensor that carried extra attributes, which are dropped."""
    return _TENSORS[function.name](*args)


def _refuse(kind: str):
    def refuse(*args: Any) -> None:
        raise InputError(f"holds a {kind} tensor; only dense ones can be read, save it with .to_dense() or .dequantize()")

    return refuse


_TENSORS = {
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
}
_REFUSED = {
    "torch._utils._rebuild_meta_tensor_no_storage": _refuse("meta"),
    "torch._utils._rebuild_nested_tensor": _refuse("nested"),
    "torch._utils._rebuild_qtensor": _refuse("quantised"),
    "torch._utils._rebuild_sparse_csr_tensor": _refuse("sparse"),
    "torch._utils._rebuild_sparse_tensor": _refuse("sparse"),
}
_VALUES = {
    "torch.Size": lambda sizes=(): tuple(sequence(sizes)),
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
_CLASSES = frozenset(
    [f"torch.{name}" for name in DTYPES]
    + [f"{module}.{name}" for module in ("torch", "torch.cuda", "torch.storage") for name in _STORAGES]
    + [f"torch.{name}Storage" for name in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")]
    + ["torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.per_tensor_affine", "torch.per_channel_affine"]
)


class _TorchInterpreter(Interpreter):
    builders = MappingProxyType({**BUILDERS, **_TENSORS, **_REFUSED, **_VALUES})
    inert = INERT | _CLASSES
    skipped = (*SKIPPED, "torch.device", "torch.serialization._get_layout")

    def persistent(self, identifier: Any) -> np.ndarray:
        if identifier[0] == "module":
            raise InputError("holds a whole pickled module; save its state_dict() instead")
        tag, kind, key, _, numel, *view = identifier
        if tag != "storage" or type(numel) is not int or numel < 0:
            raise ValueError("a storage whose length is not a size")
        dtype = _storage_dtype(kind)
        storage = self.storage(str(key), dtype, numel)
        if view and view[0] is not None:  # a legacy storage that is a slice of another one
            _, start, length = view[0]
            storage = _tensor(storage, start, (length,), (1,))
        return storage

    def storage(self, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        raise NotImplementedError


def _typed(raw: np.ndarray, dtype: np.dtype, numel: int, big_endian: bool) -> np.ndarray:
    """The first `numel` elements of the bytes `raw`, in this machine's byte order."""
    if raw.size < numel * dtype.itemsize:
        raise ValueError(f"a storage has {raw.size} bytes, {numel * dtype.itemsize} are needed")
    raw = raw[: numel * dtype.itemsize]
    if big_endian != (sys.byteorder == "big"):
        width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        raw = raw.view(f"u{width}").byteswap().view(np.uint8)
    return np.require(raw.view(dtype), requirements="A")


class _ZipInterpreter(_TorchInterpreter):
    def __init__(self, archive: zipfile.ZipFile, raw: np.ndarray):
        entries = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if not entries:
            raise InputError("is a zip archive without data.pkl, so not a PyTorch checkpoint")
        self.archive, self.raw, self.storages = archive, raw, {}
        self.prefix = min(entries, key=len).removesuffix("data.pkl")
        order = f"{self.prefix}byteorder"
        self.big_endian = order in archive.namelist() and self.member(order).tobytes() == b"big"
        super().__init__(io.BytesIO(self.member(f"{self.prefix}data.pkl").tobytes()))

    def member(self, name: str) -> np.ndarray:
        """The bytes of a member. Stored ones are a view of the file; their checksum is not read, torch may leave it out."""
        info = self.archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return np.frombuffer(self.archive.read(info), np.uint8)
        header = self.raw[info.header_offset : info.header_offset + 30].tobytes()
        signature, name_length, extra_length = struct.unpack("<4s22xHH", header)
        start = info.header_offset + 30 + name_length + extra_length
        if signature != b"PK\3\4" or start + info.file_size > self.raw.size:
            raise ValueError(f"member {name} lies outside the archive")
        return self.raw[start : start + info.file_size]

    def storage(self, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        entry = key, dtype, numel
        if entry not in self.storages:
            self.storages[entry] = _typed(self.member(f"{self.prefix}data/{key}"), dtype, numel, self.big_endian)
        return self.storages[entry]


class _LegacyInterpreter(_TorchInterpreter):
    """In a stream file the storages come after the pickle that refers to them, and only that pickle knows their dtypes."""

    def __init__(self, file: io.BufferedIOBase, raw: np.ndarray):
        super().__init__(file)
        self.raw, self.dtypes, self.storages = raw, {}, {}

    def storage(self, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        if key in self.storages:
            return self.storages[key]
        self.dtypes[key] = dtype
        return _typed(self.raw, dtype, numel, big_endian=sys.byteorder == "big")  # any bytes will do

    def load(self) -> Any:
        if Interpreter(self.file).load() != _MAGIC_NUMBER or Interpreter(self.file).load() != _LEGACY_PROTOCOL:
            raise InputError("is not a PyTorch checkpoint")
        big_endian = not Interpreter(self.file).load()["little_endian"]
        start = self.file.tell()
        super().load()  # finds the dtypes
        for key in Interpreter(self.file).load():
            (numel,) = struct.unpack(">q" if big_endian else "<q", self.file.read(8))
            dtype, begin = self.dtypes[key], self.file.tell()
            if numel < 0:
                raise ValueError(f"a storage of {numel} elements")
            self.storages[key] = _typed(self.raw[begin : begin + numel * dtype.itemsize], dtype, numel, big_endian)
            self.file.seek(begin + numel * dtype.itemsize)
        self.file.seek(start)
        return super().load()


_MAGIC_NUMBER = next(arg for op, arg, _ in pickletools.genops(LEGACY_MAGIC) if op.name == "LONG1")


def read_torch(path: str | os.PathLike, content: bytes | None = None) -> Any:
    """The object saved in a PyTorch file: containers and plain values as they are, tensors as read-only numpy arrays.

    Args:
      path: the file; memory-mapped.
      content: its bytes, where they are already at hand (the member of an archive); `path` is then only its name.

    Returns:
      The saved tree. bfloat16 and float8 are ml_dtypes arrays; equal storages are shared; torch dtypes are `Global`, framework
      objects are `Skipped`.

    Raises:
      InputError: the file is damaged, no checkpoint, holds sparse or quantised tensors, or names anything that would have to be run.
    """
    with located(path):
        raw = np.memmap(Path(path), np.uint8, "r") if content is None else np.frombuffer(content, np.uint8)
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            if raw[:4].tobytes() == b"PK\3\4":
                with zipfile.ZipFile(file) as archive:
                    return _ZipInterpreter(archive, raw).load()
            if raw[: len(LEGACY_MAGIC)].tobytes() != LEGACY_MAGIC:
                raise InputError("is not a PyTorch checkpoint")
            return _LegacyInterpreter(file, raw).load()
