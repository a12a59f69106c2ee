"""How many calls a session makes under `max_calls`, and how `rate` spaces them, as the server itself sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
import trio
from conftest import QUIET, Project
from scripted import Call, Reply, ScriptedServer

from pytest_llm_determinism import fanout
from pytest_llm_determinism.budget import Budget, share
from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.sampling import Plan, Sampler
from pytest_llm_determinism.settings import from_text, resolve

ASK = """
import os
import httpx2
client = httpx2.Client()
url = os.environ.get("OPENAI_BASE_URL", "") + "/chat/completions"
def question(prompt):
    return {"model": "m", "messages": [{"role": "user", "content": prompt}]}
def ask(prompt):
    return client.post(url, json=question(prompt)).raise_for_status().json()["choices"][0]["message"]["content"]
"""

FOUR_TESTS = """
import pytest
from app import ask

@pytest.mark.parametrize("topic", ["wine", "cheese", "bread", "jam"])
@pytest.mark.deterministic(runs=6)
def test_it(topic):
    assert ask(topic)
"""

REACHED = "max_calls={0} (--determinism-max-calls) reached"
ADVICE = "raise it, or run again: samples that arrived are kept, and the next session goes on from there"


def reason(calls: int) -> str:
    return f"{REACHED.format(calls)}: {calls} live calls made in this session; {ADVICE}"


def calls_made(report: dict[str, Any]) -> int:
    """What the report says, which must be what the server saw."""
    return sum(found["calls"]["live"] for test in report["tests"].values() for found in test["experiments"])


def stopped(report: dict[str, Any]) -> list[str]:
    return [test["reason"] for test in report["tests"].values() if test["verdict"] == "inconclusive"]


# max_calls


@pytest.mark.parametrize("workers", [0, 3])
def test_not_one_call_too_many_and_the_next_session_asks_only_for_the_rest(
    project: Project, server, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    model = server("Très bon.", latency=0.005)
    project.write(FOUR_TESTS, app=ASK)
    xdist = ("-n", str(workers)) if workers else ()

    first = project.report("--determinism-max-calls=17", *xdist, url=model.url)
    seen_first = len(model.calls)
    rest = project.report("--determinism-max-calls=7", *xdist, url=model.url)
    spent = project.report("--determinism-max-calls=0", *xdist, url=model.url)

    assert (seen_first, calls_made(first)) == (17, 17)
    number = len(stopped(first))
    assert 1 <= number <= 4
    assert stopped(first) == [reason(17)] * number
    note = f"{REACHED.format(17)}: {number} test{'' if number == 1 else 's'} ended inconclusive"
    assert first["result"].outlines.count(note) == 1
    assert (len(model.calls) - seen_first, calls_made(rest), rest["exit"]) == (7, 7, 0)
    assert (len(model.calls), spent["exit"]) == (24, 0)
    assert "reached" not in spent["result"].stdout.str()
    assert list(temporary.iterdir()) == []


def test_a_test_that_is_stopped_says_so_in_full(project: Project, server) -> None:
    model = server("Paris.")
    project.write(FOUR_TESTS.replace('["wine", "cheese", "bread", "jam"]', '["wine"]'), app=ASK)

    found = project.report("--determinism-max-calls=4", url=model.url)

    seed = found["tests"]["test_it[wine]"]["experiments"][0]["seed"]
    shown = found["result"].stdout.str()
    assert f"{reason(4)}\n\nunder burst: 1 unique of 4 runs, " in shown
    assert f"  4 calls live; seed {seed}\n\nverdict     inconclusive\n" in shown
    assert found["exit"] == pytest.ExitCode.TESTS_FAILED


def test_without_a_store_nobody_is_told_to_run_again(project: Project, server) -> None:
    model = server("Paris.")
    project.write(FOUR_TESTS, app=ASK)

    found = project.report("--determinism-max-calls=8", "--determinism-cache=off", url=model.url)

    assert len(model.calls) == 8
    advice = "raise it: with cache=off (--determinism-cache) nothing is kept, and the next session starts anew"
    assert set(stopped(found)) == {f"{REACHED.format(8)}: 8 live calls made in this session; {advice}"}


def test_a_budget_of_the_configuration_file_is_named_after_it(project: Project, server) -> None:
    model = server("Paris.")
    project.write(FOUR_TESTS, app=ASK)
    project.pytester.makeini("[pytest]\ndeterminism_max_calls = 2")

    result = project.pytest("-n2", url=model.url)

    assert len(model.calls) == 2
    assert "max_calls=2 (determinism_max_calls in tox.ini) reached: 4 tests ended inconclusive" in result.outlines


ASYNC = """
import anyio, httpx2, pytest
from app import question, url

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

