"""Under pytest-rerunfailures: a rerun meets the same samples, and its result appears once."""

from __future__ import annotations

import pytest
from conftest import ASK, Project

pytest.importorskip("pytest_rerunfailures")


@pytest.mark.parametrize("cache", ["auto", "refresh"])
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
    assert found["tests"]["test_it"]["experiments"][0]["calls"]["cached"] == 5
