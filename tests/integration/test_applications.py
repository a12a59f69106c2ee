"""Applications as they are written: the marker is all that was added, live and from the store alike."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections import Counter
from typing import Any

import openai
import pytest
from conftest import Project
from scripted import Call, Reply, ScriptedServer

from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.sampling import Plan, Sampler

HUGE = "🦜é\u202eשלום" + ("x" * 1023 + " ") * 1024

APP = """
import openai

client = openai.OpenAI(max_retries=0)

def messages(prompt):
    return [{"role": "user", "content": prompt}]

def ask(prompt):
    reply = client.chat.completions.create(model="m", messages=messages(prompt), temperature=0)
    return reply.choices[0].message.content

async def ask_async(prompt):
    async with openai.AsyncOpenAI(max_retries=0) as own:
        reply = await own.chat.completions.create(model="m", messages=messages(prompt), temperature=0)
        return reply.choices[0].message.content

def stream(prompt):
    for chunk in client.chat.completions.create(model="m", messages=messages(prompt), stream=True, temperature=0):
        yield chunk.choices[0].delta.content or ""
"""


def answer(call: Call, told: Counter[str]) -> str | Reply:
    """What the scripted model says; `told` counts how often each first prompt was asked before."""
    prompt = call.body["messages"][0]["content"]
    if not isinstance(prompt, str):
        return " and ".join(part["type"] for part in prompt)
    number = told[prompt]
    told[prompt] += 1
    if prompt == "error":
        return Reply(raw=b'{"error": {"message": "out of order"}}', status=500)
    if prompt == "huge":
        return HUGE
    if prompt == "half a character":
        return "half \ud83e of 🦜"
    if prompt == "agent":
        steps = len(call.body["messages"]) // 2
        return Reply(tool_calls=[("step", json.dumps({"n": steps}))]) if steps < 4 else "done after 4"
    if prompt == "two":
        choices = [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for index, text in enumerate(("left", "right"))
        ]
        listed = choices if number % 2 else choices[::-1]
        return Reply(raw=json.dumps({"id": f"c-{number}", "model": "m", "choices": listed}).encode())
    if prompt == "again":
        # Run 0 asks alone, run 1 for all that follow.
        return "first" if number in (0, 2, 3, 4) else "second"
    return prompt.upper()


@pytest.fixture
def model(server) -> ScriptedServer:
    told: Counter[str] = Counter()
    lock = threading.Lock()

    def script(call: Call) -> str | Reply:
        with lock:
            return answer(call, told)

    return server(script)


def check(project: Project, model: ScriptedServer, module: str, **calls: int) -> dict[str, Any]:
    """Every marked test of the module passes with one output, live with that many calls, then from the store alone.

    Args:
        calls: of each test, without its ``test_``.
    """
    project.write(module, app=APP)
    live = project.report(url=model.url)
    asked = len(model.calls)
    stored = project.report("--determinism-cache=replay", url=model.url)
    for found, source in ((live, "live"), (stored, "cached")):
        assert {name: (test["verdict"], test["unique"]) for name, test in found["tests"].items()} == {
            f"test_{name}": ("passed", 1) for name in calls
        }
        assert {name: test["experiments"][0]["calls"][source] for name, test in found["tests"].items()} == {
            f"test_{name}": count for name, count in calls.items()
        }
        assert found["exit"] == 0
    assert asked == len(model.calls) == sum(calls.values())
    return live["tests"]


def outputs(found: dict[str, Any]) -> dict[str, str]:
    return {name: test["experiments"][0]["groups"][0]["output"] for name, test in found.items()}


def verdicts(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: (test["verdict"], test["reason"]) for name, test in found["tests"].items()}


# Threads, loops, clients


def test_threads_and_event_loops_of_the_application(project: Project, model: ScriptedServer) -> None:
    found = check(
        project,
        model,
        """
        import asyncio, random
        from concurrent.futures import ThreadPoolExecutor
        import pytest
        from app import ask, ask_async

        gated = pytest.mark.deterministic(runs=4)
        pool = ThreadPoolExecutor(3)

        def shuffled(*prompts):
            return random.sample(prompts, len(prompts))

        @gated
        def test_pool_of_a_run():
            with ThreadPoolExecutor(3) as own:
                assert set(own.map(ask, shuffled("a", "b", "c"))) == {"A", "B", "C"}

        @gated
        def test_pool_that_lives():
            assert set(pool.map(ask, shuffled("d", "e", "f"))) == {"D", "E", "F"}

        @gated
        @pytest.mark.asyncio
        async def test_threads_of_a_loop():
            await asyncio.gather(*(asyncio.to_thread(ask, prompt) for prompt in shuffled("g", "h")))

        @gated
        @pytest.mark.asyncio
        async def test_tasks():
            await asyncio.gather(*map(ask_async, shuffled("i", "j", "k")))

        @gated
        def test_loop_a_call():
            assert asyncio.run(ask_async("l")) == "L"
            assert asyncio.run(ask_async("m")) == "M"

        @gated
        def test_loops_in_threads():
            assert set(pool.map(lambda prompt: asyncio.run(ask_async(prompt)), shuffled("n", "o"))) == {"N", "O"}
        """,
        pool_of_a_run=12,
        pool_that_lives=12,
        threads_of_a_loop=8,
        tasks=12,
        loop_a_call=8,
        loops_in_threads=8,
    )
    assert sorted(outputs(found)["test_pool_that_lives"].splitlines()) == ["D", "E", "F"]


def test_clients_with_ways_of_their_own(project: Project, model: ScriptedServer) -> None:
    check(
        project,
        model,
        """
        import openai, pytest
        from app import messages

        gated = pytest.mark.deterministic(runs=4)
        heard = []

        @gated
        def test_a_client_a_call():
            with openai.OpenAI(max_retries=0) as own:
                own.chat.completions.create(model="m", messages=messages("client"), temperature=0)

        @gated
        def test_retries_timeouts_and_hooks():
            hooks = {
                "request": [lambda request: heard.append(request.headers["x-trace"])],
                "response": [lambda response: heard.append(response.status_code)],
            }
            http_client = openai.DefaultHttpxClient(event_hooks=hooks, timeout=70)
            headers = {"x-trace": "t"}
            with openai.OpenAI(max_retries=3, timeout=50, http_client=http_client, default_headers=headers) as own:
                patient = own.with_options(timeout=60)
                patient.chat.completions.create(model="m", messages=messages("own"), temperature=0)

        def test_hooks_are_heard_once_a_run():
            assert heard == ["t", 200] * 4
        """,
        a_client_a_call=4,
        retries_timeouts_and_hooks=4,
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(("load", "concurrency"), [("solo", 1), ("burst", 4)])
def test_a_client_kept_over_event_loops_fails_no_differently(
    model: ScriptedServer, load: str, concurrency: int
) -> None:
    def met(client: openai.AsyncOpenAI) -> str:
        async def ask() -> str | None:
            reply = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "loops"}])
            return reply.choices[0].message.content

        try:
            return str(asyncio.run(ask()))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def kept() -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=model.url, api_key="sk-test", max_retries=0)

    alone_with, observed_with = kept(), kept()
    alone = [met(alone_with) for _ in range(4)]
    sampling = Sampler(Plan(load, 0, 4, concurrency, "off", 0.0, 1), None)
    observed, runs = [], []
    with observing(sampling):
        for index in range(4):
            sampling.start_run(index)
            observed.append(met(observed_with))
            runs.append(sampling.finish_run())

    del alone_with, observed_with
    gc.collect()  # their connections complain that their event loop is closed
    assert alone[0] == "LOOPS" != alone[1]
    # What was fetched ahead needs no connection; all else is as it is alone.
    assert observed == (alone if load == "solo" else [*alone[:2], "LOOPS", "LOOPS"])
    assert [run.error is None for run in runs] == [found == "LOOPS" for found in observed]


# Served in this process


def test_applications_behind_a_test_client(project: Project, model: ScriptedServer) -> None:
    check(
        project,
        model,
        """
        import httpx, httpx2, pytest
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route
        from starlette.testclient import TestClient
        from app import ask, ask_async

        gated = pytest.mark.deterministic(runs=4)

        def get(request):
            return JSONResponse({"answer": ask(request.query_params["q"])})

        async def post(request):
            return JSONResponse({"answer": await ask_async((await request.json())["q"])})

        served = Starlette(routes=[Route("/get", get), Route("/post", post, methods=["POST"])])

        @gated
        def test_client_of_starlette():
            with TestClient(served) as asking:
                assert asking.get("/get", params={"q": "get"}).json() == {"answer": "GET"}
                assert asking.post("/post", json={"q": "post"}).json() == {"answer": "POST"}

        async def post_by(library, prompt):
            transport = library.ASGITransport(app=served)
            async with library.AsyncClient(transport=transport, base_url="http://app.test") as asking:
                assert (await asking.post("/post", json={"q": prompt})).json() == {"answer": prompt.upper()}

        @gated
        @pytest.mark.asyncio
        async def test_httpx():
            await post_by(httpx, "by httpx")

        @gated
        @pytest.mark.asyncio
        async def test_httpx2():
            await post_by(httpx2, "by httpx2")
        """,
        client_of_starlette=8,
        httpx=4,
        httpx2=4,
    )


# Questions and answers


def test_questions_and_answers_of_all_kinds(project: Project, model: ScriptedServer) -> None:
    found = check(
        project,
        model,
        """
        import base64
        import pytest
        from app import ask, client, messages, stream

        gated = pytest.mark.deterministic(runs=4)
        TOOL = {"type": "function", "function": {"name": "step", "parameters": {"type": "object", "properties": {}}}}

        @gated
        def test_leaves_the_stream_early():
            pieces = stream("a b c d e f")
            assert [next(pieces), next(pieces)] == ["A", " B"]
            pieces.close()

        @gated
        def test_forgets_the_stream():
            for piece in stream("g h i j k l"):
                break

        @gated
        def test_huge():
            assert len(ask("huge")) > 2**20

        @gated
        def test_huge_stream():
            assert len("".join(stream("huge"))) > 2**20

        @gated
        def test_half_a_character():
            assert ask("half a character") == "half \\ud83e of 🦜"

        @gated
        def test_scripts_of_the_world():
            assert ask("שלום 🦜 ß\\u202e") == "שלום 🦜 SS\\u202e"

        @gated
        def test_agent_of_five_steps():
            history = messages("agent")
            for _ in range(5):
                asked = client.chat.completions.create(model="m", messages=history, tools=[TOOL], temperature=0)
                reply = asked.choices[0].message
                history.append(reply.model_dump(exclude_none=True))
                for call in reply.tool_calls or ():
                    done = f"did {call.function.arguments}"
                    history.append({"role": "tool", "tool_call_id": call.id, "content": done})
            assert reply.content == "done after 4"

        @gated
        def test_two_choices_in_any_order():
            reply = client.chat.completions.create(model="m", messages=messages("two"), n=2, temperature=0)
            assert {choice.index: choice.message.content for choice in reply.choices} == {0: "left", 1: "right"}

        @gated
        def test_image_and_audio():
            image, sound = (base64.b64encode(bytes(range(256)) * size).decode() for size in (400, 2))
            parts = [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
                {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
            ]
            asked = [{"role": "user", "content": parts}]
            client.chat.completions.create(model="m", messages=asked, temperature=0)

        @gated
        def test_same_question_twice():
            assert [ask("again"), ask("again")] == ["first", "second"]
        """,
        leaves_the_stream_early=4,
        forgets_the_stream=4,
        huge=4,
        huge_stream=4,
        half_a_character=4,
        scripts_of_the_world=4,
        agent_of_five_steps=20,
        two_choices_in_any_order=4,
        image_and_audio=4,
        same_question_twice=8,
    )
    assert outputs(found) == {
        "test_leaves_the_stream_early": "A B C D E F",
        "test_forgets_the_stream": "G H I J K L",
        "test_huge": HUGE,
        "test_huge_stream": HUGE,
        "test_half_a_character": "half \ud83e of 🦜",
        "test_scripts_of_the_world": "שלום 🦜 SS\u202e",
        "test_agent_of_five_steps": "\n".join(
            (*(f'[tool call] step({{"n": {step}}})' for step in range(4)), "done after 4")
        ),
        "test_two_choices_in_any_order": "[choice 0] left\n[choice 1] right",
        "test_image_and_audio": "text and image_url and input_audio",
        "test_same_question_twice": "first\nsecond",
    }


# What must not pass


def test_a_cache_of_the_applications_own(project: Project, model: ScriptedServer) -> None:
    project.write(
        """
        import functools, itertools
        import pytest
        from app import ask

        cached, recent = functools.cache(ask), functools.lru_cache(ask)
        numbers = itertools.count()

        @pytest.mark.deterministic(runs=3)
        def test_from_the_second_run_on():
            cached("capital?")

        @pytest.mark.deterministic(runs=3)
        def test_from_an_earlier_test():
            cached("capital?")

        @pytest.mark.deterministic(runs=3)
        def test_second_step():
            ask("country?")
            recent("river?")

        @pytest.mark.deterministic(runs=3, load=["solo", "burst"])
        def test_under_two_loads():
            cached("mountain?")

        @pytest.mark.deterministic(runs=2, attempts=2)
        def test_in_two_attempts(determinism):
            if next(numbers) == 0:
                determinism.record("sea")
        """,
        app=APP,
    )
    found = project.report(url=model.url)

    parted = "although nothing had parted them"
    cached = (
        "runs 1, 2 under solo and runs 0, 1, 2 under burst made no model call at step 1, where run 0 under solo did"
    )
    assert verdicts(found) == {
        "test_from_the_second_run_on": (
            "inconclusive",
            f"runs 1, 2 made no model call at step 1, where run 0 did, {parted}",
        ),
        "test_from_an_earlier_test": ("inconclusive", "no model call was observed and nothing was recorded"),
        "test_second_step": ("inconclusive", f"runs 1, 2 made no model call at step 2, where run 0 did, {parted}"),
        "test_under_two_loads": (
            "inconclusive",
            f"{cached}, {parted}",
        ),
        "test_in_two_attempts": (
            "inconclusive",
            "run 1 under burst and runs 0, 1 under burst, attempt 2 had no output, while others had one",
        ),
    }
    assert found["tests"]["test_from_the_second_run_on"]["advice"] == (
        "an application's own response cache (such as functools.cache) hides repeated calls; switch it off or clear it"
        " in the body, so that every run asks"
    )


def test_errors_that_the_application_hides_behind_a_default(project: Project, model: ScriptedServer) -> None:
    project.write(
        """
        import openai, pytest
        from app import ask

        def ask_or_default(prompt):
            try:
                return ask(prompt)
            except openai.APIError:
                return "I do not know."

        @pytest.mark.deterministic(runs=3)
        def test_default():
            assert ask_or_default("error") == "I do not know."

        @pytest.mark.deterministic(runs=3)
        def test_recorded(determinism):
            determinism.record(ask_or_default("error"))

        @pytest.mark.deterministic(runs=3)
        def test_second_step():
            ask("country?")
            ask_or_default("error")
        """,
        app=APP,
    )
    error = "3 of 3 runs ended in an API error, max_errors=0: HTTP 500: out of order"
    found = verdicts(project.report(url=model.url))
    assert found == dict.fromkeys(("test_default", "test_recorded", "test_second_step"), ("inconclusive", error))


def test_calls_in_other_processes(project: Project, model: ScriptedServer) -> None:
    project.write(
        """
        import multiprocessing
        import pytest
        from app import ask

        gated = pytest.mark.deterministic(runs=3)

        def tell(pipe):
            pipe.send(ask("in child"))

        def ask_in_child():
            here, there = multiprocessing.Pipe()
            child = multiprocessing.get_context("fork").Process(target=tell, args=(there,))
            child.start()
            answer = here.recv() if here.poll(30) else None
            child.kill()
            return answer

        @gated
        def test_child():
            assert ask_in_child() == "IN CHILD"

        @gated
        def test_child_recorded(determinism):
            determinism.record(ask_in_child())

        @gated
        def test_child_and_parent():
            assert ask_in_child() == "IN CHILD"
            ask("in parent")
        """,
        app=APP,
    )
    found = project.report(url=model.url)
    assert verdicts(found) == {
        "test_child": (
            "inconclusive",
            "no model call was observed: the body forked a process, in which nothing can be observed",
        ),
        "test_child_recorded": ("passed", "1 unique of 3"),
        "test_child_and_parent": ("passed", "1 unique of 3"),
    }
    recorded = {"test_child_recorded": found["tests"]["test_child_recorded"]}
    assert outputs(recorded) == {"test_child_recorded": "IN CHILD"}
    assert Counter(call.prompt for call in model.calls) == {"in child": 9, "in parent": 3}


def test_an_experiment_within_a_marked_body(project: Project, model: ScriptedServer) -> None:
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=2)
        def test_beside_calls_of_its_own(determinism):
            ask("before")
            found = determinism.repeat(ask, "inner", runs=3)
            assert (found.unique, found.completed, found.groups[0].output) == (1, 3, "INNER")
            ask("after")

        @pytest.mark.deterministic(runs=2)
        def test_alone(determinism):
            assert determinism.repeat(ask, "alone", runs=3).unique == 1
        """,
        app=APP,
    )
    found = project.report(url=model.url)
    of_its_own = "whose model calls are no part of its own output"
    assert verdicts(found) == {
        "test_beside_calls_of_its_own": ("passed", "1 unique of 2"),
        "test_alone": (
            "inconclusive",
            f"no model call was observed: the body called determinism.repeat, {of_its_own}",
        ),
    }
    assert found["tests"]["test_beside_calls_of_its_own"]["experiments"][0]["groups"][0]["output"] == "BEFORE\nAFTER"
