"""Ollama's API: which requests, what identifies one, what an answer says. The forms are those the SDK exchanges."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.shapes import Answer, ModelCall, Rules, Unreadable, read_answer, recognise
from pytest_llm_determinism.shapes.answer import ToolCall, medium

HOST = "http://127.0.0.1:11434"
CHAT, GENERATE = f"{HOST}/api/chat", f"{HOST}/api/generate"
LINES = "application/x-ndjson"
MESSAGES = [{"role": "user", "content": "capital?"}]
ASKED = {"model": "llama3", "messages": MESSAGES, "tools": []}


def call(url: str = CHAT, rules: Rules | None = None, /, **body: Any) -> ModelCall | None:
    return recognise("POST", url, json.dumps(body or ASKED).encode(), rules or Rules())


def answer(body: bytes, content_type: str = "application/json", stream: bool = False) -> Answer:
    return read_answer(call(**ASKED, stream=stream), body, content_type)


def whole(content: object) -> Answer:
    return answer(json.dumps(content).encode())


def lines(*events: object) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def streamed(*events: object) -> Answer:
    return answer(lines(*events), LINES, stream=True)


# Recognising


@pytest.mark.parametrize(
    ("url", "body", "stream"),
    [
        (CHAT, {**ASKED, "stream": False}, False),
        (CHAT, {**ASKED, "stream": True}, True),
        (CHAT, ASKED, True),
        (CHAT, {**ASKED, "stream": None}, True),
        (GENERATE, {"model": "llama3", "prompt": "capital?", "stream": False}, False),
        (GENERATE, {"model": "llama3", "prompt": "capital?"}, True),
        ("https://proxy.test/ollama/api/chat/", {**ASKED, "stream": False}, False),
    ],
)
def test_a_request_streams_unless_it_says_no(url: str, body: dict[str, Any], stream: bool) -> None:
    found = call(url, **body)
    assert (found.family.name, found.stream) == ("Ollama", stream)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, {"messages": MESSAGES}),
        (CHAT, {"messages": MESSAGES, "model": None}),
        (CHAT, {"messages": MESSAGES, "model": {"id": "llama3"}}),
        (CHAT, {"model": "llama3", "message": "capital?"}),
        (CHAT, {"model": "llama3", "messages": [], "keep_alive": 0}),
        (GENERATE, {"model": "llama3", "prompt": ""}),
        (GENERATE, {"model": "llama3", "keep_alive": "10m"}),
        (GENERATE, {"prompt": "capital?"}),
        (f"{HOST}/api/show", {"model": "llama3"}),
        (f"{HOST}/api/embed", {"model": "llama3", "input": "capital?"}),
        (f"{HOST}/api/pull", {"model": "llama3"}),
    ],
)
def test_an_applications_own_route_and_the_loading_of_a_model_are_no_model_calls(
    url: str, body: dict[str, Any]
) -> None:
    assert call(url, **body) is None


# What identifies a request


def second_step(name: str, city: str = "Oslo", found: str = "sunny") -> list[dict[str, Any]]:
    """What a tool agent asks after the first answer; newer servers name the calls."""
    function = {"name": "weather", "arguments": {"city": city}}
    return [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [{"id": name, "function": function}]},
        {"role": "tool", "tool_name": "weather", "tool_call_id": name, "content": found},
    ]


def test_the_second_step_of_a_tool_agent_is_the_same_question_in_every_run() -> None:
    def key(messages: list[dict[str, Any]]) -> str:
        return call(**{**ASKED, "messages": messages}).key

    assert key(second_step("call_a")) == key(second_step("call_b"))
    others = [second_step("call_a", city="Rome"), second_step("call_a", found="rain")]
    assert len({key(messages) for messages in (second_step("call_a"), *others)}) == 3


def test_an_override_by_the_common_name_is_set_where_this_api_has_it() -> None:
    rules = Rules(override={"model": "m2", "temperature": 1, "seed": 7, "max_tokens": 5, "stop": ["."], "think": False})
    found = call(CHAT, rules, **ASKED, stream=False, options={"seed": 1, "num_ctx": 10})
    assert json.loads(found.body) == {
        **ASKED,
        "model": "m2",
        "stream": False,
        "think": False,
        "options": {"seed": 7, "num_ctx": 10, "temperature": 1, "num_predict": 5, "stop": ["."]},
    }


# Answers, whole and streamed


PNG = "iVBORw0KGgo="
FUNCTION = {"name": "weather", "arguments": {"to": "x", "city": "Åre"}}


def event(text: str = "", at: str = "2026-01-01T00:00:00.1Z", **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **fields.pop("message", {})}
    return {"model": "llama3", "created_at": at, "message": message, "done": False, **fields}


def end(seconds: int = 1) -> dict[str, Any]:
    """The fields of an answer's end; those that measure time differ in every answer."""
    return {
        "done": True,
        "done_reason": "stop",
        "total_duration": seconds * 1001,
        "load_duration": seconds * 7,
        "prompt_eval_count": 11,
        "prompt_eval_duration": seconds * 13,
        "eval_count": 4,
        "eval_duration": seconds * 17,
    }


