"""The load `crowd`: neighbours as the server sees them, through every kind of client, and as a report tells of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import aiohttp
import anyio
import httpx
import httpx2
import openai
import pytest
import requests
import trio
import urllib3
from conftest import ASK, QUIET, Project
from scripted import Call, Reply, ScriptedServer

from pytest_llm_determinism import crowd, neighbours
from pytest_llm_determinism.budget import Budget
from pytest_llm_determinism.crowd import NeighbourCount
from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import Plan, Sampler
from pytest_llm_determinism.settings import from_text, resolve

KEY = "sk-test-secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}
QUESTION = "capital?"
NONE_NEEDED = "load=solo and load=burst need none"


def body(prompt: str = QUESTION, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "user": "MINE", **more}


def sampler(budget: Budget | None = None, **changes: Any) -> Sampler:
    plan = {
        "load": "crowd",
        "attempt": 0,
        "runs": 12,
        "concurrency": 2,
        "neighbours": 4,
        "cache": "off",
        "not_before": 0.0,
        "seed": 1,
    }
    return Sampler(Plan(**(plan | changes)), None, budget)


def sample(sampling: Sampler, ask: Callable[[], object]) -> list[Run]:
    runs = []
    with observing(sampling):
        for index in range(sampling.plan.runs):
            sampling.start_run(index)
            ask()
            runs.append(sampling.finish_run())
    return runs


async def sample_async(sampling: Sampler, ask: Callable[[], Awaitable[object]]) -> list[Run]:
    runs = []
    with observing(sampling):
        for index in range(sampling.plan.runs):
            sampling.start_run(index)
            await ask()
            runs.append(sampling.finish_run())
    return runs


def url(model: ScriptedServer) -> str:
    return f"{model.url}/chat/completions"


def sampled(model: ScriptedServer) -> list[Call]:
    return [call for call in model.calls if call.prompt == QUESTION]


def others(model: ScriptedServer) -> list[Call]:
    return [call for call in model.calls if call.prompt != QUESTION]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("determinism-neigh")]


# Every kind of client


def with_httpx(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    with httpx.Client(headers=HEADERS) as client:
        return sample(sampling, lambda: client.post(url(model), json=body()))


def with_httpx_async_under_trio(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    async def main() -> list[Run]:
        async with httpx2.AsyncClient(headers=HEADERS) as client:
            return await sample_async(sampling, lambda: client.post(url(model), json=body()))

    return trio.run(main)


def with_openai(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    with openai.OpenAI(base_url=model.url, api_key=KEY, max_retries=0) as client:
        return sample(sampling, lambda: client.chat.completions.create(**body()))


def with_openai_streamed(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    with openai.OpenAI(base_url=model.url, api_key=KEY, max_retries=0) as client:
        return sample(sampling, lambda: list(client.chat.completions.create(**body(), stream=True)))


def with_openai_async(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    async def main() -> list[Run]:
        async with openai.AsyncOpenAI(base_url=model.url, api_key=KEY, max_retries=0) as client:
            return await sample_async(sampling, lambda: client.chat.completions.create(**body()))

    return asyncio.run(main())


def with_openai_over_aiohttp(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    async def main() -> list[Run]:
        try:
            transport = openai.DefaultAioHttpClient()
        except RuntimeError as error:
            pytest.skip(str(error))
        async with openai.AsyncOpenAI(base_url=model.url, api_key=KEY, max_retries=0, http_client=transport) as client:
            return await sample_async(sampling, lambda: client.chat.completions.create(**body()))

    return asyncio.run(main())


def with_requests(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    with requests.Session() as client:
        client.headers.update(HEADERS)
        return sample(sampling, lambda: client.post(url(model), json=body()))


def with_urllib3(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    with urllib3.PoolManager() as client:
        headers = {**HEADERS, "content-type": "application/json"}
        return sample(sampling, lambda: client.request("POST", url(model), body=json.dumps(body()), headers=headers))


def with_aiohttp(sampling: Sampler, model: ScriptedServer) -> list[Run]:
    async def main() -> list[Run]:
        async with aiohttp.ClientSession(headers=HEADERS) as client:

            async def ask() -> None:
                async with client.post(url(model), json=body()) as response:
                    await response.json()

            return await sample_async(sampling, ask)

    return asyncio.run(main())


CLIENTS = (
    with_httpx,
    with_httpx_async_under_trio,
    with_openai,
    with_openai_streamed,
    with_openai_async,
    with_openai_over_aiohttp,
    with_requests,
    with_urllib3,
    with_aiohttp,
)


@pytest.mark.parametrize("ask", CLIENTS)
def test_neighbours_come_and_go_while_samples_are_in_flight(server, ask: Any) -> None:
    in_flight: list[int] = []

    def answer(call: Call) -> str:
        in_flight.append(model._in_flight)
        # Long beside what a busy machine takes to start a call.
        time.sleep(0.004 * call.body.get("max_tokens", 30))
        return "yes, and this is an answer of some length" * 4

    model = server(answer)
    sampling = sampler()
    runs = ask(sampling, model)

    assert {exchange.output for run in runs for exchange in run.exchanges} == {
        "yes, and this is an answer of some length" * 4
    }
    assert all(len(run.exchanges) == 1 and run.error is None for run in runs)
    came = others(model)
    assert (len(sampled(model)), sampling.calls.live) == (12, 12)
    assert sampling.crowd.count == NeighbourCount(len(came))
    assert 2 < model.peak <= 2 + 4
    assert len(set(in_flight)) >= 3
    # The same route, model and credentials, and nothing of the question.
    for call in came:
        assert (call.path, call.body["model"], call.headers["authorization"]) == (
            "/v1/chat/completions",
            "m",
            f"Bearer {KEY}",
        )
        assert call.body.keys() == {"model", "messages", "temperature", "max_tokens"}
    assert len({len(call.prompt) for call in came}) > 5
    assert len({call.body["max_tokens"] for call in came}) > 5
    assert threads() == []


def test_no_neighbour_is_sent_for_an_answer_from_the_store(project: Project, server) -> None:
    model = server("Paris.", latency=0.01)
    project.write(GATED.format(runs=6, load="crowd"), app=ASK)

    first = project.report(url=model.url)
    seen = len(model.calls)
    second = project.report(url=model.url)

    (experiment,) = first["tests"]["test_it"]["experiments"]
    came = experiment["neighbour_calls"]
    assert (first["exit"], second["exit"]) == (0, 0)
    assert (experiment["calls"]["live"], came) == (6, seen - 6)
    assert came > 0
    assert first["result"].stdout.str().count(f"6 calls live with {came} neighbour") == 1
    (again,) = second["tests"]["test_it"]["experiments"]
    assert (len(model.calls), again["calls"]["live"], again["calls"]["cached"], again["neighbour_calls"]) == (
        seen,
        0,
        6,
        0,
    )
    with closing(sqlite3.connect(project.path / ".pytest_llm_determinism" / "cache.db")) as store:
        assert store.execute("SELECT count(*) FROM Cache WHERE key LIKE '%:%:%'").fetchone() == (6,)


GATED = """
import pytest
from app import ask

