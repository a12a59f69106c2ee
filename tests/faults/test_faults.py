"""What goes wrong on the way is never an output and never kept, and the application meets it as it would alone."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import openai
import pytest
import requests
from conftest import ASK, QUIET, Project
from scripted import Call, Reply, Script, ScriptedServer

from pytest_llm_determinism import fanout
from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import Plan, Sampler
from pytest_llm_determinism.store import SampleStore

MESSAGES: list[Any] = [{"role": "user", "content": "capital?"}]
SOON = {"retry-after-ms": "1"}
"""Makes the SDK retry at once."""

SLOW_DOWN = b'{"error": {"message": "slow down"}}'
OUT_OF_ORDER = b'{"error": {"message": "out of order"}}'


@dataclass(frozen=True)
class Fault:
    """One way to go wrong.

    Attributes:
        reply: what the server answers.
        error: what the run's error says, as a regular expression.
        late: seconds the server takes, longer than any client here waits.
        host: where the client asks, instead of the server.
        gone: nobody listens at the server's address any more.
        proxy: where the client's environment says that its requests are to be sent.
    """

    reply: Reply
    error: str
    late: float = 0.0
    host: str | None = None
    gone: bool = False
    proxy: str | None = None


YES = Reply("yes and no and yes and no")
WHOLE = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}'
FAULTS = {
    "429": Fault(Reply(raw=SLOW_DOWN, status=429), "^HTTP 429: slow down$"),
    "429 with Retry-After": Fault(
        Reply(raw=SLOW_DOWN, status=429, headers={"retry-after": "7"}), "^HTTP 429: slow down$"
    ),
    "500": Fault(Reply(raw=OUT_OF_ORDER, status=500), "^HTTP 500: out of order$"),
    "503 with nothing to say": Fault(Reply(raw=b"", status=503), "^HTTP 503$"),
    "502 in HTML": Fault(Reply(raw=b"<html>\n<b>Bad Gateway</b>", status=502), "^HTTP 502: <html> <b>Bad Gateway</b>$"),
    "an answer with the status of an error": Fault(Reply("yes", status=500), "^HTTP 500: "),
    "a connection that is reset": Fault(
        Reply("yes", reset=True), r"^(ReadError|ProtocolError|ClientOSError).* \(asking 127\.0\.0\.1:\d+\)$"
    ),
    "a body or stream that ends too early": Fault(
        Reply("yes and no and yes and no", cut=True),
        "^(RemoteProtocolError|ProtocolError|EOFError|ClientPayloadError): ",
    ),
    "an answer whose last blanks are missing": Fault(
        Reply(raw=WHOLE + b" " * len(WHOLE), cut=True),
        "^(RemoteProtocolError|ProtocolError|EOFError|ClientPayloadError): ",
    ),
    "an answer that takes too long": Fault(YES, "^(Read|Socket|Server)Timeout", late=0.6),
    "HTML where JSON was promised": Fault(Reply(raw=b"<html>Bad Gateway"), "^not JSON: '<html>Bad Gateway'$"),
    "HTML that says so": Fault(
        Reply(raw=b"<html>Bad Gateway", content_type="text/html"), "^not JSON but text/html: '<html>Bad Gateway'$"
    ),
    "JSON that breaks off": Fault(Reply(raw=b'{"choices": ['), """^not JSON: '{"choices": \\['$"""),
    "an empty body": Fault(Reply(raw=b""), "^an empty response$"),
    "an error in a successful response": Fault(
        Reply(raw=b'{"error": {"message": "overloaded"}}'), "^an error in a successful response: .*overloaded"
    ),
    "a body without an answer": Fault(
        Reply(raw=b'{"object": "chat.completion", "choices": []}'), "^a response without an answer: "
    ),
    "a host that has no address": Fault(YES, r"Error.*nonexistent\.invalid", host="nonexistent.invalid"),
    "a proxy that is not there": Fault(YES, "^(Connect|Proxy|ClientProxyConnection)Error", proxy="http://127.0.0.1:9"),
    "a server that is not there": Fault(YES, r"^(Connect|NewConnection|ClientConnector)Error.*127\.0\.0\.1", gone=True),
}
BROKEN_STREAMS = {
    "a stream without an end": (
        b'data: {"choices": [{"index": 0, "delta": {"content": "ye"}}]}\n\n',
        "^a stream that broke off before its end$",
    ),
    "an error under way": (
        b'data: {"error": {"message": "overloaded"}}\n\ndata: [DONE]\n\n',
        "^a stream that ended in an error: .*overloaded",
    ),
    "an event that is not JSON": (
        b"data: {oops\n\ndata: [DONE]\n\n",
        "^a stream with an event that is not JSON: '{oops'",
    ),
    "an empty stream": (b"", "^a stream that broke off before its end$"),
}
FAULTS_OF_STREAMS = {
    name: FAULTS[name]
    for name in (
        "429",
        "an answer with the status of an error",
        "a connection that is reset",
        "a body or stream that ends too early",
        "an answer that takes too long",
        "HTML that says so",
        "an error in a successful response",
    )
} | {
    name: Fault(Reply(raw=raw, content_type="text/event-stream"), error)
    for name, (raw, error) in BROKEN_STREAMS.items()
}
BROKEN: dict[str, Reply] = {
    name: FAULTS[name].reply
    for name in (
        "429",
        "500",
        "a connection that is reset",
        "a body or stream that ends too early",
        "HTML where JSON was promised",
        "an error in a successful response",
        "an empty body",
    )
}
"""Those that are sure to fail one call and leave the next alone."""


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
    """What the application meets: what it is given, or the types of what is raised and of its causes."""
    try:
        return repr(body())
    except Exception as error:
        raised: BaseException | None = error
        chain = []
        while raised is not None:
            chain.append(type(raised).__qualname__)
            raised = raised.__cause__
        return " from ".join(chain)


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


Asked = Callable[[str, bool, float], object]
"""Asks at a base URL, for a stream or not, waiting so many seconds, and gives what the application would use."""


def ask_openai(url: str, stream: bool, patience: float) -> object:
    with openai.OpenAI(base_url=url, api_key="sk-test", max_retries=0, timeout=patience) as asking:
        return ask_streamed(asking) if stream else ask(asking)


def ask_openai_async(url: str, stream: bool, patience: float) -> object:
    async def asked() -> object:
        async with openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0, timeout=patience) as asking:
            answer: Any = await asking.chat.completions.create(model="m", messages=MESSAGES, stream=stream)
            if stream:
                return [chunk.choices[0].delta.content async for chunk in answer]
            return answer.choices[0].message.content if hasattr(answer, "choices") else answer

    return asyncio.run(asked())


def ask_httpx_async(url: str, stream: bool, patience: float) -> object:
    async def asked() -> object:
        async with httpx.AsyncClient(timeout=patience) as asking:
            body = {"messages": MESSAGES, "stream": stream}
            async with asking.stream("POST", f"{url}/chat/completions", json=body) as answer:
                answer.raise_for_status()
                return [line async for line in answer.aiter_lines()] if stream else json.loads(await answer.aread())

    return asyncio.run(asked())


def ask_requests(url: str, stream: bool, patience: float) -> object:
    body = {"messages": MESSAGES, "stream": stream}
    with requests.post(f"{url}/chat/completions", json=body, stream=stream, timeout=patience) as answer:
        answer.raise_for_status()
        return b"".join(answer.iter_content(None)) if stream else answer.json()


def ask_aiohttp(url: str, stream: bool, patience: float) -> object:
    async def asked() -> object:
        timeout = aiohttp.ClientTimeout(sock_read=patience)
        body = {"messages": MESSAGES, "stream": stream}
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as asking,
            asking.post(f"{url}/chat/completions", json=body) as answer,
        ):
            answer.raise_for_status()
            return [line async for line in answer.content] if stream else await answer.json()

    return asyncio.run(asked())


WAYS = (ask_openai, ask_openai_async, ask_httpx_async, ask_requests, ask_aiohttp)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("stream", "name"), [(False, name) for name in FAULTS] + [(True, name) for name in FAULTS_OF_STREAMS]
)
def test_what_is_no_answer_is_an_error_never_an_output_and_never_kept(
    server, store: SampleStore, monkeypatch: pytest.MonkeyPatch, way: Asked, stream: bool, name: str
) -> None:
    fault = (FAULTS_OF_STREAMS if stream else FAULTS)[name]

    def answer(_: Call) -> Reply:
        time.sleep(fault.late)
        return replace(fault.reply)

    model = server(answer)
    url = f"http://{fault.host}/v1" if fault.host else model.url
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
        if fault.proxy:
            monkeypatch.setenv(variable, fault.proxy)
    if fault.gone:
        model.close()
    patience = 0.3 if fault.late else 30.0
    sampling = sampler(store, runs=3)
    alone = outcome(lambda: way(url, stream, patience))
    met: list[str] = []
    runs = sample(lambda: met.append(outcome(lambda: way(url, stream, patience))), sampling)

    assert met == [alone] * 3
    assert [bool(run.error and re.search(fault.error, run.error)) for run in runs] == [True] * 3, runs[0].error
    assert outputs(runs) == [()] * 3
    assert not store.directory.exists()
    # Nothing was fetched ahead on the strength of errors.
    assert len(model.calls) == (0 if fault.host or fault.proxy or fault.gone else 1 + 3)


def test_errors_are_told_without_the_credentials_of_the_request(server) -> None:
    model = server(lambda call: Reply(raw=f"no {call.headers['authorization']}, {call.path}".encode(), status=401))
    url = f"{model.url.replace('//', '//user:pass-of-mine@')}/chat/completions?api_key=key-of-mine"
    urls = iter([url, url.replace("127.0.0.1", "nonexistent.invalid")])
    with httpx2.Client(auth=lambda request: request) as asking:
        headers = {"authorization": "Bearer sk-of-mine"}
        runs = sample(lambda: asking.post(next(urls), json={"messages": MESSAGES}, headers=headers), sampler(runs=2))
    assert "of-mine" not in str(runs)
    assert runs[0].error == "HTTP 401: no Bearer [secret], /v1/chat/completions?api_key=[secret]"
    assert re.fullmatch(r"ConnectError: .* \(asking nonexistent\.invalid:\d+\)", str(runs[1].error))


def test_an_error_that_the_application_swallows_counts_for_its_run(server) -> None:
    model = server(failing(BROKEN["500"], 0, 4))
    with client(model) as asking:

        def body() -> None:
            outcome(lambda: ask(asking))
            asking.completions.create(model="m", prompt="Say yes.")

        runs = sample(body, sampler(concurrency=1))
    assert [run.index for run in runs if run.error] == [0, 2]
    assert str(runs[0].error).startswith("HTTP 500: ")


# What a retry mends


@pytest.mark.parametrize("name", ["500", "429"])
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


@pytest.mark.parametrize("name", ["a connection that is reset", "a body or stream that ends too early"])
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

    def wait_for_turn(*_: object) -> float:
        if next(turns) > 1:  # neither the first run's only call nor the first worker of the second run
            arrived.wait(10)
        return 0.0

    def watched(script: Script) -> Script:
        def answer(call: Call) -> str | Reply:
            if call.number == 1:
                arrived.set()
            return script(call)

        return answer

    monkeypatch.setattr(fanout._Batch, "before_start", wait_for_turn)
    return watched


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "429"])
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
    model = server(lambda call: BROKEN["500"] if call.number in (2, 5, 12, 15) else "yes")
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


def test_a_server_that_goes_half_way_leaves_what_it_answered(project: Project, server) -> None:
    def answer(call: Call) -> str | Reply:
        if call.number < 4:
            return "yes"
        model.close()
        return Reply(reset=True)

    model = server(answer)
    project.write(
        """
        import openai, pytest

        @pytest.mark.deterministic(runs=10, load="solo")
        def test_it():
            with openai.OpenAI(max_retries=0) as client:
                messages = [{"role": "user", "content": "capital?"}]
                client.chat.completions.create(model="m", messages=messages, temperature=0)
        """
    )
    strict = project.report(url=model.url)
    lenient = project.report("--determinism-max-errors=6", url=model.url)
    replay = project.report("--determinism-cache=replay", url=model.url)

    host = model.url.removeprefix("http://").removesuffix("/v1")
    lines = strict["result"].stdout.lines
    start = next(number for number, line in enumerate(lines) if "_ test_it _" in line) + 1
    assert (
        re.sub(r"seed \d+", "seed N", "\n".join(lines[start : start + 10]))
        == f"""\
