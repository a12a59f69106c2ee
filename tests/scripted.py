"""A scripted model server for the tests: real HTTP on loopback, OpenAI-compatible, answers a function of the call."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Call:
    """One request as the server saw it; `number` counts all requests from 0, `at` is a clock's seconds."""

    number: int
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float = 0.0

    @property
    def prompt(self) -> str:
        """The last user text of any of the three APIs."""
        if "messages" in self.body:
            return str(self.body["messages"][-1].get("content"))
        asked = self.body.get("prompt", self.body.get("input"))
        return asked if isinstance(asked, str) else json.dumps(asked)


@dataclass
class Reply:
    """What to answer: text and tool calls, or a status with a raw body, or a connection that breaks: half of the body
    is sent (`cut`), or nothing at all (`reset`)."""

    text: str = ""
    tool_calls: list[tuple[str, str]] = field(default_factory=list)
    status: int = 200
    raw: bytes | None = None
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    reset: bool = False
    finish_reason: str | None = None
    fingerprint: str | None = "fp-1"
    model: str | None = None
    usage: dict[str, Any] | None = None


Script = Callable[[Call], "str | Reply"]


def together(script: Script | str, count: int, first: int = 1) -> Script:
    """The script, but the `count` calls from the number `first` on are answered once the last of them is there: they
    are then in flight together, or not at all."""
    there = threading.Event()

    def answer(call: Call) -> str | Reply:
        if call.number == first + count - 1:
            there.set()
        if first <= call.number < first + count:
            there.wait(10)
        return script if isinstance(script, str) else script(call)

    return answer


class ScriptedServer:
    """Attributes: `calls`, everything that was asked; `peak`, the most requests in flight at once; `listing`, status
    and content of what a GET is answered."""

    def __init__(self, script: Script, latency: float = 0.0) -> None:
        self.script = script
        self.latency = latency
        self.calls: list[Call] = []
        self.peak = 0
        self.listing: tuple[int, Any] = (404, {"error": {"message": "not found"}})
        self._in_flight = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        server = self

        class Handler(_Handler):
            owner = server

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # whoever was cancelled has hung up
                    super().handle_error(request, client_address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self._lock:
            call = Call(next(self._numbers), path, body, headers, time.monotonic())
            self.calls.append(call)
            self._in_flight += 1
            self.peak = max(self.peak, self._in_flight)
        try:
            if self.latency:
                time.sleep(self.latency)
            reply = self.script(call)
        finally:
            with self._lock:
                self._in_flight -= 1
        return Reply(reply) if isinstance(reply, str) else reply


@contextlib.contextmanager
def serving(script: Script | str, latency: float = 0.0) -> Iterator[ScriptedServer]:
    server = ScriptedServer((lambda call: script) if isinstance(script, str) else script, latency)
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    owner: ScriptedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        status, listing = self.owner.listing
        content = json.dumps(listing).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = self.path.partition("?")[0]
        reply = self.owner.answer(self.path, body, {name.lower(): value for name, value in self.headers.items()})
        if reply.reset:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if reply.raw is not None:
            content = reply.raw
        elif body.get("stream"):
            reply.content_type = "text/event-stream"
            content = b"".join(b"data: " + part + b"\n\n" for part in _events(path, body, reply))
        else:
            content = json.dumps(_content(path, body, reply)).encode()
        if "gzip" in reply.headers.get("content-encoding", ""):
            content = gzip.compress(content)
        self.send_response(reply.status)
        self.send_header("content-type", reply.content_type)
        self.send_header("content-length", str(len(content)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if reply.cut else content)
        if reply.cut:
            self.close_connection = True


_ids = itertools.count()


def _content(path: str, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    number = next(_ids)
    common = {"created": 1700000000 + number, "model": reply.model or body.get("model", "m")}
    usage = reply.usage or {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    calls = [
        {"id": f"call-{number}-{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(reply.tool_calls)
    ]
    reason = reply.finish_reason or ("tool_calls" if calls else "stop")
    if path.endswith("/chat/completions"):
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not reply.text else reply.text}
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            **common,
            "choices": [choice],
            "usage": usage,
            "system_fingerprint": reply.fingerprint,
        }
    if path.endswith("/completions"):
        choice = {"index": 0, "text": reply.text, "finish_reason": reason, "logprobs": None}
        return {"id": f"cmpl-{number}", "object": "text_completion", **common, "choices": [choice], "usage": usage}
    part = {"type": "output_text", "text": reply.text, "annotations": []}
    item = {"id": f"msg-{number}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return {
        "id": f"resp-{number}",
        "object": "response",
        "created_at": common["created"],
        "model": common["model"],
        "status": "completed",
        "output": [item],
        "usage": reply.usage or {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _events(path: str, body: dict[str, Any], reply: Reply) -> Iterator[bytes]:
    whole = _content(path, body, reply)
    words = reply.text.split(" ")
    pieces = [word if index == 0 else f" {word}" for index, word in enumerate(words)]
    if path.endswith("/responses"):
        item = whole["output"][0]
        for index, piece in enumerate(pieces):
            event = {"type": "response.output_text.delta", "delta": piece, "item_id": item["id"], "output_index": 0}
            yield json.dumps({**event, "content_index": 0, "sequence_number": index, "logprobs": []}).encode()
        yield json.dumps({"type": "response.completed", "response": whole, "sequence_number": len(pieces)}).encode()
        return
    chat = path.endswith("/chat/completions")
    base = {name: whole[name] for name in ("id", "created", "model")}
    base["object"] = "chat.completion.chunk" if chat else "text_completion"
    for piece in pieces:
        choice = {"index": 0, "finish_reason": None, **({"delta": {"content": piece}} if chat else {"text": piece})}
        yield json.dumps({**base, "choices": [choice]}).encode()
    last = {"index": 0, "finish_reason": reply.finish_reason or "stop", **({"delta": {}} if chat else {"text": ""})}
    yield json.dumps({**base, "choices": [last]}).encode()
    yield b"[DONE]"
