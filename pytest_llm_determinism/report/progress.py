"""How far a repetition is, in one line, while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llm_determinism.analysis.excerpt import columns
from pytest_llm_determinism.report.text import printable

LEAST_NAME = 16
"""Columns that a name is left with before anything else of the line goes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One experiment under way.

    Attributes:
        name: of the test, or of the model that is probed.
        experiment: its number, from 1, of so many (`experiments`) that are made of this test or in this probe.
        attempt: from 0, of so many (`attempts`).
        runs: how many are wanted.
        done: runs whose answers have arrived, whether or not the body has been executed for them yet.
        groups: those seen so far; None where that is not known yet.
        errors: runs that ended in an API error.
        live, cached, neighbours: calls that went out, answers taken from the store, and unrelated calls.
        seconds_left: until the last answer of this experiment, at the pace of the live calls so far; None before there
            is a pace.
    """

    name: str
    experiment: int
    experiments: int
    load: str
    attempt: int
    attempts: int
    runs: int
    done: int
    groups: int | None
    errors: int
    live: int
    cached: int
    neighbours: int
    seconds_left: float | None


def line(shown: Sequence[Progress], width: int | None = None) -> str:
    """What is under way (one or more experiments) in one line of at most `width` columns, safe for a terminal.

    A line that is too wide loses the beginning of the name, then the number of neighbours, then that of calls, then
    that of groups.
    """
    if len(shown) > 1:
        return _several(shown, width)
    (one,) = shown
    number = f"[{one.experiment}/{one.experiments}] " if one.experiments > 1 else ""
    load = f" under {one.load}" if one.experiments > 1 else ""
    attempt = f", attempt {one.attempt + 1}" if one.attempts > 1 else ""
    name = printable(one.name)
    runs = f"{one.done} of {one.runs} runs"
    seen = [*_count(one.groups, "group"), *_count(one.errors or None, "error")]
    left = _left(one.seconds_left)
    forms = (
        [runs, *seen, *_calls(shown), *left],
        [runs, *seen, *_calls(shown, short=True), *left],
        [runs, *seen, *left],
        [runs, *left],
        [runs],
    )
    for form in forms:
        rest = f"{load}{attempt}: {', '.join(form)}"
        room = None if width is None else width - columns(number) - columns(rest)
        if room is None or room >= min(LEAST_NAME, columns(name)):
            return number + _ending(name, room) + rest
    return _beginning(runs, width)


def _several(shown: Sequence[Progress], width: int | None) -> str:
    names = [f"{printable(one.name.partition('::')[2] or one.name)} {one.done} of {one.runs}" for one in shown]
    known = [one.seconds_left for one in shown if one.seconds_left is not None]
    tests = f"{len(shown)} tests: {', '.join(names)}"
    left = _left(max(known, default=None))
    for form in ([*_calls(shown), *left], [*_calls(shown, short=True), *left], left):
        rest = f"; {', '.join(form)}" if form else ""
        room = None if width is None else width - columns(rest)
        if room is None or room >= min(2 * LEAST_NAME, columns(tests)):
            return _beginning(tests, room) + rest
    return _beginning(tests, width)


def _count(number: int | None, what: str) -> list[str]:
    return [] if number is None else [f"{number} {what}{'' if number == 1 else 's'}"]


def _calls(shown: Sequence[Progress], short: bool = False) -> list[str]:
    live = sum(one.live for one in shown)
    cached = sum(one.cached for one in shown)
    neighbours = sum(one.neighbours for one in shown)
    beside = "".join(f" with {came}" for came in _count(neighbours or None, "neighbour"))
    asked = [f"{live} live" if short else f"{calls} live{beside}" for calls in _count(live or None, "call")]
    return [*asked, f"{cached} cached"] if cached else asked


def _left(seconds: float | None) -> list[str]:
    """How long it still takes, no more exactly than that is known."""
    if seconds is None:
        return []
    if seconds < 10:
        return ["seconds left"]
    if seconds < 95:
        return [f"about {round(seconds, -1):.0f} s left"]
    if seconds < 95 * 60:
        return [f"about {seconds / 60:.0f} min left"]
    return [f"about {seconds / 3600:.0f} h left"]


def _ending(text: str, room: int | None) -> str:
    """The end of a text, with "…" before it if something is left out."""
    if room is None or columns(text) <= room:
        return text
    while columns(text) >= max(1, room):
        text = text[1:]
    return f"…{text}"


def _beginning(text: str, room: int | None) -> str:
    """The beginning of a text, with "…" after it if something is left out."""
    if room is None or columns(text) <= room:
        return text
    while columns(text) >= max(1, room):
        text = text[:-1]
    return f"{text}…"
