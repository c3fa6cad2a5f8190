"""Golden families of the data room: windows, language-model rows, splits, tokenizers."""

import json
import re
from typing import Any

import numpy as np

from jaxgen import tokenizers
from jaxgen.data.augment import mlm_rows, next_token_rows
from jaxgen.data.intervals import MAX_WINDOW, caduceus_windows
from jaxgen.data.random import RowRandom
from jaxgen.data.splits import hf_split_indices, random_split_indices
from jaxgen.errors import InputError
from jaxgen.goldens.core import KMER_FILES, Case, TextCase, golden

Arrays = dict[str, np.ndarray]


@golden("hg38", inputs=("index",))
def hg38(case: Case) -> Arrays:
    arrays = case.arrays
    if "cases" in arrays:
        return {"cases": _intervals(arrays["cases"])}
    if "unmasked" in arrays:
        return _masked_rows(case)
    c = case.config
    train = [row for row in c["bed"] if row.split()[-1] == "train"]
    lookup: Any = tokenizers.get("caduceus").lookup
    ids = np.stack([lookup[np.frombuffer(sequence.encode(), np.uint8)] for sequence in c["sequences"]])
    data, target = next_token_rows(ids)
    return {"dataset_len": np.array([len(train) * (MAX_WINDOW // c["max_length"])]), "data": data, "target": target}


def _intervals(expected: np.ndarray) -> np.ndarray:
    """The table with its outputs recomputed; where the reference raises, its start and end mean nothing and are kept."""
    lengths, starts, max_lengths, shifts = expected[:, :4].T
    out = expected.copy()
    for i in range(len(expected)):
        start, end, invalid = caduceus_windows(lengths[i : i + 1], starts[i : i + 1], int(max_lengths[i]), shifts[i : i + 1])
        out[i, 6] = invalid[0]
        if not invalid[0]:
            out[i, 4:6] = start[0], end[0]
    return out


def _masked_rows(case: Case) -> Arrays:
    """The draws are torch's: what can be compared is the rule that turns rows and draws into data and target."""
    c, unmasked = case.config, case.arrays["unmasked"]
    words = RowRandom(0, 0, 0).words32(len(unmasked), unmasked.shape[1], 0)
    ours = mlm_rows(unmasked, words, c["mlm_probability"])
    checks = {}
    for name, (data, target) in {"reference": (case.arrays["data"], case.arrays["target"]), "ours": ours}.items():
        selected = target != 4
        untouched = (data == unmasked) | selected | (unmasked == 4)
        checks[f"{name}_follow_the_rule"] = np.asarray(
            np.array_equal(target[selected], unmasked[selected]) and bool(untouched.all()) and data.min() >= 0 and data.max() < 12
        )
    # Five standard errors of a share of independent draws.
    n, p = unmasked.size, c["mlm_probability"]
    checks["share_selected"] = np.asarray(abs((ours[1] != 4).mean() - p * (unmasked != 4).mean()) < 5 * (p * (1 - p) / n) ** 0.5)
    return {"unmasked": unmasked, "data": case.arrays["data"], "target": case.arrays["target"]} | checks


@golden("splits")
def splits(case: Case) -> Arrays:
    functions = {"random_split": random_split_indices, "hf_split": hf_split_indices}
    computed = {}
    for name, expected in case.arrays.items():
        found = re.fullmatch(r"(random_split|hf_split)_n(\d+)_seed(\d+)_(val|train_head)", name)
        if found:
            held_out, rest = functions[found[1]](int(found[2]), int(found[3]))
            computed[name] = held_out if found[4] == "val" else rest[: len(expected)]
    return computed


@golden("tokenizers")
def all_tokenizers(case: Case) -> Arrays:
    return _texts(case) if isinstance(case, TextCase) else _characters(case)


def _texts(case: TextCase) -> Arrays:
    tokenizer, texts = _tokenizer(case), [row["sequence"] for row in case.rows]
    batch, lengths = tokenizer.encode_batch(texts)
    ids = np.where(tokenizer.attention_mask(lengths, batch.shape[1]), batch, -1)
    alone = [tokenizer.encode(text) for text in texts]
    checks = {"one_by_one": np.asarray(all(np.array_equal(row[row >= 0], single) for row, single in zip(ids, alone)))}
    if tokenizer.name == "dnabert" and tokenizer.split:  # the same k-mers written out
        k, words = tokenizer.k, tokenizers.get("dnabert", k=tokenizer.k, split=False)
        joined = [" ".join(text[i : i + k] for i in range(len(text) - k + 1)) for text in texts]
        checks["split_beforehand"] = np.asarray(np.array_equal(words.encode_batch(joined)[0], batch))
    return {"ids": ids} | checks


def _tokenizer(case: TextCase) -> Any:
    if case.path.is_dir():
        return tokenizers.get("bpe", file=case.path)
    found = KMER_FILES.fullmatch(case.path.name)
    if found is None:
        raise InputError(f"{case.path}: the name does not say which tokenizer; it should begin like nt6mer or dnabert6mer")
    if found["model"] == "nt":
        return tokenizers.get("nt_v1" if found["variant"] == "_v1" else "nt_v2", k=int(found["k"]))
    return tokenizers.get("dnabert", k=int(found["k"]), split=found["variant"] != "_rawtext")


def _characters(case: Case) -> Arrays:
    cases = case.path / "cases.json"
    if not cases.exists():
        raise InputError(f"{cases}: missing; a case of character tokenizers lists its texts there")
    rows, width = json.loads(cases.read_text()), case.arrays["input_ids"].shape[1]
    ids, masks = np.full((2, len(rows), width), -1, np.int32)
    for i, row in enumerate(rows):
        encoded = tokenizers.get(row["tokenizer"])(row["text"], **row["kwargs"])
        ids[i, : len(encoded["input_ids"])] = encoded["input_ids"]
        if row["attention_mask"] is not None:
            masks[i, : len(encoded["attention_mask"])] = encoded["attention_mask"]
    return {"input_ids": ids, "attention_mask": masks, "complement_map": np.asarray(tokenizers.get("caduceus").complement)}
