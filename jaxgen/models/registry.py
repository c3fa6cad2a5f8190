"""Families by name; an architecture is imported when it is asked for."""

import importlib
from typing import Any

from jaxgen.errors import InputError, nearest
from jaxgen.models.family import Family

# Family -> module that holds it as FAMILY, or module:NAME. A new architecture is one file and one line here.
FAMILIES = {
    "caduceus_ph": "jaxgen.models.caduceus:PH",
    "caduceus_ps": "jaxgen.models.caduceus:PS",
    "cnn": "jaxgen.models.cnn",
    "dnabert": "jaxgen.models.dnabert",
    "dnabert2": "jaxgen.models.dnabert2",
    "gpt_neo": "jaxgen.models.gpt_neo",
    "hyenadna": "jaxgen.models.hyenadna",
    "mamba": "jaxgen.models.mamba",
    "nt_v1": "jaxgen.models.nucleotide_transformer:V1",
    "nt_v2": "jaxgen.models.nucleotide_transformer:V2",
}


def get_family(name: str) -> Family:
    if name not in FAMILIES:
        raise InputError(f"unknown model family {name!r}{nearest(name, FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or "FAMILY")


def resolve(name: str) -> tuple[Family, Any]:
    """FAMILY or FAMILY_SIZE -> (family, config of that size).

    Raises:
      InputError: an unknown family or size, with the nearest one.
    """
    matching = [family for family in FAMILIES if name == family or name.startswith(family + "_")]
    if not matching:
        raise InputError(f"model.name={name!r}: no such model{nearest(name, model_names(), FAMILIES)}")
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
