"""k-mer tokenizers against plain greedy ones, against Hugging Face's where it is installed, and as batches against single texts."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxgen import tokenizers
from jaxgen.errors import InputError

NT = {name: tokenizers.get(name) for name in ("nt_v1", "nt_v2")} | {"codon": tokenizers.get("nt_v2", k=3)}
DNABERT = {k: tokenizers.get("dnabert", k=k) for k in (3, 4, 5, 6)}
WORDS = tokenizers.get("dnabert", k=3, split=False)

PIECES = [
    "ACGT",
    "ACGTAC",
    "N",
    "n",
    "acg",
    "a",
    " ",
    "\t",
    "\n",
    "R",
    "-",
    "*",
    "\x01",
    "\x1c",
    "<mask>",
    "<eos>",
    "<",
    "[MASK]",
    "[SEP]",
    "é",
]
TEXTS = st.one_of(st.text("ACGT", max_size=40), st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
BATCHES = st.lists(TEXTS, max_size=5)


def nt_plain(tokenizer, text):
    """Longest match over the vocabulary from left to right; what matches nothing is one unknown token per word."""
    vocabulary = {token: i for i, token in enumerate(tokenizer.tokens)}
    ids, unknown, i = [tokenizer.cls_id], "", 0
    while i <= len(text):
        match = next((text[i : i + n] for n in range(8, 0, -1) if i + n <= len(text) and text[i : i + n] in vocabulary), None)
        if match is None and i < len(text):
            unknown, i = unknown + text[i], i + 1
            continue
        ids += [tokenizer.unk_id] * len(unknown.split())
        unknown = ""
        if match is None:
            break
        ids, i = [*ids, vocabulary[match]], i + len(match)
    return ids


def words_plain(tokenizer, text):
    """Words of BertTokenizer without lower-casing: control characters vanish, every symbol is a word."""
    vocabulary = {token: i for i, token in enumerate(tokenizer.tokens)}
    specials = "|".join(map(re.escape, tokenizer.tokens[:5]))
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "", text.encode("ascii", "replace").decode())
    found = re.findall(specials + r"|[A-Za-z0-9]+|[^A-Za-z0-9\s]", text)
    return [tokenizer.cls_id, *(vocabulary.get(word, tokenizer.unk_id) for word in found), tokenizer.sep_id]


def windows(text, k):
    return " ".join(text[i : i + k] for i in range(len(text) - k + 1))


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sampled_from(sorted(NT)))
@example("ACGTAC<mask>acg\tac<eos>N", "nt_v1")
@example("<mask><mask>", "nt_v2")
def test_nt_is_greedy(text, name):
    assert NT[name].encode(text).tolist() == nt_plain(NT[name], text)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sampled_from(sorted(DNABERT)))
@example("ACG-TAC GTA", 3)
@example("A[MASK]", 6)
def test_dnabert_takes_every_window(text, k):
    text = text.encode("ascii", "replace").decode()
    assert DNABERT[k].encode(text).tolist() == words_plain(DNABERT[k], windows(text, k))


@settings(max_examples=100, deadline=None)
@given(TEXTS)
@example("ACG CGT  [MASK]ACG\x01GTA")
def test_words_are_those_of_the_text(text):
    assert WORDS.encode(text).tolist() == words_plain(WORDS, text)


@settings(max_examples=150, deadline=None)
@given(
    BATCHES,
    st.integers(2, 12) | st.none(),
    st.sampled_from([*NT.values(), *DNABERT.values(), WORDS]),
    st.booleans(),
    st.sampled_from([None, "left", "right"]),
)
def test_batch_equals_single_and_truncation_keeps_the_left(sequences, max_length, tokenizer, special, side):
    ids, lengths = tokenizer.encode_batch(sequences, max_length, add_special_tokens=special, padding_side=side)
    assert ids.dtype == lengths.dtype == np.int32
    assert ids.shape == (len(sequences), max_length or int(lengths.max(initial=0)))
    mask = tokenizer.attention_mask(lengths, ids.shape[1], side)
    for row, real, sequence in zip(ids, mask, sequences):
        whole = tokenizer.encode(sequence, add_special_tokens=special).tolist()
        if max_length and len(whole) > max_length:
            ending = len(tokenizer.suffix) if special else 0
            whole = whole[: max_length - ending] + whole[len(whole) - ending :]
        assert row[real].tolist() == whole
        assert (row[~real] == tokenizer.pad_id).all()
        assert tokenizer.encode(sequence, add_special_tokens=special, max_length=max_length).tolist() == whole


@given(st.text("ACGTN", max_size=60), st.sampled_from(sorted(NT)))
def test_nt_decodes_to_the_text(text, name):
    assert NT[name].decode(NT[name].encode(text, add_special_tokens=False)) == text


def test_bytes_arrays_and_special_tokens():
    tokenizer = DNABERT[6]
    assert tokenizer.encode(b"ACGTACG").tolist() == tokenizer.encode("ACGTACG").tolist() == [2, 727, 2896, 3]
    assert tokenizer.decode(tokenizer.encode(b"ACGTACG")) == "[CLS] ACGTAC CGTACG [SEP]"
    assert NT["nt_v2"].encode(b"ACG\xffTAC\x80").tolist() == NT["nt_v2"].encode("ACGxTACx").tolist()  # no mark of a special token
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 1, 2, 3, 4)
    assert NT["nt_v1"].eos_id is None
    assert (NT["nt_v1"].vocab_size, NT["nt_v2"].vocab_size, NT["codon"].vocab_size) == (4105, 4107, 75)
    assert [t.vocab_size for t in DNABERT.values()] == [69, 261, 1029, 4101]
    ids, lengths = NT["nt_v2"].encode_batch([])
    assert ids.shape == (0, 0)
    assert not len(lengths)


@pytest.mark.parametrize(("name", "k"), [("nt_v1", 6), ("nt_v2", 3), ("dnabert", 4)])
def test_a_vocabulary_file_decides_ids_and_k(tmp_path, name, k):
    assert tokenizers.in_folder(name, tmp_path) is None
    original = tokenizers.get(name, k=k)
    original.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.txt"]
    text = "ACGTACGTTTGNACG"
    assert tokenizers.in_folder(name, tmp_path).encode(text).tolist() == original.encode(text).tolist()
    order = np.random.default_rng(0).permutation(original.vocab_size)
    (tmp_path / "vocab.txt").write_text("\n".join(original.tokens[i] for i in order))
    shuffled = tokenizers.in_folder(name, tmp_path)
    assert order[shuffled.encode(text)].tolist() == original.encode(text).tolist()
    assert shuffled.vocab_size == original.vocab_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[PAD]\nACG\nACG\n", "ACG stands there twice"),
        ("[PAD]\n[UNK]\nAAA\n", r"lacks \[CLS\]"),
        ("", "k must be"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_vocabulary_file_is_one_line(tmp_path, content, message):
    file = tmp_path / "vocab.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        tokenizers.get("dnabert", file=file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokenizers.get("dnabert", k=7), "k must be 1"),
        (lambda: NT["nt_v2"].decode(np.array([4107])), "outside"),
        (lambda: DNABERT[6].encode("ACGT", max_length=1), "no room"),
    ],
)
def test_wrong_use_is_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


# Hugging Face ------------------------------------------------------------------------------------------------------------------


def texts():
    rng = np.random.default_rng(3)
    random = ["".join(rng.choice(PIECES[:-1], 6)) for _ in range(60)]
    return ["", "A", *random, *("".join(rng.choice(list("ACGT"), n)) for n in (5, 6, 7, 100))]


@pytest.mark.parametrize("name", ["nt_v1", "nt_v2"])
def test_nt_equals_esm_tokenizer(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    NT[name].save(tmp_path)
    marks = {"cls_token": "<cls>", "mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>", "eos_token": None}
    theirs = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"), **marks)
    for text in texts():
        assert NT[name].encode(text).tolist() == theirs(text)["input_ids"], text


def test_dnabert_equals_bert_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    DNABERT[3].save(tmp_path)
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    for text, split in itertools.product(texts(), (True, False)):
        ours = DNABERT[3] if split else WORDS
        assert ours.encode(text).tolist() == theirs(windows(text, 3) if split else text)["input_ids"], text
