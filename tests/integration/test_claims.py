"""What a result claims of the next call: of few runs, with errors, over several experiments, after stopping early."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from conftest import ASK, Project
from scripted import Call, Reply

from pytest_llm_determinism.analysis.statistics import agreement_lower

RECORDED = """
import pytest

@pytest.fixture
def put_out(determinism):
    "Gives each run the next of the outputs; a run beyond them fails."
    left = {}
    def put(outputs):
        determinism.record(next(left.setdefault(outputs, iter(outputs))))
    return put
"""
FAILED = Reply(status=500, raw=b"{}")
MARKER = "@pytest.mark.deterministic"


def verdicts(found: dict) -> dict[str, tuple[str, str]]:
    return {name: (test["verdict"], test["reason"]) for name, test in found["tests"].items()}


def experiments(found: dict) -> dict[str, list[tuple[int, int, float]]]:
    """Runs wanted, runs made, and the bound, of each experiment of each test."""
    return {
        name: [
            (made["runs"], made["completed"] + made["errors"], made["agreement_lower"]) for made in test["experiments"]
        ]
        for name, test in found["tests"].items()
    }


# Claims. An agreement of 0.5 at a confidence of 0.9 takes five runs.


def test_a_claim_that_the_runs_of_one_experiment_can_never_show_is_refused(project: Project, server) -> None:
    model = server("Paris.")
    keywords = ("", "attempts=10", "load=['solo', 'burst']", "max_errors=3", "max_unique=4", "fail_fast=True")
    modules = {
        f"test_{number}": f"""
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=4, min_agreement=0.5, confidence=0.9, {more})
        def test_it():
            ask("capital?")
        """
        for number, more in enumerate(keywords)
    }
    project.write("", app=ASK, **modules)
    result = project.pytest(url=model.url)

    refusal = (
        f"runs=4 ({MARKER}) can never show min_agreement=0.5 ({MARKER}) at confidence=0.9 ({MARKER}), not even when all"
        " runs agree; write runs=5 or more, or claim less"
    )
    assert [name for name in modules if f"{name}.py::test_it: {refusal}" in result.stdout.str()] == [*modules]
    result.assert_outcomes(errors=len(modules))
    assert model.calls == []


def test_a_claim_made_of_several_sources_is_refused(project: Project, server) -> None:
    model = server("Paris.")
    (project.path / "pytest.ini").write_text("[pytest]\ndeterminism_confidence = 0.9\n")
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(min_agreement=0.5)
        def test_it():
            ask("capital?")
        """,
        app=ASK,
    )
    result = project.pytest("--determinism-runs=4", url=model.url)

    assert (
        f"runs=4 (--determinism-runs) can never show min_agreement=0.5 ({MARKER}) at confidence=0.9"
        " (determinism_confidence in pytest.ini), not even when all runs agree; write runs=5 or more, or claim less"
    ) in result.stdout.str()
    assert model.calls == []


def test_as_many_runs_as_are_named_show_the_claim_and_runs_with_errors_show_nothing(project: Project, server) -> None:
    numbers: dict[str, itertools.count[int]] = defaultdict(itertools.count)

    def script(call: Call) -> str | Reply:
        return FAILED if next(numbers[call.prompt]) == 3 and "failing" in call.prompt else "Paris."

    project.write(
        """
        import pytest
        from app import ask

        def claiming(runs, **settings):
            return pytest.mark.deterministic(runs=runs, min_agreement=0.5, confidence=0.9, **settings)

        @claiming(5)
        def test_one_experiment():
            ask("a")

        @claiming(5, attempts=2)
        def test_attempts():
            ask("b")

        @claiming(5, load=["solo", "burst"])
        def test_loads():
            ask("c")

        @claiming(5, max_errors=1)
        def test_errors_allowed_and_none_made():
            ask("d")

        @claiming(6, max_errors=1, load="solo")
        def test_one_run_more_than_needed():
            ask("failing, e")

        @claiming(5, max_errors=1, load="solo")
        def test_one_run_less_than_needed():
            ask("failing, f")

        @pytest.mark.deterministic(runs=2, min_agreement=0.99)
        def test_without_a_confidence_nothing_is_claimed():
            ask("g")
        """,
        app=ASK,
    )
    found = project.report(url=server(script).url)

    assert verdicts(found) == {
        "test_one_experiment": ("passed", "1 unique of 5"),
        "test_attempts": ("passed", "1 unique of 10"),
        "test_loads": ("passed", "1 unique of 10"),
        "test_errors_allowed_and_none_made": ("passed", "1 unique of 5"),
        "test_one_run_more_than_needed": ("passed", "1 unique of 5"),
        "test_one_run_less_than_needed": (
            "inconclusive",
            "1 unique of 4, agreement at least 46.4 % at 90.0 %, min_agreement=0.5",
        ),
        "test_without_a_confidence_nothing_is_claimed": ("passed", "1 unique of 2"),
    }
    five, four, two = agreement_lower([5], 0.9), agreement_lower([4], 0.9), agreement_lower([2])
    assert experiments(found) == {
        "test_one_experiment": [(5, 5, five)],
        "test_attempts": [(5, 5, five), (5, 5, five)],
        "test_loads": [(5, 5, five), (5, 5, five)],
        "test_errors_allowed_and_none_made": [(5, 5, five)],
        "test_one_run_more_than_needed": [(6, 6, five)],
        "test_one_run_less_than_needed": [(5, 5, four)],
        "test_without_a_confidence_nothing_is_claimed": [(2, 2, two)],
    }


