"""Tokenizers whose tokens are k-mers: Nucleotide Transformer (one after the other) and DNABERT (overlapping).

class                   tokens of a stretch of A, C, G, T                  around a row     letters in lower case
NucleotideTransformer   k-mers one after the other, the rest base by base  <cls> ids        a stretch is one <unk>
DNABert                 every k-mer, each one base after the last          [CLS] ids [SEP]  a k-mer that has one is [UNK]

Sources: transformers' EsmTokenizer over the published vocab.txt (greedy longest match), instadeepai/nucleotide-transformer
tokenizers.py (the same ids on A, C, G, T and N); jerryji1993/DNABERT vocab.txt read by transformers' BertTokenizer without lower-casing.
Texts are ASCII; any other character counts as an unknown letter.
"""

import itertools
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from etils import epath

from jaxgen.errors import InputError
from jaxgen.tokenizers.base import as_bytes
from jaxgen.tokenizers.framed import FramedTokenizer, as_rows

ALPHABET = "ATCG"  # the order of both published vocabularies
_OTHER = 4  # code of a letter that is no base; k-mers are numbers of base 5, so that one table also answers "unknown"
_MARK = 128  # special tokens written in the text become single bytes from here on

# Classes of bytes.
_LETTER, _BASE, _SINGLE, _SPACE = range(4)


