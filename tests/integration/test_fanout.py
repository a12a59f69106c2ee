"""How many calls a test costs, and how many are in flight at once, as the server itself sees it."""

from __future__ import annotations

import asyncio
import itertools
import queue
import random
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import httpx2
import openai
import pytest
import trio
from conftest import ASK, Project
from scripted import Call, Reply, ScriptedServer, together

from pytest_llm_determinism import fanout
from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import Plan, Sampler


def sampler(**changes: Any) -> Sampler:
    settings = {
        "load": "burst",
        "attempt": 0,
        "runs": 30,
        "concurrency": 8,
        "cache": "off",
        "not_before": 0.0,
        "seed": 1,
    }
    return Sampler(Plan(**(settings | changes)), None)


def sample(body: Callable[[], object], **changes: Any) -> list[Run]:
    """The runs of a body, in this process."""
    sampling, runs = sampler(**changes), []
    with observing(sampling):
        for index in range(sampling.plan.runs):
            sampling.start_run(index)
            body()
            runs.append(sampling.finish_run())
    return runs


async def sample_async(body: Callable[[], Awaitable[object]], **changes: Any) -> list[Run]:
    sampling, runs = sampler(**changes), []
    with observing(sampling):
        for index in range(sampling.plan.runs):
            sampling.start_run(index)
            await body()
            runs.append(sampling.finish_run())
    return runs


def outputs(runs: list[Run]) -> set[tuple[str, ...]]:
    return {tuple(exchange.output for exchange in run.exchanges) for run in runs}


def client(model: ScriptedServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=model.url, api_key="sk-test", max_retries=0)


def async_client(model: ScriptedServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=model.url, api_key="sk-test", max_retries=0)


