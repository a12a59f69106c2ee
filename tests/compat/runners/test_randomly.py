"""Under pytest-randomly: the order of the tests decides nothing."""

from __future__ import annotations

import pytest
from conftest import ASK, Project
from scripted import Call

pytest.importorskip("pytest_randomly")


def test_another_order_gives_the_same_verdicts_from_the_same_samples(project: Project, server) -> None:
    def script(call: Call) -> str:
        return f"Paris {call.number}." if call.prompt == "city 3" else "Paris."

    model = server(script)
    project.write(
        """
        import random, pytest
        from app import ask

        @pytest.mark.parametrize("number", range(6))
        @pytest.mark.deterministic(runs=4)
        def test_it(number):
            ask(f"city {number}")

        @pytest.mark.deterministic(runs=4)
        def test_numbers_are_seeded_once_for_all_runs(determinism):
            determinism.record(random.random())
        """,
        app=ASK,
    )
    first, second = (project.report(f"--randomly-seed={seed}", url=model.url) for seed in (1, 2))

    assert list(first["tests"]) != list(second["tests"])
    verdicts = {name: (test["verdict"], test["unique"]) for name, test in first["tests"].items()}
    assert verdicts == {name: (test["verdict"], test["unique"]) for name, test in second["tests"].items()}
    assert verdicts == {
        **{f"test_it[{number}]": ("passed", 1) for number in (0, 1, 2, 4, 5)},
        "test_it[3]": ("nondeterministic", 4),
        "test_numbers_are_seeded_once_for_all_runs": ("nondeterministic", 4),
    }
    assert len(model.calls) == 6 * 4
