"""Foreign weight files as flat dicts of numpy arrays, and finding the file in a checkpoint folder.

Names: a PyTorch or safetensors file keeps its own dotted names. A JAX tree (Haiku npz or joblib, flax msgpack, Orbax) is flattened
with "/", list positions as numbers: `module/sub/w`. A Haiku pair (params, state) becomes one flat dict, as their names never meet.
"""

import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from jaxgen.checkpoints.joblib_pickle import read_joblib
from jaxgen.checkpoints.safe_pickle import located
from jaxgen.checkpoints.safetensors_io import read_safetensors
from jaxgen.checkpoints.torch_pickle import LEGACY_MAGIC, read_torch
from jaxgen.errors import InputError

# What a checkpoint folder may hold, the preferred first. `io.npz` of a golden case is no weight file, so npz names are listed.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "weights.ckpt",
    "last.ckpt",
    "flax_model.msgpack",
    "params.npz",
    "weights.npz",
    "orbax",
    "checkpoint",
    "*.safetensors",
    "*.ckpt",
    "*.pt",
    "*.pth",
    "*.msgpack",
    "*.joblib",
    "state_dict.npz",
    "*.tar.gz",
)
CONFIG_FILES = ("config.json", "model_config.json", "hyperparams.json")
_STATE_DICTS = ("state_dict", "model_state_dict")
_MAX_DEPTH, _MAX_LEAVES = 64, 500_000  # far beyond any model; a tree that holds itself ends here


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of one weight file, a sharded index (`*.index.json`) or an Orbax folder. The format is told from the content.

    Returns:
      name -> array, dtypes as stored (bfloat16 and float8 from ml_dtypes), native byte order, possibly read-only views of the file.

    Raises:
      InputError: in one line, that the file is missing, damaged, of an unknown format, or unsafe to read.
    """
    path = Path(path)
    with located(path):
        reader = _read_orbax if path.is_dir() else _reader_of(path)
    return reader(path)


def read_directory(directory: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint folder: `read_tensors(find_weights(directory))`, and Haiku's `state.npz` beside `params.npz`."""
    path = find_weights(directory)
    state = path.with_name("state.npz")
    tensors = read_tensors(path)
    return tensors | read_tensors(state) if path.name == "params.npz" and state.exists() else tensors


def _reader_of(path: Path) -> Callable[[Path], dict[str, np.ndarray]]:
    with path.open("rb") as file:
        head = file.read(32)
    if path.name.endswith(".index.json"):
        return _read_sharded
    # First of the formats told by content: the length that begins such a file may look like the beginning of a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return read_safetensors
    if path.suffix == ".msgpack":
        return _read_msgpack
    if path.name.endswith((".tar.gz", ".tgz")):
        return _read_tar
    if head.startswith(LEGACY_MAGIC):
        return _read_torch
    if head[:4] == b"PK\3\4":
        with zipfile.ZipFile(path) as archive:
            return _read_torch if any(name.split("/")[-1] == "data.pkl" for name in archive.namelist()) else _read_npz
    if path.suffix == ".joblib" or head[:1] == b"\x80":
        return lambda path: flatten(_haiku(read_joblib(path)), "/")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return read_safetensors
    raise InputError("is of no known weight format; give a safetensors, PyTorch, npz, msgpack, joblib or Orbax checkpoint")


def state_dict_of(saved: Any) -> dict[str, np.ndarray]:
    """The model's tensors in what a PyTorch file held: those under `state_dict` (Lightning) or `model_state_dict`, else all of them.

    Nested dicts get dotted names; anything that is not a tensor is left out.
    """
    if isinstance(saved, Mapping):
        saved = next((saved[key] for key in _STATE_DICTS if isinstance(saved.get(key), Mapping)), saved)
    return flatten(saved, ".")


def flatten(tree: Any, separator: str) -> dict[str, np.ndarray]:
    """The arrays of nested dicts, lists and tuples by their joined path; other leaves are left out.

    Raises:
      InputError: two arrays get one name, or the tree is absurdly deep or wide (it may hold itself).
    """
    tensors: dict[str, np.ndarray] = {}
    for count, (name, leaf) in enumerate(_leaves(tree, "", separator, _MAX_DEPTH)):
        if count > _MAX_LEAVES:
            raise InputError("holds too many entries to be a checkpoint")
        if not isinstance(leaf, np.ndarray):
            continue
        if name in tensors:
            raise InputError(f"holds two tensors named {name!r}")
        tensors[name] = leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))
    return tensors


def _leaves(tree: Any, name: str, separator: str, depth: int) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict | list | tuple):
        yield name, tree
        return
    if not depth:
        raise InputError("is nested too deeply to be a checkpoint")
    yield name, None  # containers count too
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{name}{separator}{key}" if name else str(key), separator, depth - 1)


def _haiku(tree: Any) -> Any:
    """A pair (params, state) of module trees as one tree."""
    if not (isinstance(tree, list | tuple) and len(tree) == 2 and all(isinstance(part, dict) for part in tree)):
        return tree
    both: dict[str, np.ndarray] = flatten(tree[0], "/")
    for name, x in flatten(tree[1], "/").items():
        if both.setdefault(name, x) is not x:
            raise InputError(f"holds {name!r} both as a parameter and as state")
    return both


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    saved = read_torch(path)
    with located(path):
        return state_dict_of(saved)


