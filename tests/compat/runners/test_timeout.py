"""Under pytest-timeout: the clock is the item's, not a run's, and what had arrived when it struck is kept."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from conftest import ASK, Project
from scripted import Call

pytest.importorskip("pytest_timeout")

TESTS = """
import openai, pytest
from app import ask

pytestmark = [pytest.mark.timeout(2), pytest.mark.deterministic(runs=12, concurrency=4)]

def test_sync():
    ask("sync?")

@pytest.mark.asyncio
async def test_async():
    async with openai.AsyncOpenAI(max_retries=0) as client:
        messages = [{"role": "user", "content": "async?"}]
        await client.chat.completions.create(model="m", messages=messages, temperature=0)

if pytest.version_tuple >= (9,):
    def test_subtest(subtests):
        with subtests.test("swallows what is raised in it"):
            ask("subtest?")

def test_after():
    assert ask("the last?") == "Paris."
"""

STEADY = ("-p", "no:randomly", "-o", "asyncio_default_fixture_loop_scope=function")


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_a_test_that_times_out_fails_and_the_next_session_asks_only_for_the_rest(
    project: Project, server, method: str
) -> None:
    recovered = threading.Event()
    asked: Counter[str] = Counter()

    def script(call: Call) -> str:
        asked[call.prompt] += 1
        if asked[call.prompt] > 6 and call.prompt != "the last?":
            recovered.wait(15)
        return "Paris."

    model = server(script)
    project.write(TESTS, app=ASK)
    try:
        result = project.pytest(f"--timeout-method={method}", *STEADY, url=model.url)
    finally:
        recovered.set()

    timed_out = 3 if pytest.version_tuple >= (9,) else 2
    if method == "signal":
        result.assert_outcomes(failed=timed_out, passed=1)
        shown = [line for line in result.stdout.lines if line.startswith("E  ")]
        assert shown == ["E           Failed: Timeout (>2.0s) from pytest-timeout."] * timed_out
    else:
        # This method ends the process: there is no summary, and no test after it.
        timed_out = 1
        assert result.ret == 1
        result.stdout.fnmatch_lines(["*+ Timeout +*"])
        assert "passed" not in result.stdout.str()
    # Without a limit: this session may be as slow as the machine is.
    rest = project.report(*STEADY, "-p", "no:timeout", url=model.url)
    rest["result"].assert_outcomes(passed=len(rest["tests"]))
    calls = [test["experiments"][0]["calls"] for test in rest["tests"].values()][:timed_out]
    assert [(made["live"], made["cached"]) for made in calls] == [(6, 6)] * timed_out
