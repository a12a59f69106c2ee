"""What the application sees is the same whether its call is live, was fetched ahead, or comes from the store."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from scripted import Call, Reply, ScriptedServer

from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.sampling import Plan, Sampler
from pytest_llm_determinism.store import SampleStore

RUNS = 4
"""Run 0 asks alone, run 1 asks and fetches for runs 2 and 3."""

TEXT = "Two ways — «left» and right."
MESSAGES: list[Any] = [{"role": "user", "content": "Which way?"}]
LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2])

View = Any
"""What an application gets to see of one answer."""


def answer(call: Call) -> Reply:
    return Reply(TEXT, headers={"x-request-id": f"req-{call.number}", "x-ratelimit-remaining-requests": "99"})


@pytest.fixture
def model(server) -> ScriptedServer:
    return server(answer, latency=0.002)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    opened = SampleStore(tmp_path / "store")
    yield opened
    opened.close()


def sampler(store: SampleStore | None, cache: str = "auto") -> Sampler:
    return Sampler(Plan("burst", 0, RUNS, 8, cache if store else "off", 0.0, 1), store)


def views(body: Callable[[], View], store: SampleStore | None, cache: str = "auto") -> list[View]:
    """What the body sees in each run; every run made one exchange without an error."""
    sampling, seen = sampler(store, cache), []
    with observing(sampling):
        for index in range(RUNS):
            sampling.start_run(index)
            seen.append(body())
            run = sampling.finish_run()
            assert (run.error, len(run.exchanges)) == (None, 1)
    return seen


async def views_async(
    body: Callable[[], Awaitable[View]], store: SampleStore | None, cache: str = "auto"
) -> list[View]:
    sampling, seen = sampler(store, cache), []
    with observing(sampling):
        for index in range(RUNS):
            sampling.start_run(index)
            seen.append(await body())
            run = sampling.finish_run()
            assert (run.error, len(run.exchanges)) == (None, 1)
    return seen


def alike(view: View) -> str:
    """A view without what differs from answer to answer: numbers within ids and dates."""
    text = json.dumps(view, default=str, ensure_ascii=False)
    return "".join(character for character in text if not character.isdigit())


def check(model: ScriptedServer, bare: View, live: list[View], stored: list[View]) -> None:
    assert len(model.calls) == RUNS + 1
    assert {alike(view) for view in live} == {alike(bare)}
    assert len({json.dumps(view, default=str) for view in live}) == RUNS  # each run has an answer of its own
    assert stored == live


def looks_the_same(body: Callable[[], View], model: ScriptedServer, store: SampleStore) -> None:
    """What the body sees unobserved, asked live, fetched ahead and from the store is the same."""
    check(model, body(), views(body, store), views(body, store, "replay"))


def looks_the_same_async(
    body: Callable[[openai.AsyncOpenAI], Awaitable[View]], model: ScriptedServer, store: SampleStore
) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=model.url, api_key="sk-test") as client:
            bare = await body(client)
            live = await views_async(lambda: body(client), store)
            stored = await views_async(lambda: body(client), store, "replay")
        check(model, bare, live, stored)

    asyncio.run(main())


@pytest.fixture
def client(model: ScriptedServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=model.url, api_key="sk-test") as opened:
        yield opened


def ask(client: Any, api: str, **options: Any) -> Any:
    if api == "chat":
        return client.chat.completions.create(model="m", messages=MESSAGES, **options)
    if api == "completions":
        return client.completions.create(model="m", prompt="Which way?", **options)
    return client.responses.create(model="m", input="Which way?", **options)


APIS = pytest.mark.parametrize("api", ["chat", "completions", "responses"])


# The SDK's objects


@APIS
def test_parsed_answers(client: openai.OpenAI, model: ScriptedServer, store: SampleStore, api: str) -> None:
    def body() -> View:
        found = ask(client, api)
        return found.model_dump(), found._request_id

    looks_the_same(body, model, store)


@APIS
def test_parsed_answers_async(model: ScriptedServer, store: SampleStore, api: str) -> None:
    async def body(client: openai.AsyncOpenAI) -> View:
        found = await ask(client, api)
        return found.model_dump(), found._request_id

    looks_the_same_async(body, model, store)


@APIS
def test_streams(client: openai.OpenAI, model: ScriptedServer, store: SampleStore, api: str) -> None:
    def body() -> View:
        with ask(client, api, stream=True) as events:
            return [event.model_dump() for event in events]

    looks_the_same(body, model, store)
    assert len(body()) > 5


@APIS
def test_streams_async(model: ScriptedServer, store: SampleStore, api: str) -> None:
    async def body(client: openai.AsyncOpenAI) -> View:
        async with await ask(client, api, stream=True) as events:
            return [event.model_dump() async for event in events]

    looks_the_same_async(body, model, store)


@APIS
def test_streams_that_are_left_early(
    client: openai.OpenAI, model: ScriptedServer, store: SampleStore, api: str
) -> None:
    def body() -> View:
        events = ask(client, api, stream=True)
        first = next(events).model_dump()
        events.close()
        return first

    looks_the_same(body, model, store)


@APIS
def test_streams_that_are_left_early_async(model: ScriptedServer, store: SampleStore, api: str) -> None:
    async def body(client: openai.AsyncOpenAI) -> View:
        events = await ask(client, api, stream=True)
        first = await anext(aiter(events))
        await events.close()
        return first.model_dump()

    looks_the_same_async(body, model, store)


def test_the_sdks_own_stream_helper(client: openai.OpenAI, model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        with client.chat.completions.stream(model="m", messages=MESSAGES) as stream:
            kinds = [event.type for event in stream]
            return kinds, stream.get_final_completion().model_dump()

    looks_the_same(body, model, store)


def test_raw_responses(client: openai.OpenAI, model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        raw = client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
        response = raw.http_response
        assert datetime.timedelta(seconds=0.002) <= raw.elapsed < datetime.timedelta(seconds=20)
        assert raw.headers["content-length"] == str(len(response.content))
        return (
            raw.parse().model_dump(),
            raw.request_id,
            raw.headers["x-ratelimit-remaining-requests"],
            raw.headers["content-type"],
            (response.status_code, response.reason_phrase, response.http_version, response.is_success),
            (response.text, response.encoding, response.charset_encoding),
            (response.is_closed, response.is_stream_consumed),
            (str(response.url), response.request.method, raw.retries_taken),
        )

    looks_the_same(body, model, store)


@pytest.mark.parametrize("read", ["iter_lines", "iter_bytes", "iter_text"])
def test_streaming_responses(client: openai.OpenAI, model: ScriptedServer, store: SampleStore, read: str) -> None:
    def body() -> View:
        create = client.chat.completions.with_streaming_response.create
        with create(model="m", messages=MESSAGES, stream=True) as raw:
            pieces = list(getattr(raw, read)())
            whole = b"".join(pieces).decode() if read == "iter_bytes" else "".join(pieces)
        assert "data: [DONE]" in whole
        return whole, raw.headers["x-request-id"], raw.status_code

    looks_the_same(body, model, store)


def test_streaming_responses_async(model: ScriptedServer, store: SampleStore) -> None:
    async def body(client: openai.AsyncOpenAI) -> View:
        create = client.chat.completions.with_streaming_response.create
        async with create(model="m", messages=MESSAGES) as raw:
            return (await raw.parse()).model_dump(), raw.headers["x-request-id"]

    looks_the_same_async(body, model, store)


def test_answers_that_came_compressed(server, store: SampleStore) -> None:
    model = server(lambda call: Reply(f"{TEXT} {call.number}", headers={"content-encoding": "gzip"}))
    with openai.OpenAI(base_url=model.url, api_key="sk-test") as client:
        looks_the_same(lambda: ask(client, "chat").model_dump(), model, store)
        stream = views(
            lambda: "".join(c.choices[0].delta.content or "" for c in ask(client, "chat", stream=True)), store
        )
    assert {alike(text) for text in stream} == {alike(f"{TEXT} ")}


def test_answers_that_came_in_chunks_and_other_line_ends(server, store: SampleStore) -> None:
    events = "".join(
        f'id: {n}\r\ndata: {{"choices":[{{"index":0,"delta":{{"content":"{word}"}},"finish_reason":{end}}}]}}\r\n\r\n'
        for n, (word, end) in enumerate([("a", "null"), ("é", "null"), ("", '"stop"')])
    )
    model = server(lambda call: Reply(raw=events.encode(), content_type="text/event-stream; charset=utf-8"))
    with openai.OpenAI(base_url=model.url, api_key="sk-test") as client:

        def body() -> View:
            return [chunk.choices[0].delta.content for chunk in ask(client, "chat", stream=True)]

        assert body() == ["a", "é", ""]
        assert views(body, store) == views(body, store, "replay") == [["a", "é", ""]] * RUNS


# Plain clients


@LIBRARIES
def test_a_plain_client(library: Any, model: ScriptedServer, store: SampleStore) -> None:
    with library.Client() as client:

        def body() -> View:
            response = client.post(f"{model.url}/chat/completions", json={"messages": MESSAGES})
            assert datetime.timedelta(seconds=0.002) <= response.elapsed < datetime.timedelta(seconds=20)
            assert type(response) is library.Response
            return response.json(), response.headers["x-request-id"], response.raise_for_status().num_bytes_downloaded

        looks_the_same(body, model, store)


@LIBRARIES
@pytest.mark.parametrize("read", ["iter_bytes", "iter_raw", "iter_text", "iter_lines"])
def test_a_plain_client_that_streams(library: Any, read: str, model: ScriptedServer, store: SampleStore) -> None:
    with library.Client() as client:

        def body() -> View:
            asked = {"messages": MESSAGES, "stream": True}
            with client.stream("POST", f"{model.url}/chat/completions", json=asked) as response:
                assert not response.is_stream_consumed
                pieces = list(getattr(response, read)())
            assert response.is_closed
            assert response.elapsed > datetime.timedelta(0)
            return "".join(piece.decode() if isinstance(piece, bytes) else piece for piece in pieces)

        looks_the_same(body, model, store)


@LIBRARIES
@pytest.mark.parametrize("read", ["aiter_bytes", "aiter_raw", "aiter_lines"])
def test_a_plain_async_client_that_streams(library: Any, read: str, model: ScriptedServer, store: SampleStore) -> None:
    async def body() -> View:
        asked = {"messages": MESSAGES, "stream": True}
        async with (
            library.AsyncClient() as client,
            client.stream("POST", f"{model.url}/chat/completions", json=asked) as response,
        ):
            pieces = [piece async for piece in getattr(response, read)()]
            return "".join(piece.decode() if isinstance(piece, bytes) else piece for piece in pieces)

    async def main() -> None:
        check(model, await body(), await views_async(body, store), await views_async(body, store, "replay"))

    asyncio.run(main())


@LIBRARIES
def test_hooks_are_called_once_for_each_call_of_the_application(
    library: Any, model: ScriptedServer, store: SampleStore
) -> None:
    heard: list[str] = []
    hooks = {
        "request": [lambda request: heard.append(request.method)],
        "response": [lambda response: heard.append(str(response.status_code)), lambda response: response.read()],
    }
    with library.Client(event_hooks=hooks) as client:

        def body() -> View:
            return client.post(f"{model.url}/chat/completions", json={"messages": MESSAGES}).json()

        live = views(body, store)
        assert heard == ["POST", "200"] * RUNS
        assert views(body, store, "replay") == live
    assert heard == ["POST", "200"] * 2 * RUNS
    assert len(model.calls) == RUNS


@LIBRARIES
def test_async_hooks_are_called_once_for_each_call_of_the_application(
    library: Any, model: ScriptedServer, store: SampleStore
) -> None:
    heard: list[str] = []

    async def asked(request: Any) -> None:
        heard.append(request.method)

    async def answered(response: Any) -> None:
        await response.aread()
        heard.append(str(response.status_code))

    async def main() -> None:
        async with library.AsyncClient(event_hooks={"request": [asked], "response": [answered]}) as client:

            async def body() -> View:
                return (await client.post(f"{model.url}/chat/completions", json={"messages": MESSAGES})).json()

            assert await views_async(body, store) == await views_async(body, store, "replay")

    asyncio.run(main())
    assert heard == ["POST", "200"] * 2 * RUNS
    assert len(model.calls) == RUNS


@LIBRARIES
def test_a_hook_that_raises_raises_in_the_application(library: Any, model: ScriptedServer, store: SampleStore) -> None:
    def refuse(response: Any) -> None:
        raise LookupError("not today")

    with library.Client(event_hooks={"response": [refuse]}) as client:
        sampling = sampler(store)
        with observing(sampling):
            sampling.start_run(0)
            with pytest.raises(LookupError):
                client.post(f"{model.url}/chat/completions", json={"messages": MESSAGES})
            assert "not today" in str(sampling.finish_run().error)


@LIBRARIES
def test_cookies_that_the_server_sets_are_sent_back(library: Any, server) -> None:
    model = server(lambda call: Reply("yes", headers={"set-cookie": "session=abc"}))
    with library.Client() as client:
        views(lambda: client.post(f"{model.url}/chat/completions", json={"messages": MESSAGES}).json(), None)
        assert client.cookies["session"] == "abc"
    assert model.calls[-1].headers["cookie"] == "session=abc"


# The life of clients


def test_a_client_made_for_each_call(model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        with openai.OpenAI(base_url=model.url, api_key="sk-test") as client:
            return ask(client, "chat").model_dump()

    looks_the_same(body, model, store)


def test_a_client_and_a_loop_made_for_each_call(model: ScriptedServer, store: SampleStore) -> None:
    async def asked() -> View:
        async with openai.AsyncOpenAI(base_url=model.url, api_key="sk-test") as client:
            return (await ask(client, "chat")).model_dump()

    looks_the_same(lambda: asyncio.run(asked()), model, store)


def test_a_client_that_is_closed_stays_closed(client: openai.OpenAI, store: SampleStore) -> None:
    sampling = sampler(store)
    with observing(sampling):
        sampling.start_run(0)
        ask(client, "chat")
        sampling.finish_run()
        client.close()
        sampling.start_run(1)
        with pytest.raises((openai.APIConnectionError, RuntimeError)):
            ask(client.with_options(max_retries=0), "chat")
        sampling.finish_run()


def test_fetching_ahead_leaves_the_client_open_and_its_connections_in_order(
    client: openai.OpenAI, model: ScriptedServer
) -> None:
    views(lambda: ask(client, "chat").id, None)
    assert not client.is_closed()
    assert ask(client, "chat").id
    client.close()
    assert client.is_closed()


@LIBRARIES
def test_a_client_with_few_connections_is_not_overrun(library: Any, server) -> None:
    model = server("yes", latency=0.03)
    timeout = library.Timeout(10, pool=0.005)
    with library.Client(limits=library.Limits(max_connections=2), timeout=timeout) as client:
        views(lambda: client.post(f"{model.url}/chat/completions", json={"messages": MESSAGES}).json(), None)
    assert model.peak <= 2


# Transports


@LIBRARIES
def test_a_transport_of_the_applications_own_is_observed_but_never_asked_ahead(library: Any) -> None:
    asked: list[int] = []

    def respond(request: Any) -> Any:
        asked.append(len(asked))
        message = {"role": "assistant", "content": f"answer {len(asked)}"}
        return library.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    with library.Client(transport=library.MockTransport(respond)) as client:

        def body() -> View:
            client.post("https://api.test/v1/chat/completions", json={"messages": MESSAGES})
            return len(asked)

        assert views(body, None) == [1, 2, 3, 4]


@LIBRARIES
def test_a_transport_that_wraps_the_ordinary_one_is_never_asked_ahead(library: Any, model: ScriptedServer) -> None:
    class Counting(library.HTTPTransport):
        asked = 0

        def handle_request(self, request: Any) -> Any:
            self.asked += 1
            return super().handle_request(request)

    transport = Counting()
    with library.Client(transport=transport) as client:

        def body() -> View:
            client.post(f"{model.url}/chat/completions", json={"messages": MESSAGES})
            return transport.asked

        assert views(body, None) == [1, 2, 3, 4]


@LIBRARIES
def test_an_application_served_in_this_process_calls_its_model_without_waiting_for_itself(
    library: Any, model: ScriptedServer
) -> None:
    """Both calls are model calls by route; with one call in flight the inner must not wait for the outer."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        async with library.AsyncClient() as inner:
            reply = await inner.post(f"{model.url}/chat/completions", json={"messages": MESSAGES}, timeout=5)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": reply.content})

    async def main() -> None:
        sampling = Sampler(Plan("solo", 0, 2, 1, "off", 0.0, 1), None)
        with observing(sampling):
            async with library.AsyncClient(transport=library.ASGITransport(app=application)) as outer:
                for index in range(2):
                    sampling.start_run(index)
                    await outer.post("http://app.test/v1/chat/completions", json={"messages": MESSAGES}, timeout=5)
                    run = sampling.finish_run()
                    assert [exchange.output for exchange in run.exchanges] == [TEXT, TEXT]

    asyncio.run(asyncio.wait_for(main(), 20))
    assert len(model.calls) == 2