@pytest.mark.deterministic(runs={runs}, load="{load}")
def test_it():
    ask("capital?")
"""


# Budget and pace


def test_neighbours_are_calls_of_the_budget(project: Project, server) -> None:
    model = server("Paris.", latency=0.01)
    project.write(GATED.format(runs=30, load="crowd"), app=ASK)

    found = project.report("--determinism-max-calls=15", url=model.url)

    test = found["tests"]["test_it"]
    (experiment,) = test["experiments"]
    assert len(model.calls) == experiment["calls"]["live"] + experiment["neighbour_calls"] == 15
    assert experiment["neighbour_calls"] == len(others(model)) > 2
    assert test["verdict"] == "inconclusive"
    assert test["reason"].startswith("max_calls=15 (--determinism-max-calls) reached: 15 live calls made")


def budget(**given: str) -> Budget:
    return Budget(resolve(from_text(given, {}, "pytest.ini")[0], {}, {}))


@pytest.mark.parametrize("ask", [with_httpx, with_openai_async])
def test_neighbours_keep_the_pace_and_sampled_calls_go_on(server, ask: Any) -> None:
    model = server("yes", latency=0.25)
    sampling = sampler(budget(rate="20/s"), runs=8)
    runs = ask(sampling, model)
    at = sorted(call.at for call in model.calls)
    # As in the tests of the rate: two may be late, and the next seem early.
    for number in range(3, len(at)):
        assert all(at[index + number] - at[index] >= (number - 2) * 0.05 for index in range(len(at) - number))
    assert len(runs) == len(sampled(model)) == 8
    assert len(others(model)) > 4


def test_a_pace_at_which_no_two_calls_meet_makes_no_crowd(server) -> None:
    model = server("yes")
    sampling = sampler(budget(rate="4/s"))
    with pytest.raises(Refusal) as refused:
        with_httpx(sampling, model)
    assert str(refused.value) == (
        "no crowd is possible for this test: with rate=4/s (--determinism-rate) a call has ended before the next one"
        f" starts, so none has company; {NONE_NEEDED}"
    )
    assert len(sampled(model)) == 1


# Neighbours that fail


def test_where_no_neighbour_is_answered_nothing_is_sampled(project: Project, server) -> None:
    model = server(
        lambda call: "Paris." if call.prompt == QUESTION else Reply(status=403, raw=b"go away, sk-test-secret")
    )
    project.write(GATED.format(runs=6, load="crowd"), app=ASK)

    found = project.report(url=model.url)

    test = found["tests"]["test_it"]
    (experiment,) = test["experiments"]
    failed = "HTTP 403: go away, [secret]"
    assert (test["verdict"], test["reason"]) == (
        "inconclusive",
        f"no crowd is possible for this test: 3 neighbours in a row failed: {failed}; {NONE_NEEDED}",
    )
    assert (len(model.calls), sampled(model), experiment["neighbour_calls"]) == (3, [], 3)
    assert experiment["findings"] == [
        {
            "code": "neighbours-failed",
            "message": f"3 of 3 neighbours failed ({failed}), so the crowd was thinner than meant; ask for fewer with"
            " neighbours, or for less at once",
        }
    ]


FAILURES = {
    "a connection that breaks": (Reply(reset=True), "ReadError: "),
    "half an answer": (Reply("yes", cut=True), "RemoteProtocolError: "),
    "an error in a successful response": (
        Reply(raw=b'{"error": {"message": "busy"}}'),
        'an error in a successful response: {"message": "busy"}',
    ),
    "no answer": (Reply(raw=b"{}"), "a response without an answer: {}"),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("ask", [with_httpx, with_httpx_async_under_trio])
def test_everything_but_an_answer_is_a_failure(server, monkeypatch: pytest.MonkeyPatch, ask: Any, kind: str) -> None:
    monkeypatch.setattr(crowd, "PAUSE", 0.01)
    reply, words = FAILURES[kind]
    model = server(lambda call: "yes" if call.prompt == QUESTION else reply)
    sampling = sampler()
    with pytest.raises(Refusal):
        ask(sampling, model)
    assert sampling.crowd.count.failures == 3
    assert sampling.crowd.count.example.startswith(words)
    assert sampled(model) == []


def test_a_limit_that_the_application_does_not_set_may_be_refused(server) -> None:
    def answer(call: Call) -> str | Reply:
        time.sleep(0.02)
        return Reply(status=400, raw=b'{"error": "unknown: max_tokens"}') if "max_tokens" in call.body else "yes"

    model = server(answer)
    sampling = sampler()
    assert len(with_httpx(sampling, model)) == 12
    count = sampling.crowd.count
    assert (count.failures, count.example) == (1, "HTTP 400: unknown: max_tokens")
    assert count.calls > 5


def test_a_crowd_that_recovers_is_one_and_the_report_says_who_failed(project: Project, server) -> None:
    def answer(call: Call) -> str | Reply:
        time.sleep(0.05)
        if call.prompt == QUESTION:
            return "Paris."
        # Three that fail in a row would be no crowd any more.
        return Reply(status=429, raw=b"slow down") if call.number % 10 in (3, 4) else "yes"

    model = server(answer)
    project.write(GATED.format(runs=12, load="crowd"), app=ASK)
    found = project.report(url=model.url)

    test = found["tests"]["test_it"]
    (experiment,) = test["experiments"]
    (finding,) = experiment["findings"]
    assert (test["verdict"], finding["code"], experiment["neighbour_calls"]) == (
        "passed",
        "neighbours-failed",
        len(others(model)),
    )
    assert f"of {len(others(model))} neighbours failed (HTTP 429: slow down)" in finding["message"]
    assert found["result"].stdout.str().count("neighbours-failed") == 1


@pytest.mark.parametrize("ask", [with_httpx, with_openai_async])
def test_when_neighbours_fail_under_way_sampling_ends_and_nothing_is_kept_meanwhile(
    server, monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    monkeypatch.setattr(crowd, "PAUSE", 0.2)
    failed_since: list[float] = []

    def answer(call: Call) -> str | Reply:
        time.sleep(0.02)
        if call.prompt != QUESTION and len(sampled(model)) > 4:
            failed_since.append(call.at)
            return Reply(status=500, raw=b"out of memory")
        return "yes"

    class Store:
        kept: list[float] = []  # noqa: RUF012  # of one test

        def read(self, *_: object) -> dict[str, object]:
            return {}

        def get_ready(self) -> None:
            """Nothing to import."""

        def write(self, *_: object) -> None:
            self.kept.append(time.monotonic())

        def start_writing(self, *_: object) -> Any:
            from concurrent.futures import Future

            self.write()
            done: Future[None] = Future()
            done.set_result(None)
            return done

        def result(self, *_: object) -> None:
            """It is written."""

    model, store = server(answer), Store()
    Store.kept = []
    plan = Plan("crowd", 0, 1000, 2, "auto", 0.0, 1, neighbours=4)
    sampling = Sampler(plan, store)  # type: ignore[arg-type]
    with pytest.raises(Refusal, match="3 neighbours in a row failed: HTTP 500: out of memory; load=solo"):
        ask(sampling, model)
    assert len(sampled(model)) > len(store.kept) >= 2
    # An answer or two may be on their way while the first failure is.
    assert len([at for at in store.kept if at > failed_since[0] + 0.1]) == 0


# What a crowd shows


def test_answers_that_depend_on_company_are_caught_and_each_attempt_is_an_experiment(project: Project, server) -> None:
    def answer(call: Call) -> str:
        alone = True
        for _ in range(6):
            time.sleep(0.005)
            alone = alone and model._in_flight == 1
        return "Paris." if alone else "Lyon."

    model = server(answer)
    project.write(GATED.format(runs=6, load="solo,crowd"), app=ASK)

    found = project.report("--determinism-attempts=3", url=model.url)

    test = found["tests"]["test_it"]
    assert (test["verdict"], test["unique"]) == ("nondeterministic", 2)
    shown = [(found["load"], found["attempt"], found["completed"]) for found in test["experiments"]]
    assert shown == [(load, attempt, 6) for attempt in range(3) for load in ("solo", "crowd")]
    assert [found["neighbour_calls"] > 0 for found in test["experiments"]] == [False, True] * 3
    assert [found["unique"] for found in test["experiments"][::2]] == [1, 1, 1]
    for experiment in test["experiments"]:
        assert [finding["code"] for finding in experiment["findings"]].count("load-sensitive") == 1
    text = found["result"].stdout.str()
    assert "load-sensitive" in text
    assert "expert" not in text


# Where there can be none


class Sent(httpx2.BaseTransport):
    """A transport of an application's own."""

    def __init__(self) -> None:
        self._real = httpx2.HTTPTransport()

    def handle_request(self, request: Any) -> Any:
        return self._real.handle_request(request)

    def close(self) -> None:
        self._real.close()


