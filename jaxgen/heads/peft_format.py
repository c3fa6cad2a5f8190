"""Adapters on disk as peft keeps them: `adapter_config.json` and `adapter_model.safetensors`, with the public names of the base model.

IA3 vectors lie under `base_model.model.LAYER.ia3_l`, (out, 1) where they scale the output and (1, in) where the input; LoRA under
`LAYER.lora_A.weight` (rank, in) and `LAYER.lora_B.weight` (out, rank). The model's own task head comes along whole.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxgen.checkpoints import key_table
from jaxgen.checkpoints.key_table import KeyTableError, Row
from jaxgen.checkpoints.safetensors_io import read_safetensors, write_safetensors
from jaxgen.errors import InputError
from jaxgen.heads.adapters import HEAD_MODULES, Adapter, Layout, adapt, placements
from jaxgen.layers.variables import named_arrays, with_arrays

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Options of LoRA that change its maths and that we do not have: field -> the value that leaves it alone.
_PLAIN = {"bias": "none", "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None}


def load_adapter(model: nnx.Module, layout: Layout, directory: str | os.PathLike) -> Adapter:
    """Put the adapter of a folder, and the task head that comes with it, on a base model, in place.

    Raises:
      InputError: no adapter there, one of another kind, or one that was made for another base model.
    """
    folder = Path(directory)
    config = _read_config(folder)
    tensors = {name.removeprefix(PREFIX): x for name, x in read_safetensors(folder / WEIGHTS).items()}
    adapter = _adapter(config, layout, folder)
    adapt(model, adapter, layout, nnx.Rngs(0))
    tensors = layout.public_names(tensors)
    rows = adapter_rows(adapter, layout)
    if config.get("modules_to_save"):
        rows += layout.head_rows()
    state = nnx.state(model)
    ours = {name for row in rows for name in row.parameters}
    shapes = {name: tuple(x.shape) for name, x in named_arrays(state).items() if name in ours}
    try:
        arrays = key_table.load(tensors, rows, shapes, sizes=layout.sizes, dtype=np.float32, where=str(folder))
    except KeyTableError as error:
        problems = "; ".join(" ".join(problem.split()) for problem in error.problems[:3])
        raise InputError(f"{folder}: this adapter was made for another base model than this one ({problems})") from error
    nnx.update(model, with_arrays(state, {name: jax.numpy.asarray(x) for name, x in arrays.items()}))
    return adapter


def save_adapter(arrays: Mapping[str, Any], adapter: Adapter, layout: Layout, directory: str | os.PathLike, *, base: str = "") -> Path:
    """Write the adapter of a model, with the model's own task head if it has one.

    Args:
      arrays: `named_arrays` of the adapted model; others may be among them.
      base: name or folder of the base model, for the record.

    Returns:
      the directory.
    """
    rows, head = adapter_rows(adapter, layout), layout.head_rows()
    ours = {name: np.asarray(arrays[name]) for row in [*rows, *head] for name in row.parameters if name in arrays}
    public = key_table.export(ours, [*rows, *head], sizes=layout.sizes, where=str(directory))
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, {PREFIX + layout.export_name(name): x for name, x in public.items()}, {"format": "pt"})
    config = _public_config(adapter, layout, base, bool(head))
    temporary = folder / (CONFIG + ".tmp")
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder / CONFIG)
    return folder


def adapter_rows(adapter: Adapter, layout: Layout) -> list[Row]:
    """The key table of an adapter's own parameters."""
    rows = []
    for place in placements(adapter, layout.rows):
        owner = min(place.ours)
        if adapter.kind == "lora":
            rows.append(Row(f"{place.public}.lora_A.weight", f"{owner}.lora_a", key_table.LINEAR))
            rows.append(Row(f"{place.public}.lora_B.weight", tuple(f"{name}.lora_b" for name in place.ours), key_table.LINEAR, axis=1))
        elif place.scale_input:
            rows.append(Row(f"{place.public}.ia3_l", f"{owner}.ia3_in", "1 i -> i"))
        else:
            rows.append(Row(f"{place.public}.ia3_l", tuple(f"{name}.ia3_out" for name in place.ours), "o 1 -> o"))
    return rows


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"{folder / CONFIG}: cannot be read as JSON ({error}); an adapter is a folder with {CONFIG} and {WEIGHTS}"
        ) from error


def _adapter(config: Mapping[str, Any], layout: Layout, folder: Path) -> Adapter:
    kind = str(config.get("peft_type")).lower()
    if kind not in ("ia3", "lora"):
        raise InputError(f"{folder}: a {config.get('peft_type')} adapter; IA3 and LORA can be read")
    targets, feedforward = config.get("target_modules") or (), config.get("feedforward_modules") or ()
    if targets == "all-linear":
        targets = ()
    elif isinstance(targets, str) or isinstance(feedforward, str):
        raise InputError(f"{folder / CONFIG}: target_modules is a regular expression; list the names of the layers")
    odd = [name for name, value in _PLAIN.items() if kind == "lora" and config.get(name, value) not in (value, None)]
    if odd:
        raise InputError(f"{folder / CONFIG}: {odd[0]}={config[odd[0]]!r} is not supported")
    options = {"rank": config["r"], "alpha": float(config["lora_alpha"])} if kind == "lora" else {}
    try:  # a list serves several models, so names that this one lacks are no mistake unless it lacks them all
        present = {field: tuple(t for t in names if _is_layer(t, layout)) for field, names in (("t", targets), ("f", feedforward))}
        if targets and not present["t"]:
            raise InputError(f"none of {', '.join(targets)} is a layer of it")
        adapter = Adapter(kind, present["t"], present["f"] if kind == "ia3" else (), **options)
        placements(adapter, layout.rows)
    except InputError as error:
        raise InputError(f"{folder}: this adapter was made for another base model than this one ({error})") from error
    return adapter


def _is_layer(name: str, layout: Layout) -> bool:
    try:
        return bool(placements(Adapter("ia3", (name,)), layout.rows))
    except InputError:
        return False


def _public_config(adapter: Adapter, layout: Layout, base: str, head: bool) -> dict[str, Any]:
    targets = adapter.targets or tuple(sorted({place.public.rpartition("}.")[2] for place in placements(adapter, layout.rows)}))
    common = {
        "auto_mapping": None,
        "base_model_name_or_path": base or None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": list(HEAD_MODULES) if head else None,
        "peft_type": adapter.kind.upper(),
        "revision": None,
        "target_modules": list(targets),
        "task_type": "SEQ_CLS" if head else None,
    }
    if adapter.kind == "ia3":
        return common | {"feedforward_modules": list(adapter.feedforward), "init_ia3_weights": True}
    plain = {name: value for name, value in _PLAIN.items() if name != "layers_to_transform"}
    return common | {"r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": 0.0, "init_lora_weights": True} | plain
