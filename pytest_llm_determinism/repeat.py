"""K runs of a body, under each load and attempt, to experiments and a verdict."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from traceback import walk_tb
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_llm_determinism.analysis.compare import Comparison
from pytest_llm_determinism.analysis.findings import Finding, Observed, load_sensitive, neighbours_failed, over_all
from pytest_llm_determinism.analysis.groups import MissingCall, Outcome, group, missing_calls, outcomes
from pytest_llm_determinism.analysis.statistics import agreement_lower
from pytest_llm_determinism.bill import Bill
from pytest_llm_determinism.crowd import NeighbourCount
from pytest_llm_determinism.experiment import experiment
from pytest_llm_determinism.observe import active, observing
from pytest_llm_determinism.observe.unseen import Unseen, noting
from pytest_llm_determinism.pricing import cost
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.results import CallCount, Experiment, TestResult
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import Plan, Sampler, seed_of
from pytest_llm_determinism.session import Session
from pytest_llm_determinism.settings import Settings
from pytest_llm_determinism.underway import Underway
from pytest_llm_determinism.verdict import INCONCLUSIVE, Evidence, against_baseline, judge

if TYPE_CHECKING:
    from pytest_llm_determinism.subtests import Subtest


class SubtestsFailed(Exception):
    """What a body ends in that went on after failures of its subtests, with what it raised itself."""

    def __init__(self, subtests: Sequence[Subtest], own: BaseException | None) -> None:
        super().__init__(f"{len(subtests)} failed subtests")
        self.subtests = subtests
        self.own = own


@dataclass(slots=True)
class Failure:
    """An exception of the body: of one type raised at one place, or with one text; the first is kept as an object."""

    error: BaseException
    text: str
    runs: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    """(load, attempt) → indices of the runs that ended in it."""
    varies: bool = False
    """Whether the text was another in some of these runs, as that of an assertion that quotes the answer."""
    subtest: Subtest | None = None
    """The subtest that it ended, if it did not end the body."""

    @property
    def name(self) -> str | None:
        return None if self.subtest is None else self.subtest.name


@dataclass(slots=True)
class _Sampled:
    """The runs of one experiment, before analysis."""

    plan: Plan
    calls: CallCount
    requests: dict[str, str]
    bill: Bill
    runs: list[Run] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[Hashable] = field(default_factory=Counter)
    """Runs by what they are compared by, kept under `fail_fast`."""
    neighbours: NeighbourCount = field(default_factory=NeighbourCount)
    seconds: float = 0.0


class Repeater:
    """Runs a body as often as the settings say, and judges what it saw.

    Args:
        is_failure: whether an exception of the body is a failure of one run, so that the others are still made; every
            other exception ends them. Its second argument says whether any run was finished before.
        name: of the test, which is kept with its samples.
        shown: what is shown of it while it goes on, if not its name.
        among: see `Underway`.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        comparison: Comparison,
        is_failure: Callable[[BaseException, bool], bool] = lambda error, _: isinstance(error, Exception),
        name: str = "",
        shown: str | None = None,
        among: tuple[int, int] | None = None,
    ) -> None:
        self.settings = settings
        self.failures: dict[object, Failure] = {}
        self.refusal: str | None = None
        self._session = session
        self._name = name
        self._comparison = comparison
        self._is_failure = is_failure
        self._sampled: list[_Sampled] = []
        self._counts: Counter[Hashable] = Counter()
        self._first: Run | None = None
        self._unseen = Unseen()
        self._underway = Underway(name if shown is None else shown, settings, comparison, among)

    def run(self, body: Callable[[], object]) -> None:
        with contextlib.closing(self.runs()) as scopes:
            for scope in scopes:
                with scope:
                    body()

    async def run_async(self, body: Callable[[], Awaitable[object]]) -> None:
        with contextlib.closing(self.runs()) as scopes:
            for scope in scopes:
                with scope:
                    await body()

    def runs(self) -> Generator[_RunScope]:
        """One scope a run, to be entered around the body."""
        with self._session.showing(self._underway.look):
            for attempt in range(self.settings.attempts):
                for load in self.settings.load:
                    yield from self._experiment(load, attempt)
                    if self._is_over():
                        return

    def _experiment(self, load: str, attempt: int) -> Generator[_RunScope]:
        settings = self.settings
        plan = self._session.plan(settings, load, attempt, settings.runs, seed_of(load, attempt), self._name)
        sampler = Sampler(plan, self._session.store(settings), self._session.budget)
        sampled = _Sampled(plan, CallCount(0, 0, None), sampler.requests, sampler.bill)
        self._sampled.append(sampled)
        self._underway.begin(sampler, sampled.runs)
        started = time.perf_counter()
        try:
            with self._admitted(load), observing(sampler), noting(self._unseen):
                for index in range(plan.runs):
                    yield _RunScope(self, sampler, sampled, index)
                    if self._is_over():
                        return
        finally:
            sampled.seconds = time.perf_counter() - started
            calls = sampler.calls
            sampled.calls = CallCount(calls.live, calls.cached, calls.oldest_sample())
            if sampler.crowd is not None:
                sampled.neighbours = sampler.crowd.count

    def _admitted(self, load: str) -> contextlib.AbstractContextManager[None]:
        # Within a run of another experiment (determinism.repeat in a marked body) what that one holds is enough.
        nested = active.sampler is not None
        return contextlib.nullcontext() if nested else self._session.admitted(self.settings, load)

    def is_failure(self, error: BaseException) -> bool:
        return self._is_failure(error, self._first is not None)

    def _finished(self, sampled: _Sampled, run: Run) -> None:
        sampled.runs.append(run)
        self._first = self._first or run
        if self.settings.fail_fast:
            for item in outcomes([run], self._first):
                key = self._comparison.key(item.output)
                self._counts[key] += 1
                sampled.counts[key] += 1

    def _failed(self, sampled: _Sampled, index: int, error: BaseException, subtest: Subtest | None = None) -> None:
        if isinstance(error, SubtestsFailed):
            for failed in error.subtests:
                self._failed(sampled, index, failed.error, failed)
            if error.own is not None:
                self._failed(sampled, index, error.own)
            return
        name = None if subtest is None else subtest.name
        text = f"{type(error).__name__}: {error}"
        sampled.failures.append((index, text if name is None else f"{name}: {text}"))
        place = (name, type(error), tuple((frame.f_code, line) for frame, line in walk_tb(error.__traceback__)))
        same = (failure for failure in self.failures.values() if (failure.name, failure.text) == (name, text))
        failure = next(same, None) or self.failures.setdefault(place, Failure(error, text, subtest=subtest))
        failure.varies |= failure.text != text
        runs = failure.runs.setdefault((sampled.plan.load, sampled.plan.attempt), [])
        # One subtest may fail several times in one run.
        if index not in runs[-1:]:
            runs.append(index)

    def _is_over(self) -> bool:
        """Whether further runs cannot change what becomes of the test."""
        settings = self.settings
        if self.refusal is not None:
            return True
        if not settings.fail_fast:
            return False
        errors = max(sum(run.error is not None for run in sampled.runs) for sampled in self._sampled)
        if self.failures or len(self._counts) > settings.max_unique or errors > settings.max_errors:
            return True
        # An experiment of one run would be judged by that alone.
        if settings.min_agreement is None or self._sampled[-1].counts.total() < 2:
            return False
        wanted = settings.runs * settings.attempts * len(settings.load)
        return self._out_of_reach(self._counts, wanted) or any(
            self._out_of_reach(sampled.counts, settings.runs) for sampled in self._sampled
        )

    def _out_of_reach(self, counts: Counter[Hashable], wanted: int) -> bool:
        """Whether `min_agreement` would not be met even if all runs to come were like most of those made."""
        settings = self.settings
        most = wanted - counts.total() + max(counts.values(), default=0)
        confidence = settings.confidence
        reached = most / wanted if confidence is None else agreement_lower([most], confidence, wanted)
        return bool(reached < settings.min_agreement)

    # What it showed

    def experiments(self) -> tuple[Experiment, ...]:
        items = [self._outcomes(sampled) for sampled in self._sampled]
        return self._all_analysed(items, list(missing_calls([item for found in items for item in found])))

    def result(self, nodeid: str) -> TestResult:
        """The verdict over all experiments."""
        settings = self.settings
        baseline = self._session.baseline
        if baseline is not None and self._first is not None:
            self._first = baseline.in_order(nodeid, self._first, self._sampled[0].requests)
        items = [self._outcomes(sampled) for sampled in self._sampled]
        together = [item for found in items for item in found]
        heard = [item for item in together if item.output.parts]
        groups = group(heard, self._comparison)
        missing = list(missing_calls(together))
        experiments = self._all_analysed(items, missing)
        experiments = _with_load_finding(experiments, self._unique_under_loads(items), len(groups))
        short = {id(item) for found in missing for item in found.missing}
        evidence = Evidence(
            experiments=experiments,
            counts=[found.count for found in groups],
            parted=len(group([item for item in heard if id(item) not in short], self._comparison)),
            missing=missing[0] if missing else None,
            silent=[item for item in together if not item.output.parts and not item.run.broken_off],
            refusal=self.refusal,
            titles=_titles(experiments, items) if len(experiments) > 1 else {},
            passed=tuple(self._unseen.requests),
            unseen=self._unseen.clauses(),
        )
        verdict = judge(settings, evidence)
        drift = None if baseline is None or verdict.verdict == INCONCLUSIVE else baseline.drift(nodeid, experiments)
        if drift is not None:
            verdict = against_baseline(settings, verdict, drift, max(1, self._session.in_baseline))
        return TestResult(
            nodeid=nodeid,
            verdict=verdict.verdict,
            reason=verdict.reason,
            unique=len(groups),
            settings=settings.to_json(),
            experiments=experiments,
            counts=tuple(evidence.counts),
            decided_by=verdict.decided_by,
            advice=verdict.advice,
            drift=drift,
        )

    def _outcomes(self, sampled: _Sampled) -> list[Outcome]:
        return outcomes(sampled.runs, self._first) if self._first is not None else []

    def _unique_under_loads(self, items: list[list[Outcome]]) -> dict[str, int]:
        # Over all attempts: a load whose attempts answer differently is not stable.
        by_load: dict[str, list[Outcome]] = {}
        for sampled, found in zip(self._sampled, items, strict=True):
            by_load.setdefault(sampled.plan.load, []).extend(item for item in found if item.output.parts)
        return {load: len(group(heard, self._comparison)) for load, heard in by_load.items()}

    def _all_analysed(self, items: list[list[Outcome]], missing: Sequence[MissingCall]) -> tuple[Experiment, ...]:
        """The experiments, each with what all of them together show of it.

        Args:
            items: those of each experiment.
        """
        experiments = map(self._analysed, self._sampled, items)
        observed = [
            Observed(
                load=sampled.plan.load,
                attempt=sampled.plan.attempt,
                runs=sampled.runs,
                items=found,
                in_flight=sampled.plan.concurrency,
                live=sampled.calls.live,
                cached=sampled.calls.cached,
            )
            for sampled, found in zip(self._sampled, items, strict=True)
        ]
        shared = over_all(observed, missing, self._comparison, whole=not self.settings.fail_fast)
        return tuple(_with_findings(found, *more) for found, more in zip(experiments, shared, strict=True))

    def _analysed(self, sampled: _Sampled, items: list[Outcome]) -> Experiment:
        came = sampled.neighbours
        found = experiment(
            load=sampled.plan.load,
            attempt=sampled.plan.attempt,
            seed=sampled.plan.seed,
            wanted=sampled.plan.runs,
            runs=sampled.runs,
            items=items,
            requests=sampled.requests,
            comparison=self._comparison,
            confidence=self.settings.confidence or 0.95,
            calls=sampled.calls,
            neighbour_calls=came.calls,
            seconds=sampled.seconds,
            failures=sampled.failures,
        )
        money, unpriced = cost(sampled.bill)
        found = replace(found, cost=money, unpriced=unpriced)
        failed = neighbours_failed(came.calls, came.failures, came.example)
        return found if failed is None else _with_findings(found, failed)


