"""Character tokenizers against the originals, and their batch form against their single form."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import tokenizers
from jaxgen.errors import InputError
from jaxgen.tokenizers.char import TOKENS, VARIANTS

REPOSITORY = Path(__file__).parents[2]
ROOTS = os.environ.get("JAXGEN_GOLDENS", f"{REPOSITORY}/tests/goldens:{REPOSITORY.parent}/shared/goldens").split(":")
CASES = {
    file.parent.name: file.parent
    for root in ROOTS
    for file in sorted(Path(root).glob("tokenizers/*/cases.json"))
    if (file.parent / "config.json").exists() and "caduceus" in json.loads((file.parent / "config.json").read_text())
}


@pytest.mark.golden
@pytest.mark.parametrize("folder", [pytest.param(path, id=f"tokenizers/{name}") for name, path in CASES.items()])
def test_matches_the_originals(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab"] == {token: i for i, token in enumerate(TOKENS)}
    for case in json.loads((folder / "cases.json").read_text()):
        tokenizer = tokenizers.get(case["tokenizer"])
        encoded = tokenizer(case["text"], **case["kwargs"])
        assert encoded["input_ids"].tolist() == case["input_ids"], case
        if case["attention_mask"] is not None:
            assert encoded["attention_mask"].tolist() == case["attention_mask"], case
        max_length, special = case["kwargs"].get("max_length"), case["kwargs"].get("add_special_tokens", True)
        ids, lengths = tokenizer.encode_batch([case["text"]], max_length, add_special_tokens=special)
        if case["input_ids"]:  # Hugging Face does not pad an empty row; a batch has to
            assert ids[0].tolist() == case["input_ids"], case
            np.testing.assert_array_equal(tokenizer.attention_mask(lengths, ids.shape[1])[0], encoded["attention_mask"])
    for name in set(config) - {"vocab"}:
        tokenizer = tokenizers.get(name)
        assert tokenizer.padding_side == config[name]["padding_side"]
        for role in ("bos", "eos", "sep", "cls", "pad", "mask", "unk"):
            assert getattr(tokenizer, f"{role}_id") == config["vocab"][config[name][role]], (name, role)
    with np.load(folder / "io.npz") as arrays:
        np.testing.assert_array_equal(tokenizers.get("caduceus").complement, arrays["complement_map"])


def test_hyenadna_hf_appends_sep_and_keeps_case():
    assert tokenizers.get("hyenadna_hf").encode("ACgN").tolist() == [7, 8, 6, 11, 1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=20), max_size=6),
    st.integers(2, 24) | st.none(),
    st.sampled_from(VARIANTS),
    st.booleans(),
    st.sampled_from([None, "left", "right"]),
)
def test_batch_equals_single(sequences, max_length, variant, special, side):
    tokenizer = tokenizers.get(variant)
    ids, lengths = tokenizer.encode_batch(sequences, max_length, add_special_tokens=special, padding_side=side)
    assert ids.dtype == np.int32
    assert lengths.shape == (len(sequences),)
    mask = tokenizer.attention_mask(lengths, ids.shape[1], side)
    for row, real, sequence in zip(ids, mask, sequences):
        single = tokenizer.encode(sequence, add_special_tokens=special, max_length=max_length)
        np.testing.assert_array_equal(row[real], single)
        assert (row[~real] == tokenizer.pad_id).all()


def test_lookup_table_is_the_tokenizer():
    for variant in VARIANTS:
        tokenizer = tokenizers.get(variant)
        everything = bytes(range(256))
        np.testing.assert_array_equal(
            tokenizer.lookup[np.frombuffer(everything, np.uint8)], tokenizer.encode(everything, add_special_tokens=False)
        )


def test_decode_and_bytes():
    tokenizer = tokenizers.get("caduceus")
    assert tokenizer.decode(tokenizer.encode(b"acgtn")) == "ACGTN[SEP]"
    assert tokenizer.encode("Aé").tolist() == [7, 6, 1]
    with pytest.raises(InputError, match="outside"):
        tokenizer.decode(np.array([12]))


def test_upper_option():
    assert tokenizers.get("character", upper=True).encode("a", add_special_tokens=False).tolist() == [7]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokenizers.get("caduseus"), "did you mean 'caduceus'"),
        (lambda: tokenizers.get("caduceus", uper=True), "uper"),
        (lambda: tokenizers.get("character").encode("ACGT", max_length=1), "no room"),
    ],
)
def test_wrong_use_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
