"""What the controlling process knows of all gated tests, whichever process ran them."""

from __future__ import annotations

import datetime
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llm_determinism.results import TestResult

UNGATED = "ungated"
"""Travels instead of a result for a marked test that ran with ``gate=off``."""


class Collected:
    """Results by node id; of a test that was run again, the last."""

    def __init__(self) -> None:
        self.results: dict[str, TestResult] = {}
        self.ungated: set[str] = set()
        self.notes: list[str] = []
        self._locks: str | None = None

    def add(self, nodeid: str, record: str) -> None:
        """Take what travelled on a test's report: one JSON string, or `UNGATED`."""
        from pytest_llm_determinism.results import TestResult

        if record == UNGATED:
            self.ungated.add(nodeid)
        else:
            self.results[nodeid] = TestResult.from_json(json.loads(record))

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
            from pytest_llm_determinism.report.text import table, worth

            results = list(self.results.values())
            lines = [*table(results, datetime.datetime.now(datetime.UTC)), *worth(results)]
        if self.ungated:
            lines.append(f"gate=off: {len(self.ungated)} marked tests ran once, without being gated")
        return lines + list(dict.fromkeys(self.notes))
