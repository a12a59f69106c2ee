"""A report as Markdown for a pull request: short enough for a comment, the most important first.

What models, servers and tests wrote stands in code only (spans and fences): there GitHub and other renderers read no
markup, HTML, link, mention or reference.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pytest_llm_determinism.analysis.statistics import percent
from pytest_llm_determinism.report.text import calls, cost, explain, printable, worth
from pytest_llm_determinism.results import Experiment, TestResult
from pytest_llm_determinism.verdict import DRIFTED, INCONCLUSIVE, NONDETERMINISTIC, PASSED

LIMIT = 60_000
"""Bytes of UTF-8 of a whole report; GitHub takes comments of 65 536 characters."""

WORST_FIRST = (NONDETERMINISTIC, DRIFTED, INCONCLUSIVE, PASSED)

_TABLE_ROOM = 16_000
_EXPLANATION_ROOM = 8_000
_PASSED_ROOM = 6_000
"""Bytes that are kept for the tests that passed, however much there is to say of the others."""

_LONGEST_NAME = 200
_LONGEST_LINE = 600
"""Bytes."""

_SHOWN_EXPERIMENTS = 20
_SHOWN_FINDINGS = 12

_SIGNS = {NONDETERMINISTIC: "❌", DRIFTED: "❌", INCONCLUSIVE: "⚠️", PASSED: "✅"}
_WHERE_ALL_IS = "see the JSON report (`--determinism-report=FILE.json`)"

# Renderers stop counting: for cmark, a code span delimited by more than 80 backticks is none, and a fence of more than
# 255 is closed by 255.
_MANY_BACKTICKS = re.compile("(?<=`{32})`+")


def render(report: dict[str, Any]) -> str:
    """The whole report, at most `LIMIT` bytes of UTF-8. What is left out is counted.

    Args:
        report: the JSON report; ages of samples are those at the time it was made.
    """
    now = datetime.datetime.fromisoformat(report["created_at"])
    results = worst_first(TestResult.from_json(test) for test in report["tests"])
    failed = [result for result in results if result.verdict != PASSED]
    passed = [result for result in results if result.verdict == PASSED]
    page = _head(results, now)
    if failed:
        page += _table(failed, now, _TABLE_ROOM)
    explained = _explained(failed, now, LIMIT - _size(page) - _PASSED_ROOM)
    if passed:
        start, end = f"<details><summary>{len(passed)} passed</summary>\n\n", "\n</details>\n\n"
        room = LIMIT - _size(page + explained + start + end)
        page += start + _table(passed, now, room).rstrip("\n") + "\n" + end
    return (page + explained).rstrip("\n") + "\n"


def worst_first(results: Iterable[TestResult]) -> list[TestResult]:
    """In the order of what they ask of a reader; tests of the same verdict stay as they were."""
    return sorted(results, key=lambda result: WORST_FIRST.index(result.verdict))


def _head(results: Sequence[TestResult], now: datetime.datetime) -> str:
    counts = Counter(result.verdict for result in results)
    seen = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    lines = [f"## Determinism: {seen or 'no test was gated'}", ""]
    experiments = [experiment for result in results for experiment in result.experiments]
    if experiments:
        asked = f"{calls(experiments, now)}; {_code(cost(experiments))}"
        lines.append(". ".join((*map(_sentence, (asked, *worth(results))), "")).rstrip())
        lines.append("")
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(results: Sequence[TestResult], now: datetime.datetime, room: int) -> str:
    """As many rows as there is room for, and how many more there are."""
    head = _row(("verdict", "test", "what was seen", "another call agrees", "findings", "calls")) + "|---" * 6 + "|\n"
    more = "\n… and {} more: " + _WHERE_ALL_IS + "\n"
    rows = (_row(_cells(result, now)) for result in results)
    shown = _fitting(rows, room - _size(head + more.format(len(results)) + "\n"))
    left_out = more.format(len(results) - len(shown)) if len(shown) < len(results) else ""
    return head + "".join(shown) + left_out + "\n"


def _cells(result: TestResult, now: datetime.datetime) -> tuple[str, ...]:
    heard = [experiment for experiment in result.experiments if experiment.groups]
    codes = dict.fromkeys(finding.code for experiment in result.experiments for finding in experiment.findings)
    return (
        f"{_SIGNS[result.verdict]} {result.verdict}",
        _code(result.nodeid),
        _code(" ".join(result.reason.split())),
        f"at least {percent(min(experiment.agreement_lower for experiment in heard))}" if heard else "–",
        " ".join(map(_code, list(codes)[:_SHOWN_FINDINGS])),
        calls(result.experiments, now) if result.experiments else "–",
    )


def _explained(failed: Sequence[TestResult], now: datetime.datetime, room: int) -> str:
    """A section for each test that did not pass, as many as there is room for, and how many more there are."""
    more = "{} more tests that did not pass are not explained here: " + _WHERE_ALL_IS + "\n"
    shown = _fitting((_section(result, now) for result in failed), room - _size(more.format(len(failed))))
    left_out = more.format(len(failed) - len(shown)) if len(shown) < len(failed) else ""
    return "".join(shown) + left_out


def _section(result: TestResult, now: datetime.datetime) -> str:
    # The findings follow as a list, whose lines are wrapped; those of a fence are not.
    bare = replace(result, experiments=tuple(replace(found, findings=()) for found in result.experiments))
    return "\n".join(
        (
            f"### {_code(result.nodeid)}",
            "",
            *_fence(explain(bare, now).splitlines()),
            "",
            *_findings(result),
            *_statistics(result.experiments),
            "",
        )
    )


def _fence(lines: list[str]) -> list[str]:
    """The lines as a code block. What there is no room for is left out before the last, which say what decided."""
    lines = [_cut(_MANY_BACKTICKS.sub("…", line), _LONGEST_LINE) for line in lines]
    verdict = len(lines) - 1 - lines[::-1].index("")
    first, last = lines[:verdict], lines[verdict:]
    shown = _fitting((line + "\n" for line in first), _EXPLANATION_ROOM - _size("\n".join(last)))
    left_out = [f"… {len(first) - len(shown)} lines are left out here"] if len(shown) < len(first) else []
    lines = [*first[: len(shown)], *left_out, *last]
    fence = "`" * max(3, 1 + _longest_run("\n".join(lines)))
    return [f"{fence}text", *lines, fence]


def _findings(result: TestResult) -> list[str]:
    found = list(dict.fromkeys(finding for experiment in result.experiments for finding in experiment.findings))
    lines = [f"- {_code(finding.code)}: {_code(finding.message, _LONGEST_LINE)}" for finding in found[:_SHOWN_FINDINGS]]
    if len(found) > _SHOWN_FINDINGS:
        lines.append(f"- … and {len(found) - _SHOWN_FINDINGS} more")
    return [*lines, ""] if lines else []


def _statistics(experiments: Sequence[Experiment]) -> list[str]:
    """A table with a row for each experiment in which something was answered."""
    experiments = [experiment for experiment in experiments if experiment.groups]
    if not experiments:
        return []
    head = (
        "experiment",
        "unique",
        "agreement",
        "another call agrees",
        "the next run is new",
        "two runs disagree",
        "entropy",
        "tokens in / out",
        "cost",
        "time",
    )
    rows = [_row(_numbers(experiment)).rstrip("\n") for experiment in experiments[:_SHOWN_EXPERIMENTS]]
    lines = [_row(head).rstrip("\n"), "|---" + "|--:" * (len(head) - 1) + "|", *rows]
    if len(experiments) > _SHOWN_EXPERIMENTS:
        lines.extend(("", f"… and {len(experiments) - _SHOWN_EXPERIMENTS} more experiments"))
    return [*lines, ""]


def _numbers(experiment: Experiment) -> tuple[str, ...]:
    tokens = (experiment.usage.input_tokens, experiment.usage.output_tokens)
    return (
        _code(experiment.title),
        f"{experiment.unique} of {experiment.completed}",
        percent(experiment.agreement),
        f"≥ {percent(experiment.agreement_lower)} (at {experiment.confidence * 100:g} %)",
        percent(experiment.new_output_chance),
        percent(experiment.disagreement),
        f"{experiment.entropy:.2f} bits",
        " / ".join("–" if count is None else str(count) for count in tokens),
        _code(cost([experiment])),
        f"{experiment.seconds:.1f} s",
    )


def _code(text: str, most: int = _LONGEST_NAME) -> str:
    """A code span of one line, with at most so many bytes of the text."""
    line = _cut(_MANY_BACKTICKS.sub("…", printable(text)), most)
    if not line.strip():
        return "–"
    # A renderer takes one space from either side.
    pad = " " if {line[0], line[-1]} & {"`", " "} else ""
    fence = "`" * (1 + _longest_run(line))
    return f"{fence}{pad}{line}{pad}{fence}"


def _row(cells: Iterable[str]) -> str:
    """A table's row. A bar in a cell would end it, even in code, and `\\|` is read as a bar, even in code."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _cut(text: str, most: int) -> str:
    """At most so many bytes of a text, with a last "…" if that is not all."""
    whole = text.encode()
    return text if len(whole) <= most else whole[: most - _size("…")].decode(errors="ignore") + "…"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _fitting(pieces: Iterable[str], room: int) -> list[str]:
    """The first pieces that fit into so many bytes; no more of them are made than that takes."""
    shown = []
    for piece in pieces:
        room -= _size(piece)
        if room < 0:
            break
        shown.append(piece)
    return shown


def _size(text: str) -> int:
    return len(text.encode())
