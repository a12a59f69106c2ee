"""The Markdown report: short, the most important first, and nothing in it that a model wrote is markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import cmarkgfm
import pytest
from cmarkgfm.cmark import Options
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text import made, result

from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.report.markdown import LIMIT, render
from pytest_llm_determinism.results import BodyFailure, Usage

MAX_UNIQUE = {"max_unique": {"value": 1, "source": "default"}}


def report(*results):
    return {"created_at": "2026-01-02T12:00:00+00:00", "tests": [found.to_json() for found in results]}


def passed(nodeid="test_it.py::test_stable", runs=3):
    experiment = made(*["yes"] * runs, live=0, cached=runs, oldest="2026-01-02T09:00:00+00:00")
    reason = f"1 unique of {runs}"
    return replace(
        result(experiment, verdict="passed", reason=reason, settings=MAX_UNIQUE), nodeid=nodeid, counts=(runs,)
    )


def failed(*outputs, nodeid="test_it.py::test", **more):
    return replace(result(made(*(outputs or ("yes", "no")), **more), settings=MAX_UNIQUE), nodeid=nodeid)


def test_a_whole_report() -> None:
    parted = failed("Paris.", "Paris.", "Lyon.")
    (experiment,) = parted.experiments
    findings = (Finding("sampling-on", "temperature is 1"),)
    parted = replace(
        parted,
        reason="2 unique of 3 (2/1), max_unique=1",
        experiments=(replace(experiment, findings=findings, usage=Usage(21, 9)),),
        decided_by="max_unique=1 (default)",
        advice="send temperature=0",
    )
    silent = replace(
        result(made(OSError("down"), OSError("down")), verdict="inconclusive", reason="2 of 2 runs failed: down"),
        nodeid="test_it.py::test_silent",
    )

    assert (
        render(report(passed(), silent, parted))
        == """\
## Determinism: 1 nondeterministic, 1 inconclusive, 1 passed

5 calls live, 3 answers from the store (oldest 3 hours); `no price known`. With 3 runs, a model that flips 1 % of the \
time passes this gate 97 % of the time; to catch it 95 times of 100 takes 299 runs.

| verdict | test | what was seen | another call agrees | findings | calls |
|---|---|---|---|---|---|
| ❌ nondeterministic | `test_it.py::test` | `2 unique of 3 (2/1), max_unique=1` | at least 2.5 % | `sampling-on` | \
3 calls live |
| ⚠️ inconclusive | `test_it.py::test_silent` | `2 of 2 runs failed: down` | – |  | 2 calls live |

<details><summary>1 passed</summary>

| verdict | test | what was seen | another call agrees | findings | calls |
|---|---|---|---|---|---|
| ✅ passed | `test_it.py::test_stable` | `1 unique of 3` | at least 22.4 % |  | 3 answers from the store \
(oldest 3 hours): a replay is no new evidence |

</details>

### `test_it.py::test`

```text
2 unique of 3 (2/1), max_unique=1

under burst: 2 unique of 3 runs, another call agrees at least 2.5 % of the time, at 95 %
  they part at the first word
  ├─ 2 × “Paris.”  (runs 0, 1)
  └─ 1 × “Lyon.”  (run 2)
  3 calls live; seed 7

verdict     nondeterministic
decided by  max_unique=1 (default)
try next    send temperature=0
```

- `sampling-on`: `temperature is 1`

| experiment | unique | agreement | another call agrees | the next run is new | two runs disagree | entropy | \
tokens in / out | cost | time |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| `burst` | 2 of 3 | 66.7 % | ≥ 2.5 % (at 95 %) | 33.3 % | 66.7 % | 0.92 bits | 21 / 9 | `no price known` | 1.0 s |

### `test_it.py::test_silent`

```text
2 of 2 runs failed: down

under burst: none of 2 runs completed
  2 × down
  2 calls live; seed 7

verdict     inconclusive
```
"""
    )


def test_a_session_without_gated_tests_and_one_without_failures() -> None:
    assert render(report()) == "## Determinism: no test was gated\n"
    assert "###" not in render(report(passed()))


# Nothing that a model, a server or a test wrote is markup

HOSTILE = (
    *("`", "``", "```", "`" * 31, "`" * 33, "`" * 90, "`" * 300),
    *("|", "\\|", "\\\\|", "\\", "\n", "\r\n", "\n\n", " ", "    ", "\t", "\x00", "\x1b[31m", "\u202e", "\u2028"),
    *("<b>", "</code>", "</pre>", "</details>", "<!--", "-->", "<![CDATA[", "]]>", "<script>", "&lt;", "&#96;"),
    *("@octocat", "#1", "[a](http://b.cd)", "![a](b)", "http://b.cd", "www.b.cd", "a@b.cd", "[a]: b", "[^1]"),
    *("*", "**", "_", "~~", "~~~", "$", "$$", "# ", "> ", "- ", "1. ", "---", "|---|", ":smile:", "\ud800", "é", "😀"),
)
MARK = "qz"

hostile = st.lists(st.sampled_from((*HOSTILE, MARK)), max_size=12).map(lambda parts: f"{MARK}{''.join(parts)}{MARK}")


class Page(HTMLParser):
    """The page as GitHub's renderer makes it: `elements` that are there, and the text that is not code."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.prose = ""
        self._code = 0
        self.feed(cmarkgfm.github_flavored_markdown_to_html(markdown, Options.CMARK_OPT_UNSAFE))

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self._code += tag == "code"

    def handle_endtag(self, tag):
        self._code -= tag == "code"

    def handle_data(self, data):
        if not self._code:
            self.prose += data

    def handle_comment(self, data):
        self.elements.add("a comment")


