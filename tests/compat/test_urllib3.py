"""What an application sees of urllib3 is the same whether its call is live, fetched ahead, or comes from the store."""

from __future__ import annotations

import functools
import gc
import io
import json
import logging
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import urllib3
import vcr
from conftest import Project
from sameness import QUESTION, RUNS, View, alike, looks_the_same, outcome, sample, sampler, views
from scripted import Call, Reply, ScriptedServer, together
from urllib3.util import Retry, Timeout

from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.shapes import Rules
from pytest_llm_determinism.store import SampleStore

NEW = urllib3.__version__ >= "2"
TEXT = "Two ways — «left» and right."
BODY = json.dumps(QUESTION).encode()
STREAMED = json.dumps({**QUESTION, "stream": True}).encode()
JSON = {"content-type": "application/json"}
ROUTE = "/v1/chat/completions"
ANY_METHOD = {"allowed_methods": None, "backoff_factor": 0}


def answer(call: Call) -> Reply:
    return Reply(TEXT, headers={"x-request-id": f"req-{call.number}"})


@pytest.fixture
def model(server) -> ScriptedServer:
    return server(answer)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    opened = SampleStore(tmp_path / "store")
    yield opened
    opened.close()


def pool_of(model: ScriptedServer, **options: Any) -> urllib3.HTTPConnectionPool:
    return urllib3.connection_from_url(model.url.removesuffix("/v1"), **options)


@pytest.fixture
def pool(model: ScriptedServer) -> Iterator[urllib3.HTTPConnectionPool]:
    with pool_of(model, maxsize=8) as opened:
        yield opened


def ask(pool: Any, body: Any = BODY, **options: Any) -> Any:
    return pool.urlopen("POST", ROUTE, **{"body": body, "headers": JSON, **options})


# Ways to ask


WAYS: dict[str, Callable[[Any, str], Any]] = {
    "the pool by name": lambda pool, url: pool.urlopen("POST", ROUTE, body=BODY, headers=JSON),
    "the pool by position": lambda pool, url: pool.urlopen("POST", ROUTE, BODY, JSON, False, False),
    "the pool's own headers": lambda pool, url: pool.urlopen("POST", ROUTE, body=BODY),
    "a text": lambda pool, url: pool.request("POST", ROUTE, body=BODY.decode(), headers=JSON),
    "a manager": lambda pool, url: urllib3.PoolManager().request("POST", url, body=BODY, headers=JSON),
    "a manager, unread": lambda pool, url: urllib3.PoolManager().request("POST", url, body=BODY, preload_content=False),
}
if NEW:
    WAYS["JSON"] = lambda pool, url: pool.request("POST", ROUTE, json=QUESTION)
    WAYS["the module"] = lambda pool, url: urllib3.request("POST", url, json=QUESTION)


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_ask(pool: Any, model: ScriptedServer, store: SampleStore, way: str) -> None:
    def body() -> View:
        response = WAYS[way](pool, f"{model.url}/chat/completions")
        whole = json.loads(response.data)
        assert whole["choices"][0]["message"]["content"] == TEXT
        assert isinstance(response, urllib3.HTTPResponse)
        assert response.headers["content-length"] == str(len(response.data))
        return (
            whole,
            (response.status, response.reason, response.version, response.closed, response.connection),
            (response.headers["X-Request-Id"], response.headers["content-type"], response.headers["server"]),
            (response.get_redirect_location(), response.retries.history, response.retries.total),
        )

    looks_the_same(body, model, store)


