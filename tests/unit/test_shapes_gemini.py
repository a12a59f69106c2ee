"""Gemini: which requests, what identifies one, what an answer says. The forms are those of google-genai."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.shapes import Answer, CannotOverride, ModelCall, Rules, Unreadable, read_answer, recognise
from pytest_llm_determinism.shapes.answer import ToolCall

HOST = "https://api.test"
MODEL = f"{HOST}/v1beta/models/gemini-2.0-flash"
CONTENTS = [{"parts": [{"text": "capital?"}], "role": "user"}]


def call(url: str = f"{MODEL}:generateContent", rules: Rules | None = None, /, **body: Any) -> ModelCall | None:
    return recognise("POST", url, json.dumps(body or {"contents": CONTENTS}).encode(), rules or Rules())


def answer(content: object, content_type: str = "application/json", method: str = "generateContent") -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_answer(call(f"{MODEL}:{method}"), body, content_type)


def sse(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\r\n\r\n" for event in events)


def streamed(*events: object) -> Answer:
    """The answer in a stream; server-sent events and a JSON list say the same."""
    found = answer(sse(*events), "text/event-stream", "streamGenerateContent")
    listed = ("[" + ",\r\n".join(json.dumps(event, indent=2) for event in events) + "\r\n]").encode()
    assert answer(listed, "application/json; charset=UTF-8", "streamGenerateContent") == found
    return found


def said(*parts: dict[str, Any], reason: str | None = "STOP", index: int = 0, **fields: Any) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": index}
    if reason is not None:
        candidate["finishReason"] = reason
    return {"candidates": [candidate], "modelVersion": "gemini-2.0-flash-001", "responseId": "r-1", **fields}


USAGE = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}


# Recognising


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("/v1beta/models/gemini-2.0-flash:generateContent", False),
        ("/v1beta/models/gemini-2.0-flash:generateContent?key=AIza", False),
        ("/v1/models/gemini-2.0-flash:streamGenerateContent?alt=sse", True),
        ("/v1/models/gemini-2.0-flash:streamGenerateContent", True),
        ("/v1/tunedModels/my-1:generateContent", False),
        ("/v1beta1/publishers/google/models/gemini-2.0-flash:generateContent", False),
        ("/v1beta1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent?alt=sse", True),
        ("/v1beta1/projects/p/locations/l/endpoints/123:generateContent", False),
        ("/gemini/v1beta/models/gemini-2.0-flash:generateContent", False),
    ],
)
def test_a_question_is_recognised_by_route_and_body(path: str, stream: bool) -> None:
    found = call(HOST + path)
    assert (found.family.name, found.stream) == ("generateContent", stream)


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("countTokens", {"contents": CONTENTS}),
        ("batchEmbedContents", {"requests": []}),
        ("generateContent", {"prompt": "capital?"}),
    ],
)
def test_what_asks_for_no_content_is_no_model_call(method: str, body: dict[str, Any]) -> None:
    assert call(f"{MODEL}:{method}", **body) is None


# What identifies a request


def test_the_key_in_the_url_is_no_part_of_the_question() -> None:
    one, other = (call(f"{MODEL}:generateContent?key={key}") for key in ("AIza-1", "AIza-2"))
    assert one.key == other.key
    assert "AIza" not in one.canonical


def second_step(run: str, order: str = "o-1", found: str = "found") -> list[dict[str, Any]]:
    """What a tool agent asks after the first answer; everything that has `run` in it is of the provider's making."""
    asked = {"id": f"call-{run}", "args": {"id": order}, "name": "look"}
    told = {"id": f"call-{run}", "name": "look", "response": {"id": found}}
    return [
        *CONTENTS,
        {"parts": [{"functionCall": asked, "thoughtSignature": f"sig-{run}"}], "role": "model"},
        {"parts": [{"functionResponse": told}], "role": "user"},
    ]


def test_the_second_step_of_a_tool_agent_is_the_same_question_in_every_run() -> None:
    def key(contents: list[dict[str, Any]]) -> str:
        return call(contents=contents).key

    assert key(second_step("a")) == key(second_step("b"))
    others = [second_step("a", order="o-2"), second_step("a", found="nothing")]
    assert len({key(contents) for contents in (second_step("a"), *others)}) == 3


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        ("/v1beta/models/gemini-2.0-flash:generateContent?key=x", "/v1beta/models/other-1:generateContent?key=x"),
        ("/v1/tunedModels/my-1:streamGenerateContent", "/v1/tunedModels/other-1:streamGenerateContent"),
        (
            "/v1/projects/p/locations/l/endpoints/12:generateContent",
            "/v1/projects/p/locations/l/endpoints/other-1:generateContent",
        ),
    ],
)
def test_the_model_is_overridden_in_the_url(path: str, changed: str) -> None:
    found = call(HOST + path, Rules(override={"model": "other-1"}))
    assert (found.url, json.loads(found.body)) == (HOST + changed, {"contents": CONTENTS})


