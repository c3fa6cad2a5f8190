"""Reads pickles as data. The stream is interpreted here, one opcode at a time: nothing that a file names is imported or called.

A pickle is a small program that may name any function of any module and have it called. This interpreter knows a closed table of
names (numpy arrays, plain containers) that *our* functions rebuild; names of well-known configuration objects become an inert
`Skipped`; every other name ends the reading with an `InputError`.
"""

import contextlib
import dataclasses
import io
import lzma
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from jaxgen.errors import InputError

# What numpy, zipfile, pickletools, struct and json raise when a file is not what it says it is.
_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


@contextlib.contextmanager
def located(where: str | os.PathLike) -> Iterator[None]:
    """Turns whatever a broken file makes its reader raise into a one-line `InputError` that begins with `where`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such file") from error
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror or error}); check the file or download it again") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{where}: damaged, cut short or not a weight file ({reason}); download or save it again") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function met in a pickle: only ever a name."""

    name: str


@dataclasses.dataclass(slots=True, eq=False)
class Skipped:
    """Stands for an object we do not rebuild, such as `argparse.Namespace`; `state` holds its fields as plain data."""

    name: str
    args: tuple = ()
    state: Any = None


# Objects that training frameworks leave beside the weights.
SKIPPED = (
    "_io.BytesIO",
    "argparse.Namespace",
    "collections.",
    "datetime.",
    "enum.",
    "hydra.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "pathlib.",
    "pytorch_lightning.",
    "torchmetrics.",
    "typing.",
)
# Classes that may appear as a value (in type annotations, or as what a numpy array is made of).
_BUILTINS = ("bool", "bytes", "dict", "float", "int", "list", "object", "str", "tuple")
INERT = frozenset(("numpy.ndarray", *(f"builtins.{name}" for name in _BUILTINS)))
_RENAMED = {"__builtin__.": "builtins.", "copy_reg.": "copyreg.", "numpy.core.": "numpy._core."}  # Python 2, NumPy 1
_SMALL_FLOATS = frozenset(name for name in dir(ml_dtypes) if name.startswith(("bfloat16", "float8_")))


class DType:
    """A numpy dtype while its pickle is read: first the letter code, then (by BUILD) the byte order."""

    def __init__(self, code: str | Global, align: bool = False, copy: bool = False):
        if isinstance(code, Global) and code.name.removeprefix("ml_dtypes.") in _SMALL_FLOATS:
            self.dtype = np.dtype(getattr(ml_dtypes, code.name.removeprefix("ml_dtypes.")))
        elif isinstance(code, str) and re.fullmatch(r"\?|b1|[iufcSU]\d{1,9}", code):
            self.dtype = np.dtype(code)
        else:
            kind = code if isinstance(code, str) else "object"
            raise InputError(f"holds numpy values of kind {kind!r}; only numbers and text can be read")

    def set_state(self, state: tuple) -> None:
        if any(field is not None for field in state[2:5]):
            raise InputError("holds structured numpy arrays; only plain ones can be read")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def _raw(data: bytes | str) -> bytes:
    """Protocol 2 and Python 2 write bytes as latin-1 text."""
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _encode(text: str, encoding: str) -> bytes:
    if encoding.lower() not in ("latin1", "latin-1"):
        raise ValueError(f"bytes written as {encoding}")
    return _raw(text)


def _reconstruct(kind: Global, shape: tuple, code: bytes) -> np.ndarray:
    if kind != Global("numpy.ndarray"):
        raise InputError(f"holds arrays of class {kind.name}; only numpy.ndarray can be read")
    return np.empty(0)


def rebuilt_array(array: np.ndarray, state: tuple) -> np.ndarray:
    """`array` with its pickled state; in place, because the pickle's memo may already hold it."""
    _, shape, kind, fortran, data = state
    if not array.flags.owndata:  # a tensor, or built before
        raise ValueError("sets the state of an array that has one")
    if not isinstance(kind, DType) or not isinstance(data, bytes | str):
        raise InputError("holds an array of Python objects; only numbers and text can be read")
    array.__setstate__((1, sizes(shape), kind.dtype, bool(fortran), _raw(data)))  # pyright: ignore[reportArgumentType]
    return array