def messages(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


# From end to end

ONE_QUESTION = """
import pytest
from app import ask

@pytest.mark.deterministic
def test_one_question():
    ask("capital?")
"""


def test_thirty_runs_cost_thirty_calls_with_as_many_in_flight_as_allowed(project: Project, server) -> None:
    model = server(together("Paris.", 5))
    project.write(ONE_QUESTION, app=ASK)
    assert project.pytest("--determinism-concurrency=5", url=model.url).ret == 0
    assert (len(model.calls), model.peak) == (30, 5)


def test_under_solo_one_is_in_flight(project: Project, server) -> None:
    model = server("Paris.", latency=0.005)
    project.write(ONE_QUESTION, app=ASK)
    assert project.pytest("--determinism-load=solo", url=model.url).ret == 0
    assert (len(model.calls), model.peak) == (30, 1)


AGENT = """
import openai
client = openai.OpenAI(max_retries=0)

def step(history, prompt):
    history.append({"role": "user", "content": prompt})
    reply = client.chat.completions.create(model="m", messages=history, temperature=0)
    history.append({"role": "assistant", "content": reply.choices[0].message.content})
    return history[-1]["content"]

def agent(goal):
    history = []
    plan = step(history, goal)
    way = step(history, f"You said: {plan} Which way?")
    return step(history, f"Go {way} What do you see?")
"""


def test_a_three_step_agent_whose_runs_part_at_step_2_costs_three_calls_a_run(project: Project, server) -> None:
    def answer(call: Call) -> str:
        step = len(call.body["messages"])
        if step == 1:
            return "There are two ways."
        if step == 3:
            return "left." if sum(len(other.body["messages"]) == 3 for other in model.calls) % 3 else "right."
        return f"I went {call.prompt.split()[1]}"

    model = server(answer, latency=0.01)
    project.write(
        """
        import pytest
        from app import agent

        @pytest.mark.deterministic
        def test_agent():
            agent("Find the exit.")
        """,
        app=AGENT,
    )
    report = project.report(url=model.url)

    (experiment,) = report["tests"]["test_agent"]["experiments"]
    assert (len(model.calls), experiment["calls"]["live"]) == (90, 90)
    assert [step["requests_unique"] for step in experiment["steps"]] == [1, 1, 2]
    assert [step["responses_unique"] for step in experiment["steps"]] == [1, 2, 2]
    assert experiment["divergence"]["step"] == 1
    assert sorted(group["output"] for group in experiment["groups"]) == [
        "There are two ways.\nleft.\nI went left.",
        "There are two ways.\nright.\nI went right.",
    ]
    report["result"].stdout.fnmatch_lines(["*2 unique of 30*", "*they part at step 2*"])


def test_fail_fast_stops_at_the_second_output(project: Project, server) -> None:
    model = server(lambda call: f"answer {call.number}", latency=0.005)
    project.write(ONE_QUESTION, app=ASK)
    result = project.pytest("--determinism-fail-fast=on", "--determinism-concurrency=4", url=model.url)
    result.stdout.fnmatch_lines(["FAILED *2 unique of 2*"])
    # The first run alone, then no more than one batch.
    assert len(model.calls) <= 1 + 4


# Several requests at once


def ask_by_gather(model: ScriptedServer, load: dict[str, Any], prompts: Callable[[], list[str]]) -> list[Run]:
    async def main() -> list[Run]:
        async with async_client(model) as asking:

            async def body() -> None:
                create = asking.chat.completions.create
                await asyncio.gather(*(create(model="m", messages=messages(prompt)) for prompt in prompts()))

            return await sample_async(body, **load)

    return asyncio.run(main())


def ask_by_threads(model: ScriptedServer, load: dict[str, Any], prompts: Callable[[], list[str]]) -> list[Run]:
    with client(model) as asking, ThreadPoolExecutor(3) as pool:

        def body() -> None:
            list(
                pool.map(lambda prompt: asking.chat.completions.create(model="m", messages=messages(prompt)), prompts())
            )

        return sample(body, **load)


AT_ONCE = pytest.mark.parametrize("ask", [ask_by_gather, ask_by_threads])
LOADS = pytest.mark.parametrize(
    ("load", "peak"), [({"load": "solo", "concurrency": 1}, 1), ({"load": "burst", "concurrency": 4}, 4)]
)


@AT_ONCE
@LOADS
def test_requests_sent_at_once_share_the_calls_in_flight(server, ask: Any, load: dict[str, Any], peak: int) -> None:
    model = server(together(lambda call: call.prompt.upper(), peak, first=3), latency=0.005)
    runs = ask(model, {**load, "runs": 10}, lambda: ["a", "b", "c"])
    assert (len(model.calls), model.peak) == (30, peak)
    assert {tuple(sorted(found)) for found in outputs(runs)} == {("A", "B", "C")}


@AT_ONCE
def test_the_same_request_sent_three_times_at_once_is_three_samples_a_run(server, ask: Any) -> None:
    model = server("yes", latency=0.005)
    runs = ask(model, {"runs": 10}, lambda: ["a", "a", "a"])
    assert len(model.calls) == 30
    assert {tuple(sorted(exchange.occurrence for exchange in run.exchanges)) for run in runs} == {(0, 1, 2)}


IN_RANDOM_ORDER = """
import asyncio, random
from concurrent.futures import ThreadPoolExecutor
import openai, pytest

PROMPTS = ["a?", "b?", "c?"]
OTHERS = ["d?", "e?", "f?"]

QUESTION = {"model": "m", "temperature": 0}
client, async_client = openai.OpenAI(max_retries=0), openai.AsyncOpenAI(max_retries=0)

@pytest.mark.deterministic(runs=12)
@pytest.mark.asyncio
async def test_gather():
    async def ask(prompt):
        await asyncio.sleep(random.uniform(0, 0.003))
        await async_client.chat.completions.create(**QUESTION, messages=[{"role": "user", "content": prompt}])
    await asyncio.gather(*map(ask, random.sample(PROMPTS, 3)))

@pytest.mark.deterministic(runs=12)
def test_threads():
    def ask(prompt):
        client.chat.completions.create(**QUESTION, messages=[{"role": "user", "content": prompt}])
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, random.sample(OTHERS, 3)))
"""


def test_requests_sent_at_once_in_changing_order_are_one_group_live_and_from_the_store(
    project: Project, server
) -> None:
    model = server(lambda call: f"answer to {call.prompt}", latency=0.002)
    project.write(IN_RANDOM_ORDER)
    live = project.report("--determinism-load=burst,solo", url=model.url)
    stored = project.report("--determinism-load=burst,solo", "--determinism-cache=replay", url=model.url)

    assert (live["exit"], stored["exit"], len(model.calls)) == (0, 0, 2 * 2 * 12 * 3)
    for report in (live, stored):
        for test in report["tests"].values():
            assert (test["verdict"], test["unique"]) == ("passed", 1)
            assert [experiment["unique_raw"] for experiment in test["experiments"]] == [1, 1]


# What may be fetched ahead


def test_starts_are_spread_over_the_time_one_call_takes(server, monkeypatch: pytest.MonkeyPatch) -> None:
    model, delays = server("yes", latency=0.02), []

    class Batch(fanout._Batch):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            delays.extend(self.delays)

    monkeypatch.setattr(fanout, "_Batch", Batch)
    with client(model) as asking:
        sample(lambda: asking.chat.completions.create(model="m", messages=messages("a")), runs=20)
    first, *spread = delays
    assert (first, len(spread)) == (0.0, 8)
    assert max(spread) - min(spread) > 0.01
    assert max(spread) <= max(call.at for call in model.calls) - model.calls[0].at


@pytest.mark.parametrize("is_async", [False, True])
def test_a_first_call_that_was_slow_does_not_leave_the_others_alone(server, is_async: bool) -> None:
    """A server that has to wake up: calls spread over its first answer's time would be made one after the other."""
    model = server(lambda call: time.sleep(0.02 if call.number else 1.5) or "yes")

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=model.url, api_key="k", max_retries=0) as asking:
            await asking.chat.completions.create(model="m", messages=messages("a"))

    with client(model) as asking:
        body = (
            (lambda: asyncio.run(ask()))
            if is_async
            else (lambda: asking.chat.completions.create(model="m", messages=messages("a")))
        )
        sample(body, runs=30)
    assert len(model.calls) == 30
    assert model.peak >= 5