def refused(model: ScriptedServer, ask: Callable[[], object], **changes: Any) -> str:
    with pytest.raises(Refusal) as found:
        sample(sampler(**changes), ask)
    assert model.calls == []
    before, after = "no crowd is possible for this test: ", f"; {NONE_NEEDED}"
    assert str(found.value).startswith(before)
    assert str(found.value).endswith(after)
    return str(found.value)[len(before) : -len(after)]


def test_a_client_with_a_transport_of_its_own_is_asked_for_nothing_else(server) -> None:
    model = server("yes")
    with httpx2.Client(transport=Sent()) as client:
        assert refused(model, lambda: client.post(url(model), json=body())) == (
            "the client has a transport of its own making, which is asked only as often as the application asks"
        )


def test_signed_requests_cannot_be_changed(server) -> None:
    model = server("yes")
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a"}
    ask = {"messages": [{"role": "user", "content": [{"text": "a"}]}]}
    at = f"{model.url}/model/a.model/converse"
    with requests.Session() as client:
        assert refused(model, lambda: client.post(at, json=ask, headers=signed)) == (
            "Bedrock converse requests are signed by the client, body and URL"
        )


def test_of_a_text_with_a_gap_no_question_can_be_made(server) -> None:
    model = server("yes")
    with httpx.Client() as client:
        assert refused(model, lambda: client.post(f"{model.url}/fim/completions", json={"prompt": "def f("})) == (
            "no unrelated question can be made of its requests (chat completions)"
        )


