"""How others turn DNA into ids: the peers of the `tokens` part. Own minimal equivalents, numpy instead of torch tensors."""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

VOCABULARY = {token: i for i, token in enumerate(("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", *"ACGTN"))}


def dict_tokenizer() -> Callable[[str], list[int]]:
    """One dictionary look-up per base, as the original HyenaDNA tokenizer does: text -> ids [SEP]."""
    unknown, sep = VOCABULARY["[UNK]"], VOCABULARY["[SEP]"]

    def encode(text: str) -> list[int]:
        return [VOCABULARY.get(base, unknown) for base in text.upper()] + [sep]

    return encode


def hf_tokenizer() -> Callable[[str], list[int]]:
    """The same as a `transformers` character tokenizer, the form in which the hub's DNA models bring theirs."""
    from transformers import PreTrainedTokenizer

    class CharacterTokenizer(PreTrainedTokenizer):
        model_input_names = ["input_ids"]  # noqa: RUF012

        def __init__(self, **options: Any):
            special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "mask", "pad", "unk")}
            super().__init__(**special, add_prefix_space=False, **options)

        @property
        def vocab_size(self) -> int:
            return len(VOCABULARY)

        def get_vocab(self) -> dict[str, int]:
            return dict(VOCABULARY)

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text.upper())

        def _convert_token_to_id(self, token: str) -> int:
            return VOCABULARY.get(token, VOCABULARY["[UNK]"])

        def _convert_id_to_token(self, index: int) -> str:
            return list(VOCABULARY)[index]

        def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
            return [*token_ids_0, VOCABULARY["[SEP]"]]

    tokenizer = CharacterTokenizer()

    def encode(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=True, truncation=False)["input_ids"]
        return ids if ids[-1] == VOCABULARY["[SEP]"] else [*ids, VOCABULARY["[SEP]"]]

    return encode


def hf_kmer_tokenizer(tokenizer: Any) -> tuple[str, Callable[[list[str]], Any]]:
    """The `transformers` tokenizer of a k-mer model over the vocabulary of ours: (name, texts -> padded ids)."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        file = os.path.join(folder, "vocab.txt")
        if tokenizer.name.startswith("nt"):
            tokens = {"cls_token": "<cls>", "mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>", "eos_token": None}
            esm = transformers.EsmTokenizer(file, **tokens)
            return "HF EsmTokenizer", lambda texts: esm(texts, padding=True)
        bert, k = transformers.BertTokenizer(file, do_lower_case=False), tokenizer.k
    # The model's users cut the sequences in Python first.
    return "HF BertTokenizer", lambda texts: bert([" ".join([x[i : i + k] for i in range(len(x) - k + 1)]) for x in texts], padding=True)


def read_windows(fasta: Any, contig: str, starts: list[int], length: int, encode: Callable[[str], list[int]]) -> dict[str, np.ndarray]:
    """One batch of next-token rows: each window through pyfaidx, then through the tokenizer, then stacked."""
    rows = [np.array(encode(fasta[contig][start : start + length].seq), np.int64) for start in starts]
    return {"tokens": np.stack([row[:-1] for row in rows]), "targets": np.stack([row[1:] for row in rows])}
