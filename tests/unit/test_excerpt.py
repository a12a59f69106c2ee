"""Texts from models in one line, safe for a terminal."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.analysis.excerpt import beginning_and_end, columns, excerpt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("Refund the customer", "Refund the customer"),
        ("a\nb\r\n\tc", "a\\nb\\r\\n\\tc"),
        ("C:\\new", "C:\\\\new"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202aa\u202eb\u2066c\u2069", "\\u202aa\\u202eb\\u2066c\\u2069"),
        ("\u200eab\u200bc\ufeff", "\\u200eab\\u200bc\\ufeff"),
        ("a\u00a0b\u2028c", "a\\xa0b\\u2028c"),
        ("\ud83d", "\\ud83d"),
        ("\U000e0067", "\\U000e0067"),
        ("naïve café 的 👍🏽 e\u0301", "naïve café 的 👍🏽 e\u0301"),
    ],
)
def test_an_excerpt_shows_what_cannot_be_printed(text, expected):
    assert excerpt(text) == expected


DIGITS = "0123456789" * 3


@pytest.mark.parametrize(
    ("text", "around", "width", "expected"),
    [
        (DIGITS, 0, 30, DIGITS),
        (DIGITS, 0, 29, "0123456789012345678901234567…"),
        (DIGITS, 0, 12, "01234567890…"),
        (DIGITS, 15, 12, "…2345678901…"),
        (DIGITS, 29, 12, "…90123456789"),
        (DIGITS, 30, 12, "…90123456789"),
        (DIGITS, 3, 12, "01234567890…"),
        (DIGITS, 5, 12, "…2345678901…"),
        (DIGITS, 99, 12, "…90123456789"),
        (DIGITS, -5, 12, "01234567890…"),
        ("\n" * 9, 0, 8, "\\n\\n\\n…"),
        ("\n" * 9, 9, 8, "…\\n\\n\\n"),
        ("\x1b" * 9, 4, 12, "…\\x1b\\x1b…"),
        ("e\u0301" * 9, 0, 8, "e\u0301e\u0301e\u0301…"),
        ("e\u0301" * 9, 18, 8, "…e\u0301e\u0301e\u0301"),
        ("的" * 9, 0, 9, "的的的的…"),
        ("的" * 4, 0, 8, "的的的的"),
        ("😀" * 9, 18, 8, "…😀😀😀"),
        ("ab", 1, 2, "ab"),
        ("abc", 1, 2, "……"),
    ],
)
def test_an_excerpt_fits_the_width(text, around, width, expected):
    assert excerpt(text, around, width) == expected


@given(
    st.text(
        st.characters(codec=None)
        | st.sampled_from("ab  \n\r…e\u0301👩💻\u200d\ufe0f🏽🇩🇪的\ud83d\ude00\x1b\x9b\u202e\\")
    ),
    st.integers(-5, 300),
    st.integers(2, 90),
)
def test_an_excerpt_is_one_printable_line_within_the_width(text, around, width):
    line = excerpt(text, around, width)
    assert line.isprintable()
    assert columns(line) <= width
    line.encode()


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("", 12, ""),
        (DIGITS, 30, DIGITS),
        (DIGITS, 29, "0123456789012…567890123456789"),
        (DIGITS, 12, "01234…456789"),
        ("\n" * 9, 12, "\\n\\n…\\n\\n\\n"),
        ("的" * 9, 12, "的的…的的的"),
        ("e\u0301" * 9, 8, "e\u0301…e\u0301e\u0301"),
        ("ab" * 40 + "e\u0301", 8, "aba…abe\u0301"),
        ("a\nb", 12, "a\\nb"),
    ],
)
def test_what_is_left_out_in_the_middle(text, width, expected):
    assert beginning_and_end(text, width) == expected


@given(st.text(st.characters(codec=None) | st.sampled_from("ab的😀\u0301\n")), st.integers(4, 90))
def test_a_beginning_and_an_end_are_one_printable_line_within_the_width(text, width):
    line = beginning_and_end(text, width)
    assert line.isprintable()
    assert columns(line) <= width
    assert columns(excerpt(text, 0, width)) <= width


def test_different_short_texts_look_different():
    short = ["".join(text) for length in range(5) for text in itertools.product("\n\x1b\\nx1b", repeat=length)]
    assert len({excerpt(text) for text in short}) == len(short)


@given(st.text(st.sampled_from("abc\n"), min_size=60, max_size=300), st.data())
def test_an_excerpt_shows_the_character_it_is_about(text, data):
    around = data.draw(st.integers(0, len(text) - 1))
    marked = text[:around] + "X" + text[around + 1 :]
    assert "X" in excerpt(marked, around, 20)
