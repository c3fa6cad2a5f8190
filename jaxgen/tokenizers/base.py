"""What every tokenizer offers: ids out of DNA, batches of ids, special ids, and (where it exists) a complement on ids."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxgen.errors import InputError


def as_bytes(sequence: bytes | str | np.ndarray) -> bytes:
    """`sequence` as one byte per character; a character outside ASCII becomes `?` (unknown to every tokenizer)."""
    if isinstance(sequence, str):
        return sequence.encode("ascii", "replace")
    return sequence.tobytes() if isinstance(sequence, np.ndarray) else bytes(sequence)


class Tokenizer(ABC):
    """Base of all tokenizers. A subclass sets the attributes and implements `encode` and `decode`.

    Attributes:
        name: the name it is registered under.
        vocab_size: number of ids the tokenizer can produce (before any padding of the model's vocabulary).
        pad_id, unk_id, bos_id, eos_id, sep_id, cls_id, mask_id: special ids; None where the vocabulary has no such token.
        padding_side: "left" or "right", where `encode_batch` puts `pad_id`.
        special_tokens: number of ids that `encode(..., add_special_tokens=True)` adds.
        complement: int32 (vocab_size,), id -> id of the complementary base, where one id is one base; otherwise None.
        lookup: int32 (256,), byte -> id, where one byte is one id (used by the vectorised pipelines); otherwise None.
        mask_span: how many tokens before and after a masked one are masked with it, because they overlap.
        fixed_tokens: whether a changed base leaves the number of tokens, and all those that do not hold it, as they were; not so for byte
            pairs.
    """

    name: str
    vocab_size: int
    pad_id: int
    unk_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    sep_id: int | None = None
    cls_id: int | None = None
    mask_id: int | None = None
    padding_side: str = "right"
    special_tokens: int = 0
    complement: np.ndarray | None = None
    lookup: np.ndarray | None = None
    mask_span: tuple[int, int] = (0, 0)
    fixed_tokens: bool = True

    @abstractmethod
    def encode(self, sequence: bytes | str, *, add_special_tokens: bool = True, max_length: int | None = None) -> np.ndarray:
        """int32 (n,) ids of one sequence; with `max_length` the right end is cut so that special tokens still fit."""

    @abstractmethod
    def decode(self, ids: np.ndarray) -> str:
        """The text of `ids`; special tokens are written by name, e.g. `[SEP]`."""

    @abstractmethod
    def bases_per_token(self) -> np.ndarray:
        """int32 (vocab_size,): how many of A, C, G, T a token adds to a sequence; 0 if it is special or holds another letter."""

    def spans(self, sequence: bytes | str) -> tuple[np.ndarray, np.ndarray]:
        """(first base, number of bases), int64 (n,) each, of the tokens of a sequence without special ones.

        Overlapping k-mers share bases; a letter outside the vocabulary is a token of its own.
        """
        ids, shared = self.encode(sequence, add_special_tokens=False), sum(self.mask_span)
        if shared:
            return np.arange(len(ids)), np.full(len(ids), shared + 1)
        counts = np.maximum(self.bases_per_token()[ids], 1).astype(np.int64)
        return np.cumsum(counts) - counts, counts

    def vocabulary(self) -> dict[str, str]:
        """File name -> content of the files that hold the vocabulary; none where name and options say everything."""
        return {}

    def save(self, folder: epath.PathLike) -> None:
        """Write the files of `vocabulary`, in the public format, each whole or not at all."""
        for name, content in self.vocabulary().items():
            temporary = epath.Path(folder) / f"{name}.tmp"
            temporary.write_text(content)
            temporary.replace(epath.Path(folder) / name)

    def __call__(
        self,
        text: bytes | str,
        *,
        add_special_tokens: bool = True,
        padding: str | bool = False,
        max_length: int | None = None,
        truncation: bool = False,
    ) -> dict[str, np.ndarray]:
        """One text with the options of a Hugging Face tokenizer: int32 (n,) `input_ids` and `attention_mask`.

        As there, `padding="max_length"` leaves a text without any token empty.
        """
        ids = self.encode(text, add_special_tokens=add_special_tokens, max_length=max_length if truncation else None)
        mask = np.ones_like(ids)
        missing = (max_length or 0) - len(ids)
        if padding == "max_length" and len(ids) and missing > 0:
            width = (missing, 0) if self.padding_side == "left" else (0, missing)
            ids, mask = np.pad(ids, width, constant_values=self.pad_id), np.pad(mask, width)
        return {"input_ids": ids, "attention_mask": mask}

    def encode_batch(
        self,
        sequences: Sequence[bytes | str],
        max_length: int | None = None,
        *,
        add_special_tokens: bool = True,
        padding_side: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many sequences, truncated on the right and padded.

        Args:
            sequences: B sequences.
            max_length: number of columns L; None or 0 for the longest row.
            add_special_tokens: as in `encode`.
            padding_side: "left" or "right"; None for the tokenizer's own.

        Returns:
            (int32 (B, L) ids, int32 (B,) number of real tokens per row, special tokens included).
        """
        rows = [self.encode(sequence, add_special_tokens=add_special_tokens, max_length=max_length or None) for sequence in sequences]
        lengths = np.array([len(row) for row in rows], np.int32)
        width = max_length or int(lengths.max(initial=0))
        ids = np.full((len(rows), width), self.pad_id, np.int32)
        left = (padding_side or self.padding_side) == "left"
        for out, row in zip(ids, rows):
            if left:
                out[width - len(row) :] = row
            else:
                out[: len(row)] = row
        return ids, lengths

    def attention_mask(self, lengths: np.ndarray, width: int, padding_side: str | None = None) -> np.ndarray:
        """bool (B, width), true on real tokens, for the row `lengths` (B,) that `encode_batch` returned."""
        positions = np.arange(width, dtype=np.int32)
        lengths = np.asarray(lengths)[:, None]
        return positions >= width - lengths if (padding_side or self.padding_side) == "left" else positions < lengths

    def _budget(self, max_length: int | None, add_special_tokens: bool) -> int | None:
        """Ids left for the sequence itself within `max_length`."""
        if max_length is None:
            return None
        left = max_length - (self.special_tokens if add_special_tokens else 0)
        if left < 0:
            raise InputError(f"max_length={max_length} leaves no room for the {self.special_tokens} special tokens of {self.name!r}")
        return left
