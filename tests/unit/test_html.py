"""The HTML report: what models, servers and tests wrote is text in it, whatever it is, and bounded in size and time."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text import made, result

from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.report.files import write
from pytest_llm_determinism.report.html import SHOWN_GROUPS, render
from pytest_llm_determinism.report.html.letters import Cell, Turn, fitted, in_order, letter, sequence
from pytest_llm_determinism.report.html.picture import picture
from pytest_llm_determinism.report.html.visible import cut_visible, visible
from pytest_llm_determinism.report.html.words import COMPARED, READ, difference
from pytest_llm_determinism.results import AnswerCount, CallCount, Drift, Shift, Usage

MAX_UNIQUE = {"max_unique": {"value": 1, "source": "default"}}
HOSTILE = (
    "</script></noscript></style><!--<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" \' onfocus=\'alert(1)',
    "javascript:alert(1) {{ 7 * 7 }} {% raw %} &lt;b&gt;",
    "\x00\x07\x1b[31m\x85\u202e\u2066\u200b\u2028\ufeff\r\n\t",
    "\ud800 a\udc00 \ude00\ud83d",
    "\u0639\u0631\u0628\u064a \u05e2\u05d1\u05e8\u05d9\u05ea \U0001f469\u200d\U0001f469 e" + "\u0301" * 50,
    "x" * 20_000,
)


def report(*results, **more):
    return {
        "schema_version": 1,
        "tool": {"name": "pytest-llm-determinism", "version": "1.2.3"},
        "created_at": "2026-01-02T12:00:00+00:00",
        "environment": {},
        "tests": [found.to_json() for found in results],
        **more,
    }


class Read(HTMLParser):
    """A page as a browser takes it apart: elements with the names of their attributes, and the lines of its text."""

    def __init__(self, page):
        super().__init__()
        self.kinds = set()
        self.lines = [""]
        self._raw = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.kinds.update((tag, name) for name, _ in attrs)
        self.kinds.add((tag, ""))
        self._raw = tag in ("style", "script")
        if tag not in ("span", "b", "code", "i", "bdi", "td", "dd", "del", "ins", "text"):
            self.lines.append("")

    def handle_endtag(self, tag):
        self._raw = False
        if tag in ("td", "th", "span", "dt", "b", "h3", "i", "text", "code"):
            self.lines[-1] += " "

    def handle_data(self, data):
        if not self._raw:
            self.lines[-1] += data.replace("\n", " ")

    def text(self):
        told = (" ".join(line.split()) for line in self.lines)
        return "\n".join(line for line in told if line)


def everywhere(text):
    """A report with this text wherever one comes from a model, a server, a provider, a test, a plugin or a user."""
    runs = [text, f"{text} a", f"{text} b", (text, f"b {text}"), OSError(text)]
    experiment = made(*runs, failures=[(1, text)])
    groups = tuple(
        replace(group, fingerprints=(text,), models=(f"{group.count}{text}",), reasoning=text)
        for group in experiment.groups
    )
    experiment = replace(experiment, groups=groups, load=text, findings=(Finding(text, text),))
    shift = Shift(text, 0.01, True, (AnswerCount(text, 3, 0),), 2)
    return report(
        replace(
            result(experiment, reason=text, decided_by=text, advice=text, settings={**MAX_UNIQUE, text: one(text)}),
            nodeid=f"{text}::{text}",
            drift=Drift(0.001, text, (shift,), (text,)),
            shard=0,
        ),
        tool={"name": text, "version": text},
        environment={text: text, "more": {text: [text]}},
        shards=[{"file": text}],
    )


def one(text):
    return {"value": text, "source": text}


def test_tests_that_asked_nothing_make_the_sum_of_tokens_no_less_sure():
    asked = replace(made("Paris."), calls=CallCount(1, 0, None), usage=Usage(7, 3))
    silent = replace(made("Paris."), calls=CallCount(0, 0, None), usage=Usage(None, None))
    told = Read(render(report(result(asked), result(silent)))).text()
    assert "1 call live; 7 input tokens, 3 output tokens; " in told


def test_what_is_told_of_a_test():
    parted = result(
        made("Paris.", "Paris.", "Lyon."),
        reason="2 unique of 3 (2/1), max_unique=1",
        decided_by="max_unique=1 (default)",
        advice="send temperature=0",
        settings={**MAX_UNIQUE, "load": {"value": ["solo", "burst"], "source": "marker"}},
        counts=(2, 1),
    )
    (experiment,) = parted.experiments
    experiment = replace(experiment, findings=(Finding("sampling-on", "temperature is 1"),), usage=Usage(21000, None))
    told = Read(render(report(replace(parted, experiments=(experiment,))))).text()
    assert (
        told
        == """\
