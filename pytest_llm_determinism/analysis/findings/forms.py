"""Answers that differ in their form only, or that are not of the form that is compared."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llm_determinism.analysis.compare import LAXER, NAMED, Comparison, RunOutput, is_json, resolve
from pytest_llm_determinism.analysis.findings.finding import Finding
from pytest_llm_determinism.analysis.groups import Group, Outcome


def formatting_only(groups: Sequence[Group], items: Sequence[Outcome], comparison: Comparison) -> Finding | None:
    """Groups that are one under a laxer comparison, of which the least lax is named."""
    if len(groups) < 2 or comparison.name not in NAMED:
        return None
    by_run = {item.run.index: item.output for item in items}
    outputs: list[RunOutput] = [by_run[group.runs[0]] for group in groups]
    for name in LAXER:
        laxer = resolve(name)
        first = laxer.key(outputs[0])
        if all(laxer.key(output) == first for output in outputs[1:]):
            return Finding(
                "formatting-only",
                f"the {len(groups)} outputs are equal under compare={name}: they differ in form only; choose that"
                " comparison if form does not matter to you",
            )
    return None


def not_json(items: Sequence[Outcome], comparison: Comparison) -> Finding | None:
    """Outputs that are not JSON where JSON is compared."""
    if comparison.name != "json":
        return None
    # Equal outputs are one object, so each is read once.
    outputs = {id(item.output): item.output for item in items}
    other = {key for key, output in outputs.items() if not is_json(output)}
    runs = sum(id(item.output) in other for item in items)
    if not runs:
        return None
    return Finding(
        "not-json",
        f"compare=json, but {runs} of {len(items)} runs answered something else, which was compared exactly; ask the"
        " model for JSON and nothing else (response_format), or choose another comparison",
    )
