"""The tokenizer that a run reads its sequences with."""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxgen import tokenizers
from jaxgen.data.sequences import Sequences
from jaxgen.errors import InputError
from jaxgen.jobs.training import ModelSpec, say
from jaxgen.tokenizers import Tokenizer


def with_vocabulary(config: ConfigDict, spec: ModelSpec) -> ModelSpec:
    """`spec` for the tokens of `model.tokenizer`: a model of single bases that is trained from scratch changes to byte pairs.

    A model whose family knows no other tokenizer stays as it is, and so does one whose `model.config.vocab_size` is given.
    """
    given = str(config.model.tokenizer)
    if not given or spec.arrays is not None or "vocab_size" in config.model.config or not hasattr(spec.config, "vocab_size"):
        return spec
    name = spec.family.tokenizer(spec.config)[0]
    if tokenizers.published(name) is None:
        return spec
    larger = dataclasses.replace(spec.config, vocab_size=1 << 16)
    if spec.family.tokenizer(larger)[0] == name:
        return spec
    size = _size_to_learn(given) or tokenizers.get("bpe", file=given).vocab_size
    return dataclasses.replace(spec, config=dataclasses.replace(spec.config, vocab_size=size))


def _size_to_learn(given: str) -> int:
    """n for `bpe:n`, else 0."""
    return int(given.removeprefix("bpe:")) if re.fullmatch(r"bpe:\d{1,6}", given) else 0


def choose_tokenizer(config: ConfigDict, spec: ModelSpec, sequences: Iterable[bytes] | None = None) -> Tokenizer:
    """The first there is: the resumed run's own, `model.tokenizer`, the starting checkpoint's, the published one, one learned.

    Args:
      sequences: of the training split, from which a byte-pair encoding is learned for a model from scratch; none where nothing is trained.

    Raises:
      InputError: no tokenizer and nothing to learn one from, none where `model.tokenizer` or the checkpoint should have one, or one
        with more tokens than the model.
    """
    name, options = spec.family.tokenizer(spec.config)
    workdir, given = epath.Path(str(config.workdir)), str(config.model.tokenizer)
    tokenizer = None
    if any((workdir / "checkpoints").glob("step_*")):
        tokenizer = tokenizers.in_folder(name, workdir, **options)
    if tokenizer is None and (size := _size_to_learn(given)):
        if "bpe" not in name or spec.arrays is not None:
            raise InputError(f"model.tokenizer={given} learns byte pairs, for a model from scratch that can read them")
        tokenizer = _learn(name, size, sequences)
    if tokenizer is None and given:
        is_folder = epath.Path(given).is_dir()
        tokenizer = tokenizers.in_folder(name, given, **options) if is_folder else tokenizers.get(name, file=given, **options)
        if tokenizer is None:
            raise InputError(f"model.tokenizer={given}: the folder holds no vocabulary for {name!r}")
    if tokenizer is None and spec.folder:
        tokenizer = tokenizers.in_folder(name, spec.folder, **options)
    if tokenizer is None:
        tokenizer = tokenizers.published(name, **options)
    if tokenizer is None:
        if spec.arrays is not None:
            raise InputError(f"init_from={config.init_from}: holds no tokenizer.json; put it there or set model.tokenizer")
        tokenizer = _learn(name, spec.config.vocab_size, sequences)
    if tokenizer.vocab_size > getattr(spec.config, "vocab_size", tokenizer.vocab_size):
        where = given or spec.folder or config.workdir
        remedy = f"set model.config.vocab_size={tokenizer.vocab_size} to train it from scratch"
        if spec.arrays is not None:
            remedy = "its weights were trained with another vocabulary; give that as model.tokenizer"
        raise InputError(f"{where}: {tokenizer.vocab_size} tokens, but the model has {spec.config.vocab_size}; {remedy}")
    return tokenizer


def check_known(tokenizer: Tokenizer, sequences: Sequences, task: str) -> None:
    """Whether the tokenizer can read the training split, judged by up to 1,000 of its sequences.

    Raises:
      InputError: more than half of the tokens are unknown; nothing could be learned from them.
    """
    some = [sequences[i] for i in np.linspace(0, len(sequences) - 1, min(len(sequences), 1000)).astype(int)]
    share = _unknown(tokenizer, some)
    if share <= 0.5:
        return
    case = _unknown(tokenizer, [text.upper() for text in some]) <= 0.5
    remedy = "reads upper case only; write the sequences in upper case" if case else "does not know most of their letters; are they DNA?"
    raise InputError(f"{task}: {share:.0%} of the tokens of the training split are unknown: the tokenizer {tokenizer.name!r} {remedy}")


def _unknown(tokenizer: Tokenizer, texts: list[bytes]) -> float:
    """Share of unknown ids."""
    ids = np.concatenate([tokenizer.encode(text, add_special_tokens=False) for text in texts])
    return float(np.mean(ids == tokenizer.unk_id)) if len(ids) and tokenizer.unk_id is not None else 0.0


def _learn(name: str, vocab_size: int, sequences: Iterable[bytes] | None) -> Tokenizer:
    from jaxgen.tokenizers.bpe import train_bpe

    if sequences is None:
        raise InputError("the model reads byte pairs and has no vocabulary: give one as model.tokenizer, or a trained model as init_from")
    tokenizer = train_bpe(sequences, vocab_size, name.removesuffix("_bpe"))
    say(f"no vocabulary given: learned {tokenizer.vocab_size:,} tokens from the training split")
    return tokenizer
