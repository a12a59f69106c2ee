"""The body runs K times inside one test item, and pytest's own outcomes keep their meaning."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading

import pytest
from conftest import ASK, QUIET, Project
from scripted import Call

NUMBERED = """
import itertools, pytest

@pytest.fixture
def number(determinism):
    "Gives the number of the run, and records the same output in each."
    numbers = itertools.count()
    def next_number():
        determinism.record("the same")
        return next(numbers)
    return next_number
"""
"""A conftest whose fixture `number` tells the runs apart without changing what they put out."""


def plain(line: str) -> str:
    """A line of pytest's short summary without what its versions write differently."""
    return line.replace(" - reason: ", " - ").rstrip().removesuffix(" -")


def failures(result: pytest.RunResult) -> str:
    """The text between the headings of the failures and of what follows, blanks at line ends removed."""
    lines = [line.rstrip() for line in result.stdout.lines]
    start = next(number for number, line in enumerate(lines) if "= FAILURES" in line)
    end = next(number for number, line in enumerate(lines) if number > start and line.startswith("====="))
    return "\n".join(lines[start + 1 : end])


def test_fixtures_are_set_up_once_for_all_runs_of_an_item(project: Project) -> None:
    project.write(
        """
        import pytest
        log = []

        @pytest.fixture
        def once(request):
            log.append(f"setup {request.node.name}")
            yield
            log.append(f"teardown {request.node.name}")

        @pytest.mark.deterministic(runs=3)
        @pytest.mark.parametrize("city", ["Paris", "Lyon"])
        def test_city(once, determinism, city):
            log.append(city)
            determinism.record(city)

        def test_log():
            assert log == [
                "setup test_city[Paris]", "Paris", "Paris", "Paris", "teardown test_city[Paris]",
                "setup test_city[Lyon]", "Lyon", "Lyon", "Lyon", "teardown test_city[Lyon]",
            ]
        """
    )
    found = project.report()

    found["result"].assert_outcomes(passed=3)
    assert [(name, test["verdict"], test["unique"]) for name, test in found["tests"].items()] == [
        ("test_city[Paris]", "passed", 1),
        ("test_city[Lyon]", "passed", 1),
    ]


def test_an_exception_in_some_runs_is_one_failure_that_says_which(project: Project) -> None:
    project.write(
        """
        import pytest

        def refund(number):
            return {4: "no", 11: "no", 29: "no"}.get(number, "yes")

        @pytest.mark.deterministic
        def test_refund(number):
            assert refund(number()) == "yes"

        @pytest.mark.deterministic(runs=5)
        def test_messages(number):
            which = number()
            assert which < 3

        @pytest.mark.deterministic(runs=5)
        def test_kinds(number):
            which = number()
            if which == 1:
                raise ValueError("one")
            if which in (2, 4):
                raise KeyError("two")
        """,
        conftest=NUMBERED,
    )
    result = project.pytest("--tb=short")

    assert failures(result) == (
        "_________________________________ test_refund __________________________________\n"
        "test_it.py:8: in test_refund\n"
        '    assert refund(number()) == "yes"\n'
        "E   AssertionError: assert 'no' == 'yes'\n"
        "E\n"
        "E     - yes\n"
        "E     + no\n"
        "E   in 3 of 30 runs (4, 11, 29)\n"
        "________________________________ test_messages _________________________________\n"
        "test_it.py:13: in test_messages\n"
        "    assert which < 3\n"
        "E   assert 3 < 3\n"
        "E   in 2 of 5 runs (3, 4), with a message that varies\n"
        "__________________________________ test_kinds __________________________________\n"
        "test_it.py:19: in test_kinds\n"
        '    raise ValueError("one")\n'
        "E   ValueError: one\n"
        "E   in 1 of 5 runs (1)\n"
        "E   in 2 of 5 runs (2, 4): KeyError: 'two'"
    )
    result.assert_outcomes(failed=3)


