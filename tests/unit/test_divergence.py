"""Where groups part: the tree, its units, and what it does not do."""

import json
import random
import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.divergence import (
    DEPTH,
    FORKS,
    LONGEST,
    Branch,
    Divergence,
    Part,
    TokenFork,
    Way,
    divergence,
    first_fork,
    ways,
)
from pytest_llm_determinism.analysis.graphemes import splits_grapheme
from pytest_llm_determinism.analysis.groups import group, outcomes
from pytest_llm_determinism.runs import Exchange, Run
from pytest_llm_determinism.shapes.answer import Token, ToolCall


def part(said):
    """What a run said at one step: a text, a list of tokens, None for no such step, or a part itself."""
    if isinstance(said, list):
        return Part("".join(said), "".join(said), tokens=tuple(Token(text, -1.0) for text in said))
    return Part(said, said) if isinstance(said, str) else said


def way(*said, count=1):
    return Way(tuple(map(part, said)), count)


def parting(*said):
    """The first fork of runs with one step each, one run a group."""
    found = divergence([way(one) for one in said])
    assert found is not None
    return found


def in_short(fork):
    """A tree as nested lists: where a fork is, then of each branch the text, the count, and the next fork or None."""
    return [
        fork.prefix if fork.path is None else fork.path,
        *[
            (None if branch.missing else branch.text, branch.count, branch.then and in_short(branch.then))
            for branch in fork.branches
        ],
    ]


def test_a_whole_tree():
    found = divergence(
        [
            way("lookup(7)", "Refund the order", count=27),
            way("lookup(7)", "Refund the customer in full, today", count=3),
            way("lookup(7)", "Refund the customer in part", count=1),
            way("lookup(7)", "Refund the customer in full", count=2),
        ]
    )
    assert found == Divergence(
        step=1,
        index=2,
        unit="word",
        prefix="Refund the ",
        branches=(
            Branch("order", 27, groups=(0,)),
            Branch(
                "customer in ",
                6,
                then=Divergence(
                    step=1,
                    index=4,
                    unit="word",
                    prefix="Refund the customer in ",
                    branches=(
                        Branch(
                            "full",
                            5,
                            then=Divergence(
                                step=1,
                                index=5,
                                unit="word",
                                prefix="Refund the customer in full",
                                branches=(Branch(", today", 3, groups=(1,)), Branch("", 2, groups=(3,))),
                            ),
                        ),
                        Branch("part", 1, groups=(2,)),
                    ),
                ),
            ),
        ),
    )


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [way()],
        [way("a", "b", count=30)],
        [way("a"), way("a", count=2)],
        [way(), way()],
        [way(["a", "b"]), way(["ab"])],
    ],
)
def test_groups_with_one_text_do_not_part(groups):
    assert divergence(groups) is None


@pytest.mark.parametrize(
    ("groups", "step", "tree"),
    [
        ([way("a", "b"), way("a", "c", count=2)], 1, ["", ("c", 2, None), ("b", 1, None)]),
        ([way("x", "b"), way("y", "c", count=2)], 0, ["", ("y", 2, None), ("x", 1, None)]),
        ([way("a", count=2), way("a", "b")], 1, ["", (None, 2, None), ("b", 1, None)]),
        ([way("a", count=2), way("a", "")], 1, ["", (None, 2, None), ("", 1, None)]),
        ([way(), way("a")], 0, ["", (None, 1, None), ("a", 1, None)]),
        ([way(None, "a"), way("a", "a")], 0, ["", (None, 1, None), ("a", 1, None)]),
        ([way("", "a"), way("a", "a")], 0, ["", ("", 1, None), ("a", 1, None)]),
        (
            [way("a", "b"), way("a"), way("a", "b", "c")],
            1,
            ["", ("b", 2, ["", (None, 1, None), ("c", 1, None)]), (None, 1, None)],
        ),
        # Those without the step are told from those that said nothing at it, and these go on together.
        (
            [way("a"), way("a", "b c"), way("a", "b d")],
            1,
            ["", ("b ", 2, ["b ", ("c", 1, None), ("d", 1, None)]), (None, 1, None)],
        ),
    ],
)
def test_the_first_step_that_differs_is_told(groups, step, tree):
    found = divergence(groups)
    assert (found.step, in_short(found)) == (step, tree)


def test_a_later_step_forks_within_the_branch_that_leads_to_it():
    found = divergence([way("go left", "one"), way("go left", "two"), way("go right", "two")])
    assert in_short(found) == ["go ", ("left", 2, ["", ("one", 1, None), ("two", 1, None)]), ("right", 1, None)]
    assert [found.step, found.branches[0].then.step] == [0, 1]


# Words

LONG = "x" * 60


