"""Named explanations of why runs differ, or why a pass proves little, each with its evidence in numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llm_determinism.analysis.compare import LAXER, NAMED, Comparison, is_json
from pytest_llm_determinism.analysis.groups import Group, Outcome

TOKEN_LIMIT_REASONS = frozenset(("length", "max_tokens", "max_output_tokens"))


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    message: str


def findings(
    items: Sequence[Outcome], groups: Sequence[Group], requests: Mapping[str, str], comparison: Comparison
) -> tuple[Finding, ...]:
    """What one experiment shows.

    Args:
        requests: canonical requests by key, as many as were kept.
    """
    found = (
        _prompt_varies(items, requests),
        _sampling_on(items, requests, len(groups)),
        _not_json(groups, comparison),
        _formatting_only(groups, comparison),
        _degenerate_loop(groups),
        _truncated(items),
    )
    return tuple(finding for finding in found if finding is not None)


def load_sensitive(unique: Mapping[str, int], unique_over_all: int) -> Finding | None:
    """From the number of groups under each load, and over all of them together.

    It says that answers depend on what shares the server's batch, never why: a mixture of experts and
    batch-size-dependent kernels look alike from here.
    """
    if len(unique) < 2 or unique_over_all == 1:
        return None
    shown = ", ".join(f"{count} unique under {load}" for load, count in unique.items())
    if unique.get("solo") == 1 and any(count > 1 for count in unique.values()):
        return Finding("load-sensitive", f"the answers depend on what shares the server's batch: {shown}")
    if all(count == 1 for count in unique.values()):
        return Finding(
            "load-sensitive",
            f"each load is stable by itself, but they answer differently: {shown}, {unique_over_all} over all",
        )
    return None


def _prompt_varies(items: Sequence[Outcome], requests: Mapping[str, str]) -> Finding | None:
    """Runs that had been told the same so far, and then asked different things."""
    asked: dict[tuple[tuple[str, str], ...], dict[str, int]] = {}
    for item in items:
        told: tuple[tuple[str, str], ...] = ()
        for exchange in item.slots:
            if exchange is None:
                break
            counts = asked.setdefault(told, {})
            counts[exchange.request] = counts.get(exchange.request, 0) + 1
            told = (*told, exchange.told)
    for told, counts in sorted(asked.items(), key=lambda entry: len(entry[0])):
        if len(counts) < 2:
            continue
        known = [json.loads(requests[key])["body"] for key in counts if key in requests][:2]
        where = _first_difference(known[0], known[1], "") if len(known) == 2 else None
        detail = f"; they first differ at {where}" if where else ""
        return Finding(
            "prompt-varies",
            f"the test itself sent {len(counts)} different requests at step {len(told) + 1} in"
            f" {sum(counts.values())} runs{detail}",
        )
    return None


def _first_difference(one: Any, other: Any, path: str) -> str | None:
    """JSON path of the first difference between two values, None if they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            inner = f"{path}.{name}" if path else name
            if name not in one or name not in other:
                return inner
            found = _first_difference(one[name], other[name], inner)
            if found:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list):
        for number, (left, right) in enumerate(zip(one, other, strict=False)):
            found = _first_difference(left, right, f"{path}[{number}]")
            if found:
                return found
        return None if len(one) == len(other) else f"{path}[{min(len(one), len(other))}]"
    return None if one == other and type(one) is type(other) else path or "$"


def _sampling_on(items: Sequence[Outcome], requests: Mapping[str, str], unique: int) -> Finding | None:
    asked = {exchange.request for item in items for exchange in item.slots if exchange is not None}
    bodies = [json.loads(requests[key])["body"] for key in asked if key in requests]
    warm = {json.dumps(body["temperature"]) for body in bodies if body.get("temperature") not in (None, 0)}
    if warm:
        return Finding(
            "sampling-on",
            f"temperature is {', '.join(sorted(warm))}, so answers are drawn at random",
        )
    if unique > 1 and any(body.get("temperature") is None for body in bodies):
        return Finding("sampling-on", "no temperature is sent, so the provider's default applies, often 1")
    return None


def _not_json(groups: Sequence[Group], comparison: Comparison) -> Finding | None:
    if comparison.name != "json":
        return None
    runs = sum(group.count for group in groups if not all(is_json(part) for part in group.parts))
    if not runs:
        return None
    return Finding("not-json", f"compare=json, but {runs} runs answered something else; those were compared exactly")


def _formatting_only(groups: Sequence[Group], comparison: Comparison) -> Finding | None:
    if len(groups) < 2 or comparison.name not in NAMED:
        return None
    for name in LAXER:
        laxer = NAMED[name]
        if len({tuple([laxer(part) for part in group.parts]) for group in groups}) == 1:
            return Finding(
                "formatting-only",
                f"the {len(groups)} outputs are equal under compare={name}: they differ in form only",
            )
    return None


def _degenerate_loop(groups: Sequence[Group]) -> Finding | None:
    looping = sum(group.count for group in groups if any(_loops(part) for part in group.parts))
    total = sum(group.count for group in groups)
    if not looping:
        return None
    return Finding(
        "degenerate-loop",
        f"in {looping} of {total} runs the output ends by repeating itself, so a pass proves little:"
        " a model in a loop is stable whatever its arithmetic",
    )


LOOP_REPEATS = 4
"""Repetitions in a row before an output counts as a loop; with fewer, lists and refrains would."""

LOOP_WORDS = 12
"""Words a loop must fill at least, so that "no no no no" is none."""


def _loops(text: str) -> bool:
    """Whether the end of a text repeats one sequence of words."""
    words = text.split()[-512:]
    # The last word may be cut off by a token limit, so the loop is also looked for before it.
    for end in (len(words), len(words) - 1):
        for period in range(1, end // LOOP_REPEATS + 1):
            repeats = max(LOOP_REPEATS, -(-LOOP_WORDS // period))
            length = period * repeats
            # Most texts differ in the last word already.
            if length > end or words[end - 1] != words[end - 1 - period]:
                continue
            if words[end - length : end - period] == words[end - length + period : end]:
                return True
    return False


def _truncated(items: Sequence[Outcome]) -> Finding | None:
    last = [next((exchange for exchange in reversed(item.slots) if exchange is not None), None) for item in items]
    if not last or not all(exchange and _hit_the_limit(exchange.finish_reason) for exchange in last):
        return None
    return Finding(
        "truncated",
        f"all {len(last)} outputs hit the token limit: a fork may lie beyond it; allow more tokens",
    )


def _hit_the_limit(reason: str | None) -> bool:
    # The reasons of several choices are joined by commas.
    return reason is not None and TOKEN_LIMIT_REASONS.issuperset(reason.split(","))