def test_a_client_that_opens_too_few_connections_would_wait_for_its_own_neighbours(server) -> None:
    model = server("yes")
    few = "the client opens at most {} connections, and 6 are needed: allow more"
    with httpx.Client(limits=httpx.Limits(max_connections=5)) as client:
        assert refused(model, lambda: client.post(url(model), json=body())) == few.format(5) + ", or set neighbours=3"
    with httpx.Client(limits=httpx.Limits(max_connections=2)) as client:
        assert refused(model, lambda: client.post(url(model), json=body())) == few.format(2)

    async def main() -> str:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit_per_host=5)) as client:
            with pytest.raises(Refusal) as found:
                await sample_async(sampler(), lambda: client.post(url(model), json=body()))
            return str(found.value)

    assert few.format(5) in asyncio.run(main())


STAND_IN = """
import httpx2, pytest

def answer(request):
    message = {"role": "assistant", "content": "Paris."}
    return httpx2.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

@pytest.mark.deterministic(runs=3, load="crowd")
def test_mocked():
    with httpx2.Client(transport=httpx2.MockTransport(answer)) as client:
        client.post("http://host/v1/chat/completions", json={"model": "m", "messages": []})

def application(environ, start_response):
    inner = httpx2.Client()
    asked = {"model": "m", "messages": [{"role": "user", "content": "capital?"}], "temperature": 0}
    with httpx2.Client() as inner:
        text = inner.post("BASE/chat/completions", json=asked).text
    start_response("200 OK", [("content-type", "text/plain")])
    return [text[:5].encode()]

@pytest.mark.deterministic(runs=6, load="crowd")
def test_application():
    with httpx2.Client(transport=httpx2.WSGITransport(app=application)) as client:
        client.post("http://application/v1/chat/completions", json={"model": "m", "messages": []})

def test_alone(llm):
    llm("capital?", model="m")

def test_repeated(determinism):
    def ask():
        with httpx2.Client() as client:
            client.post("BASE/chat/completions", json={"model": "m", "messages": [], "temperature": 0})
    found = determinism.repeat(ask, runs=4, load="crowd")
    assert (found.load, found.unique, found.neighbour_calls > 0) == ("crowd", 1, True)
"""


