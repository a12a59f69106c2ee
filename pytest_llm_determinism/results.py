"""The versioned record that crosses processes and files: an experiment, a test, a report."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pytest_llm_determinism.analysis.divergence import Divergence
from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import Group
from pytest_llm_determinism.records import RecordError, check, decode, encode, field_place

SCHEMA_VERSION = 1
PACKAGE = "pytest-llm-determinism"


def _moment(text: str) -> None:
    try:
        known = datetime.datetime.fromisoformat(text).utcoffset() is not None
    except ValueError:
        known = False
    if not known:
        raise ValueError("a time in ISO 8601 with its zone")


def _verdict(text: str) -> None:
    from pytest_llm_determinism.verdict import VERDICTS

    if text not in VERDICTS:
        raise ValueError(f"one of {', '.join(VERDICTS)}")


def _settings(settings: dict[str, Any]) -> None:
    for name, told in settings.items():
        if not isinstance(told, dict) or "value" not in told or not isinstance(told.get("source"), str):
            raise RecordError("an object with value and source is wanted", field_place(name))
        wanted, fits = _READ_SETTINGS.get(name, ("", lambda value: True))
        if not fits(told["value"]):
            raise RecordError(f"{wanted} is wanted", f"{field_place(name)}.value")


def _is_texts(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(part, str) for part in value))


_READ_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_unique": ("a whole number from 1 to 2**53", lambda value: type(value) is int and 0 < value < 2**53),
    "override": ("null or a list of texts", _is_texts),
}
"""What readers of a result compute with; of other settings they show the value, whatever it is."""


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
    oldest_sample: Annotated[str, _moment] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them, over all answers; None where it did not."""

    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Money, by public list prices: spent on the live calls, and what the answers from the store would have cost."""

    live: float
    saved: float
    currency: str


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
        cost: None where it is not known; `unpriced` then says why, unless nobody asked for prices.
        error_messages: what went wrong in the runs counted by `errors`, with the runs.
        requests: SHA-256 (hexadecimal) of what was asked at each step, whichever server was asked; where runs asked
            several things, of these together.
        responses: likewise of what the application was told at each step.
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
    cost: Cost | None = None
    error_messages: tuple[BodyFailure, ...] = ()
    failures: tuple[BodyFailure, ...] = ()
    disagreement: float = 0.0
    new_output_chance: float = 1.0
    entropy: float = 0.0
    unpriced: str | None = None
    requests: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """``burst``, or ``burst, attempt 2`` for a repetition."""
        return self.load + (f", attempt {self.attempt + 1}" if self.attempt else "")

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = encode(self)
        return record

    @staticmethod
    def from_json(data: object) -> Experiment:
        """From the object of the JSON report.

        Raises:
            RecordError: it is damaged; says where.
        """
        return decode(Experiment, data)


@dataclass(frozen=True, slots=True)
class AnswerCount:
    """How many runs gave an answer in the baseline, and how many in this session; of its text the beginning."""

    output: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Shift:
    """The answers under one load beside those of the baseline, over all attempts.

    Attributes:
        chance: how likely one distribution is to give samples that differ as much (p-value of an exact test).
        replaced: whether there was one answer in all runs of both, and it is another now.
        answers: the most frequent first; `more` were left out.
    """

    load: str
    chance: float
    replaced: bool
    answers: tuple[AnswerCount, ...]
    more: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """A test's answers beside those of the baseline.

    Attributes:
        chance: the p-value over all loads; None where the answers cannot be compared.
        refused: why they cannot, in words; None where they can.
        shifts: for each load.
        backend: what the provider says of itself and is another now, each in words.
        overruled: whether a plugin decided the verdict, which then stands.
    """

    chance: float | None = None
    refused: str | None = None
    shifts: tuple[Shift, ...] = ()
    backend: tuple[str, ...] = ()
    overruled: bool = False

    @property
    def replaced(self) -> bool:
        return any(shift.replaced for shift in self.shifts)


@dataclass(frozen=True, slots=True)
class TestResult:
    """What became of one gated test.

    Attributes:
        verdict: ``passed``, ``nondeterministic``, ``inconclusive`` or ``drifted``.
        reason: in one line, as pytest's own summary shows it.
        unique: groups over all experiments together; `counts` their sizes, the largest first.
        settings: name → value and source.
        decided_by: the setting that decided, with its value and where that came from, if one did.
        advice: what to try next, in one line.
        drift: how the answers compare with those of the baseline, if it has any of this test.
        shard: in a merged report, where in its `Report.shards` the one stands that this came from.
    """

    __test__ = False

    nodeid: str
    verdict: Annotated[str, _verdict]
    reason: str
    unique: int
    settings: Annotated[dict[str, Any], _settings]
    experiments: tuple[Experiment, ...]
    counts: tuple[int, ...] = ()
    decided_by: str | None = None
    advice: str | None = None
    drift: Drift | None = None
    shard: int | None = None

    def changed(self, verdict: str) -> TestResult:
        """The same result with the verdict of a `pytest_determinism_verdict` hook."""
        reason = f"{self.reason}; a plugin changed the verdict from {self.verdict} to {verdict}"
        drift = None if self.drift is None else replace(self.drift, overruled=True)
        return replace(self, verdict=verdict, reason=reason, drift=drift)

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = encode(self)
        return record

    @staticmethod
    def from_json(data: object) -> TestResult:
        """From the object of the JSON report.

        Raises:
            RecordError: it is damaged; says where.
        """
        return decode(TestResult, data)


@dataclass(frozen=True, slots=True)
class Tool:
    """What made a report."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One of the reports that were merged, without its tests.

    Attributes:
        file: its name as it was given.
    """

    file: str
    tool: Tool
    created_at: Annotated[str, _moment]
    environment: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """The whole JSON report.

    Attributes:
        created_at: ISO 8601 in UTC.
        environment: what the tests ran in; hooks may add to it. In a merged report, what is the same in all `shards`.
        shards: the reports that were merged, if this was made of several.
    """

    schema_version: int
    tool: Tool
    created_at: Annotated[str, _moment]
    environment: dict[str, Any]
    tests: tuple[TestResult, ...]
    shards: tuple[Shard, ...] = ()


class ReportError(ValueError):
    """A file that cannot be read as a report; the message names it and says what is wrong with it."""


def report(tests: Sequence[TestResult], environment: dict[str, Any]) -> dict[str, Any]:
    """The whole JSON report, made now; times in it are ISO 8601 in UTC."""
    made: dict[str, Any] = encode(
        Report(
            SCHEMA_VERSION,
            Tool(PACKAGE, importlib.metadata.version(PACKAGE)),
            datetime.datetime.now(datetime.UTC).isoformat(),
            {"python": platform.python_version(), "platform": platform.platform(), **environment},
            tuple(tests),
        )
    )
    return made


def read(path: Path) -> dict[str, Any]:
    """The JSON report in a file, with all its fields, known to this version or not.

    Raises:
        ReportError: it is not there, no report, one of another `SCHEMA_VERSION`, or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ReportError(f"{path} is no report: its JSON is nested too deep") from None
    except ValueError as error:
        raise ReportError(f"{path} is no report, since it is not JSON: {error}") from None
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ReportError(
            f"{path} is no report: it has no schema_version; name a file that --determinism-report=FILE.json wrote"
        )
    version = data["schema_version"]
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise ReportError(
            f"{path} has schema_version {excerpt(str(version))}, and this version of {PACKAGE} reads"
            f" {SCHEMA_VERSION}; read it with the version that wrote it, or make the report again with this one"
        )
    try:
        check(data)
        _check_places(decode(Report, data))
    except RecordError as error:
        raise ReportError(f"{path} is damaged: {error}") from None
    return data