@pytest.mark.skipif(not NEW, reason="new in urllib3 2")
def test_what_urllib3_2_adds_to_a_response(pool: Any, model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        response = ask(pool)
        return response.json(), response.url, getattr(response, "version_string", "HTTP/1.1")

    assert looks_the_same(body, model, store)[0][1:] == (ROUTE, "HTTP/1.1")


# Ways to read


def read_by(response: Any, size: int) -> bytes:
    return b"".join(iter(lambda: response.read(size), b""))


def read_into(response: Any) -> bytes:
    whole, buffer = b"", bytearray(7)
    while count := response.readinto(buffer):
        whole += buffer[:count]
    return whole


def read_as_text(response: Any) -> bytes:
    response.auto_close = False
    return "".join(io.TextIOWrapper(response, "utf-8", newline="")).encode()


READS: dict[str, Callable[[Any], bytes]] = {
    "data": lambda response: response.data,
    "read": lambda response: response.read(),
    "read and decode": lambda response: response.read(decode_content=True),
    "read by pieces": lambda response: read_by(response, 5),
    "stream": lambda response: b"".join(response.stream()),
    "stream by pieces": lambda response: b"".join(response.stream(5)),
    "stream what comes": lambda response: b"".join(response.stream(None)),
    "readinto": read_into,
    "lines": lambda response: b"".join(response.readlines()),
    "a buffer": lambda response: io.BufferedReader(response).read(),
    "a text": read_as_text,
    "twice": lambda response: response.read() + response.read(),
}
if hasattr(urllib3.HTTPResponse, "read1"):
    READS["read1"] = lambda response: b"".join(iter(lambda: response.read1(64), b""))


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("asked", [BODY, STREAMED], ids=["whole", "streamed"])
def test_ways_to_read(pool: Any, model: ScriptedServer, store: SampleStore, asked: bytes, read: str) -> None:
    def body() -> View:
        response = ask(pool, asked, preload_content=False)
        assert not response.closed
        whole = READS[read](response)
        response.release_conn()
        return whole.decode(), response.headers["x-request-id"], response.connection

    whole = looks_the_same(body, model, store)[0][0]
    assert ("data: [DONE]\n\n" in whole) == (asked is STREAMED)


def test_lines_as_they_are_iterated(pool: Any, model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        return [line.decode() for line in ask(pool, STREAMED, preload_content=False)]

    assert len(looks_the_same(body, model, store)[0]) > 10


def test_a_stream_comes_event_by_event_in_chunks(pool: Any, store: SampleStore) -> None:
    def body() -> View:
        response = ask(pool, STREAMED, preload_content=False)
        return response.chunked, [chunk.decode() for chunk in response.read_chunked()]

    for chunked, chunks in views(body, store) + views(body, store, cache="replay"):
        assert chunked
        assert len(chunks) > 5
        assert all(chunk.startswith("data: ") and chunk.endswith("\n\n") for chunk in chunks)


def test_what_is_left_unread(pool: Any, model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        response = ask(pool, STREAMED, preload_content=False)
        first = response.read(20)
        response.drain_conn() if len(model.calls) % 2 else response.close()
        return first.decode(), response.closed, response.headers["x-request-id"]

    looks_the_same(body, model, store)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("preload", [True, False])
def test_answers_that_came_compressed(server, store: SampleStore, preload: bool, decode: bool) -> None:
    model = server(lambda call: Reply(f"{TEXT} {call.number}", headers={"content-encoding": "gzip"}))
    with pool_of(model) as pool:

        def body() -> View:
            response = ask(pool, preload_content=preload, decode_content=decode)
            assert "content-encoding" not in response.headers
            return json.loads(response.data)["choices"][0]["message"]["content"]

        live = views(body, store)
        assert sorted(live) == [f"{TEXT} {number}" for number in range(RUNS)]
        assert views(body, store, cache="replay") == live


# Connections


def test_connections_go_back_to_the_pool(pool: Any, model: ScriptedServer) -> None:
    asked = [lambda: ask(pool, STREAMED, preload_content=False).read(3), lambda: ask(pool).data]
    for body in asked:
        views(body, None, runs=20)
        assert pool.num_connections <= 8
        assert pool.pool.full()
        before = pool.num_connections
        assert ask(pool).status == 200
        assert pool.num_connections == before


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "size", [{"maxsize": 1, "block": True}, {"maxsize": 1}, {"maxsize": 10}, {"maxsize": 10, "block": True}], ids=str
)
def test_a_pool_of_any_size_is_as_fast_and_stays_as_it_is(
    server, caplog: pytest.LogCaptureFixture, size: dict[str, Any], streamed: bool
) -> None:
    model = server(together(lambda call: f"answer {call.number}", 8))
    with caplog.at_level(logging.INFO), pool_of(model, **size) as pool:
        views(lambda: ask(pool, preload_content=not streamed, pool_timeout=0.1).data, None, runs=30)
        assert (len(model.calls), model.peak, pool.pool.qsize()) == (30, 8, size["maxsize"])
    assert caplog.messages == []
    gc.collect()


def test_a_pool_that_is_closed_stays_closed(pool: Any, model: ScriptedServer) -> None:
    sampling = sampler(None)
    with observing(sampling):
        sampling.start_run(0)
        ask(pool)
        sampling.finish_run()
        pool.close()
        sampling.start_run(1)
        with pytest.raises(urllib3.exceptions.ClosedPoolError):
            ask(pool)
        assert "ClosedPoolError" in str(sampling.finish_run().error)
    assert len(model.calls) == 1


# What is sent


def unread(body: bytes) -> Any:
    """A file that can be read only once, as a socket's is."""
    file = io.BytesIO(body)
    return mock.NonCallableMock(spec=["read"], read=file.read)


BODIES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: BODY,
    "text": lambda: BODY.decode(),
    "a bytearray": lambda: bytearray(BODY),
    "a file": lambda: io.BytesIO(BODY),
    "a file of text": lambda: io.StringIO(BODY.decode()),
    "a file to be read once": lambda: unread(BODY),
    "a generator": lambda: (BODY[at : at + 10] for at in range(0, len(BODY), 10)),
}


@pytest.mark.parametrize("kind", BODIES)
def test_bodies_of_any_kind_are_seen_and_sent(pool: Any, model: ScriptedServer, kind: str) -> None:
    headers = {**JSON, "content-length": str(len(BODY))}
    views(lambda: ask(pool, BODIES[kind](), headers=headers).data, None)
    assert [call.body for call in model.calls] == [QUESTION] * RUNS


def test_a_generator_in_another_request_is_passed_on(pool: Any, model: ScriptedServer) -> None:
    other = b'{"input": "no messages"}'
    headers = {**JSON, "content-length": str(len(other))}
    sampling = sampler(None)
    with observing(sampling):
        sampling.start_run(0)
        ask(pool, iter([other[:5], other[5:]]), headers=headers)
        assert sampling.finish_run().exchanges == ()
    assert [call.body for call in model.calls] == [json.loads(other)]


def test_an_override_is_sent_by_every_call(pool: Any, model: ScriptedServer, store: SampleStore) -> None:
    path = "/openai/deployments/mini/chat/completions"
    rules = Rules(override={"temperature": 0, "model": "a/large one"})
    headers = {**JSON, "Content-Length": str(len(BODY))}

    def body() -> View:
        return pool.urlopen("POST", f"{path}?api-version=1", body=BODY, headers=headers).data

    views(body, store, rules=rules)
    assert {call.path for call in model.calls} == {f"{path}?api-version=1".replace("mini", "a%2Flarge%20one")}
    assert [(call.body["temperature"], call.body["messages"]) for call in model.calls] == [
        (0, QUESTION["messages"])
    ] * RUNS
    assert headers["Content-Length"] == str(len(BODY))


def test_an_override_of_a_signed_request_is_refused(pool: Any, model: ScriptedServer) -> None:
    sampling = sampler(None, rules=Rules(override={"temperature": 0}))
    headers = {**JSON, "Authorization": b"AWS4-HMAC-SHA256 Credential=x"}
    with observing(sampling):
        sampling.start_run(0)
        with pytest.raises(Refusal, match="signed by the client"):
            ask(pool, headers=headers)
    assert model.calls == []


def test_calls_ahead_have_an_idempotency_key_of_their_own(pool: Any, model: ScriptedServer) -> None:
    headers = {**JSON, "Idempotency-Key": "first"}
    views(lambda: ask(pool, headers=headers).data, None)
    keys = [call.headers["idempotency-key"] for call in model.calls]
    assert (keys.count("first"), len(set(keys))) == (2, RUNS - 1)
    assert headers["Idempotency-Key"] == "first"


def question_url(pool: Any, target: str) -> str:
    """The URL that stands in what identifies a question."""
    sampling = sampler(None, cache="replay")
    with observing(sampling):
        sampling.start_run(0)
        with pytest.raises(Refusal, match="not in the store"):
            pool.urlopen("POST", target, body=BODY)
    return str(json.loads(next(iter(sampling.requests.values())))["url"])


@pytest.mark.parametrize(
    ("pool", "target", "url"),
    [
        (urllib3.HTTPConnectionPool("api.test"), ROUTE, f"http://api.test{ROUTE}"),
        (urllib3.HTTPConnectionPool("api.test", 80), ROUTE, f"http://api.test{ROUTE}"),
        (urllib3.HTTPSConnectionPool("API.test", 443), f"{ROUTE}?b=2&a=1", f"https://api.test{ROUTE}?a=1&b=2"),
        (urllib3.HTTPSConnectionPool("api.test", 80), f"{ROUTE}?api_key=x", f"https://api.test:80{ROUTE}?api_key="),
        (urllib3.HTTPConnectionPool("::1", 8000), ROUTE, f"http://[::1]:8000{ROUTE}"),
        (urllib3.HTTPConnectionPool("proxy.test", 3128), f"http://api.test{ROUTE}", f"http://api.test{ROUTE}"),
    ],
)
def test_the_url_is_absolute_however_it_was_given(pool: Any, target: str, url: str) -> None:
    assert question_url(pool, target) == url


def test_through_a_proxy(model: ScriptedServer, store: SampleStore) -> None:
    proxy = urllib3.ProxyManager(model.url.removesuffix("/v1"))

    def body() -> View:
        return json.loads(proxy.request("POST", f"http://api.test{ROUTE}", body=BODY, headers=JSON).data)

    looks_the_same(body, model, store)
    assert {call.path for call in model.calls} == {f"http://api.test{ROUTE}"}
    assert {call.headers["host"] for call in model.calls} == {"api.test"}
    proxy.clear()


@pytest.mark.parametrize(
    ("options", "of_pool"),
    [
        ({"timeout": 0.2}, {}),
        ({"timeout": Timeout(connect=5, read=0.2)}, {}),
        ({"timeout": Timeout(total=0.2)}, {}),
        ({}, {"timeout": 0.2}),
    ],
    ids=["a number", "to read", "in all", "of the pool"],
)
def test_within_one_call_no_more_are_fetched_ahead_than_its_timeout_leaves_time_for(
    server, options: dict[str, Any], of_pool: dict[str, Any]
) -> None:
    model = server("yes", latency=0.04)
    with pool_of(model, maxsize=8, **of_pool) as pool:

        def body() -> View:
            ask(pool, **options)
            return len(model.calls)

        asked = views(body, None, runs=22, concurrency=2)
    assert asked[0] == 1
    assert 2 < asked[1] < 22  # without a timeout it would be all
    assert asked[-1] == 22


# Errors


def script(*replies: Reply) -> Callable[[Call], Reply]:
    """These replies, then answers."""
    return lambda call: replies[call.number] if call.number < len(replies) else Reply(f"yes {call.number}")


BROKEN: dict[str, Reply] = {
    "an error of the server": Reply(raw=b'{"error": {"message": "out of order"}}', status=500),
    "too many requests": Reply(raw=b'{"error": {"message": "slow down"}}', status=429),
    "unauthorized": Reply(raw=b"{}", status=401, headers={"www-authenticate": "Basic"}),
    "a connection that is reset": Reply("yes", reset=True),
    "a body that ends too early": Reply("yes", cut=True),
    "HTML where JSON was promised": Reply(raw=b"<html>Bad Gateway</html>"),
    "an error in a successful response": Reply(raw=b'{"error": {"message": "overloaded"}}'),
    "an empty body": Reply(raw=b""),
    "an encoding that nobody knows": Reply(raw=b"\1\2", headers={"Content-Encoding": "x-own"}),
    "bytes that are not what they are said to be": Reply("yes", headers={"Content-Encoding": "deflate"}),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("read", ["preloaded", "read", "read by pieces", "stream by pieces", "not enforced"])
def test_what_is_no_answer_is_an_error_never_an_output_and_never_kept(
    server, store: SampleStore, name: str, read: str
) -> None:
    model = server(lambda call: BROKEN[name])
    sampling = sampler(store, runs=3)
    met: list[str] = []

    with pool_of(model) as pool:

        def body() -> View:
            arrived: list[bytes] = []
            if read == "preloaded":
                response = ask(pool, retries=False)
                arrived.append(response.data)
            else:
                options = {"enforce_content_length": False} if read == "not enforced" else {}
                response = ask(pool, retries=False, preload_content=False, **options)
                sizes = {"read": None, "read by pieces": 5}
                try:
                    if read in sizes:
                        while piece := response.read(sizes[read]):
                            arrived.append(piece)
                    else:
                        arrived.extend(response.stream(5))
                except Exception as error:
                    return b"".join(arrived), type(error).__name__
            shown = ("www-authenticate", "content-encoding")
            return response.status, [response.headers.get(name) for name in shown], b"".join(arrived)

        alone = outcome(body)
        runs = sample(lambda: met.append(outcome(body)), sampling)
    assert [alike(one) for one in met] == [alike(alone)] * 3
    assert [bool(run.error) for run in runs] == [True] * 3
    assert [run.exchanges for run in runs] == [()] * 3
    assert not store.directory.exists()
    assert len(model.calls) == 1 + 3  # nothing was fetched ahead on the strength of errors


class Raw:
    """A server that answers every request with these bytes and then ends, resets or holds the connection."""

    def __init__(self, sent: bytes, then: str) -> None:
        self.released = threading.Event()
        raw = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                while b"messages" not in self.request.recv(65536):
                    pass
                self.request.sendall(sent)
                if then == "hold":
                    raw.released.wait(10)
                elif then == "reset":
                    raw.released.wait(0.03)  # what was sent is to arrive first
                    self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True).start()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


START = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%s\r\n\r\n%sdata: {"choices": []}\n\n'
KNOWN, CHUNKED = START % (b"content-length: 99", b""), START % (b"transfer-encoding: chunked", b"17\r\n") + b"\r\n"


@pytest.mark.parametrize("then", ["end", "reset", "hold"])
@pytest.mark.parametrize("sent", [KNOWN, CHUNKED], ids=["of a known length", "in chunks"])
@pytest.mark.parametrize("read", ["read", "read by pieces", "read undecoded", "stream", "preloaded"])
def test_a_stream_that_breaks_off_breaks_off_where_it_would_unobserved(
    store: SampleStore, sent: bytes, then: str, read: str
) -> None:
    met: list[View] = []
    with Raw(sent, then) as raw, urllib3.HTTPConnectionPool("127.0.0.1", raw.port, timeout=0.15) as pool:

        def body() -> View:
            arrived: list[bytes] = []
            try:
                if read == "preloaded":
                    return ask(pool, STREAMED, retries=False).data
                response = ask(pool, STREAMED, retries=False, preload_content=False)
                if read == "stream":
                    arrived.extend(response.stream())
                size = None if read == "read" else 10
                while piece := response.read(size, decode_content=read != "read undecoded"):
                    arrived.append(piece)
            except Exception as error:
                causes = [type(cause).__name__ for cause in error.args if isinstance(cause, OSError)]
                return b"".join(arrived), type(error).__name__, causes
            return b"".join(arrived)

        alone = body()
        runs = sample(lambda: met.append(body()), sampler(store, runs=2))
    assert met == [alone] * 2
    assert [bool(run.error) for run in runs] == [True] * 2
    assert not store.directory.exists()
    if NEW:
        assert isinstance(alone, tuple)


def test_a_connection_that_ends_too_early_is_an_error_even_if_urllib3_is_told_not_to_check(store: SampleStore) -> None:
    whole = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}'
    start = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    met: list[View] = []
    with Raw(start % (len(whole) + 5) + whole, "end") as raw, urllib3.HTTPConnectionPool("127.0.0.1", raw.port) as pool:

        def body() -> View:
            response = ask(pool, preload_content=False, enforce_content_length=False)
            return response.headers["content-length"], b"".join(response.stream(10))

        alone = body()
        runs = sample(lambda: met.append(body()), sampler(store, runs=2))
    assert met == [alone] * 2 == [(str(len(whole) + 5), whole)] * 2
    assert ["ended 5 bytes before" in str(run.error) for run in runs] == [True] * 2
    assert not store.directory.exists()


