"""Flat, readable views of module state: `blocks.fc1.kernel` -> array."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx


def is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def named_arrays(tree: Any) -> dict[str, Any]:
    """Every array (or abstract array) of a state or other tree by its dotted path, whatever the container types."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]:
        name = ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)
        named[name] = leaf.get_value() if is_variable(leaf) else leaf
    return named


def with_arrays(tree: Any, named: Mapping[str, Any]) -> Any:
    """`tree` with those of its arrays replaced that `named` holds: the inverse of `named_arrays`."""
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=is_variable)
    new = []
    for (name, old), leaf in zip(named_arrays(tree).items(), leaves):
        value = named.get(name, old)
        new.append(leaf.replace(value) if is_variable(leaf) else value)
    return jax.tree_util.tree_unflatten(treedef, new)
