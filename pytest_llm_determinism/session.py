"""What all tests of a session share: settings from flags and ini, the store, the endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llm_determinism import settings as table
from pytest_llm_determinism.endpoint import Endpoint
from pytest_llm_determinism.settings import SettingError, Settings, Value

if TYPE_CHECKING:
    from pytest_llm_determinism.analysis.compare import Comparison
    from pytest_llm_determinism.sampling import Plan
    from pytest_llm_determinism.store import SampleStore


@dataclass(slots=True)
class Session:
    """One pytest process: the only one, or one of several xdist workers.

    Attributes:
        cli, file: settings given by flags and by ini.
        root: what relative paths of settings are relative to.
        workers: processes that share `concurrency`.
        comparisons: named comparisons that plugins add; None until they were asked.
        started_at: seconds since the epoch; under ``cache=refresh`` only newer samples count, so a test that is run
            again in the same session meets the same samples.
    """

    cli: Mapping[str, Value]
    file: Mapping[str, Value]
    root: Path
    workers: int = 1
    comparisons: Mapping[str, Callable[[str], object]] | None = None
    endpoint: Endpoint = field(default_factory=Endpoint)
    started_at: float = field(default_factory=time.time)
    _store: SampleStore | None = None

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

            self._store = SampleStore(self.root / settings.cache_dir, writable=settings.cache != "replay")
        return self._store

    def plan(self, settings: Settings, load: str, attempt: int, runs: int, seed: int) -> Plan:
        """What one experiment is to do."""
        from pytest_llm_determinism.sampling import WINDOW, Plan

        concurrency = 1 if load == "solo" else max(1, settings.concurrency // self.workers)
        return Plan(
            load=load,
            attempt=attempt,
            runs=runs,
            concurrency=concurrency,
            cache=settings.cache,
            not_before=self._not_before(settings),
            seed=seed,
            # Under fail_fast what is fetched beyond the run that decides is wasted.
            batch=concurrency if settings.fail_fast else WINDOW,
            origins=self.endpoint.origins,
        )

    def _not_before(self, settings: Settings) -> float:
        if settings.cache == "refresh":
            return self.started_at
        if settings.cache == "replay" or settings.cache_ttl is None:
            return 0.0
        return float(self.started_at - settings.cache_ttl)

    def close(self) -> list[str]:
        """Close the store; what a person should be told about it."""
        if self._store is None:
            return []
        store: Any = self._store
        self._store = None
        store.close()
        return list(store.notes)
