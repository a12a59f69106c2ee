"""Where a setting's value comes from: flag over marker over ini over default."""

from __future__ import annotations

import pytest
from conftest import Project

RECORDS = """
import itertools, pytest

@pytest.fixture
def answers(determinism):
    return lambda: determinism.record("the same")

@pytest.fixture
def differing(determinism):
    numbers = itertools.count()
    return lambda: determinism.record(next(numbers))
"""
"""A conftest with answers that need no model."""


def settings(test: dict, *names: str) -> dict[str, tuple[object, str]]:
    """What the JSON report says of some settings of a test: value and source."""
    return {name: (test["settings"][name]["value"], test["settings"][name]["source"]) for name in names}


def test_a_flag_wins_over_the_marker_the_marker_over_ini_and_ini_over_the_default(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=3, max_errors=3)
        def test_marked(answers):
            answers()

        @pytest.mark.deterministic
        def test_bare(answers):
            answers()
        """,
        conftest=RECORDS,
    )
    (project.path / "pytest.ini").write_text(
        "[pytest]\ndeterminism_runs = 2\ndeterminism_max_errors = 2\ndeterminism_max_unique = 2\n"
    )

    tests = project.report("--determinism-max-errors=4")["tests"]

    names = ("runs", "max_errors", "max_unique", "attempts")
    assert settings(tests["test_marked"], *names) == {
        "runs": (3, "marker"),
        "max_errors": (4, "cli"),
        "max_unique": (2, "ini"),
        "attempts": (1, "default"),
    }
    assert settings(tests["test_bare"], *names) == {
        "runs": (2, "ini"),
        "max_errors": (4, "cli"),
        "max_unique": (2, "ini"),
        "attempts": (1, "default"),
    }
    assert [test["experiments"][0]["completed"] for test in tests.values()] == [3, 2]


def test_the_report_has_every_setting_of_the_table(project: Project) -> None:
    project.write(
        """
        import pytest

        def casual(output):
            return output.lower()

        @pytest.mark.deterministic(
            runs=2, compare=casual, fail_fast=True, min_agreement=0.5, override={"seed": 7, "a.b": "x"}
        )
        def test_it(answers):
            answers()
        """,
        conftest=RECORDS,
    )

    given = ("--determinism-model=a,b", "--determinism-temperature=none", "--determinism-rate=50/min")
    found = project.report(*given, "--determinism-ignore=user", "--determinism-ignore=metadata.id")
    found = found["tests"]["test_it"]["settings"]

    assert {name: (value["value"], value["source"]) for name, value in found.items()} == {
        "gate": (True, "default"),
        "runs": (2, "marker"),
        "attempts": (1, "default"),
        "max_unique": (1, "default"),
        "min_agreement": (0.5, "marker"),
        "confidence": (None, "default"),
        "max_errors": (0, "default"),
        "compare": ("test_it:casual", "marker"),
        "load": (["burst"], "default"),
        "concurrency": (8, "default"),
        "neighbours": (8, "default"),
        "rate": ("50/min", "cli"),
        "fail_fast": (True, "marker"),
        "endpoint": (None, "default"),
        "model": (["a", "b"], "cli"),
        "temperature": (None, "cli"),
        "override": (["seed=7", 'a.b="x"'], "marker"),
        "ignore": (["user", "metadata.id"], "cli"),
        "cache": ("auto", "default"),
        "cache_dir": (".pytest_llm_determinism", "default"),
        "cache_ttl": ("1d", "default"),
        "max_calls": (None, "default"),
        "max_cost": (None, "default"),
        "report": (["report.json"], "cli"),
        "baseline": (None, "default"),
    }


def test_the_closest_marker_wins_per_keyword(project: Project) -> None:
    project.write(
        """
        import pytest

        pytestmark = pytest.mark.deterministic(runs=6, max_unique=6, max_errors=6, attempts=2)

        @pytest.mark.deterministic(runs=5, max_unique=5, max_errors=5)
        class TestClass:
            @pytest.mark.deterministic(runs=4, max_unique=4)
            @pytest.mark.deterministic(runs=3)
            def test_stacked(self, answers):
                answers()

            def test_of_the_class(self, answers):
                answers()

        def test_of_the_module(answers):
            answers()
        """,
        conftest=RECORDS,
    )

    tests = project.report()["tests"]

    names = ("runs", "max_unique", "max_errors", "attempts")
    assert {name: [test["settings"][key]["value"] for key in names] for name, test in tests.items()} == {
        "TestClass::test_stacked": [3, 4, 5, 2],
        "TestClass::test_of_the_class": [5, 5, 5, 2],
        "test_of_the_module": [6, 6, 6, 2],
    }


def test_messages_say_where_the_deciding_value_came_from(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=3, max_unique=2)
        def test_marker(differing):
            differing()

        @pytest.mark.deterministic(runs=3)
        def test_ini(differing):
            differing()
        """,
        conftest=RECORDS,
    )
    (project.path / "pytest.ini").write_text("[pytest]\ndeterminism_max_unique = 2\n")

    by_marker_and_ini = project.pytest("--tb=short")
    by_flag = project.pytest("--determinism-max-unique=1", "-k", "marker")

    assert by_marker_and_ini.stdout.str().count("decided by  max_unique=2") == 2
    by_marker_and_ini.stdout.fnmatch_lines(["decided by  max_unique=2 (@pytest.mark.deterministic)"])
    by_marker_and_ini.stdout.fnmatch_lines(["decided by  max_unique=2 (determinism_max_unique in pytest.ini)"])
    by_flag.stdout.fnmatch_lines(["decided by  max_unique=1 (--determinism-max-unique)"])


