"""Named explanations of why runs differ, or why a pass proves little, each with its evidence in numbers.

One module a kind of evidence; `findings` and `over_all` put what they find in one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llm_determinism.analysis.compare import Comparison
from pytest_llm_determinism.analysis.findings.backends import backend_varies, cached_by_server
from pytest_llm_determinism.analysis.findings.endings import degenerate_loop, finish_reason_varies, truncated
from pytest_llm_determinism.analysis.findings.finding import ALPHA, CODES, Finding
from pytest_llm_determinism.analysis.findings.forms import formatting_only, not_json
from pytest_llm_determinism.analysis.findings.loads import load_sensitive, neighbours_failed
from pytest_llm_determinism.analysis.findings.missing import runs_made_no_call
from pytest_llm_determinism.analysis.findings.order import (
    Observed,
    changed_midway,
    error_pattern,
    first_run_differs,
    labels_of,
)
from pytest_llm_determinism.analysis.findings.requests import prompt_varies, sampling_on
from pytest_llm_determinism.analysis.findings.ties import near_tie
from pytest_llm_determinism.analysis.findings.unseen import input_varies, output_varies, reasoning_varies
from pytest_llm_determinism.analysis.groups import Group, MissingCall, Outcome

__all__ = ["ALPHA", "CODES", "Finding", "Observed", "findings", "load_sensitive", "neighbours_failed", "over_all"]


def findings(
    items: Sequence[Outcome], groups: Sequence[Group], requests: Mapping[str, str], comparison: Comparison
) -> tuple[Finding, ...]:
    """What one experiment shows by itself, in whatever order its runs were made.

    Args:
        items: the runs with an output.
        requests: canonical requests by key, as many as were kept.
    """
    found = (
        prompt_varies(items, requests),
        sampling_on(items, requests, len(groups)),
        backend_varies(items, groups),
        cached_by_server(items, groups),
        near_tie(items, groups, comparison),
        formatting_only(groups, items, comparison),
        not_json(items, comparison),
        finish_reason_varies(groups, items),
        reasoning_varies(groups, items),
        output_varies(items),
        input_varies(items),
        degenerate_loop(groups),
        truncated(items),
    )
    return tuple(finding for finding in found if finding is not None)


def over_all(
    observed: Sequence[Observed], missing: Sequence[MissingCall], comparison: Comparison, *, whole: bool
) -> list[tuple[Finding, ...]]:
    """What the order of the runs shows, and all experiments of a test together: the findings for each of them.

    Args:
        missing: calls that were not made, over all experiments.
        whole: whether sampling went on whatever the answers were. If it could stop at an answer (``fail_fast``), that
            one is the last, and the order of the runs says nothing.
    """
    by_order = []
    if whole:
        labels = labels_of(observed, comparison)
        by_order = [error_pattern(observed), first_run_differs(observed, labels), changed_midway(observed, labels)]
    found = []
    for place, one in enumerate(observed):
        of_this = (runs_made_no_call(one.items, missing), *(findings.get(place) for findings in by_order))
        found.append(tuple(finding for finding in of_this if finding is not None))
    return found