def test_no_server_at_all(store: SampleStore) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        pool = urllib3.HTTPConnectionPool("127.0.0.1", unused.getsockname()[1])
        runs = sample(lambda: outcome(lambda: ask(pool, retries=False)), sampler(store, runs=2))
    assert ["NewConnectionError" in str(run.error) for run in runs] == [True] * 2
    assert not store.directory.exists()


# Trying again, elsewhere


def test_what_urllib3_tries_again_is_one_exchange(server, store: SampleStore) -> None:
    failures = (BROKEN["an error of the server"], BROKEN["a connection that is reset"])
    model = server(lambda call: failures[call.number % 3] if call.number % 3 < 2 else f"yes {call.number}")
    with pool_of(model) as pool:

        def body() -> View:
            response = ask(pool, retries=Retry(5, status_forcelist=[500], **ANY_METHOD))
            return [entry.status for entry in response.retries.history], json.loads(response.data)["choices"]

        bare = body()
        assert bare[0] == [500, None]
        live = views(body, store, concurrency=1)
        stored = views(body, store, cache="replay")
    assert [histories for histories, _ in live] == [bare[0]] * RUNS
    assert [choices for _, choices in stored] == [choices for _, choices in live]
    assert len(model.calls) == 3 * (1 + RUNS)


def test_calls_ahead_are_not_tried_again(server) -> None:
    too_many = BROKEN["too many requests"]
    model = server(lambda call: "yes" if call.headers["idempotency-key"] == "own" else too_many)
    headers = {**JSON, "idempotency-key": "own"}
    with pool_of(model) as pool:
        retries = Retry(5, status_forcelist=[429], **ANY_METHOD)
        views(lambda: ask(pool, headers=headers, retries=retries).data, None, runs=10, concurrency=2)
    assert 10 < len(model.calls) <= 10 + 2  # what was under way when the first of them was refused