@pytest.mark.parametrize(
    ("texts", "index", "tree"),
    [
        (["yes", "no"], 0, ["", ("yes", 1, None), ("no", 1, None)]),
        (["yes", "yes."], 1, ["yes", ("", 1, None), (".", 1, None)]),
        (["the cat", "the"], 1, ["the", (" cat", 1, None), ("", 1, None)]),
        (["the cat", "the dog"], 1, ["the ", ("cat", 1, None), ("dog", 1, None)]),
        (["cannot", "can do"], 0, ["", ("cannot", 1, None), ("can do", 1, None)]),
        (["the cats", "the catalogue"], 1, ["the ", ("cats", 1, None), ("catalogue", 1, None)]),
        (
            ["the cat sat", "the cat sits", "the dog"],
            1,
            ["the ", ("cat ", 2, ["the cat ", ("sat", 1, None), ("sits", 1, None)]), ("dog", 1, None)],
        ),
        (
            ["can do", "can.", "cannot"],
            0,
            ["", ("can", 2, ["can", (" do", 1, None), (".", 1, None)]), ("cannot", 1, None)],
        ),
        (["a\n\nb", "a b"], 1, ["a", ("\n\nb", 1, None), (" b", 1, None)]),
        (["a  b", "a b"], 1, ["a", ("  b", 1, None), (" b", 1, None)]),
        (["a", "a "], 1, ["a", ("", 1, None), (" ", 1, None)]),
        (["a\r\nb", "a\nb"], 1, ["a", ("\r\nb", 1, None), ("\nb", 1, None)]),
        ([" a", " b"], 0, [" ", ("a", 1, None), ("b", 1, None)]),
        # A sign between letters or digits is part of the word.
        (["costs 3.5", "costs 3.75"], 1, ["costs ", ("3.5", 1, None), ("3.75", 1, None)]),
        (["costs 3.5", "costs 3"], 1, ["costs ", ("3.5", 1, None), ("3", 1, None)]),
        (["it's 5", "it’s 5"], 0, ["", ("it's 5", 1, None), ("it’s 5", 1, None)]),
        (["ab.c", "ab. x"], 0, ["", ("ab.c", 1, None), ("ab. x", 1, None)]),
        (["ab. x", "ab.c"], 0, ["", ("ab. x", 1, None), ("ab.c", 1, None)]),
        (["Paris.", "Paris, so"], 1, ["Paris", (".", 1, None), (", so", 1, None)]),
        (["f(a_b, 1)", "f(a_c, 1)"], 1, ["f(", ("a_b, 1)", 1, None), ("a_c, 1)", 1, None)]),
        (["très été", "très éte"], 1, ["très ", ("été", 1, None), ("éte", 1, None)]),
        (["हिन्दी", "हिन्दू"], 0, ["", ("हिन्दी", 1, None), ("हिन्दू", 1, None)]),
        (["😀😁", "😀😂"], 1, ["😀", ("😁", 1, None), ("😂", 1, None)]),
        (
            ["a" + "\u0301" * 60, "a" + "\u0301" * 50 + "\u0300" * 10, "b"],
            0,
            ["", ("a" + "\u0301" * 60, 1, None), ("a" + "\u0301" * 50 + "\u0300" * 10, 1, None), ("b", 1, None)],
        ),
        # Scripts without spaces.
        (["我想要退款", "我想要换货"], 3, ["我想要", ("退款", 1, None), ("换货", 1, None)]),
        (["ฉันไป", "ฉันมา"], 3, ["ฉัน", ("ไป", 1, None), ("มา", 1, None)]),
        (["日本 is", "日本 was"], 2, ["日本 ", ("is", 1, None), ("was", 1, None)]),
        # Right to left, in the order of reading.
        (["של שלום", "של רב"], 1, ["של ", ("שלום", 1, None), ("רב", 1, None)]),
        # A word that is longer than 40 characters is cut where it differs.
        (["x" * 40 + "a", "x" * 40 + "b"], 1, ["x" * 40, ("a", 1, None), ("b", 1, None)]),
        (["x" * 39 + "a", "x" * 39 + "b"], 0, ["", ("x" * 39 + "a", 1, None), ("x" * 39 + "b", 1, None)]),
        (["so " + LONG + "a", "so " + LONG + "b"], 2, ["so " + LONG, ("a", 1, None), ("b", 1, None)]),
        (
            [LONG + "a" + LONG + "c", LONG + "a" + LONG + "d", LONG + "b"],
            1,
            [
                LONG,
                ("a" + LONG, 2, [LONG + "a" + LONG, ("c", 1, None), ("d", 1, None)]),
                ("b", 1, None),
            ],
        ),
    ],
)
def test_texts_part_at_words(texts, index, tree):
    found = parting(*texts)
    assert (found.unit, found.index, in_short(found)) == ("word", index, tree)


def test_the_text_of_a_branch_is_cut_but_never_within_a_grapheme():
    text = "y" * (LONGEST - 1) + "e\u0301" + "y" * 500
    found = parting("a " + text, "b " + text)
    assert [branch.text for branch in found.branches] == [
        "a " + "y" * (LONGEST - 2),
        "b " + "y" * (LONGEST - 2),
    ]
    text = "y" * (LONGEST - 3) + "e\u0301\u0323" + "y" * 500
    assert parting("a " + text, "b " + text).branches[0].text == "a " + "y" * (LONGEST - 3) + "e\u0301\u0323"


