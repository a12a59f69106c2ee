"""One experiment's runs put together: groups, statistics, divergence, findings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pytest_llm_determinism.analysis.compare import Comparison
from pytest_llm_determinism.analysis.divergence import divergence, ways
from pytest_llm_determinism.analysis.findings import findings
from pytest_llm_determinism.analysis.groups import Outcome, group
from pytest_llm_determinism.analysis.statistics import (
    agreement,
    agreement_lower,
    disagreement,
    entropy,
    new_output_chance,
)
from pytest_llm_determinism.results import BodyFailure, CallCount, Experiment, Step, Usage
from pytest_llm_determinism.runs import Exchange, Run
from pytest_llm_determinism.shapes.request import question


def experiment(
    *,
    load: str,
    attempt: int,
    seed: int,
    wanted: int,
    runs: Sequence[Run],
    items: Sequence[Outcome],
    requests: Mapping[str, str],
    comparison: Comparison,
    confidence: float,
    calls: CallCount,
    neighbour_calls: int,
    seconds: float,
    failures: Sequence[tuple[int, str]],
) -> Experiment:
    """Analyse the runs of one experiment.

    Args:
        wanted: runs that were asked for.
        items: the runs without those that ended in an API error, with their outputs.
        requests: canonical requests by key.
        failures: exceptions of the body, as run index and text.
    """
    heard = [item for item in items if item.output.parts]
    groups = group(heard, comparison)
    counts = [found.count for found in groups]
    errors = sum(run.error is not None for run in runs)
    return Experiment(
        load=load,
        attempt=attempt,
        seed=seed,
        neighbour_calls=neighbour_calls,
        runs=wanted,
        completed=len(items),
        errors=errors,
        unique=len(groups),
        unique_raw=len({item.output.parts for item in heard}),
        agreement=agreement(counts),
        agreement_lower=agreement_lower(counts, confidence, wanted - errors),
        confidence=confidence,
        groups=tuple(groups),
        divergence=divergence(ways(groups, heard, comparison)),
        findings=findings(heard, groups, requests, comparison),
        steps=_steps(items),
        calls=calls,
        usage=_usage(items),
        seconds=seconds,
        error_messages=_by_kind((run.index, run.error) for run in runs if run.error is not None),
        failures=_by_text(failures),
        disagreement=disagreement(counts),
        new_output_chance=new_output_chance(counts),
        entropy=entropy(counts),
        requests=_each_step(items, _questions(requests)),
        responses=_each_step(items, lambda exchange: _in_one(exchange.told)),
    )


def _steps(items: Sequence[Outcome]) -> tuple[Step, ...]:
    requests: list[set[str]] = []
    responses: list[set[str]] = []
    for slots in {item.slots for item in items}:
        for number, exchange in enumerate(slots):
            if number == len(requests):
                requests.append(set())
                responses.append(set())
            if exchange is not None:
                requests[number].add(exchange.request)
                responses[number].add(exchange.output)
    return tuple(Step(len(asked), len(answered)) for asked, answered in zip(requests, responses, strict=True))


def _each_step(items: Sequence[Outcome], what: Callable[[Exchange], str]) -> tuple[str, ...]:
    """What all runs have at each step; where they have several things, the SHA-256 of these."""
    seen: list[set[str]] = []
    for slots in {item.slots for item in items}:
        seen.extend(set() for _ in range(len(seen), len(slots)))
        for number, exchange in enumerate(slots):
            if exchange is not None:
                seen[number].add(what(exchange))
    return tuple(next(iter(found)) if len(found) == 1 else _in_one(sorted(found)) for found in seen)


def _questions(requests: Mapping[str, str]) -> Callable[[Exchange], str]:
    known = {key: question(canonical) for key, canonical in requests.items()}
    # Of many different requests only the first are kept, and those are another in each session anyway.
    return lambda exchange: known.get(exchange.request, exchange.request)


def _in_one(texts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _usage(items: Sequence[Outcome]) -> Usage:
    exchanges: list[Exchange] = [exchange for item in items for exchange in item.slots if exchange is not None]
    sent = [exchange.input_tokens for exchange in exchanges if exchange.input_tokens is not None]
    received = [exchange.output_tokens for exchange in exchanges if exchange.output_tokens is not None]
    return Usage(sum(sent) if sent else None, sum(received) if received else None)


_VARIABLE = re.compile(r"\S*\d\S*")
"""Words of an error that differ from call to call: ids, times, counts."""


def _by_kind(errors: Iterable[tuple[int, str]]) -> tuple[BodyFailure, ...]:
    """API errors with their runs; those that differ in nothing but ids and numbers are told by the first of them."""
    runs: dict[tuple[str, str], tuple[str, list[int]]] = {}
    for index, text in errors:
        name, _, rest = text.partition(":")
        runs.setdefault((name, _VARIABLE.sub("", rest)), (text, []))[1].append(index)
    return tuple(BodyFailure(text, tuple(indices)) for text, indices in runs.values())


def _by_text(failures: Iterable[tuple[int, str]]) -> tuple[BodyFailure, ...]:
    runs: dict[str, list[int]] = {}
    for index, text in failures:
        runs.setdefault(text, []).append(index)
    return tuple(BodyFailure(text, tuple(indices)) for text, indices in runs.items())
