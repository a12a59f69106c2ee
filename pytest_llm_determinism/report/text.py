"""A test's result as text: the failure a person reads, and its line in the summary."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

from pytest_llm_determinism.analysis.chance import p_in_words
from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import runs_in_words
from pytest_llm_determinism.analysis.statistics import percent, power_in_words
from pytest_llm_determinism.report.tree import draw, which_runs
from pytest_llm_determinism.results import Drift, Experiment, TestResult

SHOWN_GROUPS = 6
SHOWN_ERRORS = 6
SHOWN_TESTS = 5
LONG_REASON = 80


def explain(result: TestResult, now: datetime.datetime) -> str:
    """The whole failure text; its first line is the short reason that pytest's own summary shows."""
    lines = [result.reason]
    told: set[Finding] = set()
    for experiment in result.experiments:
        lines.extend(("", *_experiment(experiment, now)))
        # What several experiments share, such as that they differ, is told once.
        lines.extend(f"  {finding.code}: {finding.message}" for finding in experiment.findings if finding not in told)
        told.update(experiment.findings)
    if result.drift is not None:
        lines.extend(_drift(result.drift))
    lines.extend(("", f"verdict     {result.verdict}"))
    if overridden(result):
        lines.append(f"override    {overridden(result)}")
    if result.decided_by:
        lines.append(f"decided by  {result.decided_by}")
    if result.advice:
        lines.append(f"try next    {result.advice}")
    return "\n".join(map(printable, lines))


def _drift(drift: Drift) -> list[str]:
    """The answers then and now, under each load."""
    if drift.refused is not None:
        return ["", f"beside the baseline: {drift.refused}"]
    lines: list[str] = []
    for shift in drift.shifts:
        width = max(len("then"), *(len(str(max(answer.before, answer.after))) for answer in shift.answers))
        lines.extend(("", f"beside the baseline, under {shift.load}: {p_in_words(shift.chance)}"))
        lines.append(f"  {'then':>{width}}  {'now':>{width}}")
        lines.extend(
            f"  {answer.before:>{width}}  {answer.after:>{width}}  “{excerpt(answer.output)}”"
            for answer in shift.answers[:SHOWN_GROUPS]
        )
        more = shift.more + len(shift.answers[SHOWN_GROUPS:])
        if more:
            lines.append(f"  … and {more} more answer{'' if more == 1 else 's'}")
    return [*lines, *(f"  {change}" for change in drift.backend)]


def against_baseline(
    quoted: str, results: Sequence[TestResult], found: Sequence[str], missing: Sequence[str]
) -> list[str]:
    """What the summary says of all tests beside the baseline.

    Args:
        quoted: the setting that named it.
        found: tests that passed, and which only all of them together show to have drifted.
        missing: tests of the baseline that were not run.
    """
    held = [result for result in results if result.drift is not None and result.drift.refused is None]
    number = sum(result.verdict == "drifted" for result in held)
    lines = [f"{quoted}: {len(held)} test{'' if len(held) == 1 else 's'} compared, {number} drifted"]
    if found:
        one = len(found) == 1
        lines.append(
            f"  only all tests together show {'one' if one else 'some'} of them, which pytest counted as passed;"
            f" for {'it' if one else 'them'} the session fails: {_some(found)}"
        )
    replayed = sum(_is_replay(result) for result in held)
    if replayed:
        lines.append(
            f"  {replayed} of them had all answers from the store: a replay is no new evidence of the model as it is"
            " now (cache=refresh asks it)"
        )
    new = [result.nodeid for result in results if result.drift is None]
    if new:
        lines.append(f"  not in the baseline: {_some(new)}")
    if missing:
        lines.append(f"  in the baseline and not in this session: {_some(missing)}")
    return list(map(printable, lines))


def _is_replay(result: TestResult) -> bool:
    calls = [experiment.calls for experiment in result.experiments]
    return any(call.cached for call in calls) and not any(call.live for call in calls)


def _some(nodeids: Sequence[str]) -> str:
    more = f" and {len(nodeids) - SHOWN_TESTS} more" if len(nodeids) > SHOWN_TESTS else ""
    return ", ".join(sorted(nodeids)[:SHOWN_TESTS]) + more


def printable(line: str) -> str:
    """A line that cannot steer a terminal: servers write the errors in it, and applications the requests."""
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in line
    )


