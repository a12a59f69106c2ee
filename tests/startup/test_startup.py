"""What a session costs that has nothing to gate, or nothing to ask."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import Project

HEAVY = ("openai", "httpx", "httpx2", "diskcache", "numpy")

SMALL = ("collected", "endpoint", "hookspecs", "marker", "plugin", "session", "settings")
"""The modules of the plugin that every session imports."""

TELLS = f"""
import sys

def pytest_unconfigure(config):
    names = [name for name in sys.modules if name.startswith("pytest_llm_determinism.")]
    print()
    print("heavy:", sorted(set({HEAVY}) & set(sys.modules)))
    print("ours:", sorted(name.partition(".")[2] for name in names))
"""
"""A conftest that tells at the very end what was imported; run with ``-s``."""


def told(result: pytest.RunResult, what: str) -> list[str]:
    (line,) = [line for line in result.outlines if line.startswith(f"{what}: ")]
    return ast.literal_eval(line.removeprefix(f"{what}: "))


def files(directory: Path) -> set[str]:
    """What is in a directory, without what the test and Python itself put there."""
    ours = {"stdout", "stderr", "runpytest-0", "runpytest-current", "__pycache__"}
    return {path.name for path in directory.iterdir()} - ours


@pytest.fixture
def project(project: Project) -> Project:
    project.fresh = True
    return project


def test_a_suite_without_marked_tests_imports_and_leaves_nothing(project: Project) -> None:
    project.write("def test_it():\n    pass\n", conftest=TELLS)
    before = files(project.path)

    result = project.pytest("-s")

    result.assert_outcomes(passed=1)
    assert told(result, "heavy") == []
    assert told(result, "ours") == list(SMALL)
    assert files(project.path) == before
    assert "= determinism =" not in result.stdout.str()


def test_a_gated_suite_with_every_sample_in_the_store_imports_no_sdk(project: Project, server) -> None:
    model = server("Paris.")
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2)
        def test_it(llm):
            assert llm("capital?", model="m")
        """,
        conftest=TELLS,
    )
    cold = project.pytest("-s", url=model.url)
    warm = project.pytest("-s", url=model.url)

    assert (cold.ret, warm.ret, len(model.calls)) == (0, 0, 2)
    assert {"diskcache", "openai"} < set(told(cold, "heavy"))
    assert told(warm, "heavy") == ["diskcache"]


def test_nothing_is_written_where_nothing_is_asked(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2)
        def test_it(determinism):
            determinism.record("the same")
        """
    )
    before = files(project.path)

    assert project.pytest().ret == 0
    assert files(project.path) == before
