"""Where runs part, as a person sees it at a terminal."""

import json
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.divergence import divergence, ways
from pytest_llm_determinism.analysis.excerpt import columns
from pytest_llm_determinism.analysis.groups import group, outcomes
from pytest_llm_determinism.report.tree import SHOWN_LINES, WIDTH, draw
from pytest_llm_determinism.runs import Exchange, Run
from pytest_llm_determinism.shapes.answer import ToolCall


def tree(*told):
    """The lines for runs given by count and what they said at each step: a text, or tool calls as (name, arguments)."""
    runs = []
    for count, *steps in told:
        asked, exchanges = "q", []
        for said in steps:
            calls = () if isinstance(said, str) else tuple(ToolCall(*call) for call in said)
            text = said if isinstance(said, str) else "\n".join(call.line() for call in calls)
            exchanges.append(Exchange(asked, 0, text, None, None, None, None, None, tool_calls=calls))
            asked += f"/{text}"
        runs += [Run(len(runs) + one, tuple(exchanges)) for one in range(count)]
    items = outcomes(runs, runs[0])
    groups = group(items, resolve("exact"))
    return draw(divergence(ways(groups, items, resolve("exact"))), groups)


def test_branches_part_again_where_they_stand():
    like = "What a pity. Would you like a "
    assert tree(
        (21, like + "refund"),
        (6, like + "replacement\nwithin three days"),
        (2, like + "replacement\nwithin five days"),
        (1, like + "replacement\nwithin"),
    ) == [
        "they part after 7 words, “What a pity. Would you like a”",
        "├─ 21 × “refund”",
        "└─  9 × “replacement\\nwithin”, then after 9 words:",
        "   ├─ 6 × “ three days”  (runs 21, 22, 23, 24, 25, 26)",
        "   ├─ 2 × “ five days”  (runs 27, 28)",
        "   └─ 1 × (the output ends)  (run 29)",
    ]


def test_long_texts_between_forks_are_cut_in_the_middle():
    way = "the way is long " * 20
    assert tree((12, way + "and wide"), (9, way + "or not " + way + "a"), (9, way + "or not " + way + "b")) == [
        "they part after 80 words, “… the way is long the way is long the way is long”",
        "├─ 18 × “or not the way is lon…s long the way is long”, then after 162 words:",
        "│  ├─ 9 × “a”",
        "│  └─ 9 × “b”",
        "└─ 12 × “and wide”",
    ]


def test_an_agent_is_told_by_step():
    assert tree(
        (20, "Go left.", "I went left", "done"),
        (3, "Go left.", "I went left and fell", "ouch"),
        (2, "Go right.", "I went right", "hm"),
        (1, "Go right."),
    ) == [
        "they part at step 1, after 1 word, “Go”",
        "├─ 23 × “left.”, then at step 2, after 3 words, “I went left”:",
        "│  ├─ 20 × (the output ends)",
        "│  └─  3 × “ and fell”  (runs 20, 21, 22)",
        "└─  3 × “right.”, then at step 2:",
        "   ├─ 2 × “I went right”  (runs 23, 24)",
        "   └─ 1 × (no such step)  (run 25)",
        "that they differ at steps 2, 3, too, follows from it",
    ]


def test_what_differs_later_is_not_said_to_follow_where_it_does_not():
    assert tree((2, "a", "b"), (1, "c", "b"))[-1] == "└─ 1 × “c”  (run 2)"
    assert tree((2, "a", "b"), (1, "c", "d"))[-1] == "that they differ at step 2, too, follows from it"
    assert tree((2, "x", *"abcdefghijk"), (1, "y", *"lmnopqrstuv"))[-1] == (
        "that they differ at steps 2, 3, 4, 5, 6, 7, 8, 9, …, too, follows from it"
    )


def test_documents_are_told_by_path():
    def order(price, total):
        return json.dumps({"items": [{"price": 1}, {"price": price}], "total": total})

    assert tree((10, order(3.5, 4.5)), (2, order(4, 5)), (1, order(4, "five")), (1, '{"items": [{"price": 1}]}')) == [
        "they part at $.items[1]",
        '├─ 10 × {"price": 3.5}',
        '├─  3 × {"price": 4}, then at $.total:',
        "│  ├─ 2 × 5  (runs 10, 11)",
        '│  └─ 1 × "five"  (run 12)',
        "└─  1 × (not there)  (run 13)",
    ]


def test_long_texts_in_documents_are_told_by_path_and_place():
    def answer(*words):
        return json.dumps({"answer": " ".join(["It depends on the weather and on what you have paid;", *words])})

    assert tree((5, answer("two", "days")), (3, answer("two", "weeks")), (1, answer("none"))) == [
        "they part at $.answer, after “…nds on the weather and on what you have paid;”",
        "├─ 8 × “two”, then:",
        "│  ├─ 5 × “days”  (runs 0, 1, 2, 3, 4)",
        "│  └─ 3 × “weeks”  (runs 5, 6, 7)",
        "└─ 1 × “none”  (run 8)",
    ]


