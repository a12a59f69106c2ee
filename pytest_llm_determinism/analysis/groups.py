"""Outputs and groups: what each run is compared by, and which runs are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from pytest_llm_determinism.analysis.compare import Comparison, RunOutput, form
from pytest_llm_determinism.runs import Exchange, Run

Slots = tuple[Exchange | None, ...]
"""A run's exchanges in the order of the first run, None where the run did not make a call that others made."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run with its exchanges in order and its output."""

    run: Run
    slots: Slots
    output: RunOutput


@dataclass(frozen=True, slots=True)
class Group:
    """The runs whose outputs are the same under the comparison in force.

    Attributes:
        output: of the first of its runs.
        sha256: of that output in UTF-8, hexadecimal.
        runs: their indices, ascending.
        fingerprints, models: what the backend said of itself, sorted.
        parts: the output step by step.
        reasoning: what the model thought aloud in the first of its runs.
        form: SHA-256 (hexadecimal) of what its outputs are compared by, the same in every session; empty where a
            comparison returns what only one process can compare.
    """

    count: int
    output: str
    sha256: str
    runs: tuple[int, ...]
    fingerprints: tuple[str, ...]
    models: tuple[str, ...]
    parts: tuple[str, ...]
    reasoning: str = ""
    form: str = ""


def outcomes(runs: Sequence[Run], first: Run) -> list[Outcome]:
    """The runs that got through, with their outputs, in the order of `runs`.

    A run's output is what it recorded, if any run recorded something, else the outputs of its exchanges. Equal
    outputs with equal reasoning are one object.
    """
    recorded = any(run.recorded for run in runs)
    known: dict[Hashable, RunOutput] = {}
    seen: dict[tuple[Exchange, ...], Slots] = {}
    result = []
    for run in runs:
        if run.error is not None:
            continue
        slots = seen.get(run.exchanges)
        if slots is None:
            slots = seen.setdefault(run.exchanges, in_order_of(first, run))
        made = [exchange for exchange in slots if exchange is not None]
        parts = run.recorded if recorded else tuple([exchange.output for exchange in made])
        calls = () if recorded else tuple([exchange.tool_calls for exchange in made])
        reasoning = "\n".join([exchange.reasoning for exchange in made if exchange.reasoning])
        output = known.get((parts, calls, reasoning))
        if output is None:
            output = known.setdefault((parts, calls, reasoning), RunOutput(parts, reasoning, calls))
        result.append(Outcome(run, slots, output))
    return result


def in_order_of(first: Run, run: Run) -> Slots:
    """A run's exchanges, put where the first run made the same request.

    Applications send several requests at once, and their order then means nothing. A request that the first run did
    not make (a prompt that varies) takes the place of one that this run did not make, in the order they were
    started; what is left over comes last.
    """
    places = {(exchange.request, exchange.occurrence): number for number, exchange in enumerate(first.exchanges)}
    slots: list[Exchange | None] = [None] * len(first.exchanges)
    rest = []
    for exchange in run.exchanges:
        number = places.get((exchange.request, exchange.occurrence))
        if number is None:
            rest.append(exchange)
        else:
            slots[number] = exchange
    free = [number for number, exchange in enumerate(slots) if exchange is None]
    for number, exchange in zip(free, rest, strict=False):
        slots[number] = exchange
    slots.extend(rest[len(free) :])
    while slots and slots[-1] is None:
        slots.pop()
    return tuple(slots)


def group(items: Sequence[Outcome], comparison: Comparison) -> list[Group]:
    """Groups, the largest first, of equal size the one with the earliest run first."""
    members: dict[Hashable, list[Outcome]] = {}
    exact: dict[int, Hashable] = {}
    for item in items:
        # Equal outputs are one object, so each is normalised once, however many runs gave it.
        key = exact.get(id(item.output))
        if key is None:
            key = exact.setdefault(id(item.output), comparison.key(item.output))
        members.setdefault(key, []).append(item)
    made = [_group(found, form(key)) for key, found in members.items()]
    return sorted(made, key=lambda group: (-group.count, group.runs[0]))


def _group(members: list[Outcome], form: str) -> Group:
    output = members[0].output
    exchanges = {exchange for slots in {item.slots for item in members} for exchange in slots if exchange}
    return Group(
        count=len(members),
        output=str(output),
        sha256=hashlib.sha256(output.encode("utf-8", "surrogatepass")).hexdigest(),
        runs=tuple(item.run.index for item in members),
        fingerprints=tuple(sorted({exchange.fingerprint for exchange in exchanges if exchange.fingerprint})),
        models=tuple(sorted({exchange.model for exchange in exchanges if exchange.model})),
        parts=output.parts,
        reasoning=output.reasoning,
        form=form,
    )


@dataclass(frozen=True, slots=True)
class MissingCall:
    """Runs that made a call, and runs that did not although nothing had parted them.

    Attributes:
        step: 0-based.
        made, missing: the runs that did and that did not.
    """

    step: int
    made: tuple[Outcome, ...]
    missing: tuple[Outcome, ...]


def missing_calls(items: Sequence[Outcome]) -> Iterator[MissingCall]:
    """The steps that some runs made and others did not although all they had been told before was the same.

    The earliest step comes first, and a run is missed once at most. Runs whose body broke off are left out: they had a
    reason.
    """
    alike: list[list[Outcome]] = [[item for item in items if not item.run.broken_off]]
    step = 0
    while alike:
        following: list[list[Outcome]] = []
        for together in alike:
            branches: dict[tuple[str, str] | None, list[Outcome]] = {}
            for item in together:
                exchange = item.slots[step] if step < len(item.slots) else None
                branches.setdefault(exchange.told if exchange else None, []).append(item)
            missing = branches.pop(None, [])
            if missing and branches:
                made = [item for branch in branches.values() for item in branch]
                yield MissingCall(step, tuple(sorted(made, key=lambda item: item.run.index)), tuple(missing))
            elif any(len(item.slots) > step for item in missing):
                branches[None] = missing  # a call that only runs which are left out made; a later one may tell
            following.extend(branch for branch in branches.values() if len(branch) > 1)
        alike = following
        step += 1


def runs_in_words(indices: Sequence[int]) -> str:
    """``runs 4, 11, 29``; of many the first are shown."""
    shown = ", ".join(map(str, indices[:8])) + (", …" if len(indices) > 8 else "")
    return f"run{'s' if len(indices) > 1 else ''} {shown}"
