"""The versioned record that crosses processes and files: an experiment, a test, a report."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from pytest_llm_determinism.analysis.divergence import Divergence
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import Group

SCHEMA_VERSION = 1
PACKAGE = "pytest-llm-determinism"


@dataclass(frozen=True, slots=True)
class Step:
    """How many different requests and responses were seen at one step."""

    requests_unique: int
    responses_unique: int


@dataclass(frozen=True, slots=True)
class CallCount:
    """Calls asked live and answers found in the store; `oldest_sample` is ISO 8601 in UTC."""

    live: int
    cached: int
    oldest_sample: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them, over all answers; None where it did not."""

    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True)
class BodyFailure:
    """An exception of the test's own body, and the runs (of `load` and `attempt`) that ended in it."""

    error: str
    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Experiment:
    """K runs under one load. The attributes have the names of the JSON report.

    Attributes:
        runs: runs that were wanted (fewer were made if sampling stopped early).
        completed: runs that gave an output or could have; without those that ended in an API error.
        errors: runs that ended in an API error.
        unique: number of groups; `unique_raw` the number of outputs that differ in any character.
        agreement: share of the largest group.
        agreement_lower: lower bound of the chance that another call gives the most common answer, at `confidence`; runs
            that were wanted and gave no output count as disagreeing, except those that ended in an API error.
        disagreement: the chance that two different runs disagree.
        new_output_chance: the chance that the next run shows an output not seen yet.
        entropy: of the outputs seen, in bits.
        error_messages: what went wrong in the runs counted by `errors`, with the runs.
        seconds: wall time.
    """

    load: str
    attempt: int
    seed: int
    neighbour_calls: int
    runs: int
    completed: int
    errors: int
    unique: int
    unique_raw: int
    agreement: float
    agreement_lower: float
    confidence: float
    groups: tuple[Group, ...]
    divergence: Divergence | None
    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]
    calls: CallCount
    usage: Usage
    seconds: float
    cost: None = None
    error_messages: tuple[BodyFailure, ...] = ()
    failures: tuple[BodyFailure, ...] = ()
    disagreement: float = 0.0
    new_output_chance: float = 1.0
    entropy: float = 0.0

    @property
    def title(self) -> str:
        """``burst``, or ``burst, attempt 2`` for a repetition."""
        return self.load + (f", attempt {self.attempt + 1}" if self.attempt else "")

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = _record(self)
        return record

    @staticmethod
    def from_json(data: dict[str, Any]) -> Experiment:
        divergence = data["divergence"]
        return Experiment(
            **{
                **data,
                "groups": tuple(Group(**{**group, **_tuples(group)}) for group in data["groups"]),
                "divergence": divergence and Divergence.from_json(divergence),
                "findings": tuple(Finding(**finding) for finding in data["findings"]),
                "steps": tuple(Step(**step) for step in data["steps"]),
                "calls": CallCount(**data["calls"]),
                "usage": Usage(**data["usage"]),
                "error_messages": _body_failures(data["error_messages"]),
                "failures": _body_failures(data["failures"]),
            }
        )


@dataclass(frozen=True, slots=True)
class TestResult:
    """What became of one gated test.

    Attributes:
        verdict: ``passed``, ``nondeterministic`` or ``inconclusive``.
        reason: in one line, as pytest's own summary shows it.
        unique: groups over all experiments together; `counts` their sizes, the largest first.
        settings: name → value and source.
        decided_by: the setting that decided, with its value and where that came from, if one did.
        advice: what to try next, in one line.
    """

    __test__ = False

    nodeid: str
    verdict: str
    reason: str
    unique: int
    settings: dict[str, Any]
    experiments: tuple[Experiment, ...]
    counts: tuple[int, ...] = ()
    decided_by: str | None = None
    advice: str | None = None

    def changed(self, verdict: str) -> TestResult:
        """The same result with the verdict of a `pytest_determinism_verdict` hook."""
        reason = f"{self.reason}; a plugin changed the verdict from {self.verdict} to {verdict}"
        return replace(self, verdict=verdict, reason=reason)

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = _record(self)
        return record

    @staticmethod
    def from_json(data: dict[str, Any]) -> TestResult:
        return TestResult(
            **{
                **data,
                "experiments": tuple(Experiment.from_json(experiment) for experiment in data["experiments"]),
                "counts": tuple(data["counts"]),
            }
        )


def _record(value: Any) -> Any:
    """A result as what JSON knows. Not `dataclasses.asdict`: that copies every run's index one by one."""
    if is_dataclass(value):
        return {part.name: _record(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, tuple):
        return [_record(part) for part in value] if value and is_dataclass(value[0]) else list(value)
    return value


def _tuples(data: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(value) for name, value in data.items() if isinstance(value, list)}


def _body_failures(data: list[dict[str, Any]]) -> tuple[BodyFailure, ...]:
    return tuple(BodyFailure(failure["error"], tuple(failure["runs"])) for failure in data)


def report(tests: list[TestResult], environment: dict[str, Any]) -> dict[str, Any]:
    """The whole JSON report, made now; times in it are ISO 8601 in UTC."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": PACKAGE, "version": importlib.metadata.version(PACKAGE)},
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "environment": {"python": platform.python_version(), "platform": platform.platform(), **environment},
        "tests": [test.to_json() for test in tests],
    }
