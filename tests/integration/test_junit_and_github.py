"""What CI systems are told: pytest's JUnit file, and the summary and annotations of GitHub Actions."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from conftest import Project

HOSTILE = "]]></system-out><x/>\x00\x1b[31m\ud800\uffff ::error::"

SUITE = f"""
import pytest

@pytest.fixture
def put_out(determinism):
    left = {{}}
    def put(*outputs):
        determinism.record(next(left.setdefault(outputs, iter(outputs))))
    return put

@pytest.mark.deterministic(runs=3)
def test_parted(put_out):
    print("said by the test")
    put_out("a", {HOSTILE!r}, "a")

@pytest.mark.deterministic(runs=3)
def test_silent():
    pass

@pytest.mark.deterministic(runs=3)
def test_stable(put_out):
    put_out("a", "a", "a")

@pytest.mark.xfail
@pytest.mark.deterministic(runs=3)
def test_expected(put_out):
    put_out("a", "b", "a")

def test_other():
    pass
"""

SYSTEM_OUT = r"""--------------------------------- Captured Out ---------------------------------
said by the test
said by the test
said by the test

--------------------------------- determinism ----------------------------------
2 unique of 3 (2/1), max_unique=1

under burst: 2 unique of 3 runs, another call agrees at least 2.5 % of the time, at 95 %
  they part at the first word
  ├─ 2 × “a”  (runs 0, 2)
  └─ 1 × “]]></system-out><x/>\x00\x1b[31m\ud800\uffff ::error::”  (run 1)
  0 calls live; seed N

verdict     nondeterministic
decided by  max_unique=1 (default)
try next    what was recorded differs; record only what should be the same in every run

"""


def cases(project: Project) -> dict[str, ElementTree.Element]:
    root = ElementTree.parse(project.path / "junit.xml").getroot()
    return {case.get("name", ""): case for case in root.iter("testcase")}


def properties(case: ElementTree.Element) -> dict[str | None, str | None]:
    return {found.get("name"): found.get("value") for found in case.iter("property")}


def system_out(case: ElementTree.Element) -> list[str | None]:
    return [found.text for found in case.iter("system-out")]


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_junit_files_have_properties_and_the_explanation_of_each_gated_test(project: Project, workers) -> None:
    if workers:
        pytest.importorskip("xdist")
    project.write(SUITE)

    result = project.pytest("--junitxml=junit.xml", "-o", "junit_logging=system-out", "-rA", *workers)

    found = cases(project)
    assert properties(found["test_parted"]) == {
        "determinism_verdict": "nondeterministic",
        "determinism_reason": "2 unique of 3 (2/1), max_unique=1",
        "determinism_unique": "2",
        "determinism_runs": "3",
        "determinism_errors": "0",
        "determinism_agreement": "0.6666666666666666",
        "determinism_agreement_lower": "0.025320565519103652",
        "determinism_confidence": "0.95",
        "determinism_load": "burst",
        "determinism_findings": "",
        "determinism_calls_live": "0",
        "determinism_calls_cached": "0",
        "determinism_neighbour_calls": "0",
        "determinism_cost_live": "0.0",
        "determinism_cost_saved": "0.0",
        "determinism_cost_currency": "USD",
    }
    assert {name: properties(case).get("determinism_verdict") for name, case in found.items()} == {
        "test_parted": "nondeterministic",
        "test_silent": "inconclusive",
        "test_stable": "passed",
        "test_expected": "nondeterministic",
        "test_other": None,
    }
    (text,) = system_out(found["test_parted"])
    assert re.sub(r"seed \d+", "seed N", text or "") == SYSTEM_OUT
    assert [out and "verdict     passed" in out for out in system_out(found["test_stable"])] == [True]
    assert [out and "determinism" in out for out in system_out(found["test_other"])] == [False]
    # The terminal tells it once, as the failure.
    assert result.stdout.str().count("<x/>") == 1
    assert result.stdout.str().count("verdict     passed") == 0


def test_junit_files_follow_what_was_chosen_for_captured_output(project: Project) -> None:
    project.write(SUITE)

    project.pytest("--junitxml=junit.xml")
    assert {name: system_out(case) for name, case in cases(project).items()} == {name: [] for name in cases(project)}
    assert properties(cases(project)["test_stable"])["determinism_verdict"] == "passed"

    project.pytest("--junitxml=junit.xml", "-o", "junit_logging=all", "-o", "junit_log_passing_tests=no")
    told = {name: len(system_out(case)) for name, case in cases(project).items()}
    assert told == {"test_parted": 1, "test_silent": 1, "test_stable": 0, "test_expected": 0, "test_other": 0}


def test_a_test_that_is_run_again_has_its_properties_once(project: Project) -> None:
    pytest.importorskip("pytest_rerunfailures")
    project.write(SUITE)

    project.pytest("--junitxml=junit.xml", "--reruns=1", "-k", "parted or silent")

    for case in cases(project).values():
        names = [found.get("name") for found in case.iter("property")]
        assert names
        assert len(names) == len(set(names))


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_github_shows_a_summary_and_an_annotation_for_each_failing_test(project: Project, monkeypatch, workers) -> None:
    if workers:
        pytest.importorskip("xdist")
    project.write(SUITE)
    summary = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))

    result = project.pytest("--determinism-report=report.md", *workers)

    error, warning = [line for line in result.stdout.lines if line.startswith("::")]
    assert error == (
        f"::error file={project.path.name}/test_it.py,line=10,title=nondeterministic%3A test_it.py%3A%3Atest_parted::"
        "2 unique of 3 (2/1), max_unique=1%0Adecided by max_unique=1 (default)%0Atry next: what was recorded differs;"
        " record only what should be the same in every run"
    )
    assert warning == (
        f"::warning file={project.path.name}/test_it.py,line=15,title=inconclusive%3A test_it.py%3A%3Atest_silent::"
        "no model call was observed and nothing was recorded%0Atry next: check that the body asks a model, and not a"
        " cache; one that is reached by something that cannot be observed (a subprocess, gRPC, raw sockets) has its"
        " answer recorded with the fixture: determinism.record(answer)"
    )
    written = summary.read_text(encoding="utf-8")
    assert written.startswith("\n## Determinism: 2 nondeterministic, 1 inconclusive, 1 passed\n")
    assert written == "\n" + (project.path / "report.md").read_text(encoding="utf-8")


def test_without_gated_tests_or_outside_github_nothing_is_shown_there(project: Project, monkeypatch) -> None:
    project.write(SUITE)
    summary = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    project.pytest("-k", "other")
    assert not summary.exists()

    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path))  # a directory
    monkeypatch.delenv("GITHUB_ACTIONS")
    result = project.pytest("-k", "stable or parted")
    assert result.ret == 1
    assert not [line for line in result.stdout.lines if line.startswith("::")]
    result.stdout.fnmatch_lines(
        [f"the summary of the GitHub step was not written (GITHUB_STEP_SUMMARY={project.path}): *"]
    )
