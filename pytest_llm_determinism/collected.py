"""What the controlling process knows of all gated tests, whichever process ran them."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llm_determinism.results import TestResult

UNGATED = "ungated"
"""Travels instead of a result for a marked test that ran with ``gate=off``."""


@dataclass(slots=True)
class Collected:
    """Results by node id; of a test that was run again, the last."""

    results: dict[str, TestResult] = field(default_factory=dict)
    ungated: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, nodeid: str, record: str) -> None:
        """Take what travelled on a test's report: one JSON string, or `UNGATED`."""
        from pytest_llm_determinism.results import TestResult

        if record == UNGATED:
            self.ungated.add(nodeid)
        else:
            self.results[nodeid] = TestResult.from_json(json.loads(record))

    def summary(self) -> list[str]:
        """The lines of the summary section; none if no test was marked."""
        from pytest_llm_determinism.report.text import table

        lines = table(list(self.results.values()), datetime.datetime.now(datetime.UTC))
        if self.ungated:
            lines.append(f"gate=off: {len(self.ungated)} marked tests ran once, without being gated")
        return lines + list(dict.fromkeys(self.notes))