@LIBRARIES
def test_an_application_with_a_route_like_that_of_a_model_is_none(library: Any, model: ScriptedServer) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        async with library.AsyncClient() as inner:
            reply = await inner.post(f"{model.url}/chat/completions", json={"messages": MESSAGES}, timeout=5)
        said = {"reply": reply.json()["choices"][0]["message"]["content"]}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    async def main() -> None:
        sampling = Sampler(Plan("burst", 0, 2, 8, "off", 0.0, 1), None)
        with observing(sampling):
            async with library.AsyncClient(transport=library.ASGITransport(app=application)) as outer:
                sampling.start_run(0)
                reply = await outer.post("http://app.test/api/chat", json={"model": "m", "messages": MESSAGES})
                run = sampling.finish_run()
        assert reply.json() == {"reply": TEXT}
        assert ([exchange.output for exchange in run.exchanges], run.error) == ([TEXT], None)

    asyncio.run(main())


@LIBRARIES
def test_one_client_built_on_another_is_one_exchange(library: Any, model: ScriptedServer) -> None:
    class Handing(library.BaseTransport):
        inner = library.Client()

        def handle_request(self, request: Any) -> Any:
            return self.inner.send(request)

    with library.Client(transport=Handing()) as client:
        views(lambda: client.post(f"{model.url}/chat/completions", json={"messages": MESSAGES}).json(), None)
    Handing.inner.close()
    assert len(model.calls) == RUNS


def test_outside_a_run_the_libraries_are_as_they_were() -> None:
    before = [kind.send for kind in (httpx.Client, httpx.AsyncClient, httpx2.Client, httpx2.AsyncClient)]
    with observing(sampler(None)):
        during = [kind.send for kind in (httpx.Client, httpx.AsyncClient, httpx2.Client, httpx2.AsyncClient)]
    after = [kind.send for kind in (httpx.Client, httpx.AsyncClient, httpx2.Client, httpx2.AsyncClient)]
    assert before == after
    assert not set(before) & set(during)
