"""Families by name; an architecture is imported when it is asked for."""

import importlib
from typing import Any

from jaxgen.errors import InputError, nearest
from jaxgen.models.family import Family

# Family -> module. A new architecture is one file and one line here.
FAMILIES = {
    "cnn": "jaxgen.models.cnn",
    "hyenadna": "jaxgen.models.hyenadna",
}


def get_family(name: str) -> Family:
    if name not in FAMILIES:
        raise InputError(f"unknown model family {name!r}{nearest(name, FAMILIES)}")
    return importlib.import_module(FAMILIES[name]).FAMILY


def resolve(name: str) -> tuple[Family, Any]:
    """FAMILY or FAMILY_SIZE -> (family, config of that size).

    Raises:
      InputError: an unknown family or size, with the nearest one.
    """
    matching = [family for family in FAMILIES if name == family or name.startswith(family + "_")]
    if not matching:
        raise InputError(f"model.name={name!r}: no such model{nearest(name, model_names())}")
    family = get_family(max(matching, key=len))
    size = name[len(family.name) + 1 :] or family.default_size
    if size not in family.sizes:
        raise InputError(f"model.name={name!r}: {family.name} has no size {size!r}{nearest(size, family.sizes)}")
    return family, family.sizes[size]


def model_names() -> list[str]:
    """All names that `resolve` takes."""
    return [n for family in FAMILIES for n in (family, *(f"{family}_{size}" for size in get_family(family).sizes))]


def family_of(config: Any) -> Family:
    """The family that a config belongs to."""
    for name in FAMILIES:
        family = get_family(name)
        if isinstance(config, family.config):
            return family
    raise TypeError(f"{type(config).__name__} is not the config of a model of jaxgen")