def test_a_body_that_breaks_off_while_urllib3_reads_it_is_tried_again(server) -> None:
    model = server(script(BROKEN["a body that ends too early"]))
    with pool_of(model) as pool:
        views(lambda: ask(pool, retries=Retry(2, **ANY_METHOD)).data, None)
    assert len(model.calls) == 1 + RUNS


def test_when_urllib3_gives_up(server, store: SampleStore) -> None:
    model = server(lambda call: BROKEN["an error of the server"])
    with pool_of(model) as pool:
        retries = Retry(1, status_forcelist=[500], **ANY_METHOD)
        met: list[str] = []
        runs = sample(lambda: met.append(outcome(lambda: ask(pool, retries=retries))), sampler(store, runs=2))
    assert met == ["MaxRetryError"] * 2
    assert ["too many 500 error responses" in str(run.error) for run in runs] == [True] * 2
    assert len(model.calls) == 4


def moved(call: Call) -> Reply:
    if call.path == ROUTE:
        return Reply(raw=b"", status=307, headers={"location": f"{ROUTE.replace('v1', 'v2')}"})
    return Reply(f"yes {call.number}")


@pytest.mark.parametrize("manager", [True, False])
def test_a_redirect_is_followed_as_part_of_its_exchange(server, manager: bool) -> None:
    model = server(moved)
    asking: Any = urllib3.PoolManager() if manager else pool_of(model)

    def body() -> View:
        if manager:
            return asking.request("POST", f"{model.url}/chat/completions", body=BODY, headers=JSON).data
        return ask(asking).data

    seen = views(body, None)
    assert [json.loads(view)["choices"][0]["message"]["content"][:3] for view in seen] == ["yes"] * RUNS
    assert sum(call.path != ROUTE for call in model.calls) == RUNS
    asking.clear() if manager else asking.close()


