"""Applications that ask by aiohttp: what they see is the same live, fetched ahead and from the store."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import httpx2
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import Project
from sameness import QUESTION, RUNS, alike, sampler
from scripted import Call, Reply, ScriptedServer, together
from yarl import URL

from pytest_llm_determinism.observe import aiohttp_seam, observing
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import Sampler
from pytest_llm_determinism.shapes import Rules
from pytest_llm_determinism.store import SampleStore

TEXT = "Two ways — «left» and right."
STREAMED = {**QUESTION, "stream": True}
SECRET = "sk-aiohttp-secret"
AS_JSON = {"Content-Type": "application/json"}

Session = aiohttp.ClientSession
Body = Callable[[Session, str], Awaitable[Any]]
"""What an application does in one run with a session and the URL of the chat API: what it gets to see."""


def answer(call: Call) -> Reply:
    return Reply(f"{TEXT} {call.number}", headers={"x-request-id": f"req-{call.number}", "link": "</v2>; rel=next"})


@pytest.fixture
def model(server) -> ScriptedServer:
    return server(answer, latency=0.002)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    opened = SampleStore(tmp_path / "store")
    yield opened
    opened.close()


async def sample(body: Callable[[], Awaitable[Any]], sampling: Sampler) -> tuple[list[Any], list[Run]]:
    """What each run sees, and what it leaves behind."""
    seen, runs = [], []
    with observing(sampling):
        for index in range(sampling.plan.runs):
            sampling.start_run(index)
            seen.append(await body())
            runs.append(sampling.finish_run())
    return seen, runs


def outputs(runs: list[Run]) -> list[tuple[str, ...]]:
    return [tuple(exchange.output for exchange in run.exchanges) for run in runs]


def looks_the_same(body: Body, model: ScriptedServer, store: SampleStore, **session: Any) -> list[Any]:
    """What the body sees unobserved, asked live, fetched ahead and from the store is the same; gives what it saw."""
    url = f"{model.url}/chat/completions"

    async def main() -> list[Any]:
        async with Session(**session) as asking:
            bare = await body(asking, url)
            live, runs = await sample(lambda: body(asking, url), sampler(store))
            assert len(model.calls) == 1 + RUNS
            stored, again = await sample(lambda: body(asking, url), sampler(store, cache="replay"))
            assert len(model.calls) == 1 + RUNS
        assert [run.error for run in (*runs, *again)] == [None] * 2 * RUNS
        assert [len(run.exchanges) for run in runs] == [1] * RUNS
        assert len(set(outputs(runs))) == RUNS  # each run has an answer of its own
        assert outputs(again) == outputs(runs)
        assert {alike(view) for view in live} == {alike(bare)}
        assert stored == live
        return live

    return asyncio.run(main())


# Every way to ask


async def post_json(session: Session, url: str) -> Any:
    async with session.post(url, json=QUESTION) as response:
        return await response.json()


async def post_bytes(session: Session, url: str) -> Any:
    async with session.post(url, data=json.dumps(QUESTION).encode(), headers=AS_JSON) as response:
        return await response.text()


async def post_text(session: Session, url: str) -> Any:
    response = await session.post(url, data=json.dumps(QUESTION))
    return json.loads(await response.read())


async def post_file(session: Session, url: str) -> Any:
    content = io.BytesIO(b"# " + json.dumps(QUESTION).encode())
    content.seek(2)
    async with session.post(url, data=content, headers=AS_JSON) as response:
        return await response.json()


async def post_payload(session: Session, url: str) -> Any:
    payload = aiohttp.BytesPayload(json.dumps(QUESTION).encode(), content_type="application/json")
    async with session.post(url, data=payload) as response:
        return await response.json()


async def post_pairs_of_headers(session: Session, url: str) -> Any:
    headers = [("X-Part", "a"), ("X-Part", "b")]
    async with session.request("post", url, json=QUESTION, headers=headers) as response:
        return await response.json(content_type=None)


async def post_with_parameters(session: Session, url: str) -> Any:
    async with session.post(f"{url}?a=1%2F2&b=", json=QUESTION, params={"c": "é è", "b": "2"}) as response:
        return await response.json(), response.url.query_string


async def post_expecting_success(session: Session, url: str) -> Any:
    async with session.post(URL(url), json=QUESTION, raise_for_status=True) as response:
        return await response.json()


@pytest.mark.parametrize(
    "ask",
    [
        post_json,
        post_bytes,
        post_text,
        post_file,
        post_payload,
        post_pairs_of_headers,
        post_with_parameters,
        post_expecting_success,
    ],
)
def test_every_way_to_ask(ask: Body, model: ScriptedServer, store: SampleStore) -> None:
    looks_the_same(ask, model, store, headers={"Authorization": f"Bearer {SECRET}"})

    bodies = [(call.path, call.body) for call in model.calls]
    assert bodies == [bodies[0]] * len(bodies)
    assert bodies[0][1] == QUESTION
    headers = [call.headers for call in model.calls]
    assert headers == [headers[0]] * len(headers)
    assert headers[0]["authorization"] == f"Bearer {SECRET}"


def test_a_session_with_a_base_url(model: ScriptedServer, store: SampleStore) -> None:
    async def ask(session: Session, url: str) -> Any:
        async with session.post("/v1/chat/completions", json=QUESTION) as response:
            return await response.json(), str(response.url)

    seen = looks_the_same(ask, model, store, base_url=model.url.removesuffix("/v1"))
    assert seen[0][1] == f"{model.url}/chat/completions"


def test_a_question_too_large_for_bytes(server, store: SampleStore) -> None:
    """aiohttp warns of more than a megabyte given as bytes, and an application that gives a file heeds that."""
    model, question = server(answer), {**QUESTION, "messages": [{"role": "user", "content": "long " * 250_000}]}

    async def ask(session: Session, url: str) -> Any:
        async with session.post(url, data=io.BytesIO(json.dumps(question).encode()), headers=AS_JSON) as response:
            return await response.json()

    looks_the_same(ask, model, store)


@pytest.mark.parametrize("length", [{}, {"Content-Length": str(len(json.dumps(QUESTION)))}])
def test_an_override_changes_body_and_length(model: ScriptedServer, length: dict[str, str]) -> None:
    rules = Rules(override={"temperature": 0.125, "model": "other"})

    async def ask(session: Session) -> Any:
        url, body = f"{model.url}/chat/completions", json.dumps(QUESTION).encode()
        async with session.post(url, params={"a": "b"}, data=body, headers={**AS_JSON, **length}) as response:
            return (await response.json())["model"], str(response.url) == f"{url}?a=b"

    async def main() -> list[Any]:
        async with Session() as session:
            return (await sample(lambda: ask(session), sampler(None, rules=rules)))[0]

    assert asyncio.run(main()) == [("other", True)] * RUNS
    bodies = [(call.path, call.body) for call in model.calls]
    changed = {**QUESTION, "temperature": 0.125, "model": "other"}
    assert bodies == [("/v1/chat/completions?a=b", changed)] * RUNS


def test_an_own_way_to_write_json(model: ScriptedServer, store: SampleStore) -> None:
    looks_the_same(post_json, model, store, json_serialize=lambda content: json.dumps(content, indent=7))
    assert {call.headers["content-length"] for call in model.calls} == {str(len(json.dumps(QUESTION, indent=7)))}


def test_the_function_that_needs_no_session(model: ScriptedServer, store: SampleStore) -> None:
    async def ask(_: Session, url: str) -> Any:
        async with aiohttp.request("POST", url, json=QUESTION) as response:
            return await response.json()

    looks_the_same(ask, model, store)


def test_what_the_application_does_with_its_question_meanwhile(model: ScriptedServer) -> None:
    """Calls fetched ahead send what was asked, not what became of it."""
    messages, url = list(QUESTION["messages"]), f"{model.url}/chat/completions"

    async def body(session: Session) -> None:
        messages[:] = QUESTION["messages"]
        asking = asyncio.create_task(session._request("POST", url, json={**QUESTION, "messages": messages}))
        await asyncio.sleep(0)
        messages.append({"role": "user", "content": "And back?"})
        await (await asking).read()

    async def main() -> None:
        async with Session() as session:
            await sample(lambda: body(session), sampler(None))

    asyncio.run(main())
    assert [call.body for call in model.calls] == [QUESTION] * RUNS


# The response


def test_what_a_response_says(model: ScriptedServer, store: SampleStore) -> None:
    async def ask(session: Session, url: str) -> Any:
        async with session.post(url, json=QUESTION, headers={"X-Trace": "t"}) as response:
            await response.read()
            assert type(response) is aiohttp.ClientResponse
            assert response.headers["Content-Length"] == str(len(await response.read()))
            return (
                (response.status, response.reason, response.ok, response.method, response.version),
                (response.url, response.real_url, response.host, response.history, response.links),
                (response.content_type, response.charset, response.get_encoding(), response.content_length),
                (response.headers["x-request-id"], len(response.raw_headers) > 3, response.cookies),
                (response.closed, response.connection, response.content.at_eof()),
                (response.request_info.method, response.request_info.url, response.request_info.real_url),
                sorted(response.request_info.headers.items()),
            )

    looks_the_same(ask, model, store)


async def read_lines(content: aiohttp.StreamReader) -> list[bytes]:
    return [line async for line in content]


async def read_any(content: aiohttp.StreamReader) -> list[bytes]:
    return [piece async for piece in content.iter_any()]


async def read_chunked(content: aiohttp.StreamReader) -> list[bytes]:
    return [piece async for piece in content.iter_chunked(7)]


async def read_chunks(content: aiohttp.StreamReader) -> list[bytes]:
    return [piece async for piece, _ in content.iter_chunks()]


async def read_line_by_line(content: aiohttp.StreamReader) -> list[bytes]:
    return [line async for line in until_the_end(content.readline)]


async def read_some(content: aiohttp.StreamReader) -> list[bytes]:
    return [await content.readexactly(5), await content.read(3), await content.readuntil(b"\n"), await content.read()]


async def until_the_end(read: Callable[[], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    while piece := await read():
        yield piece


@pytest.mark.parametrize("read", [read_lines, read_any, read_chunked, read_chunks, read_line_by_line, read_some])
def test_every_way_to_read_a_stream(read: Any, model: ScriptedServer, store: SampleStore) -> None:
    async def ask(session: Session, url: str) -> Any:
        async with session.post(url, json=STREAMED) as response:
            pieces = await read(response.content)
            assert response.closed
            return b"".join(pieces).decode(), response.content_type

    (text, _), *_ = looks_the_same(ask, model, store)
    assert text.count("data: ") == len(TEXT.split()) + 3


def test_a_stream_comes_event_by_event(model: ScriptedServer, store: SampleStore) -> None:
    async def ask(session: Session, url: str) -> list[bytes]:
        async with session.post(url, json=STREAMED) as response:
            return await read_any(response.content)

    async def main() -> list[list[bytes]]:
        async with Session() as session:
            return (await sample(lambda: ask(session, f"{model.url}/chat/completions"), sampler(store)))[0]

    for pieces in asyncio.run(main()):
        assert [piece.count(b"data: ") for piece in pieces] == [1] * (len(TEXT.split()) + 3)
        assert all(piece.endswith(b"\n\n") for piece in pieces)


def test_a_stream_that_is_longer_than_what_aiohttp_buffers(server, store: SampleStore) -> None:
    words = " ".join(f"word{number}" for number in range(900))
    model = server(lambda call: f"{words} {call.number}")

    async def ask(session: Session, url: str) -> str:
        async with session.post(url, json=STREAMED, read_bufsize=1024) as response:
            lines = []
            async for line in response.content:
                lines.append(line)
                await asyncio.sleep(0)
            return b"".join(lines).decode()

    assert len(looks_the_same(ask, model, store)[0]) > 100_000


def test_a_stream_that_is_left_early(model: ScriptedServer, store: SampleStore) -> None:
    async def ask(session: Session, url: str) -> Any:
        async with session.post(url, json=STREAMED) as response:
            first = await response.content.readline()
        assert response.closed
        return first.decode()

    looks_the_same(ask, model, store)


@pytest.mark.parametrize("end", ["release", "close"])
def test_a_response_that_is_not_read(end: str, model: ScriptedServer, store: SampleStore) -> None:
    async def ask(session: Session, url: str) -> Any:
        response = await session.post(url, json=STREAMED)
        getattr(response, end)()
        assert (response.closed, response.connection) == (True, None)
        return response.headers["x-request-id"]

    looks_the_same(ask, model, store)


@pytest.mark.parametrize("decompress", [True, False])
def test_an_answer_that_came_compressed(server, store: SampleStore, decompress: bool) -> None:
    model = server(lambda call: Reply(f"{TEXT} {call.number}", headers={"content-encoding": "gzip"}))

    async def ask(session: Session, url: str) -> Any:
        async with session.post(url, json=QUESTION, auto_decompress=decompress) as response:
            content = await response.read()
            is_compressed = not decompress and response.headers.get("Content-Encoding") == "gzip"
            return json.loads(gzip.decompress(content) if is_compressed else content)

    looks_the_same(ask, model, store)


def test_cookies_that_the_server_sets_reach_the_application_and_never_the_store(server, store: SampleStore) -> None:
    model = server(lambda call: Reply(f"yes {call.number}", headers={"set-cookie": f"session=c00kie-{call.number}"}))

    async def ask(session: Session) -> str:
        async with session.post(f"{model.url}/chat/completions", json=QUESTION) as response:
            return response.cookies["session"].value if response.cookies else ""

    async def main() -> None:
        async with Session(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            live, _ = await sample(lambda: ask(session), sampler(store, concurrency=1))
            assert live == [f"c00kie-{number}" for number in range(RUNS)]
            assert [cookie.value for cookie in session.cookie_jar] == [f"c00kie-{RUNS - 1}"]
            stored, _ = await sample(lambda: ask(session), sampler(store, cache="replay"))
            assert stored == [""] * RUNS

    asyncio.run(main())
    assert [call.headers.get("cookie") for call in model.calls[:2]] == [None, "session=c00kie-0"]
    assert not [path for path in store.directory.rglob("*") if path.is_file() and b"c00kie" in path.read_bytes()]


# What hangs on a session


def traced(heard: list[str]) -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()
    for name in (
        "request_start",
        "request_chunk_sent",
        "request_headers_sent",
        "response_chunk_received",
        "request_end",
        "request_exception",
        "request_redirect",
        "connection_create_end",
        "connection_reuseconn",
    ):

        async def hear(session: Any, context: Any, parameters: Any, name: str = name) -> None:
            # Which of the two it is depends on what was asked before.
            name = "connected" if name.startswith("connection") else name
            context.seen = [*getattr(context, "seen", []), name]
            heard.append(f"{context.trace_request_ctx}: {name}")

        getattr(config, f"on_{name}").append(hear)
    return config


def test_trace_hooks_hear_each_call_of_the_application_once(model: ScriptedServer, store: SampleStore) -> None:
    heard: list[str] = []

    async def ask(session: Session, url: str) -> list[str]:
        heard.clear()
        async with session.post(url, json=QUESTION, trace_request_ctx="ask") as response:
            await response.read()
        return sorted(heard)

    (seen, *_) = looks_the_same(ask, model, store, trace_configs=[traced(heard)])
    assert seen == [
        "ask: connected",
        "ask: request_chunk_sent",
        "ask: request_end",
        "ask: request_headers_sent",
        "ask: request_start",
        "ask: response_chunk_received",
    ]


def test_headers_that_a_trace_hook_adds_are_sent(model: ScriptedServer, store: SampleStore) -> None:
    config = aiohttp.TraceConfig()

    async def add(session: Any, context: Any, parameters: Any) -> None:
        parameters.headers["X-Span"] = "span"

    config.on_request_start.append(add)

    async def main() -> None:
        async with Session(trace_configs=[config]) as session:
            await sample(lambda: post_json(session, f"{model.url}/chat/completions"), sampler(None, concurrency=1))

    asyncio.run(main())
    assert [call.headers["x-span"] for call in model.calls] == ["span"] * RUNS


@pytest.mark.skipif(not hasattr(aiohttp, "ClientMiddlewareType"), reason="from aiohttp 3.12 on")
@pytest.mark.parametrize("of", ["session", "call"])
def test_middlewares_hear_each_call_of_the_application_once(of: str, model: ScriptedServer, store: SampleStore) -> None:
    heard: list[Any] = []

    async def middleware(request: Any, handler: Any) -> Any:
        request.headers["X-Signed"] = "yes"
        response = await handler(request)
        heard.append((request.session is current[-1], response.status, response.headers["x-request-id"]))
        return response

    current: list[Session] = []
    options: dict[str, Any] = {"middlewares": (middleware,)}

    async def ask(session: Session, url: str) -> Any:
        current.append(session)
        before = len(heard)
        async with session.post(url, json=QUESTION, **(options if of == "call" else {})) as response:
            content = await response.json()
        mine = [found for found in heard[before:] if found[2] == response.headers["x-request-id"]]
        return content, mine

    live = looks_the_same(ask, model, store, **(options if of == "session" else {}))
    assert [[part[:2] for part in mine] for _, mine in live] == [[(True, 200)]] * RUNS
    assert {call.headers["x-signed"] for call in model.calls} == {"yes"}


def test_classes_of_the_applications_own(model: ScriptedServer, store: SampleStore) -> None:
    class Response(aiohttp.ClientResponse):
        async def answer(self) -> str:
            return str((await self.json())["choices"][0]["message"]["content"])

    async def ask(session: Session, url: str) -> Any:
        async with session.post(url, json=QUESTION) as response:
            return await response.answer()

    looks_the_same(ask, model, store, response_class=Response)


async def not_good_enough(response: aiohttp.ClientResponse) -> None:
    raise LookupError(f"not good enough: {response.status} {(await response.json())['id'][:8]}")


def test_a_check_of_the_applications_own_raises_in_the_application(model: ScriptedServer, store: SampleStore) -> None:
    async def ask(session: Session, url: str) -> str:
        with pytest.raises(LookupError) as caught:
            await session.post(url, json=QUESTION, raise_for_status=not_good_enough)
        return str(caught.value)

    assert looks_the_same(ask, model, store) == ["not good enough: 200 chatcmpl"] * RUNS


# Connections


def test_connections_go_back_to_the_pool(server) -> None:
    model, opened = server("yes"), []
    config = aiohttp.TraceConfig()

    async def connected(*_: Any) -> None:
        opened.append(1)

    config.on_connection_create_end.append(connected)

    async def main() -> None:
        async with Session(trace_configs=[config]) as session:
            for body in (QUESTION, STREAMED):

                async def ask(body: Any = body) -> None:
                    async with session.post(f"{model.url}/chat/completions", json=body) as response:
                        await response.read()

                await sample(ask, sampler(None, concurrency=1))

    asyncio.run(asyncio.wait_for(main(), 20))
    assert (len(model.calls), len(opened)) == (2 * RUNS, 1)


@pytest.mark.parametrize("body", [QUESTION, STREAMED])
def test_a_session_closes_whatever_became_of_its_responses(server, store: SampleStore, body: dict[str, Any]) -> None:
    model = server("yes and no")

    async def main(cache: str) -> None:
        session = Session()
        responses, _ = await sample(
            lambda: session.post(f"{model.url}/chat/completions", json=body), sampler(store, cache=cache)
        )
        await session.close()
        for response in responses:
            assert b"yes" in await response.read()

    for cache in ("auto", "replay"):
        asyncio.run(asyncio.wait_for(main(cache), 20))


def test_a_session_that_is_closed_says_so(model: ScriptedServer, store: SampleStore) -> None:
    async def main() -> None:
        async with Session() as session:
            await sample(lambda: post_json(session, f"{model.url}/chat/completions"), sampler(store))
        met, _ = await sample(
            lambda: outcome(post_json(session, f"{model.url}/chat/completions")), sampler(store, cache="replay")
        )
        assert met == ["RuntimeError: Session is closed"] * RUNS

    asyncio.run(main())


# Fetching ahead


def ask_at(url: str, **options: Any) -> Body:
    async def ask(session: Session, _: str) -> None:
        async with session.post(url, json=QUESTION, **options) as response:
            await response.read()

    return ask


class OwnConnector(aiohttp.TCPConnector):
    """A connector of an application, which may count its calls."""


@pytest.mark.parametrize(("connector", "ahead"), [(aiohttp.TCPConnector, True), (OwnConnector, False)])
def test_only_an_ordinary_connector_is_asked_ahead(server, connector: Any, ahead: bool) -> None:
    model = server(together("yes", 3) if ahead else "yes")

    async def main() -> list[Run]:
        async with Session(connector=connector(), headers={"Idempotency-Key": "k"}) as session:
            ask = ask_at(f"{model.url}/chat/completions", raise_for_status=True)
            return (await sample(lambda: ask(session, ""), sampler(None)))[1]

    runs = asyncio.run(main())
    assert outputs(runs) == [("yes",)] * RUNS
    assert (len(model.calls), model.peak) == (RUNS, 3 if ahead else 1)
    # The same key would be answered with the answer to the first call.
    keys = [call.headers["idempotency-key"] for call in model.calls]
    assert (keys.count("k"), len(set(keys))) == ((2, 3) if ahead else (RUNS, 1))


@pytest.mark.parametrize(
    ("of_session", "of_call", "patience"),
    [
        (aiohttp.ClientTimeout(total=300), {}, 300),
        (aiohttp.ClientTimeout(total=300, sock_read=20), {}, 20),
        (aiohttp.ClientTimeout(total=None), {}, float("inf")),
        (aiohttp.ClientTimeout(total=300), {"timeout": 7}, 7),
        (aiohttp.ClientTimeout(total=300), {"timeout": aiohttp.ClientTimeout(sock_read=5)}, 5),
        (aiohttp.ClientTimeout(total=300), {"timeout": None}, float("inf")),
        (aiohttp.ClientTimeout(total=300), {"timeout": object()}, 300),
    ],
)
def test_how_long_an_application_waits(of_session: Any, of_call: dict[str, Any], patience: float) -> None:
    async def main() -> float:
        async with Session(timeout=of_session) as session:
            return aiohttp_seam._patience(session, of_call)

    assert asyncio.run(main()) == patience


# What is no answer

ERROR = json.dumps({"error": {"message": "slow down"}}).encode()
BROKEN = {
    "too many requests": Reply(raw=ERROR, status=429, headers={"retry-after": "1"}),
    "an error of the server": Reply(raw=ERROR, status=500),
    "a page of a proxy": Reply(raw=b"<html>", content_type="text/html"),
    "a connection that is reset": Reply(reset=True),
    "a body that ends too early": Reply("yes", cut=True),
}


async def outcome(ask: Awaitable[Any]) -> str:
    try:
        return f"got {await ask!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def ask_for_pieces(session: Session, url: str, body: dict[str, Any], **options: Any) -> Any:
    """What arrived, and the error after it."""
    pieces, error = [], None
    async with session.post(url, json=body, **options) as response:
        try:
            async for piece in response.content.iter_any():
                pieces.append(piece)  # noqa: PERF401  # an error comes after some of them
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
    return response.status, response.reason, response.content_type, b"".join(pieces), error


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_answer_is_an_error_never_an_output_and_never_kept(
    server, store: SampleStore, name: str, stream: bool, strict: bool
) -> None:
    model = server(lambda call: BROKEN[name])
    question = STREAMED if stream else QUESTION
    url = f"{model.url}/chat/completions"

    async def main() -> None:
        async with Session(raise_for_status=strict) as session:

            def ask() -> Awaitable[str]:
                return outcome(ask_for_pieces(session, url, question, read_until_eof=strict))

            alone = await ask()
            met, runs = await sample(ask, sampler(store, runs=3))
        assert [alike(view) for view in met] == [alike(alone)] * 3
        assert [bool(run.error) for run in runs] == [True] * 3
        assert outputs(runs) == [()] * 3

    asyncio.run(main())
    assert not store.directory.exists()
    assert len(model.calls) == 1 + 3  # nothing was fetched ahead on the strength of errors


def test_a_server_that_is_not_there(store: SampleStore) -> None:
    async def main() -> None:
        async with Session() as session:
            ask = ask_at("http://127.0.0.1:1/v1/chat/completions")
            alone = await outcome(ask(session, ""))
            met, runs = await sample(lambda: outcome(ask(session, "")), sampler(store))
        assert met == [alone] * RUNS
        assert alone.startswith("ClientConnectorError: ")
        assert [str(run.error).startswith("ClientConnectorError: ") for run in runs] == [True] * RUNS

    asyncio.run(main())
    assert not store.directory.exists()


def test_a_call_that_takes_too_long_is_an_error_and_the_next_is_none(server, store: SampleStore) -> None:
    released = threading.Event()
    model = server(lambda call: "late" if call.number == 0 and released.wait(10) else "yes")

    async def main() -> None:
        async with Session(timeout=aiohttp.ClientTimeout(total=0.3)) as session:
            ask = ask_at(f"{model.url}/chat/completions")
            met, runs = await sample(lambda: outcome(ask(session, "")), sampler(store, runs=2))
            released.set()
        assert [text.split(":")[0] for text in met] == ["TimeoutError", "got None"]
        assert [bool(run.error) for run in runs] == [True, False]
        assert outputs(runs) == [(), ("yes",)]

    asyncio.run(main())


def test_a_stream_that_stops_gives_what_came_and_then_the_error(store: SampleStore) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": []}\n\ndata: {"choi')
        await asyncio.sleep(10)
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)

    async def main() -> None:
        async with TestServer(app, shutdown_timeout=0.1) as serving, Session() as session:
            url = str(serving.make_url("/v1/chat/completions"))
            timeout = aiohttp.ClientTimeout(sock_read=0.2)
            alone = await ask_for_pieces(session, url, STREAMED, timeout=timeout)
            met, runs = await sample(
                lambda: ask_for_pieces(session, url, STREAMED, timeout=timeout), sampler(store, runs=2)
            )
        assert alone[3] == b'data: {"choices": []}\n\ndata: {"choi'
        assert "imeout" in alone[4]
        assert met == [alone] * 2
        assert [bool(run.error) for run in runs] == [True] * 2

    asyncio.run(main())
    assert not store.directory.exists()


def test_a_call_that_the_application_tries_again_is_one_exchange(server, store: SampleStore) -> None:
    model = server(lambda call: BROKEN["an error of the server"] if call.number in (0, 2) else f"yes {call.number}")

    async def ask(session: Session) -> None:
        for _ in range(2):
            async with session.post(f"{model.url}/chat/completions", json=QUESTION) as response:
                if response.ok:
                    return

    async def main() -> list[Run]:
        async with Session() as session:
            return (await sample(lambda: ask(session), sampler(store, concurrency=1)))[1]

    runs = asyncio.run(main())
    assert [run.error for run in runs] == [None] * RUNS
    assert outputs(runs) == [("yes 1",), ("yes 3",), ("yes 4",), ("yes 5",)]


def test_a_call_that_the_application_gives_up_on_does_not_break_later_runs(server) -> None:
    arrived, released = threading.Event(), threading.Event()

    def reply(call: Call) -> str:
        if call.number == 0:
            arrived.set()
            released.wait(10)
        return f"yes {call.number}"

    model = server(reply)
    sampling = sampler(None, runs=3, concurrency=1)

    async def main() -> list[Run]:
        async with Session() as session:

            async def body() -> None:
                call = asyncio.create_task(post_json(session, f"{model.url}/chat/completions"))
                if not arrived.is_set():
                    assert await asyncio.to_thread(arrived.wait, 10)
                    call.cancel()
                    released.set()
                await asyncio.wait([call])

            return (await sample(body, sampling))[1]

    runs = asyncio.run(main())
    assert outputs(runs) == [(), ("yes 1",), ("yes 2",)]
    assert [run.error for run in runs] == [None] * 3
    assert sampling.slots._free == 1


def test_a_refusal_passes_through_whatever_the_application_catches(store: SampleStore) -> None:
    async def main() -> None:
        async with Session() as session:
            sampling = sampler(store, cache="replay")
            with observing(sampling):
                sampling.start_run(0)
                with pytest.raises(Refusal, match="cache=replay asks no model"):
                    await outcome(post_json(session, "http://127.0.0.1:1/v1/chat/completions"))

    asyncio.run(main())


# What is not observed


def test_requests_that_are_no_model_calls_or_cannot_be_read_are_sent_as_they_are() -> None:
    got: list[tuple[str, str, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        got.append((request.method, request.path, await request.read()))
        return web.Response(text="fine")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)

    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(QUESTION).encode()

    async def main() -> list[Run]:
        async with TestServer(app) as serving, Session() as session:
            url = serving.make_url("/v1/chat/completions")

            async def body() -> None:
                form = aiohttp.FormData({"messages": "[]"})
                for sent in (
                    session.get(url),
                    session.post(url, data=form),
                    session.post(url, data=pieces()),
                    session.post(url, data=b"no JSON"),
                    session.post(url),
                    session.post(serving.make_url("/v1/files"), json=QUESTION),
                ):
                    async with sent as response:
                        assert await response.text() == "fine"
                with pytest.raises(ValueError, match="data and json"):
                    await session.post(url, data=b"x", json=QUESTION)

            return (await sample(body, sampler(None, runs=2)))[1]

    runs = asyncio.run(main())
    assert outputs(runs) == [()] * 2
    assert (
        got
        == [
            ("GET", "/v1/chat/completions", b""),
            ("POST", "/v1/chat/completions", b"messages=%5B%5D"),
            ("POST", "/v1/chat/completions", json.dumps(QUESTION).encode()),
            ("POST", "/v1/chat/completions", b"no JSON"),
            ("POST", "/v1/chat/completions", b""),
            ("POST", "/v1/files", json.dumps(QUESTION).encode()),
        ]
        * 2
    )


# Two seams


class OverAiohttp(httpx2.AsyncBaseTransport):
    """httpx over aiohttp, as several packages do it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        async with self._session.request(
            request.method, str(request.url), headers=request.headers, data=request.content, auto_decompress=False
        ) as response:
            content = await response.read()
        return httpx2.Response(response.status, headers=response.raw_headers, content=content)