def test_branches_are_in_order_of_count_and_then_of_the_groups():
    found = divergence([way("b"), way("a", count=5), way("d x"), way("c", count=2), way("d y")])
    assert [(branch.text, branch.count) for branch in found.branches] == [("a", 5), ("d ", 2), ("c", 2), ("b", 1)]


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
        pytest.param(["a🇩🇪🇩🇪", "a🇩🇪🇩🇰"], "a🇩🇪", id="second flag"),
        pytest.param(["a🇩🇪🇩", "a🇩🇪🇫"], "a🇩🇪", id="half a flag"),
        pytest.param(["a🇩🇪", "a🇩🇪b"], "a🇩🇪", id="after a flag"),
        pytest.param(["a\r\n", "a\r"], "a", id="CRLF"),
        pytest.param(["a\ud83d\ude00", "a\ud83d\ude01"], "a", id="surrogates"),
        pytest.param(["éa", "éb"], "é", id="composed"),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_no_grapheme_is_split(texts, prefix, tokens):
    # Within a long word it is not the word that keeps it whole, and a model's tokens may be anything.
    said = [[LONG, *text] if tokens else LONG + text for text in texts]
    found = parting(*said)
    assert found.unit == ("token" if tokens else "word")
    assert (found.prefix, [branch.text for branch in found.branches]) == (
        LONG + prefix,
        [text[len(prefix) :] for text in texts],
    )
    assert parting(*reversed(said)).prefix == LONG + prefix


# Tokens


@pytest.mark.parametrize(
    ("said", "index", "tree"),
    [
        ([["the", " c", "at"], ["the", " d", "og"]], 1, ["the", (" cat", 1, None), (" dog", 1, None)]),
        ([["the", " ca", "t"], ["the", " ca", "ts"]], 2, ["the ca", ("t", 1, None), ("ts", 1, None)]),
        ([["the"], ["the", " cat"]], 1, ["the", ("", 1, None), (" cat", 1, None)]),
        ([["a", "b", "c"], ["ab", "d"]], 0, ["", ("abc", 1, None), ("abd", 1, None)]),
        (
            [["a", "b", "c"], ["ab", "d"], ["a", "b", "e"]],
            0,
            ["", ("ab", 2, ["ab", ("c", 1, None), ("e", 1, None)]), ("abd", 1, None)],
        ),
        ([[], ["a"]], 0, ["", ("", 1, None), ("a", 1, None)]),
        # A token without text belongs to the one before.
        ([["a", "", "b"], ["a", "", "c"]], 2, ["a", ("b", 1, None), ("c", 1, None)]),
        ([["a", "", "\u0301"], ["a", "c"]], 0, ["", ("a\u0301", 1, None), ("ac", 1, None)]),
    ],
)
def test_texts_part_at_tokens_where_all_responses_tell_them(said, index, tree):
    found = parting(*said)
    assert (found.unit, found.index, in_short(found)) == ("token", index, tree)


def test_a_token_is_kept_whole_however_long():
    found = parting(["so", LONG + "a"], ["so", LONG + "b"])
    assert (found.index, found.prefix) == (1, "so")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("the dog", id="not told"),
        pytest.param(Part("the dog", "the dog", tokens=(Token("the", -1.0),)), id="not all of the text"),
        pytest.param(["the", " d\0g"], id="with a sign that separates them here"),
    ],
)
def test_one_response_without_tokens_is_enough_for_words(other):
    found = parting(["the", " cat"], ["the", " cow"], other)
    assert (found.unit, found.prefix, found.branches[0].text) == ("word", "the ", "cat")


def test_each_step_has_its_own_unit():
    found = divergence([way(["a ", "b"], "c d"), way(["a ", "b"], "c e"), way(["a ", "x"], "c")])
    assert (found.unit, found.branches[0].then.unit) == ("token", "word")


# The fork of tokens


def tokens_at(*said):
    found = first_fork([way(*one) if isinstance(one, tuple) else way(one) for one in said])
    return found and (found.step, found.index, [token and token.text for token in found.tokens])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([["the", " c", "at"], ["the", " d", "og"], ["the", " c", "ow"]], (0, 1, [" c", " d", " c"])),
        ([["the"], ["the", " cat"]], (0, 1, [None, " cat"])),
        # Graphemes are for readers: here it is the token that matters.
        ([["👍", "🏽"], ["👍", "🏿"]], (0, 1, ["🏽", "🏿"])),
        ([(["a"], ["b"]), (["a"], ["c"]), (["a"],)], (1, 0, ["b", "c", None])),
        ([["a"], ["a"]], None),
        ([["a"], "b"], None),
        ([(["a"], "b"), (["a"], "c")], None),
        ([(["a"],), (["a"], "")], None),
        ([], None),
    ],
)
def test_the_first_fork_by_token(said, expected):
    assert tokens_at(*said) == expected


