"""Several reports as one: shards of a CI matrix, or one session after another."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pytest_llm_determinism.report.markdown import WORST_FIRST
from pytest_llm_determinism.results import Report, TestResult, report

_KNOWN = frozenset(part.name for part in fields(Report))


@dataclass(frozen=True, slots=True)
class Found:
    """A test in one of the reports.

    Attributes:
        file: the report's.
        made_at: when the report was made, or the shard of it that the test came from.
        test: the JSON record, with its place among all shards.
    """

    file: str
    made_at: datetime.datetime
    test: dict[str, Any]

    @property
    def verdict(self) -> str:
        return str(self.test["verdict"])

    def strength(self) -> tuple[int, float, float]:
        """How much it says for the test; of several, the least counts: the worst verdict, then the lowest bound, then
        the newest."""
        experiments = TestResult.from_json(self.test).experiments
        bound = min((experiment.agreement_lower for experiment in experiments), default=0.0)
        return WORST_FIRST.index(self.verdict), bound, -self.made_at.timestamp()


@dataclass(frozen=True, slots=True)
class Choice:
    """Which result of a test was taken, and which were left."""

    taken: Found
    left: tuple[Found, ...]


def merge(reports: Sequence[tuple[str, dict[str, Any]]]) -> tuple[dict[str, Any], list[Choice]]:
    """One report of several.

    Fields that are not known stay as they are: a test keeps all of its own. A report's own (and the entries of its
    environment) stand in the merged one where all reports agree, and in `shards` in any case.

    Args:
        reports: files and what `results.read` made of them.

    Returns:
        The report, and a choice for each test that stands in several.
    """
    shards: list[dict[str, Any]] = []
    found: dict[str, list[Found]] = {}
    for file, whole in reports:
        first = len(shards)
        shards.extend(whole.get("shards") or [_shard(file, whole)])
        for test in whole["tests"]:
            place = first + (test.get("shard") or 0)
            made_at = datetime.datetime.fromisoformat(shards[place]["created_at"])
            found.setdefault(test["nodeid"], []).append(Found(file, made_at, {**test, "shard": place}))
    choices = {nodeid: _choice(candidates) for nodeid, candidates in found.items()}
    merged = {
        **report((), {}),
        "environment": agreed([whole["environment"] for _, whole in reports]),
        "tests": [choice.taken.test for choice in choices.values()],
        "shards": shards,
        **{name: value for name, value in agreed([whole for _, whole in reports]).items() if name not in _KNOWN},
    }
    return merged, [choice for choice in choices.values() if choice.left]


def _shard(file: str, whole: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in whole.items() if name not in ("schema_version", "tests", "shards")}
    return {**rest, "file": file}


def _choice(candidates: Sequence[Found]) -> Choice:
    taken = candidates[0] if len(candidates) == 1 else min(candidates, key=Found.strength)
    return Choice(taken, tuple(found for found in candidates if found is not taken))


def agreed(objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that all have with the same value."""
    first, *others = objects
    return {
        name: value for name, value in first.items() if all(name in other and other[name] == value for other in others)
    }
