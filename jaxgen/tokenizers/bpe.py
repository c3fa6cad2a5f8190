"""Byte-pair encodings over the `tokenizers` library: DNABERT-2's, GPT-2's byte-level one, and vocabularies learned from data.

kind       text is cut at          outside the vocabulary    around a row     padding
dnabert2   whitespace, symbols     a letter is one [UNK]     [CLS] ids [SEP]  [PAD]
gpt2       GPT-2's expression      never (256 bytes)         nothing          <|endoftext|>, the end of sequence

Sources: tokenizer.json of zhihan1996/DNABERT-2-117M; vocab.json and merges.txt of GPT-2. A file brings its own rules, whatever its kind.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import tokenizers as hf
from etils import epath

from jaxgen.errors import InputError, nearest
from jaxgen.tokenizers.framed import FramedTokenizer, as_rows

KINDS = ("dnabert2", "gpt2")
_END = "<|endoftext|>"
# Names of the special tokens by role, DNABERT-2's and GPT-2's.
_ROLES = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "bos": _END, "eos": _END}


class BPETokenizer(FramedTokenizer):
    """A byte-pair encoding read from a file.

    Args:
        file: tokenizer.json, a vocab.json with its merges.txt beside it, or a folder that holds either.
        kind: only for `name`.

    Raises:
        InputError: no such file, or not a tokenizer.
    """

    files: ClassVar = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    needs_file = True
    fixed_tokens = False

    def __init__(self, file: epath.PathLike = "", *, kind: str = ""):
        self.name = f"{kind}_bpe" if kind else "bpe"
        if not file:
            raise InputError(
                f"{self.name}: give the vocabulary as file=PATH of a tokenizer.json or of a folder with vocab.json and merges.txt"
            )
        self._set_up(read(epath.Path(file)), str(file))

    @classmethod
    def of(cls, tokenizer: hf.Tokenizer, name: str = "bpe") -> "BPETokenizer":
        """Over a tokenizer in memory."""
        new = cls.__new__(cls)
        new.name = name
        new._set_up(tokenizer, name)
        return new

    def _set_up(self, tokenizer: hf.Tokenizer, where: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.vocab_size = tokenizer, tokenizer.get_vocab_size()
        for role, token in _ROLES.items():
            setattr(self, f"{role}_id", tokenizer.token_to_id(token))
        if self.pad_id is None:
            if self.eos_id is None:
                raise InputError(f"{where}: has neither {_ROLES['pad']} nor {_END} to pad with")
            self.pad_id = self.eos_id
        framed, bare = (tokenizer.encode("A", add_special_tokens=special).ids for special in (True, False))
        first = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        self.prefix, self.suffix = tuple(framed[:first]), tuple(framed[first + len(bare) :])
        self.special_tokens = len(self.prefix) + len(self.suffix)

    def _content(self, sequences: Sequence[bytes | str], budget: int | None) -> tuple[np.ndarray, np.ndarray]:
        texts = [text if isinstance(text, str) else bytes(text).decode("utf-8", "replace") for text in sequences]
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        if budget is not None:
            rows = [row[:budget] for row in rows]
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        return as_rows(np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(counts.sum())), counts), counts

    def spans(self, sequence: bytes | str) -> tuple[np.ndarray, np.ndarray]:
        text = sequence if isinstance(sequence, str) else bytes(sequence).decode("utf-8", "replace")
        offsets = np.array(self._tokenizer.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
        return offsets[:, 0], offsets[:, 1] - offsets[:, 0]

    def decode(self, ids: np.ndarray) -> str:
        ids = np.asarray(ids).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InputError(f"{self.name}: token id outside 0..{self.vocab_size - 1}")
        if self._tokenizer.decoder is not None:
            return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return "".join([str(self._tokenizer.id_to_token(i)) for i in ids.tolist()])

    def bases_per_token(self) -> np.ndarray:
        tokens = [self._tokenizer.id_to_token(i) or "" for i in range(self.vocab_size)]
        return np.array([0 if set(token) - set("ACGT") else len(token) for token in tokens], np.int32)

    def vocabulary(self) -> dict[str, str]:
        return {"tokenizer.json": self._tokenizer.to_str(pretty=True)}


def read(file: epath.Path) -> hf.Tokenizer:
    """The tokenizer in a tokenizer.json, a vocab.json with merges.txt, or a folder of either.

    Raises:
        InputError: none there, or it cannot be read.
    """
    try:
        if file.is_dir():
            found = next((names for names in BPETokenizer.files if all((file / name).exists() for name in names)), None)
            if found is None:
                raise InputError(f"{file}: holds no tokenizer.json, nor vocab.json with merges.txt")
            file = file / found[0]
        if file.name != "vocab.json":
            return hf.Tokenizer.from_str(file.read_text())
        return _byte_level(hf.models.BPE.from_file(str(file), str(file.with_name("merges.txt"))))
    except InputError:
        raise
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"{file}: cannot be read as a tokenizer ({' '.join(str(error).split())[:120]})") from error


def train_bpe(sequences: Iterable[bytes | str], vocab_size: int, kind: str = "dnabert2", max_bases: int = 10_000_000) -> BPETokenizer:
    """Learn a vocabulary; the same sequences always give the same one.

    Args:
        sequences: DNA; upper case is not enforced.
        vocab_size: largest number of tokens, special ones included.
        kind: whose rules and special tokens, one of `KINDS`.
        max_bases: sequences are taken until they hold this many letters.

    Raises:
        InputError: unknown kind, or a vocabulary smaller than the special tokens and the letters.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of BPE {kind!r}{nearest(kind, KINDS)}")
    texts, letters = [], 0
    for sequence in sequences:
        if letters >= max_bases:
            break
        texts.append(sequence if isinstance(sequence, str) else sequence.decode("ascii", "replace"))
        letters += len(texts[-1])
    options: dict[str, Any] = {"vocab_size": vocab_size, "show_progress": False}
    if kind == "gpt2":
        tokenizer = _byte_level(hf.models.BPE())
        options |= {"special_tokens": [_END], "initial_alphabet": sorted(hf.pre_tokenizers.ByteLevel.alphabet())}
    else:
        specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
        tokenizer = hf.Tokenizer(hf.models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
        tokenizer.post_processor = hf.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", specials.index("[CLS]")), ("[SEP]", specials.index("[SEP]"))],
        )
        # Other letters stay unknown, as in the published vocabulary.
        options |= {"special_tokens": specials, "initial_alphabet": list("ACGT"), "limit_alphabet": 4}
    smallest = len(options["special_tokens"]) + len(options["initial_alphabet"])
    if vocab_size < smallest:
        raise InputError(f"a vocabulary of {vocab_size} tokens is too small for the kind {kind!r}; give {smallest} or more")
    tokenizer.train_from_iterator(texts, hf.trainers.BpeTrainer(**options))
    return BPETokenizer.of(tokenizer, f"{kind}_bpe")


def _byte_level(model: hf.models.Model) -> hf.Tokenizer:
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    if tokenizer.token_to_id(_END) is not None:
        tokenizer.add_special_tokens([_END])
    return tokenizer