@pytest.mark.parametrize("query", ["", "?api-version=2024-02-01&a=b%2Fc%20d+e&x=é"])
def test_httpx_over_aiohttp_is_one_exchange(model: ScriptedServer, store: SampleStore, query: str) -> None:
    async def main() -> None:
        async with Session() as session, httpx2.AsyncClient(transport=OverAiohttp(session)) as client:

            async def ask() -> Any:
                url = f"{model.url}/openai/deployments/a:b%2Fc é/chat/completions{query}"
                return (await client.post(url, json=QUESTION)).json()

            live, runs = await sample(ask, sampler(store))
            stored, _ = await sample(ask, sampler(store, cache="replay"))
        assert stored == live
        assert [len(run.exchanges) for run in runs] == [1] * RUNS

    asyncio.run(main())
    assert len(model.calls) == RUNS


def test_openai_over_aiohttp_counts_each_call_once(model: ScriptedServer, store: SampleStore) -> None:
    model.latency = 0.1

    async def main() -> None:
        try:
            over_aiohttp = openai.DefaultAioHttpClient()
        except RuntimeError as error:
            pytest.skip(str(error))
        async with openai.AsyncOpenAI(base_url=model.url, api_key=SECRET, http_client=over_aiohttp) as client:

            async def ask() -> Any:
                whole = await client.chat.completions.create(model="m", messages=QUESTION["messages"])
                events = await client.chat.completions.create(model="m", messages=QUESTION["messages"], stream=True)
                return whole.model_dump(), [event.model_dump() async for event in events]

            live, runs = await sample(ask, sampler(store))
            stored, again = await sample(ask, sampler(store, cache="replay"))
        assert stored == live
        assert [len(run.exchanges) for run in (*runs, *again)] == [2] * 2 * RUNS

    asyncio.run(main())
    assert len(model.calls) == 2 * RUNS
    assert model.peak > 1  # it goes to the network as httpx itself does, so calls are made ahead


