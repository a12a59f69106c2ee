"""What a suite will ask, reckoned from what an earlier report tells of the same tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llm_determinism.analysis.statistics import agreement_lower


@dataclass(frozen=True, slots=True)
class Planned:
    """A gated test before it is run.

    Attributes:
        settings: in force for it, by name.
    """

    nodeid: str
    settings: Mapping[str, Any]

    @property
    def experiments(self) -> int:
        return int(self.settings["attempts"]) * len(self.settings["load"])

    @property
    def runs(self) -> int:
        """In all experiments together."""
        return int(self.settings["runs"]) * self.experiments

    def shown_by_a_pass(self) -> float:
        """The least bound on the chance that another call agrees with which the test can pass."""
        settings = self.settings
        confidence, wanted = settings["confidence"] or 0.95, settings["min_agreement"] or 0.0
        # Runs that ended in an API error are no trials.
        runs = max(int(settings["runs"]) - settings["max_errors"], 1)
        most_common = max(math.ceil(runs / settings["max_unique"]), math.ceil(runs * wanted))
        bound = agreement_lower([most_common], confidence, runs)
        return max(bound, wanted) if settings["confidence"] else bound


@dataclass(frozen=True, slots=True)
class Known:
    """What an earlier report tells of a test; None for what it does not.

    Attributes:
        calls: answers a run was given, live or from the store.
        neighbours: neighbours a live call under ``crowd``.
        input_tokens, output_tokens: an answer.
        seconds: a run, by load, where all answers were live.
        price: an answer, in `currency`; `unpriced` why it is not known, if the report says so.
    """

    calls: float
    neighbours: float | None
    input_tokens: float | None
    output_tokens: float | None
    seconds: Mapping[str, float]
    price: float | None
    currency: str | None
    unpriced: str | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one test will ask and take with an empty store; None for what is not known.

    Attributes:
        calls: at least, where `assumed`: nothing is known, and each run asks something.
        neighbours: under ``crowd``, on top of the calls; 0 under other loads.
        seconds: one experiment after the other.
    """

    planned: Planned
    calls: int
    assumed: bool
    neighbours: int | None
    input_tokens: int | None
    output_tokens: int | None
    seconds: float | None
    price: float | None
    currency: str | None
    unpriced: str | None


def known(test: Mapping[str, Any]) -> Known | None:
    """What a test's record in a JSON report tells; None where no run was made."""
    experiments = test["experiments"]
    runs = sum(map(_runs, experiments))
    answers = sum(map(_answers, experiments))
    if not runs:
        return None
    crowds = [made for made in experiments if made["load"] == "crowd"]
    live = sum(made["calls"]["live"] for made in crowds)
    costs = [made.get("cost") for made in experiments]
    currencies = {cost["currency"] for cost in costs if cost is not None}
    priced = None not in costs and len(currencies) == 1
    return Known(
        calls=answers / runs,
        neighbours=sum(made["neighbour_calls"] for made in crowds) / live if live else None,
        input_tokens=_each([made["usage"]["input_tokens"] for made in experiments], answers),
        output_tokens=_each([made["usage"]["output_tokens"] for made in experiments], answers),
        seconds=_seconds(experiments),
        price=_each([cost["live"] + cost["saved"] for cost in costs], answers) if priced else None,
        currency=currencies.pop() if priced else None,
        unpriced=next(filter(None, (made.get("unpriced") for made in experiments)), None),
    )


def _runs(made: Mapping[str, Any]) -> int:
    return int(made["completed"] + made["errors"])


def _answers(made: Mapping[str, Any]) -> int:
    return int(made["calls"]["live"] + made["calls"]["cached"])


def _each(amounts: Sequence[float | None], answers: int) -> float | None:
    if not answers:
        return 0.0
    there = [amount for amount in amounts if amount is not None]
    return sum(there) / answers if len(there) == len(amounts) else None


def _seconds(experiments: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    times: dict[str, tuple[float, int]] = {}
    for made in experiments:
        if _runs(made) and not made["calls"]["cached"]:
            seconds, runs = times.get(made["load"], (0.0, 0))
            times[made["load"]] = seconds + made["seconds"], runs + _runs(made)
    return {load: seconds / runs for load, (seconds, runs) in times.items()}


def forecast(planned: Planned, told: Known | None) -> Forecast:
    """What a test will ask, given what is known of it."""
    loads = planned.settings["load"]
    under_each = planned.runs // len(loads)
    neighbours: int | None = None if "crowd" in loads else 0
    if told is None:
        return Forecast(planned, planned.runs, True, neighbours, None, None, None, None, None, None)
    calls = math.ceil(planned.runs * told.calls)
    if "crowd" in loads and told.neighbours is not None:
        neighbours = math.ceil(under_each * told.calls * told.neighbours)
    seconds = None
    if told.seconds.keys() >= set(loads):
        seconds = sum(under_each * told.seconds[load] for load in loads)
    return Forecast(
        planned,
        calls,
        False,
        neighbours,
        _times(told.input_tokens, calls),
        _times(told.output_tokens, calls),
        seconds,
        None if told.price is None else told.price * calls,
        told.currency,
        told.unpriced,
    )


def _times(each: float | None, calls: int) -> int | None:
    return None if each is None else round(each * calls)