MESSAGE = {"thinking": "hm, hm", "images": [PNG], "tool_calls": [{"id": "call_1", "function": FUNCTION}]}
WHOLE = event("Paris.", message=MESSAGE, **end())
EVENTS = [
    event(message={"thinking": "hm, "}),
    event(message={"thinking": "hm"}),
    event("Par", at="2026-01-01T00:00:00.2Z"),
    event("is."),
    event(message={"images": [PNG]}),
    event(message={"tool_calls": [{"id": "call_2", "function": FUNCTION}]}),
    event(at="2026-01-01T00:00:00.3Z", **end(3)),
]


def test_a_message_whole_and_streamed() -> None:
    arguments = '{"city": "Åre", "to": "x"}'
    output = f"Paris.\n{medium('image', PNG)}\n[tool call] weather({arguments})"
    expected = Answer(
        output, "Paris.", (ToolCall("weather", arguments),), "stop", "llama3", None, 11, 4, reasoning="hm, hm"
    )
    assert whole(WHOLE) == expected
    assert streamed(*EVENTS) == expected


def test_a_generated_text_whole_and_streamed() -> None:
    def piece(**fields: Any) -> dict[str, Any]:
        return {"model": "llama3", "created_at": "2026-01-01T00:00:00Z", "response": "", "done": False, **fields}

    expected = Answer("Paris.", "Paris.", (), "stop", "llama3", None, 11, 4, reasoning="hm")
    assert whole(piece(response="Paris.", thinking="hm", context=[1, 2], **end())) == expected
    events = [piece(thinking="hm"), piece(response="Par"), piece(response="is."), piece(context=[1, 2], **end(2))]
    assert streamed(*events) == expected


def test_a_generated_image_is_an_output() -> None:
    assert whole({"model": "m", "image": PNG, "done": True}).output == medium("image", PNG)


def test_a_stream_that_calls_itself_plain_json_is_read_too() -> None:
    assert answer(lines(*EVENTS), "application/json", stream=True) == whole(WHOLE)


def test_an_empty_answer_is_an_answer() -> None:
    assert whole(event("", **end())).output == streamed(event("", **end())).output == ""


# What is no answer


@pytest.mark.parametrize("content_type", [LINES, "application/json"])
@pytest.mark.parametrize("kept", range(len(EVENTS)))
def test_a_stream_without_its_end_is_no_answer(kept: int, content_type: str) -> None:
    with pytest.raises(Unreadable, match="broke off" if kept or content_type == LINES else "empty response"):
        answer(lines(*EVENTS[:kept]), content_type, stream=True)


def test_a_whole_answer_that_is_not_done_is_no_answer() -> None:
    with pytest.raises(Unreadable, match="broke off"):
        whole(event("Paris."))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", LINES),
        (b"{}", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b'{"done": true}', "application/json"),
        (b'{"done": "true", "message": {"content": "Paris."}}', "application/json"),
        (b'{"done": true, "message": "Paris."}', "application/json"),
        (b'{"done": true, "message": {"content": ["Paris."]}}', "application/json"),
        (b'{"reply": "Paris."}', "application/json"),
        (b'{"error": "model \'llama3\' not found"}', "application/json"),
        (lines(EVENTS[2], {"error": "an error was encountered while running the model"}, *EVENTS[3:]), LINES),
        (lines(event("Paris.", **end()))[:-20], LINES),
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
FIELDS = ("content", "thinking", "images", "image", "tool_calls")
EVENT = st.fixed_dictionaries(
    {"done": JSON | st.just(True)},
    optional={"response": JSON, "message": JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON))},
)


@given(JSON | EVENT, st.lists(EVENT | JSON | st.sampled_from(EVENTS), max_size=5))
def test_no_json_whatever_it_is_breaks_the_reading(content: Any, events: list[Any]) -> None:
    with contextlib.suppress(Unreadable):
        whole(content)
    with contextlib.suppress(Unreadable):
        streamed(*events)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.data())
def test_however_it_is_cut_a_stream_gives_the_whole_answer(text: str, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [event(text[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert streamed(*pieces, event(**end(2))) == whole(event(text, **end()))
