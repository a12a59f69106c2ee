"""Mocks in the same suite: what they answer is what is observed, and each call of the application reaches them."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import ASK, Project
from scripted import Call

STEADY = ("-p", "no:randomly", "-o", "asyncio_default_fixture_loop_scope=function")

PLAIN_APP = """
import httpx

def answer(text):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}

def body(prompt):
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": prompt}]}

URL = "http://model.test/v1/chat/completions"

def ask(prompt):
    return httpx.post(URL, json=body(prompt)).json()["choices"][0]["message"]["content"]

async def ask_async(prompt):
    async with httpx.AsyncClient() as client:
        return (await client.post(URL, json=body(prompt))).json()["choices"][0]["message"]["content"]
"""
"""An application on httpx itself: respx and pytest-httpx know no other library."""

RESPX = """
import httpx, itertools, pytest, respx
from app import URL, answer, ask, ask_async

@pytest.fixture
def constant(respx_mock):
    return respx_mock.post(URL).respond(json=answer("Paris."))

@pytest.fixture
def varying(respx_mock):
    replies = [httpx.Response(200, json=answer(text)) for text in "aabab"]
    return respx_mock.post(URL).mock(side_effect=replies)

@pytest.mark.deterministic(runs=5)
def test_constant(constant, counts=itertools.count(1)):
    assert ask("capital?") == "Paris."
    assert constant.call_count == next(counts)

@pytest.mark.asyncio
@pytest.mark.deterministic(runs=5)
async def test_async(constant, counts=itertools.count(1)):
    assert await ask_async("capital?") == "Paris."
    assert constant.call_count == next(counts)

@pytest.mark.deterministic(runs=5)
def test_varying(varying):
    ask("capital?")

@pytest.mark.deterministic(runs=5)
def test_mocked_in_the_body():
    with respx.mock:
        respx.post(URL).respond(json=answer("Paris."))
        assert ask("capital?") == "Paris."
"""

PYTEST_HTTPX = """
import itertools, pytest
from app import answer, ask, ask_async

@pytest.fixture
def constant(httpx_mock):
    httpx_mock.add_response(json=answer("Paris."), is_reusable=True)
    return httpx_mock

@pytest.fixture
def one_for_each_run(httpx_mock):
    for text in "aabab":
        httpx_mock.add_response(json=answer(text))

@pytest.mark.deterministic(runs=5)
def test_constant(constant, counts=itertools.count(1)):
    assert ask("capital?") == "Paris."
    assert len(constant.get_requests()) == next(counts)

@pytest.mark.asyncio
@pytest.mark.deterministic(runs=5)
async def test_async(constant, counts=itertools.count(1)):
    assert await ask_async("capital?") == "Paris."
    assert len(constant.get_requests()) == next(counts)

@pytest.mark.deterministic(runs=5)
def test_varying(one_for_each_run):
    ask("capital?")

@pytest.mark.deterministic(runs=5)
def test_mocked_in_the_body(httpx_mock):
    httpx_mock.add_response(json=answer("Paris."))
    assert ask("capital?") == "Paris."
"""

EXPECTED = {
    "test_constant": ("passed", "1 unique of 5", {"live": 5, "cached": 0}),
    "test_async": ("passed", "1 unique of 5", {"live": 5, "cached": 0}),
    "test_varying": ("nondeterministic", "2 unique of 5 (3/2), max_unique=1", {"live": 5, "cached": 0}),
    "test_mocked_in_the_body": ("passed", "1 unique of 5", {"live": 5, "cached": 0}),
}


def shown(found: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, int]]]:
    return {
        name: (test["verdict"], test["reason"], calls)
        for name, test in found["tests"].items()
        for calls in [{kind: test["experiments"][0]["calls"][kind] for kind in ("live", "cached")}]
    }


@pytest.mark.parametrize(
    ("library", "tests"), [("respx", RESPX), ("pytest_httpx", PYTEST_HTTPX)], ids=["respx", "pytest-httpx"]
)
def test_a_mock_is_asked_once_a_run_and_again_in_every_session(project: Project, library: str, tests: str) -> None:
    """Both fail the test if an answer that was prepared is not asked for."""
    pytest.importorskip(library)
    project.write(tests, app=PLAIN_APP)

    for session in ("first", "second"):
        found = project.report(*STEADY)
        assert shown(found) == EXPECTED, session
        found["result"].assert_outcomes(passed=3, failed=1)


CASSETTE = """
import pytest
from app import ask

@pytest.fixture(scope="module")
def vcr_config():
    return {"allow_playback_repeats": REPEATS}

@pytest.mark.vcr
@pytest.mark.deterministic(runs=RUNS)
def test_it():
    ask("capital?")
"""


def test_a_cassette_is_recorded_and_played_in_the_order_of_the_runs(project: Project, server) -> None:
    pytest.importorskip("pytest_recording")
    yaml = pytest.importorskip("yaml")

    def script(call: Call) -> str:
        return "abaca"[call.number]

    model = server(script, latency=0.02)
    project.write(CASSETTE.replace("REPEATS", "False").replace("RUNS", "5"), app=ASK)

    recorded = project.report("--record-mode=once", *STEADY, url=model.url)
    cassette = project.path / "cassettes" / "test_it" / "test_it.yaml"
    content = yaml.safe_load(cassette.read_text())
    body = content["interactions"][3]["response"]["body"]
    body["string"] = body["string"].replace('"content": "c"', '"content": "d"')
    cassette.write_text(yaml.safe_dump(content))
    played = project.report(*STEADY, url=model.url)

    for found, last in ((recorded, "c"), (played, "d")):
        assert shown(found) == {
            "test_it": ("nondeterministic", "3 unique of 5 (3/1/1), max_unique=1", {"live": 5, "cached": 0})
        }
        groups = found["tests"]["test_it"]["experiments"][0]["groups"]
        assert [(group["output"], group["runs"]) for group in groups] == [("a", [0, 2, 4]), ("b", [1]), (last, [3])]
    assert (len(model.calls), model.peak) == (5, 1)


def test_a_cassette_that_may_not_repeat_its_answers_is_too_short_for_more_runs(project: Project, server) -> None:
    pytest.importorskip("pytest_recording")
    model = server("Paris.")
    project.write(CASSETTE.replace("REPEATS", "False").replace("RUNS", "2"), app=ASK)
    project.report("--record-mode=once", *STEADY, url=model.url)["result"].assert_outcomes(passed=1)

    project.write(CASSETTE.replace("REPEATS", "False").replace("RUNS", "5"), app=ASK)
    found = project.report(*STEADY, url=model.url)
    found["result"].assert_outcomes(failed=1)
    verdict, reason, calls = shown(found)["test_it"]
    assert (verdict, calls) == ("inconclusive", {"live": 5, "cached": 0})
    assert reason.startswith(
        "3 of 5 runs ended in an API error, max_errors=0: CannotOverwriteExistingCassetteException"
    )

    project.write(CASSETTE.replace("REPEATS", "True").replace("RUNS", "5"), app=ASK)
    found = project.report(*STEADY, url=model.url)
    assert shown(found) == {"test_it": ("passed", "1 unique of 5", {"live": 5, "cached": 0})}
    assert len(model.calls) == 2
