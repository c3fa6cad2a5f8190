"""Row operations of pre-training: reverse complement, next-token rows, masked rows.

The rules are those of the Caduceus hg38 pipeline (src/dataloaders/datasets/hg38_dataset.py, src/dataloaders/utils/{mlm,rc}.py).
"""

import numpy as np

# ACGTN in both cases; every other byte stays, ambiguity letters included, as in the reference.
COMPLEMENT = np.arange(256, dtype=np.uint8)
COMPLEMENT[np.frombuffer(b"ACGTacgt", np.uint8)] = np.frombuffer(b"TGCAtgca", np.uint8)
_COMPLEMENT_TABLE = COMPLEMENT.tobytes()
# Letter -> A, C, G, T in upper case (T for U), N for every other.
PLAIN = np.full(256, ord("N"), np.uint8)
PLAIN[np.frombuffer(b"ACGTUacgtu", np.uint8)] = np.frombuffer(b"ACGTTACGTT", np.uint8)


def reverse_complement(bases: np.ndarray, flags: np.ndarray | None = None) -> np.ndarray:
    """The reverse complement along the last axis.

    Args:
        bases: uint8 (..., L) ASCII.
        flags: bool (B,) for (B, L) input: the rows to turn; None for all.

    Returns:
        uint8, a new array of the same shape.
    """
    if flags is None:
        # bytes.translate beats indexing a table, which widens every index to eight bytes.
        turned = bytearray(bases[..., ::-1].tobytes().translate(_COMPLEMENT_TABLE))
        return np.frombuffer(turned, np.uint8).reshape(bases.shape)
    out = bases.copy()
    out[flags] = reverse_complement(bases[flags])
    return out


def reverse_complement_text(sequence: bytes) -> bytes:
    """The reverse complement of one byte string; same letters as `reverse_complement`."""
    return sequence[::-1].translate(_COMPLEMENT_TABLE)


def next_token_rows(ids: np.ndarray, *, sep_id: int = 1, pad_id: int = 4, n_id: int | None = 11) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of next-token prediction.

    Args:
        ids: integer (B, L), without special tokens.
        sep_id: appended to every row, hence the last target.
        pad_id: replaces `n_id`, so that N never enters the loss.
        n_id: id of the base N; None leaves it in place.

    Returns:
        int32 (B, L) inputs and int32 (B, L) targets; positions whose target is `pad_id` are to be ignored.
    """
    ids = _without_n(ids, n_id, pad_id)
    target = np.empty(ids.shape, np.int32)
    target[:, :-1] = ids[:, 1:]
    target[:, -1] = sep_id
    return ids.astype(np.int32), target


def mlm_rows(
    ids: np.ndarray,
    words: np.ndarray,
    probability: float = 0.15,
    *,
    mask_id: int = 3,
    pad_id: int = 4,
    n_id: int | None = 11,
    vocab_size: int = 12,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of masked language modelling.

    Every position, special or not, is selected independently with `probability`. Of the selected, 80 % become `mask_id`, 10 %
    an id drawn uniformly from all `vocab_size` ids, 10 % stay. One 32-bit word decides all three (inverse distribution function).

    Args:
        ids: integer (B, L), without special tokens.
        words: uint32 (B, L), uniform.
        probability: of selection.
        pad_id: target of the positions that were not selected, and replacement of `n_id` (None leaves N in place).

    Returns:
        int32 (B, L) inputs and int32 (B, L) targets; positions whose target is `pad_id` are to be ignored.
    """
    masked, randomised, selected = (round(probability * share * 2**32) for share in (0.8, 0.9, 1.0))
    original, words, kind = _without_n(ids, n_id, pad_id).reshape(-1), words.reshape(-1), ids.dtype.type
    is_selected = words <= np.uint32(selected - 1) if selected else np.zeros(words.shape, bool)
    is_masked = words < np.uint32(masked)
    # Arithmetic in the dtype of `ids` (uint8 in the pipelines) instead of branches: several times faster than np.where.
    target = (original - kind(pad_id)) * is_selected + kind(pad_id)
    data = (original - kind(mask_id)) * ~is_masked + kind(mask_id)
    at_random = np.flatnonzero(~is_masked & (words < np.uint32(randomised)))
    data[at_random] = (words[at_random].astype(np.int64) - masked) * vocab_size // max(randomised - masked, 1)
    return data.astype(np.int32).reshape(ids.shape), target.astype(np.int32).reshape(ids.shape)


def masked_rows(
    ids: np.ndarray,
    words: np.ndarray,
    probability: float,
    *,
    eligible: np.ndarray,
    mask_id: int,
    ignore_id: int,
    choices: np.ndarray,
    span: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of masked language modelling with any vocabulary, as BERT and DNABERT mask.

    Every eligible position is drawn with `probability`, and selected together with the `span[0]` positions before and the `span[1]`
    after it as far as they are eligible. Of the selected, 80 % become `mask_id`, 10 % one of `choices`, 10 % stay.

    Args:
        ids: int32 (B, L).
        words: uint64 (B, L), uniform: the upper half draws, the lower half decides what becomes of a selected position.
        eligible: bool (B, L), positions that may be predicted.
        ignore_id: target of the positions that were not selected.
        choices: int32 (n,), ids to draw from.

    Returns:
        int32 (B, L) inputs and int32 (B, L) targets.
    """
    drawn = eligible & ((words >> np.uint64(32)) < np.uint64(round(probability * 2**32)))
    selected = spread(drawn, span) & eligible
    kind = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
    data = np.where(selected & (kind < 0.8), np.int32(mask_id), ids)
    at_random = np.nonzero(selected & (kind >= 0.8) & (kind < 0.9))
    data[at_random] = choices[((kind[at_random] - 0.8) * 10 * len(choices)).astype(np.int64).clip(0, len(choices) - 1)]
    return data.astype(np.int32), np.where(selected, ids, np.int32(ignore_id)).astype(np.int32)


def spread(chosen: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """bool (B, L): the chosen positions with the `span[0]` before and the `span[1]` after each."""
    out, length = chosen.copy(), chosen.shape[1]
    for offset in range(1, min(span[0], length - 1) + 1):
        out[:, :-offset] |= chosen[:, offset:]
    for offset in range(1, min(span[1], length - 1) + 1):
        out[:, offset:] |= chosen[:, :-offset]
    return out


def _without_n(ids: np.ndarray, n_id: int | None, pad_id: int) -> np.ndarray:
    return ids if n_id is None else np.where(ids == n_id, ids.dtype.type(pad_id), ids)


def conjoin(ids: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """(..., L, 2): the ids of a sequence and of its reverse complement side by side."""
    return np.stack([ids, turned], axis=-1)


def shift(rows: np.ndarray, offsets: np.ndarray, fill: int) -> np.ndarray:
    """Moves every row to the right by its own offset (to the left when negative); what falls out is lost, gaps get `fill`.

    Args:
        rows: (n, L) ids, or masks with fill 0.
        offsets: int (n,).
        fill: value of the gaps.

    Returns:
        (n, L) of the dtype of `rows`.
    """
    source = np.arange(rows.shape[1]) - offsets[:, None]
    inside = (source >= 0) & (source < rows.shape[1])
    moved = np.take_along_axis(rows, np.clip(source, 0, rows.shape[1] - 1), axis=1)
    return np.where(inside, moved, np.asarray(fill, rows.dtype))
