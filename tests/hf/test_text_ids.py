"""tokenizer.json gives the ids of sentencepiece, whatever is typed."""

import unicodedata

import pytest
from hf_source import CAPTIONS, Source
from hypothesis import given, settings
from hypothesis import strategies as st

from megavrc.errors import UserError
from megavrc.hf.fast_tokenizer import ODD_STRINGS, to_fast
from megavrc.tokenizers import TextTokenizer

NATURAL = [
    "CAF\u00c9 NA\u00cfVE \u00c5ngstr\u00f6m",
    "Ti\u1ebfng Vi\u1ec7t \u0110\u01b0\u1eddng",
    "\u0130stanbul \u0395\u03bb\u03bb\u03ac\u03b4\u03b1 \u0386",
]
DECOMPOSED = [unicodedata.normalize("NFD", text) for text in NATURAL]


def test_ids_are_those_of_sentencepiece(source: Source) -> None:
    fast = to_fast(source.text.path, 16)
    for text in [*ODD_STRINGS, *CAPTIONS, *NATURAL, *DECOMPOSED]:
        assert fast(text, add_special_tokens=False, verbose=False)["input_ids"] == source.text.ids(text), (
            repr(text)
        )


def test_ids_are_those_of_sentencepiece_for_any_text(source: Source) -> None:
    fast = to_fast(source.text.path, 16)
    # Marks are left out: of several on one letter sentencepiece composes fewer than Unicode does.
    characters = st.characters(exclude_categories=("Cs", "Mn", "Mc", "Me"))

    @given(st.text(characters) | st.text("a \u2581<s>pad\t\n"))
    @settings(deadline=None, max_examples=300, database=None)
    def same(text: str) -> None:
        assert fast(text, add_special_tokens=False, verbose=False)["input_ids"] == source.text.ids(text)

    same()


def test_accents_without_a_composed_form(tmp_path) -> None:
    """Capitals of Yoruba, Lithuanian and Russian dictionaries, half-width kana, joiners, keycaps."""
    texts = [
        "\u1eb8\u0300k\u1ecd\u0301 \u1ecc\u0300n\u00e0",
        "\u0104\u0301 \u0410\u0301 \u0395\u0314",
        "\uff8a\uff9e\uff7d \uff8a\uff9f\uff9d",
        "A\u200cB \u0645\u06cc\u200c\u062e",
        "\u00b2\ufe0f 1\ufe0f\u20e3",
    ]
    texts += [unicodedata.normalize("NFD", text) for text in texts]
    text = TextTokenizer.train(texts, tmp_path / "tokenizer.model", 200)
    fast = to_fast(text.path, 16)
    for odd in texts:
        assert fast(odd, add_special_tokens=False, verbose=False)["input_ids"] == text.ids(odd), ascii(odd)


def test_padding_to_full_length_gives_the_condition(source: Source) -> None:
    fast = to_fast(source.text.path, 16)
    for text in ("", "a red square", "a red square <s> <pad>"):
        assert fast(text, padding="max_length")["input_ids"] == source.text.encode(text, 16)


def test_other_files_are_refused(tmp_path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xfe no model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        to_fast(tmp_path / "tokenizer.model", 16)