def test_an_application_that_is_served_in_the_process_asks_its_model(model: ScriptedServer) -> None:
    asking: list[Session] = []

    async def answer(request: web.Request) -> web.Response:
        """A gateway, with the route of the API behind it."""
        async with asking[0].post(f"{model.url}/chat/completions", data=await request.read()) as response:
            return web.json_response(await response.json())

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)

    async def main() -> tuple[list[Run], list[Run]]:
        async with TestServer(app) as serving, Session() as session:
            asking.append(session)
            outside = ask_at(str(serving.make_url("/ask")))
            gateway = ask_at(str(serving.make_url("/v1/chat/completions")))
            return (
                (await sample(lambda: outside(session, ""), sampler(None, runs=2)))[1],
                (await sample(lambda: gateway(session, ""), sampler(None, runs=2, concurrency=2)))[1],
            )

    outside, gateway = asyncio.run(main())
    assert [len(run.exchanges) for run in outside] == [1, 1]
    assert [len(run.exchanges) for run in gateway] == [2, 2]
    assert len(model.calls) == 4


# What stands in for aiohttp


class Fake:
    """An answer of a test's own, that is no response of aiohttp."""

    status = 200

    async def __aenter__(self) -> Fake:
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass

    async def read(self) -> bytes:
        return b"fake"

    def release(self) -> None:
        pass

    async def wait_for_close(self) -> None:
        pass


