"""A report as CSV: a row for each experiment, for spreadsheets and data frames.

The columns are described in docs/reports.md.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from pytest_llm_determinism.report.text import printable
from pytest_llm_determinism.results import Experiment, TestResult

OF_THE_TEST = ("nodeid", "verdict", "reason", "unique_in_test")
OF_THE_EXPERIMENT = (
    "load",
    "attempt",
    "seed",
    "runs",
    "completed",
    "errors",
    "unique",
    "unique_raw",
    "group_sizes",
    "agreement",
    "agreement_lower",
    "confidence",
    "disagreement",
    "new_output_chance",
    "entropy",
    "findings",
    "live",
    "cached",
    "oldest_sample",
    "neighbour_calls",
    "input_tokens",
    "output_tokens",
    "cost_live",
    "cost_saved",
    "cost_currency",
    "seconds",
)
SETTINGS = ("max_unique", "min_agreement", "max_errors", "compare", "override")
COLUMNS = (*OF_THE_TEST, *OF_THE_EXPERIMENT, *(f"setting_{name}" for name in SETTINGS), "created_at")

# What spreadsheets take for the beginning of a formula, or drop before they look for one.
_BEGINS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(report: dict[str, Any]) -> str:
    """The whole report as RFC 4180 has it: a header, CRLF line ends, cells quoted where they must be.

    A test without experiments has one row, too. What is not known is an empty cell.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    for test in report["tests"]:
        result = TestResult.from_json(test)
        shared = {**_of_the_test(result), "created_at": report["created_at"]}
        for own in map(_of_the_experiment, result.experiments) if result.experiments else ({},):
            writer.writerow({name: _cell(value) for name, value in {**shared, **own}.items()})
    return text.getvalue()


def _of_the_test(result: TestResult) -> dict[str, object]:
    return {
        "nodeid": result.nodeid,
        "verdict": result.verdict,
        "reason": " ".join(result.reason.split()),
        "unique_in_test": result.unique,
        **{f"setting_{name}": _setting(result.settings, name) for name in SETTINGS},
    }


def _of_the_experiment(experiment: Experiment) -> dict[str, object]:
    return {
        "load": experiment.load,
        "attempt": experiment.attempt,
        "seed": experiment.seed,
        "runs": experiment.runs,
        "completed": experiment.completed,
        "errors": experiment.errors,
        "unique": experiment.unique,
        "unique_raw": experiment.unique_raw,
        # Not "4/1", which spreadsheets take for a day in April.
        "group_sizes": " ".join(str(group.count) for group in experiment.groups),
        "agreement": experiment.agreement,
        "agreement_lower": experiment.agreement_lower,
        "confidence": experiment.confidence,
        "disagreement": experiment.disagreement,
        "new_output_chance": experiment.new_output_chance,
        "entropy": experiment.entropy,
        "findings": " ".join(dict.fromkeys(finding.code for finding in experiment.findings)),
        "live": experiment.calls.live,
        "cached": experiment.calls.cached,
        "oldest_sample": experiment.calls.oldest_sample,
        "neighbour_calls": experiment.neighbour_calls,
        "input_tokens": experiment.usage.input_tokens,
        "output_tokens": experiment.usage.output_tokens,
        "seconds": experiment.seconds,
        **_cost(experiment),
    }


def _cost(experiment: Experiment) -> dict[str, object]:
    known = experiment.cost
    if known is None:
        return {}
    return {"cost_live": known.live, "cost_saved": known.saved, "cost_currency": known.currency}


def _setting(settings: Mapping[str, Any], name: str) -> object:
    value = settings.get(name, {}).get("value")
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _cell(value: object) -> object:
    """Text that is safe to open: no control characters, and an apostrophe before what a spreadsheet would compute."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_BEGINS_A_FORMULA) else text