def test_the_first_fork_has_the_tokens_as_the_responses_told_them():
    one, other = Token(" a", -0.7, ((" a", -0.7), (" b", -0.7))), Token(" b", -0.6)
    told = [way(Part(token.text, token.text, tokens=(token,))) for token in (one, other)]
    assert first_fork(told) == TokenFork(0, 0, (one, other))


# JSON


def prices(*values):
    return json.dumps({"id": 7, "items": [{"price": value} for value in values]})


@pytest.mark.parametrize(
    ("texts", "tree"),
    [
        ([prices(1, 2), prices(1, 3)], ["$.items[1].price", ("2", 1, None), ("3", 1, None)]),
        ([prices(3.5), prices(4)], ["$.items[0].price", ("3.5", 1, None), ("4", 1, None)]),
        ([prices(1, 2), prices(1)], ["$.items[1]", ('{"price": 2}', 1, None), (None, 1, None)]),
        (['{"a": 1}', "[1]"], ["$", ('{"a": 1}', 1, None), ("[1]", 1, None)]),
        (['{"a": "x"}', '{"a": "y"}'], ["$.a", ('"x"', 1, None), ('"y"', 1, None)]),
        (['{"a": "1"}', '{"a": 1}'], ["$.a", ('"1"', 1, None), ("1", 1, None)]),
        (['{"a": true}', '{"a": 1}'], ["$.a", ("true", 1, None), ("1", 1, None)]),
        (['{"a": null}', "{}"], ["$.a", ("null", 1, None), (None, 1, None)]),
        (['{"a": ""}', "{}"], ["$.a", ('""', 1, None), (None, 1, None)]),
        (['{"b": 1, "a": 1}', '{"a": 2, "b": 2}'], ["$.a", ("1", 1, None), ("2", 1, None)]),
        (['{"odd name": 1}', '{"odd name": 2}'], ['$["odd name"]', ("1", 1, None), ("2", 1, None)]),
        (['{"ü": [[1]]}', '{"ü": [[2]]}'], ["$.ü[0][0]", ("1", 1, None), ("2", 1, None)]),
        # Deeper forks are by further paths.
        (
            ['{"a": 1, "b": 1}', '{"a": 1, "b": 2}', '{"a": 2, "b": 3}'],
            ["$.a", ("1", 2, ["$.b", ("1", 1, None), ("2", 1, None)]), ("2", 1, None)],
        ),
        # What is written otherwise is the same value, and parts as text where nothing else is left.
        (
            ['{"a": 1, "b": 1}', '{ "b": 1.0, "a": 1e0 }', '{"a": 2, "b": 1}'],
            [
                "$.a",
                ("1e0", 2, ["{", ('"a": 1, "b": 1}', 1, None), (' "b": 1.0, "a": 1e0 }', 1, None)]),
                ("2", 1, None),
            ],
        ),
        # What is not JSON parts as text, as do values that are no documents.
        (['{"a": 1}', '{"a": 2'], ['{"a": ', ("1}", 1, None), ("2", 1, None)]),
        (['{"a": 1}', '{"a": NaN}'], ['{"a": ', ("1}", 1, None), ("NaN}", 1, None)]),
        (["1", "2"], ["", ("1", 1, None), ("2", 1, None)]),
        (["[" * 5000 + "1", "[" * 5000 + "2"], ["[" * 5000, ("1", 1, None), ("2", 1, None)]),
    ],
)
def test_documents_part_at_paths(texts, tree):
    assert in_short(parting(*texts)) == tree


def test_the_largest_group_says_in_which_order_a_document_is_read():
    few, many = '{"a": 1, "z": 1, "y": 2, "b": 1}', '{"b": 2, "a": 2}'
    assert divergence([way(few), way(many, count=2)]).path == "$.b"
    assert divergence([way(few, count=2), way(many)]).path == "$.a"
    assert divergence([way(few), way('{"b": 1, "a": 1}', count=2)]).path == "$.y"


def test_a_document_too_deep_to_look_through_parts_as_text():
    depth = sys.getrecursionlimit() - 120
    found = parting("[" * depth + "1" + "]" * depth, "[" * depth + "2" + "]" * depth)
    assert found.path is None or found.path == "$" + "[0]" * depth
    assert sum(branch.count for branch in found.branches) == 2


def test_a_path_stands_beside_the_place_in_the_text():
    found = parting(prices(1, 2), prices(1, 3))
    assert (found.unit, found.index, found.prefix) == ("word", 6, '{"id": 7, "items": [{"price": 1}, {"price": ')
    assert found.within is None
    found = parting(["{", '"a"', ":", "1", "}"], ["{", '"a"', ":", "2", "}"])
    assert (found.unit, found.index, found.prefix, found.path) == ("token", 3, '{"a":', "$.a")


