"""What the test itself asked: requests that vary, answers that are drawn at random."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_llm_determinism.analysis.findings.finding import Finding
from pytest_llm_determinism.analysis.groups import Outcome
from pytest_llm_determinism.shapes.hooked import UNKNOWN_API


def prompt_varies(items: Sequence[Outcome], requests: Mapping[str, str]) -> Finding | None:
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
        else:
            detail += "; send the same in every run"
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


def sampling_on(items: Sequence[Outcome], requests: Mapping[str, str], unique: int) -> Finding | None:
    asked = {exchange.request for item in items for exchange in item.slots if exchange is not None}
    found = [json.loads(requests[key]) for key in asked if key in requests]
    degrees = [(request["api"], _temperature(request["body"])) for request in found]
    warm = {json.dumps(degree) for _, degree in degrees if degree not in (None, 0)}
    if warm:
        return Finding(
            "sampling-on",
            f"temperature is {', '.join(sorted(warm))}, so answers are drawn at random; send temperature=0",
        )
    if unique > 1 and any(degree is None and api not in _WITHOUT_TEMPERATURE for api, degree in degrees):
        return Finding(
            "sampling-on", "no temperature is sent, so the provider's default applies, often 1; send temperature=0"
        )
    return None


_WITHOUT_TEMPERATURE = frozenset(("embeddings", "text generation", UNKNOWN_API))
"""APIs that have none, decode greedily when none is sent, or of which we do not know."""


def _temperature(body: Mapping[str, Any]) -> Any:
    """The temperature a request asks for: at the top of the body, or among the options where an API keeps them."""
    if body.get("temperature") is not None:
        return body["temperature"]
    nested = (part.get("temperature") for part in body.values() if isinstance(part, dict))
    return next((degree for degree in nested if degree is not None), None)