@pytest.fixture
def aioresponses() -> Any:
    """aioresponses, where it works with the aiohttp that is installed."""
    library = pytest.importorskip("aioresponses")

    async def ask() -> None:
        async with Session() as session, session.get("http://model.example"):
            pass

    with library.aioresponses() as mocked:
        mocked.get("http://model.example")
        try:
            asyncio.run(ask())
        except TypeError as error:
            pytest.skip(f"this aioresponses does not work with aiohttp {aiohttp.__version__}: {error}")
    return library


async def sample_in_place_of(
    stand_in: Callable[[], Any], body: Callable[[], Awaitable[Any]], sampling: Sampler, within: bool
) -> tuple[list[Any], list[Run]]:
    """Runs with something in the place of `_request`, put there within each body, or before the runs."""

    async def body_within() -> Any:
        with stand_in():
            return await body()

    if within:
        return await sample(body_within, sampling)
    with stand_in():
        return await sample(body, sampling)


WITHIN = pytest.mark.parametrize("within", [False, True])


@WITHIN
@pytest.mark.parametrize("way", ["post", "request"])
def test_aioresponses_is_asked_as_often_as_the_application_asks(
    aioresponses: Any, store: SampleStore, within: bool, way: str
) -> None:
    url = "http://model.example/v1/chat/completions"
    asked: list[Any] = []

    def reply(_: URL, **options: Any) -> Any:
        asked.append(options)
        content = {"choices": [{"message": {"content": f"canned {len(asked)}"}}]}
        return aioresponses.CallbackResult(payload=content)

    @contextlib.contextmanager
    def mocked() -> Iterator[None]:
        with aioresponses.aioresponses() as m:
            m.post(url, callback=reply, repeat=True)
            yield

    async def ask(session: Session) -> Any:
        sending = session.post(url, json=QUESTION) if way == "post" else session.request("POST", url, json=QUESTION)
        async with sending as response:
            lines = [line async for line in response.content]
            assert await response.read() == b"".join(lines)
            return json.loads(b"".join(lines))["choices"][0]["message"]["content"]

    async def main(cache: str) -> None:
        async with Session() as session:
            first = len(asked) + 1
            seen, runs = await sample_in_place_of(mocked, lambda: ask(session), sampler(store, cache=cache), within)
        assert seen == [f"canned {number}" for number in range(first, first + RUNS)]
        assert outputs(runs) == [(text,) for text in seen]

    for cache in ("auto", "auto", "replay"):
        asyncio.run(main(cache))
    assert [options["json"] for options in asked] == [QUESTION] * 3 * RUNS
    assert not store.directory.exists()


