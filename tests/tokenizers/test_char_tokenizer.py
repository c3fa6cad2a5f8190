"""Character tokenizers against the originals, and their batch form against their single form."""

import json

import numpy as np
import pytest
from helpers import golden_case
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import tokenizers
from jaxgen.errors import InputError
from jaxgen.tokenizers.char import TOKENS, VARIANTS


def test_special_ids_and_batches_are_those_of_the_originals():
    folder = golden_case("tokenizers", "char")
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab"] == {token: i for i, token in enumerate(TOKENS)}
    for name in set(config) - {"vocab"}:
        tokenizer = tokenizers.get(name)
        assert tokenizer.padding_side == config[name]["padding_side"]
        for role in ("bos", "eos", "sep", "cls", "pad", "mask", "unk"):
            assert getattr(tokenizer, f"{role}_id") == config["vocab"][config[name][role]], (name, role)
    for case in json.loads((folder / "cases.json").read_text()):
        tokenizer = tokenizers.get(case["tokenizer"])
        mask = tokenizer(case["text"], **case["kwargs"])["attention_mask"]
        max_length, special = case["kwargs"].get("max_length"), case["kwargs"].get("add_special_tokens", True)
        ids, lengths = tokenizer.encode_batch([case["text"]], max_length, add_special_tokens=special)
        if case["input_ids"]:  # Hugging Face does not pad an empty row; a batch has to
            assert ids[0].tolist() == case["input_ids"], case
            np.testing.assert_array_equal(tokenizer.attention_mask(lengths, ids.shape[1])[0], mask)


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


def test_plantcaduceus_reads_either_case_and_adds_nothing():
    tokenizer = tokenizers.get("plantcaduceus")
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id, tokenizer.sep_id) == (7, 0, 1, 2, None)
    assert tokenizer.encode("ACgtN").tolist() == [3, 4, 5, 6, 2]
    assert tokenizer.complement.tolist() == [0, 1, 2, 6, 5, 4, 3]
    assert tokenizer.bases_per_token().tolist() == [0, 0, 0, 1, 1, 1, 1]


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
