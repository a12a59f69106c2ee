"""A test's result as text: the failure a person reads, and its line in the summary."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from pytest_llm_determinism.analysis.divergence import common_prefix, excerpt
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import Group
from pytest_llm_determinism.analysis.statistics import percent
from pytest_llm_determinism.results import Experiment, TestResult
from pytest_llm_determinism.verdict import runs_in_words

SHOWN_GROUPS = 6
SHOWN_BRANCHES = 6
SHOWN_ERRORS = 6


def explain(result: TestResult, now: datetime.datetime) -> str:
    """The whole failure text; its first line is the short reason that pytest's own summary shows."""
    lines = [result.reason]
    told: set[Finding] = set()
    for experiment in result.experiments:
        lines.extend(("", *_experiment(experiment, now)))
        # What several experiments share, such as that they differ, is told once.
        lines.extend(f"  {finding.code}: {finding.message}" for finding in experiment.findings if finding not in told)
        told.update(experiment.findings)
    lines.extend(("", f"verdict     {result.verdict}"))
    if overridden(result):
        lines.append(f"override    {overridden(result)}")
    if result.decided_by:
        lines.append(f"decided by  {result.decided_by}")
    if result.advice:
        lines.append(f"try next    {result.advice}")
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """A line that cannot steer a terminal: servers write the errors in it, and applications the requests."""
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in line
    )


def _experiment(experiment: Experiment, now: datetime.datetime) -> list[str]:
    lines = [f"under {experiment.title}: {_in_all(experiment)}"]
    width = len(str(max((group.count for group in experiment.groups), default=0)))
    for group in experiment.groups[:SHOWN_GROUPS]:
        part = _parting_part(experiment, group)
        # Around the place where it leaves the largest group, and the largest where the next leaves it.
        other = experiment.groups[1 if group is experiment.groups[0] else 0] if len(experiment.groups) > 1 else group
        start = 0 if other is group else len(common_prefix([part, _parting_part(experiment, other)]))
        which = "" if group.count > 8 or group.count == experiment.completed else f"  ({runs_in_words(group.runs)})"
        lines.append(f"  {group.count:>{width}} × “{excerpt(part, start)}”{which}")
        if group.reasoning:
            lines.append(f"  {'':>{width}}   reasoning: “{excerpt(group.reasoning)}”")
    if len(experiment.groups) > SHOWN_GROUPS:
        lines.append(f"  … and {len(experiment.groups) - SHOWN_GROUPS} more groups")
    lines.extend(_divergence(experiment))
    lines.extend(_errors(experiment))
    lines.append(f"  {calls(experiment, now)}; seed {experiment.seed}")
    return lines


def _in_all(experiment: Experiment) -> str:
    if experiment.groups:
        return f"{experiment.unique} unique of {experiment.completed} runs, {bound(experiment)}"
    if experiment.completed:
        return f"no output in {experiment.completed} run{'' if experiment.completed == 1 else 's'}"
    return f"none of {experiment.runs} runs completed"


def _errors(experiment: Experiment) -> list[str]:
    """One line for each kind of API error: how often, the first of it, in which runs; the most frequent first."""
    kinds = sorted(experiment.error_messages, key=lambda kind: -len(kind.runs))
    width = len(str(len(kinds[0].runs))) if kinds else 0
    lines = []
    for kind in kinds[:SHOWN_ERRORS]:
        count = len(kind.runs)
        which = "" if count > 8 or count == experiment.runs else f"  ({runs_in_words(kind.runs)})"
        lines.append(f"  {count:>{width}} × {kind.error}{which}")
    if len(kinds) > SHOWN_ERRORS:
        lines.append(f"  … and {len(kinds) - SHOWN_ERRORS} more kinds of errors")
    return lines


def _parting_part(experiment: Experiment, group: Group) -> str:
    """The part of a group's output in which groups part."""
    step = experiment.divergence.step if experiment.divergence else None
    return group.output if step is None else "".join(group.parts[step : step + 1])


def _divergence(experiment: Experiment) -> list[str]:
    parted = experiment.divergence
    if parted is None:
        return []
    step = f"step {parted.step + 1}, " if any(len(group.parts) > 1 for group in experiment.groups) else ""
    if not parted.prefix and len(parted.branches) == len(experiment.groups):
        return [f"  they part at {step}{parted.unit} 0"]  # the groups above show the branches already
    after = f", after “{excerpt(parted.prefix, len(parted.prefix))}”" if parted.prefix else ""
    lines = [f"  they part at {step}{parted.unit} {parted.index}{after}"]
    for branch in parted.branches[:SHOWN_BRANCHES]:
        text = f"“{excerpt(branch.text)}”" if branch.text else "(the output ends)"
        lines.append(f"    {branch.count} × {text}")
    if len(parted.branches) > SHOWN_BRANCHES:
        lines.append(f"    … and {len(parted.branches) - SHOWN_BRANCHES} more")
    return lines


def overridden(result: TestResult) -> str:
    """What was set in the requests of the application: ``seed=7, temperature=0``; empty if nothing was."""
    return ", ".join(result.settings.get("override", {}).get("value") or ())


def bound(experiment: Experiment) -> str:
    """What the runs say of the next call."""
    return (
        f"another call agrees at least {percent(experiment.agreement_lower)} of the time,"
        f" at {experiment.confidence * 100:g} %"
    )


def calls(experiment: Experiment, now: datetime.datetime) -> str:
    """``29 calls live, 1 answer from the store (oldest 3 hours)``."""
    found = experiment.calls
    parts = []
    if found.live or not found.cached:
        parts.append(f"{found.live} call{'' if found.live == 1 else 's'} live")
    if found.cached:
        oldest = f" (oldest {age(found.oldest_sample, now)})" if found.oldest_sample else ""
        parts.append(f"{found.cached} answer{'' if found.cached == 1 else 's'} from the store{oldest}")
    text = ", ".join(parts)
    return text if found.live or not found.cached else f"{text}: a replay is no new evidence"


def age(moment: str, now: datetime.datetime) -> str:
    """The time since a moment in ISO 8601, in the largest whole unit."""
    seconds = max(0.0, (now - datetime.datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{int(seconds)} second{'' if int(seconds) == 1 else 's'}"


def table(results: Sequence[TestResult], now: datetime.datetime) -> list[str]:
    """The lines of the summary section, one a test: verdict, test, what was seen, how much that is worth, origin."""
    rows = [_row(result, now) for result in results]
    # A reason that nothing follows, such as a long API error, makes no other line wider.
    widths = [max((len(row[column]) for row in rows if column < 2 or row[3]), default=0) for column in range(3)]
    return [_printable("  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip()) for row in rows]


def _row(result: TestResult, now: datetime.datetime) -> tuple[str, str, str, str]:
    reason = " ".join(result.reason.split())
    if not result.counts:
        return result.verdict, result.nodeid, reason, ""
    worst = min(result.experiments, key=lambda experiment: experiment.agreement_lower)
    codes = dict.fromkeys(finding.code for experiment in result.experiments for finding in experiment.findings)
    loads = ",".join(dict.fromkeys(experiment.load for experiment in result.experiments))
    origins = dict.fromkeys(calls(experiment, now) for experiment in result.experiments)
    override = (f"override {overridden(result)}",) if overridden(result) else ()
    notes = "; ".join((f"under {loads}", *override, bound(worst), *origins, *codes))
    return result.verdict, result.nodeid, reason, notes