1 nondeterministic, determinism report
Determinism report
2026-01-02 12:00 UTC · pytest-llm-determinism 1.2.3
1 ✕ nondeterministic
3 calls live; 21 000 input tokens; no price known
Search tests
Finding
all findings
sampling-on (1)
show all
No test is like that.
verdict test its runs, by group another call agrees
✕ nondeterministic
test_it.py:: test 2 unique of 3 (2/1), max_unique=1 sampling-on
A
B another call agrees ≥ 2.5 %
decided by max_unique=1 (default)
try next send temperature=0
link
test_it.py::test
Findings
sampling-on temperature is 1
Runs in order
burst
A A B
A ×2, B
Groups
Beside A: what only A says what it says instead
A 2 × 66.7 % runs 0, 1
Paris.
B 1 × 33.3 % run 2
ParisLyon.
all from model m
Where they part
they part at the first word
A 2 × “Paris.”
B 1 × “Lyon.”
as text
they part at the first word ├─ 2 × “Paris.” (runs 0, 1) └─ 1 × “Lyon.” (run 2)
Statistics
Another call agrees at least 2.5 % of the time, at 95 %.
With 3 runs, a model that flips 1 % of the time passes this gate 97 % of the time; to catch it 95 times of 100 takes \
299 runs.
burst
runs 3
errors 0
unique 2
agreement 66.7 %
another call agrees ≥ 2.5 % (at 95 %)
the next run is new 33.3 %
two runs disagree 66.7 %
entropy 0.92 bits
calls live 3
from the store 0
tokens in 21 000
tokens out –
cost no price known
time 1.0 s
seed 7
Settings 1 of 2 not default
setting
value
source
load solo,burst marker
max_unique 1 default
j
k next, previous ·
Enter open, close ·
/ search ·
Esc clear, close"""
    )


def test_a_session_without_gated_tests():
    assert "No test was gated." in Read(render(report())).text()


def test_a_test_without_experiments():
    silent = result(verdict="inconclusive", reason="no model call was observed")
    assert "inconclusive\ntest_it.py:: test no model call was observed" in Read(render(report(silent))).text()


def test_errors_and_steps_and_what_a_baseline_says():
    found = made(("a", "b"), ("a", "c"), OSError("HTTP 500"), failures=[(1, "assert 0")])
    drift = Drift(0.0004, None, (Shift("burst", 0.0004, True, (AnswerCount("yes", 30, 0),), 1),), ("the model is n",))
    told = Read(render(report(result(found, drift=drift)))).text()
    for lines in (
        "Errors\nAPI error 1 × (run 2)\nHTTP 500\nthe body failed 1 × (run 1)\nassert 0",
        "step 1\na\nstep 2\nb",
        "step 1, the same as A\nstep 2\nbc",
        "Different requests / answers at each step\nburst\nstep 1 1 / 1\nstep 2 1 / 2",
        (
            "Against the baseline\nIf nothing had changed, answers would differ as much with a chance of 0.04 %.\n"
            "the model is n\nburst: the one stable answer is another now\n"
            "answer\nthen\nnow\nyes 30 0\n… and 1 more answer\n"
        ),
    ):
        assert lines in told


def test_one_answer_under_several_loads_is_one_group_with_one_letter():
    told = Read(render(report(result(made("b", "b", "a", load="solo"), made("a", "a", "a", "b"))))).text()
    assert "A 4 × 57.1 % 1 under solo · 3 under burst\na\nB 3 × 42.9 % 2 under solo · 1 under burst" in told
    assert "solo\nB B A\nB ×2, A\nburst\nA A A B\nA ×3, B" in told


# Whatever it is


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_anything_but_text(text, tmp_path):
    page = render(everywhere(text))
    plain = Read(render(everywhere("plain text")))
    marked = {("span", ""), ("span", "class"), ("del", ""), ("ins", "")}
    assert Read(page).kinds - plain.kinds <= marked
    assert [character for character in set(page) if not (character.isprintable() or character == "\n")] == []
    write(tmp_path / "report.html", everywhere(text))
    assert (tmp_path / "report.html").read_bytes() == page.encode()


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=40))
def test_no_text_at_all_breaks_a_page(text):
    page = render(everywhere(text))
    page.encode()
    assert page.count("<script") == page.count("</script>") == 1
    assert page.count("<noscript>") == page.count("</noscript>") == 1


def test_the_policy_allows_the_style_and_the_script_of_the_page_and_nothing_else():
    page = render(report())
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() + "'"
        for name in ("style", "script")
        for part in re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
    ]
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy.replace("&#39;", "'") == (
        f"default-src 'none'; style-src {hashes[0]}; script-src {hashes[1]}; base-uri 'none'; form-action 'none'"
    )


def test_anchors_are_addresses_and_no_two_are_the_same():
    tests = [replace(result(), nodeid=nodeid) for nodeid in ("t.py::a[b c&d=é]", "t.py::a[b c&d=é]", "t.py::\ud800")]
    assert re.findall('id="(test=.*?)"', render(report(*tests))) == [
        "test=t.py::a%5Bb%20c%26d%3D%C3%A9%5D",
        "test=t.py::a%5Bb%20c%26d%3D%C3%A9%5D~2",
        "test=t.py::%ED%A0%80",
    ]


# Texts


def test_what_is_not_printable_is_seen():
    assert visible("a\x00\u202eb\n<\\>") == 'a<span class="esc">\\x00\\u202e</span>b\n&lt;\\&gt;'


def test_the_middle_of_a_long_text_is_left_out():
    told = cut_visible("a" * 2400 + "b" * 5 + "c" * 800)
    assert told == "a" * 2400 + '<span class="gap">… 5 characters are left out here …</span>' + "c" * 800


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("same", "same", "same"),
        ("the red fox", "the grey fox", "the <del>red</del><ins>grey</ins> fox"),
        ("a", "a b", "a<ins> b</ins>"),
        ("a b", "a", "a<del> b</del>"),
        ("", "new", "<ins>new</ins>"),
        ("one\ntwo", "one two", 'one<del><span class="esc">↵</span>\ntwo</del><ins> two</ins>'),
        ("Yes.", "Yes!", "Yes<del>.</del><ins>!</ins>"),
        ("元気ですか", "天気ですか", "<del>元</del><ins>天</ins>気ですか"),
        ("cafe\u0301", "cafe", "<del>cafe\u0301</del><ins>cafe</ins>"),
        # Words that any two texts share are no bridge between two differences.
        ("it was late and she left", "nobody knew and nobody asked", None),
    ],
)
def test_words_that_differ_are_marked(before, after, told):
    if told is None:
        told = f"<del>{before}</del><ins>{after}</ins>"
    assert difference(before, after) == told


@given(*[st.text(alphabet="ab \n.é\u0301日", max_size=30)] * 2)
def test_a_difference_tells_both_texts(before, after):
    told = str(difference(before, after)).replace('<span class="esc">↵</span>', "")
    assert re.sub("</?ins>", "", re.sub("(?s)<del>.*?</del>", "", told)) == after
    assert re.sub("</?del>", "", re.sub("(?s)<ins>.*?</ins>", "", told)) == before


def test_long_texts_are_compared_as_far_as_that_takes_little_time():
    old = " ".join(f"a{number}" for number in range(2 * COMPARED))
    new = old.replace("a", "b")
    told = str(difference(f"same {old} end", f"same {new} end"))
    assert told.startswith("same <del>a0 a1 ")
    assert told.count("not compared") == 1
    assert told.endswith("</span> end")
    assert "are not compared" in difference("x" * READ + "a", "x" * READ + "b")


def test_what_is_the_same_for_long_is_left_out():
    told = difference("a " * 300 + "red" + " b" * 300, "a " * 300 + "grey" + " b" * 300)
    assert re.findall(r"… (\d+) characters are the same …", told) == ["539", "540"]


# Letters


def test_groups_have_the_letters_of_spreadsheets_and_eight_have_a_colour_of_their_own():
    assert [letter(place).name for place in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]
    assert [letter(place).kind for place in (0, 7, 8)] == ["g0", "g7", "others"]


def test_runs_in_order_with_errors_and_those_that_were_not_made():
    found = replace(made("a", "b", OSError("down"), "a"), runs=6)
    turns = in_order(found, [letter(0), letter(1)])
    assert "".join(cell.name for cell in fitted(turns)[1]) == "AB!A··"
    assert sequence(turns) == "A, B, error, A, not made ×2"


def test_many_runs_share_cells_and_the_few_among_them_are_not_lost():
    a, b = Cell("A", "g0"), Cell("B", "g1")
    assert fitted([Turn(a, 300)]) == (1, [a] * 300)
    each, cells = fitted([Turn(a, 899), Turn(b, 1)])
    assert (each, len(cells), cells[0], cells[-1]) == (3, 300, a, Cell("A+", "g0"))
    assert fitted([Turn(a, 301)]) == (2, [a] * 151)


def test_a_report_may_claim_any_number_of_runs():
    turns = in_order(replace(made("a", "b"), runs=2**40, completed=2**39), [letter(0), letter(1)])
    assert sequence(turns) == "A, B, no output ×549755813886, not made ×549755813888"
    each, cells = fitted(turns)
    assert (each, len(cells)) == (3665038760, 300)
    assert [cells[place].name for place in (0, 100, 200, 299)] == ["–+", "–", "·", "·"]


# Pictures and bounds


def test_the_picture_has_all_ways_with_their_groups():
    found = made(*["a b c"] * 5, *["a b <d>"] * 3, "x")
    drawn = ElementTree.fromstring(picture(found.divergence, found.groups, [letter(place) for place in range(3)]))
    texts = [(part.get("class"), part.text) for part in drawn.iter("text")]
    assert texts == [
        ("number", "8 ×"),
        ("said", "“a b”"),
        ("note", "after 2 words"),
        ("letter", "A"),
        ("number", "5 ×"),
        ("said", "“c”"),
        ("letter", "B"),
        ("number", "3 ×"),
        ("said", "“<d>”"),
        ("letter", "C"),
        ("number", "1 ×"),
        ("said", "“x”"),
    ]
    widths = [float(part.get("stroke-width")) for part in drawn.iter("path")]
    assert widths == sorted(widths[:1]) + widths[1:]
    assert widths[0] > widths[1] > widths[2] > widths[3]


def test_a_thousand_different_long_answers_are_told_in_a_small_page():
    answers = [" ".join(f"w{(run * 7919 + word) % 1009}" for word in range(900)) for run in range(1000)]
    page = render(report(result(made(*answers))))
    assert len(page) < 150_000
    assert f"… and {1000 - SHOWN_GROUPS} more groups, of {1000 - SHOWN_GROUPS} runs" in page


def test_times_are_those_of_the_report():
    moment = datetime.datetime(2026, 1, 2, 9, tzinfo=datetime.UTC).isoformat()
    page = render(report(result(made("a", "a", live=0, cached=2, oldest=moment))))
    assert "2 answers from the store (oldest 3 hours): a replay is no new evidence" in page
    assert "oldest sample 3 hours" in Read(page).text()