def test_long_texts_in_a_document_part_within():
    long = "so it is " * 20
    found = parting(
        *[json.dumps({"answer": long + word, "n": n}) for word, n in (("yes\n1", 1), ("yes", 1), ("no", 2))]
    )
    assert (found.path, found.within) == ("$.answer", long)
    assert in_short(found) == [
        "$.answer",
        ("yes", 2, ["$.answer", ("\n1", 1, None), ("", 1, None)]),
        ("no", 1, None),
    ]
    assert found.branches[0].then.within == long + "yes"


# Tool calls


def called(*calls, text=""):
    made = tuple(
        ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments)) for name, arguments in calls
    )
    said = "\n".join([*([text] if text else []), *[call.line() for call in made]])
    return Part(said, said, tool_calls=made)


@pytest.mark.parametrize(
    ("said", "tree"),
    [
        (
            [called(("get_weather", {"city": "Paris"})), called(("get_weather", {"city": "Lyon"}))],
            ["get_weather.city", ('"Paris"', 1, None), ('"Lyon"', 1, None)],
        ),
        (
            [called(("get_weather", {"city": "Paris"})), called(("get_weather", {"city": "Paris", "unit": "C"}))],
            ["get_weather.unit", (None, 1, None), ('"C"', 1, None)],
        ),
        (
            [called(("get_weather", {"at": [{"x": 1}]})), called(("get_weather", {"at": [{"x": 2}]}))],
            ["get_weather.at[0].x", ("1", 1, None), ("2", 1, None)],
        ),
        (
            [called(("get_weather", {})), called(("get_time", {}))],
            ["tool call 1", ("get_weather", 1, None), ("get_time", 1, None)],
        ),
        (
            [called(("a", {}), ("b", {})), called(("a", {}))],
            ["tool call 2", ("b", 1, None), (None, 1, None)],
        ),
        (
            [called(("a", {}), ("b", {"x": 1})), called(("a", {}), ("b", {"x": 2}))],
            ["tool call 2: b.x", ("1", 1, None), ("2", 1, None)],
        ),
        # The same text before the call, and none at all.
        (
            [called(("a", {"x": 1}), text="Let me see."), called(("a", {"x": 2}), text="Let me see.")],
            ["a.x", ("1", 1, None), ("2", 1, None)],
        ),
        (
            [called(("a", {"x": 1}), text="Let me see."), called(text="Let me see.")],
            ["tool call 1", ("a", 1, None), (None, 1, None)],
        ),
        # What stands before a call comes before it.
        (
            [called(("a", {"x": 1}), text="Let me see"), called(("a", {"x": 2}), text="Let me look")],
            ["Let me ", ('see\n[tool call] a({"x": 1})', 1, None), ('look\n[tool call] a({"x": 2})', 1, None)],
        ),
        (
            [called(("a", {"x": 1})), called(("a", {"x": 2})), called(text="No.")],
            ["", ('[tool call] a({"x": ', 2, ["a.x", ("1", 1, None), ("2", 1, None)]), ("No.", 1, None)],
        ),
        # Deeper forks: another argument, another call.
        (
            [
                called(("a", {"x": 1, "y": 1})),
                called(("a", {"x": 1, "y": 2})),
                called(("a", {"x": 1, "y": 2}), ("b", {})),
                called(("c", {})),
            ],
            [
                "tool call 1",
                (
                    "a",
                    3,
                    [
                        "tool call 1: a.y",
                        ("2", 2, ["tool call 2", (None, 1, None), ("b", 1, None)]),
                        ("1", 1, None),
                    ],
                ),
                ("c", 1, None),
            ],
        ),
        # Arguments that are no JSON.
        (
            [called(("sql", "select a")), called(("sql", "select b"))],
            ["sql", ("select a", 1, None), ("select b", 1, None)],
        ),
        # A difference in value comes before one in writing, which is the last resort.
        (
            [called(("a", '{"x":1}'), ("b", "{}")), called(("a", '{"x": 1}'), ("c", "{}"))],
            ["tool call 2", ("b", 1, None), ("c", 1, None)],
        ),
        (
            [called(("a", '{"x":1}')), called(("a", '{"x": 1}'))],
            ["a", ('{"x":1}', 1, None), ('{"x": 1}', 1, None)],
        ),
    ],
)
def test_tool_calls_part_at_arguments(said, tree):
    assert in_short(parting(*said)) == tree


def test_long_arguments_that_are_no_json_part_within():
    query = "select " + ", ".join(f"column_{number}" for number in range(20))
    found = parting(called(("sql", query + " from a")), called(("sql", query + " from b")))
    assert (found.path, found.within, [branch.text for branch in found.branches]) == (
        "sql",
        query + " from ",
        ["a", "b"],
    )


def test_calls_of_several_choices_part_as_text():
    said = [
        Part(text, text, tool_calls=(ToolCall("a", "{}"), ToolCall("b", "{}")))
        for text in ("[choice 0] [tool call] a({})\n[choice 1] x", "[choice 0] [tool call] a({})\n[choice 1] y")
    ]
    assert parting(*said).path is None


