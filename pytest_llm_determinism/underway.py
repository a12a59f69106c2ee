"""A repetition under way, as another thread sees it."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence

from pytest_llm_determinism.analysis.compare import NAMED, Comparison
from pytest_llm_determinism.analysis.groups import outcomes
from pytest_llm_determinism.report.progress import Progress
from pytest_llm_determinism.runs import Exchange, Run
from pytest_llm_determinism.sampling import Sampler
from pytest_llm_determinism.settings import Settings

SHOWN_AFTER = 1.0
"""Seconds: what takes no longer is not worth showing."""

LONG = 10.0
"""Seconds after which even few answers make a pace."""


class Underway:
    """How far the experiments of one test are.

    Args:
        among: how many experiments were made before its first, and how many are made in all; None for its own alone.
    """

    def __init__(self, name: str, settings: Settings, comparison: Comparison, among: tuple[int, int] | None) -> None:
        self._name = name
        self._settings = settings
        self._comparison = comparison
        self._before: int
        self._experiments: int
        self._before, self._experiments = among or (0, len(settings.load) * settings.attempts)
        self._started_at = time.monotonic()
        self._seen: _Seen | None = None

    def begin(self, sampler: Sampler, runs: Sequence[Run]) -> None:
        """One more experiment.

        Args:
            runs: those finished; grows while it is under way.
        """
        self._before += 1
        self._seen = _Seen(sampler, runs, self._comparison)

    def look(self) -> list[Progress]:
        """How far the experiment is, if it takes long enough to be worth showing."""
        now = time.monotonic()
        seen = self._seen
        if seen is None or now - self._started_at < SHOWN_AFTER:
            return []
        plan, calls, crowd = seen.sampler.plan, seen.sampler.calls, seen.sampler.crowd
        seen.see()
        return [
            Progress(
                name=self._name,
                experiment=self._before,
                experiments=self._experiments,
                load=plan.load,
                attempt=plan.attempt,
                attempts=self._settings.attempts,
                runs=plan.runs,
                done=seen.done,
                groups=seen.groups,
                errors=seen.errors,
                live=calls.live,
                cached=calls.cached,
                neighbours=0 if crowd is None else crowd.count.calls,
                seconds_left=seen.seconds_left(now),
            )
        ]


class _Seen:
    """What is known of one experiment under way. Each run is looked at once."""

    def __init__(self, sampler: Sampler, runs: Sequence[Run], comparison: Comparison) -> None:
        self.sampler = sampler
        self.errors = 0
        self._runs = runs
        self._finished = 0
        self._exchanges = 0
        self._comparison = comparison
        self._keys: set[Hashable] = set()
        self._compared: set[tuple[tuple[Exchange, ...], tuple[str, ...]]] = set()

    def see(self) -> None:
        """Look at what is new."""
        for run in self._runs[self._finished :]:
            self._finished += 1
            self.errors += run.error is not None
            if run.error is None:
                self._exchanges += len(run.exchanges)
                self._compare(run)
        if self._finished and not self._runs[0].recorded and len(self._runs[0].exchanges) == 1:
            first = self._runs[0].exchanges[0]
            # Of a body with one call the runs to come are known, too, as soon as they are answered.
            for exchange in self.sampler.at_hand((first.request, first.occurrence)):
                self._compare(Run(0, (exchange,)))

    def _compare(self, run: Run) -> None:
        # A comparison of the user's own may be slow, ask a model, or be made for one thread: it waits for the verdict.
        if self._comparison.name in NAMED and (run.exchanges, run.recorded) not in self._compared:
            self._compared.add((run.exchanges, run.recorded))
            self._keys.update(self._comparison.key(item.output) for item in outcomes([run], self._runs[0]))

    @property
    def groups(self) -> int | None:
        return len(self._keys) or None

    @property
    def done(self) -> int:
        """Runs that are finished, or could be, as far as their number of calls is known."""
        calls = self.sampler.calls
        answered = int((calls.answers + calls.cached) / self._calls_a_run) if self._calls_a_run else 0
        return min(self.sampler.plan.runs, max(self._finished, answered + self.errors))

    @property
    def _calls_a_run(self) -> float:
        completed = self._finished - self.errors
        return self._exchanges / completed if completed else 0.0

    def seconds_left(self, now: float) -> float | None:
        """At the pace of the answers since the first: that one came alone, and may have met a server that woke up.

        Args:
            now: as `time.monotonic` tells it.
        """
        calls, plan = self.sampler.calls, self.sampler.plan
        if calls.answers < 2 or calls.first_answer_at is None or not self._calls_a_run:
            return None
        seconds = now - calls.first_answer_at
        # Until as many have come as are in flight, their starts decide when, and not how long they take.
        if (calls.answers <= plan.concurrency and seconds < LONG) or self.done == plan.runs:
            return None
        return (plan.runs - self.done) * self._calls_a_run * seconds / (calls.answers - 1)