def test_a_model_that_is_not_in_the_url_cannot_be_overridden() -> None:
    with pytest.raises(CannotOverride, match="generateContent has the model in its URL"):
        call(f"{HOST}/v1internal:generateContent", Rules(override={"model": "other"}))


def test_what_is_overridden_by_its_common_name_is_set_where_this_api_has_it() -> None:
    override = {"temperature": 0, "seed": 7, "top_p": 1, "max_tokens": 9, "stop": ["."], "logprobs": True}
    found = call(f"{MODEL}:generateContent", Rules(override=override), contents=CONTENTS, generationConfig={"topK": 3})
    assert json.loads(found.body)["generationConfig"] == {
        "topK": 3,
        "temperature": 0,
        "seed": 7,
        "topP": 1,
        "maxOutputTokens": 9,
        "stopSequences": ["."],
        "responseLogprobs": True,
    }


# Answers, whole and streamed


THOUGHT = {"text": "hm", "thought": True}
LOOK = {"functionCall": {"id": "call-1", "name": "look", "args": {"b": 1, "a": 2}}, "thoughtSignature": "c2ln"}


def test_an_answer_whole_and_streamed() -> None:
    stop = {"functionCall": {"name": "stop"}}
    whole = answer(said(THOUGHT, {"text": "Paris."}, LOOK, stop, usageMetadata=USAGE))
    parts = streamed(
        said(THOUGHT, reason=None, usageMetadata={"promptTokenCount": 7}),
        said({"text": "Par"}, reason=None),
        said({"text": "is."}, reason=None),
        said(LOOK, stop, reason=None),
        said({"text": ""}),
        said(reason=None, usageMetadata=USAGE),
    )
    calls = (ToolCall("look", '{"a": 2, "b": 1}'), ToolCall("stop", "{}"))
    output = 'Paris.\n[tool call] look({"a": 2, "b": 1})\n[tool call] stop({})'
    assert whole == Answer(output, "Paris.", calls, "STOP", "gemini-2.0-flash-001", None, 7, 3, "hm")
    assert parts == whole
    assert whole.id == parts.id == "r-1"


def test_several_candidates_are_all_part_of_the_output_in_order() -> None:
    one, other = said({"text": "a"}), said({"text": "b"}, index=1)
    both = {"candidates": [*other["candidates"], *one["candidates"]]}
    assert answer(both).output == "[choice 0] a\n[choice 1] b"
    parts = streamed(said({"text": "b"}, index=1), said({"text": "a"}, reason=None), said(reason="STOP"))
    assert parts.output == answer(both).output
    assert parts.finish_reason == "STOP,STOP"


def test_arguments_that_are_streamed_are_put_together_by_their_paths() -> None:
    def call(more: bool = True, **fields: Any) -> dict[str, Any]:
        return said({"functionCall": {**fields, "willContinue": True} if more else fields}, reason=None)

    def piece(path: str, **value: Any) -> dict[str, Any]:
        return {"jsonPath": path, **value}

    def read(*cut: str) -> Answer:
        return streamed(
            call(name="look", id="1"),
            *(call(partialArgs=[piece("$.city", stringValue=text, willContinue=True)]) for text in cut),
            call(partialArgs=[piece("$.days", numberValue=3), piece("$.sure", boolValue=True)]),
            call(more=False),
            said(LOOK),
        )

    expected = (
        ToolCall("look", '{"$.city": "Paris", "$.days": 3, "$.sure": true}'),
        ToolCall("look", '{"a": 2, "b": 1}'),
    )
    assert read("Par", "is").tool_calls == read("Paris").tool_calls == expected


