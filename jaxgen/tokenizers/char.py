"""One id per base: the character tokenizers of HyenaDNA, Caduceus and PlantCaduceus.

Vocabulary: [CLS]0 [SEP]1 [BOS]2 [MASK]3 [PAD]4 [RESERVED]5 [UNK]6 A7 C8 G9 T10 N11, that of PlantCaduceus [PAD]0 [MASK]1 [UNK]2 a3 c4
g5 t6; padding on the left.

variant       upper-cases   special tokens    source
caduceus      yes           ids [SEP]         caduceus/tokenization_caduceus.py (hub models; hg38 pre-training)
character     no            [CLS] ids [SEP]   hg38_char_tokenizer.py (original HyenaDNA; Caduceus downstream tasks)
hyenadna_hf   no            ids [SEP]         the tokenizer of the `-hf` HyenaDNA repositories
plantcaduceus folds case    ids               the GPN tokenizer of the PlantCaduceus repositories

Where a variant does not upper-case, lower-case (soft-masked) bases are [UNK].
"""

from collections.abc import Sequence

import numpy as np

from jaxgen.errors import InputError, nearest
from jaxgen.tokenizers.base import Tokenizer, as_bytes

TOKENS = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
PLANT_TOKENS = ("[PAD]", "[MASK]", "[UNK]", "a", "c", "g", "t")
VARIANTS = ("caduceus", "character", "hyenadna_hf", "plantcaduceus")
_ROLES = ("cls", "sep", "bos", "mask", "pad", "unk")


class CharTokenizer(Tokenizer):
    """Character tokenizer; see the table above for `variant`.

    Args:
        variant: one of `VARIANTS`.
        upper: overrides whether lower-case bases are read as upper-case.

    Raises:
        InputError: unknown variant.
    """

    padding_side = "left"

    def __init__(self, variant: str = "caduceus", *, upper: bool | None = None):
        if variant not in VARIANTS:
            raise InputError(f"character tokenizer: unknown variant {variant!r}{nearest(variant, VARIANTS)}")
        self.name = variant
        self.tokens = PLANT_TOKENS if variant == "plantcaduceus" else TOKENS
        self.vocab_size = len(self.tokens)
        for role in _ROLES:
            token = f"[{role.upper()}]"
            setattr(self, f"{role}_id", self.tokens.index(token) if token in self.tokens else None)
        # The original `character` tokenizer declares [PAD] as its end of sequence although it writes [SEP].
        self.eos_id = self.pad_id if variant == "character" else self.sep_id
        self._prefix = np.array([self.cls_id] if variant == "character" else [], np.int32)
        self._suffix = np.array([] if self.sep_id is None else [self.sep_id], np.int32)
        self.special_tokens = len(self._prefix) + len(self._suffix)
        self.lookup = np.full(256, self.unk_id, np.int32)
        self.complement = np.arange(self.vocab_size, dtype=np.int32)
        ids = {token.upper(): i for i, token in enumerate(self.tokens) if len(token) == 1}
        fold = upper if upper is not None else variant in ("caduceus", "plantcaduceus")
        for base, i in ids.items():
            self.lookup[ord(base)] = i
            if fold:
                self.lookup[ord(base.lower())] = i
            self.complement[i] = ids[dict(zip("ACGTN", "TGCAN"))[base]]
        self._table = self.lookup.astype(np.uint8).tobytes()

    def encode(self, sequence: bytes | str, *, add_special_tokens: bool = True, max_length: int | None = None) -> np.ndarray:
        content = as_bytes(sequence)[: self._budget(max_length, add_special_tokens)]
        # bytes.translate is several times faster than indexing a table with uint8 (numpy widens the index to int64 first).
        ids = np.frombuffer(content.translate(self._table), np.uint8).astype(np.int32)
        return np.concatenate([self._prefix, ids, self._suffix]) if add_special_tokens else ids

    def encode_batch(
        self,
        sequences: Sequence[bytes | str],
        max_length: int | None = None,
        *,
        add_special_tokens: bool = True,
        padding_side: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        budget = self._budget(max_length or None, add_special_tokens)
        prefix, suffix = (self._prefix.tolist(), self._suffix.tolist()) if add_special_tokens else ([], [])
        contents = [as_bytes(sequence)[:budget] for sequence in sequences]
        lengths = np.array([len(content) for content in contents], np.int32) + np.int32(len(prefix) + len(suffix))
        width = max_length or int(lengths.max(initial=0))
        # Rows are framed with special ids and padded as bytes; only the finished batch is widened to int32.
        table, head, tail, pad = self._table, bytes(prefix), bytes(suffix), bytes([self.pad_id])
        justify = bytes.rjust if (padding_side or self.padding_side) == "left" else bytes.ljust
        joined = b"".join([justify(head + content.translate(table) + tail, width, pad) for content in contents])
        return np.frombuffer(joined, np.uint8).reshape(len(contents), width).astype(np.int32), lengths

    def bases_per_token(self) -> np.ndarray:
        return np.isin(self.tokens, list("ACGTacgt")).astype(np.int32)

    def decode(self, ids: np.ndarray) -> str:
        ids = np.asarray(ids).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InputError(f"{self.name}: token id outside 0..{self.vocab_size - 1}")
        return "".join([self.tokens[i] for i in ids.tolist()])
