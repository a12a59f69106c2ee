"""What all tests of a session share: settings from flags and ini, the store, the endpoint."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llm_determinism import settings as table
from pytest_llm_determinism.endpoint import Endpoint
from pytest_llm_determinism.settings import SettingError, Settings, Value

if TYPE_CHECKING:
    from pytest_llm_determinism.analysis.compare import Comparison
    from pytest_llm_determinism.baseline import Baseline
    from pytest_llm_determinism.budget import Budget
    from pytest_llm_determinism.company import Company
    from pytest_llm_determinism.sampling import Plan
    from pytest_llm_determinism.shapes import Rules
    from pytest_llm_determinism.shapes.hooked import Hook
    from pytest_llm_determinism.store import SampleStore
    from pytest_llm_determinism.ticker import Look, Ticker


FEW = 2
"""Sampled calls in flight under ``crowd``: it is the neighbours that make it one."""


class Session:
    """One pytest process: the only one, or one of several xdist workers.

    Attributes:
        cli, file: settings given by flags and by ini.
        root: what relative paths of settings are relative to.
        company: the other workers of the session, if there are any.
        budget: the live calls that may be made, how fast and for how much; None where that is not limited.
        comparisons: named comparisons that plugins add; None until they were asked.
        output: gives what plugins know of APIs that we do not, if they know any.
        make_ticker: makes what shows how far repetitions are, when the first of them begins; None shows nothing.
        baseline: the earlier report that answers are held against, if there is one.
        in_baseline: tests of this session that it has.
        started_at: seconds since the epoch; under ``cache=refresh`` only newer samples count, so a test that is run
            again in the same session meets the same samples.
    """

    def __init__(
        self, cli: Mapping[str, Value], file: Mapping[str, Value], root: Path, company: Company | None = None
    ) -> None:
        self.cli = cli
        self.file = file
        self.root = root
        self.company = company
        self.budget = self._budget()
        self.comparisons: Mapping[str, Callable[[str], object]] | None = None
        self.output: Callable[[], Hook | None] = lambda: None
        self.make_ticker: Callable[[], Ticker | None] = lambda: None
        self.ticker: Ticker | None = None
        self.endpoint = Endpoint()
        self.baseline: Baseline | None = None
        self.in_baseline = 0
        self.started_at = time.time()
        self._store: SampleStore | None = None

    def _budget(self) -> Budget | None:
        settings = self.settings({})
        if settings.max_calls is None and settings.rate is None and settings.max_cost is None:
            return None
        if settings.max_cost is not None and importlib.util.find_spec("genai_prices") is None:
            raise SettingError(
                f"{settings.quote('max_cost')}: prices need genai-prices; pip install 'pytest-llm-determinism[cost]'"
            )
        from pytest_llm_determinism.budget import Budget

        return Budget(settings, None if self.company is None else self.company.folder)

    def value(self, name: str) -> Any:
        """The value of a setting that no marker can set."""
        return self.settings({}).origin(name).value

    def settings(self, marker: Mapping[str, Value]) -> Settings:
        return table.resolve(self.cli, marker, self.file)

    def comparison(self, settings: Settings) -> Comparison:
        """The comparison in force.

        Raises:
            SettingError: there is none of that name.
        """
        from pytest_llm_determinism.analysis.compare import resolve

        try:
            return resolve(settings.compare, self.comparisons or {})
        except ValueError as error:
            origin = settings.origin("compare")
            raise SettingError(f"compare={table.shown(origin.value)} (from {origin.where}): {error}") from None

    def store(self, settings: Settings) -> SampleStore | None:
        if settings.cache == "off":
            return None
        if self._store is None:
            from pytest_llm_determinism.store import SampleStore

            directory = self.root / Path(settings.cache_dir).expanduser()
            self._store = SampleStore(directory, writable=settings.cache != "replay")
        return self._store

    def plan(self, settings: Settings, load: str, attempt: int, runs: int, seed: int, test: str = "") -> Plan:
        """What one experiment is to do.

        Args:
            test: node id of the test that asks.
        """
        from pytest_llm_determinism.sampling import WINDOW, Plan

        most = {"solo": 1, "crowd": FEW}.get(load, settings.concurrency)
        concurrency = min(most, self._share(settings.concurrency))
        return Plan(
            load=load,
            attempt=attempt,
            runs=runs,
            concurrency=concurrency,
            neighbours=self._share(settings.neighbours) if load == "crowd" else 0,
            cache=settings.cache,
            not_before=self._not_before(settings),
            seed=seed,
            # Under fail_fast what is fetched beyond the run that decides is wasted.
            batch=concurrency if settings.fail_fast else WINDOW,
            test=test,
            rules=self.rules(settings),
        )

    def _share(self, count: int) -> int:
        """What of a number of calls in flight is this process's."""
        return count if self.company is None else self.company.share(count)

    def rules(self, settings: Settings) -> Rules:
        """What requests are model calls, and what identifies one."""
        from pytest_llm_determinism.shapes import Rules

        return Rules(self.endpoint.origins, settings.ignore or (), settings.override or {}, self.output())

    def admitted(self, settings: Settings, load: str) -> contextlib.AbstractContextManager[None]:
        """Hold the other workers off as far as an experiment under this load needs."""
        if self.company is None:
            return contextlib.nullcontext()
        shared = min(settings.concurrency, settings.neighbours) if load == "crowd" else settings.concurrency
        return self.company.admitted(load, shared)

    def showing(self, look: Look) -> contextlib.AbstractContextManager[None]:
        """Show how far a repetition is while it goes on."""
        if self.ticker is None:
            self.ticker = self.make_ticker()
        return contextlib.nullcontext() if self.ticker is None else self.ticker.showing(look)

    def _not_before(self, settings: Settings) -> float:
        if settings.cache == "refresh":
            return self.started_at
        if settings.cache == "replay" or settings.cache_ttl is None:
            return 0.0
        return float(self.started_at - settings.cache_ttl)

    def close(self) -> list[str]:
        """Close the store, the budget and the ticker; what a person should be told about the store."""
        if self.ticker is not None:
            self.ticker.close()
        if self.budget is not None:
            self.budget.close()
        if self._store is None:
            return []
        store: Any = self._store
        self._store = None
        store.close()
        return list(store.notes)
