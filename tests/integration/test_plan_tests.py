"""`llm-determinism plan TESTS`: what a suite will ask, found out with pytest and without asking a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
from conftest import Project

from pytest_llm_determinism.cli import main

SUITE = """
import pytest

@pytest.mark.deterministic
def test_refund(llm):
    llm("Is this a refund?")

@pytest.mark.deterministic(runs=10, load=["solo", "burst"], max_unique=2)
class TestStories:
    def test_twice(self, llm):
        llm(llm("Tell me a story."))

    @pytest.mark.skip
    def test_later(self, llm):
        pass

def test_plain(llm):
    pass
"""

POWER = (
    "with 20 runs, the fewest, a model that flips 1 % of the time, each time to an answer of its own, passes this gate"
    " 98 % of the time; to catch it 95 times of 100 takes 473 runs; flips that all give one and the same other answer"
    " always pass"
)


class Said(NamedTuple):
    code: int
    out: str
    err: str


Plan = Callable[..., Said]


@pytest.fixture
def plan(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Plan in the project: ``plan("test_it.py", "--runs=5")``."""
    monkeypatch.chdir(project.path)

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        code = main(["plan", *arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


def test_a_suite_is_planned_before_and_after_its_first_session(project: Project, plan: Plan, server) -> None:
    model = server("Paris.")
    project.write(SUITE)

    before = plan("test_it.py")

    assert before == Said(
        0,
        f"""\
test                                                runs  calls  a pass shows
test_it.py::test_refund                               30   ≥ 30        90.2 %
test_it.py::TestStories::test_twice  20 in 2 experiments   ≥ 20        16.9 %
all 2 tests                                           50   ≥ 50        16.9 %

calls: one a run is assumed, and there may be more; they, tokens, time and price are known from an earlier report:\
 --from FILE.json
calls are those with an empty store: what is there already is not asked again
1 test marked to be skipped
1 test not marked and using llm: one call for each thing that is asked
{POWER}
""",
        "",
    )
    assert model.calls == []
    project.report("--determinism-model=m", url=model.url)

    after = plan("test_it.py", "--from=report.json", "--runs=5", "--", "-k", "not plain")

    assert after.code == 0
    assert re.sub(r" +\d+\.\d s  ", "  TIME  ", after.out).splitlines()[1:4] == [
        "test_it.py::TestStories::test_twice  10 in 2 experiments     20         140 + 60  TIME      –         9.8 %",
        "test_it.py::test_refund                                5      5          35 + 15  TIME      –        47.3 %",
        "all 2 tests                                           15     25         175 + 75  TIME      –         9.8 %",
    ]
    assert "not marked" not in after.out


def test_collecting_makes_nothing(project: Project, plan: Plan, server) -> None:
    """No store, no report, no server, no call: not in a plan and not under ``--collect-only``."""
    model = server("never")
    project.write(
        """
        import os, openai, pytest

        assert os.environ["OPENAI_BASE_URL"] == "http://127.0.0.1:9/v1"
        client = openai.OpenAI()

        @pytest.mark.deterministic
        def test_it():
            pass
        """
    )
    ini = "[pytest]\ndeterminism_endpoint = reference\ndeterminism_report = report.json deep/report.json\n"
    (project.path / "pytest.ini").write_text(ini)
    (project.path / "report.json").write_text("kept")

    said = plan("test_it.py")
    collected = project.pytest("--collect-only", url=model.url)

    assert (said.code, said.err) == (0, "")
    assert collected.ret == pytest.ExitCode.OK
    assert model.calls == []
    names = {path.name for path in project.path.iterdir()}
    assert not names & {".pytest_llm_determinism", "deep"}
    assert (project.path / "report.json").read_text() == "kept"


def test_what_pytest_refuses_is_told_as_pytest_tells_it(project: Project, plan: Plan) -> None:
    # As with the command pytest, what lies in the current directory is not taken for a module of the same name.
    project.write(SUITE, shlex="broken")

    said = plan("test_it.py", "--min-agreement=0.99", "--confidence=0.95")

    assert (said.code, said.out) == (2, "")
    assert (
        "\ntest_it.py::test_refund: runs=30 (default) can never show min_agreement=0.99 (--determinism-min-agreement)"
        " at confidence=0.95 (--determinism-confidence), not even when all runs agree; write runs=300 or more, or claim"
        " less\n"
    ) in said.err
    assert said.err.endswith("\nllm-determinism plan: pytest cannot collect these tests, for the reason above\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "ERROR: file or directory not found: nowhere.py\n"),
        (["test_broken.py"], "E   NameError: name 'broken' is not defined\n"),
        (["test_it.py", "--", "-k", "nothing"], "there are no tests: pytest --collect-only test_it.py -k nothing\n"),
        (
            ["test_it.py", "--", "-p", "no:llm_determinism"],
            "the plugin is not loaded: it is switched off by -p no:llm_determinism, or by",
        ),
        (["test_late.py"], "test_late.py::test_it: runs=0 (from @pytest.mark.deterministic): a gate needs at least 2"),
    ],
)
def test_a_suite_that_cannot_be_collected_is_an_error_of_use(
    project: Project, plan: Plan, arguments: list[str], message: str
) -> None:
    project.write(
        SUITE,
        test_broken="broken",
        test_late="def test_it(): pass",
        conftest="""
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                if item.path.name == "test_late.py":
                    item.add_marker(pytest.mark.deterministic(runs=0))
        """,
    )

    said = plan(*arguments)

    assert (said.code, said.out) == (2, "")
    assert message in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from=report.json"], "--from tells of tests; name them, too: plan tests --from FILE.json"),
        (["test_it.py", "--from=none.json"], "none.json cannot be read: No such file or directory"),
        (["test_it.py", "--from=test_it.py"], "test_it.py is no report, since it is not JSON: "),
    ],
)
def test_an_earlier_report_that_cannot_be_used_is_said(
    project: Project, plan: Plan, arguments: list[str], message: str
) -> None:
    project.write(SUITE)

    said = plan(*arguments)

    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"llm-determinism plan: {message}")