# What follows from a fork


def asked(*pairs):
    return Way(tuple(Part(text, text, question) for question, text in pairs), 1)


@pytest.mark.parametrize(
    ("runs", "follows"),
    [
        pytest.param(
            [[("q", "left"), ("l", "one")], [("q", "right"), ("r", "two")]],
            (1,),
            id="another answer to another question",
        ),
        pytest.param([[("q", "left"), ("l", "one")], [("q", "right")]], (1,), id="a question that only one asks"),
        pytest.param(
            [[("q", "left"), ("l", "one"), ("l1", "x")], [("q", "right"), ("r", "two"), ("r2", "y")]],
            (1, 2),
            id="two steps",
        ),
        pytest.param([[("q", "left"), ("l", "same")], [("q", "right"), ("r", "same")]], (), id="the same answer"),
        pytest.param(
            [[("q", "left"), ("p", "one")], [("q", "right"), ("p", "two")]],
            (),
            id="another answer to the same question",
        ),
        pytest.param([[("q", "left")], [("q", "right")]], (), id="no later step"),
        pytest.param([[(None, "left"), (None, "one")], [(None, "right"), (None, "two")]], (), id="questions not known"),
    ],
)
def test_what_differs_later_follows_only_if_something_else_was_asked(runs, follows):
    found = divergence([asked(*run) for run in runs])
    assert (found.step, found.follows) == (0, follows)


def test_what_differs_within_a_branch_does_not_follow_but_forks():
    found = divergence(
        [
            asked(("q", "left"), ("l", "one")),
            asked(("q", "left"), ("l", "two")),
            asked(("q", "right"), ("r", "three")),
        ]
    )
    assert (found.follows, found.branches[0].then.step, found.branches[0].then.follows) == ((1,), 1, ())


# From runs


def parted(*outputs, compare="exact", recorded=False):
    runs = []
    for index, said in enumerate(outputs):
        steps = said if isinstance(said, tuple) else (said,)
        if recorded:
            runs.append(Run(index, (), recorded=steps))
            continue
        exchanges = tuple(
            Exchange(f"q{step}", 0, one, None, None, None, None, None)
            if isinstance(one, str)
            else Exchange(f"q{step}", 0, one.text, None, None, None, None, None, tool_calls=one.tool_calls)
            for step, one in enumerate(steps)
            if one is not None
        )
        runs.append(Run(index, exchanges))
    comparison = resolve(compare)
    items = outcomes(runs, runs[0])
    return divergence(ways(group(items, comparison), items, comparison))


def test_each_group_is_told_by_its_first_run():
    found = parted("a b", "a c", "a c", "a d", "a c")
    assert in_short(found) == ["a ", ("c", 3, None), ("b", 1, None), ("d", 1, None)]
    assert [branch.groups for branch in found.branches] == [(0,), (1,), (2,)]


def test_values_that_were_recorded_part_like_answers():
    found = parted(("refund", "70 EUR"), ("refund", "75 EUR"), recorded=True)
    assert (found.step, in_short(found)) == (1, ["", ("70 EUR", 1, None), ("75 EUR", 1, None)])


def test_steps_are_those_of_the_first_run():
    # The second run did not ask what the first asked second, so its second answer is one to the third question.
    found = parted(("a", "b", "c"), ("a", None, "c"))
    assert (found.step, in_short(found)) == (1, ["", ("b", 1, None), (None, 1, None)])


def label(text):
    return "good" if "good" in text else "bad"


@pytest.mark.parametrize(
    ("compare", "outputs", "step", "tree"),
    [
        ("casefold", [("Hello", "the  Cat"), ("hello", "The Dog")], 1, ["the ", ("cat", 1, None), ("dog", 1, None)]),
        ("whitespace", ["a  b\nc", "a b d"], 0, ["a b ", ("c", 1, None), ("d", 1, None)]),
        ("stripped", [" a b", "a c"], 0, ["a ", ("b", 1, None), ("c", 1, None)]),
        ("json", [('{"a":1}', "[1]"), ('{"a": 1.0}', "[2]")], 1, ["$[0]", ("1", 1, None), ("2", 1, None)]),
        (
            "json",
            [(called(("f", '{"a":1}')), "[1]"), (called(("f", '{ "a":1}')), "[2]")],
            1,
            ["$[0]", ("1", 1, None), ("2", 1, None)],
        ),
        (label, ["so good", "so bad"], 0, ["so ", ("good", 1, None), ("bad", 1, None)]),
    ],
)
def test_what_is_equal_under_the_comparison_is_no_fork(compare, outputs, step, tree):
    found = parted(*outputs, compare=compare)
    assert (found.step, in_short(found)) == (step, tree)