# Stopping early


def test_after_stopping_early_the_runs_not_made_count_as_disagreeing(project: Project, server) -> None:
    answers = {
        ("second output", 5): "Lyon.",
        ("after an error", 1): FAILED,
        ("after an error", 5): "Lyon.",
        ("attempts", 3): "Lyon.",
        ("attempts", 12): "Nice.",
        ("at the last run", 5): "Lyon.",
    }
    numbers: dict[str, itertools.count[int]] = defaultdict(itertools.count)
    model = server(lambda call: answers.get((call.prompt, next(numbers[call.prompt])), "Paris."))
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=20)
        def test_second_output():
            ask("second output")

        @pytest.mark.deterministic(runs=20, max_errors=1)
        def test_after_an_error():
            ask("after an error")

        @pytest.mark.deterministic(runs=10, attempts=3, max_unique=2)
        def test_attempts():
            ask("attempts")

        @pytest.mark.deterministic(runs=6)
        def test_at_the_last_run():
            ask("at the last run")
        """,
        app=ASK,
    )
    found = project.report("--determinism-fail-fast", "--determinism-load=solo", url=model.url)

    assert verdicts(found) == {
        "test_second_output": ("nondeterministic", "2 unique of 6 (5/1), max_unique=1"),
        "test_after_an_error": ("nondeterministic", "2 unique of 5 (4/1), max_unique=1"),
        "test_attempts": ("nondeterministic", "3 unique of 13 (11/1/1), max_unique=2"),
        "test_at_the_last_run": ("nondeterministic", "2 unique of 6 (5/1), max_unique=1"),
    }
    assert experiments(found) == {
        "test_second_output": [(20, 6, agreement_lower([5, *[1] * 15]))],
        # A run that ended in an error was made, and shows nothing either way.
        "test_after_an_error": [(20, 6, agreement_lower([4, *[1] * 15]))],
        # The attempt that was made whole loses nothing.
        "test_attempts": [(10, 10, agreement_lower([9, 1])), (10, 3, agreement_lower([2, *[1] * 8]))],
        "test_at_the_last_run": [(6, 6, agreement_lower([5, 1]))],
    }
    # What describes the runs is of the runs made.
    second = found["tests"]["test_second_output"]["experiments"][0]
    assert second["agreement"] == 5 / 6
    assert (second["disagreement"], second["new_output_chance"]) == (pytest.approx(1 / 3), pytest.approx(1 / 6))
    assert second["entropy"] == pytest.approx(0.6500, abs=1e-4)


def test_fail_fast_stops_as_soon_as_the_agreement_is_out_of_reach(project: Project) -> None:
    # Of 20 runs 19 that agree do not show 0.8 at 0.95. A run beyond those that are needed fails.
    cases = {
        "share": ("aabacad", "runs=20, min_agreement=0.9"),
        "share_not_yet": ("ab" + "a" * 18, "runs=20, min_agreement=0.9"),
        "bound": ("aaab", "runs=20, min_agreement=0.8, confidence=0.95"),
        "bound_though_the_share_seen_is_met": ("a" * 9 + "b", "runs=20, min_agreement=0.8, confidence=0.95"),
        "in_one_attempt": ("a" * 10 + "bbaa", "runs=10, attempts=2, min_agreement=0.9"),
        "over_all_attempts": ("a" * 10 + "bb", "runs=10, attempts=2, min_agreement=0.99"),
    }
    project.write(
        "import pytest\n"
        + "".join(
            f"""
@pytest.mark.deterministic({settings}, max_unique=9, load="solo")
def test_{name}(put_out):
    put_out("{outputs}")
"""
            for name, (outputs, settings) in cases.items()
        ),
        conftest=RECORDED,
    )
    found = project.report("--determinism-fail-fast")

    assert verdicts(found) == {
        "test_share": ("nondeterministic", "4 unique of 7 (4/1/1/1), agreement 57.1 %, min_agreement=0.9"),
        "test_share_not_yet": ("passed", "2 unique of 20 (19/1)"),
        "test_bound": ("nondeterministic", "2 unique of 4 (3/1), agreement 75.0 %, min_agreement=0.8"),
        "test_bound_though_the_share_seen_is_met": (
            "nondeterministic",
            "2 unique of 10 (9/1), agreement at least 23.0 % at 95.0 %, min_agreement=0.8",
        ),
        "test_in_one_attempt": ("nondeterministic", "2 unique of 14 (12/2), agreement 50.0 %, min_agreement=0.9"),
        "test_over_all_attempts": (
            "nondeterministic",
            "2 unique of 12 (10/2), agreement 83.3 %, min_agreement=0.99",
        ),
    }
    found["result"].assert_outcomes(passed=1, failed=len(cases) - 1)
    found["result"].stdout.no_fnmatch_line("*StopIteration*")
