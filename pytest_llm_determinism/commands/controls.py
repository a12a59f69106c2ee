"""The tests of ``llm-determinism selfcheck``, which copies this file into a folder of its own and runs pytest there.

Each body writes down what it was told, so that what the gate says it saw can be compared with it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from pytest_llm_determinism.reference import MODELS

Note = Callable[[Any], None]


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Write down an answer: the id that the server gave it, and its text."""

    def write(answer: Any) -> None:
        told = {"test": request.node.name, "id": answer["id"], "text": answer["choices"][0]["message"]["content"]}
        with (request.config.rootpath / "told.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(told) + "\n")

    return write


def url() -> str:
    return os.environ["OPENAI_BASE_URL"] + "/chat/completions"


@functools.cache
def openai_client() -> Any:
    import openai

    return openai.OpenAI()


def with_openai(question: dict[str, Any]) -> Any:
    return openai_client().chat.completions.create(**question).to_dict()


def with_openai_async(question: dict[str, Any]) -> Any:
    import openai

    async def ask() -> Any:
        # Each run has an event loop, and so a client, of its own. Nothing is encrypted on loopback, and reading the
        # certificates for each client takes longer than the answer.
        async with openai.AsyncOpenAI(http_client=openai.DefaultAsyncHttpxClient(verify=False)) as client:
            return (await client.chat.completions.create(**question)).to_dict()

    return asyncio.run(ask())


def with_httpx(question: dict[str, Any]) -> Any:
    import httpx

    return httpx.post(url(), json=question, timeout=60, verify=False).json()


def with_httpx2(question: dict[str, Any]) -> Any:
    import httpx2

    return httpx2.post(url(), json=question, timeout=60, verify=False).json()


def with_urllib3(question: dict[str, Any]) -> Any:
    import urllib3

    headers = {"content-type": "application/json"}
    with urllib3.PoolManager() as pool:
        response = pool.request("POST", url(), body=json.dumps(question), headers=headers, timeout=60.0)
        return json.loads(response.data)


def with_aiohttp(question: dict[str, Any]) -> Any:
    import aiohttp

    async def ask() -> Any:
        async with aiohttp.ClientSession() as session, session.post(url(), json=question) as response:
            return await response.json()

    return asyncio.run(ask())


CLIENTS = {
    "openai": with_openai,
    "openai-async": with_openai_async,
    "httpx": with_httpx,
    "httpx2": with_httpx2,
    "urllib3": with_urllib3,
    "aiohttp": with_aiohttp,
}


def question(model: str, way: str) -> dict[str, Any]:
    """Each way asks something of its own: the same question would be answered from the store."""
    prompt = f"Write a short story about a fox and {way}."
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64, "temperature": 0}


@pytest.mark.deterministic
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("model", MODELS)
def test_application(model: str, client: str, note: Note) -> None:
    note(CLIENTS[client](question(model, client)))


@pytest.mark.deterministic
@pytest.mark.parametrize("model", MODELS)
def test_llm(model: str, llm: Any, note: Note) -> None:
    asked = question(model, "llm")
    note(llm(asked.pop("messages"), **asked).raw)


@pytest.mark.deterministic
def test_without_a_model_call() -> None:
    pass