def test_tool_calls_are_told_by_argument():
    assert tree(
        (20, [("get_weather", '{"city": "Paris", "unit": "C"}')], "Warm."),
        (5, [("get_weather", '{"city": "Paris, France", "unit": "C"}')], "Warm."),
        (2, [("get_weather", '{"city": "Paris", "unit": "C"}'), ("get_time", "{}")], "Noon."),
        (2, [("get_time", "{}")], "Noon."),
        (1, "I do not know."),
    ) == [
        "they part at step 1, at the first word",
        "├─ 29 × “[tool call] ”, then at tool call 1:",
        "│  ├─ 27 × get_weather, then at tool call 1: get_weather.city:",
        '│  │  ├─ 22 × "Paris", then at tool call 2:',
        "│  │  │  ├─ 20 × (not there)",
        "│  │  │  └─  2 × get_time  (runs 25, 26)",
        '│  │  └─  5 × "Paris, France"  (runs 20, 21, 22, 23, 24)',
        "│  └─  2 × get_time  (runs 27, 28)",
        "└─  1 × “I do not know.”  (run 29)",
        "that they differ at step 2, too, follows from it",
    ]


def test_what_is_left_out_is_counted():
    letters = "abcdefghij"
    lines = tree(*[(20 - 2 * number, f"so {one} or {other}") for number, one in enumerate(letters) for other in "xyz"])
    assert len(lines) <= SHOWN_LINES + 2
    assert lines[:6] == [
        "they part after 1 word, “so”",
        "├─ 60 × “a or”, then after 3 words:",
        "│  ├─ 20 × “x”",
        "│  ├─ 20 × “y”",
        "│  └─ 20 × “z”",
        "├─ 54 × “b or”, then after 3 words:",
    ]
    assert lines[-4:] == [
        "├─ 36 × “e or”  (3 groups)",
        "├─ 30 × “f or”  (3 groups)",
        "└─ … and 4 more branches, of 60 runs",
        "… and 6 more forks: see the JSON report (--determinism-report=FILE.json)",
    ]


def test_a_chain_of_forks_is_shown_from_its_start():
    lines = tree(*[(100 - number, "a " * number) for number in range(1, 41)])
    assert lines[:2] == ["they part after 1 word, “a”", "├─ 3081 × “a”, then after 2 words:"]
    assert lines[10:12] == [
        "│  │  │  │  │  │  │  │  │  ├─ 2235 × “a”  (30 groups)",
        "│  │  │  │  │  │  │  │  │  └─   90 × (the output ends)",
    ]
    assert lines[-2:] == [
        "└─   99 × (the output ends)",
        "… and 6 more forks: see the JSON report (--determinism-report=FILE.json)",
    ]


def test_reasoning_counts_as_lines():
    runs = [
        Run(one, (Exchange("q", 0, f"{one // 3} {one}", None, None, None, None, None, f"because {one}"),))
        for one in range(18)
    ]
    items = outcomes(runs, runs[0])
    groups = group(items, resolve("exact"))
    lines = draw(divergence(ways(groups, items, resolve("exact"))), groups)
    assert lines[:5] == [
        "they part at the first word",
        "├─ 3 × “0”, then after 1 word:",
        "│  ├─ 1 × “0”  (run 0)",
        "│  │      reasoning: “because 0”",
        "│  ├─ 1 × “1”  (run 1)",
    ]
    assert len(lines) <= SHOWN_LINES + 2


# Right to left: a terminal that orders what it shows by direction would mix up such a text with numbers that stand
# beside it. A Latin letter between keeps them apart, and so does the end of the line.

HEBREW, ARABIC = "שלום עולם", "مرحبا 123"


def mixed_up(line):
    """Where numbers of ours follow a text from right to left with nothing between that has a direction."""
    places = []
    direction = "L"
    for at, character in enumerate(line):
        kind = unicodedata.bidirectional(character)
        if kind in ("R", "AL"):
            direction = "R"
        elif kind == "L":
            direction = "L"
        elif kind in ("EN", "AN") and direction == "R" and line.count("“", 0, at) == line.count("”", 0, at):
            places.append(at)
    return places


@pytest.mark.parametrize("said", [HEBREW, ARABIC])
def test_text_from_right_to_left_does_not_move_what_stands_beside_it(said):
    lines = [
        *tree((3, f"{said} {said} 1"), (2, f"{said} {said} 2 {said}"), (1, f"{said} 7")),
        *tree((2, said, f"{said} 1"), (1, said, f"{said} 2"), (1, f"2 {said}", said)),
        *tree((2, json.dumps({said: [1, 2]}, ensure_ascii=False)), (1, json.dumps({said: [1, 3]}, ensure_ascii=False))),
    ]
    assert any(said in line for line in lines)
    assert [line for line in lines if mixed_up(line)] == []
    assert lines[-3] == 'they part at $["' + said.encode("unicode_escape").decode() + '"][1]'


# Whatever the outputs

pieces = st.sampled_from(["a ", "b ", "c\n", "的", "😀", "x" * 50, "e\u0301", "\x1b[2J", "\u202e", "שלום ", "\\", ". "])
texts = st.lists(pieces, max_size=12).map("".join)
told = st.lists(
    st.tuples(st.integers(1, 12), texts) | st.tuples(st.integers(1, 12), texts, texts),
    min_size=2,
    max_size=20,
    unique_by=lambda one: one[1:],
)


@settings(deadline=None)
@given(told)
def test_every_tree_fits_a_screen_and_counts_all_runs(runs):
    lines = tree(*runs)
    assert all(line.isprintable() for line in lines)
    assert len(lines) <= SHOWN_LINES + 3
    for line in lines:
        depth = len(line) - len(line.lstrip("│├└─ "))
        assert columns(line) <= WIDTH - 2 or depth > 3
    top = [re.match(r"[├└]─ +(?:(\d+) ×|… and \d+ more branches, of (\d+) runs)", line) for line in lines]
    assert sum(int(found[1] or found[2]) for found in top if found) == sum(count for count, *_ in runs)