@WITHIN
def test_an_error_of_aioresponses_is_an_error(aioresponses: Any, store: SampleStore, within: bool) -> None:
    url = "http://model.example/v1/chat/completions"

    @contextlib.contextmanager
    def mocked() -> Iterator[None]:
        with aioresponses.aioresponses() as m:
            m.post(url, status=500, body="out of order", repeat=True)
            yield

    async def main() -> tuple[list[Any], list[Run]]:
        async with Session() as session:
            return await sample_in_place_of(mocked, lambda: outcome(ask_at(url)(session, "")), sampler(store), within)

    met, runs = asyncio.run(main())
    assert met == ["got None"] * RUNS
    assert [run.error for run in runs] == ["HTTP 500: out of order"] * RUNS


@WITHIN
@pytest.mark.parametrize(
    "stand_in",
    [
        lambda: mock.patch.object(Session, "_request", mock.AsyncMock(return_value=Fake())),
        lambda: mock.patch.object(Session, "_request", autospec=True, return_value=Fake()),
        lambda: mock.patch.object(Session, "post", return_value=Fake()),
    ],
)
def test_a_fake_that_is_no_response_is_handed_on(stand_in: Any, within: bool) -> None:
    async def ask(session: Session) -> bytes:
        async with session.post("http://model.example/v1/chat/completions", json=QUESTION) as response:
            return bytes(await response.read())

    async def main() -> tuple[list[Any], list[Run]]:
        async with Session() as session:
            return await sample_in_place_of(stand_in, lambda: ask(session), sampler(None), within)

    seen, runs = asyncio.run(main())
    assert seen == [b"fake"] * RUNS
    assert [(run.exchanges, run.error) for run in runs] == [((), None)] * RUNS


