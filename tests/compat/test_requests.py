"""An application that asks with requests: what it sees, what a test of it costs, and what the verdict is."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from conftest import Project
from requests.adapters import HTTPAdapter
from requests.auth import HTTPDigestAuth
from sameness import QUESTION, RUNS, View, alike, looks_the_same, outcome, sample, sampler, views
from scripted import Call, Reply, ScriptedServer, together

from pytest_llm_determinism.store import SampleStore

TEXT = "Two ways — «left» and right."
STREAMED = {**QUESTION, "stream": True}


def answer(call: Call) -> Reply:
    return Reply(TEXT, headers={"x-request-id": f"req-{call.number}"})


@pytest.fixture
def model(server) -> ScriptedServer:
    return server(answer, latency=0.002)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    opened = SampleStore(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


def url_of(model: ScriptedServer) -> str:
    return f"{model.url}/chat/completions"


def said(response: requests.Response) -> Any:
    return response.json()["choices"][0]["message"]["content"]


# What is seen


def test_a_response(session: requests.Session, model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        response = session.post(url_of(model), json=QUESTION)
        assert said(response) == TEXT
        assert timedelta(0) < response.elapsed < timedelta(seconds=20)
        assert response.headers["Content-Length"] == str(len(response.content))
        return (
            response.json(),
            (response.status_code, response.reason, response.ok, response.url, response.encoding),
            (response.headers["X-Request-ID"], response.headers["content-type"]),
            (response.is_redirect, response.history, response.links, dict(response.cookies)),
            (response.request.method, response.request.body, response.raw.version, response.raw.closed),
        )

    looks_the_same(body, model, store)


WAYS: dict[str, Callable[[requests.Session, str], requests.Response]] = {
    "without a session": lambda session, url: requests.post(url, json=QUESTION),
    "text": lambda session, url: session.post(url, data=json.dumps(QUESTION)),
    "bytes": lambda session, url: session.post(url, data=json.dumps(QUESTION).encode()),
    "a prepared request": lambda session, url: session.send(requests.Request("POST", url, json=QUESTION).prepare()),
    "with timeouts": lambda session, url: session.post(url, json=QUESTION, timeout=(5, 5)),
    "with parameters": lambda session, url: session.post(url, json=QUESTION, params={"version": "1"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_ask(session: requests.Session, model: ScriptedServer, store: SampleStore, way: str) -> None:
    looks_the_same(lambda: WAYS[way](session, url_of(model)).json(), model, store)


READS: dict[str, Callable[[requests.Response], Any]] = {
    "lines": lambda response: [line.decode() for line in response.iter_lines()],
    "lines of text": lambda response: list(response.iter_lines(decode_unicode=True)),
    "lines of few bytes": lambda response: [line.decode() for line in response.iter_lines(chunk_size=3)],
    "content": lambda response: response.content.decode(),
    "pieces": lambda response: b"".join(response.iter_content(7)).decode(),
    "what comes": lambda response: b"".join(response.iter_content(None)).decode(),
    "iterated": lambda response: b"".join(response).decode(),
    "raw": lambda response: response.raw.read().decode(),
    "raw and decoded": lambda response: response.raw.read(decode_content=True).decode(),
    "raw pieces": lambda response: b"".join(response.raw.stream(16)).decode(),
    "raw lines": lambda response: [line.decode() for line in response.raw],
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("question", [QUESTION, STREAMED], ids=["whole", "streamed"])
def test_responses_that_are_streamed(
    session: requests.Session, model: ScriptedServer, store: SampleStore, question: View, read: str
) -> None:
    def body() -> View:
        with session.post(url_of(model), json=question, stream=True) as response:
            return READS[read](response), response.headers["x-request-id"], response.raw.closed

    looks_the_same(body, model, store)


def test_a_stream_that_is_left_early(session: requests.Session, model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        response = session.post(url_of(model), json=STREAMED, stream=True)
        lines = response.iter_lines(decode_unicode=True)
        first = next(lines)
        lines.close()
        response.close()
        return first

    looks_the_same(body, model, store)


@pytest.mark.parametrize("stream", [True, False])
def test_answers_that_came_compressed(session: requests.Session, server, store: SampleStore, stream: bool) -> None:
    model = server(lambda call: Reply(f"{TEXT} {call.number}", headers={"content-encoding": "gzip"}))
    live = views(lambda: said(session.post(url_of(model), json=QUESTION, stream=stream)), store)
    assert sorted(live) == [f"{TEXT} {number}" for number in range(RUNS)]
    stored = views(lambda: said(session.post(url_of(model), json=QUESTION, stream=stream)), store, cache="replay")
    assert stored == live


def test_hooks_are_called_once_for_each_call_of_the_application(
    session: requests.Session, model: ScriptedServer, store: SampleStore
) -> None:
    heard: list[str] = []
    session.hooks["response"].append(lambda response, **_: heard.append(response.headers["x-request-id"]))

    live = views(lambda: session.post(url_of(model), json=QUESTION).headers["x-request-id"], store)
    assert heard == live
    assert views(lambda: session.post(url_of(model), json=QUESTION).headers["x-request-id"], store) == live
    assert heard == live * 2
    assert len(model.calls) == RUNS


def test_cookies_that_the_server_sets_are_sent_back_and_never_kept(
    session: requests.Session, server, store: SampleStore
) -> None:
    model = server(lambda call: Reply("yes", headers={"set-cookie": "session=abcdefgh; Path=/"}))
    views(lambda: session.post(url_of(model), json=QUESTION).content, store)
    assert session.cookies["session"] == "abcdefgh"
    assert model.calls[0].headers.get("cookie") is None
    assert model.calls[-1].headers["cookie"] == "session=abcdefgh"
    assert all(b"abcdefgh" not in path.read_bytes() for path in store.directory.rglob("*") if path.is_file())


def test_signing_in_takes_two_requests_and_is_one_exchange(session: requests.Session, server) -> None:
    challenge = Reply(
        raw=b"{}", status=401, headers={"www-authenticate": 'Digest realm="r", nonce="n", qop="auth", opaque="o"'}
    )
    model = server(lambda call: Reply("yes") if "authorization" in call.headers else challenge)
    session.auth = HTTPDigestAuth("user", "password")
    assert views(lambda: said(session.post(url_of(model), json=QUESTION)), None) == ["yes"] * RUNS


# Errors and second tries


def script(*replies: Reply) -> Callable[[Call], Reply]:
    """These replies, then answers."""
    return lambda call: replies[call.number] if call.number < len(replies) else Reply(f"yes {call.number}")


BROKEN: dict[str, Reply] = {
    "an error of the server": Reply(raw=b'{"error": {"message": "out of order"}}', status=500),
    "too many requests": Reply(raw=b'{"error": {"message": "slow down"}}', status=429),
    "a connection that is reset": Reply("yes", reset=True),
    "a body that ends too early": Reply("yes and no and yes and no", cut=True),
    "HTML where JSON was promised": Reply(raw=b"<html>Bad Gateway</html>"),
    "HTML that says so": Reply(raw=b"<html>Bad Gateway</html>", content_type="text/html"),
    "an error in a successful response": Reply(raw=b'{"error": {"message": "overloaded"}}'),
    "a body without an answer": Reply(raw=b'{"object": "chat.completion", "choices": []}'),
    "an empty body": Reply(raw=b""),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_no_answer_is_an_error_never_an_output_and_never_kept(
    session: requests.Session, server, store: SampleStore, name: str, stream: bool
) -> None:
    model = server(lambda call: BROKEN[name])
    met: list[str] = []

    def body() -> View:
        response = session.post(url_of(model), json={**QUESTION, "stream": stream}, stream=stream)
        arrived: list[bytes] = []
        try:
            arrived.extend(response.iter_lines())
        except requests.RequestException as error:
            return arrived, type(error).__name__
        return response.status_code, arrived

    alone = outcome(body)
    runs = sample(lambda: met.append(outcome(body)), sampler(store, runs=3))
    assert [alike(one) for one in met] == [alike(alone)] * 3
    assert [bool(run.error) for run in runs] == [True] * 3
    assert [run.exchanges for run in runs] == [()] * 3
    assert not store.directory.exists()
    assert len(model.calls) == 1 + 3  # nothing was fetched ahead on the strength of errors


def test_an_answer_that_takes_too_long(session: requests.Session, server, store: SampleStore) -> None:
    released = threading.Event()
    model = server(lambda call: "late" if released.wait(10) else "")
    met: list[str] = []
    runs = sample(
        lambda: met.append(outcome(lambda: session.post(url_of(model), json=QUESTION, timeout=0.1))),
        sampler(store, runs=2),
    )
    released.set()
    assert met == ["ReadTimeout"] * 2
    assert ["Read timed out" in str(run.error) for run in runs] == [True] * 2
    assert not store.directory.exists()


def test_an_adapter_that_tries_again(session: requests.Session, server, store: SampleStore) -> None:
    failures = (BROKEN["an error of the server"], BROKEN["too many requests"], BROKEN["a connection that is reset"])
    model = server(script(*failures))
    retries = urllib3.Retry(5, status_forcelist=[429, 500], allowed_methods=None, backoff_factor=0)
    session.mount("http://", HTTPAdapter(max_retries=retries))

    live = views(lambda: said(session.post(url_of(model), json=QUESTION)), store)
    assert sorted(live) == [f"yes {number}" for number in range(3, 3 + RUNS)]
    assert views(lambda: said(session.post(url_of(model), json=QUESTION)), store, cache="replay") == live
    assert len(model.calls) == 3 + RUNS


def test_an_application_that_tries_again(session: requests.Session, server, store: SampleStore) -> None:
    model = server(script(BROKEN["an error of the server"], BROKEN["a connection that is reset"]))

    def body() -> View:
        while True:
            try:
                response = session.post(url_of(model), json=QUESTION)
                response.raise_for_status()
                return said(response)
            except requests.RequestException:
                continue

    assert sorted(views(body, store)) == [f"yes {number}" for number in range(2, 2 + RUNS)]
    assert len(model.calls) == 2 + RUNS


@pytest.mark.parametrize("place", ["/v2/chat/completions", "/v1/chat/completions/"])
def test_a_redirect_that_is_followed_is_no_error(session: requests.Session, server, place: str) -> None:
    moved = Reply(raw=b"", status=307, headers={"location": "/v1/chat/completions"})
    model = server(lambda call: moved if call.path == place else Reply(f"yes {call.number}"))
    url = model.url.removesuffix("/v1") + place
    seen = views(lambda: said(session.post(url, json=QUESTION))[:3], None)
    assert seen == ["yes"] * RUNS


# Pools, threads, loops


@pytest.mark.parametrize("pool", [{}, {"pool_maxsize": 1}, {"pool_maxsize": 1, "pool_block": True}], ids=str)
def test_a_session_of_any_size(
    session: requests.Session, server, caplog: pytest.LogCaptureFixture, pool: dict[str, Any]
) -> None:
    model = server(together("yes", 8))
    session.mount("http://", HTTPAdapter(**pool))
    with caplog.at_level("INFO"):
        assert views(lambda: said(session.post(url_of(model), json=QUESTION)), None, runs=30) == ["yes"] * 30
    assert (len(model.calls), model.peak, caplog.messages) == (30, 8, [])


def test_several_questions_at_once_from_a_pool_of_threads(model: ScriptedServer, store: SampleStore) -> None:
    def asked(number: int) -> Any:
        question = {**QUESTION, "messages": [{"role": "user", "content": f"Question {number}"}]}
        return said(requests.post(url_of(model), json=question))

    def body() -> None:
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(asked, range(3))) == [TEXT] * 3

    for cache in ("auto", "replay"):
        runs = sample(body, sampler(store, cache=cache))
        assert [(run.error, len(run.exchanges)) for run in runs] == [(None, 3)] * RUNS
    assert len(model.calls) == 3 * RUNS


def test_inside_an_event_loop(session: requests.Session, model: ScriptedServer, store: SampleStore) -> None:
    def body() -> View:
        async def main() -> View:
            return session.post(url_of(model), json=QUESTION).json()

        return asyncio.run(main())

    looks_the_same(body, model, store)


# From end to end

ASK = """
import requests
def ask(prompt):
    question = {{"model": "m", "messages": [{{"role": "user", "content": prompt}}], "temperature": 0}}
    headers = {{"Authorization": "Bearer sk-test-secret"}}
    response = requests.post("{url}", json=question, headers=headers, timeout=10)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]
