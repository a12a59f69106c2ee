"""Under pytest-rerunfailures: what was nondeterministic stays so, at no cost, and its result appears once."""

from __future__ import annotations

import pytest
from conftest import ASK, Project

pytest.importorskip("pytest_rerunfailures")


@pytest.mark.parametrize("cache", ["auto", "refresh", "off"])
def test_a_rerun_asks_nothing_and_appears_once(project: Project, server, cache: str) -> None:
    model = server(lambda call: "Lyon." if call.number == 2 else "Paris.")
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=5, load="solo")
        def test_it():
            ask("capital?")
        """,
        app=ASK,
    )
    found = project.report("--reruns=2", f"--determinism-cache={cache}", url=model.url)

    found["result"].stdout.fnmatch_lines(["*= 1 failed, 2 rerun in *"])
    assert len(model.calls) == 5
    assert [(test["nodeid"], test["reason"]) for test in found["whole"]["tests"]] == [
        ("test_it.py::test_it", "2 unique of 5 (4/1), max_unique=1")
    ]
    calls = found["tests"]["test_it"]["experiments"][0]["calls"]
    assert (calls["live"], calls["cached"]) == (5, 0)


@pytest.mark.parametrize("cache", ["auto", "refresh"])
def test_a_rerun_because_of_the_body_meets_the_same_samples(project: Project, server, cache: str) -> None:
    model = server("Paris.")
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=5)
        def test_it():
            assert ask("capital?") == "Lyon."
        """,
        app=ASK,
    )
    found = project.report("--reruns=2", f"--determinism-cache={cache}", url=model.url)

    found["result"].stdout.fnmatch_lines(["*= 1 failed, 2 rerun in *"])
    assert len(model.calls) == 5
    assert [(test["verdict"], test["experiments"][0]["calls"]["cached"]) for test in found["whole"]["tests"]] == [
        ("passed", 5)
    ]