def test_several_values(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2, load=["solo", "burst"])
        def test_list(answers):
            answers()

        @pytest.mark.deterministic(runs=2, load="solo, burst")
        def test_commas(answers):
            answers()
        """,
        conftest=RECORDS,
    )

    by_marker = project.report()["tests"]
    by_two_flags = project.report("--determinism-load=burst", "--determinism-load=solo")["tests"]
    by_one_flag = project.report("--determinism-load=burst,solo", "--determinism-report=second.json")["tests"]

    for tests, loads, source in (
        (by_marker, ["solo", "burst"], "marker"),
        (by_two_flags, ["burst", "solo"], "cli"),
        (by_one_flag, ["burst", "solo"], "cli"),
    ):
        for test in tests.values():
            assert settings(test, "load") == {"load": (loads, source)}
            assert [experiment["load"] for experiment in test["experiments"]] == loads
    assert (project.path / "second.json").read_text() == (project.path / "report.json").read_text()


ONE_MARKED = """
import pytest

@pytest.mark.deterministic
def test_it(answers):
    answers()
"""

NAMES = ("runs", "load", "fail_fast", "min_agreement", "temperature", "compare")


def test_classic_ini_with_an_override_on_the_command_line(project: Project) -> None:
    project.write(ONE_MARKED, conftest=RECORDS)
    (project.path / "tox.ini").write_text(
        "[pytest]\n"
        "determinism_runs = 9\n"
        "determinism_load = solo burst\n"
        "determinism_fail_fast = true\n"
        "determinism_min_agreement = 0.75\n"
        "determinism_temperature = none\n"
        "determinism_compare = casefold\n"
    )

    test = project.report("-o", "determinism_runs=2")["tests"]["test_it"]

    assert settings(test, *NAMES) == {
        "runs": (2, "ini"),
        "load": (["solo", "burst"], "ini"),
        "fail_fast": (True, "ini"),
        "min_agreement": (0.75, "ini"),
        "temperature": (None, "ini"),
        "compare": ("casefold", "ini"),
    }


@pytest.mark.skipif(pytest.version_tuple < (9, 2), reason="native TOML with several types came with pytest 9.2")
@pytest.mark.parametrize(("file", "table"), [("pyproject.toml", "tool.pytest"), ("pytest.toml", "pytest")])
def test_native_toml(project: Project, file: str, table: str) -> None:
    project.write(ONE_MARKED, conftest=RECORDS)
    (project.path / file).write_text(
        f"[{table}]\n"
        "determinism_runs = 2\n"
        'determinism_load = ["solo", "burst"]\n'
        "determinism_fail_fast = true\n"
        "determinism_min_agreement = 0.75\n"
        'determinism_temperature = "none"\n'
        'determinism_compare = "casefold"\n'
    )

    test = project.report()["tests"]["test_it"]

    assert settings(test, *NAMES) == {
        "runs": (2, "ini"),
        "load": (["solo", "burst"], "ini"),
        "fail_fast": (True, "ini"),
        "min_agreement": (0.75, "ini"),
        "temperature": (None, "ini"),
        "compare": ("casefold", "ini"),
    }


def test_help_lists_flags_and_ini_keys_with_their_defaults(project: Project) -> None:
    text = " ".join(project.pytest("--help").stdout.str().split())

    assert "determinism of language models:" in text
    assert "--determinism-runs=K runs of each body (default: 30)" in text
    assert "--determinism-load=LOAD what else is in flight while sampling:" in text
    assert "or several of them (default: burst)" in text
    assert "determinism_cache_ttl" in text
    assert "12h, 7d, none (default: 1d)" in text


def test_markers_and_fixtures_explain_themselves(project: Project) -> None:
    markers = project.pytest("--markers").stdout.str()
    fixtures = project.pytest("--fixtures").stdout.str()

    assert (
        "@pytest.mark.deterministic(runs=30, attempts=1, max_unique=1, min_agreement=None, confidence=None,"
        " max_errors=0, compare='exact', load='burst', concurrency=8, neighbours=8, fail_fast=False,"
        " override=None, ignore=None): run the"
        " test body several times"
    ) in markers
    assert 'Ask a model: llm("prompt") or llm(messages)' in fixtures
    assert "Record outputs by hand with determinism.record(value)" in fixtures
    assert "_one_event_loop" not in fixtures
