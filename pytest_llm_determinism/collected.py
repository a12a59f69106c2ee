"""What the controlling process knows of all gated tests, whichever process ran them."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tempfile

    from pytest_llm_determinism.results import TestResult

UNGATED = "ungated"
"""Travels instead of a result for a marked test that ran with ``gate=off``."""


class Collected:
    """Results by node id; of a test that was run again, the last."""

    def __init__(self) -> None:
        self.results: dict[str, TestResult] = {}
        self.ungated: set[str] = set()
        self.notes: list[str] = []
        self._locks: tempfile.TemporaryDirectory[str] | None = None

    def add(self, nodeid: str, record: str) -> None:
        """Take what travelled on a test's report: one JSON string, or `UNGATED`."""
        from pytest_llm_determinism.results import TestResult

        if record == UNGATED:
            self.ungated.add(nodeid)
        else:
            self.results[nodeid] = TestResult.from_json(json.loads(record))

    def locks(self) -> str:
        """A folder for what the workers lock against each other, there until `close`."""
        import tempfile

        if self._locks is None:
            self._locks = tempfile.TemporaryDirectory(prefix="llm-determinism-")
        return self._locks.name

    def close(self) -> None:
        if self._locks is not None:
            self._locks.cleanup()
            self._locks = None

    def summary(self) -> list[str]:
        """The lines of the summary section; none if no test was marked."""
        lines = []
        if self.results:
            from pytest_llm_determinism.report.text import table

            lines = table(list(self.results.values()), datetime.datetime.now(datetime.UTC))
        if self.ungated:
            lines.append(f"gate=off: {len(self.ungated)} marked tests ran once, without being gated")
        return lines + list(dict.fromkeys(self.notes))
