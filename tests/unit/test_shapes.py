"""Which requests are model calls, what identifies one, and what an answer says."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.shapes import Answer, Rules, Unreadable, may_be_model_call, read_answer, recognise
from pytest_llm_determinism.shapes.answer import ToolCall

HOST = "https://api.test/v1"
CHAT = f"{HOST}/chat/completions"
MESSAGES = [{"role": "user", "content": "capital?"}]


def call(url: str = CHAT, /, **body: Any):
    return recognise("POST", url, json.dumps(body or {"messages": MESSAGES}).encode())


def key(url: str = CHAT, /, **body: Any) -> str:
    found = call(url, **body)
    assert found is not None
    return found.key


# Recognising


@pytest.mark.parametrize(
    ("path", "body", "family"),
    [
        ("/v1/chat/completions", {"messages": []}, "chat completions"),
        ("/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21", {"messages": []}, "chat completions"),
        ("/v1/chat/completions/", {"messages": []}, "chat completions"),
        ("/v1/completions", {"prompt": "Once"}, "completions"),
        ("/openai/deployments/davinci/completions", {"prompt": ["Once"]}, "completions"),
        ("/v1/responses", {"input": "Once"}, "responses"),
        ("/openai/v1/responses", {"prompt": {"id": "pmpt_1"}}, "responses"),
        ("/v1/messages", {"messages": [], "max_tokens": 1}, "messages"),
        ("/v1beta/models/gemini-2.0-flash:generateContent", {"contents": []}, "generateContent"),
        ("/v1/embeddings", {"input": "x"}, "embeddings"),
        ("/any/where", {"inputs": "x", "parameters": {}}, "text generation"),
    ],
)
def test_a_model_call_is_recognised_by_route_and_body_whatever_the_host(path: str, body: Any, family: str) -> None:
    for host in ("https://api.test", "http://127.0.0.1:8000", "http://[::1]:80"):
        found = recognise("POST", host + path, json.dumps(body).encode())
        assert found is not None
        assert found.family.name == family


@pytest.mark.parametrize(
    ("method", "url", "body"),
    [
        ("GET", CHAT, b'{"messages": []}'),
        ("POST", f"{HOST}/embeddings", b'{"data": "x"}'),
        ("POST", f"{HOST}/messages", b'{"messages": []}'),
        ("POST", f"{HOST}/models/m:countTokens", b'{"contents": []}'),
        ("POST", f"{HOST}/any/where", b'{"inputs": "x"}'),
        ("POST", f"{HOST}/moderations", b'{"input": "x"}'),
        ("POST", f"{HOST}/chat/completions/chatcmpl-1", b'{"messages": []}'),
        ("POST", f"{HOST}/responses/resp_1/cancel", b"{}"),
        ("POST", "https://forms.test/survey/responses", b'{"answers": []}'),
        ("POST", f"{HOST}/completions", b'{"text": "x"}'),
        ("POST", CHAT, b'{"messages": "none"}'),
        ("POST", CHAT, b""),
        ("POST", CHAT, b"not json"),
        ("POST", CHAT, b'["messages"]'),
        ("POST", CHAT, b"\xff\xfe"),
        ("POST", CHAT, b"[" * 100_000),
    ],
)
def test_everything_else_is_no_model_call(method: str, url: str, body: bytes) -> None:
    assert recognise(method, url, body) is None


def test_most_traffic_is_told_apart_without_looking_at_the_body() -> None:
    assert may_be_model_call("POST", "/v1/chat/completions/")
    assert may_be_model_call("POST", "/v1/embeddings")
    assert not may_be_model_call("GET", "/v1/chat/completions")
    assert not may_be_model_call("POST", "/v1/files", "multipart/form-data; boundary=x")


def test_only_a_request_that_says_so_asks_for_a_stream() -> None:
    assert [call(messages=[], stream=wanted).stream for wanted in (True, False, None)] == [True, False, False]


# What identifies a request


def test_the_order_of_keys_and_the_form_of_numbers_do_not_matter() -> None:
    first = recognise("POST", CHAT, b'{"temperature": 0, "messages": [{"role": "user", "content": "a"}]}')
    other = recognise("POST", CHAT, b'{"messages":[{"content":"\\u0061","role":"user"}],"temperature":0.0}')
    assert first.key == other.key


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": MESSAGES, "temperature": 0.1},
        {"messages": MESSAGES, "seed": 0},
        {"messages": MESSAGES, "stream": True},
        {"messages": MESSAGES, "logprobs": True},
        {"messages": MESSAGES, "model": "m"},
        {"messages": [{"role": "user", "content": "capital? "}]},
        {"messages": [{"role": "system", "content": "capital?"}]},
        {"messages": MESSAGES * 2},
    ],
)
def test_whatever_else_is_in_the_body_matters(changed: dict[str, Any]) -> None:
    assert key(messages=MESSAGES) != key(**changed)


def test_true_is_not_one_and_the_order_of_messages_matters() -> None:
    assert key(messages=[], n=1) != key(messages=[], n=True)
    assert key(messages=["a", "b"]) != key(messages=["b", "a"])


def tool_conversation(*ids: str) -> list[dict[str, Any]]:
    """A conversation in which the model called a tool once for each id, and got the results in the same order."""
    calls = [
        {"id": name, "type": "function", "function": {"name": "look", "arguments": f"{n}"}}
        for n, name in enumerate(ids)
    ]
    results = [{"role": "tool", "tool_call_id": name, "content": f"result {n}"} for n, name in enumerate(ids)]
    return [*MESSAGES, {"role": "assistant", "tool_calls": calls}, *results]


def test_ids_that_the_provider_made_are_renamed_by_order_of_appearance() -> None:
    assert key(messages=tool_conversation("call_a", "call_b")) == key(messages=tool_conversation("call_x", "call_y"))


def test_which_result_belongs_to_which_call_still_matters() -> None:
    straight, crossed = tool_conversation("a", "b"), tool_conversation("a", "b")
    crossed[-2]["tool_call_id"], crossed[-1]["tool_call_id"] = "b", "a"
    assert key(messages=straight) != key(messages=crossed)


def test_ids_of_the_responses_api_are_renamed_too() -> None:
    def items(name: str) -> list[dict[str, str]]:
        return [
            {"type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name}", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"call_{name}", "output": "found"},
        ]

    url = f"{HOST}/responses"
    assert key(url, input=items("1")) == key(url, input=items("2"))


def test_the_name_of_an_earlier_answer_is_kept_apart_from_the_question() -> None:
    one, other = (call(f"{HOST}/responses", input="go on", previous_response_id=name) for name in ("r_1", "r_2"))
    assert one.key == other.key
    assert (one.previous, other.previous) == ("r_1", "r_2")
    assert one.after("what led here").key == other.after("what led here").key
    assert one.after("what led here").key != one.after("something else").key


def test_an_id_in_the_data_of_a_tool_is_part_of_the_question() -> None:
    def used(kind: str, field: str, name: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": [{"type": kind, "id": "any", field: {"id": name}}]}]

    assert key(messages=used("tool_use", "input", "order-1")) != key(messages=used("tool_use", "input", "order-2"))
    assert key(messages=used("call", "arguments", "order-1")) != key(messages=used("call", "arguments", "order-2"))


def test_ids_outside_the_conversation_are_part_of_the_question() -> None:
    assert key(messages=[], metadata={"id": "1"}) != key(messages=[], metadata={"id": "2"})
    url = f"{HOST}/responses"
    assert key(url, prompt={"id": "pmpt_1"}) != key(url, prompt={"id": "pmpt_2"})


def test_no_secret_of_the_url_is_in_the_canonical_request_nor_changes_the_key() -> None:
    urls = [
        f"https://{user}api.test/v1/chat/completions?version=2{query}"
        for user, query in (("", "&key="), ("me:sk-secret@", "&key=sk-secret"), ("you@", "&key=sk-other"))
    ]
    found = [call(url) for url in urls]
    assert len({one.key for one in found}) == 1
    assert all("sk-" not in one.canonical and "@" not in one.canonical for one in found)


@pytest.mark.parametrize(
    "parameter", ["key", "API_KEY", "api-key", "access_token", "token", "sig", "code", "subscription-key"]
)
def test_a_parameter_that_carries_a_secret_keeps_its_name_alone(parameter: str) -> None:
    found = call(f"{CHAT}?{parameter}=sk-secret")
    assert "sk-secret" not in found.canonical
    assert found.key != key(CHAT)


def test_the_order_of_parameters_the_fragment_and_a_closing_slash_do_not_matter() -> None:
    assert len({key(f"{CHAT}{rest}") for rest in ("?a=1&b=2", "?b=2&a=1", "?a=1&b=2#stream", "/?a=1&b=2")}) == 1
    assert len({key(f"{CHAT}{rest}") for rest in ("", "?a=1", "?a=2", "?a=", "?b=1")}) == 5


def test_the_host_matters_unless_it_is_known_by_a_name() -> None:
    body = json.dumps({"messages": MESSAGES}).encode()
    named = [
        recognise(
            "POST", f"http://127.0.0.1:{port}/v1/chat/completions", body, Rules({f"http://127.0.0.1:{port}": "bundled"})
        )
        for port in (4001, 4002)
    ]
    assert named[0].key == named[1].key
    assert "bundled/v1/chat/completions" in named[0].canonical
    assert key("http://127.0.0.1:4001/v1/chat/completions") != key("http://127.0.0.1:4002/v1/chat/completions")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4), st.randoms())
def test_any_body_has_one_key_in_whatever_order_it_is_written(body: dict[str, Any], order: Any) -> None:
    items = [*{**body, "messages": MESSAGES}.items()]
    shuffled = order.sample(items, len(items))
    assert key(**dict(items)) == key(**dict(shuffled))


# Answers, whole and streamed


def answer(url: str, content: object, content_type: str = "application/json") -> Answer:
    asked = {"messages": [], "prompt": "", "input": ""}
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_answer(recognise("POST", url, json.dumps(asked).encode()), body, content_type)


def streamed(url: str, *events: object, end: bytes = b"data: [DONE]\n\n", newline: bytes = b"\n") -> Answer:
    lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + end
    return answer(url, lines.replace(b"\n", newline), "text/event-stream; charset=utf-8")


def message(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": "stop"}]}


def delta(reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"index": index, "delta": fields, "finish_reason": reason}]}


def function(name: str | None = None, arguments: str = "", index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "function": {"name": name, "arguments": arguments}, **fields}


def test_a_chat_answer() -> None:
    found = answer(
        CHAT,
        {
            **message(content="Paris."),
            "model": "m-1",
            "system_fingerprint": "fp",
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        },
    )
    assert found == Answer("Paris.", "Paris.", (), "stop", "m-1", "fp", 7, 3)


def test_a_streamed_chat_answer_is_the_whole_one() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    events = [delta(role="assistant", content=""), delta(content="Par"), delta(content="is."), delta("stop"), usage]
    expected = Answer("Paris.", "Paris.", (), "stop", "m-1", None, 7, 3)
    assert streamed(CHAT, *events) == streamed(CHAT, *events, newline=b"\r\n") == expected


def test_an_empty_answer_is_an_answer() -> None:
    assert answer(CHAT, message(content="")).output == answer(CHAT, message(content=None)).output == ""


def test_tool_calls_are_part_of_the_output_and_their_ids_are_not() -> None:
    def with_ids(first: str, second: str) -> Answer:
        calls = [
            {"id": first, "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}},
            {"id": second, "type": "custom", "custom": {"name": "say", "input": "hm"}},
        ]
        return answer(CHAT, message(content="Let me see.", tool_calls=calls))

    assert with_ids("a", "b").output == 'Let me see.\n[tool call] look({"at": 1})\n[tool call] say(hm)'
    assert with_ids("a", "b") == with_ids("x", "y")
    assert with_ids("a", "b").tool_calls == (ToolCall("look", '{"at": 1}'), ToolCall("say", "hm"))


def test_streamed_tool_calls_come_in_fragments() -> None:
    found = streamed(
        CHAT,
        delta(tool_calls=[function("look", "", id="call_1")]),
        delta(tool_calls=[function(arguments='{"at"')]),
        delta(tool_calls=[function("say", "{}", index=1, id="call_2")]),
        delta(tool_calls=[function(arguments=": 1}")]),
        delta("tool_calls"),
    )
    assert found.output == '[tool call] look({"at": 1})\n[tool call] say({})'
    assert found.finish_reason == "tool_calls"


def test_the_older_function_call_is_a_tool_call() -> None:
    asked = {"name": "look", "arguments": "{}"}
    whole = answer(CHAT, message(content=None, function_call=asked))
    parts = streamed(
        CHAT, delta(function_call={"name": "look", "arguments": "{"}), delta("stop", function_call={"arguments": "}"})
    )
    assert whole.tool_calls == parts.tool_calls == (ToolCall("look", "{}"),)


def test_a_refusal_is_an_output_of_its_own() -> None:
    whole = answer(CHAT, message(content=None, refusal="I cannot."))
    parts = streamed(CHAT, delta(refusal="I can"), delta("stop", refusal="not."))
    said = answer(CHAT, message(content="I cannot."))
    assert whole.output == parts.output == "[refusal] I cannot."
    assert said.output == "I cannot."


def test_several_choices_are_all_part_of_the_output() -> None:
    whole = {
        "choices": [{"index": n, "message": {"content": text}, "finish_reason": "stop"} for n, text in enumerate("ab")]
    }
    parts = [delta(content="b", index=1), delta(content="a"), delta("stop"), delta("stop", index=1)]
    assert answer(CHAT, whole).output == streamed(CHAT, *parts).output == "[choice 0] a\n[choice 1] b"
    assert answer(CHAT, whole).finish_reason == "stop,stop"


def test_the_order_in_which_a_server_lists_its_choices_means_nothing() -> None:
    choices = [{"index": n, "message": {"content": text}, "finish_reason": "stop"} for n, text in enumerate("ab")]
    assert answer(CHAT, {"choices": choices}).output == answer(CHAT, {"choices": choices[::-1]}).output


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "Par"}, {"type": "text", "text": "is."}, {"type": "image"}]
    assert answer(CHAT, message(content=parts)).text == "Paris."


def test_a_completion_whole_and_streamed() -> None:
    url = f"{HOST}/completions"
    choices = [{"index": 0, "text": " upon a time", "finish_reason": "length"}]
    whole = answer(url, {"model": "m", "choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 3}})
    parts = streamed(
        url,
        {"model": "m", "choices": [{"index": 0, "text": " upon", "finish_reason": None}]},
        {"model": "m", "choices": [{"index": 0, "text": " a time", "finish_reason": "length"}]},
    )
    assert whole == Answer(" upon a time", " upon a time", (), "length", "m", None, 1, 3)
    assert (parts.output, parts.finish_reason) == (whole.output, "length")


def response(status: str = "completed", **fields: Any) -> dict[str, Any]:
    items = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "content": [{"type": "output_text", "text": "Paris."}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": "{}"},
    ]
    return {"object": "response", "status": status, "model": "m", "output": items, **fields}


def test_a_response_whole_and_streamed() -> None:
    url = f"{HOST}/responses"
    body = response(usage={"input_tokens": 7, "output_tokens": 3})
    whole = answer(url, body)
    events = ({"type": "response.output_text.delta", "delta": "Par"}, {"type": "response.completed", "response": body})
    assert whole.output == "Paris.\n[tool call] look({})"
    assert (whole.finish_reason, whole.input_tokens, whole.output_tokens) == ("completed", 7, 3)
    assert streamed(url, *events, end=b"") == whole


def test_a_response_that_hit_its_limit_says_so() -> None:
    url = f"{HOST}/responses"
    body = response("incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert answer(url, body).finish_reason == "max_output_tokens"
    assert streamed(url, {"type": "response.incomplete", "response": body}).finish_reason == "max_output_tokens"


def test_audio_and_images_stand_by_their_hash_however_they_are_cut() -> None:
    def audio(*pieces: bytes) -> list[dict[str, Any]]:
        return [delta(audio={"data": base64.b64encode(piece).decode()}) for piece in pieces]

    sound = {"id": "audio_1", "data": base64.b64encode(b"sound").decode(), "transcript": "Hi."}
    whole = answer(CHAT, message(content=None, audio=sound))
    said = delta("stop", audio={"transcript": "Hi."})
    assert whole.output == "Hi.\n[audio sha256:dd29442deca69f52]"
    assert streamed(CHAT, *audio(b"s", b"ound"), said) == streamed(CHAT, *audio(b"sou", b"nd"), said)
    assert streamed(CHAT, *audio(b"sou", b"nd"), said).output == whole.output
    assert streamed(CHAT, *audio(b"noise"), said).output != whole.output

    def image(*urls: str) -> str:
        return answer(CHAT, message(content=[{"type": "image_url", "image_url": {"url": url}} for url in urls])).output

    assert image("data:image/png;base64,c291bmQ=") == "[image/png sha256:dd29442deca69f52]"
    assert len({image("https://x.test/1"), image("https://x.test/2"), image("data:image/png;base64,AAAA")}) == 3
    drawn = response()
    drawn["output"].append({"type": "image_generation_call", "id": "ig_1", "result": "c291bmQ="})
    assert "[image sha256:dd29442deca69f52]" in answer(f"{HOST}/responses", drawn).output


def test_reasoning_is_kept_and_is_no_part_of_the_output() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "France."}]}
    for whole in (
        message(content="Paris.", reasoning_content="France."),
        message(content="Paris.", reasoning="France."),
        message(content=[thought, {"type": "text", "text": "Paris."}]),
    ):
        assert (answer(CHAT, whole).output, answer(CHAT, whole).reasoning) == ("Paris.", "France.")
    parts = streamed(CHAT, delta(reasoning_content="Fra"), delta(reasoning="nce."), delta("stop", content="Paris."))
    assert (parts.output, parts.reasoning) == ("Paris.", "France.")
    summary = [{"type": "summary_text", "text": "France."}]
    items = [{"type": "reasoning", "id": "rs_1", "summary": summary}, *response()["output"][1:]]
    assert answer(f"{HOST}/responses", {**response(), "output": items}).reasoning == "France."


# What is no answer


def test_a_stream_needs_its_end_marker_or_a_finish_reason() -> None:
    assert streamed(CHAT, delta(content="Par"), delta("stop"), end=b"").text == "Par"
    assert streamed(CHAT, delta(content="Par")).text == "Par"
    with pytest.raises(Unreadable, match="broke off"):
        streamed(CHAT, delta(content="Par"), end=b"")


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"<html><body>502 Bad Gateway</body></html>", "text/html"),
        (b"<html>", "application/json"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b"null", "application/json"),
        (b'{"choices": [], "output": null}', "application/json"),
        (b'{"error": {"message": "overloaded"}}', "application/json"),
        (b'{"error": {"message": "overloaded"}, "choices": [], "output": []}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"", "text/event-stream"),
        (b": keep-alive\n\n", "text/event-stream"),
        (b"data: [DONE]\n\n", "text/event-stream"),
        (b'data: {"choices"', "text/event-stream"),
        (b"data: oops\n\ndata: [DONE]\n\n", "text/event-stream"),
        (b'data: {"error": {"message": "overloaded"}}\n\ndata: [DONE]\n\n', "text/event-stream"),
        (b'event: error\ndata: {"type": "error", "message": "overloaded"}\n\n', "text/event-stream"),
        (b'data: {"type": "response.failed", "response": {}}\n\n', "text/event-stream"),
    ],
)
def test_errors_and_fragments_are_never_answers(path: str, body: bytes, content_type: str) -> None:
    with pytest.raises(Unreadable):
        answer(f"{HOST}/{path}", body, content_type)


@pytest.mark.parametrize("status", ["failed", "cancelled", "queued", "in_progress"])
def test_a_response_that_did_not_get_through_is_no_answer(status: str) -> None:
    with pytest.raises(Unreadable, match=status):
        answer(f"{HOST}/responses", response(status))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("chat/completions", {"choices": ["Paris."]}),
        ("chat/completions", {"choices": [{"message": "Paris."}]}),
        ("chat/completions", {"choices": 3}),
        ("chat/completions", {"choices": [{"message": {"tool_calls": ["look"]}}]}),
        ("completions", {"choices": [None]}),
        ("responses", {"output": ["Paris."]}),
        ("responses", {"output": [{"type": "message", "content": ["Paris."]}]}),
        ("responses", {"output": [{"type": "message", "content": 3}]}),
    ],
)
def test_json_of_a_foreign_form_is_no_answer(path: str, content: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        answer(f"{HOST}/{path}", content)


@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("chat/completions", {"choices": [None]}),
        ("chat/completions", {"choices": [{"index": {}, "delta": {"content": "a"}}]}),
        ("chat/completions", {"choices": [{"delta": {"tool_calls": [3]}}]}),
        ("completions", {"choices": ["a"]}),
        ("responses", {"type": "response.completed"}),
        ("responses", {"type": "response.completed", "response": "Paris."}),
    ],
)
def test_events_of_a_foreign_form_are_no_answer(path: str, event: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        streamed(f"{HOST}/{path}", event)


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@given(content=JSON)
def test_no_json_whatever_it_is_breaks_the_reading(path: str, content: Any) -> None:
    for body in (content, {"choices": content, "output": content}, {"choices": [content], "output": [content]}):
        with contextlib.suppress(Unreadable):
            answer(f"{HOST}/{path}", body)