async def ask(client, prompt):
    await client.post(url, json=question(prompt))

@pytest.mark.anyio
@pytest.mark.deterministic(runs=5)
async def test_it(anyio_backend_name):
    async with httpx2.AsyncClient() as client, anyio.create_task_group() as group:
        for prompt in ("a", "b", "c"):
            START(client, f"{prompt} {anyio_backend_name}")
"""

THREADS = """
import pytest
from concurrent.futures import ThreadPoolExecutor
from app import ask

@pytest.mark.deterministic(runs=5)
@pytest.mark.parametrize("number", [1, 2])
def test_it(number):
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, [f"{prompt} {number}" for prompt in "abc"]))
"""


@pytest.mark.parametrize(
    "body", [ASYNC.replace("START(", "await ask("), THREADS], ids=["one after the other", "threads"]
)
def test_calls_of_event_loops_and_threads_are_counted_like_others(project: Project, server, body: str) -> None:
    model = server("yes", latency=0.005)
    project.write(body, app=ASK)

    first = project.report("--determinism-max-calls=22", "-p", "no:asyncio", url=model.url)
    seen_first = len(model.calls)
    second = project.report("-p", "no:asyncio", url=model.url)

    assert (seen_first, calls_made(first), stopped(first)) == (22, 22, [reason(22)])
    assert (second["exit"], len(model.calls)) == (0, 30)


def test_tasks_that_are_cancelled_because_another_was_refused_make_no_further_call(project: Project, server) -> None:
    model = server("yes", latency=0.005)
    project.write(ASYNC.replace("START(", "group.start_soon(ask, "), app=ASK)

    first = project.report("--determinism-max-calls=22", "-p", "no:asyncio", url=model.url)
    seen_first = len(model.calls)
    second = project.report("-p", "no:asyncio", url=model.url)

    # One that is cancelled on its way is counted, whether it reached the server or not.
    assert seen_first <= calls_made(first) == 22
    assert stopped(first) == [reason(22)]
    assert (second["exit"], calls_made(second)) == (0, len(model.calls) - seen_first)


RETRIES = """
import openai, pytest
client = openai.OpenAI(max_retries=5)

@pytest.mark.deterministic(runs=3)
def test_it():
    try:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}])
    except Exception:
        pass
"""


def test_each_retry_of_a_client_is_a_call(project: Project, server) -> None:
    model = server(lambda call: Reply(status=429, raw=b"{}", headers={"retry-after-ms": "1"}))
    project.write(RETRIES)

    found = project.report("--determinism-max-calls=3", url=model.url)

    assert (len(model.calls), calls_made(found), stopped(found)) == (3, 3, [reason(3)])


RETRIES_WITHIN_REQUESTS = """
import os, pytest, requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry
session = requests.Session()
session.mount("http://", HTTPAdapter(max_retries=Retry(20, status_forcelist=[429], allowed_methods=None)))