@pytest.mark.parametrize(
    ("timeout", "batches"),
    [
        pytest.param(openai.Timeout(600), [29], id="a patient client: all ahead within one call"),
        # The clock jumps with the second run's eighth call: what is left is for the next run to fetch.
        pytest.param(openai.Timeout(0.5), [8, 21], id="an impatient one: no more after half its timeout"),
    ],
)
def test_calls_ahead_stop_before_the_application_loses_patience(
    server, monkeypatch: pytest.MonkeyPatch, timeout: openai.Timeout, batches: list[int]
) -> None:
    made: list[int] = []
    lock, started = threading.Lock(), itertools.count()

    class Batch(fanout._Batch):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(0)

        def before_start(self, delay: float, since: float) -> float:
            return 0.0

        def next(self) -> int | None:
            with lock:
                if (run := super().next()) is not None and next(started) == 8:
                    clock.monotonic = lambda: 0.3
                return run

        def received(self, *arguments: Any) -> None:
            super().received(*arguments)
            with lock:
                made[-1] += 1

    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(fanout, "_Batch", Batch)
    monkeypatch.setattr(fanout, "time", clock)
    model = server("yes")
    with client(model) as asking:
        with_timeout = asking.with_options(timeout=timeout)
        sample(lambda: with_timeout.chat.completions.create(model="m", messages=messages("a")))

    assert made == [1, *batches]
    assert len(model.calls) == 30


def test_the_server_sees_no_lockstep(server) -> None:
    latency = 0.4
    model = server("yes", latency=latency)
    with client(model) as asking:
        sample(lambda: asking.chat.completions.create(model="m", messages=messages("a")), runs=9)
    first, *burst = (call.at for call in model.calls)
    assert burst[0] - first >= latency
    # Sent together, the eight would arrive within a small part of this.
    assert max(burst) - min(burst) > latency / 3


def test_a_prompt_that_differs_in_every_run_costs_one_call_a_run(server) -> None:
    model = server("yes")
    numbers = iter(range(100))
    with client(model) as asking:
        sample(lambda: asking.chat.completions.create(model="m", messages=messages(f"It is {next(numbers)} o'clock.")))
    assert len(model.calls) == 30