def test_a_failure_of_the_body_and_of_the_gate_are_told_together(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=4)
        def test_it(determinism, number):
            which = number()
            determinism.record("odd" if which % 2 else "even")
            assert which != 3
        """,
        conftest=NUMBERED,
    )
    text = failures(project.pytest("--tb=short"))

    assert "E   in 1 of 4 runs (3)\nE\nE   2 unique of 4 (2/2), max_unique=1\n" in text
    assert "E   verdict     nondeterministic\n" in text


def test_skip_and_xfail_keep_their_meaning(project: Project) -> None:
    project.write(
        """
        import pytest
        from pytest_llm_determinism import Nondeterministic

        gated = pytest.mark.deterministic(runs=3)
        caught = pytest.mark.xfail(strict=True, raises=Nondeterministic)
        ran = {"first": 0, "later": 0}

        @gated
        def test_skip_in_the_first_run():
            ran["first"] += 1
            pytest.skip("not here")

        @gated
        def test_skip_later(number):
            ran["later"] += 1
            if number() == 1:
                pytest.skip("not now")

        @gated
        def test_skip_later_does_not_hide_a_difference(number, determinism):
            if number() == 1:
                pytest.skip("not now")
            determinism.record(ran["later"])
            ran["later"] += 1

        @pytest.mark.skip(reason="by mark")
        @gated
        def test_skip_by_mark():
            raise AssertionError("never run")

        @gated
        def test_xfail_in_the_body():
            pytest.xfail("known")

        @caught
        @gated
        def test_xfail_catches_an_unstable_model(number, determinism):
            determinism.record(number())

        @caught
        @gated
        def test_xfail_is_strict_with_a_stable_model(number):
            number()

        @caught
        @gated
        def test_xfail_is_not_content_with_no_verdict():
            pass

        def test_how_often_they_ran():
            assert ran == {"first": 1, "later": 5}
        """,
        conftest=NUMBERED,
    )
    result = project.pytest("-rA", "--tb=line")

    lines = result.stdout.lines
    summary = lines[next(number for number, line in enumerate(lines) if "short test summary" in line) + 1 : -1]
    assert [re.sub(r":\d+:|- Inconclusive.*|- .XPASS.*", "", plain(line)).rstrip() for line in summary] == [
        "PASSED test_it.py::test_how_often_they_ran",
        "SKIPPED [1] test_it.py not here",
        "SKIPPED [1] test_it.py not now",
        "SKIPPED [1] test_it.py by mark",
        "XFAIL test_it.py::test_xfail_in_the_body - known",
        "XFAIL test_it.py::test_xfail_catches_an_unstable_model",
        "FAILED test_it.py::test_skip_later_does_not_hide_a_difference - Nondeterminis...",
        "FAILED test_it.py::test_xfail_is_strict_with_a_stable_model",
        "FAILED test_it.py::test_xfail_is_not_content_with_no_verdict",
    ]


TEST_CASES = """
import asyncio, unittest, pytest

gated = pytest.mark.deterministic(runs=3)

class Recording:
    calls = []

    @pytest.fixture(autouse=True)
    def _record(self, determinism):
        self.record = determinism.record
        type(self).runs = 0

    def setUp(self):
        self.calls.append("setUp")
        type(self).runs += 1

    def tearDown(self):
        self.calls.append("tearDown")

class TestPlain(Recording, unittest.TestCase):
    @gated
    def test_1_passes(self):
        self.record("the same")

    def test_2_set_up_and_torn_down_around_each_run(self):
        self.assertEqual(self.calls, ["setUp", "tearDown"] * 3 + ["setUp"])

    @gated
    def test_3_fails(self):
        self.record("the same")
        self.assertNotEqual(self.runs, 2)

    @gated
    def test_4_skips(self):
        self.skipTest("not here")

    @gated
    @unittest.expectedFailure
    def test_5_is_expected_to_fail(self):
        self.record("the same")
        self.fail("known")

    @gated
    def test_6_sub_tests(self):
        self.record("the same")
        for number in range(2):
            with self.subTest(number=number):
                self.assertLess(number, 2)

    @gated
    def test_7_differs(self):
        self.record(self.runs)

class TestAsync(unittest.IsolatedAsyncioTestCase):
    runs = 0

    @pytest.fixture(autouse=True)
    def _record(self, determinism):
        self.record = determinism.record

    async def asyncSetUp(self):
        await asyncio.sleep(0)
        type(self).runs += 1

    @gated
    async def test_1_passes(self):
        await asyncio.sleep(0)
        self.record("the same")

    @gated
    async def test_2_fails(self):
        self.record("the same")
        self.assertNotEqual(self.runs, 5)
