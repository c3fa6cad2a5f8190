"""Where batches of pre-training come from: windows of a genome as rows of next-token or masked language modelling."""

from collections.abc import Iterator

import numpy as np

from jaxgen.data.augment import masked_rows, mlm_rows, next_token_rows, reverse_complement
from jaxgen.data.genome import Genome
from jaxgen.data.intervals import Windows
from jaxgen.data.random import STREAM_MLM, STREAM_REVERSE_COMPLEMENT, RowRandom, permutation
from jaxgen.errors import InputError, nearest
from jaxgen.tokenizers.base import Tokenizer
from jaxgen.tokenizers.framed import FramedTokenizer

OBJECTIVES = ("ntp", "mlm")
LAYOUTS = ("caduceus", "hyenadna")
_UPPER = np.uint8(0xDF)  # clears the bit of lower case


class WindowBases:
    """The bases of genome windows as rows of one width, on either strand.

    Args:
        genome: the store to read from.
        windows: which window each index means.
        width: bases per row; a longer window is cut on the right.
        rc_aug: reverse-complement each window with probability one half, before it is cut.
        left_pad: put windows shorter than a row at its right end instead of its left end.
    """

    def __init__(self, genome: Genome, windows: Windows, width: int, *, rc_aug: bool = False, left_pad: bool = False):
        if not len(windows):
            raise InputError("no windows: the split is empty; raise data.holdout, or give rows of every split in data.bed")
        self.genome, self.windows, self.width, self.rc_aug, self.left_pad = genome, windows, width, rc_aug, left_pad

    def __len__(self) -> int:
        return len(self.windows)

    def rows(self, indices: np.ndarray, random: RowRandom) -> np.ndarray:
        """uint8 (b, width), turned where the coin says so; 0 outside a window."""
        contigs, starts, ends = self.windows.locate(indices)
        turn = random.coin(len(indices), STREAM_REVERSE_COMPLEMENT) if self.rc_aug else np.zeros(len(indices), bool)
        excess = np.maximum(ends - starts - self.width, 0)
        starts, ends = starts + np.where(turn, excess, 0), ends - np.where(turn, 0, excess)
        rows = self.genome.gather(contigs, starts, self.width, ends=ends, left_pad=self.left_pad)
        full = turn & (ends - starts == self.width)
        rows[full] = reverse_complement(rows[full])
        for row in np.flatnonzero(turn & ~full):  # short windows keep their padding where it is
            filled = int(ends[row] - starts[row])
            part = slice(self.width - filled, None) if self.left_pad else slice(filled)
            rows[row, part] = reverse_complement(rows[row, part])
        return rows