def test_stand_ins_have_no_neighbours_and_applications_behind_a_test_client_have(project: Project, server) -> None:
    model = server("Paris.", latency=0.03)
    project.write(STAND_IN.replace("BASE", model.url))

    found = project.report("--determinism-cache=off", "-k", "mocked or application", url=model.url)

    mocked, application = (found["tests"][f"test_{name}"] for name in ("mocked", "application"))
    assert (mocked["verdict"], mocked["reason"]) == (
        "inconclusive",
        (
            "under crowd 3 calls had no neighbours: what answers in place of a server (a mock, a cassette, a test"
            " client) is asked for nothing else"
        ),
    )
    (experiment,) = application["experiments"]
    assert (application["verdict"], len(sampled(model))) == ("passed", 6)
    assert experiment["neighbour_calls"] == len(others(model)) > 0


def test_one_answer_has_no_neighbours_and_an_experiment_by_hand_has(project: Project, server) -> None:
    model = server("Paris.", latency=0.03)
    project.write(STAND_IN.replace("BASE", model.url))
    result = project.pytest("--determinism-load=crowd", "-k", "test_alone", url=model.url)
    result.assert_outcomes(passed=1, deselected=3)
    assert (len(sampled(model)), others(model)) == (1, [])
    project.pytest("-k", "test_repeated", url=model.url).assert_outcomes(passed=1, deselected=3)


