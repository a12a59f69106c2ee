"""What the controlling process knows of all gated tests, whichever process ran them."""

from __future__ import annotations

import datetime
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llm_determinism.baseline import Baseline
    from pytest_llm_determinism.results import TestResult

UNGATED = "ungated"
"""Travels instead of a result for a marked test that ran with ``gate=off``."""


class Collected:
    """Results by node id; of a test that was run again, the last."""

    def __init__(self) -> None:
        self.results: dict[str, TestResult] = {}
        self.ungated: set[str] = set()
        self.notes: list[str] = []
        self._places: dict[str, tuple[str, int | None]] = {}
        self._locks: str | None = None

    def add(self, nodeid: str, record: str, place: tuple[str, int | None] | None) -> None:
        """Take what travelled on a test's report.

        Args:
            record: one JSON string, or `UNGATED`.
            place: the file in rootdir and the line from 0, for annotations; None for a test that is expected to fail.
        """
        from pytest_llm_determinism.results import TestResult

        if record == UNGATED:
            self.ungated.add(nodeid)
        else:
            result = self.results[nodeid] = TestResult.from_json(json.loads(record))
            if place is not None:
                self._places[result.nodeid] = place

    def settle(self, baseline: Baseline) -> bool:
        """Hold the results of the whole session against the baseline.

        Returns whether a test that passed is found to have drifted, other than one that is expected to fail.
        """
        if not self.results:
            return False
        from pytest_llm_determinism.report.text import against_baseline

        self.results, found = baseline.settled(self.results)
        results = list(self.results.values())
        missing = baseline.missing([result.nodeid for result in results])
        self.notes.extend(against_baseline(baseline.quoted, results, found, missing))
        return any(nodeid in self._places for nodeid in found)

    def locks(self) -> str:
        """The folder for what xdist workers lock against each other. It is made when a worker first needs it."""
        import tempfile
        import uuid

        if self._locks is None:
            self._locks = os.path.join(tempfile.gettempdir(), f"llm-determinism-{uuid.uuid4()}")
        return self._locks

    def close(self) -> None:
        if self._locks is not None:
            import shutil

            shutil.rmtree(self._locks, ignore_errors=True)

    def summary(self) -> list[str]:
        """The lines of the summary section; none if no test was marked."""
        lines = []
        if self.results:
            from pytest_llm_determinism.report.text import spent, table, worth

            results = list(self.results.values())
            lines = [*table(results, datetime.datetime.now(datetime.UTC)), *worth(results), *spent(results)]
        if self.ungated:
            lines.append(f"gate=off: {len(self.ungated)} marked tests ran once, without being gated")
        return lines + list(dict.fromkeys(self.notes))

    def annotations(self, root: Path) -> list[str]:
        """What GitHub Actions reads from the log: the lines of annotations; none elsewhere."""
        if not self.results or os.environ.get("GITHUB_ACTIONS") != "true":
            return []
        from pytest_llm_determinism.report.github import annotate

        return annotate(self.results.values(), self._places, root)
