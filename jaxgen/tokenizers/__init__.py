"""Tokenizers by name: `get("caduceus")`. A tokenizer's module is imported when it is first asked for."""

from importlib import import_module
from typing import Any

from etils import epath

from jaxgen.errors import InputError, nearest
from jaxgen.tokenizers.base import Tokenizer

__all__ = ["Tokenizer", "get", "in_folder", "names", "published"]

# name -> (module, attribute, fixed options)
_REGISTRY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bpe": ("bpe", "BPETokenizer", {}),
    "caduceus": ("char", "CharTokenizer", {"variant": "caduceus"}),
    "character": ("char", "CharTokenizer", {"variant": "character"}),
    "dnabert": ("kmer", "DNABertTokenizer", {}),
    "dnabert2_bpe": ("bpe", "BPETokenizer", {"kind": "dnabert2"}),
    "gpt2_bpe": ("bpe", "BPETokenizer", {"kind": "gpt2"}),
    "hyenadna_hf": ("char", "CharTokenizer", {"variant": "hyenadna_hf"}),
    "nt_v1": ("kmer", "NucleotideTransformerTokenizer", {"version": 1}),
    "nt_v2": ("kmer", "NucleotideTransformerTokenizer", {"version": 2}),
    "plantcaduceus": ("char", "CharTokenizer", {"variant": "plantcaduceus"}),
}


def names() -> list[str]:
    """Names that `get` knows."""
    return sorted(_REGISTRY)


def get(name: str, **options: Any) -> Tokenizer:
    """The tokenizer registered as `name`, built with `options`.

    Raises:
        InputError: unknown name (the nearest one is named) or unknown option.
    """
    factory, fixed = _factory(name)
    try:
        return factory(**fixed, **options)
    except TypeError as error:
        raise InputError(f"tokenizer {name!r}: {error}") from error


def in_folder(name: str, folder: epath.PathLike, **options: Any) -> Tokenizer | None:
    """The tokenizer `name` with the vocabulary that lies in `folder` (tokenizer.json, vocab.txt, vocab.json with merges.txt).

    Returns:
        None if `folder` holds none.

    Raises:
        InputError: a vocabulary that cannot be read or is not one of `name`.
    """
    for files in getattr(_factory(name)[0], "files", ()):
        if all((epath.Path(folder) / file).exists() for file in files):
            return get(name, file=epath.Path(folder) / files[0], **options)
    return None


def published(name: str, **options: Any) -> Tokenizer | None:
    """The tokenizer `name` with its published vocabulary; None for a byte-pair encoding, whose vocabulary is a file."""
    return None if getattr(_factory(name)[0], "needs_file", False) else get(name, **options)


def _factory(name: str) -> tuple[Any, dict[str, Any]]:
    if name not in _REGISTRY:
        raise InputError(f"unknown tokenizer {name!r}{nearest(name, _REGISTRY)}")
    module, attribute, fixed = _REGISTRY[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute), fixed
