"""Under pytest-xdist: one report, one summary, the same verdicts, and no more calls in flight than allowed."""

from __future__ import annotations

import pytest
from conftest import ASK, Project

pytest.importorskip("xdist")

SUITE = """
import pytest
from app import ask

@pytest.mark.parametrize("topic", ["wine", "cheese", "bread"])
@pytest.mark.deterministic(runs=6)
def test_stable(topic):
    assert ask(topic)

@pytest.mark.xdist_group("a name that reports do not show")
@pytest.mark.deterministic(runs=6)
def test_unstable(determinism, numbers=iter("aabaab")):
    determinism.record(next(numbers))

@pytest.mark.deterministic(runs=6)
def test_silent():
    pass
"""


def test_the_same_verdicts_in_one_report_and_one_summary(project: Project, server) -> None:
    model = server("Très bon.", latency=0.05)
    project.write(SUITE, app=ASK)

    found = project.report("-n", "2", "--dist=loadgroup", "--determinism-concurrency=4", url=model.url)

    assert {name: (test["verdict"], test["reason"]) for name, test in found["tests"].items()} == {
        "test_stable[wine]": ("passed", "1 unique of 6"),
        "test_stable[cheese]": ("passed", "1 unique of 6"),
        "test_stable[bread]": ("passed", "1 unique of 6"),
        "test_unstable": ("nondeterministic", "2 unique of 6 (4/2), max_unique=1"),
        "test_silent": ("inconclusive", "no model call was observed and nothing was recorded"),
    }
    found["result"].assert_outcomes(passed=3, failed=2)
    assert found["result"].stdout.str().count("= determinism =") == 1
    assert len(model.calls) == 18
    assert model.peak <= 4


@pytest.mark.parametrize(("load", "concurrency"), [("solo", 4), ("burst", 1)])
def test_workers_together_keep_to_what_may_be_in_flight(project: Project, server, load: str, concurrency: int) -> None:
    model = server("Très bon.", latency=0.02)
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.parametrize("topic", range(4))
        @pytest.mark.deterministic(runs=8)
        def test_it(topic):
            assert ask(f"topic {topic}")
        """,
        app=ASK,
    )
    result = project.pytest(
        "-n", "2", f"--determinism-load={load}", f"--determinism-concurrency={concurrency}", url=model.url
    )

    result.assert_outcomes(passed=4)
    assert len(model.calls) == 32
    assert model.peak <= (1 if load == "solo" else concurrency)


def test_a_worker_that_crashes_loses_no_finished_result(project: Project) -> None:
    project.write(
        """
        import os, pytest

        @pytest.mark.deterministic(runs=3)
        @pytest.mark.parametrize("number", range(4))
        def test_it(determinism, number):
            determinism.record(number)
            if number == 2:
                os._exit(3)
        """
    )
    found = project.report("-n", "2")

    assert {name: test["verdict"] for name, test in found["tests"].items()} == {
        "test_it[0]": "passed",
        "test_it[1]": "passed",
        "test_it[3]": "passed",
    }
    found["result"].assert_outcomes(passed=3, failed=1)
    assert "INTERNALERROR" not in found["result"].stdout.str()


def test_maxfail_stops_and_reports_what_was_finished(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=3)
        @pytest.mark.parametrize("number", range(20))
        def test_it(determinism, number, numbers=iter(range(1000))):
            determinism.record(next(numbers))
        """
    )
    found = project.report("-n", "1", "--maxfail=1")

    assert [test["verdict"] for test in found["tests"].values()] == ["nondeterministic"]
    assert found["exit"] == pytest.ExitCode.INTERRUPTED