def recorder(heard: list[bytes]) -> Any:
    """What passes calls on and takes down the answers."""
    beneath = Session._request

    async def record(session: Session, *arguments: Any, **options: Any) -> Any:
        response = await beneath(session, *arguments, **options)
        heard.append(await response.read())
        return response

    return mock.patch.object(Session, "_request", record)


@WITHIN
def test_a_recorder_hears_each_call_of_the_application(model: ScriptedServer, store: SampleStore, within: bool) -> None:
    heard: list[bytes] = []

    async def main() -> tuple[list[Any], list[Run]]:
        async with Session() as session:
            url = f"{model.url}/chat/completions"
            return await sample_in_place_of(
                lambda: recorder(heard), lambda: post_json(session, url), sampler(store), within
            )

    for times in (1, 2):
        seen, runs = asyncio.run(main())
        assert [json.loads(text) for text in heard] == seen
        assert [len(run.exchanges) for run in runs] == [1] * RUNS
        assert len(model.calls) == times * RUNS
        heard.clear()


@WITHIN
def test_under_replay_a_recorder_cannot_go_to_the_network(
    model: ScriptedServer, store: SampleStore, within: bool
) -> None:
    async def main() -> None:
        async with Session() as session:
            url, sampling = f"{model.url}/chat/completions", sampler(store, cache="replay")
            await sample_in_place_of(lambda: recorder([]), lambda: post_json(session, url), sampling, within)

    with pytest.raises(Refusal, match="cache=replay asks no model"):
        asyncio.run(main())
    assert model.calls == []