OURS = {"h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "ul", "li", "details", "summary"}


@settings(max_examples=150, deadline=None)
@given(hostile, hostile, hostile, hostile, hostile)
def test_what_others_wrote_is_code(nodeid, output, reason, message, error) -> None:
    experiment = replace(
        made(output, f"{output}!", "no"),
        findings=(Finding("sampling-on", message), Finding(message, "")),
        error_messages=(BodyFailure(error, (7,)),),
    )
    found = result(experiment, reason=reason, decided_by=message, advice=error, settings=MAX_UNIQUE)
    fine = replace(found, verdict="passed", nodeid=nodeid[::-1])

    page = Page(render(report(replace(found, nodeid=nodeid), fine)))

    assert page.elements <= OURS
    assert MARK not in page.prose
    assert MARK[::-1] not in page.prose
    assert "@" not in page.prose


@pytest.mark.parametrize("count", [32, 33, 79, 80, 81, 255, 256, 5000])
def test_backticks_that_renderers_do_not_count_open_and_close_nothing(count) -> None:
    """For cmark more than 80 backticks begin no code span, and a fence of more than 255 is closed by 255."""
    ticks = "`" * count
    error = f"\n{ticks}\n<b>{ticks}</b>\n{ticks}"
    experiment = replace(made("yes", "no"), error_messages=(BodyFailure(error, (7,)),))
    found = result(experiment, reason=ticks, decided_by="<b>", settings=MAX_UNIQUE)

    assert Page(render(report(replace(found, nodeid=error)))).elements <= OURS


def test_code_is_shown_as_it_was_written() -> None:
    text = "a|b \\| `c` ``d`` <e> &amp; [f](g)"
    html = cmarkgfm.github_flavored_markdown_to_html(render(report(failed(nodeid=text))))
    escaped = "a|b \\| `c` ``d`` &lt;e&gt; &amp;amp; [f](g)"
    assert html.count(f"<code>{escaped}</code>") == 2  # in the table and as a headline


def test_a_name_of_nothing_is_a_dash_and_a_long_one_is_cut() -> None:
    assert "### –\n" in render(report(failed(nodeid=" ")))
    assert f"### `{'é' * 98}…`\n" in render(report(failed(nodeid="é" * 101)))  # 199 bytes
    assert f"### `{'é' * 100}`\n" in render(report(failed(nodeid="é" * 100)))


# Always short enough


def left_out(page: str, what: str) -> int:
    found = re.search(rf"(\d+) {what}", page)
    return int(found[1]) if found else 0


def size(page: str) -> int:
    return len(page.encode())


@pytest.mark.parametrize(
    "word",
    [
        pytest.param("no ", id="words"),
        pytest.param("\ud800", id="surrogates"),
        pytest.param("😀" * 40 + " ", id="emoji"),
        pytest.param("`|\\" * 30 + " ", id="markup"),
    ],
)
def test_huge_reports_are_cut_and_what_is_left_out_is_counted(word) -> None:
    findings = tuple(Finding(f"code-{number}", word * 300) for number in range(40))
    errors = tuple(BodyFailure(f"{number} {word * 300}", (number,)) for number in range(50))
    experiment = made(*[f"{word * 50}{number}" for number in range(40)])
    large = tuple(
        replace(experiment, findings=findings, error_messages=errors, attempt=attempt) for attempt in range(22)
    )
    huge = replace(failed(), experiments=large, reason=word * 500, advice=word * 500, decided_by=word * 500)
    tests = [replace(huge, nodeid=f"test_it.py::test[{number}-{word * 300}]") for number in range(30)]
    fine = [passed(f"test_it.py::test_stable[{number}-{word * 300}]") for number in range(400)]

    page = render(report(*fine, *tests))

    assert 40_000 < size(page) <= LIMIT
    assert page.startswith("## Determinism: 30 nondeterministic, 400 passed\n")
    assert page.count("| ❌ ") + left_out(page.partition("<details>")[0], "more: see") == 30
    assert page.count("| ✅ ") + left_out(page.partition("<details>")[2], "more: see") == 400
    assert page.count("\n### ") >= 1
    assert page.count("\n### ") + left_out(page, "more tests that did not pass are not explained here: see") == 30
    assert "- … and 28 more\n" in page
    assert "… and 2 more experiments\n" in page
    assert re.search(r"\n… \d+ lines are left out here\n\nverdict     nondeterministic\n", page)
    assert not page.count("```") % 2


def test_all_of_many_short_tests_stand_in_the_table() -> None:
    page = render(report(*[failed(nodeid=f"test_it.py::test[{number}]") for number in range(100)]))
    assert page.count("| ❌ ") == 100
    assert page.count("\n### ") + left_out(page, "more tests that did not pass are not explained here") == 100
    assert size(page) <= LIMIT


def test_the_worst_come_first() -> None:
    silent = replace(failed(nodeid="b"), verdict="inconclusive")
    drifted = replace(failed(nodeid="c"), verdict="drifted")
    page = render(report(passed("a"), silent, drifted, failed(nodeid="d"), failed(nodeid="e")))
    assert page.startswith("## Determinism: 2 nondeterministic, 1 drifted, 1 inconclusive, 1 passed\n")
    assert re.findall(r"^\| \S+ \w+ \| `(\w)`", page, re.MULTILINE) == ["d", "e", "c", "b", "a"]
    assert re.findall(r"^### `(\w)`", page, re.MULTILINE) == ["d", "e", "c", "b"]