"""
ONE_QUESTION = """
import pytest
from app import ask

@pytest.mark.deterministic(runs=30)
def test_one_question():
    assert ask("capital?")
"""


def test_thirty_runs_cost_thirty_calls_and_then_none(project: Project, server) -> None:
    model = server("Paris.")
    project.write(ONE_QUESTION, app=ASK.format(url=url_of(model)))
    strict = ("-W", "error", "-p", "no:asyncio")
    assert project.pytest(*strict).ret == 0
    assert len(model.calls) == 30
    assert {call.headers["authorization"] for call in model.calls} == {"Bearer sk-test-secret"}
    report = project.report(*strict)
    (experiment,) = report["tests"]["test_one_question"]["experiments"]
    assert (report["exit"], experiment["unique"], experiment["calls"]["cached"]) == (0, 1, 30)
    assert len(model.calls) == 30
    kept = project.path / ".pytest_llm_determinism"
    assert any(path.is_file() for path in kept.rglob("*"))
    assert all(b"test-secret" not in path.read_bytes() for path in kept.rglob("*") if path.is_file())


def test_answers_that_differ_are_told_apart(project: Project, server) -> None:
    model = server(lambda call: "Lyon." if call.number % 10 == 3 else "Paris.")
    project.write(ONE_QUESTION, app=ASK.format(url=url_of(model)))
    for _ in range(2):
        report = project.report()
        (experiment,) = report["tests"]["test_one_question"]["experiments"]
        groups = {group["output"]: group["count"] for group in experiment["groups"]}
        assert (report["exit"], groups) == (1, {"Paris.": 27, "Lyon.": 3})
    assert len(model.calls) == 30


def test_an_error_is_told_without_secrets(project: Project, server) -> None:
    model = server(lambda call: Reply(status=403, raw=b'{"error": {"message": "bad key sk-test-secret"}}'))
    project.write(ONE_QUESTION, app=ASK.format(url=f"{url_of(model)}?api_key=another-secret"))
    report = project.report()
    text = json.dumps(report["whole"])
    assert report["tests"]["test_one_question"]["verdict"] == "inconclusive"
    assert "bad key [secret]" in text
    assert "test-secret" not in text
    assert "another-secret" not in text
