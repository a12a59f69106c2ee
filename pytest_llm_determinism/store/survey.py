"""What a store holds, request by request: counts, ages and sizes, of all samples or of those that are wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from pytest_llm_determinism.store.contents import Contents, Row
from pytest_llm_determinism.store.request import StoredRequest
from pytest_llm_determinism.store.sample import Sample, SampleKey


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which samples are meant; what is empty or None leaves none out.

    Attributes:
        models: of requests that ask one of these.
        tests: asked for by one of these: node ids, or what they begin with (a file, a class, a test with all its
            parameters).
        loads: sampled under one of these.
        before: that arrived earlier, in seconds since the epoch.
    """

    models: Collection[str] = ()
    tests: Collection[str] = ()
    loads: Collection[str] = ()
    before: float | None = None

    @property
    def is_all(self) -> bool:
        return not (self.models or self.tests or self.loads or self.before is not None)

    def has_request(self, request: Asked) -> bool:
        if self.models and request.model not in self.models:
            return False
        return not self.tests or any(map(self.has_test, request.tests))

    def has_test(self, test: str) -> bool:
        return any(_is_of(test, wanted) for wanted in self.tests)

    def has_sample(self, key: SampleKey, sample: Sample) -> bool:
        return (not self.loads or key.load in self.loads) and (self.before is None or sample.at < self.before)


def _is_of(test: str, wanted: str) -> bool:
    """Whether a node id is what is wanted, or of it, as pytest takes node ids."""
    wanted = wanted.rstrip("/")
    rest = test.removeprefix(wanted)
    return test == wanted or (rest != test and rest.startswith(("::", "[", "/", "@")))


@dataclass(slots=True)
class Asked:
    """One request, with its samples in sum.

    Attributes:
        api, model, tests: as far as they are known; stores of older versions do not tell.
        runs: that have a sample, by load and attempt.
        size: bytes of the samples.
        oldest, newest: arrival, in seconds since the epoch.
    """

    request: str
    api: str | None = None
    model: str | None = None
    tests: tuple[str, ...] = ()
    samples: int = 0
    runs: Counter[tuple[str, int]] = field(default_factory=Counter)
    size: int = 0
    oldest: float = float("inf")
    newest: float = 0.0

    def add(self, key: SampleKey, sample: Sample, size: int) -> None:
        self.samples += 1
        # The first of several equal requests of a run stands for the run.
        self.runs[key.load, key.attempt] += key.occurrence == 0
        self.size += size
        self.oldest = min(self.oldest, sample.at)
        self.newest = max(self.newest, sample.at)


@dataclass(slots=True)
class Survey:
    """All requests that have samples which are wanted, and what else there is.

    Attributes:
        requests: by SHA-256.
        known: requests of which more than samples is kept, whether they are wanted or not.
        problems: rows with one, by kind, with the first of each.
    """

    requests: dict[str, Asked] = field(default_factory=dict)
    known: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(asked.samples for asked in self.requests.values())

    @property
    def size(self) -> int:
        return sum(asked.size for asked in self.requests.values())


def survey(contents: Contents, wanted: Wanted) -> Survey:
    found = Survey()
    told = {request: _told(request, known) for request, known in contents.requests()}
    found.known = len(told)
    for row in contents.rows():
        if row.problem:
            found.problems[row.problem] += 1
            found.examples.setdefault(row.problem, row.detail)
        elif isinstance(row.key, SampleKey) and isinstance(row.value, Sample):
            asked = told.get(row.key.request) or Asked(row.key.request)
            if wanted.has_request(asked) and wanted.has_sample(row.key, row.value):
                found.requests.setdefault(row.key.request, asked).add(row.key, row.value, row.size)
    return found


def _told(request: str, known: StoredRequest) -> Asked:
    return Asked(request, known.api, known.model, known.tests)


def rows_of(contents: Contents, requests: Collection[str], wanted: Wanted) -> Iterator[Row]:
    """The rows of the wanted samples of these requests."""
    for row in contents.rows():
        key, sample = row.key, row.value
        if isinstance(key, SampleKey) and isinstance(sample, Sample) and key.request in requests:
            yield from (row,) if wanted.has_sample(key, sample) else ()
