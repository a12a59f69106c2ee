"""What pytest's own JUnit file (``--junitxml``) says of a gated test."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

from pytest_llm_determinism.report.text import explain, printable
from pytest_llm_determinism.results import TestResult

PREFIX = "determinism_"
"""What the names of all properties begin with."""


def properties(result: TestResult) -> list[tuple[str, str | int | float]]:
    """Properties of a test's element: the verdict, and the least or the sum of what its experiments showed.

    What is not known (statistics where nothing was answered, tokens that no provider counted) has no property.
    """
    experiments = result.experiments
    found: dict[str, str | int | float] = {
        "verdict": result.verdict,
        "reason": printable(" ".join(result.reason.split())),
        "unique": result.unique,
        "runs": sum(experiment.completed for experiment in experiments),
        "errors": sum(experiment.errors for experiment in experiments),
    }
    heard = [experiment for experiment in experiments if experiment.groups]
    if heard:
        found["agreement"] = min(experiment.agreement for experiment in heard)
        found["agreement_lower"] = min(experiment.agreement_lower for experiment in heard)
        found["confidence"] = heard[0].confidence
    found["load"] = " ".join(dict.fromkeys(experiment.load for experiment in experiments))
    found["findings"] = " ".join(
        dict.fromkeys(finding.code for experiment in experiments for finding in experiment.findings)
    )
    found["calls_live"] = sum(experiment.calls.live for experiment in experiments)
    found["calls_cached"] = sum(experiment.calls.cached for experiment in experiments)
    found["neighbour_calls"] = sum(experiment.neighbour_calls for experiment in experiments)
    for name in ("input_tokens", "output_tokens"):
        counts = [getattr(experiment.usage, name) for experiment in experiments]
        if counts and None not in counts:
            found[name] = sum(counts)
    costs = [experiment.cost for experiment in experiments if experiment.cost is not None]
    if costs and len(costs) == len(experiments) and len({cost.currency for cost in costs}) == 1:
        found["cost_live"] = sum(cost.live for cost in costs)
        found["cost_saved"] = sum(cost.saved for cost in costs)
        found["cost_currency"] = costs[0].currency
    return [(PREFIX + name, value) for name, value in found.items()]


def tell(user_properties: list[tuple[str, object]], result: TestResult) -> None:
    """Give a test its properties, in place of those of an earlier try (pytest-rerunfailures)."""
    user_properties[:] = [kept for kept in user_properties if not kept[0].startswith(PREFIX)]
    user_properties.extend(properties(result))


@contextlib.contextmanager
def explained(sections: list[tuple[str, str]], result: TestResult) -> Iterator[None]:
    """While open, the explanation is one of a test report's sections of captured output.

    pytest's JUnit file takes its ``system-out`` from there, as ``junit_logging`` and ``junit_log_passing_tests`` say.
    The terminal, which would tell it a second time, looks at the sections later.
    """
    title = " determinism ".center(80, "-")
    section = ("Captured stdout determinism", f"\n{title}\n{explain(result, datetime.datetime.now(datetime.UTC))}\n")
    sections.append(section)
    try:
        yield
    finally:
        sections.remove(section)