# Several calls, loops and workers at once


def test_requests_sent_at_once_share_one_crowd(server) -> None:
    model = server("yes", latency=0.03)
    sampling = sampler(runs=6)

    async def main() -> list[Run]:
        async with httpx2.AsyncClient() as client:

            async def ask() -> None:
                async with anyio.create_task_group() as group:
                    for prompt in ("a", "b", "c"):
                        group.start_soon(lambda prompt=prompt: client.post(url(model), json=body(prompt)))

            return await sample_async(sampling, ask)

    runs = asyncio.run(main())
    assert [len(run.exchanges) for run in runs] == [3] * 6
    assert model.peak <= 2 + 4
    assert len(model.calls) == 18 + sampling.crowd.count.calls


def test_workers_share_the_neighbours(project: Project, server) -> None:
    model = server("Paris.", latency=0.05)
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=8, load="crowd")
        @pytest.mark.parametrize("number", range(4))
        def test_it(number):
            ask(f"capital {number}?")
        """,
        app=ASK,
    )
    found = project.report("-n2", "--determinism-neighbours=4", "--determinism-cache=off", url=model.url)
    assert found["exit"] == 0
    live = sum(test["experiments"][0]["calls"]["live"] for test in found["tests"].values())
    came = sum(test["experiments"][0]["neighbour_calls"] for test in found["tests"].values())
    assert (live, live + came) == (32, len(model.calls))
    assert came > 8
    assert model.peak <= 2 * 2 + 4


# The end of a batch


@pytest.mark.parametrize("loop", [asyncio.run, trio.run])
def test_a_call_that_is_cancelled_takes_its_neighbours_with_it(server, loop: Any) -> None:
    released = threading.Event()
    model = server(lambda call: f"yes {sampled(model) and released.wait(20)}")
    sampling = sampler(runs=3)

    async def main() -> None:
        async with httpx2.AsyncClient() as client:
            with observing(sampling):
                for index in range(3):
                    sampling.start_run(index)
                    with anyio.move_on_after(0.1 if index else 0.25) as scope:
                        await client.post(url(model), json=body())
                    assert scope.cancelled_caught
                    sampling.finish_run()
            if loop is asyncio.run:
                assert asyncio.all_tasks() == {asyncio.current_task()}

    started = time.monotonic()
    try:
        loop(main() if loop is asyncio.run else main)
        assert time.monotonic() - started < 15  # the answers would have taken longer
    finally:
        released.set()
    assert sampling.crowd._in_flight == 0
    assert sampling.slots._free == 2


@pytest.mark.parametrize("ask", [with_httpx, with_httpx_async_under_trio, with_openai_async])
def test_nobody_waits_for_ever_for_a_neighbour(server, monkeypatch: pytest.MonkeyPatch, ask: Any) -> None:
    monkeypatch.setattr(neighbours, "FAREWELL", 0.1)
    over = threading.Event()

    def answer(call: Call) -> str:
        if call.number and call.prompt != QUESTION:
            over.wait(20)
        else:
            time.sleep(0.03)
        return "yes"

    model = server(answer)
    try:
        started = time.monotonic()
        assert len(ask(sampler(runs=3), model)) == 3
        assert time.monotonic() - started < 5
        assert others(model)[1:]
    finally:
        over.set()
        for thread in threads():
            thread.join(10)


def test_a_client_that_is_closed_after_the_call_is_closed_without_a_word(server) -> None:
    model = server(lambda call: "yes" if time.sleep(0.02 if call.prompt == QUESTION else 0.05) is None else "")
    sampling = sampler()

    def ask() -> None:
        with httpx.Client() as client:
            client.post(url(model), json=body())
        assert sampling.crowd._in_flight == 0

    assert len(sample(sampling, ask)) == 12
    assert sampling.crowd.count.failures == 0
    assert sampling.crowd.count.calls > 3


ASYNC = """
import os, openai, pytest