def _read_tar(path: Path) -> dict[str, np.ndarray]:
    """An archive with one PyTorch checkpoint in it, as Malinois is published."""
    with located(path), tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if member.isfile() and member.name.endswith((".pt", ".pth", ".ckpt", ".bin"))]
        if len(members) != 1:
            raise InputError(f"holds {len(members)} PyTorch checkpoints where one is expected; unpack it and give the folder")
        content = archive.extractfile(members[0]).read()
    saved = read_torch(f"{path}:{members[0].name}", content)
    with located(path):
        return state_dict_of(saved)


def _read_sharded(path: Path) -> dict[str, np.ndarray]:
    with located(path):
        files: dict[str, str] = json.loads(path.read_text())["weight_map"]
        tensors: dict[str, np.ndarray] = {}
        for shard in sorted(set(files.values())):
            if Path(shard).name != shard:
                raise InputError(f"names the shard {shard!r}, which is not a file of its own folder")
            tensors |= read_tensors(path.with_name(shard))
        if absent := sorted(files.keys() - tensors.keys()):
            raise InputError(f"lists {len(absent)} tensors that no shard holds ({', '.join(absent[:3])}...); download the shards again")
    return tensors


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Flat names; `module|param` is read as `module/param`. Two-byte raw values are bfloat16, which numpy stores without its name."""
    with located(path), np.load(path, allow_pickle=False) as file:
        tensors = {name.replace("|", "/"): file[name] for name in file.files}
        return flatten({name: x.view(ml_dtypes.bfloat16) if x.dtype.str == "|V2" else x for name, x in tensors.items()}, "/")


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
    """The tree that `flax.serialization.to_bytes` wrote."""
    with located(path):
        try:
            tree = msgpack.unpackb(path.read_bytes(), ext_hook=_flax_extension, raw=False, strict_map_key=False)
        except msgpack.exceptions.UnpackException as error:
            raise ValueError(error) from error
        return flatten(_join_chunks(tree), "/")


def _flax_extension(code: int, data: bytes) -> Any:
    """Flax's extension types: 1 an array and 3 a numpy scalar, both (shape, dtype name, bytes); 2 a Python complex number."""
    if code not in (1, 3):
        return None
    shape, dtype, raw = msgpack.unpackb(data, raw=True)
    name = dtype.decode()
    if not re.fullmatch(r"bool|bfloat16|float8_\w+|u?int\d+|float\d+|complex\d+", name):
        raise InputError(f"holds an array of dtype {name!r}; only numbers can be read")
    return np.frombuffer(raw, np.dtype(name)).reshape(shape)


def _join_chunks(tree: Any) -> Any:
    """Flax cuts arrays of more than 1 GiB into flat chunks."""
    if not isinstance(tree, dict):
        return tree
    if "__msgpack_chunked_array__" in tree:
        chunks, shape = tree["chunks"], tree["shape"]
        return np.concatenate([chunks[str(i)] for i in range(len(chunks))]).reshape([shape[str(i)] for i in range(len(shape))])
    return {key: _join_chunks(value) for key, value in tree.items()}


def _read_orbax(path: Path) -> dict[str, np.ndarray]:
    """An Orbax tree as host arrays, whatever devices it was saved from. Of a training run's folder, the latest step."""
    import jax  # Orbax needs JAX; no other reader does
    import orbax.checkpoint as ocp

    with located(path):
        item = _orbax_item(path.absolute())
        try:
            checkpointer = ocp.PyTreeCheckpointer()
            structure = checkpointer.metadata(item).item_metadata.tree
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
            tree = checkpointer.restore(item, restore_args=arguments)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise ValueError(error) from error
        return flatten(_haiku(tree), "/")


def _orbax_item(path: Path) -> Path:
    """The folder that holds the arrays: `path` itself, its only item or `default`, below its latest step if it has steps."""
    if (path / "_METADATA").exists():
        return path
    folders = [folder for folder in path.iterdir() if folder.is_dir()]
    if steps := [folder for folder in folders if folder.name.isdecimal()]:
        return _orbax_item(max(steps, key=lambda folder: int(folder.name)))
    items = {folder.name: folder for folder in folders if (folder / "_METADATA").exists()}
    if "default" in items or len(items) == 1:
        return items.get("default") or items.popitem()[1]
    raise InputError(
        f"is not one Orbax checkpoint (found {', '.join(sorted(items)) or 'no _METADATA'}); give the folder that holds _METADATA"
    )


def find_weights(directory: str | os.PathLike) -> Path:
    """The weight file (or Orbax folder) of a checkpoint folder, by the names under which weights are published.

    Raises:
      InputError: there is none, or several of equal rank.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder")
    if (directory / "_METADATA").exists():
        return directory
    for pattern in WEIGHT_FILES:
        found = sorted(path for path in directory.glob(pattern) if path.is_file() or pattern in ("orbax", "checkpoint"))
        if len(found) > 1:
            raise InputError(f"{directory}: holds {', '.join(path.name for path in found)}; keep one of them")
        if found:
            return found[0]
    names = sorted(path.name for path in directory.iterdir())
    listing = ", ".join(names[:8]) + ("..." if len(names) > 8 else "") if names else "nothing"
    raise InputError(f"{directory}: no weight file such as model.safetensors, pytorch_model.bin, *.ckpt, *.pt or orbax/ (found {listing})")


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
    """The model's `config.json`, `model_config.json` or `hyperparams.json`.

    Raises:
      InputError: there is none, or it is not a JSON object.
    """
    directory = Path(directory)
    path = next((directory / name for name in CONFIG_FILES if (directory / name).is_file()), None)
    if path is None:
        raise InputError(f"{directory}: no {', '.join(CONFIG_FILES)}; put the model's config beside its weights")
    with located(path):
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise InputError("is not a JSON object; it should hold the fields of the model")
    return config
