"""The tokenizer of the reference server."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.reference import words

PRODUCED = st.lists(st.integers(1, words.VOCABULARY_SIZE - 1), max_size=40)


@given(PRODUCED)
def test_what_a_model_produces_is_read_back_as_the_same_ids(ids: list[int]) -> None:
    assert words.encode(words.decode(ids)) == ids


@given(PRODUCED)
def test_pieces_join_to_the_text(ids: list[int]) -> None:
    assert "".join(words.pieces(ids)) == words.decode(ids)


@given(st.text(max_size=60))
def test_any_text_becomes_ids_in_range_and_no_character_is_lost(text: str) -> None:
    ids = words.encode(text)
    assert all(0 < token < words.TOTAL_IDS for token in ids)
    assert "".join(words._PIECE.findall(text)) == text
    assert bool(ids) == bool(text)


def test_the_text_reads_like_text() -> None:
    ids = words.encode("the old fox, quiet and wise.")
    assert all(token < words.VOCABULARY_SIZE for token in ids)
    assert words.pieces(ids) == ["the", " old", " fox", ",", " quiet", " and", " wise", "."]


def test_different_spellings_and_spacings_are_different_prompts() -> None:
    texts = [
        "the fox", "The fox", "the  fox", "the fox ", " the fox", "the\nfox", "thefox", "the Fox", "the fox .",
        "the fox.", "the fox,", "the fox 1", "the fox 2", "the fox 12", "the fox 21", "the fox é", "the fox ü",
        "the fox _", "the fox 🦊",
    ]  # fmt: skip
    assert len({tuple(words.encode(text)) for text in texts}) == len(texts)


def test_the_vocabulary_has_no_double_and_the_end_of_text_has_no_text() -> None:
    assert len(set(words.TOKENS)) == len(words.TOKENS) == words.VOCABULARY_SIZE
    assert words.decode([words.END_OF_TEXT]) == ""