def _check_places(whole: Report) -> None:
    """See that what names a place in a list of the report names one that is there.

    Raises:
        RecordError: saying where one does not, or where something is counted that is not there.
    """
    for index, test in enumerate(whole.tests):
        place = f"$.tests[{index}]"
        if test.shard is not None and test.shard >= len(whole.shards):
            raise RecordError(f"there are {len(whole.shards)} shards", f"{place}.shard")
        if test.counts and not test.experiments:
            raise RecordError("there are no experiments", f"{place}.counts")
        if test.counts and "max_unique" not in test.settings:
            raise RecordError("is missing", f"{place}.settings.max_unique")
        for number, experiment in enumerate(test.experiments):
            _check_groups(experiment, f"{place}.experiments[{number}]")


def _check_groups(experiment: Experiment, place: str) -> None:
    for number, group in enumerate(experiment.groups):
        if not group.count:
            raise RecordError("a group has runs", f"{place}.groups[{number}].count")
    forks = [(experiment.divergence, f"{place}.divergence")]
    while forks:
        fork, place = forks.pop()
        if fork is None:
            continue
        if not fork.branches:
            raise RecordError("a fork has branches", f"{place}.branches")
        for number, branch in enumerate(fork.branches):
            here = f"{place}.branches[{number}]"
            if not branch.count:
                raise RecordError("a branch has runs", f"{here}.count")
            if any(group >= len(experiment.groups) for group in branch.groups):
                raise RecordError(f"there are {len(experiment.groups)} groups", f"{here}.groups")
            forks.append((branch.then, f"{here}.then"))