def test_groups_that_only_a_comparison_tells_apart_share_a_branch():
    numbers = iter(range(10))
    found = parted("a", "b", "b x", compare=lambda output: next(numbers))
    assert found is not None
    comparison = resolve(lambda output: next(numbers))
    runs = [
        Run(index, (Exchange("q", 0, text, None, None, None, None, None, reasoning),))
        for index, (text, reasoning) in enumerate((("a", "1"), ("a", "2"), ("b", "3")))
    ]
    items = outcomes(runs, runs[0])
    found = divergence(ways(group(items, comparison), items, comparison))
    assert [(branch.text, branch.count, branch.then, branch.groups) for branch in found.branches] == [
        ("a", 2, None, (0, 1)),
        ("b", 1, None, (2,)),
    ]


# Bounds


def forks(found):
    return 1 + sum(forks(branch.then) for branch in found.branches if branch.then)


def depth(found):
    return 1 + max((depth(branch.then) for branch in found.branches if branch.then), default=0)


def leaves(found):
    for branch in found.branches:
        if branch.then:
            yield from leaves(branch.then)
        else:
            yield branch


def test_the_depth_is_bounded_and_what_is_left_out_is_told():
    found = divergence([way("a " * number, count=100 - number) for number in range(1, 41)])
    assert depth(found) == DEPTH
    groups = [branch.groups for branch in leaves(found)]
    assert sorted(sum(groups, ())) == list(range(40))
    assert [len(one) for one in groups if len(one) > 1] == [40 - DEPTH]


