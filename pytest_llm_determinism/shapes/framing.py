"""How a streamed answer is cut into events: server-sent events, JSON lines, a JSON list, Amazon's binary messages.

Whatever the form, what comes out is one parsed JSON value an event, and `DONE` for an end marker.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from pytest_llm_determinism.shapes.answer import Unreadable

DONE = "[DONE]"

AMAZON = "application/vnd.amazon.eventstream"
_LINES = ("x-ndjson", "jsonl", "json-lines", "stream+json", "json-seq")


def is_sse(content_type: str) -> bool:
    return "text/event-stream" in content_type


def is_lines(content_type: str) -> bool:
    return any(form in content_type for form in _LINES)


def events_of(body: bytes, content_type: str, streamed: bool) -> Iterator[Any] | None:
    """The events of a streamed answer, None if it is one JSON document.

    Args:
        streamed: whether a stream was asked for; if not, only a response that calls itself a stream is one.

    Raises:
        Unreadable: while they are read: an event is not JSON, or says that the server failed under way.
    """
    if AMAZON in content_type:
        return _read_messages(body)
    text = body.decode("utf-8", "replace")
    if is_sse(content_type):
        return _read_sse(text)
    if is_lines(content_type):
        return _read_lines(text)
    if not streamed:
        return None
    if text.lstrip().startswith(("data:", "event:", "id:", ":")):
        return _read_sse(text)
    # Some servers call a stream of JSON lines, or a list of events, plain JSON.
    head = text.lstrip()[:1]
    if head == "[":
        return _read_list(text)
    if head == "{" and "\n" in text.strip() and not _is_one_document(text):
        return _read_lines(text)
    return None


def _is_one_document(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_sse(text: str) -> Iterator[Any]:
    for block in text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        lines = block.split("\n")
        data = "\n".join(line[5:].removeprefix(" ") for line in lines if line.startswith("data:"))
        if not data:
            continue
        if data.strip() == DONE:
            yield DONE
            continue
        named_error = any(line[6:].strip() == "error" for line in lines if line.startswith("event:"))
        yield _event(data, named_error)


def _read_lines(text: str) -> Iterator[Any]:
    # Not splitlines(): JSON text may hold other characters that count as line ends there.
    for line in text.replace("\r", "\n").split("\n"):
        if line.strip("\x1e \t"):
            yield _event(line.strip("\x1e \t"))


def _read_list(text: str) -> Iterator[Any]:
    try:
        events = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable(f"a stream that broke off, or is not JSON: {text[:80]!r}") from None
    for event in events:
        yield checked(event, json.dumps(event))


def _event(data: str, named_error: bool = False) -> Any:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise Unreadable(f"a stream with an event that is not JSON: {data[:80]!r}") from None
    return checked(event, data, named_error)


def checked(event: Any, data: str, named_error: bool = False) -> Any:
    """An event that is no error; `data` is its text.

    Raises:
        Unreadable: it says that the server failed under way.
    """
    if named_error or (isinstance(event, dict) and (event.get("error") or event.get("type") == "error")):
        raise Unreadable(f"a stream that ended in an error: {data[:200]}")
    return event


_PRELUDE = struct.Struct(">III")
_FIXED_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_TEXT, _BYTES = 7, 6


def _read_messages(body: bytes) -> Iterator[Any]:
    """Amazon's event stream: length-prefixed messages with headers, a JSON payload, and two CRC-32 checksums.

    Each event is ``{event type: payload}``. The form is described in the AWS SDKs' documentation as
    ``application/vnd.amazon.eventstream``.
    """
    at = 0
    while at < len(body):
        if len(body) - at < _PRELUDE.size + 4:
            raise Unreadable("a stream that broke off within a message")
        total, headers_length, prelude_sum = _PRELUDE.unpack_from(body, at)
        message = body[at : at + total]
        if zlib.crc32(message[:8]) != prelude_sum:
            raise Unreadable("a stream with a damaged message")
        if len(message) < total or total < _PRELUDE.size + headers_length + 4:
            raise Unreadable("a stream that broke off within a message")
        if zlib.crc32(message[:-4]) != int.from_bytes(message[-4:], "big"):
            raise Unreadable("a stream with a damaged message")
        headers = _headers(message[_PRELUDE.size : _PRELUDE.size + headers_length])
        payload = message[_PRELUDE.size + headers_length : -4].decode("utf-8", "replace")
        if headers.get(":message-type", "event") != "event":
            name = headers.get(":exception-type") or headers.get(":error-code") or "error"
            text = payload or headers.get(":error-message", "")
            raise Unreadable(f"a stream that ended in an error: {name}: {text[:200]}")
        yield {headers.get(":event-type", ""): _event(payload) if payload else {}}
        at += total


def _headers(block: bytes) -> dict[str, str]:
    """The headers of a message; those that are no text are left out."""
    found = {}
    at = 0
    try:
        while at < len(block):
            length = block[at]
            name = block[at + 1 : at + 1 + length].decode("utf-8")
            at += 1 + length
            kind = block[at]
            at += 1
            if kind in (_TEXT, _BYTES):
                size = int.from_bytes(block[at : at + 2], "big")
                if kind == _TEXT:
                    found[name] = block[at + 2 : at + 2 + size].decode("utf-8")
                at += 2 + size
            else:
                at += _FIXED_SIZES[kind]
    except (IndexError, KeyError, UnicodeDecodeError):
        raise Unreadable("a stream with a damaged message") from None
    return found
