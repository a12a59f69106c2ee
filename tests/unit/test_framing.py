"""How the body of a streamed answer is cut into events, whatever form it has."""

from __future__ import annotations

import contextlib
import json
import struct
import uuid
import zlib
from collections.abc import Callable
from typing import Any

import amazon
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llm_determinism.shapes import Unreadable
from pytest_llm_determinism.shapes.framing import DONE, events_of

SSE = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
Frame = Callable[[list[Any]], bytes]


def read(body: bytes, content_type: str, streamed: bool = True) -> list[Any]:
    events = events_of(body, content_type, streamed)
    assert events is not None
    return list(events)


def as_text(event: Any) -> str:
    return json.dumps(event, ensure_ascii=False)


def sse(newline: str, space: str = " ", name: str = "") -> Frame:
    head = f"event: {name}{newline}" if name else ""

    def frame(events: list[Any]) -> bytes:
        return "".join(f"{head}data:{space}{as_text(event)}{newline * 2}" for event in events).encode()

    return frame


def lines(newline: str, mark: str = "") -> Frame:
    return lambda events: "".join(f"{mark}{as_text(event)}{newline}" for event in events).encode()


def json_list(events: list[Any]) -> bytes:
    return as_text(events).encode()


FORMS = [
    pytest.param(sse("\n"), SSE, id="sse"),
    pytest.param(sse("\r\n"), SSE, id="sse-crlf"),
    pytest.param(sse("\r"), SSE, id="sse-cr"),
    pytest.param(sse("\n", space="", name="delta"), SSE, id="sse-named"),
    pytest.param(lines("\n"), LINES, id="lines"),
    pytest.param(lines("\r\n"), LINES, id="lines-crlf"),
    pytest.param(lines("\n"), "application/stream+json", id="lines-of-cohere"),
    pytest.param(lines("\n", mark="\x1e"), "application/json-seq", id="json-seq"),
    pytest.param(json_list, "application/json", id="list"),
    pytest.param(amazon.event_stream, amazon.CONTENT_TYPE, id="amazon"),
]

# Without surrogates, which UTF-8 has not; with all that other rules than JSON's would take for the end of a line. And
# without the word by which an event says that it is none.
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\x0b\x0c\x1c\x85\u2028\u2029"), max_size=9
).filter(lambda text: text != "error")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
# Events are objects in every API. Amazon's have one name each; it is text in a header, of at most 64 kB.
EVENTS = st.lists(st.dictionaries(TEXT, JSON, min_size=1, max_size=1), max_size=5)


@pytest.mark.parametrize(("frame", "content_type"), FORMS)
@given(events=EVENTS)
@settings(max_examples=40)
def test_events_come_out_as_they_went_in(frame: Frame, content_type: str, events: list[Any]) -> None:
    assert read(frame(events), content_type) == events


@pytest.mark.parametrize(("frame", "content_type"), FORMS)
@given(events=EVENTS, data=st.data())
@settings(max_examples=40)
def test_a_body_that_is_cut_off_gives_the_first_events_or_is_unreadable(
    frame: Frame, content_type: str, events: list[Any], data: st.DataObject
) -> None:
    body = frame(events)
    cut = body[: data.draw(st.integers(0, len(body)))]
    found = []
    with contextlib.suppress(Unreadable):
        found.extend(events_of(cut, content_type, True) or ())
    assert found == events[: len(found)]


@given(body=st.binary(max_size=200), content_type=st.sampled_from([SSE, LINES, amazon.CONTENT_TYPE, "", "text/plain"]))
def test_no_bytes_break_the_reading(body: bytes, content_type: str) -> None:
    with contextlib.suppress(Unreadable):
        list(events_of(body, content_type, True) or ())


# Server-sent events


def test_what_is_no_data_is_left_out_and_several_lines_of_data_are_one_event() -> None:
    body = b': comment\nid: 7\nretry: 10\ndata: {"a":\ndata: 1}\n\n\n\nevent: ping\n\ndata:\n\ndata: [DONE]\n\n'
    assert read(body, SSE) == [{"a": 1}, DONE]


def test_the_last_event_needs_no_empty_line_after_it() -> None:
    assert read(b'data: {"a": 1}\n\ndata: [DONE]', SSE) == [{"a": 1}, DONE]


@pytest.mark.parametrize(
    "event",
    [
        'data: {"error": {"message": "overloaded"}}',
        'data: {"type": "error", "message": "overloaded"}',
        'event: error\ndata: {"message": "overloaded"}',
        'event:error\ndata: "overloaded"',
    ],
)
def test_an_error_in_the_stream_is_never_an_event(event: str) -> None:
    events = events_of(f'data: {{"a": 1}}\n\n{event}\n\n'.encode(), SSE, True)
    assert next(events) == {"a": 1}
    with pytest.raises(Unreadable, match=r"ended in an error: .*overloaded"):
        next(events)


def test_an_error_field_that_says_nothing_is_no_error() -> None:
    assert read(b'data: {"error": null}\n\n', SSE) == [{"error": None}]


