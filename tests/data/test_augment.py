import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import tokenizers
from jaxgen.data.augment import conjoin, mlm_rows, next_token_rows, reverse_complement, reverse_complement_text, shift
from jaxgen.data.random import RowRandom

DNA = st.binary(max_size=60)


def row(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


@given(DNA)
def test_reverse_complement_is_an_involution(text):
    np.testing.assert_array_equal(reverse_complement(reverse_complement(row(text))), row(text))
    assert reverse_complement(row(text)).tobytes() == reverse_complement_text(text)


def test_reverse_complement_letters():
    assert reverse_complement_text(b"ACGTNacgtnRU") == b"URnacgtNACGT"


def test_reverse_complement_of_flagged_rows():
    rows = np.stack([row(b"AACG"), row(b"ttNG")])
    out = reverse_complement(rows, np.array([False, True]))
    assert [r.tobytes() for r in out] == [b"AACG", b"CNaa"]


def test_masked_fractions():
    ids = np.full((200, 1000), 8, np.uint8)
    data, target = mlm_rows(ids, RowRandom(1, 0, 0).words32(200, 1000, 0), 0.15)
    selected = target != 4
    assert abs(selected.mean() - 0.15) < 0.004
    among = data[selected]
    assert abs((among == 3).mean() - (0.8 + 0.1 / 12)) < 0.01
    assert abs((among == 8).mean() - (0.1 + 0.1 / 12)) < 0.01
    others = np.bincount(among[(among != 3) & (among != 8)], minlength=12)
    assert (others[[3, 8]] == 0).all()
    rest = np.delete(others, [3, 8])
    assert rest.min() > 0.7 * rest.mean()  # uniform over the vocabulary, special tokens included
    assert rest.max() < 1.3 * rest.mean()
    assert (data[~selected] == 8).all()


def test_masking_extremes():
    ids, words = np.array([[7, 11, 9]], np.uint8), np.array([[0, 5, 2**32 - 1]], np.uint32)
    assert mlm_rows(ids, words, 0.0)[0].tolist() == [[7, 4, 9]]
    assert mlm_rows(ids, words, 1.0)[1].tolist() == [[7, 4, 9]]
    assert mlm_rows(ids, words, 0.15, n_id=None)[1].tolist() == [[7, 11, 4]]


@settings(deadline=None)
@given(st.lists(st.sampled_from(range(7, 12)), min_size=1, max_size=30))
def test_next_token_rows(ids):
    data, target = next_token_rows(np.array([ids], np.uint8))
    clean = [4 if i == 11 else i for i in ids]
    assert data.tolist() == [clean]
    assert target.tolist() == [[*clean[1:], 1]]
    assert data.dtype == target.dtype == np.int32


def test_conjoin_pairs_both_strands():
    tokenizer = tokenizers.get("caduceus")
    ids = tokenizer.encode_batch(["AACG", "TTNG"], add_special_tokens=False)[0]
    pair = conjoin(ids, tokenizer.complement[ids[:, ::-1]])
    assert pair.shape == (2, 4, 2)
    assert tokenizer.decode(pair[0, :, 1]) == "CGTT"


def test_shift_moves_rows_by_their_own_offsets():
    rows = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]], np.uint8)
    out = shift(rows, np.array([0, 1, -2, 9]), 4)
    assert out.tolist() == [[1, 2, 3], [4, 1, 2], [3, 4, 4], [4, 4, 4]]
    assert out.dtype == np.uint8
