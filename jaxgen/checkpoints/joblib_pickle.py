"""Joblib files (`pytree_ckpt.joblib` of the Haiku Nucleotide Transformer) without `joblib.load`, which would run the pickle in them.

Joblib writes a pickle in which each numpy array is a small header object followed by the array's bytes, inside the same stream; the
whole may be compressed.
"""

import bz2
import gzip
import io
import lzma
import os
import zlib
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxgen.checkpoints.safe_pickle import BUILDERS, DType, Global, Interpreter, Skipped, located, rebuilt_array, sizes
from jaxgen.errors import InputError

_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"


def _open(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        head = file.read(6)
    if head[:1] == b"\x78":
        return io.BytesIO(zlib.decompress(path.read_bytes()))
    if head[:2] == b"\x1f\x8b":
        return gzip.open(path)
    if head[:3] == b"BZh":
        return bz2.open(path)
    if head[:2] == b"\x5d\0" or head == b"\xfd7zXZ\0":
        return lzma.open(path)
    return path.open("rb")


def _flat_mapping(mapping: dict) -> dict:
    if not isinstance(mapping, dict):
        raise ValueError("a Haiku mapping made of something else than a dict")
    return mapping


def _jax_array(function: Global, args: tuple, state: tuple, aval: dict) -> np.ndarray:
    """JAX pickles an array as the pickle of its numpy value."""
    array = BUILDERS[function.name](*args)
    return rebuilt_array(array, state)


class _JoblibInterpreter(Interpreter):
    builders = MappingProxyType(
        {
            **BUILDERS,
            _WRAPPER: lambda: Skipped(_WRAPPER),
            "haiku._src.data_structures.FlatMap": _flat_mapping,
            "haiku._src.data_structures.FlatMapping": _flat_mapping,
            "jax._src.array._reconstruct_array": _jax_array,
            "jax._src.device_array.reconstruct_device_array": _jax_array,
        }
    )

    def build(self, target: object, state: Any) -> object:
        target = super().build(target, state)
        return self.array(**state) if isinstance(target, Skipped) and target.name == _WRAPPER else target

    def array(self, *, dtype: DType, shape: tuple, order: str, numpy_array_alignment_bytes: int | None = None, **_: Any) -> np.ndarray:
        """Reads the array whose header was just built; since joblib 1.2 a count of padding bytes, and these, come before it."""
        if not isinstance(dtype, DType):
            raise InputError("holds an array of Python objects; only numbers and text can be read")
        if numpy_array_alignment_bytes is not None:
            self.file.read(self.file.read(1)[0])
        count = int(np.prod([1, *sizes(shape)], dtype=object))  # exact: a hostile shape must not wrap around
        data = self.file.read(count * dtype.dtype.itemsize)
        return np.frombuffer(data, dtype.dtype, count).reshape(shape, order="F" if order == "F" else "C")


def read_joblib(path: str | os.PathLike) -> Any:
    """The tree saved by `joblib.dump` (plain, zlib, gzip, bz2, xz): containers and plain values, with numpy arrays.

    Raises:
      InputError: the file is damaged, or names anything that would have to be run.
    """
    with located(path), _open(Path(path)) as file:
        tree = _JoblibInterpreter(file).load()
        file.read(1)  # a compressed file checks its sum at its end
        return tree