@pytest.mark.deterministic(runs=3)
def test_it():
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    session.post(url, json={"model": "m", "messages": [{"role": "user", "content": "a"}]})
"""


def test_each_retry_that_a_library_makes_within_a_call_is_a_call(project: Project, server) -> None:
    model = server(lambda call: Reply("yes") if call.number == 2 else Reply(status=429, raw=b"{}"))
    project.write(RETRIES_WITHIN_REQUESTS)

    found = project.report("--determinism-max-calls=7", url=model.url)

    assert (len(model.calls), calls_made(found), stopped(found)) == (7, 7, [reason(7)])


def test_unmarked_tests_and_repeats_by_hand_draw_on_the_same_budget(project: Project, server) -> None:
    model = server("Paris.")
    project.write(
        """
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_alone(llm, number):
            assert llm(f"capital {number}?", model="m") == "Paris."

        def test_by_hand(llm, determinism):
            determinism.repeat(lambda: llm("capital?", model="m"), runs=4)

        @pytest.mark.deterministic(runs=2)
        def test_gated(llm):
            llm("capital?", model="m")

        def test_alone_in_the_end(llm):
            llm("another capital?", model="m")
        """
    )

    first = project.report("--determinism-max-calls=5", "-vv", url=model.url)
    seen_first = len(model.calls)
    second = project.report("--determinism-max-calls=5", url=model.url)

    first["result"].assert_outcomes(passed=4, failed=2)  # what test_gated needs is in the store already
    assert (seen_first, stopped(first)) == (5, [])
    for name in ("test_by_hand", "test_alone_in_the_end"):
        assert f"FAILED test_it.py::{name} - Inconclusive: {reason(5)}" in first["result"].outlines
    assert (second["exit"], len(model.calls)) == (0, 8)


def test_a_worker_that_crashes_leaves_the_count_to_the_one_in_its_place(project: Project, server) -> None:
    model = server("Très bon.", latency=0.005)
    project.write(
        """
        import os, pytest
        from app import ask

        @pytest.mark.parametrize("number", range(6))
        @pytest.mark.deterministic(runs=6, load="solo")
        def test_it(number, runs=iter(range(100))):
            ask(str(number))
            if number == 1 and next(runs) == 2:
                os._exit(3)
        """,
        app=ASK,
    )

    result = project.pytest("-n1", "--determinism-max-calls=20", url=model.url)

    assert len(model.calls) == 20
    assert "crashed" in result.stdout.str()
    # 6 for the first test, 3 until the crash, 6 for the next, 5 of the one after it.
    result.assert_outcomes(passed=2, failed=4)
    assert f"{REACHED.format(20)}: 3 tests ended inconclusive" in result.outlines


# In this process


def settings(**given: str) -> Any:
    return resolve(from_text(given, {}, "pytest.ini")[0], {}, {})


def sampler(budget: Budget, **changes: Any) -> Sampler:
    plan = {
        "load": "burst",
        "attempt": 0,
        "runs": 12,
        "concurrency": 4,
        "cache": "off",
        "not_before": 0.0,
        "seed": 1,
    }
    return Sampler(Plan(**(plan | changes)), None, budget)


def runs(sampling: Sampler) -> Iterator[int]:
    with observing(sampling):
        for index in range(sampling.plan.runs):
            sampling.start_run(index)
            yield index
            sampling.finish_run()


def question(prompt: str) -> dict[str, Any]:
    return {"json": {"model": "m", "messages": [{"role": "user", "content": prompt}]}, "timeout": 20}


def url(model: ScriptedServer) -> str:
    return f"{model.url}/chat/completions"


def all_free(sampling: Sampler) -> bool:
    return sampling.slots._free == sampling.plan.concurrency


@pytest.mark.parametrize("loop", [asyncio.run, trio.run])
def test_a_wait_that_is_cancelled_gives_up_nothing_but_itself(server, loop: Any) -> None:
    model = server("yes")
    budget = Budget(settings(rate="1/h", max_calls="3"))
    sampling = sampler(budget, runs=2)

    async def main() -> None:
        async with httpx2.AsyncClient() as client:
            for index in runs(sampling):
                with anyio.move_on_after(20 if index == 0 else 0.05) as scope:
                    await client.post(url(model), **question("a"))
                assert scope.cancelled_caught == (index == 1)

    loop(main() if loop is asyncio.run else main)
    assert (len(model.calls), budget.left, sampling.calls.live) == (1, 2, 1)
    assert all_free(sampling)


def test_a_refusal_is_remembered_although_the_application_swallows_it_and_leaves_no_slot_taken(server) -> None:
    model = server("yes")
    sampling = sampler(Budget(settings(max_calls="6")))
    refused = 0
    with httpx2.Client() as client:
        for _ in runs(sampling):
            try:
                client.post(url(model), **question("a"))
            except Refusal:
                refused += 1
    assert (len(model.calls), refused) == (6, 6)
    assert sampling.refusal == reason(6)
    assert all_free(sampling)


def test_a_run_that_has_its_answer_does_not_mind_that_no_call_is_left_for_those_after_it(
    server, tmp_path: Path
) -> None:
    share(tmp_path)
    model = server("yes", latency=0.1)
    ours, other = (Budget(settings(max_calls="10"), tmp_path) for _ in range(2))
    sampling = sampler(ours, runs=3, concurrency=2)
    with httpx2.Client() as client, closing(ours), closing(other):
        sampled = runs(sampling)
        next(sampled)
        client.post(url(model), **question("a"))
        for _ in range(8):
            other.take(0.0)
        next(sampled)
        assert client.post(url(model), **question("a")).status_code == 200
        assert sampling.refusal is None
        next(sampled)
        with pytest.raises(Refusal):
            client.post(url(model), **question("a"))
        sampled.close()
    assert len(model.calls) == 2


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer")
def test_calls_of_a_test_that_was_broken_off_while_they_waited_do_not_go_out_later(server) -> None:
    model = server("yes")
    sampling = sampler(Budget(settings(rate="2/s")))

    class TimedOut(BaseException):
        pass

    def strike(*_: object) -> None:
        raise TimedOut

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with httpx2.Client() as client:
            sampled = runs(sampling)
            next(sampled)
            client.post(url(model), **question("a"))
            next(sampled)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(TimedOut):
                client.post(url(model), **question("a"))
            # Not by joining threads: CPython 3.11 takes one for ended whose join() a signal interrupted.
            deadline = time.monotonic() + 30
            while not all_free(sampling) and time.monotonic() < deadline:
                time.sleep(0.01)
            sampled.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert all_free(sampling)
    assert len(model.calls) == 1


# rate


def assert_paced(model: ScriptedServer, interval: float) -> None:
    """No more calls in any stretch of time than the rate says, but for two that were late: a first call, for which a
    library is imported and a connection opened, takes longer to arrive than those after it."""
    at = sorted(call.at for call in model.calls)
    assert len(at) >= 6
    for number in range(3, len(at)):
        assert all(at[index + number] - at[index] >= (number - 2) * interval for index in range(len(at) - number))


@pytest.mark.parametrize("workers", [0, 2])
def test_calls_start_no_faster_than_the_rate_whatever_the_number_of_workers(
    project: Project, server, workers: int
) -> None:
    model = server("Très bon.", latency=0.02)
    project.write(FOUR_TESTS.replace("runs=6", "runs=3"), app=ASK)

    result = project.pytest("--determinism-rate=10/s", *(("-n", str(workers)) if workers else ()), url=model.url)

    result.assert_outcomes(passed=4)
    assert len(model.calls) == 12
    assert_paced(model, 0.1)


@pytest.mark.parametrize("loop", [asyncio.run, trio.run])
def test_an_event_loop_goes_on_while_calls_wait_for_their_turn(server, loop: Any) -> None:
    model = server("yes")
    sampling = sampler(Budget(settings(rate="5/s")), runs=6)
    ticks = 0

    async def main() -> None:
        async with httpx2.AsyncClient() as client, anyio.create_task_group() as group:
            group.start_soon(tick)
            for _ in runs(sampling):
                await client.post(url(model), **question("a"))
            group.cancel_scope.cancel()

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(0.001)
            ticks += 1

    loop(main() if loop is asyncio.run else main)
    assert len(model.calls) == 6
    assert_paced(model, 0.2)
    # A second has about a thousand; a loop that stands still in between has some for each call.
    assert ticks > 100


def test_threads_share_the_rate(server) -> None:
    model = server("yes")
    sampling = sampler(Budget(settings(rate="10/s")), runs=4)
    with httpx2.Client() as client:
        for _ in runs(sampling):
            threads = [
                threading.Thread(target=client.post, args=(url(model),), kwargs=question(prompt)) for prompt in "abc"
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
    assert len(model.calls) == 12
    assert_paced(model, 0.1)


def test_turns_are_not_saved_up_while_all_slots_are_taken(server) -> None:
    def answer(call: Call) -> str:
        time.sleep(0.6 if call.number == 0 else 0.0)
        return "yes"

    model = server(answer)
    sampling = sampler(Budget(settings(rate="5/s")), runs=1, concurrency=1)
    with httpx2.Client() as client, ThreadPoolExecutor(3) as pool:
        for _ in runs(sampling):
            list(pool.map(lambda prompt: client.post(url(model), **question(prompt)), "abc"))
    first, second, third = (call.at for call in model.calls)
    assert second - first >= 0.55
    assert third - second >= 0.1


def test_turns_that_come_too_late_for_the_call_of_the_application_are_left_to_later_runs(
    server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "PATIENCE", 0.1)
    model = server("yes")
    sampling = sampler(Budget(settings(rate="1/s")), runs=3)
    made, lasted = [], []
    with httpx2.Client() as client:
        for _ in runs(sampling):
            client.post(url(model), **question("a"))
            made.append(len(model.calls))
            lasted.append(time.monotonic() - model.calls[-1].at)
            time.sleep(1)  # so that the next run's own call need not wait
    assert made == [1, 2, 3]
    # The call returns when it is answered, and not when another could have gone out.
    assert max(lasted) < 0.9


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_ends_the_wait(project: Project, server, monkeypatch: pytest.MonkeyPatch) -> None:
    model = server("yes")
    project.write(FOUR_TESTS, app=ASK)
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    command = [*project.pytester._getpytestargs(), *QUIET, "--determinism-rate=1/h"]
    process = project.pytester.popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(model.calls) == 1)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output.decode()
    assert len(model.calls) == 1


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