"""


def test_test_cases_of_unittest(project: Project) -> None:
    project.write(TEST_CASES)

    result = project.pytest("-rA", "--tb=short")

    assert {
        plain(line) for line in result.stdout.lines if line.startswith(("PASSED", "FAILED", "XFAIL", "SKIPPED", "SUB"))
    } == {
        "PASSED test_it.py::TestPlain::test_1_passes",
        "PASSED test_it.py::TestPlain::test_2_set_up_and_torn_down_around_each_run",
        "FAILED test_it.py::TestPlain::test_3_fails - AssertionError: 2 == 2",
        "SKIPPED [1] test_it.py:33: not here",
        "XFAIL test_it.py::TestPlain::test_5_is_expected_to_fail",
        "PASSED test_it.py::TestPlain::test_6_sub_tests",
        "FAILED test_it.py::TestPlain::test_7_differs - Nondeterministic: 3 unique of ...",
        "PASSED test_it.py::TestAsync::test_1_passes",
        "FAILED test_it.py::TestAsync::test_2_fails - AssertionError: 5 == 5",
    }
    assert result.stdout.lines.count("E   in 1 of 3 runs (1)") == 2


def test_exitfirst_stops_after_the_failing_item_and_all_its_runs(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=4)
        def test_first(number):
            assert number() != 1

        def test_second():
            pass
        """,
        conftest=NUMBERED,
    )
    found = project.report("-x")

    found["result"].assert_outcomes(failed=1)
    assert found["tests"]["test_first"]["experiments"][0]["completed"] == 4


def test_pdb_stops_where_the_body_failed_and_every_run_is_torn_down(project: Project) -> None:
    project.write(
        """
        import unittest, pytest
        calls = []

        class TestIt(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def _record(self, determinism):
                self.record = determinism.record

            def setUp(self):
                calls.append("setUp")

            def tearDown(self):
                calls.append("tearDown")

            @pytest.mark.deterministic(runs=3)
            def test_1(self):
                self.record("the same")
                assert len(calls) != 3, "the second run"

        def test_2():
            assert calls == ["setUp", "tearDown"] * 3
        """,
        debugger="""
        class Debugger:
            quitting = False

            def __init__(self, **options):
                pass

            def reset(self):
                pass

            def set_continue(self):
                pass

            def interaction(self, frame, raised):
                # From Python 3.13 on pytest gives the exception itself.
                traceback = getattr(raised, "__traceback__", raised)
                while traceback.tb_next:
                    traceback = traceback.tb_next
                print("stopped in", traceback.tb_frame.f_code.co_name)
        """,
    )
    result = project.pytest("--pdb", "--pdbcls=debugger:Debugger")

    result.assert_outcomes(failed=1, passed=1)
    assert [line for line in result.stdout.lines if "stopped in" in line] == ["stopped in test_1"]


def test_ctrl_c_ends_the_session_and_keeps_what_arrived(project: Project, server, monkeypatch) -> None:
    stuck = threading.Semaphore(0)
    interrupted = threading.Event()

    def script(call: Call) -> str:
        if call.number >= 8 and not interrupted.is_set():
            stuck.release()
            interrupted.wait(60)
        return "Paris."

    model = server(script)
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=20, concurrency=4)
        def test_it():
            ask("capital?")
        """,
        app=ASK,
    )
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    process = project.pytester.popen([*project.pytester._getpytestargs(), *QUIET], stdin=subprocess.DEVNULL)
    try:
        # With four calls that hang, all before them have arrived and are in the store.
        for _ in range(4):
            assert stuck.acquire(timeout=60)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        interrupted.set()
        process.kill()

    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output.decode()
    rest = project.report(url=model.url)["tests"]["test_it"]["experiments"][0]["calls"]
    assert (rest["live"], rest["cached"]) == (12, 8)


def test_gate_off_runs_each_body_once_and_says_how_many(project: Project, server) -> None:
    model = server("Paris.")
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic
        def test_asks():
            assert ask("capital?") == "Paris."

        @pytest.mark.deterministic
        def test_records(determinism):
            determinism.record("without effect")

        def test_unmarked():
            pass
        """,
        app=ASK,
    )
    found = project.report("--determinism-gate=off", url=model.url)

    found["result"].assert_outcomes(passed=3)
    found["result"].stdout.fnmatch_lines(
        ["*= determinism =*", "gate=off: 2 marked tests ran once, without being gated", "report written to *"],
        consecutive=True,
    )
    assert found["tests"] == {}
    assert len(model.calls) == 1
    assert not (project.path / ".pytest_llm_determinism").exists()