def test_calls_of_the_providers_own_tools_are_part_of_the_output_and_their_results_are_not() -> None:
    found = answer(
        said(
            {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
            {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1\n"}},
            {"toolCall": {"toolType": "GOOGLE_SEARCH", "args": {"q": "x"}, "id": "t-1"}},
            {"toolResponse": {"toolType": "GOOGLE_SEARCH", "response": {"found": 1}, "id": "t-1"}},
            {"text": "It is 1."},
        )
    )
    assert found.output == 'It is 1.\n[tool call] code_execution(print(1))\n[tool call] GOOGLE_SEARCH({"q": "x"})'


def test_images_files_and_audio_stand_by_their_hashes_however_a_stream_cuts_the_audio() -> None:
    def inline(kind: str, data: bytes) -> dict[str, Any]:
        return {"inlineData": {"mimeType": kind, "data": base64.b64encode(data).decode()}}

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()[:16]

    file = {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/v.mp4"}}
    whole = answer(said({"text": "Here."}, inline("image/png", b"png"), file, inline("audio/L16;rate=24000", b"abcd")))
    assert whole.output.splitlines() == [
        "Here.",
        f"[image/png sha256:{digest(b'png')}]",
        f"[video/mp4 sha256:{digest(b'gs://b/v.mp4')}]",
        f"[audio/L16;rate=24000 sha256:{digest(b'abcd')}]",
    ]
    pieces = [said(inline("audio/L16", piece), reason=None) for piece in (b"a", b"bcd")]
    assert streamed(*pieces, said()).output == answer(said(inline("audio/L16", b"abcd"))).output


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "MALFORMED_FUNCTION_CALL"])
def test_an_answer_that_was_stopped_is_told_from_one_that_ended(reason: str) -> None:
    assert answer(said(reason=reason)).output == f"[refusal] stopped: {reason}"
    stopped = streamed(said({"text": "Par"}, reason=None), said(reason=reason))
    assert stopped.output == f"Par\n[refusal] stopped: {reason}"
    assert answer(said({"text": "Par"}, reason="MAX_TOKENS")).output == "Par"


def test_a_prompt_that_was_blocked_is_a_refusal() -> None:
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 7}}
    expected = Answer("[refusal] blocked: SAFETY", "", (), "SAFETY", None, None, 7, None)
    assert answer(blocked) == streamed(blocked) == expected


def test_an_empty_answer_that_ended_is_an_answer() -> None:
    assert answer({"candidates": [{"finishReason": "STOP"}]}).output == ""


# What is no answer


def test_a_stream_without_its_end_is_no_answer() -> None:
    events = [said({"text": "Par"}, reason=None), said({"text": "is."}, reason=None)]
    for cut in (events, [*events, said({"text": "b"}, index=1)], events[:1]):
        with pytest.raises(Unreadable, match="broke off"):
            streamed(*cut)
    with pytest.raises(Unreadable, match="broke off"):
        answer(b'[{"candidates": [{"content": {"parts": [', method="streamGenerateContent")


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent"])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b"null", "application/json"),
        (b"<html>", "text/html"),
        (b'{"candidates": []}', "application/json"),
        (b'{"candidates": [{}]}', "application/json"),
        (b'{"candidates": [{"index": 0}], "usageMetadata": {"promptTokenCount": 3}}', "application/json"),
        (b'{"candidates": ["Paris."]}', "application/json"),
        (b'{"candidates": [{"content": "Paris.", "finishReason": "STOP"}]}', "application/json"),
        (b'{"candidates": [{"content": {"parts": ["Paris."]}, "finishReason": "STOP"}]}', "application/json"),
        (b'{"promptFeedback": {}}', "application/json"),
        (b'{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}', "application/json"),
        (b'[{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}]', "application/json"),
        (sse(said({"text": "Par"}), {"error": {"code": 503}}), "text/event-stream"),
        (sse(), "text/event-stream"),
        (sse({"usageMetadata": USAGE}), "text/event-stream"),
        (
            sse(said({"inlineData": {"mimeType": "audio/L16", "data": "a"}})),
            "text/event-stream",
        ),
    ],
)
def test_errors_and_fragments_are_never_answers(body: bytes, content_type: str, method: str) -> None:
    with pytest.raises(Unreadable):
        answer(body, content_type, method)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KNOWN_PARTS = ("text", "thought", "functionCall", "toolCall", "executableCode", "inlineData", "fileData")
CALL = st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "args", "partialArgs", "willContinue"), JSON))
PART = st.dictionaries(st.sampled_from(KNOWN_PARTS), JSON | CALL, max_size=2)


@given(JSON, st.lists(PART | JSON, max_size=3), JSON)
def test_no_json_whatever_it_is_breaks_the_reading(content: Any, parts: list[Any], reason: Any) -> None:
    candidate = {"content": {"parts": parts}, "finishReason": reason, "index": content}
    bodies = (
        content,
        {"candidates": content, "promptFeedback": content},
        {"candidates": [content], "usageMetadata": content},
        {"candidates": [{"content": content, "finishReason": "STOP"}]},
        {"candidates": [candidate]},
    )
    for body in bodies:
        with contextlib.suppress(Unreadable):
            answer(body)
        with contextlib.suppress(Unreadable):
            streamed(body, body)
