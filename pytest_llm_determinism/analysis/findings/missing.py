"""Runs that made no call where others did."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llm_determinism.analysis.findings.finding import Finding
from pytest_llm_determinism.analysis.groups import MissingCall, Outcome, runs_in_words


def runs_made_no_call(items: Sequence[Outcome], missing: Sequence[MissingCall]) -> Finding | None:
    """Which of an experiment's runs missed a call although nothing had parted them from those that made it.

    No test: an application that asks the same way in every run never shows it.

    Args:
        items: the experiment's runs.
        missing: what is missing over all experiments of the test.
    """
    own = {id(item) for item in items}
    for found in missing:
        absent = [item.run.index for item in found.missing if id(item) in own]
        if absent:
            return Finding(
                "runs-made-no-call",
                f"{runs_in_words(absent)} made no model call at step {found.step + 1}, where {len(found.made)} of"
                f" {len(found.made) + len(found.missing)} runs did, although nothing had parted them: an application's"
                " own cache (such as functools.cache) hides repeated calls; switch it off or clear it in the body",
            )
    return None
