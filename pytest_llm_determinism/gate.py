"""Gating one test item: its own ``runtest``, run K times, to a result and an outcome."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import pytest

from pytest_llm_determinism.fixtures import failure_note
from pytest_llm_determinism.outcomes import Drifted, Inconclusive, Nondeterministic
from pytest_llm_determinism.repeat import Failure, Repeater
from pytest_llm_determinism.report import junit
from pytest_llm_determinism.report.text import explain
from pytest_llm_determinism.results import TestResult
from pytest_llm_determinism.session import Session
from pytest_llm_determinism.settings import Settings
from pytest_llm_determinism.subtests import Held, Subtest
from pytest_llm_determinism.verdict import DRIFTED, NONDETERMINISTIC, PASSED, VERDICTS

_JUDGED = pytest.StashKey[tuple[str, BaseException, TracebackType | None]]()
"""Of an item that was nondeterministic or drifted its result, and what it failed with."""


@contextlib.contextmanager
def gate(item: pytest.Item, session: Session, settings: Settings, keep: Callable[[str], None]) -> Iterator[None]:
    """While open, running the item's test runs it K times and judges.

    Args:
        keep: takes the result as one JSON string, before the test fails because of it.
    """
    original = item.runtest
    before = vars(item).get("runtest")

    def runtest() -> None:
        if _JUDGED in item.stash:
            # A test that is run again after it failed (pytest-rerunfailures) gets no second chance to answer alike.
            record, failure, traceback = item.stash[_JUDGED]
            keep(record)
            raise failure.with_traceback(traceback)
        repeater = Repeater(session, settings, session.comparison(settings), _is_failure, nodeid(item))
        subtests = Held(item)
        try:
            with subtests:
                repeater.run(lambda: _run_once(item, original, subtests))
        finally:
            subtests.tell(_failed_subtests(repeater))
        result = _heard(item, repeater.result(nodeid(item)))
        record = json.dumps(result.to_json())
        keep(record)
        junit.tell(item.user_properties, result)
        try:
            _conclude(repeater, result)
        except BaseException as failure:
            if result.verdict in (NONDETERMINISTIC, DRIFTED):
                item.stash[_JUDGED] = record, failure, failure.__traceback__
            raise

    item.runtest = runtest  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del item.runtest
        else:
            item.runtest = before  # type: ignore[method-assign]


def _run_once(item: pytest.Item, runtest: Callable[[], None], subtests: Held) -> None:
    with subtests.raising(lambda error: _is_failure(error, not_first=True)):
        _run_body(item, runtest)


def _run_body(item: pytest.Item, runtest: Callable[[], None]) -> None:
    runtest()
    instance: Any = getattr(item, "instance", None)
    # Under --pdb pytest puts a test case's tearDown off until the item's own teardown; the next run needs it now.
    put_off = vars(item).get("_explicit_tearDown")
    if put_off is not None:
        item._explicit_tearDown = None  # type: ignore[attr-defined]
        del instance.tearDown
        # What the body raised comes first.
        with contextlib.suppress(Exception) if vars(item).get("_excinfo") else contextlib.nullcontext():
            put_off()
    # unittest's test cases do not raise: pytest notes on the item what they reported.
    reported = vars(item).pop("_excinfo", None)
    # An IsolatedAsyncioTestCase would refuse a second run: it takes its finished event loop for one in use.
    if getattr(instance, "_asyncioRunner", None) is not None:
        instance._asyncioRunner = None
    if reported:
        raise reported[0].value.with_traceback(reported[0].tb)


def nodeid(item: pytest.Item) -> str:
    """The item's node id without the ``@group`` that xdist adds to it under ``--dist=loadgroup``: results of a session
    are compared with those of sessions without xdist."""
    plain = f"{item.parent.nodeid}::{item.name}" if item.parent is not None else item.nodeid
    return plain if item.nodeid.startswith(f"{plain}@") else item.nodeid


def _is_skip(error: BaseException) -> bool:
    unittest: Any = sys.modules.get("unittest")
    return isinstance(error, pytest.skip.Exception) or (unittest is not None and isinstance(error, unittest.SkipTest))


def _is_failure(error: BaseException, not_first: bool) -> bool:
    """A failure of one run. A skip or an imperative xfail in the first run means the whole test; later it is one run's
    behaviour, and must not hide how the others parted."""
    if _is_skip(error) or isinstance(error, pytest.xfail.Exception):
        return not_first
    # pytest-timeout stops its clock when it strikes: more runs would run without one.
    timed_out = isinstance(error, pytest.fail.Exception) and "from pytest-timeout" in str(error)
    return isinstance(error, (Exception, pytest.fail.Exception)) and not timed_out


def _heard(item: pytest.Item, result: TestResult) -> TestResult:
    """The result after other plugins have seen it."""
    answers = item.ihook.pytest_determinism_verdict(item=item, experiments=result.experiments, verdict=result.verdict)
    for answer in answers:
        if answer is None or answer == result.verdict:
            continue
        if answer not in VERDICTS:
            raise ValueError(
                f"pytest_determinism_verdict returned {answer!r}; return one of {', '.join(VERDICTS)} or None"
            )
        return result.changed(answer)
    return result


def _failed_subtests(repeater: Repeater) -> list[Subtest]:
    """Each subtest that failed, once for each way it did, with a note in which runs."""
    failed = []
    for failure in repeater.failures.values():
        if failure.subtest is not None:
            failure.error.add_note(failure_note(failure, repeater.settings.runs))
            failed.append(failure.subtest)
    return failed


def _conclude(repeater: Repeater, result: TestResult) -> None:
    """Raise what the test ends with, if it does not pass."""
    text = "" if result.verdict == PASSED else explain(result, datetime.datetime.now(datetime.UTC))
    failures = [failure for failure in repeater.failures.values() if failure.subtest is None]
    failures.sort(key=lambda failure: _is_skip(failure.error))
    if failures and not _is_skip(failures[0].error):
        raise _with_notes(failures, repeater.settings.runs, text)
    if result.verdict == NONDETERMINISTIC:
        raise Nondeterministic(text)
    if result.verdict == DRIFTED:
        raise Drifted(text)
    if result.verdict != PASSED:
        raise Inconclusive(text)
    names = {failure.name for failure in repeater.failures.values() if failure.subtest is not None}
    if names:
        pytest.fail(f"contains {len(names)} failed subtest{'s' if len(names) > 1 else ''}", pytrace=False)
    if failures:
        raise failures[0].error


def _with_notes(failures: list[Failure], runs: int, text: str) -> BaseException:
    first, *others = failures
    first.error.add_note(failure_note(first, runs))
    for other in others[:5]:
        headline = (other.text.splitlines() or [""])[0]
        first.error.add_note(f"{failure_note(other, runs)}: {headline}")
    if text:
        first.error.add_note(f"\n{text}")
    return first.error
