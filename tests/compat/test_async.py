"""Async tests under pytest-asyncio and anyio: all runs of one test share one event loop."""

from __future__ import annotations

import pytest
from conftest import Project

APP = """
import openai

client = openai.AsyncOpenAI()

async def ask(prompt):
    messages = [{"role": "user", "content": prompt}]
    reply = await client.chat.completions.create(model="m", messages=messages, temperature=0)
    return reply.choices[0].message.content
"""
"""An application with a client that is opened at import and stays open."""

APP_OF_TWO_BACKENDS = """
import asyncio, openai

# A connection that one kind of loop opened is of no use to another.
clients = {"asyncio": openai.AsyncOpenAI(), "trio": openai.AsyncOpenAI()}

def current_loop():
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio
        return trio.lowlevel.current_root_task()

def backend():
    return "asyncio" if isinstance(current_loop(), asyncio.AbstractEventLoop) else "trio"

async def ask(prompt):
    messages = [{"role": "user", "content": prompt}]
    reply = await clients[backend()].chat.completions.create(model="m", messages=messages, temperature=0)
    return reply.choices[0].message.content
"""

STRICT = ("-W", "error", "-o", "asyncio_default_fixture_loop_scope=function")
"""Every warning an error: an unclosed connection or store is one. (pytest-asyncio warns where no scope is set.)"""

BODY = """
    assert await ask("capital?") == "Paris."
    assert await llm.ask_async("capital?") == "Paris."
    assert await llm.ask_async("by the other API?", api="responses") == "Paris."
    loops.add(current_loop())
"""

REPEAT = """
    async def body(prompt):
        assert await llm.ask_async(prompt) == "Paris."

    e = await determinism.repeat_async(body, "by hand?", runs=4)
    assert (e.unique, e.completed, e.calls.live) == (1, 4, 4)

    async def fails():
        determinism.record("x")
        raise LookupError("gone")

    with pytest.raises(LookupError) as caught:
        await determinism.repeat_async(fails, runs=2)
    assert caught.value.__notes__ == ["in all 2 runs"]
"""

ASYNCIO = f"""
import pytest
from asyncio import get_running_loop as current_loop
from app import ask

loops = set()
MARK

@pytest.mark.deterministic(runs=5)
async def test_gated(llm):{BODY}

def test_one_loop():
    assert len(loops) == 1

MARK
async def test_repeat(llm, determinism):{REPEAT}
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_pytest_asyncio(project: Project, server, mode: str) -> None:
    model = server("Paris.")
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    project.write(ASYNCIO.replace("MARK", mark), app=APP)

    found = project.report("--determinism-model=m", f"--asyncio-mode={mode}", *STRICT, url=model.url)

    found["result"].assert_outcomes(passed=3)
    experiment = found["tests"]["test_gated"]["experiments"][0]
    assert (experiment["completed"], experiment["unique"], len(experiment["steps"])) == (5, 1, 3)
    assert len(model.calls) == 15 + 4


def test_anyio_on_asyncio_and_trio(project: Project, server) -> None:
    model = server("Paris.")
    project.write(
        f"""
import pytest
from app import ask, backend, current_loop

loops = set()

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@pytest.mark.anyio
@pytest.mark.deterministic(runs=5)
async def test_gated(llm, anyio_backend):
    assert backend() == anyio_backend{BODY}

@pytest.mark.anyio
async def test_repeat(llm, determinism, anyio_backend):{REPEAT}

def test_one_loop_for_each():
    assert len(loops) == 2
""",
        app=APP_OF_TWO_BACKENDS,
    )
    # Without a store, so that both backends ask.
    found = project.report("--determinism-model=m", "--determinism-cache=off", *STRICT, url=model.url)

    found["result"].assert_outcomes(passed=5)
    assert {name: test["experiments"][0]["completed"] for name, test in found["tests"].items()} == {
        "test_gated[asyncio]": 5,
        "test_gated[trio]": 5,
    }
    assert len(model.calls) == 2 * (15 + 4)


SCOPE = """
@pytest.mark.asyncio(loop_scope="SCOPE")
@pytest.mark.deterministic(runs=3)
class TestSCOPE:
    async def test_first(self):
        await ask("SCOPE, first")
        loops["SCOPE"].append(asyncio.get_running_loop())

    async def test_second(self):
        await ask("SCOPE, second")
        loops["SCOPE"].append(asyncio.get_running_loop())
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_loops_of_every_scope_are_shared_as_without_the_marker(project: Project, server, mode: str) -> None:
    model = server("Paris.")
    scopes = ("function", "class", "module", "package", "session")
    project.write(
        """
import asyncio, collections, openai, pytest

loops = collections.defaultdict(list)

async def ask(prompt):
    async with openai.AsyncOpenAI(max_retries=0) as client:
        messages = [{"role": "user", "content": prompt}]
        await client.chat.completions.create(model="m", messages=messages, temperature=0)
"""
        + "".join(SCOPE.replace("SCOPE", scope) for scope in scopes)
        + """
def test_loops():
    assert {scope: len(met) for scope, met in loops.items()} == dict.fromkeys(loops, 6)
    assert all(len(set(met[:3])) == len(set(met[3:])) == 1 for met in loops.values())
    assert {scope for scope, met in loops.items() if met[0] is met[-1]} == {"class", "module", "package", "session"}
"""
    )
    found = project.report(f"--asyncio-mode={mode}", *STRICT, url=model.url)

    found["result"].assert_outcomes(passed=11)
    assert {test["verdict"] for test in found["tests"].values()} == {"passed"}
    assert len(model.calls) == 10 * 3
