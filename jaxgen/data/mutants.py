"""Sequences with one base changed, and what of them a model reads: whole mutants, hidden tokens, and which bases a token stands for."""

from dataclasses import dataclass

import numpy as np

from jaxgen.data.augment import COMPLEMENT, PLAIN
from jaxgen.data.segments import Encoder, Segments, Step
from jaxgen.data.sequences import Sequences
from jaxgen.errors import InputError

LETTERS = np.frombuffer(b"ACGT", np.uint8)
_CODES = np.full(256, -1, np.int8)
_CODES[LETTERS] = np.arange(4)
_COUNTED_ROWS = 4096  # mutants encoded at a time to count their tokens


def plain(sequences: Sequences) -> Sequences:
    """The same in upper case, with N for every letter but A, C, G, T (U is T)."""
    return Sequences(PLAIN[sequences.buffer], sequences.offsets)


def codes(sequences: Sequences) -> np.ndarray:
    """int8 (total bases,): 0 ... 3 for A, C, G, T, else -1."""
    return _CODES[sequences.buffer]


def sites(sequences: Sequences, window: int, ids: list[str]) -> np.ndarray:
    """int64, ascending: the bases A, C, G, T within `window` bases around the middle of every sequence (0: all), as places in the buffer.

    An odd base too many is left out on the right.

    Raises:
        InputError: a window that is negative or larger than a sequence; no such base at all.
    """
    lengths = sequences.lengths
    if window < 0:
        raise InputError(f"explain.window={window}: give 0 (all bases) or more")
    if window > lengths.min():
        name, n = ids[int(lengths.argmin())], lengths.min()
        raise InputError(f"explain.window={window} is larger than the {n} bases of sequence {name!r}")
    first = sequences.offsets[:-1] + (lengths - window) // 2 if window else sequences.offsets[:-1]
    last = first + window if window else sequences.offsets[1:]
    # +1 where a window begins, -1 where it ends.
    inside = np.zeros(len(sequences.buffer) + 1, np.int8)
    np.add.at(inside, first, 1)
    np.add.at(inside, last, -1)
    found = np.flatnonzero((np.cumsum(inside[:-1], dtype=np.int64) > 0) & (codes(sequences) >= 0))
    if not len(found):
        raise InputError("none of the sequences has a base A, C, G or T to explain")
    return found


def mutated(sequences: Sequences, owner: np.ndarray, site: np.ndarray, code: np.ndarray, strand: np.ndarray) -> list[bytes]:
    """Sequences `owner` with the base at `site` (place in the buffer) replaced by letter `code`, read on `strand`; all int (m,).

    A `code` of -1 leaves the sequence as it is.
    """
    starts, lengths = sequences.offsets[owner][:, None], sequences.lengths[owner][:, None]
    column = np.arange(int(lengths.max(initial=0)))
    turned = strand[:, None] == 1
    place = np.where(turned, starts + lengths - 1 - column, starts + column)
    rows = sequences.buffer[np.clip(place, 0, len(sequences.buffer) - 1)]
    changed = np.flatnonzero(code >= 0)
    at = site[changed] - sequences.offsets[owner[changed]]
    rows[changed, np.where(turned[changed, 0], lengths[changed, 0] - 1 - at, at)] = LETTERS[code[changed]]
    rows = np.where(turned, COMPLEMENT[rows], rows)
    return [row[:n].tobytes() for row, n in zip(rows, lengths[:, 0].tolist())]


