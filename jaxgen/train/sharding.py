"""The mesh, and the one table that maps logical axes to it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import InputError
from jaxgen.layers.variables import is_variable

MESH_AXES = ("data", "fsdp", "tensor", "sequence")
# Arrays of a batch whose second axis is positions.
LENGTHWISE = ("tokens", "targets", "mask")
# Logical axis -> mesh axis or axes. The only place that knows both vocabularies.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    None: None,
    "layers": None,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "batch": ("data", "fsdp"),
    "length": "sequence",
}


def make_mesh(sizes: Mapping[str, int], devices: list[Any] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor, sequence; one size may be -1, meaning "the rest".

    Raises:
      InputError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[axis]) for axis in MESH_AXES]
    if any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise InputError(f"mesh: sizes must be positive, with at most one -1, got {dict(zip(MESH_AXES, shape))}")
    known = int(np.prod([size for size in shape if size != -1]))
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        wanted = dict(zip(MESH_AXES, shape))
        raise InputError(f"mesh: {wanted} needs {known} devices (or a multiple, with -1), but there are {len(devices)}")
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def partition_spec(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Placement of an array from the logical names of its last axes; an axis that does not divide evenly is replicated."""
    axes = ("layers",) * (len(shape) - len(axes)) + tuple(axes)
    entries = []
    for name, size in zip(axes, shape):
        target = RULES[name]
        group = (target,) if isinstance(target, str) else (target or ())
        ways = int(np.prod([mesh.shape[axis] for axis in group])) if group else 1
        entries.append(target if ways > 1 and size % ways == 0 else None)
    return PartitionSpec(*entries)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """A sharding for every array of a train state: parameters and what mirrors them by their logical axes, the rest replicated."""

    def place(leaf: Any) -> Any:
        if not is_variable(leaf):
            return NamedSharding(mesh, PartitionSpec())
        value = leaf.get_value()
        axes = leaf.get_metadata().get("axes") or ()
        return leaf.replace(NamedSharding(mesh, partition_spec(mesh, axes, value.shape)))

    return jax.tree.map(place, abstract_state, is_leaf=is_variable)


def batch_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Rows over (data, fsdp); token arrays also over `sequence`.

    Raises:
      InputError: when the batch does not divide over the mesh.
    """
    rows = shape[0]
    axes: list[str | None] = ["batch", "length"] if name in LENGTHWISE and len(shape) > 1 else ["batch"]
    spec = partition_spec(mesh, (*axes, *[None] * (len(shape) - len(axes))), shape)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise InputError(f"train.batch_size: {rows} rows do not divide over {ways} devices (mesh.data x mesh.fsdp)")
    return NamedSharding(mesh, spec)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of every array -> global arrays on the mesh."""
    n = jax.process_count()
    out = {}
    for name, local in batch.items():
        shape = (local.shape[0] * n, *local.shape[1:])
        sharding = batch_sharding(mesh, name, shape)
        out[name] = jax.device_put(local, sharding) if n == 1 else jax.make_array_from_process_local_data(sharding, local, shape)
    return out
