"""What goes wrong on the way is never an output and never kept, and the application meets it as it would alone."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import openai
import pytest
from conftest import ASK, Project
from scripted import Call, Reply, Script, ScriptedServer

from pytest_llm_determinism import fanout
from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import Plan, Sampler
from pytest_llm_determinism.store import SampleStore

MESSAGES: list[Any] = [{"role": "user", "content": "capital?"}]
SOON = {"retry-after-ms": "1"}
"""Makes the SDK retry at once."""

BROKEN: dict[str, Reply] = {
    "an error of the server": Reply(raw=b'{"error": {"message": "out of order"}}', status=500),
    "too many requests": Reply(raw=b'{"error": {"message": "slow down"}}', status=429),
    "a connection that is reset": Reply("yes", reset=True),
    "a body that ends too early": Reply("yes", cut=True),
    "HTML where JSON was promised": Reply(raw=b"<html>Bad Gateway</html>"),
    "HTML that says so": Reply(raw=b"<html>Bad Gateway</html>", content_type="text/html"),
    "an error in a successful response": Reply(raw=b'{"error": {"message": "overloaded"}}'),
    "a body without an answer": Reply(raw=b'{"object": "chat.completion", "choices": []}'),
    "an empty body": Reply(raw=b""),
}
BROKEN_STREAMS: dict[str, Reply] = {
    "an error of the server": Reply(raw=b'{"error": {"message": "out of order"}}', status=500),
    "a connection that is reset": Reply("yes", reset=True),
    "a stream whose connection ends": Reply("yes and no and yes and no", cut=True),
    "a stream without an end": Reply(
        raw=b'data: {"choices": [{"index": 0, "delta": {"content": "ye"}}]}\n\n', content_type="text/event-stream"
    ),
    "an error under way": Reply(
        raw=b'data: {"choices": [{"index": 0, "delta": {"content": "ye"}}]}\n\n'
        b'data: {"error": {"message": "overloaded"}}\n\ndata: [DONE]\n\n',
        content_type="text/event-stream",
    ),
    "an event that is not JSON": Reply(raw=b"data: {oops\n\ndata: [DONE]\n\n", content_type="text/event-stream"),
    "an empty stream": Reply(raw=b"", content_type="text/event-stream"),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    opened = SampleStore(tmp_path / "store")
    yield opened
    opened.close()


def sampler(store: SampleStore | None = None, **changes: Any) -> Sampler:
    settings = {
        "load": "burst",
        "attempt": 0,
        "runs": 8,
        "concurrency": 4,
        "cache": "auto",
        "not_before": 0.0,
        "seed": 1,
    }
    return Sampler(Plan(**(settings | changes)), store)


def sample(body: Callable[[], object], sampling: Sampler) -> list[Run]:
    """The runs of a body whose exceptions are of no interest here."""
    runs = []
    with observing(sampling):
        for index in range(sampling.plan.runs):
            sampling.start_run(index)
            outcome(body)
            runs.append(sampling.finish_run())
    return runs


def outcome(body: Callable[[], object]) -> str:
    """What the application meets: what it is given, or what is raised."""
    try:
        return repr(body())
    except Exception as error:
        return type(error).__name__


def outputs(runs: list[Run]) -> list[tuple[str, ...]]:
    return [tuple(exchange.output for exchange in run.exchanges) for run in runs]


def client(model: ScriptedServer, retries: int = 0, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=model.url, api_key="sk-test", max_retries=retries, **options)


def ask(asking: openai.OpenAI) -> str | None:
    answer: Any = asking.chat.completions.create(model="m", messages=MESSAGES)
    return answer.choices[0].message.content if hasattr(answer, "choices") else answer


def ask_streamed(asking: openai.OpenAI) -> str:
    chunks = asking.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def failing(reply: Reply, *numbers: int) -> Script:
    """The calls of these numbers get the reply, all others an answer."""
    return lambda call: reply if call.number in numbers else f"yes {call.number}"


# What lasts


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_answer_is_an_error_never_an_output_and_never_kept(server, store: SampleStore, name: str) -> None:
    model = server(lambda call: BROKEN[name])
    sampling = sampler(store, runs=3)
    with client(model) as asking:
        alone = outcome(lambda: ask(asking))
        met = []
        runs = sample(lambda: met.append(outcome(lambda: ask(asking))), sampling)
    assert met == [alone] * 3
    assert [bool(run.error) for run in runs] == [True] * 3
    assert outputs(runs) == [()] * 3
    assert not store.directory.exists()
    assert len(model.calls) == 1 + 3  # nothing was fetched ahead on the strength of errors


@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_stream_that_is_no_answer_is_an_error_never_an_output_and_never_kept(
    server, store: SampleStore, name: str
) -> None:
    model = server(lambda call: BROKEN_STREAMS[name])
    sampling = sampler(store, runs=3)
    with client(model) as asking:
        alone = outcome(lambda: ask_streamed(asking))
        met = []
        runs = sample(lambda: met.append(outcome(lambda: ask_streamed(asking))), sampling)
    assert met == [alone] * 3
    assert [bool(run.error) for run in runs] == [True] * 3
    assert outputs(runs) == [()] * 3
    assert not store.directory.exists()


@pytest.mark.parametrize("name", ["an error of the server", "a connection that is reset", "a body that ends too early"])
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_an_async_client_meets_the_same(server, store: SampleStore, library: Any, name: str) -> None:
    model = server(lambda call: BROKEN[name])

    async def asked() -> Any:
        async with library.AsyncClient() as asking:
            return (await asking.post(f"{model.url}/chat/completions", json={"messages": MESSAGES})).text

    alone = outcome(lambda: asyncio.run(asked()))
    met: list[str] = []
    runs = sample(lambda: met.append(outcome(lambda: asyncio.run(asked()))), sampler(store, runs=3))
    assert met == [alone] * 3
    assert [bool(run.error) for run in runs] == [True] * 3
    assert not store.directory.exists()


def test_an_error_that_the_application_swallows_counts_for_its_run(server) -> None:
    model = server(failing(BROKEN["an error of the server"], 0, 4))
    with client(model) as asking:

        def body() -> None:
            outcome(lambda: ask(asking))
            asking.completions.create(model="m", prompt="Say yes.")

        runs = sample(body, sampler(concurrency=1))
    assert [run.index for run in runs if run.error] == [0, 2]
    assert str(runs[0].error).startswith("HTTP 500: ")


# What a retry mends


@pytest.mark.parametrize("name", ["an error of the server", "too many requests"])
def test_the_sdk_retries_and_only_what_it_got_in_the_end_counts(server, store: SampleStore, name: str) -> None:
    reply = Reply(raw=b"{}", status=BROKEN[name].status, headers=SOON)
    model = server(failing(reply, 0, 1))
    with client(model, retries=2) as asking:
        runs = sample(lambda: ask(asking), sampler(store))
    assert [run.error for run in runs] == [None] * 8
    assert sorted(outputs(runs)) == [(f"yes {number}",) for number in range(2, 10)]
    assert len(model.calls) == 2 + 8


def test_too_many_requests_with_retry_after_0(server) -> None:
    model = server(failing(Reply(raw=b"{}", status=429, headers={"retry-after": "0"}), 0))
    with client(model, retries=1) as asking:
        runs = sample(lambda: ask(asking), sampler(runs=2))
    assert ([run.error for run in runs], len(model.calls)) == ([None, None], 3)


@pytest.mark.parametrize("name", ["a connection that is reset", "a body that ends too early"])
def test_a_broken_connection_is_retried_too(server, store: SampleStore, name: str) -> None:
    model = server(failing(BROKEN[name], 0))
    with client(model, retries=1) as asking:
        runs = sample(lambda: ask(asking), sampler(store))
    assert [run.error for run in runs] == [None] * 8
    assert len({output for run in outputs(runs) for output in run}) == 8


def test_a_call_that_took_too_long_is_retried_and_its_late_answer_belongs_to_nobody(server) -> None:
    released = threading.Event()
    model = server(lambda call: "late" if call.number == 0 and released.wait(10) else "yes")
    with client(model, retries=1, timeout=0.5) as asking:
        runs = sample(lambda: ask(asking), sampler(runs=3))
        released.set()
    assert outputs(runs) == [("yes",)] * 3
    assert [run.error for run in runs] == [None] * 3


# What goes wrong ahead


@pytest.fixture
def own_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], Script]:
    """The second run's own call reaches the server, as number 1, before those that it fetches ahead."""
    arrived, turns = threading.Event(), itertools.count()

    def wait_for_turn(_: float) -> None:
        if next(turns) > 1:  # neither the first run's only call nor the first worker of the second run
            arrived.wait(10)

    def watched(script: Script) -> Script:
        def answer(call: Call) -> str | Reply:
            if call.number == 1:
                arrived.set()
            return script(call)

        return answer

    monkeypatch.setattr(fanout, "time", SimpleNamespace(sleep=wait_for_turn, monotonic=time.monotonic))
    return watched


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "too many requests"])
def test_a_call_fetched_ahead_that_fails_is_forgotten_and_asked_by_its_run(
    server, store: SampleStore, own_first: Callable[[Script], Script], name: str
) -> None:
    model = server(own_first(failing(BROKEN[name], 3, 5)))
    with client(model) as asking:
        runs = sample(lambda: ask(asking), sampler(store))
    assert [run.error for run in runs] == [None] * 8
    assert len(set(outputs(runs))) == 8
    assert len(model.calls) == 8 + 2


