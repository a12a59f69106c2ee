"""Subtests of a gated body: held back while the runs are made, then told once each, not once per run.

A subtest is reported in the middle of the body: pytest makes a report of it and hands that to every plugin. Here it is
made to look like the passed setup of the test, which every reporter passes over, until all runs are over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Self

import pytest

from pytest_llm_determinism.repeat import SubtestsFailed

_HELD = "llm_determinism_held"
"""The attribute by which a report that was made is found again in the subtest's own, which pytest copies from it."""

_OVERWRITTEN = ("when", "outcome", "longrepr", "duration", "wasxfail")


@dataclass(slots=True)
class Subtest:
    """What one subtest ended in, in one run."""

    call: pytest.CallInfo[None]
    attributes: dict[str, Any]
    report: Any = None

    @property
    def failed(self) -> bool:
        return bool(self.attributes["outcome"] == "failed")

    @property
    def name(self) -> str:
        """The test's name with the subtest's message and parameters."""
        return str(self.report.head_line)

    @property
    def error(self) -> BaseException:
        assert self.call.excinfo is not None
        return self.call.excinfo.value


class Held:
    """A pytest plugin while it is open: while the runs of one item are made."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._made: dict[int, Subtest] = {}
        self._failed: list[Subtest] = []
        self._others: dict[str, Subtest] = {}
        self._count = 0

    def __enter__(self) -> Self:
        self._item.config.pluginmanager.register(self, f"llm-determinism-subtests-{id(self)}")
        return self

    def __exit__(self, *_: object) -> None:
        self._item.config.pluginmanager.unregister(self)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # The item's own report is made when its runs are over.
        if item is self._item:
            attributes = {name: value for name, value in vars(report).items() if name in _OVERWRITTEN}
            if call.excinfo is None:
                # An xfail mark is about the test: what it says of a subtest that passed is not meant.
                attributes.pop("wasxfail", None)
                attributes.update(outcome="passed", longrepr=None)
            self._count += 1
            self._made[self._count] = Subtest(call, attributes)
            vars(report).pop("wasxfail", None)
            vars(report).update({"when": "setup", "outcome": "passed", "longrepr": None, "duration": 0.0})
            setattr(report, _HELD, self._count)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        subtest = self._made.pop(getattr(report, _HELD, 0), None)
        if subtest is None:
            return
        subtest.report = report
        if subtest.failed:
            self._failed.append(subtest)
        elif subtest.name not in self._others or self._others[subtest.name].attributes["outcome"] == "passed":
            self._others[subtest.name] = subtest

    @contextlib.contextmanager
    def raising(self, is_failure: Callable[[BaseException], bool]) -> Iterator[None]:
        """Around the body of one run: raises `SubtestsFailed` after it if some did.

        Args:
            is_failure: whether an exception leaves room for more runs; every other goes its way alone.
        """
        own = None
        try:
            yield
        except BaseException as error:
            if not self._failed or not is_failure(error):
                raise
            own = error
        failed, self._failed = self._failed, []
        for subtest in failed:
            # A subtest swallows what should have ended the test.
            if not is_failure(subtest.error):
                raise subtest.error
        if failed:
            raise SubtestsFailed(failed, own)

    def tell(self, failed: list[Subtest]) -> None:
        """Report each subtest once; the exceptions of those that failed bear the notes to be shown."""
        names = {subtest.name for subtest in failed}
        for subtest in [*(other for name, other in self._others.items() if name not in names), *failed]:
            report = subtest.report
            vars(report).pop(_HELD)
            vars(report).update(subtest.attributes)
            if subtest.failed:
                # Made again: the notes are newer than the first one.
                made = self._item.ihook.pytest_runtest_makereport(item=self._item, call=subtest.call)
                report.longrepr = made.longrepr
            with self._uncaptured():
                self._item.ihook.pytest_runtest_logreport(report=report)

    def _uncaptured(self) -> contextlib.AbstractContextManager[None]:
        """What reporters print while a test runs would be taken for its output."""
        capture: Any = self._item.config.pluginmanager.get_plugin("capturemanager")
        return contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled()