@dataclass(frozen=True, eq=False)
class Mutants:
    """Every sequence, and every mutant of it with one base changed: rows of a file of outputs.

    Attributes:
        encoder: of the sequences.
        owner: int64 (m,), ascending: the sequence of each row.
        site: int64 (m,), the changed base; any where `code` is -1.
        code: int8 (m,), its new letter; -1 on the first row of every owner, which is the sequence itself.
        segments: one per row and strand.
    """

    encoder: Encoder
    owner: np.ndarray
    site: np.ndarray
    code: np.ndarray
    segments: Segments

    @classmethod
    def of(cls, encoder: Encoder, sites: np.ndarray, strands: tuple[int, ...]) -> "Mutants":
        """The three mutants of every site (none for no sites)."""
        sequences = encoder.sequences
        counts = np.diff(np.searchsorted(sites, sequences.offsets))
        owner = np.repeat(np.arange(len(sequences)), 1 + 3 * counts)
        is_first = np.diff(owner, prepend=-1) > 0
        site, code = sequences.offsets[owner], np.full(len(owner), -1, np.int8)
        site[~is_first] = np.repeat(sites, 3)
        code[~is_first] = ((codes(sequences)[sites][:, None] + np.arange(1, 4, dtype=np.int8)) % 4).reshape(-1)
        row, strand = np.repeat(np.arange(len(owner)), len(strands)), np.tile(strands, len(owner))
        if encoder.tokenizer.fixed_tokens:
            tokens = np.stack([encoder.lengths(turn)[owner] for turn in strands], 1).reshape(-1)
        else:
            counted = []
            for start in range(0, len(row), _COUNTED_ROWS):
                part = row[start : start + _COUNTED_ROWS]
                texts = mutated(sequences, owner[part], site[part], code[part], strand[start : start + _COUNTED_ROWS])
                counted.append(encoder.tokenizer.encode_batch(texts, add_special_tokens=encoder.special_tokens)[1])
            tokens = np.concatenate(counted).astype(np.int64)
        whole = np.full(len(row), -1)
        segments = Segments(row, strand, whole, whole, tokens, np.full(len(row), 1 / len(strands), np.float32), 0)
        return cls(encoder, owner, site, code, segments)

    def batch(self, step: Step) -> dict[str, np.ndarray]:
        """`tokens`, `bases` (bases that a token stands for, 0 where it is not scored) int32 and `mask` bool, all (b, width)."""
        real = step.segments >= 0
        chosen = step.segments[real]
        row = self.segments.row[chosen]
        texts = mutated(self.encoder.sequences, self.owner[row], self.site[row], self.code[row], self.segments.strand[chosen])
        return framed(self.encoder, texts, real, step.width)