class Instrument:
    """As tools of monitoring wrap a method: by an object that knows what it wraps."""

    def __init__(self, wrapped: Any, heard: list[str]) -> None:
        self.__wrapped__ = wrapped
        self._heard = heard

    def __get__(self, session: Any, owner: Any) -> Any:
        async def request(method: str, *arguments: Any, **options: Any) -> Any:
            self._heard.append(method)
            return await self.__wrapped__(session, method, *arguments, **options)

        return request if session is not None else self


@WITHIN
def test_an_instrument_of_monitoring_changes_nothing(
    model: ScriptedServer, store: SampleStore, within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    if not within:
        monkeypatch.setattr(Session, "_request", Instrument(Session._request, heard))

    async def ask(session: Session, url: str) -> Any:
        if within:
            with mock.patch.object(Session, "_request", Instrument(Session._request, heard)):
                return await post_json(session, url)
        return await post_json(session, url)

    looks_the_same(ask, model, store)
    # Beneath the seam it hears of the calls that the application made itself, and which were live.
    assert heard == ["POST"] * (1 + 2 * RUNS if within else 1 + 2)


def test_nothing_is_left_in_aiohttp_when_no_run_is_active() -> None:
    before = dict(vars(Session))
    with observing(sampler(None)):
        assert vars(Session)["_request"] is not before["_request"]
    assert dict(vars(Session)) == before


# In a project

APP = """
import aiohttp, os

URL = os.environ["OPENAI_BASE_URL"]
HEADERS = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}

def question(prompt, **parameters):
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": prompt}], **parameters}

async def ask(session, prompt):
    async with session.post("/v1/chat/completions", json=question(prompt), raise_for_status=True) as response:
        return (await response.json())["choices"][0]["message"]["content"]

def session():
    return aiohttp.ClientSession(URL.removesuffix("/v1"), headers=HEADERS)

async def ask_alone(prompt):
    async with session() as opened:
        return await ask(opened, prompt)
"""

STRICT = ("-W", "error", "-o", "asyncio_default_fixture_loop_scope=function", "--asyncio-mode=auto")


def test_a_project_live_and_from_the_store(project: Project, server) -> None:
    def reply(call: Call) -> Reply:
        key = call.headers["authorization"]
        return Reply(f"{call.prompt} for {key}", headers={"x-echo": key, "set-cookie": f"key={key}"})

    model = server(reply, latency=0.002)
    project.write(
        """
        import asyncio, json, random
        import pytest, pytest_asyncio
        from app import HEADERS, URL, ask, ask_alone, question, session

        @pytest.fixture
        async def opened():
            async with session() as kept:
                yield kept

        @pytest.mark.deterministic(runs=4)
        async def test_a_session_per_call():
            assert "capital?" in await ask_alone("capital?")

        @pytest.mark.deterministic(runs=4)
        async def test_a_session_kept_over_the_runs(opened):
            assert "river?" in await ask(opened, "river?")

        @pytest.mark.deterministic(runs=4)
        def test_a_loop_per_run():
            asyncio.run(ask_alone("lake?"))

        @pytest.mark.deterministic(runs=4)
        async def test_a_stream(opened):
            async with opened.post("/v1/chat/completions", json=question("hill?", stream=True)) as response:
                lines = [line async for line in response.content if line.startswith(b"data: {")]
            assert json.loads(lines[0][6:])["choices"][0]["delta"] == {"content": "hill?"}

        @pytest.mark.deterministic(runs=6)
        async def test_several_at_once(opened):
            async def one(prompt):
                await asyncio.sleep(random.uniform(0, 0.003))
                await ask(opened, prompt)
            await asyncio.gather(*map(one, random.sample(["a?", "b?", "c?"], 3)))
        """,
        app=APP,
    )
    live = project.report(*STRICT, url=model.url)
    assert (live["exit"], len(model.calls)) == (0, 4 * 4 + 6 * 3)
    stored = project.report(*STRICT, "--determinism-cache=replay", url=model.url)
    assert (stored["exit"], len(model.calls)) == (0, 4 * 4 + 6 * 3)

    for report in (live, stored):
        said = {
            name: [sorted(group["output"].splitlines()) for group in test["experiments"][0]["groups"]]
            for name, test in report["tests"].items()
        }
        assert said == {
            "test_a_session_per_call": [["capital? for Bearer [secret]"]],
            "test_a_session_kept_over_the_runs": [["river? for Bearer [secret]"]],
            "test_a_loop_per_run": [["lake? for Bearer [secret]"]],
            "test_a_stream": [["hill? for Bearer [secret]"]],
            "test_several_at_once": [[f"{letter}? for Bearer [secret]" for letter in "abc"]],
        }
        assert {test["verdict"] for test in report["tests"].values()} == {"passed"}
    written = [path for path in project.path.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert any(".pytest_llm_determinism" in str(path) for path in written)
    assert [path for path in written if b"sk-test-secret" in path.read_bytes()] == []
    assert "sk-test-secret" not in str(live["result"].stdout) + str(stored["result"].stdout)


ONE_QUESTION = """
import pytest
from app import ask_alone

@pytest.mark.deterministic(runs=6)
async def test_it():
    await ask_alone("capital?")
"""


def test_unstable_answers_fail_live_and_from_the_store(project: Project, server) -> None:
    model = server(lambda call: "left" if call.number % 3 else "right")
    project.write(ONE_QUESTION, app=APP)
    for _ in range(2):
        report = project.report(*STRICT, url=model.url)
        test = report["tests"]["test_it"]
        assert (report["exit"], test["verdict"], len(model.calls)) == (1, "nondeterministic", 6)
        groups = [(group["output"], group["count"]) for group in test["experiments"][0]["groups"]]
        assert groups == [("left", 4), ("right", 2)]


def test_an_override_reaches_the_server_and_the_key(project: Project, server) -> None:
    model = server(lambda call: f"{call.body['temperature']} {call.body['seed']}")
    project.write(ONE_QUESTION, app=APP)
    override = ("--determinism-override=temperature=0.5", "--determinism-override=seed=7")
    report = project.report(*STRICT, *override, url=model.url)

    assert (report["exit"], len(model.calls)) == (0, 6)
    (experiment,) = report["tests"]["test_it"]["experiments"]
    assert [group["output"] for group in experiment["groups"]] == ["0.5 7"]
    assert {call.headers["content-type"] for call in model.calls} == {"application/json"}
    assert {call.headers["content-length"] for call in model.calls} == {str(len(json.dumps(model.calls[0].body)))}
    project.report(*STRICT, url=model.url)
    assert model.calls[-1].body["temperature"] == 0


def test_errors_are_no_verdict(project: Project, server) -> None:
    model = server(lambda call: Reply(raw=ERROR, status=429))
    project.write(ONE_QUESTION, app=APP)
    report = project.report(*STRICT, url=model.url)
    assert (report["exit"], report["tests"]["test_it"]["verdict"]) == (1, "inconclusive")
    report["result"].stdout.fnmatch_lines(["*6 of 6 runs ended in an API error*HTTP 429: slow down*"])


def test_a_project_with_aioresponses_is_the_same_each_time(aioresponses: Any, project: Project) -> None:
    project.write(
        """
        import pytest
        from aioresponses import aioresponses
        from app import URL, ask_alone

        PAYLOAD = {"choices": [{"message": {"content": "mocked"}}]}

        @pytest.fixture
        def mocked():
            with aioresponses() as m:
                m.post(f"{URL}/chat/completions", payload=PAYLOAD, repeat=3)
                yield m
                assert [len(calls) for calls in m.requests.values()] == [3]

        @pytest.mark.deterministic(runs=3)
        async def test_a_fixture(mocked):
            assert await ask_alone("capital?") == "mocked"

        @pytest.mark.deterministic(runs=3)
        async def test_within():
            with aioresponses() as m:
                m.post(f"{URL}/chat/completions", payload=PAYLOAD)
                assert await ask_alone("capital?") == "mocked"
                m.assert_called_once()
        """,
        app=APP,
    )
    for _ in range(2):
        report = project.report(*STRICT, url="http://model.example/v1")
        assert report["exit"] == 0
        for test in report["tests"].values():
            groups = [(group["output"], group["count"]) for group in test["experiments"][0]["groups"]]
            assert (test["verdict"], groups) == ("passed", [("mocked", 3)])
