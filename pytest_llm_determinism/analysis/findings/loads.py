"""Answers that depend on the load, and a load that was lighter than meant."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llm_determinism.analysis.findings.finding import Finding


def load_sensitive(unique: Mapping[str, int], unique_over_all: int) -> Finding | None:
    """From the number of groups under each load, and over all of them together.

    It says that answers depend on what shares the server's batch, never why: a mixture of experts and
    batch-size-dependent kernels look alike from here.
    """
    if len(unique) < 2 or unique_over_all == 1:
        return None
    shown = ", ".join(f"{count} unique under {load}" for load, count in unique.items())
    if unique.get("solo") == 1 and any(count > 1 for count in unique.values()):
        seen = f"the answers depend on what shares the server's batch: {shown}"
    elif all(count == 1 for count in unique.values()):
        seen = f"each load is stable by itself, but they answer differently: {shown}, {unique_over_all} over all"
    else:
        return None
    return Finding("load-sensitive", f"{seen}; ask for batch-invariant serving, or judge the load you serve under")


def neighbours_failed(calls: int, failures: int, example: str) -> Finding | None:
    """From the number of neighbours under ``crowd``, of those that failed, and what became of one of these."""
    if not failures:
        return None
    return Finding(
        "neighbours-failed",
        f"{failures} of {calls} neighbours failed ({example}), so the crowd was thinner than meant; ask for fewer with"
        " neighbours, or for less at once",
    )