@pytest.fixture
def anyio_backend():
    return "KIND"

@pytest.mark.deterministic(runs=30, load="crowd")
@pytest.mark.anyio
async def test_it():
    async with openai.AsyncOpenAI(max_retries=0) as client:
        messages = [{"role": "user", "content": "capital?"}]
        await client.chat.completions.create(model="m", messages=messages, temperature=0)

def test_next():
    pass
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("kind", ["threads", "asyncio", "trio"])
def test_ctrl_c_ends_everything(project: Project, server, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    over = threading.Event()

    def answer(call: Call) -> str:
        if call.number:
            over.wait(60)
        return "yes"

    model = server(answer)
    project.write(GATED.format(runs=30, load="crowd") if kind == "threads" else ASYNC.replace("KIND", kind), app=ASK)
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    command = [*project.pytester._getpytestargs(), *QUIET, "-Wdefault", "-pno:asyncio"]
    process = project.pytester.popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while len(others(model)) < 2 or not sampled(model):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        over.set()
    assert time.monotonic() - started < 15
    text = output.decode()
    # An interrupt that meets the event loop inside a task is raised once more by anyio when its fixtures end (without
    # this plugin too): the interpreter then ends by the signal.
    assert process.returncode in (pytest.ExitCode.INTERRUPTED, -signal.SIGINT), text
    assert "KeyboardInterrupt" in text
    assert "Warning" not in text
    assert "destroyed" not in text


# On a server whose arithmetic depends on the batch, and on one where it does not


ON_THE_REFERENCE_SERVER = """
import pytest

@pytest.mark.deterministic(runs=16, load="solo,crowd")
@pytest.mark.parametrize("model", ["dense", "dense-fp16", "moe-dropless", "moe-capacity"])
def test_it(llm, model):
    llm("Why do cats purr?", model=model, max_tokens=48)
"""


def test_a_crowd_shows_strongly_what_depends_on_the_batch_and_nothing_else(project: Project) -> None:
    project.write(ON_THE_REFERENCE_SERVER)
    found = project.report("--determinism-endpoint=reference")
    unique = {
        name.partition("[")[2][:-1]: [experiment["unique"] for experiment in test["experiments"]]
        for name, test in found["tests"].items()
    }
    assert (unique["dense"], unique["moe-dropless"]) == ([1, 1], [1, 1])
    assert (unique["dense-fp16"][0], unique["moe-capacity"][0]) == (1, 1)
    # 12 to 15 of 16 were seen, and 4 to 8.
    assert unique["dense-fp16"][1] >= 8
    assert unique["moe-capacity"][1] >= 2
