"""Cohere's chat, both forms: which requests, what identifies one, what an answer says, as its SDK exchanges them."""

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
V2, V1 = f"{HOST}/v2/chat", f"{HOST}/v1/chat"
SSE, LINES = "text/event-stream", "application/stream+json"
MESSAGES = [{"role": "user", "content": "capital?"}]
QUESTION = {"model": "command-a", "messages": MESSAGES, "temperature": 0}
OLDER_QUESTION = {"message": "capital?", "temperature": 0, "stream": False}


def call(url: str = V2, rules: Rules | None = None, /, **body: Any) -> ModelCall | None:
    asked = body or (QUESTION if url == V2 else OLDER_QUESTION)
    return recognise("POST", url, json.dumps(asked).encode(), rules or Rules())


def answer(content: object, content_type: str = "application/json", url: str = V2) -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_answer(call(url), body, content_type)


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %s\ndata: %s\n\n" % (str(e.get("type")).encode(), json.dumps(e).encode()) for e in events)


def streamed(*events: dict[str, Any]) -> Answer:
    return answer(sse(*events) + b"data: [DONE]\n\n", SSE)


def older(content: object) -> Answer:
    return answer(content, url=V1)


def lines(*events: object) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def older_streamed(*events: object) -> Answer:
    return answer(lines(*events), LINES, V1)


# Recognising


@pytest.mark.parametrize(
    ("url", "body", "name", "stream"),
    [
        (V2, {**QUESTION, "stream": False}, "Cohere chat", False),
        (V2, {**QUESTION, "stream": True}, "Cohere chat", True),
        (f"{HOST}/proxy/cohere/v2/chat/", QUESTION, "Cohere chat", False),
        (V1, {"message": "capital?", "stream": False}, "Cohere chat v1", False),
        (V1, {"message": "capital?", "stream": True}, "Cohere chat v1", True),
        (V1, {"message": "capital?", "model": "command-r"}, "Cohere chat v1", False),
        (V1, {"message": "", "tool_results": [], "stream": False}, "Cohere chat v1", False),
        (f"{V1}/completions", {"messages": MESSAGES, "model": "m"}, "chat completions", False),
        (f"{V2}/completions", {"messages": MESSAGES, "model": "m"}, "chat completions", False),
    ],
)
def test_a_question_is_recognised_by_route_and_body(url: str, body: dict[str, Any], name: str, stream: bool) -> None:
    found = call(url, **body)
    assert (found.family.name, found.stream) == (name, stream)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (V1, {"message": "capital?"}),
        (V1, {"message": {"text": "capital?"}, "stream": True}),
        (V1, {"messages": MESSAGES, "model": "m"}),
        (V2, {"messages": MESSAGES}),
        (V2, {"message": "capital?", "model": "m"}),
        (V2, {"messages": "capital?", "model": "m"}),
        (f"{HOST}/v1/embed", {"texts": ["x"], "model": "m"}),
        (f"{HOST}/v2/rerank", {"query": "x", "documents": ["y"], "model": "m"}),
        (f"{HOST}/v1/tokenize", {"text": "x", "model": "m"}),
    ],
)
def test_everything_else_is_no_model_call(url: str, body: dict[str, Any]) -> None:
    assert call(url, **body) is None


# What identifies a request