class GenomeWindows:
    """Batches of genome windows for models that read one id per base.

    Batch: `tokens` and `targets`, int32 (b, T); positions whose target is `ignore_id` do not count in the loss.
    Layout "caduceus" (T = max_length): N becomes [PAD]; next-token rows end in [SEP]; masked rows have no special tokens.
    Layout "hyenadna" (T = max_length - 1, next-token only): [CLS] bases [SEP] truncated to max_length, padded on the left, N kept.

    Args:
        genome: the store to read from.
        windows: which window each index means.
        tokenizer: a character tokenizer (one id per base).
        max_length: bases per window ("caduceus") or ids per row ("hyenadna").
        objective: "ntp" (next token) or "mlm".
        rc_aug: reverse-complement each window with probability one half.
        mlm_probability: share of positions selected for "mlm".
        layout: see above.
    """

    def __init__(
        self,
        genome: Genome,
        windows: Windows,
        tokenizer: Tokenizer,
        max_length: int,
        objective: str = "ntp",
        *,
        rc_aug: bool = False,
        mlm_probability: float = 0.15,
        layout: str = "caduceus",
    ):
        _check_objective(objective, mlm_probability)
        if layout not in LAYOUTS:
            raise InputError(f"unknown layout {layout!r}{nearest(layout, LAYOUTS)}")
        if tokenizer.lookup is None or tokenizer.sep_id is None or tokenizer.mask_id is None or tokenizer.vocab_size > 256:
            raise InputError(f"genome windows need a tokenizer with one id per base, [SEP] and [MASK]; {tokenizer.name!r} has not")
        self.sep_id, self.mask_id = tokenizer.sep_id, tokenizer.mask_id
        if layout == "hyenadna" and objective != "ntp":
            raise InputError("layout 'hyenadna' is for next-token prediction; use objective 'ntp'")
        width = max_length - (tokenizer.special_tokens if layout == "hyenadna" else 0)
        self.reader = WindowBases(genome, windows, width, rc_aug=rc_aug, left_pad=True)
        self.genome, self.tokenizer = genome, tokenizer
        self.max_length, self.objective, self.layout, self.mlm_probability = max_length, objective, layout, mlm_probability
        self.ignore_id = tokenizer.pad_id
        table = tokenizer.lookup.astype(np.uint8)
        if layout == "caduceus":
            table[[ord("N"), ord("n")]] = tokenizer.pad_id
        table[0] = tokenizer.pad_id  # 0 is what `gather` puts outside a window
        self._table = table.tobytes()

    def __len__(self) -> int:
        return len(self.reader)

    def bases(self, indices: np.ndarray, random: RowRandom) -> np.ndarray:
        """uint8 (b, bases) of the windows, turned where the coin says so; 0 outside a window."""
        return self.reader.rows(indices, random)

    def batch(self, indices: np.ndarray, random: RowRandom) -> dict[str, np.ndarray]:
        rows = self.bases(indices, random)
        ids = np.frombuffer(rows.tobytes().translate(self._table), np.uint8).reshape(rows.shape)
        tokenizer = self.tokenizer
        if self.layout == "hyenadna":
            tokens, targets = self._hyenadna_rows(ids, rows)
        elif self.objective == "ntp":
            tokens, targets = next_token_rows(ids, sep_id=self.sep_id, pad_id=tokenizer.pad_id, n_id=None)
        else:
            words = random.words32(len(indices), self.max_length, STREAM_MLM)
            special = {"mask_id": self.mask_id, "pad_id": tokenizer.pad_id, "vocab_size": tokenizer.vocab_size}
            tokens, targets = mlm_rows(ids, words, self.mlm_probability, n_id=None, **special)
        return {"tokens": tokens, "targets": targets}

    def _hyenadna_rows(self, ids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        special, (n, width) = self.tokenizer.special_tokens, ids.shape
        full = np.full((n, width + special), self.sep_id, np.int32)
        full[:, special - 1 : -1] = ids
        if special == 2 and self.tokenizer.cls_id is not None:
            full[:, 0] = self.tokenizer.pad_id
            full[np.arange(n), np.count_nonzero(rows == 0, axis=1)] = self.tokenizer.cls_id
        return full[:, :-1].copy(), full[:, 1:].copy()


class TokenWindows:
    """Batches of genome windows for models that read k-mers or byte pairs, upper-cased, padded on the right.

    Batch: `tokens` and `targets`, int32 (b, T), and with `masked` `mask` bool (b, T), true on real tokens; positions whose target is
    `ignore_id` do not count in the loss. Tokens that hold anything but A, C, G, T are never predicted.

    "ntp" (T = max_length - 1, less what stands before the sequence): the rows of the byte-pair branch of the Caduceus pipeline. A window
    is encoded with its special tokens, cut or padded to max_length tokens, and loses those in front of it; tokens with N or unknown
    letters become padding.
    "mlm" (T = max_length): real tokens are selected with `mlm_probability`, each together with its neighbours as far as they share
    bases; of the selected, 80 % become [MASK], 10 % a random token of DNA, 10 % stay.

    Args:
        genome, windows, rc_aug: as for `GenomeWindows`.
        tokenizer: of k-mers or byte pairs.
        max_length: tokens per row, special ones included; more are cut.
        window_bases: bases read per window.
        special_tokens: whether masked rows stand between the tokenizer's special tokens; next-token rows always do.
        masked: whether batches bring `mask`.
    """

    def __init__(
        self,
        genome: Genome,
        windows: Windows,
        tokenizer: FramedTokenizer,
        max_length: int,
        objective: str,
        window_bases: int,
        *,
        special_tokens: bool = True,
        rc_aug: bool = False,
        mlm_probability: float = 0.15,
        masked: bool = True,
    ):
        _check_objective(objective, mlm_probability)
        if objective == "mlm" and tokenizer.mask_id is None:
            raise InputError(f"data.objective=mlm needs a tokenizer with a mask token; {tokenizer.name!r} has none")
        self._mask_id = tokenizer.mask_id or 0
        self.special_tokens = special_tokens or objective == "ntp"
        if max_length < 2 + tokenizer.special_tokens * self.special_tokens:
            raise InputError(f"data.max_length={max_length} leaves no room beside the special tokens of {tokenizer.name!r}")
        self.reader = WindowBases(genome, windows, window_bases, rc_aug=rc_aug)
        self.tokenizer, self.max_length, self.objective = tokenizer, max_length, objective
        self.mlm_probability, self.masked, self.ignore_id = mlm_probability, masked, tokenizer.pad_id
        self._is_dna = tokenizer.bases_per_token() > 0
        self._dna_ids = np.flatnonzero(self._is_dna).astype(np.int32)
        self._kept = self._is_dna.copy()
        self._kept[[*tokenizer.prefix, *tokenizer.suffix]] = True

    def __len__(self) -> int:
        return len(self.reader)

    def batch(self, indices: np.ndarray, random: RowRandom) -> dict[str, np.ndarray]:
        ids, lengths = self.tokenizer.encode_batch(
            _upper_case(self.reader.rows(indices, random)), self.max_length, add_special_tokens=self.special_tokens, padding_side="right"
        )
        mask = self.tokenizer.attention_mask(lengths, self.max_length, "right")
        if self.objective == "ntp":
            ids, mask = (rows[:, len(self.tokenizer.prefix) :] for rows in (ids, mask))
            ids = np.where(self._kept[ids] & mask, ids, self.ignore_id)
            tokens, targets, mask = ids[:, :-1].copy(), ids[:, 1:].copy(), mask[:, :-1]
        else:
            words = random.words(len(indices), self.max_length, STREAM_MLM)
            tokens, targets = masked_rows(
                ids,
                words,
                self.mlm_probability,
                eligible=self._is_dna[ids] & mask,
                mask_id=self._mask_id,
                ignore_id=self.ignore_id,
                choices=self._dna_ids,
                span=self.tokenizer.mask_span,
            )
        return {"tokens": tokens, "targets": targets} | ({"mask": np.ascontiguousarray(mask)} if self.masked else {})


def training_texts(reader: WindowBases, seed: int) -> Iterator[bytes]:
    """All windows in upper case and random order, to learn a vocabulary from."""
    random, at_once = RowRandom(seed, 0, 0), 64
    for start in range(0, len(reader), at_once):
        indices = permutation(np.arange(start, min(start + at_once, len(reader))), len(reader), seed, 0)
        yield from _upper_case(reader.rows(indices, random))


def _upper_case(rows: np.ndarray) -> list[bytes]:
    """The texts of rows that are padded with 0 on the right."""
    return [row.tobytes().rstrip(b"\0") for row in rows & _UPPER]


def _check_objective(objective: str, mlm_probability: float) -> None:
    if objective not in OBJECTIVES:
        raise InputError(f"unknown objective {objective!r}{nearest(objective, OBJECTIVES)}")
    if not 0.0 <= mlm_probability <= 1.0:
        raise InputError(f"mlm_probability {mlm_probability} is not in 0 ... 1")
