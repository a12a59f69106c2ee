"""Anthropic Messages: which requests, what identifies one, what an answer says. The forms are those of the SDK."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.shapes import Answer, ModelCall, Rules, Unreadable, read_answer, recognise
from pytest_llm_determinism.shapes.answer import ToolCall

HOST = "https://api.test"
URL = f"{HOST}/v1/messages"
GOOGLE = f"{HOST}/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-3@20240620"
QUESTION = {"max_tokens": 100, "messages": [{"role": "user", "content": "capital?"}], "temperature": 0}


def call(url: str = URL, rules: Rules | None = None, /, **body: Any) -> ModelCall | None:
    return recognise("POST", url, json.dumps(body or {"model": "claude", **QUESTION}).encode(), rules or Rules())


def answer(content: object, content_type: str = "application/json") -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_answer(call(), body, content_type)


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %s\ndata: %s\n\n" % (str(e.get("type")).encode(), json.dumps(e).encode()) for e in events)


def streamed(*events: dict[str, Any]) -> Answer:
    return answer(sse(*events), "text/event-stream; charset=utf-8")


# Recognising


@pytest.mark.parametrize(
    ("url", "body", "stream"),
    [
        (URL, {"model": "claude", **QUESTION}, False),
        (URL, {"model": "claude", **QUESTION, "stream": True}, True),
        (f"{HOST}/anthropic/v1/messages?beta=true", {"model": "claude", **QUESTION}, False),
        (f"{GOOGLE}:rawPredict", {"anthropic_version": "vertex-2023-10-16", **QUESTION}, False),
        (f"{GOOGLE}:streamRawPredict", {"anthropic_version": "vertex-2023-10-16", **QUESTION, "stream": True}, True),
        (f"{GOOGLE}:streamRawPredict", {"anthropic_version": "vertex-2023-10-16", **QUESTION}, True),
    ],
)
def test_a_message_is_recognised_by_route_and_body(url: str, body: dict[str, Any], stream: bool) -> None:
    found = call(url, **body)
    assert (found.family.name, found.stream) == ("messages", stream)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (f"{URL}/count_tokens", {"model": "claude", "messages": QUESTION["messages"]}),
        (f"{URL}/count_tokens", {"model": "claude", **QUESTION}),
        (f"{URL}/batches", {"requests": [{"custom_id": "1", "params": QUESTION}]}),
        (f"{HOST}/v1/threads/thread_1/messages", {"role": "user", "content": "capital?"}),
        (URL, {"model": "claude", "messages": QUESTION["messages"]}),
        (f"{HOST}/v1/projects/p/locations/l/publishers/other/models/m:rawPredict", QUESTION),
    ],
)
def test_what_asks_for_no_message_is_no_model_call(url: str, body: dict[str, Any]) -> None:
    assert call(url, **body) is None


# What identifies a request


def second_step(run: str, thinking: str = "hm", order: str = "o-1", found: str = "found") -> list[dict[str, Any]]:
    """What a tool agent asks after the first answer; everything that has `run` in it is of the provider's making."""
    return [
        *QUESTION["messages"],
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": thinking, "signature": f"sig-{run}"},
                {"type": "redacted_thinking", "data": f"opaque-{run}"},
                {"type": "server_tool_use", "id": f"srvtoolu_{run}", "name": "web_search", "input": {"query": "x"}},
                {
                    "type": "web_search_tool_result",
                    "tool_use_id": f"srvtoolu_{run}",
                    "content": [{"type": "web_search_result", "url": "u", "encrypted_content": f"enc-{run}"}],
                },
                {"type": "text", "text": "I see.", "citations": [{"url": "u", "encrypted_index": f"index-{run}"}]},
                {"type": "tool_use", "id": f"toolu_{run}", "name": "look", "input": {"id": order}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"toolu_{run}", "content": found}]},
    ]