def test_after_too_many_requests_nothing_more_is_fetched_ahead(server, own_first: Callable[[Script], Script]) -> None:
    def answer(call: Call) -> str | Reply:
        if call.number == 1:
            time.sleep(0.3)  # the run's own call is under way long enough for all the others
        return Reply(raw=b"{}", status=429) if call.number == 2 else "yes"

    model = server(own_first(answer))
    with client(model) as asking:
        runs = sample(lambda: ask(asking), sampler(runs=20, concurrency=2))
    assert [run.error for run in runs] == [None] * 20
    assert len(model.calls) == 21
    assert model.calls[3].at - model.calls[1].at >= 0.3


# Giving up


def test_a_call_that_the_application_gives_up_on_does_not_break_later_runs(server) -> None:
    arrived, released = threading.Event(), threading.Event()

    def answer(call: Call) -> str:
        if call.number == 0:
            arrived.set()
            released.wait(10)
        return f"yes {call.number}"

    model = server(answer)
    sampling = sampler(runs=4, concurrency=1)

    async def main() -> list[Run]:
        runs = []
        async with openai.AsyncOpenAI(base_url=model.url, api_key="sk-test", max_retries=0) as asking:
            with observing(sampling):
                for index in range(4):
                    sampling.start_run(index)
                    call = asyncio.create_task(asking.chat.completions.create(model="m", messages=MESSAGES))
                    if index == 0:
                        assert await asyncio.to_thread(arrived.wait, 10)
                        with pytest.raises(TimeoutError):
                            await asyncio.wait_for(call, 0)
                        released.set()
                    await asyncio.wait([call])
                    runs.append(sampling.finish_run())
        return runs

    runs = asyncio.run(main())
    assert outputs(runs) == [(), ("yes 1",), ("yes 2",), ("yes 3",)]
    assert [run.error for run in runs] == [None] * 4
    assert sampling.slots._free == 1