class KmerTokenizer(FramedTokenizer):
    """What both have in common: the vocabulary, the numbers of k-mers, and the stretches of a text.

    Args:
        k: letters per k-mer, 1 to 6.
        specials: role ("unk", "pad", ...) -> special token, in the order of the ids.
        after: tokens after the k-mers.
        singles: letters that are a token each.
        file: a vocab.txt to read in place of the published vocabulary; it brings its own k.
    """

    files: ClassVar = (("vocab.txt",),)
    spaces: bytes
    removed: bytes = b""

    def __init__(self, k: int, specials: Mapping[str, str], after: Sequence[str], singles: bytes, file: epath.PathLike | None):
        tokens = read_vocabulary(file) if file else None
        self.k = k if tokens is None else kmer_length(tokens)
        if not 1 <= self.k <= 6:
            raise InputError(f"{file or self.name}: k-mers of k={self.k} letters; k must be 1 ... 6")
        kmers = list(map("".join, itertools.product(ALPHABET, repeat=self.k)))
        self.tokens = tuple(tokens or [*specials.values(), *kmers, *after])
        self.vocab_size, ids = len(self.tokens), {token: i for i, token in enumerate(self.tokens)}
        absent = [token for token in (*specials.values(), *kmers, *after) if token not in ids]
        if absent:
            raise InputError(f"{file}: lacks {', '.join(absent[:3])}; {self.name!r} needs its special tokens and all {self.k}-mers")
        for role, token in specials.items():
            setattr(self, f"{role}_id", ids[token])
        self._unknown = ids[specials["unk"]]

        # Bytes from _MARK on mean special tokens, so those of a text become letters that mean nothing.
        self._plain = bytes(range(_MARK)) + b"x" * (256 - _MARK)
        self._marks = {token.encode(): bytes([_MARK + i]) for i, token in enumerate(specials.values())}
        self._opening = next(iter(self._marks))[:1]
        self._special = re.compile(b"|".join(map(re.escape, self._marks)))
        self._codes = _byte_table(_OTHER, *((base, i) for i, base in enumerate(ALPHABET.encode())))
        singles += b"".join(self._marks.values())
        self._classes = _byte_table(
            _LETTER, *((i, _BASE) for i in ALPHABET.encode()), *((i, _SINGLE) for i in singles), *((i, _SPACE) for i in self.spaces)
        )

        self._single_ids = np.full(256, self._unknown, np.int32)
        for token, i in ids.items():
            byte = self._marks.get(token.encode(), token.encode())
            if len(byte) == 1:
                self._single_ids[byte[0]] = i
        self._kmer_ids = np.full(5**self.k, self._unknown, np.int32)
        self._kmer_ids[self._numbers(np.indices((4,) * self.k, np.uint8).reshape(self.k, -1))] = [ids[kmer] for kmer in kmers]

    def _numbers(self, letters: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """k arrays of codes, first letters first -> uint16 numbers of the k-mers."""
        number = letters[0].astype(np.uint16)
        for letter in letters[1:]:
            number *= np.uint16(5)
            number += letter
        return number

    def _stretches(self, contents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The texts one after the other, cut where the class of the letters changes.

        Returns:
            (uint8 text with special tokens as single bytes; for each stretch its class, start and length; (B + 1,) starts of the rows).
        """
        contents = [self._marked(content.translate(self._plain, self.removed)) for content in contents]
        text = b" ".join([*contents, b" "])  # a space ends every stretch and is nothing itself
        rows = np.cumsum([0, *(len(content) + 1 for content in contents)])
        classes = np.frombuffer(text.translate(self._classes), np.uint8)
        starts = np.concatenate([[0], np.flatnonzero(classes[1:] != classes[:-1]) + 1])
        return np.frombuffer(text, np.uint8), classes[starts], starts, np.diff(starts, append=len(text)), rows

    def _marked(self, content: bytes) -> bytes:
        if self._opening not in content:
            return content
        return self._special.sub(lambda found: self._marks[found[0]], content)

    def _kmers_at(self, text: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Ids of the k-mers that begin at `starts`."""
        codes = np.frombuffer(text.tobytes().translate(self._codes), np.uint8)
        return self._kmer_ids[self._numbers([codes[starts + i] for i in range(self.k)])]

    @abstractmethod
    def bases_in(self, tokens: int) -> int:
        """Bases that fill so many tokens."""

    def bases_per_token(self) -> np.ndarray:
        return np.array([0 if set(token) - set(ALPHABET) else len(token) for token in self.tokens], np.int32)

    def vocabulary(self) -> dict[str, str]:
        return {"vocab.txt": "\n".join(self.tokens) + "\n"}

    def _checked(self, ids: np.ndarray) -> list[str]:
        ids = np.asarray(ids).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InputError(f"{self.name}: token id outside 0..{self.vocab_size - 1}")
        return [self.tokens[i] for i in ids.tolist()]


class NucleotideTransformerTokenizer(KmerTokenizer):
    """From left to right the longest token that fits: k-mers of A, C, G, T, single bases before an N or the end, N, special tokens.

    What fits nothing (lower case, ambiguity codes) is one <unk> up to the next token or whitespace; whitespace is dropped.

    Args:
        version: 2 with, 1 without <eos> and <bos>.
        k: bases per token; 6, or 3 for the "3mer" model.
        file: a vocab.txt to read in place of the published vocabulary.
    """

    spaces = b" \t\n\v\f\r\x1c\x1d\x1e\x1f"

    def __init__(self, version: int = 2, *, k: int = 6, file: epath.PathLike | None = None):
        self.name = f"nt_v{version}"
        specials = {"unk": "<unk>", "pad": "<pad>", "mask": "<mask>", "cls": "<cls>"}
        if version == 2:
            specials |= {"eos": "<eos>", "bos": "<bos>"}
        super().__init__(k, specials, (*ALPHABET, "N"), b"N", file)
        self.prefix, self.special_tokens = (self.cls_id,), 1

    def _content(self, sequences: Sequence[bytes | str], budget: int | None) -> tuple[np.ndarray, np.ndarray]:
        contents = [as_bytes(sequence) for sequence in sequences]
        heads = contents if budget is None else [content[: budget * self.k] for content in contents]
        if not b"".join(heads).translate(None, ALPHABET.encode()):
            return self._bases_only(heads)
        return self._any_text(contents)

    def _bases_only(self, contents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        k, lengths = self.k, np.array([len(content) for content in contents], np.int64)
        words, rest = np.divmod(lengths, k)
        width = -(-int(lengths.max(initial=0)) // k) * k + k
        text = b"".join([content.ljust(width, b"A") for content in contents])
        codes = np.frombuffer(text.translate(self._codes), np.uint8).reshape(len(contents), width // k, k)
        ids = np.empty((len(contents), width // k + k), np.int32)
        np.take(self._kmer_ids, self._numbers(np.moveaxis(codes, 2, 0)), out=ids[:, : width // k])
        for i in range(k - 1):  # the i-th base after the last k-mer
            rows = np.flatnonzero(rest > i)
            ids[rows, words[rows] + i] = self._single_ids[np.frombuffer(text, np.uint8)[rows * width + words[rows] * k + i]]
        return ids, words + rest

    def _any_text(self, contents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        k = self.k
        text, kinds, starts, lengths, rows = self._stretches(contents)
        words = np.where(kinds == _BASE, lengths // k, 0)
        counts = np.select([kinds == _BASE, kinds == _SINGLE, kinds == _LETTER], [words + lengths % k, lengths, 1], 0)
        stretch, index = _expand(counts)
        is_word = index < words[stretch]
        places = starts[stretch] + np.where(is_word, index * k, index + words[stretch] * (k - 1))
        ids = self._single_ids[text[places]]
        ids[is_word] = self._kmers_at(text, places[is_word])
        per_row = np.diff(np.searchsorted(places, rows))
        return as_rows(ids, per_row), per_row

    def bases_in(self, tokens: int) -> int:
        return tokens * self.k

    def decode(self, ids: np.ndarray) -> str:
        return "".join(self._checked(ids))


class DNABertTokenizer(KmerTokenizer):
    """All k-mers of a sequence, each one base further; none if it is shorter than k. A k-mer with N or lower case is [UNK].

    Args:
        k: 3, 4, 5 or 6.
        split: cut DNA into k-mers. False takes the text as words, as BertTokenizer does: for files of k-mers joined by spaces. DNA
            that was not cut is then one long word, hence a single [UNK].
        file: a vocab.txt to read in place of the published vocabulary.
    """

    # BertTokenizer: control characters vanish, punctuation is a word for each character.
    spaces = b" \t\n\r"
    removed = bytes(i for i in (*range(32), 127) if i not in b"\t\n\r")
    punctuation = bytes(i for i in range(33, 127) if not chr(i).isalnum())

    def __init__(self, k: int = 6, *, split: bool = True, file: epath.PathLike | None = None):
        self.name, self.split = "dnabert", split
        specials = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        super().__init__(k, specials, (), self.punctuation, file)
        self.mask_span = ((self.k - 1) // 2, self.k // 2)
        self.prefix, self.suffix, self.special_tokens = (self.cls_id,), (self.sep_id,), 2

    def _content(self, sequences: Sequence[bytes | str], budget: int | None) -> tuple[np.ndarray, np.ndarray]:
        contents = [as_bytes(sequence) for sequence in sequences]
        if not self.split:
            return self._words(contents)
        heads = contents if budget is None else [content[: budget + self.k - 1] for content in contents]
        broken = self.spaces + self.removed + self.punctuation
        if len(b"".join(heads).translate(None, broken)) < sum(map(len, heads)):
            return self._words([self._windows(content) for content in contents])
        lengths = np.array([len(content) for content in heads], np.int64)
        width = max(int(lengths.max(initial=0)), self.k)
        text = b"".join([content.ljust(width, b"A") for content in heads])
        codes = np.frombuffer(text.translate(self._codes), np.uint8).reshape(len(heads), width)
        n = width - self.k + 1
        return np.take(self._kmer_ids, self._numbers([codes[:, i : i + n] for i in range(self.k)])), np.maximum(lengths - self.k + 1, 0)

    def _windows(self, content: bytes) -> bytes:
        """All k-mers joined by spaces."""
        if len(content) < self.k:
            return b""
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(content, np.uint8), self.k)
        return np.pad(windows, ((0, 0), (0, 1)), constant_values=ord(" ")).tobytes()

    def _words(self, contents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        text, kinds, starts, lengths, rows = self._stretches(contents)
        # Bases and other letters make words together.
        first = np.ones(len(kinds), bool)
        first[1:] = (kinds[1:] > _BASE) | (kinds[:-1] > _BASE)
        kinds, starts = kinds[first], starts[first]
        lengths = np.diff(starts, append=len(text))
        stretch, index = _expand(np.select([kinds <= _BASE, kinds == _SINGLE], [1, lengths], 0))
        places = starts[stretch] + index
        ids = self._single_ids[text[places]]
        is_word = kinds[stretch] <= _BASE
        ids[is_word] = self._unknown
        is_kmer = is_word & (lengths[stretch] == self.k)
        ids[is_kmer] = self._kmers_at(text, places[is_kmer])
        per_row = np.diff(np.searchsorted(places, rows))
        return as_rows(ids, per_row), per_row

    def bases_in(self, tokens: int) -> int:
        return tokens + self.k - 1

    def bases_per_token(self) -> np.ndarray:
        return np.minimum(super().bases_per_token(), 1)  # each k-mer is one base further than the last

    def decode(self, ids: np.ndarray) -> str:
        return " ".join(self._checked(ids))


def _expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For `counts[s]` elements of each s: (s, number within s) of every element."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _byte_table(default: int, *entries: tuple[int, int]) -> bytes:
    """Table for `bytes.translate`: `default` but for the (byte, value) entries."""
    table = bytearray([default]) * 256
    for byte, value in entries:
        table[byte] = value
    return bytes(table)


def read_vocabulary(file: epath.PathLike) -> list[str]:
    """Tokens of a vocab.txt, one a line.

    Raises:
        InputError: cannot be read, or holds a token twice.
    """
    try:
        tokens = epath.Path(file).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a vocabulary, one token a line ({error})") from error
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{file}: {next(token for token in tokens if tokens.count(token) > 1)} stands there twice")
    return tokens


def kmer_length(tokens: Sequence[str]) -> int:
    """Letters of the longest token that is made of bases."""
    return max((len(token) for token in tokens if not set(token) - set(ALPHABET)), default=0)
