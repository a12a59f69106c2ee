import itertools
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llm_determinism.analysis.divergence import Branch, Divergence, divergence, excerpt


def parting(*texts):
    """The prefix and the branches of runs with one step each, one run a group."""
    found = divergence([((text,), 1) for text in texts])
    assert found is not None
    assert found.index == len(found.prefix)
    return found.prefix, [branch.text for branch in found.branches]


def test_a_divergence_and_its_json():
    found = divergence(
        [
            (("lookup(7)", "Refund the customer in full"), 2),
            (("lookup(7)", "Refund the order"), 27),
            (("lookup(7)", "Refund the customer in part"), 1),
        ]
    )
    assert found == Divergence(
        step=1,
        index=11,
        unit="character",
        prefix="Refund the ",
        branches=(Branch("order", 27), Branch("customer in …", 3)),
    )
    assert found.to_json() == {
        "step": 1,
        "index": 11,
        "unit": "character",
        "prefix": "Refund the ",
        "branches": [{"text": "order", "count": 27}, {"text": "customer in …", "count": 3}],
    }


@pytest.mark.parametrize(
    "groups",
    [[], [((), 3)], [(("a", "b"), 30)], [(("a",), 1), (("a",), 2)], [((), 1), ((), 2)]],
)
def test_groups_with_one_text_do_not_part(groups):
    assert divergence(groups) is None


@pytest.mark.parametrize(
    ("groups", "step", "prefix", "branches"),
    [
        ([(("a", "b"), 1), (("a", "c"), 2)], 1, "", [("c", 2), ("b", 1)]),
        ([(("x", "b"), 1), (("y", "c"), 2)], 0, "", [("y", 2), ("x", 1)]),
        ([(("a",), 2), (("a", "b"), 1)], 1, "", [("", 2), ("b", 1)]),
        ([(("a",), 2), (("a", ""), 1)], 1, "", [("", 2), ("", 1)]),
        ([((), 1), (("a",), 1)], 0, "", [("", 1), ("a", 1)]),
        ([(("a", "b"), 1), (("a",), 1), (("a", "b", "c"), 1)], 1, "", [("b", 2), ("", 1)]),
    ],
)
def test_the_first_step_that_differs_is_described(groups, step, prefix, branches):
    assert divergence(groups) == Divergence(
        step, len(prefix), "character", prefix, tuple(Branch(text, count) for text, count in branches)
    )


@pytest.mark.parametrize(
    ("texts", "prefix", "branches"),
    [
        (["yes", "no"], "", ["yes", "no"]),
        (["yes", "yes."], "yes", ["", "."]),
        (["the cat", "the"], "the", [" cat", ""]),
        (["cannot", "can do"], "can", ["not", " do"]),
        (["the cat sat", "the cat sits", "the dog"], "the ", ["cat …", "dog"]),
        (["the cat sat", "the cat", "the dog"], "the ", ["cat …", "dog"]),
        (["a\n\nb", "a b"], "a", ["\n\nb", " b"]),
        (["a  b", "a b"], "a ", [" b", "b"]),
        (["a", "a "], "a", ["", " "]),
        # Cut at a word to 60 characters; whole at exactly 60.
        (["a" + " word" * 20, "b"], "", ["a" + " word" * 11 + " …", "b"]),
        (["a" * 29 + " " + "b" * 30, "c"], "", ["a" * 29 + " " + "b" * 30, "c"]),
        (["a" * 29 + " " + "b" * 31, "c"], "", ["a" * 29 + " …", "c"]),
        (["a" * 29 + " " + "b" * 30 + " d", "c"], "", ["a" * 29 + " " + "b" * 30 + " …", "c"]),
        (["a" * 29 + " \n " + "b" * 60, "c"], "", ["a" * 29 + " …", "c"]),
        # A word that is longer still is cut itself, and what follows does not count.
        (["的" * 61, "是"], "", ["的" * 60 + "…", "是"]),
        (["的" * 70 + "一", "的" * 70 + "二", "是"], "", ["的" * 60 + "…", "是"]),
        (["的" * 60, "的" * 60 + "一", "是"], "", ["的" * 60 + "…", "是"]),
        (["的" * 59 + "一", "的" * 59 + "二", "是"], "", ["的" * 59 + "一", "的" * 59 + "二", "是"]),
        (["x" * 59 + "e\u0301" + "y" * 9, "z"], "", ["x" * 59 + "e\u0301…", "z"]),
        # The sign for "cut" is no reason to take two ways for one.
        (["can…", "can be", "can do", "no"], "", ["can…", "can …", "no"]),
    ],
)
def test_branches_are_told_apart_by_the_next_word(texts, prefix, branches):
    found = parting(*texts)
    assert (found[0], sorted(found[1])) == (prefix, sorted(branches))