@pytest.mark.parametrize(("body", "content_type"), [(b"data: {not json\n\n", SSE), (b'{"a": 1}\n{not json\n', LINES)])
def test_an_event_that_is_not_json_is_unreadable(body: bytes, content_type: str) -> None:
    with pytest.raises(Unreadable, match=r"an event that is not JSON: '\{not json'"):
        read(body, content_type)


# Which form it is


@pytest.mark.parametrize(
    ("body", "content_type", "streamed", "expected"),
    [
        (b'{"a": 1}', "application/json", False, None),
        (b'{"a": 1}', "application/json", True, None),
        (b'{\n"a":\n1}', "application/json", True, None),
        (b"", "application/json", True, None),
        (b"<html>", "text/html", True, None),
        (b'[{"a": 1}]', "application/json", False, None),
        (b'{"a": 1}\n{"a": 2}\n', "application/json", False, None),
        (b'[{"a": 1}]', "application/json", True, [{"a": 1}]),
        (b'{"a": 1}\n{"a": 2}\n', "application/json", True, [{"a": 1}, {"a": 2}]),
        (b'data: {"a": 1}\n\n', "text/plain", True, [{"a": 1}]),
        (b': hello\n\ndata: {"a": 1}\n\n', "", True, [{"a": 1}]),
        (b'event: x\ndata: {"a": 1}\n\n', "application/octet-stream", True, [{"a": 1}]),
        (b'data: {"a": 1}\n\n', SSE, False, [{"a": 1}]),
        (b'{"a": 1}\n', LINES, False, [{"a": 1}]),
    ],
)
def test_a_stream_is_told_by_what_it_says_it_is_or_by_what_was_asked_for(
    body: bytes, content_type: str, streamed: bool, expected: list[Any] | None
) -> None:
    events = events_of(body, content_type, streamed)
    assert (None if events is None else list(events)) == expected


# Amazon's messages


def damaged(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


@given(at=st.integers(0, 10_000))
def test_a_message_with_a_damaged_byte_is_unreadable(at: int) -> None:
    body = amazon.event_stream([{"chunk": {"bytes": "aGVsbG8="}}])
    with pytest.raises(Unreadable, match=r"damaged|broke off"):
        read(damaged(body, at % len(body)), amazon.CONTENT_TYPE)


def test_events_before_a_damaged_message_are_given() -> None:
    first, second = amazon.event_stream([{"a": 1}]), amazon.event_stream([{"a": 2}])
    events = events_of(first + damaged(second, len(second) - 8), amazon.CONTENT_TYPE, True)
    assert next(events) == {"a": 1}
    with pytest.raises(Unreadable, match="damaged"):
        next(events)


def test_a_message_that_is_cut_anywhere_broke_off() -> None:
    body = amazon.event_stream([{"a": 1}])
    for end in range(1, len(body)):
        with pytest.raises(Unreadable, match="broke off"):
            read(body[:end], amazon.CONTENT_TYPE)


def test_an_exception_under_way_is_unreadable_with_its_name() -> None:
    exception = amazon.message(
        b'{"message": "Too many tokens"}', message_type="exception", exception_type="throttlingException"
    )
    events = events_of(amazon.event_stream([{"a": 1}]) + exception, amazon.CONTENT_TYPE, True)
    assert next(events) == {"a": 1}
    with pytest.raises(Unreadable, match=r'an error: throttlingException: \{"message": "Too many'):
        next(events)


def test_an_error_of_the_framing_is_unreadable_with_its_code_and_text() -> None:
    error = amazon.message(b"", message_type="error", error_code="InternalError", error_message="Something broke")
    with pytest.raises(Unreadable, match="ended in an error: InternalError: Something broke"):
        read(error, amazon.CONTENT_TYPE)


def test_a_message_may_have_no_payload_and_headers_of_every_type() -> None:
    headers = b"".join(
        bytes([len(name)]) + name + bytes([kind]) + value
        for name, kind, value in [
            (b"yes", 0, b""),
            (b"no", 1, b""),
            (b"byte", 2, b"\x01"),
            (b"short", 3, b"\x00\x01"),
            (b"int", 4, b"\x00" * 4),
            (b"long", 5, b"\x00" * 8),
            (b"bytes", 6, b"\x00\x02\xff\xff"),
            (b"time", 8, b"\x00" * 8),
            (b"uuid", 9, uuid.UUID(int=7).bytes),
            (b":event-type", 7, b"\x00\x04ping"),
        ]
    )
    prelude = struct.pack("!II", len(headers) + 16, len(headers))
    whole = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers
    assert read(whole + struct.pack("!I", zlib.crc32(whole)), amazon.CONTENT_TYPE) == [{"ping": {}}]


@given(EVENTS)
def test_the_vendors_own_parser_finds_the_same_in_these_messages(events: list[dict[str, Any]]) -> None:
    eventstream = pytest.importorskip("botocore.eventstream")
    body = amazon.event_stream(events)
    parser = eventstream.EventStreamBuffer()
    parser.add_data(body)
    theirs = [{message.headers[":event-type"]: json.loads(message.payload)} for message in parser]
    assert theirs == events == read(body, amazon.CONTENT_TYPE)
