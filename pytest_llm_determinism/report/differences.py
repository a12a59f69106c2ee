"""Two reports side by side: which tests came and went, and what is another in those that stayed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llm_determinism.analysis.chance import p_in_words
from pytest_llm_determinism.analysis.drift import difference
from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.groups import Group
from pytest_llm_determinism.analysis.statistics import percent
from pytest_llm_determinism.analysis.units import WORDS
from pytest_llm_determinism.report.text import SHOWN_GROUPS, printable
from pytest_llm_determinism.results import Experiment, TestResult
from pytest_llm_determinism.settings import shown
from pytest_llm_determinism.verdict import INCONCLUSIVE

CHANCE = 0.05
"""From this p-value on, a difference is one that chance alone may make."""


OF_THE_SESSION = frozenset(
    ("baseline", "cache", "cache_dir", "cache_ttl", "cache_url", "max_calls", "max_cost", "rate", "report")
)
"""Settings that change neither what is asked nor how it is judged."""


@dataclass(frozen=True, slots=True)
class Differences:
    """What is another in the second report; every line is safe for a terminal.

    Attributes:
        vanished, new: a line for each test that only one of them has.
        changed: node id → what differs.
        same: tests without any difference.
    """

    vanished: tuple[str, ...]
    new: tuple[str, ...]
    changed: dict[str, list[str]]
    same: int

    def __bool__(self) -> bool:
        return bool(self.vanished or self.new or self.changed)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Differences:
    """Compare two reports, test by test.

    What two sessions never share is no difference: times, seeds, calls, tokens, `OF_THE_SESSION`, and what the tests
    ran in.
    """
    then, now = _tests(before), _tests(after)
    changed = {nodeid: _of_test(then[nodeid], now[nodeid]) for nodeid in now if nodeid in then}
    return Differences(
        tuple(_alone(then[nodeid]) for nodeid in then if nodeid not in now),
        tuple(_alone(now[nodeid]) for nodeid in now if nodeid not in then),
        {printable(nodeid): [printable(line) for line in lines] for nodeid, lines in changed.items() if lines},
        sum(not lines for lines in changed.values()),
    )


def _tests(report: Mapping[str, Any]) -> dict[str, TestResult]:
    results = map(TestResult.from_json, report["tests"])
    return {result.nodeid: result for result in results}


def _alone(result: TestResult) -> str:
    return printable(f"{result.nodeid}  {result.verdict}: {_in_line(result.reason)}")


def _of_test(before: TestResult, after: TestResult) -> list[str]:
    lines = []
    if before.verdict != after.verdict:
        lines.append(f"verdict   {before.verdict} → {after.verdict}: {_in_line(after.reason)}")
    elif before.verdict == INCONCLUSIVE and before.reason != after.reason:
        lines.append(f"reason    {_in_line(before.reason)} → {_in_line(after.reason)}")
    settings = _settings(before.settings, after.settings)
    if settings:
        lines.append(f"settings  {'; '.join(settings)}")
    then, now = _by_title(before), _by_title(after)
    lines.extend(f"under {title}: not asked any more" for title in then if title not in now)
    for title, experiment in now.items():
        if title not in then:
            lines.append(f"under {title}: not asked before; {experiment.unique} unique of {experiment.completed}")
        else:
            lines.extend(_of_experiment(then[title], experiment))
    return lines


def _by_title(result: TestResult) -> dict[str, Experiment]:
    return {experiment.title: experiment for experiment in result.experiments}


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``runs 30 → 60``, for each setting whose value is another, wherever it came from."""
    told = []
    for name in before:
        # A baseline keeps only some of them, and another version may have others.
        if name in OF_THE_SESSION or name not in after:
            continue
        then, now = (_value(settings[name]["value"]) for settings in (before, after))
        if then != now:
            told.append(f"{name} {then} → {now}")
    return told


def _value(value: object) -> str:
    return shown(tuple(value) if isinstance(value, list) else value)


