"""Under pytest-cov: the application's lines are recorded whichever thread or run executed them, without a warning."""

from __future__ import annotations

import json

import pytest
from conftest import ASK, Project

pytest.importorskip("pytest_cov")

STEADY = ("-p", "no:randomly", "-o", "asyncio_default_fixture_loop_scope=function")


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_coverage_of_the_application_is_recorded(project: Project, server, workers: tuple[str, ...]) -> None:
    model = server("Paris.")
    project.write(
        """
        import itertools, pytest
        from app import ask, third

        @pytest.mark.deterministic(runs=6)
        def test_it(numbers=itertools.count()):
            ask("capital?")
            third(next(numbers))
        """,
        app=ASK
        + """
def third(number):
    if number == 2:
        return "only in the third run"
    if number == 6:
        return "never"
""",
    )
    result = project.pytest("--cov=app", "--cov-report=json", "-W", "error", *STEADY, *workers, url=model.url)

    result.assert_outcomes(passed=1)
    assert "warning" not in result.stdout.str().lower()
    lines = (project.path / "app.py").read_text().splitlines()
    missing = json.loads((project.path / "coverage.json").read_text())["files"]["app.py"]["missing_lines"]
    assert [lines[number - 1].strip() for number in missing] == ['return "never"']
