"""What operations that XLA's partitioner handles badly need to know of the mesh in force."""

import math

import jax


def distributed() -> bool:
    """Whether XLA's partitioner divides arrays over more than one device here: not inside a shard_map over all of the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(size > 1 and axis not in mesh.manual_axes for axis, size in mesh.shape.items())


def dividing_axes(names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Those of the mesh axes `names` that split anything, if an axis of `size` divides over them; else None (replicated)."""
    shape = jax.sharding.get_abstract_mesh().shape
    present = tuple(name for name in names if shape.get(name, 1) > 1)
    return present if present and size % math.prod(shape[name] for name in present) == 0 else None
