"""Subtests in a gated body, with pytest's own fixture or that of pytest-subtests: each is told once, not once a run."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from conftest import Project

if pytest.version_tuple < (9,):
    pytest.importorskip("pytest_subtests", reason="pytest has subtests from version 9 on")

TESTS = """
import itertools, pytest, unittest
from pytest_llm_determinism import Nondeterministic

gated = pytest.mark.deterministic(runs=5)

@pytest.fixture
def run(determinism):
    "Gives the number of the run, and records the same output in each."
    numbers = itertools.count()
    def number():
        determinism.record("the same")
        return next(numbers)
    return number

@gated
def test_stable(subtests, run):
    run()
    for number in range(2):
        with subtests.test("passes", number=number):
            pass
    with subtests.test("skips"):
        pytest.skip("not here")

@gated
def test_fails(subtests, run):
    which = run()
    with subtests.test("always"):
        assert 1 == 2
    for city in ("Paris", "Lyon"):
        with subtests.test(city=city):
            if city == "Paris":
                assert which not in (1, 3)

@gated
def test_body_fails_too(subtests, run):
    which = run()
    with subtests.test("in the subtest"):
        assert which != 2
    assert which != 4, "in the body"

@gated
def test_differs(subtests, determinism, run):
    determinism.record(str(run() // 4))
    with subtests.test("goes on"):
        raise LookupError("gone")

@pytest.mark.xfail(strict=True, raises=Nondeterministic)
@gated
def test_expected_to_differ(subtests, determinism, run):
    determinism.record(str(run()))
    with subtests.test("passes"):
        pass

class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _run(self, run):
        self.run_number = run

    @gated
    def test_it(self):
        which = self.run_number()
        for number in range(3):
            with self.subTest("product", number=number):
                self.assertLess(which * number, 6)
"""


FAILURES = """
___ test_fails [always] ___
test_it.py:28: in test_fails
    assert 1 == 2
E   assert 1 == 2
E   in all 5 runs
___ test_fails (city='Paris') ___
test_it.py:32: in test_fails
    assert which not in (1, 3)
E   assert 1 not in (1, 3)
E   in 2 of 5 runs (1, 3), with a message that varies
___ test_fails ___
contains 2 failed subtests
___ test_body_fails_too [in the subtest] ___
test_it.py:38: in test_body_fails_too
    assert which != 2
E   assert 2 != 2
E   in 1 of 5 runs (2)
___ test_body_fails_too ___
test_it.py:39: in test_body_fails_too
    assert which != 4, "in the body"
E   AssertionError: in the body
E   assert 4 != 4
E   in 1 of 5 runs (4)
___ test_differs [goes on] ___
test_it.py:45: in test_differs
    raise LookupError("gone")
E   LookupError: gone
E   in all 5 runs
___ test_differs ___
2 unique of 5 (4/1), max_unique=1
…
___ TestCase.test_it [product] (number=2) ___
test_it.py:64: in test_it
    self.assertLess(which * number, 6)
E   AssertionError: 6 not less than 6
E   in 2 of 5 runs (3, 4), with a message that varies
___ TestCase.test_it ___
contains 1 failed subtest
"""


def test_each_failing_subtest_is_told_once_and_says_in_which_runs(project: Project) -> None:
    project.write(TESTS)

    result = project.pytest("--tb=short", "--show-capture=no", "-p", "no:randomly")

    text = "\n".join(line.rstrip() for line in result.stdout.lines)
    text = re.search(r"^=+ FAILURES =+$(.*?)^=+ determinism", text, re.DOTALL | re.MULTILINE)[1]
    text = re.sub(r"_{3,}", "___", re.sub(r"^\nunder .*?(?=^__)", "…\n", text, flags=re.DOTALL | re.MULTILINE))
    assert text == FAILURES
    assert result.parseoutcomes()["failed"] == 9


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_in_verbose_mode_and_in_junit_files_each_subtest_appears_once(
    project: Project, workers: tuple[str, ...]
) -> None:
    if pytest.version_tuple < (9,):
        pytest.skip("pytest-subtests words it otherwise")
    project.write(TESTS)

    result = project.pytest("-v", "--tb=no", "--junitxml=junit.xml", "-p", "no:randomly", *workers)

    told = [line.partition("SUB")[2] for line in result.stdout.lines if re.search(r"%\] SUB|\bSUB.*%\]", line)]
    # What follows is progress, node ids and reasons; xdist quotes parameters twice.
    told = [re.split(r" +\[ *\d+%|  | test_it| \(not", line)[0].strip() for line in told]
    assert [re.sub(r"=\"?'(\w+)'\"?", r"=\1", line) for line in told] == [
        "PASSED[passes] (number=0)",
        "PASSED[passes] (number=1)",
        "SKIPPED[skips]",
        "PASSED(city=Lyon)",
        "FAILED[always]",
        "FAILED(city=Paris)",
        "FAILED[in the subtest]",
        "FAILED[goes on]",
        "PASSED[passes]",
        "PASSED[product] (number=0)",
        "PASSED[product] (number=1)",
        "FAILED[product] (number=2)",
    ]
    result.stdout.fnmatch_lines(["*= 9 failed, 1 passed, 1 skipped, 1 xfailed, 6 subtests passed in *"])
    suite = ElementTree.parse(project.path / "junit.xml").getroot()[0]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["18", "9", "0", "2"]