def sizes(shape: tuple) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a shape of something else than sizes")
    return shape


def _frombuffer(data: bytes, kind: DType, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(_raw(data), kind.dtype).reshape(sizes(shape), order="F" if order == "F" else "C")


def sequence(items: list | tuple) -> list | tuple:
    """Guards constructors that would walk anything, a tensor of 2**60 repeated elements too."""
    if not isinstance(items, list | tuple):
        raise ValueError(f"a container made of a {type(items).__name__}")
    return items


def _reconstructor(kind: Global, base: Global, state: object) -> Skipped:
    if not kind.name.startswith(SKIPPED):
        raise InputError(refusal(kind.name))
    return Skipped(kind.name)


BUILDERS: Mapping[str, Callable] = MappingProxyType(
    {
        "_codecs.encode": _encode,
        "builtins.bytearray": lambda data=b"", encoding="latin-1": bytearray(_raw(data)),
        "builtins.complex": lambda real, imaginary: complex(float(real), float(imaginary)),
        "builtins.frozenset": lambda items=(): frozenset(sequence(items)),
        "builtins.set": lambda items=(): set(sequence(items)),
        "collections.OrderedDict": lambda items=(): dict(sequence(items)),
        "collections.defaultdict": lambda factory=None: {},
        "copyreg._reconstructor": _reconstructor,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray.scalar": lambda kind, data: np.frombuffer(_raw(data), kind.dtype, count=1)[0],
        "numpy._core.numeric._frombuffer": _frombuffer,
        "numpy.dtype": DType,
    }
)


def refusal(name: str) -> str:
    return (
        f"names {name[:100]!r}, which is neither a tensor nor a plain value, so it was not loaded and nothing in it ran; "
        "ask for a plain state dict or safetensors"
    )


_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_LITERALS = frozenset((*_NUMBERS, *_TEXTS, "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Interpreter:
    """Interprets one pickle of `file`, leaving the file position right after it. Subclasses add persistent ids or names.

    Raises whatever a malformed stream leads to: callers wrap it in `located`.
    """

    builders: Mapping[str, Callable] = BUILDERS
    inert: frozenset[str] = INERT
    skipped: tuple[str, ...] = SKIPPED

    def __init__(self, file: io.BufferedIOBase):
        self.file = file

    def persistent(self, identifier: object) -> object:
        raise InputError("refers to data outside the file; only self-contained files can be read")

    def find(self, name: str) -> Global:
        """`name` as an inert value, if it is one that we know."""
        for old, new in _RENAMED.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        if name in self.builders or name in self.inert or name.startswith(self.skipped) or name.removeprefix("ml_dtypes.") in _SMALL_FLOATS:
            return Global(name)
        raise InputError(refusal(name))

    def call(self, function: object, args: tuple) -> object:
        """What the pickle would have got by calling `function`: one of *our* builders, or a placeholder."""
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise ValueError("calls something that is not a name")
        if function.name in self.builders:
            return self.builders[function.name](*args)
        if function.name.startswith(self.skipped):
            return Skipped(function.name, args)
        raise InputError(refusal(function.name))

    def build(self, target: object, state: Any) -> object:
        """Gives `target` its state; returns what takes its place."""
        if isinstance(target, Skipped):
            target.state = state
        elif isinstance(target, DType):
            target.set_state(state)
        elif isinstance(target, np.ndarray):
            rebuilt_array(target, state)
        elif not isinstance(target, dict):  # attributes of an OrderedDict (torch's `_metadata`) are dropped
            raise ValueError(f"sets the state of a {type(target).__name__}")
        return target

    def load(self) -> Any:
        """The object of the pickle that begins at the file's position."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[Any, Any] = {}

        def since_mark() -> list[Any]:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        for opcode, arg, _ in pickletools.genops(self.file):  # pyright: ignore[reportArgumentType]
            op = opcode.name
            if op in _LITERALS:
                stack.append(arg)
            elif op in _CONSTANTS:
                stack.append(_CONSTANTS[op])
            elif op in _EMPTY:
                stack.append(_EMPTY[op]())
            elif op in _GETS:
                stack.append(memo[arg])
            elif op in _PUTS:
                memo[arg] = stack[-1]
            elif op in _TUPLES:
                stack[-_TUPLES[op] :] = [tuple(stack[-_TUPLES[op] :])]
            else:
                match op:
                    case "MEMOIZE":
                        memo[len(memo)] = stack[-1]
                    case "MARK":
                        marks.append(len(stack))
                    case "TUPLE":
                        stack.append(tuple(since_mark()))
                    case "LIST":
                        stack.append(since_mark())
                    case "FROZENSET":
                        stack.append(frozenset(since_mark()))
                    case "DICT":
                        stack.append(_put_items({}, since_mark()))
                    case "SETITEMS":
                        items = since_mark()
                        _put_items(stack[-1], items)
                    case "SETITEM":
                        items = [stack.pop(-2), stack.pop()]
                        _put_items(stack[-1], items)
                    case "APPENDS" | "ADDITEMS":
                        items = since_mark()
                        _add_items(stack[-1], items)
                    case "APPEND":
                        item = stack.pop()
                        _add_items(stack[-1], [item])
                    case "GLOBAL":
                        stack.append(self.find(arg.replace(" ", ".", 1)))
                    case "STACK_GLOBAL":
                        name, module = stack.pop(), stack.pop()
                        stack.append(self.find(module + "." + name))
                    case "REDUCE" | "NEWOBJ":
                        args = stack.pop()
                        stack.append(self.call(stack.pop(), args))
                    case "NEWOBJ_EX":
                        _, args = stack.pop(), stack.pop()
                        stack.append(self.call(stack.pop(), args))
                    case "INST":
                        stack.append(self.call(self.find(arg.replace(" ", ".", 1)), tuple(since_mark())))
                    case "OBJ":
                        function, *args = since_mark()
                        stack.append(self.call(function, tuple(args)))
                    case "BUILD":
                        state = stack.pop()
                        stack[-1] = self.build(stack[-1], state)
                    case "PERSID":
                        stack.append(self.persistent(arg))
                    case "BINPERSID":
                        stack.append(self.persistent(stack.pop()))
                    case "POP":
                        marks.pop() if marks and marks[-1] == len(stack) else stack.pop()
                    case "POP_MARK":
                        since_mark()
                    case "DUP":
                        stack.append(stack[-1])
                    case "STOP":
                        return stack.pop()
                    case "PROTO" | "FRAME":
                        pass
                    case _:
                        raise ValueError(f"pickle opcode {op}")
        raise EOFError("the pickle has no end")


def _put_items(target: object, items: list) -> object:
    pairs = dict(zip(items[::2], items[1::2], strict=True))
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, Skipped):  # a dict subclass, such as Lightning's AttributeDict
        target.state = {**(target.state if isinstance(target.state, dict) else {}), **pairs}
    else:
        raise ValueError(f"puts items into a {type(target).__name__}")
    return target


def _add_items(target: object, items: list) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(items)
    elif not isinstance(target, Skipped):
        raise ValueError(f"appends to a {type(target).__name__}")


def read_pickle(path: str | os.PathLike) -> Any:
    """A plain pickle of dicts, lists, numbers, text and numpy arrays, such as saved cross-validation splits.

    Raises:
      InputError: the file is damaged, or names anything that would have to be run.
    """
    with located(path):
        return Interpreter(io.BytesIO(Path(path).read_bytes())).load()
