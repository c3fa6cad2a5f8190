"""Tokenizers by name: `get("caduceus")`. A tokenizer's module is imported when it is first asked for."""

from importlib import import_module
from typing import Any

from jaxgen.errors import InputError, nearest
from jaxgen.tokenizers.base import Tokenizer

__all__ = ["Tokenizer", "get", "names"]

# name -> (module, attribute, fixed options)
_REGISTRY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "caduceus": ("char", "CharTokenizer", {"variant": "caduceus"}),
    "character": ("char", "CharTokenizer", {"variant": "character"}),
    "hyenadna_hf": ("char", "CharTokenizer", {"variant": "hyenadna_hf"}),
}


def names() -> list[str]:
    """Names that `get` knows."""
    return sorted(_REGISTRY)


def get(name: str, **options: Any) -> Tokenizer:
    """The tokenizer registered as `name`, built with `options`.

    Raises:
        InputError: unknown name (the nearest one is named) or unknown option.
    """
    if name not in _REGISTRY:
        raise InputError(f"unknown tokenizer {name!r}{nearest(name, _REGISTRY)}")
    module, attribute, fixed = _REGISTRY[name]
    factory = getattr(import_module(f"{__name__}.{module}"), attribute)
    try:
        return factory(**fixed, **options)
    except TypeError as error:
        raise InputError(f"tokenizer {name!r}: {error}") from error