def test_giving_up_while_calls_are_fetched_ahead_leaves_every_run_with_its_own_answer(server, store) -> None:
    arrived, released = threading.Semaphore(0), threading.Event()

    def answer(call: Call) -> str:
        if 1 <= call.number <= 4:
            arrived.release()
            released.wait(10)
        return f"yes {call.number}"

    model = server(answer)
    sampling = sampler(store)

    async def main() -> list[Run]:
        runs = []
        async with openai.AsyncOpenAI(base_url=model.url, api_key="sk-test", max_retries=0) as asking:
            with observing(sampling):
                for index in range(8):
                    sampling.start_run(index)
                    call = asyncio.create_task(asking.chat.completions.create(model="m", messages=MESSAGES))
                    if index == 1:
                        for _ in range(4):
                            assert await asyncio.to_thread(arrived.acquire, timeout=10)
                        call.cancel()
                        released.set()
                    await asyncio.wait([call])
                    runs.append(sampling.finish_run())
        return runs

    runs = asyncio.run(main())
    assert outputs(runs)[1] == ()
    answers = [output for run in outputs(runs) for output in run]
    assert len(set(answers)) == 7
    assert [run.error for run in runs] == [None] * 8
    assert sampling.slots._free == 4


# The verdict


def test_errors_are_counted_against_max_errors_even_when_they_are_swallowed(project: Project, server) -> None:
    model = server(lambda call: BROKEN["an error of the server"] if call.number in (2, 5, 12, 15) else "yes")
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=10, load="solo")
        def test_swallowed():
            try:
                ask("capital?")
            except Exception:
                pass
        """,
        app=ASK,
    )
    lenient = project.report("--determinism-max-errors=2", "--determinism-cache=off", url=model.url)
    strict = project.report(url=model.url)
    again = project.report(url=model.url)

    (passed,) = lenient["tests"]["test_swallowed"]["experiments"]
    assert (lenient["exit"], passed["completed"], passed["errors"], passed["unique"]) == (0, 8, 2, 1)
    (failed,) = strict["tests"]["test_swallowed"]["experiments"]
    assert (strict["exit"], failed["completed"], failed["errors"]) == (1, 8, 2)
    assert strict["tests"]["test_swallowed"]["verdict"] == "inconclusive"
    strict["result"].stdout.fnmatch_lines(
        ["*2 of 10 runs ended in an API error, max_errors=0: HTTP 500*out of order*", "*runs 2, 5*"]
    )

    assert (again["exit"], again["tests"]["test_swallowed"]["experiments"][0]["calls"]["live"]) == (0, 2)


def test_an_error_that_lasts_is_reported_once_as_the_application_met_it(project: Project, server) -> None:
    model = server(lambda call: Reply(raw=json.dumps({"error": {"message": "no such model"}}).encode(), status=404))
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=5)
        def test_it():
            ask("capital?")
        """,
        app=ASK,
    )
    report = project.report(url=model.url)
    assert (report["exit"], report["tests"]["test_it"]["verdict"]) == (1, "inconclusive")
    assert len(model.calls) == 5
    report["result"].stdout.fnmatch_lines(["*5 of 5 runs ended in an API error*HTTP 404*no such model*"])
