"""Mutants and hidden tokens against strings edited by hand, and tokens against the bases that they stand for."""

import numpy as np
import pytest

from jaxgen import tokenizers
from jaxgen.data import mutants
from jaxgen.data.augment import reverse_complement_text
from jaxgen.data.mutants import HiddenTokens, Mutants
from jaxgen.data.segments import Encoder, Step
from jaxgen.data.sequences import Sequences
from jaxgen.errors import InputError
from jaxgen.tokenizers.bpe import train_bpe

TEXTS = [b"ACGTTGCAACGTA", b"GGNACGTTTACGATTGG", b"TTAC"]
IDS = ["a", "b", "c"]


def encoder(name: str, texts: list[bytes] = TEXTS) -> Encoder:
    rng = np.random.default_rng(0)
    if name == "bpe":
        tokenizer = train_bpe([rng.choice(list(b"ACGT"), 400).astype(np.uint8).tobytes()], 40)
    else:
        tokenizer = tokenizers.get(name, **({"k": 3} if name in ("dnabert", "nt_v2") else {}))
    return Encoder(Sequences.from_list(texts), tokenizer, name != "caduceus")


def test_sequences_are_read_in_upper_case_with_n_for_other_letters():
    clean = mutants.plain(Sequences.from_list([b"acgtuRn-", b"ACGTUN"]))
    assert list(clean) == [b"ACGTTNNN", b"ACGTTN"]


@pytest.mark.parametrize(("window", "expected"), [(0, [0, 1, 2, 3, 4, 5, 6, 7, 9]), (3, [0, 1, 2, 5, 6, 7]), (2, [0, 1, 5, 6])])
def test_sites_are_the_bases_of_the_window(window, expected):
    sequences = Sequences.from_list([b"ACG", b"ACGTANA"])
    assert mutants.sites(sequences, window, ["x", "y"]).tolist() == expected


@pytest.mark.parametrize(
    ("texts", "window", "message"),
    [([b"ACG", b"AC"], 3, "larger than the 2 bases of sequence 'b'"), ([b"NN"], 0, "none of the sequences"), ([b"A"], -1, "=-1")],
)
def test_wrong_windows_are_one_line(texts, window, message):
    with pytest.raises(InputError, match=message):
        mutants.sites(Sequences.from_list(texts), window, IDS)


@pytest.mark.parametrize("name", ["caduceus", "nt_v2", "dnabert", "bpe"])
def test_mutants_are_those_of_a_loop(name):
    reader = encoder(name)
    sites = mutants.sites(reader.sequences, 3, IDS)
    made = Mutants.of(reader, sites, (0, 1))
    expected = []
    for text in TEXTS:
        expected.append(text)
        for at in range((len(text) - 3) // 2, (len(text) - 3) // 2 + 3):
            start = b"ACGT".find(text[at : at + 1])
            letters = [b"ACGT"[(start + shift) % 4 : (start + shift) % 4 + 1] for shift in (1, 2, 3)] if start >= 0 else []
            expected += [text[:at] + letter + text[at + 1 :] for letter in letters]
    both = [strand for text in expected for strand in (text, reverse_complement_text(text))]
    assert made.owner[made.segments.row].tolist() == [TEXTS.index(text) for text in TEXTS for _ in range(20)]
    step = Step(0, 24, np.array([*range(len(both)), -1]))
    batch = made.batch(step)
    ids, lengths = reader.tokenizer.encode_batch(both, 24, add_special_tokens=reader.special_tokens)
    np.testing.assert_array_equal(batch["tokens"][:-1], ids)
    np.testing.assert_array_equal(made.segments.tokens, lengths)
    np.testing.assert_array_equal(batch["mask"].sum(1), [*lengths, 1])
    assert not batch["bases"][-1].any()


@pytest.mark.parametrize("name", ["caduceus", "nt_v2", "dnabert", "bpe"])
@pytest.mark.parametrize("strand", [0, 1])
def test_tokens_are_spread_over_their_bases(name, strand):
    reader = encoder(name, [b"ACGTTGCAACGTA", b"GGACGTTNTACGATTGG"])
    for row, text in enumerate(reader.sequences):
        text = reverse_complement_text(text) if strand else text
        first, counts = reader.tokenizer.spans(text)
        ids = reader.tokenizer.encode(text, add_special_tokens=False)
        for start, n, token in zip(first, counts, ids):
            piece = text[start : start + n]
            assert b"N" in piece or reader.tokenizer.encode(piece, add_special_tokens=False).tolist() == [token]
        values = np.random.default_rng(1).normal(size=len(ids))
        spread = mutants.spread_over_bases(reader, row, strand, values)
        expected = np.zeros(len(text))
        for start, n, value in zip(first, counts, values):
            expected[start : start + n] += value / n
        np.testing.assert_allclose(spread, expected[:: -1 if strand else 1], rtol=1e-6)


@pytest.mark.parametrize("name", ["caduceus", "nt_v2", "dnabert"])
def test_hidden_tokens_are_those_that_a_mutation_changes(name):
    reader = encoder(name)
    tokenizer, sites = reader.tokenizer, mutants.sites(reader.sequences, 0, IDS)
    hidden = HiddenTokens.of(reader, sites, (0, 1))
    assert sorted(hidden.site[hidden.site >= 0].tolist()) == sorted([*sites, *sites])
    width = int(hidden.segments.tokens.max()) + 2
    batch = hidden.batch(Step(0, width, np.arange(len(hidden.owner))))

    def encode(text: bytes, strand: int) -> np.ndarray:
        turned = reverse_complement_text(text) if strand else text
        return tokenizer.encode_batch([turned], width, add_special_tokens=reader.special_tokens)[0][0]

    for i, (owner, strand) in enumerate(zip(hidden.owner, hidden.segments.strand)):
        text = TEXTS[owner]
        reference, changed = encode(text, strand), np.zeros(width, bool)
        for slot, site in enumerate(hidden.site[i]):
            if site < 0:
                continue
            at = site - reader.sequences.offsets[owner]
            for code, letter in enumerate(b"ACGT"):
                ids = encode(text[:at] + bytes([letter]) + text[at + 1 :], strand)
                places, used = batch["places"][i], batch["letters"][i, :, slot, code] >= 0
                np.testing.assert_array_equal(batch["letters"][i, used, slot, code], ids[places[used]])
                changed |= ids != reference
        np.testing.assert_array_equal(batch["tokens"][i], np.where(changed, tokenizer.mask_id, reference))
        assert sorted(batch["places"][i][batch["letters"][i, :, 0, 0] >= 0].tolist()) == np.flatnonzero(changed).tolist()


def test_a_tokenizer_without_mask_has_nothing_to_hide():
    reader = encoder("caduceus")
    reader.tokenizer.mask_id = None
    with pytest.raises(InputError, match="needs a mask token"):
        HiddenTokens.of(reader, mutants.sites(reader.sequences, 0, IDS), (0,))