def _of_experiment(before: Experiment, after: Experiment) -> list[str]:
    groups = _answers(before, after)
    told = [
        *_numbers(before, after),
        *_findings(before, after),
        *(["asks something else"] if _asks_something_else(before, after) else []),
    ]
    if groups:
        told.append(_likelihood([counts for _, counts in groups]))
    if groups and before.groups and after.groups:
        told.extend(_backends(before, after))
    if not told:
        return []
    return [f"under {after.title}: {'; '.join(told)}", *_shown(groups)]


def _numbers(before: Experiment, after: Experiment) -> list[str]:
    pairs = (
        ("runs completed", str(before.completed), str(after.completed)),
        ("errors", str(before.errors), str(after.errors)),
        ("unique", str(before.unique), str(after.unique)),
        ("agreement", percent(before.agreement), percent(after.agreement)),
    )
    return [f"{name} {then} → {now}" for name, then, now in pairs if then != now]


def _findings(before: Experiment, after: Experiment) -> list[str]:
    # Who knows no runs is a baseline, which keeps no findings.
    if any(not group.runs for found in (before, after) for group in found.groups):
        return []
    then, now = ({finding.code for finding in found.findings} for found in (before, after))
    told = [(f"{code} is new", code) for code in now - then] + [(f"{code} is gone", code) for code in then - now]
    return [text for text, _ in sorted(told, key=lambda pair: pair[1])]


def _asks_something_else(before: Experiment, after: Experiment) -> bool:
    return bool(before.requests and after.requests) and before.requests != after.requests


def _answers(before: Experiment, after: Experiment) -> list[tuple[Group, tuple[int, int]]]:
    """Each answer with its runs then and now, the most frequent first; nothing where the shares are the same."""
    # Not every report has the forms that answers are compared by.
    formed = all(group.form for group in (*before.groups, *after.groups))
    known: dict[str, Group] = {}
    counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for experiment, count in zip((before, after), counts, strict=True):
        for group in experiment.groups:
            key = group.form if formed else group.sha256
            known.setdefault(key, group)
            count[key] = count.get(key, 0) + group.count
    then, now = (sum(count.values()) for count in counts)
    pairs = {key: (counts[0].get(key, 0), counts[1].get(key, 0)) for key in known}
    if bool(then) == bool(now) and all(pair[0] * now == pair[1] * then for pair in pairs.values()):
        return []
    return sorted(((known[key], pair) for key, pair in pairs.items()), key=lambda found: -sum(found[1]))


def _likelihood(counts: Sequence[tuple[int, int]]) -> str:
    before, after = zip(*counts, strict=True)
    if not sum(before) or not sum(after):
        return "no answer any more" if sum(before) else "no answer before"
    chance = difference(before, after)
    return f"answers differ, {p_in_words(chance)}{', as chance alone may have it' if chance >= CHANCE else ''}"


def _backends(before: Experiment, after: Experiment) -> list[str]:
    """What the backend says of itself, where that is another."""
    told = []
    for name in ("models", "fingerprints"):
        then, now = (
            sorted({text for group in found.groups for text in getattr(group, name)}) for found in (before, after)
        )
        if then != now:
            told.append(f"{name} {_listed(then)} → {_listed(now)}")
    return told


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(map(excerpt, texts)) or "none"


def _shown(groups: Sequence[tuple[Group, tuple[int, int]]]) -> list[str]:
    then, now = (max((len(str(counts[side])) for _, counts in groups), default=0) for side in (0, 1))
    common = WORDS.common([group.output for group, _ in groups]) if len(groups) > 1 else 0
    lines = [
        f"  {counts[0]:>{then}} → {counts[1]:>{now}} × “{excerpt(group.output, common)}”"
        for group, counts in groups[:SHOWN_GROUPS]
    ]
    if len(groups) > SHOWN_GROUPS:
        lines.append(f"  … and {len(groups) - SHOWN_GROUPS} more answers")
    return lines


def _in_line(text: str) -> str:
    return " ".join(text.split())
