"""What operations that XLA's partitioner handles badly need to know of the mesh in force."""

import math

import jax


def distributed() -> bool:
    """Whether a mesh of more than one device is in force."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def dividing_axes(names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Those of the mesh axes `names` that split anything, if an axis of `size` divides over them; else None (replicated)."""
    shape = jax.sharding.get_abstract_mesh().shape
    present = tuple(name for name in names if shape.get(name, 1) > 1)
    return present if present and size % math.prod(shape[name] for name in present) == 0 else None