def test_the_second_step_of_a_tool_agent_is_the_same_question_in_every_run() -> None:
    def key(messages: list[dict[str, Any]]) -> str:
        return call(**{**QUESTION, "messages": messages}).key

    assert key(second_step("a")) == key(second_step("b"))
    others = [second_step("a", thinking="ha"), second_step("a", order="o-2"), second_step("a", found="nothing")]
    assert len({key(messages) for messages in (second_step("a"), *others)}) == 4


def test_the_model_is_overridden_where_the_request_has_it() -> None:
    rules = Rules(override={"model": "claude-next", "stop": ["."], "temperature": 1})
    direct = call(URL, rules, model="claude", **QUESTION)
    google = call(f"{GOOGLE}:rawPredict", rules, anthropic_version="1", **QUESTION)
    changed = {**QUESTION, "stop_sequences": ["."], "temperature": 1}
    assert (direct.url, json.loads(direct.body)) == (URL, {"model": "claude-next", **changed})
    assert google.url == f"{GOOGLE.replace('claude-3@20240620', 'claude-next')}:rawPredict"
    assert json.loads(google.body) == {"anthropic_version": "1", **changed}


# Answers, whole and streamed


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-3",
    "content": [
        {"type": "thinking", "thinking": "hm, hm", "signature": "sig"},
        {"type": "redacted_thinking", "data": "opaque"},
        {"type": "text", "text": "Paris."},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"b": [1, "é"], "a": 2}},
        {"type": "tool_use", "id": "toolu_2", "name": "stop", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 7, "output_tokens": 9},
}

START = {
    "type": "message_start",
    "message": {**MESSAGE, "content": [], "stop_reason": None, "usage": {"input_tokens": 7, "output_tokens": 1}},
}


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def ending(reason: str = "tool_use", **more: Any) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": None, **more}
    usage = {"input_tokens": None, "output_tokens": 9}
    return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]


EVENTS = [
    START,
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "hm, "},
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "sig"},
    ),
    *block(1, {"type": "redacted_thinking", "data": "opaque"}),
    {"type": "ping"},
    *block(
        2,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Par"},
        {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "x"}},
        {"type": "text_delta", "text": "is."},
    ),
    *block(
        3,
        {"type": "tool_use", "id": "toolu_9", "name": "look", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"b":[1,'},
        {"type": "input_json_delta", "partial_json": '"\\u00e9"], "a": 2}'},
    ),
    *block(4, {"type": "tool_use", "id": "toolu_8", "name": "stop", "input": {}}),
    *ending(),
]


def test_a_message_whole_and_streamed() -> None:
    calls = (ToolCall("look", '{"a": 2, "b": [1, "é"]}'), ToolCall("stop", "{}"))
    output = 'Paris.\n[tool call] look({"a": 2, "b": [1, "é"]})\n[tool call] stop({})'
    expected = Answer(output, "Paris.", calls, "tool_use", "claude-3", None, 7, 9, "hm, hm")
    assert answer(MESSAGE) == expected
    assert streamed(*EVENTS) == expected
    assert answer(MESSAGE).id == streamed(*EVENTS).id == "msg_1"


def test_tools_that_the_provider_runs_are_calls_and_their_results_are_left_out() -> None:
    asked = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "capital"}}
    result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"encrypted_content": "x"}]}
    content = [asked, result, {"type": "text", "text": "Paris."}, {"type": "text", "text": " Sure."}]
    found = answer({**MESSAGE, "content": content, "stop_reason": "end_turn"})
    assert found.output == 'Paris. Sure.\n[tool call] web_search({"query": "capital"})'


def test_a_refusal_is_an_output_of_its_own() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "Another text every time."}
    whole = {**MESSAGE, "content": [], "stop_reason": "refusal"}
    assert answer({**whole, "stop_details": details}).output == "[refusal] cyber"
    assert answer(whole).output == "[refusal] refused"
    parts = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Well"})
    assert streamed(START, *parts, *ending("refusal", stop_details=details)).output == "Well\n[refusal] cyber"


