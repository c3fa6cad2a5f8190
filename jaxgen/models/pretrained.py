"""`jaxgen.load` and `jaxgen.export`: public checkpoints in and out, and workdirs of our own runs."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from jaxgen import tokenizers
from jaxgen.checkpoints import hub, key_table, readers, workdir
from jaxgen.checkpoints.safetensors_io import write_safetensors
from jaxgen.errors import InputError, nearest, short
from jaxgen.layers.adapters import merge_arrays
from jaxgen.layers.variables import named_arrays, with_arrays
from jaxgen.models.family import Family, check_fields, override
from jaxgen.models.registry import FAMILIES, family_of, get_family


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights, its tokenizer and its config. `head` holds task-head tensors of the file under their public names.

    `tokenizer` is None for a model with a byte-pair encoding whose folder holds no tokenizer.json, and where the published vocabulary is
    not the one that the weights were trained with.
    """

    model: nnx.Module
    tokenizer: Any
    config: Any
    head: Mapping[str, np.ndarray]

    def __call__(self, tokens: Any, **kwargs: Any) -> Any:
        return self.model(jnp.asarray(tokens), **kwargs)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A checkpoint as read from `folder`: arrays under our names, not yet on a device."""

    family: Family
    config: Any
    arrays: Mapping[str, np.ndarray]
    head: Mapping[str, np.ndarray]
    folder: epath.PathLike


def shapes_of(family: Family, config: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array of the model, without building it."""
    abstract = nnx.eval_shape(lambda: family.build(config, nnx.Rngs(0)))
    return {name: tuple(x.shape) for name, x in named_arrays(nnx.state(abstract)).items()}


def read_weights(path_or_hub_id: str, fields: Mapping[str, Any] | None = None, expected: Family | None = None) -> Weights:
    """Read a public checkpoint folder, a hub id, or the workdir of an earlier run (its best step).

    Args:
      fields: config fields to change, e.g. {"modulation_shift": 0.0}.
      expected: the family that it must be of; None for any.

    Raises:
      InputError: nothing readable there, another family, or tensors that do not fit the config (all of them are listed).
    """
    folder = epath.Path(path_or_hub_id) if "://" in str(path_or_hub_id) else hub.resolve(path_or_hub_id)
    if workdir.is_workdir(folder):
        run_model = workdir.read_model(folder)
        family = _expect(get_family(run_model["family"]), expected, folder)
        try:
            config = override(family.config(**run_model["config"]), fields or {})
        except TypeError as error:
            raise InputError(f"{folder / workdir.MODEL_FILE}: not the model of a run of this version ({short(error)})") from error
        arrays = workdir.read_arrays(folder)
        backbone = {name.removeprefix("backbone."): x for name, x in arrays.items() if name.startswith("backbone.")}
        if "adapter" in run_model:
            backbone = merge_arrays(backbone, run_model["adapter"]["owners"])
        _check_same(backbone, shapes_of(family, config), str(folder))
        return Weights(family, config, backbone, {n: x for n, x in arrays.items() if not n.startswith("backbone.")}, folder)
    public, weights_file = readers.read_config(folder), readers.find_weights(folder)
    raw = key_table.unwrapped(readers.read_tensors(weights_file))
    family = _expect(_recognise(public, raw, folder), expected, folder)
    tensors = family.public_names(raw)
    config, shapes = _read_config(family, public, tensors, Path(weights_file), fields or {})
    head = {name: tensor for name, tensor in tensors.items() if re.search(family.head_keys, name)}
    body = {name: tensor for name, tensor in tensors.items() if name not in head}
    rows, sizes = family.key_table(config), family.table_sizes(config)
    arrays = key_table.load(body, rows, shapes, sizes=sizes, dtype=np.float32, where=str(weights_file))
    return Weights(family, config, arrays, head, folder)


def family_at(path_or_hub_id: str, expected: Family | None) -> Family | None:
    """The family of an earlier run of jaxgen; `expected` for a public checkpoint, which is not read, and a Hub id, which is not downloaded.

    Raises:
      InputError: nothing there, or another family than expected.
    """
    folder = epath.Path(path_or_hub_id) if "://" in path_or_hub_id else hub.local(path_or_hub_id)
    if folder is None or not workdir.is_workdir(folder):
        return expected
    return _expect(get_family(workdir.read_model(folder)["family"]), expected, folder)


def with_head(family: Family, config: Any, arrays: Mapping[str, np.ndarray], n_labels: int) -> dict[str, Any]:
    """`config` and `arrays` for a model with its published classification head of `n_labels`, or with 0 its language-model head.

    Heads of the checkpoint that do not fit are left out of the arrays.

    Raises:
      InputError: a family without published heads.
    """
    if not family.own_head:
        raise InputError(f"num_labels={n_labels}: {family.name} has no published classification head")
    headed = override(config, {"num_labels": n_labels})
    shapes = shapes_of(family, headed)
    fits = {name: x for name, x in arrays.items() if not re.search(family.own_head, name) or shapes.get(name) == x.shape}
    return {"config": headed, "arrays": fits}