def _experiment(experiment: Experiment, now: datetime.datetime) -> list[str]:
    lines = [f"under {experiment.title}: {_in_all(experiment)}"]
    if experiment.divergence is None:
        lines.extend(_groups(experiment))
    else:
        lines.extend(f"  {line}" for line in draw(experiment.divergence, experiment.groups))
    lines.extend(_errors(experiment))
    price = f"; {cost([experiment])}" if experiment.cost and (experiment.cost.live or experiment.cost.saved) else ""
    lines.append(f"  {calls([experiment], now)}{price}; seed {experiment.seed}")
    return lines


def _groups(experiment: Experiment) -> list[str]:
    """Groups with nothing to tell them apart in their texts: mostly there is one."""
    width = len(str(max((group.count for group in experiment.groups), default=0)))
    lines = []
    for group in experiment.groups[:SHOWN_GROUPS]:
        which = "" if group.count == experiment.completed else which_runs(group)
        lines.append(f"  {group.count:>{width}} × “{excerpt(group.output)}”{which}")
        if group.reasoning:
            lines.append(f"  {'':>{width}}   reasoning: “{excerpt(group.reasoning)}”")
    if len(experiment.groups) > SHOWN_GROUPS:
        lines.append(f"  … and {len(experiment.groups) - SHOWN_GROUPS} more groups")
    return lines


def _in_all(experiment: Experiment) -> str:
    if experiment.groups:
        seen = f"{experiment.unique} unique of {experiment.completed} runs{_as_written(experiment)}"
        return f"{seen}, {bound(experiment)}{_stopped(experiment)}"
    if experiment.completed:
        return f"no output in {experiment.completed} run{'' if experiment.completed == 1 else 's'}"
    return f"none of {experiment.runs} runs completed"


def _as_written(experiment: Experiment) -> str:
    """How many outputs differ in any character, where the comparison makes them fewer."""
    return "" if experiment.unique_raw == experiment.unique else f" ({experiment.unique_raw} as written)"


def _stopped(experiment: Experiment) -> str:
    """Why the bound is lower than the runs that were made alone would say."""
    made = experiment.completed + experiment.errors
    if made == experiment.runs:
        return ""
    return f"; stopped after {made} of {experiment.runs} runs, and those not made count as disagreeing"


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


def overridden(result: TestResult) -> str:
    """What was set in the requests of the application: ``seed=7, temperature=0``; empty if nothing was."""
    return ", ".join(result.settings.get("override", {}).get("value") or ())


def bound(experiment: Experiment) -> str:
    """What the runs say of the next call."""
    return (
        f"another call agrees at least {percent(experiment.agreement_lower)} of the time,"
        f" at {experiment.confidence * 100:g} %"
    )


def calls(experiments: Sequence[Experiment], now: datetime.datetime) -> str:
    """``29 calls live with 95 neighbours, 1 answer from the store (oldest 3 hours)``, over all these experiments."""
    live, cached, came = (
        sum(counts)
        for counts in zip(
            *((found.calls.live, found.calls.cached, found.neighbour_calls) for found in experiments), strict=True
        )
    )
    parts = []
    if live or not cached:
        company = f" with {came} neighbour{'' if came == 1 else 's'}" if came else ""
        parts.append(f"{live} call{'' if live == 1 else 's'} live{company}")
    if cached:
        moments = [found.calls.oldest_sample for found in experiments if found.calls.oldest_sample]
        oldest = f" (oldest {age(min(moments), now)})" if moments else ""
        parts.append(f"{cached} answer{'' if cached == 1 else 's'} from the store{oldest}")
    text = ", ".join(parts)
    return text if live or not cached else f"{text}: a replay is no new evidence"


def cost(experiments: Sequence[Experiment]) -> str:
    """``spent about 0.0123 USD live, 0.45 USD saved by the store``, over all these experiments; says where the cost is
    not known."""
    known = [found.cost for found in experiments if found.cost is not None]
    parts = []
    for currency in dict.fromkeys(spent.currency for spent in known):
        live, saved = (
            sum(amounts)
            for amounts in zip(*((one.live, one.saved) for one in known if one.currency == currency), strict=True)
        )
        kept = f"{money(saved)} {currency} saved by the store"
        if live:
            parts.append(f"spent about {money(live)} {currency} live" + (f", {kept}" if saved else ""))
        else:
            parts.append(f"about {kept}" if saved else "spent nothing")
    if len(known) < len(experiments):
        parts.append("no price known for the rest" if known else "no price known")
    return "; ".join(parts)