def test_branches_are_in_order_of_count_and_then_of_appearance():
    groups = [(("b",), 1), (("a",), 5), (("d x",), 1), (("c",), 2), (("d y",), 1)]
    found = divergence(groups)
    assert found is not None
    assert found.branches == (Branch("a", 5), Branch("d …", 2), Branch("c", 2), Branch("b", 1))


@pytest.mark.parametrize(
    ("texts", "prefix"),
    [
        pytest.param(["cafe\u0301", "cafe"], "caf", id="combining mark in one"),
        pytest.param(["cafe\u0301", "cafe\u0300"], "caf", id="combining marks that differ"),
        pytest.param(["ae\u0323\u0301", "ae\u0323\u0300"], "a", id="several combining marks"),
        pytest.param(["a\u0e01\u0e31", "a\u0e01"], "a", id="vowel sign of combining class 0"),
        pytest.param(["a1\ufe0f\u20e3", "a1"], "a", id="keycap"),
        pytest.param(["a❤\ufe0f", "a❤"], "a", id="variation selector"),
        pytest.param(["a👩\u200d💻", "a👩"], "a", id="joined in one"),
        pytest.param(["a👩\u200d💻", "a👩\u200d🔬"], "a", id="joined to another"),
        pytest.param(["a👩\u200d💻b", "a👩\u200d💻c"], "a👩\u200d💻", id="after joined"),
        pytest.param(["a\u200db", "a\u200dc"], "a\u200d", id="a joiner that joins nothing"),
        pytest.param(["a\u0645\u200c", "a\u0645"], "a", id="zero-width non-joiner"),
        pytest.param(["a👍🏽", "a👍🏿"], "a", id="skin tones"),
        pytest.param(["a👍🏻", "a👍"], "a", id="the first skin tone"),
        pytest.param(["a🏴\U000e0067\U000e007f", "a🏴"], "a", id="flag of tags"),
        pytest.param(["a🇩🇪", "a🇩🇰"], "a", id="flags"),
        pytest.param(["🇩🇪🇩🇪", "🇩🇪🇩🇰"], "🇩🇪", id="second flag"),
        pytest.param(["a🇩🇪🇩", "a🇩🇪🇫"], "a🇩🇪", id="half a flag"),
        pytest.param(["a🇩🇪", "a🇩🇪b"], "a🇩🇪", id="after a flag"),
        pytest.param(["a\r\n", "a\r"], "a", id="CRLF"),
        pytest.param(["a\r\nb", "a\r\nc"], "a\r\n", id="after CRLF"),
        pytest.param(["a\n\n", "a\n"], "a\n", id="two line ends"),
        pytest.param(["a\ud83d\ude00", "a\ud83d\ude01"], "a", id="surrogates"),
        pytest.param(["\u0301a", "\u0301b"], "\u0301", id="mark at the start"),
        pytest.param(["éa", "éb"], "é", id="composed"),
    ],
)
def test_no_grapheme_is_split(texts, prefix):
    found = parting(*texts)
    assert found == (prefix, [text[len(prefix) :] for text in texts])
    assert parting(*reversed(texts))[0] == prefix


