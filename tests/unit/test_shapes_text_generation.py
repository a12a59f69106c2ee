"""Text generation of Hugging Face: told by the body, whatever the URL. The forms are those of huggingface_hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.shapes import (
    Answer,
    CannotOverride,
    ModelCall,
    Rules,
    Unreadable,
    may_be_model_call,
    read_answer,
    recognise,
)

URL = "https://api.test/models/gpt2"
QUESTION = {"inputs": "capital?", "parameters": {}}


def call(url: str = URL, rules: Rules | None = None, /, **body: Any) -> ModelCall | None:
    return recognise("POST", url, json.dumps(body or QUESTION).encode(), rules or Rules())


def answer(content: object, content_type: str = "application/json", **asked: Any) -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_answer(call(URL, **QUESTION, **asked), body, content_type)


def sse(*events: object) -> bytes:
    return b"".join(b"data:" + json.dumps(event).encode() + b"\n\n" for event in events)


def streamed(*events: object) -> Answer:
    """The answer in a stream; server-sent events and JSON lines say the same."""
    found = answer(sse(*events), "text/event-stream", stream=True)
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    assert answer(lines, "application/jsonlines", stream=True) == found
    return found


def token(text: str, special: bool = False, generated: str | None = None, **details: Any) -> dict[str, Any]:
    return {
        "index": 1,
        "token": {"id": 1, "text": text, "logprob": -0.1, "special": special},
        "generated_text": generated,
        "details": details or None,
    }


DETAILS = {"finish_reason": "eos_token", "generated_tokens": 3, "seed": None, "input_length": 7}


# Recognising


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/",
        "http://127.0.0.1:8080/generate",
        "https://router.test/hf-inference/models/org/name",
        "https://runtime.test/endpoints/mine/invocations",
    ],
)
@pytest.mark.parametrize(
    ("body", "stream"),
    [
        ({"inputs": "capital?", "parameters": {"max_new_tokens": 5, "seed": 3}}, False),
        ({"inputs": "capital?", "parameters": {"details": True}, "stream": True}, True),
        ({"inputs": ["capital?", "river?"], "parameters": {}}, False),
    ],
)
def test_it_is_recognised_by_its_body_whatever_the_url(url: str, body: dict[str, Any], stream: bool) -> None:
    found = call(url, **body)
    assert (found.family.name, found.stream) == ("text generation", stream)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "capital?"},
        {"parameters": {}},
        {"inputs": "capital?", "parameters": None},
        {"inputs": [], "parameters": {}},
        {"inputs": {"branch": "main"}, "parameters": {}},
        {"inputs": [{"name": "x", "data": [1]}], "parameters": {}},
    ],
)
def test_other_bodies_are_no_model_calls(body: dict[str, Any]) -> None:
    assert call(**body) is None


def test_only_what_calls_itself_json_is_looked_at() -> None:
    assert may_be_model_call("POST", "/anything", "application/json; charset=utf-8")
    assert not may_be_model_call("POST", "/anything", "application/x-www-form-urlencoded")
    assert not may_be_model_call("POST", "/anything")
    assert not may_be_model_call("GET", "/anything", "application/json")


def test_an_api_with_a_route_of_its_own_keeps_its_name() -> None:
    found = call("https://api.test/v1/chat/completions", messages=[], inputs="x", parameters={})
    assert found.family.name == "chat completions"


# What identifies a request


def test_every_parameter_is_part_of_the_question() -> None:
    keys = {call(inputs="x", parameters=parameters).key for parameters in ({}, {"seed": 1}, {"seed": 2})}
    assert len(keys) == 3
    assert call(inputs="x", parameters={"top_p": 1.0}).key == call(parameters={"top_p": 1}, inputs="x").key


def test_what_is_overridden_by_its_common_name_is_set_where_this_api_has_it() -> None:
    override = {"temperature": 0.1, "seed": 7, "max_tokens": 9, "stop": ["."]}
    found = call(URL, Rules(override=override), inputs="x", parameters={"top_k": 1})
    assert json.loads(found.body) == {
        "inputs": "x",
        "parameters": {"top_k": 1, "temperature": 0.1, "seed": 7, "max_new_tokens": 9, "stop": ["."]},
    }


def test_the_model_cannot_be_overridden_since_the_url_is_anything() -> None:
    with pytest.raises(CannotOverride, match="text generation has the model in its URL"):
        call(URL, Rules(override={"model": "other"}), **QUESTION)


# Answers, whole and streamed


def test_a_text_whole_and_streamed() -> None:
    whole = answer([{"generated_text": "Paris.", "details": DETAILS}])
    parts = streamed(token("Par"), token("is."), token("</s>", True, "Paris.", **DETAILS))
    assert whole == Answer("Paris.", "Paris.", (), "eos_token", None, None, 7, 3)
    assert parts == whole
    assert answer({"generated_text": "Paris.", "details": DETAILS}) == whole


def test_without_details_there_is_the_text_alone() -> None:
    expected = Answer("Paris.", "Paris.")
    assert answer([{"generated_text": "Paris."}]) == answer({"generated_text": "Paris."}) == expected
    assert streamed(token("Paris"), token(".", generated="Paris.")) == expected


def test_a_stream_that_does_not_repeat_its_text_is_read_by_its_tokens_without_special_ones() -> None:
    ended = streamed(token("Par"), token("is."), token("</s>", True, finish_reason="length", generated_tokens=3))
    assert (ended.text, ended.finish_reason) == ("Paris.", "length")
    marked = sse(token("Par"), token("is.")) + b"data: [DONE]\n\n"
    assert answer(marked, "text/event-stream").text == "Paris."


def test_several_texts_are_all_part_of_the_output() -> None:
    expected = "[choice 0] Paris.\n[choice 1] Seine."
    flat = [{"generated_text": "Paris."}, {"generated_text": "Seine."}]
    assert answer(flat).output == answer([[text] for text in flat]).output == answer([flat]).output == expected


def test_an_empty_text_is_an_answer() -> None:
    assert answer([{"generated_text": ""}]) == streamed(token("</s>", True, "")) == Answer("", "")


def test_a_conversation_is_compared_as_json() -> None:
    said = [{"role": "user", "content": "capital?"}, {"content": "Paris.", "role": "assistant"}]
    assert json.loads(answer([{"generated_text": said}]).output) == said


@pytest.mark.parametrize(
    "content",
    [
        [[{"label": "POSITIVE", "score": 0.9}, {"label": "NEGATIVE", "score": 0.1}]],
        [{"summary_text": "Short."}],
        {"answer": "Paris", "score": 0.9, "start": 0, "end": 5},
        {"labels": ["a"], "scores": [0.5]},
        [0.0, 0.25],
        [[0.0, -0.5]],
        [[[0.5]], [[0.0]]],
        [{"generated_text": "Paris."}, {"summary_text": "Short."}],
    ],
)
def test_the_answer_to_another_task_is_compared_as_the_json_it_is(content: Any) -> None:
    found = answer(content)
    assert found.output == json.dumps(content, sort_keys=True)
    assert found == Answer(found.output, found.output)


@pytest.mark.parametrize("kind", ["image/jpeg", "audio/flac", "video/mp4"])
def test_media_stand_by_their_hash(kind: str) -> None:
    data = b"\x89\xff\x00media"
    expected = f"[{kind} sha256:{hashlib.sha256(data).hexdigest()[:16]}]"
    assert answer(data, f"{kind}; q=1") == Answer(expected, "")


# What is no answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"", "image/jpeg"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b"[{}]", "application/json"),
        (b"[[]]", "application/json"),
        (b"[null]", "application/json"),
        (b"null", "application/json"),
        (b"true", "application/json"),
        (b'"Paris."', "application/json"),
        (b"<html>", "text/html"),
        (b"not found", "text/plain"),
        (b'{"error": "Model gpt2 is currently loading", "estimated_time": 20}', "application/json"),
        (b'[{"error": "overloaded", "error_type": "overloaded"}]', "application/json"),
        (b'[{"generated_text": null}]', "application/json"),
        (sse(token("Par"), token("is.")), "text/event-stream"),
        (sse(token("Par"), {"error": "overloaded", "error_type": "overloaded"}), "text/event-stream"),
        (sse({"choices": [{"delta": {"content": "Par"}, "finish_reason": "stop"}]}), "text/event-stream"),
        (sse(), "text/event-stream"),
        (b"data: [DONE]\n\n", "text/event-stream"),
        (b'data:{"token": "Par', "text/event-stream"),
    ],
)
def test_errors_and_fragments_are_never_answers(body: bytes, content_type: str, stream: bool) -> None:
    with pytest.raises(Unreadable):
        answer(body, content_type, stream=stream)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ITEM = st.fixed_dictionaries({}, optional=dict.fromkeys(("generated_text", "details", "token"), JSON))


@given(JSON | st.lists(ITEM, max_size=3))
def test_no_json_whatever_it_is_breaks_the_reading(content: Any) -> None:
    for body in (content, [content], {"generated_text": content, "details": content}):
        with contextlib.suppress(Unreadable):
            answer(body)
        with contextlib.suppress(Unreadable):
            streamed(body)
