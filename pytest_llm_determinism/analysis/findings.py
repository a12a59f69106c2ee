"""Named explanations of why runs differ, or why a pass proves little, each with its evidence in numbers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llm_determinism.analysis.compare import LAXER, NAMED, Comparison, is_json
from pytest_llm_determinism.analysis.groups import Group, Outcome, Slots
from pytest_llm_determinism.shapes.hooked import UNKNOWN_API

TOKEN_LIMIT_REASONS = frozenset(
    ("length", "max_tokens", "max_output_tokens", "error_limit", "model_context_window_exceeded")
)


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
        _finish_reason_varies(groups, items),
        _reasoning_varies(groups, items),
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
        bodies = [json.loads(requests[key])["body"] for key in counts if key in requests]
        paths = list(dict.fromkeys(path for other in bodies[1:] for path in _differences(bodies[0], other, "")))
        detail = f"; they first differ at {paths[0]}" if paths else ""
        if paths and all(map(_is_incidental, paths)):
            detail += f"; if that is no part of the question, leave it out with --determinism-ignore={','.join(paths)}"
        return Finding(
            "prompt-varies",
            f"the test itself sent {len(counts)} different requests at step {len(told) + 1} in"
            f" {sum(counts.values())} runs{detail}",
        )
    return None


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    """JSON paths at which two values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            inner = f"{path}.{name}" if path else name
            if name not in one or name not in other:
                yield inner
            else:
                yield from _differences(one[name], other[name], inner)
    elif isinstance(one, list) and isinstance(other, list):
        for number, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from _differences(left, right, f"{path}[{number}]")
        if len(one) != len(other):
            yield f"{path}[{min(len(one), len(other))}]"
    elif one != other or type(one) is not type(other):
        yield path or "$"


_INCIDENTAL_ROOTS = frozenset(
    ("metadata", "user", "safety_identifier", "prompt_cache_key", "labels", "requestMetadata", "client_metadata")
)
_INCIDENTAL_NAME = re.compile(
    r"(^|[_-])(trace|span|request|session|user|correlation|conversation|thread|tag|cache)([_-]?(id|key))$",
    re.IGNORECASE,
)


def _is_incidental(path: str) -> bool:
    """Whether a field is one of those that applications fill anew in each call: trace ids, user ids, cache keys."""
    *_, last = path.split(".")
    return re.split(r"[.\[]", path)[0] in _INCIDENTAL_ROOTS or _INCIDENTAL_NAME.search(last) is not None


def _sampling_on(items: Sequence[Outcome], requests: Mapping[str, str], unique: int) -> Finding | None:
    asked = {exchange.request for item in items for exchange in item.slots if exchange is not None}
    found = [json.loads(requests[key]) for key in asked if key in requests]
    degrees = [(request["api"], _temperature(request["body"])) for request in found]
    warm = {json.dumps(degree) for _, degree in degrees if degree not in (None, 0)}
    if warm:
        return Finding(
            "sampling-on",
            f"temperature is {', '.join(sorted(warm))}, so answers are drawn at random",
        )
    if unique > 1 and any(degree is None and api not in _WITHOUT_TEMPERATURE for api, degree in degrees):
        return Finding("sampling-on", "no temperature is sent, so the provider's default applies, often 1")
    return None


_WITHOUT_TEMPERATURE = frozenset(("embeddings", "text generation", UNKNOWN_API))
"""APIs that have none, decode greedily when none is sent, or of which we do not know."""


def _temperature(body: Mapping[str, Any]) -> Any:
    """The temperature a request asks for: at the top of the body, or among the options where an API keeps them."""
    if body.get("temperature") is not None:
        return body["temperature"]
    nested = (part.get("temperature") for part in body.values() if isinstance(part, dict))
    return next((degree for degree in nested if degree is not None), None)


def _finish_reason_varies(groups: Sequence[Group], items: Sequence[Outcome]) -> Finding | None:
    """Equal outputs that did not end for the same reason: an application that looks at it goes on differently."""
    by_run = {item.run.index: item.slots for item in items}
    for group in groups:
        reasons: Counter[str] = Counter()
        for slots, count in Counter(by_run[run] for run in group.runs).items():
            reasons[_reasons(slots)] += count
        if len(reasons) > 1:
            shown = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
            return Finding("finish-reason-varies", f"the same output ended for different reasons: {shown}")
    return None


def _reasons(slots: Slots) -> str:
    return "/".join(exchange.finish_reason or "no reason given" for exchange in slots if exchange is not None)


def _reasoning_varies(groups: Sequence[Group], items: Sequence[Outcome]) -> Finding | None:
    by_run = {item.run.index: item.output.reasoning for item in items}
    ways = max((len({by_run[run] for run in group.runs}) for group in groups), default=0)
    if ways < 2:
        return None
    return Finding(
        "reasoning-varies",
        f"{ways} different ways of reasoning led to the same output; reasoning is compared only by a compare callable"
        " that looks at output.reasoning",
    )


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
    return reason is not None and TOKEN_LIMIT_REASONS.issuperset(reason.lower().split(","))