def money(amount: float) -> str:
    """An amount to three digits, and at least to the hundredth: ``12.35``, ``0.0123``, ``0.00000123``."""
    places = 2 if amount >= 1 or amount <= 0 else 2 - math.floor(math.log10(amount))
    whole, _, rest = f"{amount:.{places}f}".partition(".")
    return f"{whole}.{rest.rstrip('0'):0<2}"


def spent(results: Sequence[TestResult]) -> list[str]:
    """What the session cost and saved, and why that is not known where it is not; nothing where nobody asked."""
    paid = [one for result in results for one in result.experiments if one.cost is not None]
    reasons: dict[str, set[str]] = {}
    for result in results:
        for one in result.experiments:
            if one.unpriced is not None:
                reasons.setdefault(one.unpriced, set()).add(result.nodeid)
    lines = []
    if any(one.cost and (one.cost.live or one.cost.saved) for one in paid):
        rest = ", without the tests whose cost is not known" if reasons else ""
        lines.append(f"{cost(paid)} (estimated by public list prices{rest})")
    for reason, tests in list(reasons.items())[:SHOWN_TESTS]:
        lines.append(f"cost not known of {len(tests)} test{'' if len(tests) == 1 else 's'}: {reason}")
    if len(reasons) > SHOWN_TESTS:
        lines.append(f"cost not known for {len(reasons) - SHOWN_TESTS} more reasons")
    return list(map(printable, lines))


def age(moment: str, now: datetime.datetime) -> str:
    """The time since a moment in ISO 8601, in the largest whole unit."""
    seconds = max(0.0, (now - datetime.datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{int(seconds)} second{'' if int(seconds) == 1 else 's'}"


def worth(results: Sequence[TestResult]) -> list[str]:
    """What the tests that passed are worth, by the one of fewest runs; nothing where none passed."""
    passed = [result for result in results if result.verdict == "passed" and result.counts]
    if not passed:
        return []
    fewest = min(passed, key=lambda result: sum(result.counts))
    runs = sum(fewest.counts)
    return [f"with {runs} runs, {power_in_words(0.01, runs, fewest.settings['max_unique']['value'])}"]


def table(results: Sequence[TestResult], now: datetime.datetime) -> list[str]:
    """The lines of the summary section, one a test: verdict, test, what was seen, how much that is worth, origin."""
    rows = [_row(result, now) for result in results]
    # A reason that nothing follows, such as a long API error, makes no other line wider; nor does one that is long.
    told = [row for row in rows if row[3] and len(row[2]) <= LONG_REASON]
    widths = [max((len(row[column]) for row in (rows, rows, told)[column]), default=0) for column in range(3)]
    return [printable("  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip()) for row in rows]


def _row(result: TestResult, now: datetime.datetime) -> tuple[str, str, str, str]:
    reason = " ".join(result.reason.split())
    if not result.counts:
        return result.verdict, result.nodeid, reason, ""
    worst = min(result.experiments, key=lambda experiment: experiment.agreement_lower)
    codes = dict.fromkeys(finding.code for experiment in result.experiments for finding in experiment.findings)
    loads = ",".join(dict.fromkeys(experiment.load for experiment in result.experiments))
    override = (f"override {overridden(result)}",) if overridden(result) else ()
    raw = max(result.experiments, key=lambda experiment: experiment.unique_raw - experiment.unique)
    written = (f"{raw.unique_raw} unique as written",) if _as_written(raw) else ()
    beside = _beside_baseline(result)
    notes = "; ".join(
        (f"under {loads}", *override, *written, bound(worst), calls(result.experiments, now), *beside, *codes)
    )
    return result.verdict, result.nodeid, reason, notes


def _beside_baseline(result: TestResult) -> tuple[str, ...]:
    """``as in the baseline``, or how likely chance alone makes what differs; and what the provider says of itself."""
    drift = result.drift
    if drift is None or drift.chance is None:
        return ()
    if result.verdict == "drifted":
        return drift.backend
    stable = all(len(shift.answers) == 1 for shift in drift.shifts)
    return "as in the baseline" if stable else f"beside the baseline, {p_in_words(drift.chance)}", *drift.backend