# Characters that meet at every rule: words, spaces, the sign for "cut", and parts of graphemes.
characters = st.sampled_from("ab  \n\r…e\u0301\u0323👩💻\u200d\ufe0f🏽🇩🇪的\ud83d\ude00")
long_runs = st.builds(str.__mul__, characters, st.integers(1, 65))
texts = st.lists(characters | long_runs, max_size=8).map("".join)
forks = st.builds(
    lambda common, endings: [common + ending for ending in endings],
    texts,
    st.lists(texts, min_size=2, max_size=6, unique=True),
)
outputs = st.lists(texts, max_size=2).map(tuple)
runs = st.lists(outputs, max_size=6, unique=True) | st.builds(
    lambda before, fork, after: [(*before, text, *after) for text in fork], outputs, forks, outputs
)


@given(runs, st.data())
@example([("a",), ("a", "")], None)
def test_the_groups_share_the_prefix_and_the_branches_hold_all_runs(representatives, data):
    counts = [data.draw(st.integers(1, 5)) if data else 1 for _ in representatives]
    found = divergence(list(zip(representatives, counts, strict=True)))
    if len(representatives) < 2:
        assert found is None
        return
    assert found is not None
    step, index = found.step, found.index
    assert len({parts[:step] for parts in representatives}) == 1
    assert len({parts[step : step + 1] for parts in representatives}) > 1
    at_step = [parts[step] if step < len(parts) else "" for parts in representatives]
    assert index == len(found.prefix)
    assert all(text.startswith(found.prefix) for text in at_step)
    assert sum(branch.count for branch in found.branches) == sum(counts)
    assert [branch.count for branch in found.branches] == sorted(
        (branch.count for branch in found.branches), reverse=True
    )
    assert len(found.branches) >= 2
    shown = [branch.text for branch in found.branches]
    # Only "no such step" and "an empty one" look the same.
    assert len(set(shown)) == len(shown) or sorted(shown)[:2] == ["", ""]
    for text in shown:
        whole = [other[index:] for other in at_step]
        begun = text.removesuffix("…")
        assert text in whole or any(other.startswith((begun, begun[:-1])) for other in whole)


@given(forks)
def test_the_index_is_where_the_texts_part_or_the_start_of_that_grapheme(different):
    found = divergence([((text,), 1) for text in different])
    assert found is not None
    parted = next(at for at in range(1000) if len({text[at : at + 1] for text in different}) > 1)
    assert found.index <= parted
    assert not any(character in "ab的…" for character in different[0][found.index + 1 : parted])
    if found.index:
        assert not any(unicodedata.combining(character) for character in next_characters(different, found))


def next_characters(texts, found):
    return [text[found.index] for text in texts if len(text) > found.index]


@pytest.mark.parametrize("looped", ["🇩", "\u0301", "的", "word ", "\r\n", "👩\u200d"])
def test_it_takes_linear_time_for_many_outputs_that_loop(looped):
    common = looped * (4000 // len(looped))
    groups = [((f"{common}{looped * (number % 2)}{number}",), 1) for number in range(1000)]
    started = time.perf_counter()
    found = divergence(groups)
    assert time.perf_counter() - started < 1
    assert found is not None
    assert sum(branch.count for branch in found.branches) == 1000


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
        ("ab", 1, 2, "ab"),
        ("abc", 1, 2, "……"),
    ],
)
def test_an_excerpt_fits_the_width(text, around, width, expected):
    assert excerpt(text, around, width) == expected


@given(
    st.text(st.characters(codec=None) | characters | st.sampled_from("\x1b\x9b\u202e\\")),
    st.integers(-5, 300),
    st.integers(2, 90),
)
def test_an_excerpt_is_one_printable_line_within_the_width(text, around, width):
    line = excerpt(text, around, width)
    assert line.isprintable()
    assert len(line) <= width
    line.encode()


def test_different_short_texts_look_different():
    short = ["".join(text) for length in range(5) for text in itertools.product("\n\x1b\\nx1b", repeat=length)]
    assert len({excerpt(text) for text in short}) == len(short)


@given(st.text(st.sampled_from("abc\n"), min_size=60, max_size=300), st.data())
def test_an_excerpt_shows_the_character_it_is_about(text, data):
    around = data.draw(st.integers(0, len(text) - 1))
    marked = text[:around] + "X" + text[around + 1 :]
    assert "X" in excerpt(marked, around, 20)