def load(path_or_hub_id: str, dtype: str = "float32", **fields: Any) -> Pretrained:
    """Load a model from a folder (offline), a hub id, or the workdir of an earlier run.

    Args:
      path_or_hub_id: folder with a public checkpoint (config.json + weights), `owner/name` on the hub, or a jaxgen workdir.
      dtype: compute dtype, "float32" or "bfloat16"; parameters stay float32.
      **fields: config fields to change, e.g. `modulation_shift=0.0`. `num_labels=n` puts the public classification head on the model, as
        transformers does: the checkpoint's if it has one of that size, else a fresh one.

    Raises:
      InputError: another dtype; not readable, of no known family, or with missing, unused or misshapen tensors.
    """
    n_labels = fields.pop("num_labels", None)
    weights = read_weights(path_or_hub_id, fields | {"dtype": _compute_dtype(dtype)})
    if n_labels is not None:
        weights = dataclasses.replace(weights, **with_head(weights.family, weights.config, weights.arrays, n_labels))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: weights.family.build(weights.config, nnx.Rngs(0))))
    if set(named_arrays(state)) - set(weights.arrays):  # a fresh head needs initial values
        state = nnx.state(weights.family.build(weights.config, nnx.Rngs(0)))
    arrays = {name: jnp.asarray(x, old.dtype) for name, old in named_arrays(state).items() if (x := weights.arrays.get(name)) is not None}
    model = nnx.merge(graphdef, with_arrays(state, arrays))
    name, options = weights.family.tokenizer(weights.config)
    tokenizer = tokenizers.in_folder(name, weights.folder, **options) or tokenizers.published(name, **options)
    if tokenizer is not None and tokenizer.vocab_size > getattr(weights.config, "vocab_size", tokenizer.vocab_size):
        tokenizer = None  # ids that the model has no embedding for would give NaN
    return Pretrained(model, tokenizer, weights.config, weights.head)


def _compute_dtype(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float32", "bfloat16"):
        raise InputError(f"dtype={name!r}{nearest(name, ('float32', 'bfloat16'))}")
    return name


def export(model: Pretrained | nnx.Module, directory: str | Path) -> Path:
    """Write the public format: `config.json` and `model.safetensors` with the public key names. Returns the directory."""
    pretrained = model if isinstance(model, Pretrained) else None
    module = pretrained.model if pretrained else model
    config = module.config
    family = family_of(config)
    arrays = {name: np.asarray(jax.device_get(x)) for name, x in named_arrays(nnx.state(module)).items()}
    public = key_table.export(arrays, family.key_table(config), sizes=family.table_sizes(config))
    tensors = {family.export_name(name): tensor for name, tensor in public.items()}
    if pretrained:
        tensors |= pretrained.head
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    temporary = directory / f".config.json.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(family.write_config(config), indent=2) + "\n")
        temporary.replace(directory / "config.json")
    finally:
        temporary.unlink(missing_ok=True)
    if pretrained and pretrained.tokenizer is not None:
        pretrained.tokenizer.save(directory)
    return directory


def _read_config(
    family: Family, public: Mapping[str, Any], tensors: Mapping[str, np.ndarray], weights_file: Path, fields: Mapping[str, Any]
) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The config beside a weight file with `fields` changed, and `shapes_of` it.

    Raises:
      InputError: it lacks a field, or has one of which no model can be made.
    """
    where = f"{weights_file.parent}: the config"
    try:
        config = family.read_config(public, tensors, weights_file.name)
        check_fields(config, where)
        config = override(config, fields)
        return config, shapes_of(family, config)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{where} lacks {error}, which a {family.name} checkpoint needs") from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{where} makes no {family.name} model ({short(error)}); compare it with the published one") from error


def _recognise(public: Mapping[str, Any], tensors: Mapping[str, np.ndarray], folder: Any) -> Family:
    for name in FAMILIES:
        family = get_family(name)
        if family.recognises(public, tensors):
            return family
    kind = public.get("model_type", "unknown")
    raise InputError(f"{folder}: a checkpoint of model_type {kind!r}; this version of jaxgen reads {', '.join(FAMILIES)}")


def _expect(found: Family, expected: Family | None, where: Any) -> Family:
    if expected is not None and found is not expected:
        raise InputError(f"{where} is a {found.name} checkpoint, but a {expected.name} was asked for")
    return found


def _check_same(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    missing = sorted(shapes.keys() - arrays.keys())
    unused = sorted(arrays.keys() - shapes.keys())
    wrong = sorted(n for n in shapes.keys() & arrays.keys() if tuple(arrays[n].shape) != shapes[n])
    if missing or unused or wrong:
        raise InputError(f"{where} does not fit its own model.json: missing {missing[:4]}, unused {unused[:4]}, mismatched {wrong[:4]}")
