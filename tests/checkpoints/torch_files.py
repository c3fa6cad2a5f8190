"""Writes PyTorch-format files without torch, so that the readers can be tested on what torch would write, and on what it would not."""

import io
import pickle
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Named:
    """Pickles as the global `name`."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        raise AssertionError("written by Writer only")


class Call:
    """Pickles as a call of the global `name`: what a hostile (or just an object's) pickle does."""

    def __init__(self, name, *args, state=None):
        self.name, self.args, self.state = name, args, state


class Tensor:
    """A strided view of `storage`, a flat array; equal arrays (by identity) are one storage."""

    def __init__(self, storage, size=None, stride=None, offset=0, wrapper=None):
        storage = np.asarray(storage)
        if size is None:
            size = storage.shape
            stride = tuple(step // storage.itemsize for step in np.ascontiguousarray(storage).reshape(size).strides)
            storage = storage if storage.ndim == 1 else np.ascontiguousarray(storage).reshape(-1)
        self.storage, self.size, self.stride, self.offset, self.wrapper = storage, tuple(size), tuple(stride), offset, wrapper


class Writer(pickle._Pickler):
    """Pickles the classes above. Pure Python, because its opcodes are written by hand."""

    def __init__(self, file, protocol=2):
        super().__init__(file, protocol)
        self.keys, self.storages = {}, []

    def key(self, storage):
        if id(storage) not in self.keys:
            self.keys[id(storage)] = str(len(self.storages))
            self.storages.append(storage)
        return self.keys[id(storage)]

    def name(self, name):
        module, _, attribute = name.rpartition(".")
        if self.proto >= 4:
            self.save(module)
            self.save(attribute)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.name(obj.name)
        elif isinstance(obj, Call):
            self.name(obj.name)
            self.save(tuple(obj.args))
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, Tensor):
            self.tensor(obj)
        else:
            super().save(obj, save_persistent_id)

    def tensor(self, t):
        storage = _Storage(t.storage, self.key(t.storage))
        tensor = Call("torch._utils._rebuild_tensor_v2", storage, t.offset, t.size, t.stride, False, Call("collections.OrderedDict"))
        self.save(Call(t.wrapper, tensor, False, Call("collections.OrderedDict")) if t.wrapper else tensor)

    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        identifier = ("storage", Named(f"torch.{STORAGES[obj.array.dtype.name]}"), obj.key, "cpu", obj.array.size)
        return (*identifier, None) if self.proto_legacy else identifier

    proto_legacy = False


class _Storage:
    def __init__(self, array, key):
        self.array, self.key = array, key


def pickled(obj, protocol=2, legacy=False):
    """The pickle of `obj` and the storages that it refers to."""
    file = io.BytesIO()
    writer = Writer(file, protocol)
    writer.proto_legacy = legacy
    writer.dump(obj)
    return file.getvalue(), writer.storages


def zip_bytes(obj, prefix="archive/", protocol=2, compression=zipfile.ZIP_STORED, byteorder="little", data=None):
    """A checkpoint in the zip layout. `data` overrides data.pkl."""
    content, storages = pickled(obj, protocol)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{prefix}data.pkl", content if data is None else data)
        archive.writestr(f"{prefix}byteorder", byteorder)
        for i, storage in enumerate(storages):
            swapped = storage if byteorder == "little" else storage.astype(storage.dtype.newbyteorder(">"))
            archive.writestr(f"{prefix}data/{i}", swapped.tobytes())
        archive.writestr(f"{prefix}version", "3\n")
    return file.getvalue()


def legacy_bytes(obj, protocol=2):
    """A checkpoint in the stream layout of torch < 1.6."""
    content, storages = pickled(obj, protocol, legacy=True)
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts.append(pickle.dumps({"protocol_version": 1001, "little_endian": sys.byteorder == "little", "type_sizes": {"int": 4}}, 2))
    parts += [content, pickle.dumps([str(i) for i in range(len(storages))], 2)]
    parts += [struct.pack("<q", storage.size) + storage.tobytes() for storage in storages]
    return b"".join(parts)