def test_a_tool_call_that_the_token_limit_cut_off_is_compared_as_it_was_written() -> None:
    started = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    parts = block(0, started, {"type": "input_json_delta", "partial_json": '{"a": "Par'})
    found = streamed(START, *parts, *ending("max_tokens"))
    assert (found.output, found.finish_reason) == ('[tool call] look({"a": "Par)', "max_tokens")


def test_an_empty_message_is_an_answer() -> None:
    whole = {**MESSAGE, "content": [], "stop_reason": "end_turn"}
    assert answer(whole).output == streamed(START, *ending("end_turn")).output == ""


# What is no answer


@pytest.mark.parametrize("kept", range(len(EVENTS)))
def test_a_stream_without_its_end_is_no_answer(kept: int) -> None:
    with pytest.raises(Unreadable, match="broke off"):
        streamed(*EVENTS[:kept])


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b"null", "application/json"),
        (b"<html>", "text/html"),
        (json.dumps({**MESSAGE, "content": [], "stop_reason": None}).encode(), "application/json"),
        (json.dumps({**MESSAGE, "content": "Paris."}).encode(), "application/json"),
        (json.dumps({**MESSAGE, "content": ["Paris."]}).encode(), "application/json"),
        (b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}', "application/json"),
        (sse(START, {"type": "error", "error": {"type": "overloaded_error"}}, *EVENTS[1:]), "text/event-stream"),
        (sse(START, {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta"}}), "text/event-stream"),
        (sse(START, {"type": "content_block_start", "index": 0, "content_block": "text"}), "text/event-stream"),
        (sse({"type": "message_start", "message": "Paris."}, {"type": "message_stop"}), "text/event-stream"),
        (b"data: [DONE]\n\n", "text/event-stream"),
        (b'data: "message_stop"\n\n', "text/event-stream"),
    ],
)
def test_errors_and_fragments_are_never_answers(body: bytes, content_type: str) -> None:
    with pytest.raises(Unreadable):
        answer(body, content_type)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from([event["type"] for event in EVENTS])
EVENT = st.fixed_dictionaries(
    {"type": KINDS, "index": JSON},
    optional=dict.fromkeys(("message", "content_block", "delta", "usage"), JSON),
)
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "tool_use"])},
    optional=dict.fromkeys(("text", "thinking", "name", "input", "partial_json"), JSON),
)


@given(JSON, st.lists(BLOCK | JSON, max_size=3), st.lists(EVENT | st.sampled_from(EVENTS), max_size=6))
def test_no_json_whatever_it_is_breaks_the_reading(content: Any, blocks: list[Any], events: list[Any]) -> None:
    for body in (content, {"content": content}, {"content": blocks, "stop_reason": content, "stop_details": content}):
        with contextlib.suppress(Unreadable):
            answer(body)
    with contextlib.suppress(Unreadable):
        streamed(*events)


def test_json_however_deep_breaks_nothing() -> None:
    for depth in range(500, 1000):
        asked = b'{"content": [{"type": "tool_use", "name": "look", "input": %s}]}' % (b"[" * depth + b"]" * depth)
        with contextlib.suppress(Unreadable):
            answer(asked)


@given(st.text(max_size=12), st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.data())
def test_however_it_is_cut_a_stream_gives_the_whole_answer(text: str, asked: dict[str, Any], data: Any) -> None:
    def cut(written: str, kind: str, name: str) -> list[dict[str, Any]]:
        at = data.draw(st.integers(0, len(written)))
        return [{"type": kind, name: piece} for piece in (written[:at], written[at:])]

    whole = {
        **MESSAGE,
        "content": [{"type": "text", "text": text}, {"type": "tool_use", "id": "t", "name": "look", "input": asked}],
    }
    parts = streamed(
        START,
        *block(0, {"type": "text", "text": ""}, *cut(text, "text_delta", "text")),
        *block(
            1,
            {"type": "tool_use", "id": "u", "name": "look", "input": {}},
            *cut(json.dumps(asked), "input_json_delta", "partial_json"),
        ),
        *ending(),
    )
    assert parts == answer(whole)
