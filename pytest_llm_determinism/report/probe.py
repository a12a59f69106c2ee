"""What ``llm-determinism probe`` prints: a table of all models for each question, their answers, where the first
unstable ones part, and the verdicts.

A model's node id is ``probe::MODEL``, with a label of the question in brackets where there are several.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.statistics import percent
from pytest_llm_determinism.analysis.units import common_length
from pytest_llm_determinism.report import text
from pytest_llm_determinism.report.published import FIGURES
from pytest_llm_determinism.results import Experiment, TestResult
from pytest_llm_determinism.verdict import INCONCLUSIVE, PASSED

EXPLAINED = 2
"""Models that are explained. They come first, and of each the first experiment that shows why it did not pass."""

SHOWN_ANSWERS = 12
"""Different answers of a model that are shown, the most frequent first."""

ANSWER_WIDTH = 100

_UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and what came of it.

    Attributes:
        title: the question and what went along, in one line.
        label: what follows the model's name in node ids.
        results: one a model.
        published: what is to be known of the published figures; if anything, they stand beside one's own.
    """

    title: str
    label: str
    results: list[TestResult]
    published: tuple[str, ...] = ()

    def model(self, result: TestResult) -> str:
        return name(result).removesuffix(self.label)


def summary(told: Sequence[Asked], now: datetime.datetime) -> list[str]:
    """All lines."""
    results = [result for asked in told for result in asked.results]
    parts = [part for asked in told for part in ([text.printable(asked.title)], [*table(asked), *asked.published])]
    parts.append([line for result in results for line in _answers(result)])
    for result in [result for result in results if result.verdict != PASSED][:EXPLAINED]:
        explained = text.explain(replace(result, experiments=_telling(result)), now)
        parts.append(f"{text.printable(name(result))}: {explained}".splitlines())
    priced = any(experiment.cost is not None for result in results for experiment in result.experiments)
    parts.append([*_verdicts(results, now), *(text.spent(results) if priced else ())])
    return [line for part in parts if part for line in ("", *part)][1:]


def name(result: TestResult) -> str:
    return result.nodeid.removeprefix("probe::")


def table(asked: Asked) -> list[str]:
    """A line for each model and load, over all attempts: how many different answers there were in each, and in the
    mean; the least agreement; errors, seconds and calls in all. If wanted, with the published figures: those of a model
    of the same name in its first line, the others below."""
    results = asked.results
    settings = results[0].settings
    attempts = settings["attempts"]["value"]
    mean = ("mean",) if attempts > 1 else ()
    figures = dict(FIGURES) if asked.published else {}
    published = ("published", "mean") if figures else ()
    head = ("model", "load", f"unique of {settings['runs']['value']}", *mean, *published)
    rows: list[tuple[str, ...]] = [(*head, "agreement", "errors", "time", "calls")]
    for result in results:
        for index, load in enumerate(settings["load"]["value"]):
            found = [experiment for experiment in result.experiments if experiment.load == load]
            model = "" if index else asked.model(result)
            beside = _figures(figures.pop(model, ())) if published else ()
            rows.append((model, load, *_seen(found, attempts), *beside, *_costs(found)))
    for model, counts in figures.items():
        rows.append((model, "", _UNKNOWN, *(_UNKNOWN for _ in mean), *_figures(counts), "", "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.ljust, str.ljust, *[str.rjust] * (len(rows[0]) - 3), str.ljust]
    return [
        text.printable(
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _figures(counts: Sequence[int]) -> tuple[str, str]:
    return (", ".join(map(str, counts)), f"{sum(counts) / len(counts):.2f}") if counts else ("", "")


def _seen(found: Sequence[Experiment], attempts: int) -> tuple[str, ...]:
    """How many different answers the attempts under one load gave, and in the mean."""
    whole = [experiment for experiment in found if experiment.groups and experiment.completed == experiment.runs]
    mean = f"{sum(experiment.unique for experiment in whole) / attempts:.2f}" if len(whole) == attempts else _UNKNOWN
    return (", ".join(map(_unique, found)) or "not asked", *((mean,) if attempts > 1 else ()))


def _costs(found: Sequence[Experiment]) -> tuple[str, ...]:
    """The least agreement; errors, seconds and calls in all."""
    heard = [experiment for experiment in found if experiment.groups]
    return (
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


def _answers(result: TestResult) -> list[str]:
    """The different answers of a model over all its experiments, the most frequent first, each from about where it
    parts from those above it."""
    counts: Counter[str] = Counter()
    outputs: dict[str, str] = {}
    for group in (group for experiment in result.experiments for group in experiment.groups):
        answer = group.form or group.sha256
        counts[answer] += group.count
        outputs.setdefault(answer, group.output)
    if not counts:
        return []
    # Counted anew where answers cannot be recognised from one experiment to the next.
    lines = [f"answers of {text.printable(name(result))}, {len(counts)} unique of {counts.total()}"]
    shown = counts.most_common(SHOWN_ANSWERS)
    width = len(str(shown[0][1]))
    above: list[str] = []
    for answer, count in shown:
        parted = max((common_length([output, outputs[answer]]) for output in above), default=0)
        lines.append(f"  {count:>{width}} × “{excerpt(outputs[answer], parted, ANSWER_WIDTH)}”")
        above.append(outputs[answer])
    if len(counts) > len(shown):
        lines.append(f"  … and {len(counts) - len(shown)} more: all are in the JSON report (--report=FILE.json)")
    return lines


def _telling(result: TestResult) -> tuple[Experiment, ...]:
    """The first experiment with several answers, else with errors; where there is none, all of them together tell."""
    telling = [experiment for experiment in result.experiments if experiment.unique > 1]
    telling = telling or [experiment for experiment in result.experiments if experiment.errors]
    return tuple(telling[:1]) or result.experiments


def _verdicts(results: Sequence[TestResult], now: datetime.datetime) -> list[str]:
    """A line for each model: the verdict, and what it rests on."""
    verdicts = max(len(result.verdict) for result in results)
    models = max(len(name(result)) for result in results)
    return [
        text.printable(f"{result.verdict:{verdicts}}  {name(result):{models}}  {_judged(result, now)}")
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