def tool_agent(asking: openai.OpenAI) -> None:
    history = messages("What is the weather?")
    reply = asking.chat.completions.create(model="m", messages=history).choices[0].message
    history.append(reply.model_dump(exclude_none=True))
    history.extend({"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in reply.tool_calls)
    asking.chat.completions.create(model="m", messages=history)


def test_a_tool_agent_asks_the_same_in_every_run_although_the_ids_differ(server) -> None:
    def answer(call: Call) -> Reply:
        if len(call.body["messages"]) == 1:
            return Reply(tool_calls=[("weather", '{"at": "Paris"}'), ("weather", '{"at": "Lyon"}')])
        return Reply("It rains.")

    model = server(together(answer, 8, first=2))
    with client(model) as asking:
        runs = sample(lambda: tool_agent(asking), runs=20)

    assert (len(model.calls), model.peak) == (40, 8)
    second = [call for call in model.calls if len(call.body["messages"]) > 1]
    assert len({call.body["messages"][-1]["tool_call_id"] for call in second}) > 1
    assert len({run.exchanges for run in runs}) == 1
    asked = '[tool call] weather({"at": "Paris"})\n[tool call] weather({"at": "Lyon"})'
    assert outputs(runs) == {(asked, "It rains.")}


def test_a_retry_loop_of_the_application_is_several_samples_a_run(server) -> None:
    model = server("no")
    with client(model) as asking:

        def until_yes() -> None:
            for _ in range(3):
                asking.chat.completions.create(model="m", messages=messages("yes?"))

        runs = sample(until_yes, runs=10)
    assert len(model.calls) == 30
    assert outputs(runs) == {("no", "no", "no")}


def test_calls_from_other_threads_belong_to_the_run(server) -> None:
    model = server(together("yes", 8))
    with client(model) as asking:

        def body() -> None:
            thread = threading.Thread(target=lambda: asking.chat.completions.create(model="m", messages=messages("a")))
            thread.start()
            thread.join(30)

        runs = sample(body)
    assert (len(model.calls), model.peak) == (30, 8)
    assert outputs(runs) == {("yes",)}


def test_whoever_asks_what_is_not_a_model_call_is_left_alone(server) -> None:
    model = server("yes")
    with httpx.Client() as asking:
        runs = sample(lambda: asking.post(f"{model.url}/moderations", json={"input": "a"}), runs=5)
    assert len(model.calls) == 5
    assert outputs(runs) == {()}


# Every way to ask


def ask_with_openai(asking: openai.OpenAI, stream: bool) -> None:
    reply = asking.chat.completions.create(model="m", messages=messages("a"), stream=stream)
    if stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in reply) == "yes and no"


@pytest.mark.parametrize("stream", [False, True])
def test_a_sync_client_asks_once_a_run(server, stream: bool) -> None:
    model = server(together("yes and no", 8))
    with client(model) as asking:
        runs = sample(lambda: ask_with_openai(asking, stream))
    assert (len(model.calls), model.peak, outputs(runs)) == (30, 8, {("yes and no",)})


@pytest.mark.parametrize("stream", [False, True])
def test_an_async_client_asks_once_a_run(server, stream: bool) -> None:
    model = server(together("yes and no", 8))

    async def main() -> list[Run]:
        async with async_client(model) as asking:

            async def body() -> None:
                reply = await asking.chat.completions.create(model="m", messages=messages("a"), stream=stream)
                if stream:
                    assert [chunk.choices[0].delta.content async for chunk in reply][:3] == ["yes", " and", " no"]

            return await sample_async(body)

    runs = asyncio.run(main())
    assert (len(model.calls), model.peak, outputs(runs)) == (30, 8, {("yes and no",)})


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_plain_client_under_trio_asks_once_a_run(server, library: Any) -> None:
    model = server(together("yes", 4, first=2))

    async def main() -> list[Run]:
        async with library.AsyncClient() as asking:

            async def body() -> None:
                async with trio.open_nursery() as nursery:
                    for prompt in ("a", "b"):
                        nursery.start_soon(ask, prompt)

            async def ask(prompt: str) -> None:
                reply = await asking.post(f"{model.url}/chat/completions", json={"messages": messages(prompt)})
                assert reply.json()["choices"][0]["message"]["content"] == "yes"

            return await sample_async(body, runs=10, concurrency=4)

    runs = trio.run(main)
    assert (len(model.calls), model.peak, outputs(runs)) == (20, 4, {("yes", "yes")})


def test_several_event_loops_at_once_share_the_calls_in_flight(server) -> None:
    model = server(together("yes", 3, first=3))

    async def ask(prompt: str) -> None:
        async with async_client(model) as asking:
            await asking.chat.completions.create(model="m", messages=messages(prompt))

    with ThreadPoolExecutor(3) as pool:
        prompts = ["a", "b", "c"]
        runs = sample(
            lambda: list(pool.map(lambda prompt: asyncio.run(ask(prompt)), random.sample(prompts, 3))),
            runs=8,
            concurrency=3,
        )
    assert (len(model.calls), model.peak) == (24, 3)
    assert outputs(runs) == {("yes", "yes", "yes")}


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_a_sync_call_that_blocks_the_loop_of_async_calls_does_not_wait_for_them(
    server, run: Any, concurrency: int
) -> None:
    model = server("yes", latency=0.01)
    url = f"{model.url}/chat/completions"

    async def main() -> list[Run]:
        async with httpx2.AsyncClient() as asking:
            with httpx2.Client() as blocking:

                async def body() -> None:
                    async with anyio.create_task_group() as group:
                        for prompt in ("a", "b", "c"):
                            group.start_soon(ask, prompt)
                        await anyio.sleep(0.005)
                        blocking.post(url, json={"messages": messages("d")}, timeout=5)

                async def ask(prompt: str) -> None:
                    await asking.post(url, json={"messages": messages(prompt)}, timeout=5)

                return await sample_async(body, runs=4, concurrency=concurrency)

    found: queue.Queue[list[Run]] = queue.Queue()
    # Not in a pool: its threads would be waited for for ever if they hang.
    threading.Thread(target=lambda: found.put(run(main() if run is asyncio.run else main)), daemon=True).start()
    runs = found.get(timeout=30)
    assert outputs(runs) == {("yes",) * 4}
    assert len(model.calls) == 16
