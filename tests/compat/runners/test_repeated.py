"""Under plugins that run a test again: pytest-rerunfailures without a store, and pytest-repeat."""

from __future__ import annotations

import pytest
from conftest import ASK, Project

STEADY = ("-p", "no:randomly")


def test_a_rerun_turns_nothing_green_by_luck(project: Project, server) -> None:
    """Whatever comes of asking again: answers that are not kept, or values that no store could know."""
    pytest.importorskip("pytest_rerunfailures")
    model = server(lambda call: "Lyon." if call.prompt == "capital?" and call.number == 2 else "Paris.")
    project.write(
        """
        import itertools, pytest
        from app import ask

        values = itertools.chain("aab", itertools.repeat("a"))

        @pytest.mark.deterministic(runs=4, load="solo")
        def test_asked():
            assert ask("capital?") == "Paris."

        @pytest.mark.deterministic(runs=4)
        def test_recorded(determinism):
            determinism.record(next(values))

        @pytest.mark.deterministic(runs=4)
        def test_stable_but_its_body_fails_at_first(failures=iter([True])):
            assert ask("the other?") == "Paris."
            assert not next(failures, False)
        """,
        app=ASK,
    )
    found = project.report("--reruns=2", "--determinism-cache=off", "--tb=short", *STEADY, url=model.url)

    found["result"].stdout.fnmatch_lines(["*= 2 failed, 1 passed, 5 rerun in *"])
    assert {name: test["reason"] for name, test in found["tests"].items()} == {
        "test_asked": "2 unique of 4 (3/1), max_unique=1",
        "test_recorded": "2 unique of 4 (3/1), max_unique=1",
        "test_stable_but_its_body_fails_at_first": "1 unique of 4",
    }
    # The whole failure is told each time, with what the body raised.
    shown = [line.rstrip() for line in found["result"].stdout.lines]
    start = shown.index("E   AssertionError: assert 'Lyon.' == 'Paris.'")
    assert shown[start - 2 : start] == [
        "test_it.py:8: in test_asked",
        '    assert ask("capital?") == "Paris."',
    ]
    assert shown[start + 1 : start + 7] == [
        "E",
        "E     - Paris.",
        "E     + Lyon.",
        "E   in 1 of 4 runs (2)",
        "E",
        "E   2 unique of 4 (3/1), max_unique=1",
    ]
    asked = [call.prompt for call in model.calls]
    assert (asked.count("capital?"), asked.count("the other?")) == (4, 8)


def test_pytest_repeat_repeats_the_item_with_all_its_runs(project: Project, server) -> None:
    pytest.importorskip("pytest_repeat")
    model = server("Paris.")
    project.write(
        """
        import unittest, pytest
        from app import ask

        @pytest.mark.deterministic(runs=4)
        def test_it():
            assert ask("capital?") == "Paris."

        @pytest.mark.repeat(1)
        @pytest.mark.deterministic(runs=4)
        def test_once(determinism):
            determinism.record("x")
        """,
        app=ASK,
    )
    found = project.report("--count=3", *STEADY, url=model.url)

    found["result"].assert_outcomes(passed=4)
    calls = {name: test["experiments"][0]["calls"] for name, test in found["tests"].items()}
    # The repetitions ask what the first asked, and are told what it was told.
    assert {name: (made["live"], made["cached"]) for name, made in calls.items()} == {
        "test_it[1-3]": (4, 0),
        "test_it[2-3]": (0, 4),
        "test_it[3-3]": (0, 4),
        "test_once": (0, 0),
    }