def second_step(name: str, arguments: str = '{"id": "o-1"}', found: str = "sunny") -> dict[str, Any]:
    """What a tool agent asks after the first answer."""
    function = {"name": "weather", "arguments": arguments}
    source = {"type": "tool", "id": f"{name}:0", "tool_output": {"content": found}}
    messages = [
        *MESSAGES,
        {
            "role": "assistant",
            "tool_plan": "I look it up.",
            "tool_calls": [{"id": name, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": name, "content": found},
        {"role": "assistant", "content": [{"type": "text", "text": "Sunny."}], "citations": [{"sources": [source]}]},
        {"role": "user", "content": "And Rome?"},
    ]
    return {**QUESTION, "messages": messages}


def test_the_next_steps_of_a_tool_agent_are_the_same_question_in_every_run() -> None:
    assert call(**second_step("weather_a")).key == call(**second_step("weather_b")).key
    others = [second_step("weather_a", arguments='{"id": "o-2"}'), second_step("weather_a", found="rain")]
    assert len({call(**body).key for body in (second_step("weather_a"), *others)}) == 3


def test_an_override_by_the_common_name_is_set_where_this_api_has_it() -> None:
    rules = Rules(override={"model": "m2", "top_p": 0.5, "top_k": 3, "stop": ["."], "max_output_tokens": 9, "seed": 7})
    changed = {"model": "m2", "p": 0.5, "k": 3, "stop_sequences": ["."], "max_tokens": 9, "seed": 7}
    assert json.loads(call(V2, rules, **QUESTION).body) == {**QUESTION, **changed}
    assert json.loads(call(V1, rules, **OLDER_QUESTION).body) == {**OLDER_QUESTION, **changed}


# Answers, whole and streamed


def whole(**message: Any) -> dict[str, Any]:
    usage = {
        "billed_units": {"input_tokens": 7, "output_tokens": 3},
        "tokens": {"input_tokens": 67, "output_tokens": 5},
    }
    return {"id": "c-1", "finish_reason": "COMPLETE", "message": {"role": "assistant", **message}, "usage": usage}


def delta(kind: str, index: int | None = None, **message: Any) -> dict[str, Any]:
    return {"type": kind, "index": index, "delta": {"message": message}}


def start(name: str = "c-1") -> dict[str, Any]:
    message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    return {"type": "message-start", "id": name, "delta": {"message": message}}


def end(reason: str = "COMPLETE", **more: Any) -> dict[str, Any]:
    return {"type": "message-end", "delta": {"finish_reason": reason, "usage": whole()["usage"], **more}}


CITATION = {"start": 0, "end": 5, "text": "Paris", "sources": [{"type": "document", "id": "doc:0"}]}
EVENTS = [
    start(),
    delta("content-start", 0, content={"type": "thinking", "thinking": ""}),
    delta("content-delta", 0, content={"thinking": "hm, "}),
    delta("content-delta", 0, content={"thinking": "hm"}),
    {"type": "content-end", "index": 0},
    delta("content-start", 1, content={"type": "text", "text": ""}),
    delta("content-delta", 1, content={"text": "Par"}),
    delta("citation-start", 0, citations=CITATION),
    {"type": "citation-end", "index": 0},
    delta("content-delta", 1, content={"text": "is."}),
    {"type": "content-end", "index": 1},
    end(),
]


def test_a_message_whole_and_streamed() -> None:
    parts = [{"type": "thinking", "thinking": "hm, hm"}, {"type": "text", "text": "Paris."}]
    expected = Answer("Paris.", "Paris.", (), "COMPLETE", None, None, 67, 5, "hm, hm")
    assert answer(whole(content=parts, citations=[CITATION])) == expected
    assert streamed(*EVENTS) == expected
    assert answer(whole(content=parts)).id == streamed(*EVENTS).id == "c-1"


def test_tool_calls_whole_and_streamed() -> None:
    calls = [
        {"id": "weather_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
        {"id": "stop_1", "type": "function", "function": {"name": "stop", "arguments": "{}"}},
    ]
    events = [start()]
    events += [delta("tool-plan-delta", tool_plan=piece) for piece in ("I look ", "it up.")]
    for index, one in enumerate(calls):
        name, arguments = one["function"].values()
        begun = {**one, "id": f"other_{index}", "function": {"name": name, "arguments": ""}}
        events.append(delta("tool-call-start", index, tool_calls=begun))
        for piece in (arguments[:1], arguments[1:]):
            events.append(delta("tool-call-delta", index, tool_calls={"function": {"arguments": piece}}))
        events.append({"type": "tool-call-end", "index": index})
    found = answer({**whole(tool_plan="I look it up.", tool_calls=calls), "finish_reason": "TOOL_CALL"})
    output = '[tool call] weather({"city":"Oslo"})\n[tool call] stop({})'
    tools = (ToolCall("weather", '{"city":"Oslo"}'), ToolCall("stop", "{}"))
    assert found == Answer(output, "", tools, "TOOL_CALL", None, None, 67, 5, "I look it up.")
    assert streamed(*events, end("TOOL_CALL")) == found


def test_billed_tokens_are_counted_where_there_are_no_others() -> None:
    usage = {"billed_units": {"input_tokens": 7, "output_tokens": 3}}
    found = answer({**whole(content=[{"type": "text", "text": "Paris."}]), "usage": usage})
    assert (found.input_tokens, found.output_tokens) == (7, 3)


def test_an_answer_that_the_provider_withheld_is_an_output_of_its_own() -> None:
    assert answer({**whole(), "finish_reason": "ERROR_TOXIC"}).output == "[refusal] stopped: ERROR_TOXIC"


OLDER = {
    "response_id": "r-1",
    "generation_id": "g-1",
    "text": "Paris.",
    "chat_history": [{"role": "USER", "message": "capital?"}],
    "finish_reason": "COMPLETE",
    "meta": {
        "billed_units": {"input_tokens": 7, "output_tokens": 3},
        "tokens": {"input_tokens": 67, "output_tokens": 5},
    },
}
CALLS = [{"name": "weather", "parameters": {"to": 1, "city": "Oslo"}}]
OLDER_EVENTS = [
    {"event_type": "stream-start", "is_finished": False, "generation_id": "g-2"},
    {"event_type": "text-generation", "is_finished": False, "text": "Par"},
    {"event_type": "citation-generation", "is_finished": False, "citations": []},
    {"event_type": "text-generation", "is_finished": False, "text": "is."},
    {"event_type": "tool-calls-chunk", "is_finished": False, "tool_call_delta": {"index": 0, "name": "weather"}},
    {"event_type": "tool-calls-generation", "is_finished": False, "tool_calls": CALLS},
    {
        "event_type": "stream-end",
        "is_finished": True,
        "finish_reason": "COMPLETE",
        "response": {**OLDER, "tool_calls": CALLS, "generation_id": "g-2", "finish_reason": None},
    },
]


def test_an_older_answer_whole_and_streamed() -> None:
    assert older(OLDER) == Answer("Paris.", "Paris.", (), "COMPLETE", None, None, 67, 5)
    arguments = '{"city": "Oslo", "to": 1}'
    output, tools = f"Paris.\n[tool call] weather({arguments})", (ToolCall("weather", arguments),)
    found = older({**OLDER, "tool_calls": CALLS})
    assert found == Answer(output, "Paris.", tools, "COMPLETE", None, None, 67, 5)
    assert older_streamed(*OLDER_EVENTS) == found


def test_search_queries_are_what_a_model_said() -> None:
    queries = [{"text": "capital of France", "generation_id": "g-9"}]
    found = older({**OLDER, "text": "", "search_queries": queries})
    assert found.output == "[tool call] search(capital of France)"


# What is no answer


@pytest.mark.parametrize("kept", range(len(EVENTS)))
def test_a_stream_without_its_end_is_no_answer(kept: int) -> None:
    with pytest.raises(Unreadable, match="broke off"):
        streamed(*EVENTS[:kept])


@pytest.mark.parametrize("kept", range(len(OLDER_EVENTS)))
def test_an_older_stream_without_its_end_is_no_answer(kept: int) -> None:
    with pytest.raises(Unreadable, match="broke off"):
        older_streamed(*OLDER_EVENTS[:kept])


@pytest.mark.parametrize("reason", ["ERROR", "TIMEOUT", "USER_CANCEL"])
def test_a_generation_that_failed_is_no_answer(reason: str) -> None:
    with pytest.raises(Unreadable, match=f"a failure: {reason}"):
        answer({**whole(content=[{"type": "text", "text": "Par"}]), "finish_reason": reason})
    with pytest.raises(Unreadable, match=f"a failure: {reason}"):
        streamed(*EVENTS[:-1], end(reason))
    with pytest.raises(Unreadable, match=f"a failure: {reason}"):
        older({**OLDER, "finish_reason": reason})
    with pytest.raises(Unreadable, match=f"a failure: {reason}"):
        older_streamed({**OLDER_EVENTS[-1], "finish_reason": reason})


def test_an_error_in_the_last_event_is_no_answer() -> None:
    with pytest.raises(Unreadable, match="in an error: it broke"):
        streamed(*EVENTS[:-1], end(error="it broke"))


@pytest.mark.parametrize(
    ("url", "body", "content_type"),
    [
        (V2, b"", "application/json"),
        (V2, b"{}", "application/json"),
        (V2, b"[]", "application/json"),
        (V2, b'{"message": "invalid api token"}', "application/json"),
        (V2, b'{"id": "c-1", "message": {}}', "application/json"),
        (V2, b'{"finish_reason": "COMPLETE"}', "application/json"),
        (V2, sse(*EVENTS[:5], {"type": "content-delta", "index": 1, "delta": "Par"}, end()), SSE),
        (V2, sse(*EVENTS[:5], delta("tool-call-start", 0, tool_calls={"id": "x"}), end()), SSE),
        (V2, sse({"message": "stream failed", "type": "error"}), SSE),
        (V1, b"{}", "application/json"),
        (V1, b'{"message": "invalid api token"}', "application/json"),
        (V1, lines({"event_type": "stream-end", "finish_reason": "COMPLETE"}), LINES),
        (V1, lines({"event_type": "stream-error", "err": "it broke", "is_finished": True}), LINES),
    ],
)
def test_errors_and_fragments_are_never_answers(url: str, body: bytes, content_type: str) -> None:
    with pytest.raises(Unreadable):
        answer(body, content_type, url)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries({}, optional=dict.fromkeys(("content", "tool_plan", "tool_calls"), JSON))
EVENT = st.fixed_dictionaries(
    {"type": st.sampled_from([event["type"] for event in EVENTS]), "index": JSON},
    optional={"delta": JSON | st.fixed_dictionaries({"message": MESSAGE | JSON}), "id": JSON},
)
OLDER_FIELDS = ("text", "finish_reason", "tool_calls", "search_queries", "meta")


@given(JSON, MESSAGE, st.lists(EVENT | st.sampled_from(EVENTS), max_size=6), st.data())
def test_no_json_whatever_it_is_breaks_the_reading(content: Any, message: Any, events: list[Any], data: Any) -> None:
    for body in (content, whole(**message), {"message": content, "finish_reason": content, "usage": content}):
        with contextlib.suppress(Unreadable):
            answer(body)
    with contextlib.suppress(Unreadable):
        streamed(*events, end())
    said = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(OLDER_FIELDS, JSON)))
    for body in (content, {**OLDER, **said}):
        with contextlib.suppress(Unreadable):
            older(body)
        with contextlib.suppress(Unreadable):
            older_streamed({"event_type": "stream-end", "response": body})


@given(st.text(max_size=20), st.data())
def test_however_it_is_cut_a_stream_gives_the_whole_answer(text: str, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[begin:stop] for begin, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    events = [delta("content-delta", 0, content={"text": piece}) for piece in pieces]
    assert streamed(start(), *events, end()) == answer(whole(content=[{"type": "text", "text": text}]))
