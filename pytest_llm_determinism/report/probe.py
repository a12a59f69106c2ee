"""What ``llm-determinism probe`` prints: a table of all models, where the first unstable ones part, and the verdicts.

A model's node id is ``probe::MODEL``.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace

from pytest_llm_determinism.analysis.statistics import percent
from pytest_llm_determinism.report import text
from pytest_llm_determinism.results import Experiment, TestResult
from pytest_llm_determinism.settings import shown
from pytest_llm_determinism.verdict import INCONCLUSIVE, PASSED

EXPLAINED = 2
"""Models that are explained. They come first, and of each the first experiment that shows why it did not pass."""

_UNKNOWN = "–"


def summary(question: str, results: Sequence[TestResult], now: datetime.datetime) -> list[str]:
    """All lines.

    Args:
        question: what was asked, in a few words.
    """
    first = results[0]
    conditions = [question, f"temperature={shown(first.settings['temperature']['value'])}"]
    if text.overridden(first):
        conditions.append(f"override {text.overridden(first)}")
    lines = [", ".join(conditions), "", *table(results)]
    for result in [result for result in results if result.verdict != PASSED][:EXPLAINED]:
        explained = text.explain(replace(result, experiments=_telling(result)), now)
        lines.extend(("", *f"{model(result)}: {explained}".splitlines()))
    return [*lines, "", *_verdicts(results, now)]


def model(result: TestResult) -> str:
    return result.nodeid.removeprefix("probe::")


def table(results: Sequence[TestResult]) -> list[str]:
    """A line for each model and load, over all attempts: how many different answers there were in each, and in the
    mean; the least agreement; errors, seconds and calls in all."""
    settings = results[0].settings
    mean = ("mean",) if settings["attempts"]["value"] > 1 else ()
    head = ("model", "load", f"unique of {settings['runs']['value']}", *mean, "agreement", "errors", "time", "calls")
    rows = [head]
    for result in results:
        for index, load in enumerate(settings["load"]["value"]):
            found = [experiment for experiment in result.experiments if experiment.load == load]
            rows.append(("" if index else model(result), load, *_cells(found, settings["attempts"]["value"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.ljust, str.ljust, *[str.rjust] * (len(head) - 3), str.ljust]
    return [
        text.printable(
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(found: Sequence[Experiment], attempts: int) -> tuple[str, ...]:
    """What the attempts under one load showed."""
    heard = [experiment for experiment in found if experiment.groups]
    whole = [experiment for experiment in heard if experiment.completed == experiment.runs]
    mean = f"{sum(experiment.unique for experiment in whole) / attempts:.2f}" if len(whole) == attempts else _UNKNOWN
    return (
        ", ".join(map(_unique, found)) or "not asked",
        *((mean,) if attempts > 1 else ()),
        percent(min(experiment.agreement for experiment in heard)) if heard else _UNKNOWN,
        str(sum(experiment.errors for experiment in found)),
        f"{sum(experiment.seconds for experiment in found):.1f} s",
        _calls(found),
    )


def _unique(experiment: Experiment) -> str:
    if not experiment.groups:
        return _UNKNOWN
    return f"{experiment.unique}{'' if experiment.completed == experiment.runs else f' of {experiment.completed}'}"


def _calls(found: Sequence[Experiment]) -> str:
    """``12 live, 18 cached``."""
    counts = {
        "live": sum(experiment.calls.live for experiment in found),
        "cached": sum(experiment.calls.cached for experiment in found),
        "of neighbours": sum(experiment.neighbour_calls for experiment in found),
    }
    return ", ".join(f"{count} {which}" for which, count in counts.items() if count) or "0"


def _telling(result: TestResult) -> tuple[Experiment, ...]:
    """The first experiment with several answers, else with errors; where there is none, all of them together tell."""
    telling = [experiment for experiment in result.experiments if experiment.unique > 1]
    telling = telling or [experiment for experiment in result.experiments if experiment.errors]
    return tuple(telling[:1]) or result.experiments


def _verdicts(results: Sequence[TestResult], now: datetime.datetime) -> list[str]:
    """A line for each model: the verdict, and what it rests on."""
    verdicts = max(len(result.verdict) for result in results)
    models = max(len(model(result)) for result in results)
    return [
        text.printable(f"{result.verdict:{verdicts}}  {model(result):{models}}  {_judged(result, now)}")
        for result in results
    ]


def _judged(result: TestResult, now: datetime.datetime) -> str:
    experiments = result.experiments
    parts = [" ".join(result.reason.split())]
    if result.verdict != INCONCLUSIVE:
        parts.append(text.bound(min(experiments, key=lambda experiment: experiment.agreement_lower)))
    oldest = [experiment.calls.oldest_sample for experiment in experiments if experiment.calls.oldest_sample]
    if oldest and not any(experiment.calls.live for experiment in experiments):
        parts.append(f"all answers from the store (oldest {text.age(min(oldest), now)}): a replay is no new evidence")
    codes = dict.fromkeys(finding.code for experiment in experiments for finding in experiment.findings)
    return "; ".join((*parts, *codes))