def _titles(experiments: tuple[Experiment, ...], items: list[list[Outcome]]) -> dict[int, str]:
    return {id(item): found.title for found, made in zip(experiments, items, strict=True) for item in made}


def _with_load_finding(
    experiments: tuple[Experiment, ...], unique: Mapping[str, int], unique_over_all: int
) -> tuple[Experiment, ...]:
    """What only all experiments together can show stands in each of them."""
    finding = load_sensitive(unique, unique_over_all)
    if finding is None:
        return experiments
    return tuple(_with_findings(found, finding) for found in experiments)


def _with_findings(found: Experiment, *more: Finding) -> Experiment:
    return replace(found, findings=(*found.findings, *more))


class _RunScope:
    """One run: entered before the body, left after it with whatever the body raised."""

    def __init__(self, repeater: Repeater, sampler: Sampler, sampled: _Sampled, index: int) -> None:
        self._repeater = repeater
        self._sampler = sampler
        self._sampled = sampled
        self.index = index

    def __enter__(self) -> None:
        self._sampler.start_run(self.index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        run = self._sampler.finish_run(broken_off=error is not None)
        refusal = self._sampler.refusal or (str(error) if isinstance(error, Refusal) else None)
        if refusal is not None:
            # The run is no evidence, and what the body made of the refusal is no failure of its own.
            self._repeater.refusal = refusal
            return error is None or isinstance(error, (Exception, BaseExceptionGroup, Refusal))
        if error is not None and not self._repeater.is_failure(error):
            return False
        self._repeater._finished(self._sampled, run)
        if error is not None and run.error is None:
            self._repeater._failed(self._sampled, self.index, error)
        return True