def framed(encoder: Encoder, texts: list[bytes], real: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """The rows of `Mutants.batch` for the texts of the `real` (bool) rows; the others are padding with one token unmasked."""
    tokenizer = encoder.tokenizer
    ids, lengths = np.full((len(real), width), tokenizer.pad_id, np.int32), np.ones(len(real), np.int64)
    if texts:
        ids[real], lengths[real] = tokenizer.encode_batch(texts, width, add_special_tokens=encoder.special_tokens)
    bases = np.where(real[:, None], tokenizer.bases_per_token()[ids], 0)
    return {"tokens": ids, "mask": tokenizer.attention_mask(lengths, width), "bases": bases.astype(np.int32)}


def spread_over_bases(encoder: Encoder, row: int, strand: int, values: np.ndarray) -> np.ndarray:
    """float32 (bases,), in the direction of the sequence as written: the value of each token, divided evenly among its bases.

    Args:
        values: float (tokens,), without special tokens, along the strand.
    """
    first, counts = encoder.tokenizer.spans(encoder.text(row, strand))
    base = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    total = np.bincount(base, np.repeat(values / counts, counts), int(encoder.sequences.lengths[row]))
    return total[:: -1 if strand else 1].astype(np.float32)


@dataclass(frozen=True, eq=False)
class HiddenTokens:
    """Passes of a masked model, each with the tokens of one or more neighbouring sites hidden: rows of a file of log-probabilities.

    A pass hides a token and asks for all its sites or, where tokens overlap, all tokens of a site and asks for it alone.

    Attributes:
        encoder: of the sequences.
        owner: int64 (m,), ascending.
        site: int64 (m, width), the sites that a pass asks for; -1 where there are fewer.
        token, count: int64 (m,), its first token, without special ones, and how many.
        segments: one per row.
    """

    encoder: Encoder
    owner: np.ndarray
    site: np.ndarray
    token: np.ndarray
    count: np.ndarray
    segments: Segments

    @classmethod
    def of(cls, encoder: Encoder, sites: np.ndarray, strands: tuple[int, ...]) -> "HiddenTokens":
        """Passes for all sites, on every strand.

        Raises:
            InputError: a tokenizer without a mask token.
        """
        tokenizer, sequences = encoder.tokenizer, encoder.sequences
        if tokenizer.mask_id is None:
            raise InputError(f"in-silico mutagenesis under a masked model needs a mask token; {tokenizer.name!r} has none")
        overlap = sum(tokenizer.mask_span)
        width = 1 if overlap else int(tokenizer.bases_per_token().max())
        parts = []
        for row in range(len(sequences)):
            low, high = sequences.offsets[row : row + 2]
            own = sites[slice(*np.searchsorted(sites, [low, high]))]
            for strand in strands if len(own) else ():
                first, _ = tokenizer.spans(encoder.text(row, strand))
                along = high - 1 - own[::-1] if strand else own - low  # ascending along the strand
                ordered = own[::-1] if strand else own
                if overlap:
                    token = np.maximum(along - overlap, 0)
                    count, slots = np.minimum(along, len(first) - 1) - token + 1, ordered[:, None]
                else:
                    holder = np.searchsorted(first, along, side="right") - 1
                    token, at = np.unique(holder, return_inverse=True)
                    count, slots = np.ones_like(token), np.full((len(token), width), -1)
                    slots[at, along - first[holder]] = ordered
                parts.append((np.full(len(token), row), np.full(len(token), strand), slots, token, count))
        owner, strand, site, token, count = (np.concatenate(column) for column in zip(*parts))
        tokens = np.stack([encoder.lengths(turn) for turn in (0, 1)], 1)[owner, strand]
        whole = np.full(len(owner), -1)
        segments = Segments(np.arange(len(owner)), strand, whole, whole, tokens, np.ones(len(owner), np.float32), 0)
        return cls(encoder, owner, site, token, count, segments)

    def batch(self, step: Step) -> dict[str, np.ndarray]:
        """What `Explainer.letters` reads: `tokens` int32 and `mask` bool (b, width), the former with tokens hidden.

        `places` int32 (b, hidden) are the positions of hidden tokens, `letters` int32 (b, hidden, sites, 4) the tokens that would stand
        there with A, C, G, T at each site, -1 where a place is not hidden.
        """
        encoder, tokenizer, real = self.encoder, self.encoder.tokenizer, step.segments >= 0
        chosen = step.segments[real]
        owner, strand, sites = self.owner[chosen], self.segments.strand[chosen], self.site[chosen]
        n, slots = sites.shape
        whole = np.full(n, -1)
        batch = framed(encoder, mutated(encoder.sequences, owner, whole, whole, strand), real, step.width)
        texts = mutated(
            encoder.sequences,
            np.repeat(owner, 4 * slots),
            np.repeat(sites, 4),
            np.where(np.repeat(sites, 4) < 0, -1, np.tile(np.arange(4), n * slots)),
            np.repeat(strand, 4 * slots),
        )
        most = sum(tokenizer.mask_span) + 1
        letters, places = np.full((len(real), most, slots, 4), -1, np.int32), np.zeros((len(real), most), np.int32)
        if n:
            ids, _ = tokenizer.encode_batch(texts, step.width, add_special_tokens=encoder.special_tokens)
            begin = step.width - self.segments.tokens[chosen] if tokenizer.padding_side == "left" else np.zeros(n, np.int64)
            offset = np.arange(most)
            at = np.where(
                offset < self.count[chosen][:, None], (begin + len(encoder.prefix) + self.token[chosen])[:, None] + offset, step.width
            )
            padded = np.pad(ids, ((0, 0), (0, 1))).reshape(n, slots, 4, step.width + 1)
            found = np.moveaxis(np.take_along_axis(padded, at[:, None, None, :], axis=3), 3, 1)  # (n, hidden, slots, 4)
            # Only what a letter changes is hidden: a k-mer that holds an N is unknown whatever the letter.
            differs = (found != found[..., :1]).any((2, 3))
            places[real] = np.where(differs, at, 0)
            letters[real] = np.where(differs[:, :, None, None], found, -1)
            rows, columns = np.nonzero(differs)
            tokens = batch["tokens"][real]
            tokens[rows, at[rows, columns]] = tokenizer.mask_id
            batch["tokens"][real] = tokens
        return {"tokens": batch["tokens"], "mask": batch["mask"], "places": places, "letters": letters}
