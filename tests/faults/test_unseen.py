"""A test in which no model call was observed says what was there instead; nothing secret is in it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
from conftest import Project
from scripted import Reply

from pytest_llm_determinism.observe.unseen import Unseen, noting

PREFIX = "no model call was observed: "
NOTHING = (
    "check that the body asks a model, and not a cache; one that is reached by something that cannot be observed (a"
    " subprocess, gRPC, raw sockets) has its answer recorded with the fixture: determinism.record(answer)"
)
RECORD = "if a model is asked that way, record its answer with the fixture: determinism.record(answer)"
READ_OR_RECORD = (
    "if a model is asked that way, read its answer with the hook pytest_determinism_output, or record it with the"
    " fixture: determinism.record(answer)"
)

BODIES = """
import asyncio, json, multiprocessing, os, socket, subprocess, sys, urllib.request
import anyio, httpx, pytest
gated = pytest.mark.deterministic(runs=2)
URL = os.environ["OPENAI_BASE_URL"]
HOST, PORT = "127.0.0.1", httpx.URL(URL).port
SECRET = "key=sk-test-secret&password=hunter2"
QUESTION = {"messages": [{"role": "user", "content": "capital?"}]}

@pytest.fixture
def anyio_backend():
    return "asyncio"

@gated
def test_nothing():
    pass

@gated
def test_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.connect((HOST, 53))

@gated
def test_program():
    subprocess.run([sys.executable, "-c", "pass", "--password=hunter2"])

@gated
def test_program_in_a_shell():
    subprocess.run("PASSWORD=hunter2 true", shell=True)

@gated
def test_shell():
    os.system("PASSWORD=hunter2 true")
    os.system("true --password=hunter2")

@gated
def test_fork():
    if os.fork() == 0:
        os._exit(0)

@gated
def test_socket():
    socket.create_connection((HOST, PORT)).close()

@gated
def test_local_socket(tmp_path):
    os.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as opened:
        listening.bind("s")
        listening.listen()
        opened.connect("s")
    os.unlink("s")

@gated
def test_name():
    socket.create_connection(("localhost", PORT)).close()

@gated
def test_many():
    for port in range(1, 9):
        with socket.socket() as opened:
            opened.connect_ex((HOST, port))

@gated
@pytest.mark.anyio
async def test_asyncio():
    _, writer = await asyncio.open_connection(HOST, PORT)
    writer.close()

@gated
def test_urllib():
    request = urllib.request.Request(f"{URL}/chat/completions?{SECRET}", json.dumps(QUESTION).encode())
    urllib.request.urlopen(request).read()

@gated
def test_unknown_route():
    with httpx.Client() as client:
        client.post(f"{URL.replace('//', '//user:hunter2@')}/answer?{SECRET}", json={"question": "capital?"})
        client.post(f"{URL}/services/T0AbCdEfGhIjKlMnOpQrStUv", json={"text": "done"})

@gated
@pytest.mark.anyio
async def test_unknown_route_async():
    async with httpx.AsyncClient() as client:
        await client.post(f"{URL}/answer?{SECRET}", json={"question": "capital?"})

@gated
def test_get():
    httpx.get(f"{URL}/answer?{SECRET}")

@gated
def test_get_and_socket():
    httpx.get(f"{URL}/answer?{SECRET}")
    socket.create_connection((HOST, PORT)).close()

@gated
def test_grpc():
    import grpc

@gated
def test_model_call_beside_all_that():
    test_program()
    test_socket()
    test_unknown_route()
    httpx.post(f"{URL}/chat/completions", json=QUESTION)
