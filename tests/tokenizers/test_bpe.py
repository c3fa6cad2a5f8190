"""Byte-pair encodings: files in every layout, learned vocabularies, batches against single texts."""

import pickle

import numpy as np
import pytest
from helpers import golden_case
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import tokenizers
from jaxgen.errors import InputError
from jaxgen.tokenizers.bpe import KINDS, train_bpe

RNG = np.random.default_rng(0)
DNA = [RNG.choice(list(b"ACGT"), n).astype(np.uint8).tobytes() for n in RNG.integers(1, 200, 300)]
LEARNED = {kind: train_bpe(DNA, 300, kind) for kind in KINDS}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ACGTNac ", max_size=30), max_size=5),
    st.integers(2, 12) | st.none(),
    st.sampled_from(KINDS),
    st.booleans(),
    st.sampled_from([None, "left", "right"]),
)
def test_batch_equals_single_and_truncation_keeps_the_left(sequences, max_length, kind, special, side):
    tokenizer = LEARNED[kind]
    ids, lengths = tokenizer.encode_batch(sequences, max_length, add_special_tokens=special, padding_side=side)
    mask = tokenizer.attention_mask(lengths, ids.shape[1], side)
    assert ids.shape == (len(sequences), max_length or int(lengths.max(initial=0)))
    for row, real, sequence in zip(ids, mask, sequences):
        whole = tokenizer.encode(sequence, add_special_tokens=special).tolist()
        if max_length and len(whole) > max_length:
            ending = len(tokenizer.suffix) if special else 0
            whole = whole[: max_length - ending] + whole[len(whole) - ending :]
        assert row[real].tolist() == whole
        assert (row[~real] == tokenizer.pad_id).all()


@pytest.mark.parametrize("kind", KINDS)
def test_learning_is_deterministic_and_survives_files_and_processes(tmp_path, kind):
    learned = LEARNED[kind]
    again = train_bpe(DNA, 300, kind)
    assert again.vocabulary() == learned.vocabulary()
    assert learned.vocab_size <= 300
    assert max(len(learned.encode(sequence, add_special_tokens=False)) / len(sequence) for sequence in DNA if len(sequence) > 50) < 0.7
    assert tokenizers.in_folder(f"{kind}_bpe", tmp_path) is None
    learned.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    for other in (tokenizers.in_folder(f"{kind}_bpe", tmp_path), tokenizers.get("bpe", file=tmp_path / "tokenizer.json")):
        for mine, theirs in zip(learned.encode_batch(DNA), other.encode_batch(DNA)):
            np.testing.assert_array_equal(mine, theirs)
        assert (other.pad_id, other.special_tokens) == (learned.pad_id, learned.special_tokens)
    assert pickle.loads(pickle.dumps(learned)).encode(DNA[0]).tolist() == learned.encode(DNA[0]).tolist()


def test_special_tokens():
    bert, gpt = LEARNED["dnabert2"], LEARNED["gpt2"]
    assert (bert.unk_id, bert.cls_id, bert.sep_id, bert.pad_id, bert.mask_id) == (0, 1, 2, 3, 4)
    assert bert.encode("").tolist() == [1, 2]
    assert bert.encode("NNa[MASK]").tolist() == [1, 0, 0, 0, 4, 2]
    assert gpt.pad_id == gpt.eos_id == gpt.bos_id
    assert gpt.encode("").tolist() == []
    assert gpt.decode(gpt.encode("ACGTNacé\n")) == "ACGTNacé\n"
    assert bert.decode(bert.encode(b"ACGTN")) == "[CLS]ACGT[UNK][SEP]"
    assert bert.padding_side == gpt.padding_side == "right"


def test_a_public_file_with_its_own_padding_is_read_without(tmp_path):
    import tokenizers as hf

    file = tmp_path / "tokenizer.json"
    original = hf.Tokenizer.from_file(str(golden_case("tokenizers", "bpe_tiny") / "tokenizer.json"))
    original.enable_padding(length=64, pad_id=3)
    original.enable_truncation(4)
    original.save(str(file))
    assert tokenizers.get("bpe", file=file).encode("ACGTACGTACGT").tolist() == [1, 52, 52, 52, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: tokenizers.get("dnabert2_bpe"), "give the vocabulary as file"),
        (lambda folder: tokenizers.get("bpe", file=folder), "holds no tokenizer.json"),
        (lambda folder: tokenizers.get("bpe", file=folder / "nowhere.json"), "cannot be read"),
        (lambda folder: train_bpe(DNA, 5, "dnabert2"), "too small"),
        (lambda folder: train_bpe(DNA, 300, "gpt"), "did you mean 'gpt2'"),
        (lambda folder: LEARNED["gpt2"].decode(np.array([300])), "outside"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, call, message):
    with pytest.raises(InputError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        tokenizers.get("bpe", file=tmp_path)
