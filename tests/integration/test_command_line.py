"""How a session is started decides nothing about the gate: options, environment, configuration files, other plugins."""

from __future__ import annotations

import pytest
from conftest import ASK, Project

GATED = """
import pytest
from app import ask

@pytest.mark.deterministic
def test_it():
    assert ask("capital?") == "Paris."
"""

QUIET_ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytest.ini", "[pytest]\ndeterminism_runs = 3\ndeterminism_load = solo\ndeterminism_fail_fast = true\n"),
        ("pyproject.toml", '[tool.pytest.ini_options]\ndeterminism_runs = "3"\ndeterminism_load = "solo"\n'),
        pytest.param(
            "pyproject.toml", "[tool.pytest]\ndeterminism_runs = 3\ndeterminism_load = ['solo']\n", id="native"
        ),
        ("pytest.toml", "[pytest]\ndeterminism_runs = 3\ndeterminism_load = ['solo']\ndeterminism_fail_fast = true\n"),
    ],
)
def test_settings_are_read_from_every_kind_of_file(project: Project, server, name: str, content: str) -> None:
    if ("= 3\n" in content and name.endswith(".toml")) and pytest.version_tuple < (9, 2):
        pytest.skip("a number as such is read from TOML from pytest 9.2 on")
    model = server("Paris.")
    project.write(GATED, app=ASK)
    (project.path / name).write_text(content)

    found = project.report(url=model.url)

    settings = found["tests"]["test_it"]["settings"]
    assert settings["runs"] == {"value": 3, "source": "ini"}
    assert settings["load"] == {"value": ["solo"], "source": "ini"}
    assert len(model.calls) == 3


def test_options_in_the_environment_are_options(project: Project, server, monkeypatch: pytest.MonkeyPatch) -> None:
    model = server("Paris.")
    project.write(GATED, app=ASK)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--determinism-runs=3 --determinism-load=solo")

    found = project.report(url=model.url)

    assert found["tests"]["test_it"]["settings"]["runs"] == {"value": 3, "source": "cli"}
    assert len(model.calls) == 3


def test_warnings_as_errors_find_nothing(project: Project, server) -> None:
    """Not in a first session, which writes the store, and not in a second, which reads it."""
    model = server(lambda call: f"{call.number}" if call.prompt == "unstable" else "Paris.")
    project.write(
        GATED
        + """
@pytest.mark.deterministic
def test_unstable(llm):
    llm("unstable")
""",
        app=ASK,
    )
    for live in (3, 0):
        found = project.report(
            "-W", "error", *QUIET_ASYNCIO, "--determinism-runs=3", "--determinism-model=m", url=model.url
        )
        found["result"].assert_outcomes(passed=1, failed=1)
        assert {name: test["experiments"][0]["calls"]["live"] for name, test in found["tests"].items()} == {
            "test_it": live,
            "test_unstable": live,
        }
        output = found["result"].stdout.str() + found["result"].stderr.str()
        assert "Warning" not in output


@pytest.mark.parametrize("plugin", ["terminal", "capture", "logging", "unittest"])
def test_the_gate_needs_no_plugin_of_pytest(project: Project, plugin: str) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=3)
        def test_it(determinism, values=iter("aab")):
            determinism.record(next(values))
        """
    )
    found = project.report("-p", f"no:{plugin}")

    assert found["exit"] == pytest.ExitCode.TESTS_FAILED
    assert found["tests"]["test_it"]["reason"] == "2 unique of 3 (2/1), max_unique=1"


def test_without_the_plugin_the_marker_is_unknown(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=3)
        def test_it():
            pass
        """
    )
    without = ("-p", "no:llm_determinism")
    result = project.pytest(*without)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*PytestUnknownMarkWarning: Unknown pytest.mark.deterministic*"])

    result = project.pytest(*without, "--strict-markers")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*'deterministic' not found in `markers` configuration option"])


def test_doctests_are_left_alone_also_where_the_module_is_marked(project: Project) -> None:
    project.write(
        '''
        """
        >>> calls.append("module")
        """
        import pytest

        calls = []
        pytestmark = pytest.mark.deterministic(runs=3)

        def documented():
            """
            >>> calls.append("function")
            """

        def test_calls(determinism):
            calls.append("test")
            determinism.record("the same")

        class TestLast:
            def test_each_doctest_ran_once(self, determinism):
                determinism.record("the same")
                assert sorted(calls) == ["function", "module", "test", "test", "test"]
        '''
    )
    (project.path / "test_text.txt").write_text(">>> 1 + 1\n2\n")

    found = project.report("--doctest-modules", "--doctest-glob=*.txt")

    found["result"].assert_outcomes(passed=5)
    assert list(found["tests"]) == ["test_calls", "TestLast::test_each_doctest_ran_once"]