def test_the_forks_are_bounded_and_those_of_most_runs_are_told():
    words = [f"{number} {letter}" for number in range(600) for letter in "ab"]
    found = divergence([way(word, count=1 + number // 2) for number, word in enumerate(words)])
    assert forks(found) == FORKS
    told = [branch for branch in found.branches if branch.then]
    assert told == list(found.branches[: FORKS - 1])
    assert all(len(branch.groups) == 2 for branch in found.branches[FORKS - 1 :])
    assert sorted(sum((branch.groups for branch in leaves(found)), ())) == list(range(1200))


def size(fork):
    return len(fork.prefix) + sum(
        len(branch.text) + 8 * len(branch.groups) + (size(branch.then) if branch.then else 0)
        for branch in fork.branches
    )


def test_the_tree_of_many_long_outputs_is_small():
    draw = random.Random(1)
    common = "word " * 400
    texts = {common + " ".join(draw.choice("ab") for _ in range(300)) + common for _ in range(2000)}
    found = divergence([way(text) for text in texts])
    assert size(found) < sum(map(len, texts)) / 3


def operations(function, *arguments):
    """Calls of functions, those in C included, and characters they return: work that does not vary with the machine."""
    counted = 0

    def count(frame, event, argument):
        nonlocal counted
        if event in ("call", "c_call"):
            counted += 1

    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return counted


def one_fork(number, length):
    return ["word " * length + f"{one} " + "word " * length for one in range(number)]


def a_chain(number, length):
    return ["word " * (one % length) + f"{one}" + " more" * (length - one % length) for one in range(number)]


def a_bush(number, length):
    draw = random.Random(number)
    return [" ".join(draw.choice("abc") for _ in range(length)) + f" {one}" for one in range(number)]


def one_word(number, length):
    return ["🇩" * (4 * length) + "\u0301" * (one % 7) + str(one) for one in range(number)]


def documents(number, length):
    return [json.dumps({"items": [{"price": 1}] * length, "n": one % 7, "id": one}) for one in range(number)]


@pytest.mark.parametrize("shape", [one_fork, a_chain, a_bush, one_word, documents])
@pytest.mark.parametrize("tokens", [False, True])
def test_work_grows_linearly_with_the_outputs(shape, tokens):
    def work(number, length):
        texts = shape(number, length)
        said = [[*re.split(r"(?= )", text)] for text in texts] if tokens else texts
        groups = [way(one) for one in said]
        return operations(divergence, groups) + operations(first_fork, groups)

    base = work(150, 60)
    assert work(600, 60) < 4.6 * base
    assert work(150, 240) < 4.6 * base


# Whatever the outputs

# Characters that meet at every rule: words, spaces, and parts of graphemes.
characters = st.sampled_from("ab  \n\r.…e\u0301\u0323👩💻\u200d\ufe0f🏽🇩🇪的ש\ud83d\ude00")
pieces = characters | st.builds(str.__mul__, characters, st.integers(1, 65)) | st.sampled_from(["a ", "b ", "x" * 50])
texts = st.lists(pieces, max_size=8).map("".join)
told = st.lists(pieces | st.just(""), max_size=6)
one_step = st.lists(texts, min_size=2, max_size=8, unique=True)
forked = st.builds(lambda common, ends: [common + end for end in ends], texts, one_step)
outputs = st.lists(texts, max_size=2).map(tuple)
several = st.lists(outputs, max_size=6, unique=True) | st.builds(
    lambda before, fork, after: [(*before, text, *after) for text in fork], outputs, forked, outputs
)
in_tokens = st.lists(told, min_size=2, max_size=8, unique_by="".join).map(lambda all: [(one,) for one in all])


def members(branch):
    return (
        set(branch.groups) if branch.then is None else {one for inner in branch.then.branches for one in members(inner)}
    )


def said_at(groups, one, step):
    parts = groups[one].parts
    return parts[step] if step < len(parts) else None


def check(fork, groups, within):
    """That a fork of text says what is true of the groups it is about."""
    steps = range(max(len(groups[one].parts) for one in within))
    assert fork.step == next(step for step in steps if len({said_at(groups, one, step) for one in within}) > 1)
    found = {one: said_at(groups, one, fork.step) for one in within}
    if fork.unit == "token":
        for one in filter(None, found.values()):
            assert "".join(token.text for token in one.tokens[: fork.index]) == fork.prefix
    else:
        assert fork.index == len(re.findall(r"的|[^\s的]+", fork.prefix))
    assert len(fork.branches) > 1
    assert [branch.count for branch in fork.branches] == sorted(
        (branch.count for branch in fork.branches), reverse=True
    )
    seen = set()
    for branch in fork.branches:
        inside = members(branch)
        assert inside
        assert not inside & seen
        seen |= inside
        assert branch.count == sum(groups[one].count for one in inside)
        for one in inside:
            assert branch.missing == (found[one] is None)
            text = found[one].text if found[one] else ""
            shown = fork.prefix + branch.text
            assert text.startswith(shown)
            assert not splits_grapheme(text, len(fork.prefix))
            assert not splits_grapheme(text, len(shown))
            if len(inside) == 1 and len(branch.text) < LONGEST:
                assert text == shown
        if branch.then is None:
            # Nothing is left to part them, for the bounds are far.
            assert len({groups[one].parts for one in inside}) == 1
        else:
            check(branch.then, groups, inside)
    assert seen == within


@settings(deadline=None)
@given(several | in_tokens, st.data())
@example([("a",), ("a", "")], None)
def test_every_fork_is_true_of_the_runs_it_counts(representatives, data):
    groups = [way(*said, count=data.draw(st.integers(1, 3)) if data else 1) for said in representatives]
    found = divergence(groups)
    if len(groups) < 2:
        assert found is None
    else:
        check(found, groups, set(range(len(groups))))


def canonical(fork, names):
    return (
        fork.step,
        fork.index,
        fork.unit,
        fork.prefix,
        fork.path,
        fork.within,
        fork.follows,
        frozenset(
            (
                branch.text,
                branch.count,
                branch.missing,
                frozenset(names[one] for one in branch.groups),
                branch.then and canonical(branch.then, names),
            )
            for branch in fork.branches
        ),
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "a", "b", "x " * 40 + "a", "x " * 40 + "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from(["a", "b", "odd name", "ü"]), values, min_size=1, max_size=3)


@settings(deadline=None)
@given(
    several
    | in_tokens
    | st.lists(objects.map(json.dumps), unique=True, max_size=6).map(lambda all: [(one,) for one in all]),
    st.randoms(),
)
def test_the_order_of_the_groups_does_not_matter(representatives, order):
    groups = [(way(*said, count=1 + number % 3), number) for number, said in enumerate(representatives)]
    shuffled = order.sample(groups, len(groups))
    found = [
        divergence([one for one, _ in some])
        and canonical(divergence([one for one, _ in some]), [name for _, name in some])
        for some in (groups, shuffled)
    ]
    assert found[0] == found[1]


def value_at(document, path):
    """The values at a path such as ``$.a[0]["odd name"]``, none or one."""
    for name, number, quoted in re.findall(r'\.(\w+)|\[(\d+)\]|\[("[^"]*")\]', path):
        key = int(number) if number else json.loads(quoted) if quoted else name
        kind = list if number else dict
        if not isinstance(document, kind) or (key >= len(document) if number else key not in document):
            return []
        document = document[key]
    return [document]


@settings(deadline=None)
@given(st.lists(objects, min_size=2, max_size=8, unique_by=lambda one: json.dumps(one, sort_keys=True)), st.randoms())
def test_documents_are_told_apart_by_their_values(distinct, order):
    spellings = [{"indent": 1}, {"separators": (",", ":")}, {"sort_keys": True}]
    groups = [way(json.dumps(one, **order.choice(spellings))) for one in distinct]

    def look(fork):
        assert fork.path is not None
        for branch in fork.branches:
            for one in members(branch):
                found = value_at(distinct[one], fork.path)
                if fork.within is not None:
                    assert found[0].startswith(fork.within + branch.text)
                elif len(branch.text) < LONGEST:
                    shown = [] if branch.missing else [json.loads(branch.text)]
                    # Not by ==, to which True is 1.
                    assert json.dumps(found, sort_keys=True) == json.dumps(shown, sort_keys=True)
            if branch.then:
                look(branch.then)
            else:
                assert len(branch.groups) == 1

    look(divergence(groups))