6 of 10 runs ended in an API error, max_errors=0: ConnectError: [Errno 111] Connection refused (asking {host})

under solo: 1 unique of 4 runs, another call agrees at least 36.8 % of the time, at 95 %
  4 × “yes”
  5 × ConnectError: [Errno 111] Connection refused (asking {host})  (runs 5, 6, 7, 8, 9)
  1 × ReadError: [Errno 104] Connection reset by peer (asking {host})  (run 4)
  10 calls live; seed N

verdict     inconclusive
decided by  max_errors=0 (default)"""
    )
    assert lenient["tests"]["test_it"]["verdict"] == "passed"
    calls = lenient["tests"]["test_it"]["experiments"][0]["calls"]
    assert (calls["cached"], calls["live"]) == (4, 6)
    assert replay["tests"]["test_it"]["reason"].startswith("a sample is not in the store and cache=replay")
    assert "(run 4, " in replay["tests"]["test_it"]["reason"]


def test_errors_that_differ_in_ids_alone_are_told_once(project: Project, server) -> None:
    def answer(call: Call) -> Reply:
        status, text = (429, "slow down") if call.number % 3 == 2 else (500, "failed")
        return Reply(raw=json.dumps({"error": {"message": f"{text}, see req_{call.number}x7"}}).encode(), status=status)

    model = server(answer)
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=12)
        def test_it():
            try:
                ask("capital?")
            except Exception:
                pass
        """,
        app=ASK,
    )
    found = project.report(url=model.url)["tests"]["test_it"]
    assert found["reason"] == "12 of 12 runs ended in an API error, max_errors=0: HTTP 500: failed, see req_0x7"
    assert found["experiments"][0]["error_messages"] == [
        {"error": "HTTP 500: failed, see req_0x7", "runs": [0, 1, 3, 4, 6, 7, 9, 10]},
        {"error": "HTTP 429: slow down, see req_2x7", "runs": [2, 5, 8, 11]},
    ]


def test_ctrl_c_while_async_calls_are_fetched_ahead_keeps_what_arrived(
    project: Project, server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, interrupted = threading.Semaphore(0), threading.Event()

    def answer(call: Call) -> str:
        if call.number >= 8 and not interrupted.is_set():
            stuck.release()
            interrupted.wait(60)
        return "Paris."

    model = server(answer)
    project.write(
        """
        import openai, pytest

        @pytest.mark.deterministic(runs=20, concurrency=4)
        @pytest.mark.asyncio
        async def test_it():
            async with openai.AsyncOpenAI(max_retries=0) as client:
                messages = [{"role": "user", "content": "capital?"}]
                await client.chat.completions.create(model="m", messages=messages, temperature=0)
        """
    )
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    process = project.pytester.popen([*project.pytester._getpytestargs(), *QUIET], stdin=subprocess.DEVNULL)
    try:
        # With four calls that hang, all before them have arrived.
        for _ in range(4):
            assert stuck.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        interrupted.set()
        process.kill()

    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output.decode()
    rest = project.report(url=model.url)["tests"]["test_it"]["experiments"][0]["calls"]
    assert (rest["live"], rest["cached"]) == (12, 8)