def test_a_redirect_that_is_not_followed_is_handed_on(server) -> None:
    model = server(moved)
    with pool_of(model) as pool:
        runs = sample(lambda: ask(pool, redirect=False), sampler(None, runs=2))
    assert [(run.error, run.exchanges) for run in runs] == [(None, ())] * 2


# Mocks


class Counting(urllib3.connection.HTTPConnection):
    """A connection of the application's own."""


class OwnPool(urllib3.HTTPConnectionPool):
    """A pool of the application's own."""


def own_connection(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.ConnectionCls = Counting


def own_pool(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.__class__ = OwnPool


def own_method(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = urllib3.HTTPConnectionPool.urlopen

    @functools.wraps(original)
    def counted(*args: Any, **named: Any) -> Any:
        return original(*args, **named)

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", counted)


def own_socket(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(socket.socket):
        pass

    monkeypatch.setattr(socket, "socket", Fake)


@pytest.mark.parametrize("change", [own_connection, own_pool, own_method, own_socket])
def test_what_is_not_urllib3s_own_is_observed_but_never_asked_ahead(
    pool: Any, model: ScriptedServer, monkeypatch: pytest.MonkeyPatch, change: Callable[..., None]
) -> None:
    change(pool, monkeypatch)

    def body() -> View:
        assert json.loads(ask(pool).data)["choices"]
        return len(model.calls)

    assert views(body, None) == [1, 2, 3, 4]


@pytest.mark.parametrize("preload", [True, False])
def test_a_cassette_records_each_call_and_plays_it_back(
    pool: Any, model: ScriptedServer, store: SampleStore, tmp_path: Path, preload: bool
) -> None:
    played = []

    def body() -> View:
        played.append(cassette.play_count)
        return json.loads(ask(pool, preload_content=preload).data)["id"]

    seen = []
    for _ in range(2):
        with vcr.use_cassette(tmp_path / "cassette.yaml") as cassette:
            seen.append(views(body, store))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == len(model.calls) == RUNS
    assert played == [0] * RUNS + list(range(RUNS))  # asked in each session: nothing of it was kept


def test_a_mock_in_place_of_the_method_stays_what_it_is(pool: Any) -> None:
    sampling = sampler(None)
    with mock.patch("urllib3.HTTPConnectionPool.urlopen", return_value="mocked") as mocked, observing(sampling):
        sampling.start_run(0)
        assert ask(pool) == "mocked"
        assert sampling.finish_run().exchanges == ()
    mocked.assert_called_once_with("POST", ROUTE, body=BODY, headers=JSON)


# The rest


def test_a_refusal_is_no_exception_that_could_be_caught_and_retried(pool: Any, model: ScriptedServer) -> None:
    sampling = sampler(None, cache="replay")
    with observing(sampling):
        sampling.start_run(0)
        with pytest.raises(Refusal, match="is not in the store"):
            ask(pool, retries=Retry(5, **ANY_METHOD))
    assert model.calls == []


def test_requests_that_are_no_model_calls_are_left_alone(pool: Any, model: ScriptedServer) -> None:
    sampling = sampler(None)
    with observing(sampling):
        sampling.start_run(0)
        response = pool.urlopen("POST", "/v1/telemetry", body=b"{}", headers=JSON, preload_content=False)
        assert isinstance(response._original_response.fp.raw, socket.SocketIO)
        response.close()
        assert sampling.finish_run().exchanges == ()


def test_a_timeout_may_be_set_for_the_rest_of_a_response(pool: Any, store: SampleStore) -> None:
    """As botocore's streaming bodies do, by way of what they find in the response."""

    def body() -> View:
        response = ask(pool, preload_content=False)
        response._fp.fp.raw._sock.settimeout(1)
        return response.data

    assert views(body, store) == views(body, store, cache="replay")


def test_headers_in_other_characters_and_of_several_lines(server, store: SampleStore) -> None:
    model = server(lambda call: Reply(f"yes {call.number}", headers={"x-name": "caf\u00e9", "x-long": "a\r\n b"}))
    with pool_of(model) as pool:

        def body() -> View:
            response = ask(pool)
            return response.headers["x-name"], response.headers["x-long"], response.data.decode()

        name, long, _ = looks_the_same(body, model, store)[0]
    assert (name, long.split()) == ("caf\u00e9", ["a", "b"])


def test_outside_a_run_the_library_is_as_it_was() -> None:
    before = urllib3.HTTPConnectionPool.urlopen
    with observing(sampler(None)):
        assert urllib3.HTTPConnectionPool.urlopen is not before
    assert urllib3.HTTPConnectionPool.urlopen is before


def test_a_library_that_is_imported_in_the_body_is_seen_too(project: Project, model: ScriptedServer) -> None:
    project.write(
        f"""
        import sys
        import pytest

        assert "urllib3" not in sys.modules

        @pytest.mark.deterministic(runs=30)
        def test_it():
            import urllib3
            urllib3.PoolManager().request("POST", "{model.url}/chat/completions", body={BODY!r})
        """
    )
    assert project.report("-W", "error", "-p", "no:asyncio")["exit"] == 0
    assert len(model.calls) == 30
    assert project.report("-W", "error", "-p", "no:asyncio")["exit"] == 0
    assert len(model.calls) == 30