"""


def test_what_was_there_instead_of_a_model_call(project: Project, server) -> None:
    model = server(lambda call: "yes" if call.path.endswith("/chat/completions") else Reply(raw=b"{}"))
    project.write(BODIES, grpc="")
    found = project.report(url=model.url)

    origin = model.url.removesuffix("/v1")
    host = origin.removeprefix("http://")
    port = host.partition(":")[2]
    way = "in a way that cannot be observed"
    assert {name: (test["verdict"], test["reason"].removeprefix(PREFIX)) for name, test in found["tests"].items()} == {
        "test_nothing": ("inconclusive", "no model call was observed and nothing was recorded"),
        "test_datagram": ("inconclusive", "no model call was observed and nothing was recorded"),
        "test_program": ("inconclusive", f"the body started the program {Path(sys.executable).name}"),
        "test_program_in_a_shell": ("inconclusive", "the body started the program sh"),
        "test_shell": ("inconclusive", "the body started the programs a shell, true"),
        "test_fork": ("inconclusive", "the body forked a process, in which nothing can be observed"),
        "test_socket": ("inconclusive", f"the body opened a connection to {host} {way}"),
        "test_local_socket": ("inconclusive", f"the body opened a connection to s {way}"),
        "test_name": ("inconclusive", f"the body opened a connection to localhost:{port} {way}"),
        "test_many": (
            "inconclusive",
            f"the body opened connections to 127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3, 127.0.0.1:4 {way}",
        ),
        "test_asyncio": ("inconclusive", f"the body opened a connection to {host} {way}"),
        "test_urllib": ("inconclusive", f"the body opened a connection to {host} {way}"),
        "test_unknown_route": (
            "inconclusive",
            f"POST {origin}/v1/answer and POST {origin}/v1/services/… are no known model calls",
        ),
        "test_unknown_route_async": ("inconclusive", f"POST {origin}/v1/answer is no known model call"),
        "test_get": ("inconclusive", "GET /v1/answer is no known model call"),
        "test_get_and_socket": (
            "inconclusive",
            f"GET /v1/answer is no known model call; the body opened a connection to {host} {way}",
        ),
        "test_grpc": ("inconclusive", "grpc is loaded, whose calls cannot be observed"),
        "test_model_call_beside_all_that": ("passed", "1 unique of 2"),
    }
    advice = {name: test["advice"] for name, test in found["tests"].items()}
    assert advice["test_nothing"] == advice["test_datagram"] == NOTHING
    assert advice["test_unknown_route"] == advice["test_get_and_socket"] == READ_OR_RECORD
    assert advice["test_program"] == advice["test_socket"] == advice["test_grpc"] == RECORD
    assert not re.search("hunter2|sk-test-secret|AbCd", str(found["whole"]) + _without_sources(found["result"]))


def test_nothing_listens_where_no_test_is_marked(project: Project) -> None:
    project.write(
        """
        import sys

        def test_unmarked():
            assert "pytest_llm_determinism.observe.unseen" not in sys.modules
        """
    )
    assert project.pytest().ret == 0


def test_what_is_done_between_runs_and_by_seams_is_not_noted(server) -> None:
    model = server("yes")
    noted = Unseen()
    with socket.create_connection(("127.0.0.1", httpx.URL(model.url).port)):
        pass
    with noting(noted):
        httpx.post(f"{model.url}/chat/completions", json={"messages": []})
        asyncio.run(_post(model.url))
    with socket.create_connection(("127.0.0.1", httpx.URL(model.url).port)):
        pass
    assert (noted.connections, noted.programs, noted.forked) == ({}, {}, False)


def test_what_is_listened_at_is_afterwards_as_it_was() -> None:
    def places() -> list[object]:
        return [
            *(vars(socket.socket).get(name) for name in ("connect", "connect_ex")),
            socket.getaddrinfo,
            subprocess.Popen.__init__,
            *(getattr(os, name) for name in ("posix_spawn", "system", "fork") if hasattr(os, name)),
        ]

    before = places()
    with noting(Unseen()):
        assert before != places()
        with noting(Unseen()):
            pass
        assert before != places()
    assert before == places()


def test_no_audit_hook_is_added() -> None:
    """One would stay for as long as the process, and kill threads that start to be traced at the same time."""
    code = """
        import sys
        events = []
        sys.addaudithook(lambda event, _: events.append(event))
        from pytest_llm_determinism.observe.unseen import Unseen, noting
        with noting(Unseen()):
            pass
        assert "import" in events and "sys.addaudithook" not in events
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


async def _post(url: str) -> None:
    async with httpx.AsyncClient() as client:
        await client.post(f"{url}/chat/completions", json={"messages": []})


def _without_sources(result) -> str:
    return "\n".join(line for line in result.stdout.lines if not line.startswith((">", "    ")))
