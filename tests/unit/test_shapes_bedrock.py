"""Amazon Bedrock, both APIs: which requests, what identifies one, what an answer says, as its clients exchange them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import amazon
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.observe import active, exchanges
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.sampling import Plan, Sampler
from pytest_llm_determinism.shapes import Answer, ModelCall, Rules, Unreadable, read_answer, recognise
from pytest_llm_determinism.shapes.answer import ToolCall, medium

HOST = "https://bedrock-runtime.us-east-1.amazonaws.com"
MODEL = f"{HOST}/model/anthropic.claude-3%3A0"
CONVERSE, INVOKE = f"{MODEL}/converse", f"{MODEL}/invoke"
MESSAGES = [{"role": "user", "content": [{"text": "capital?"}]}]
QUESTION = {"messages": MESSAGES, "inferenceConfig": {"temperature": 0.0, "maxTokens": 10}}
CLAUDE = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}


def call(url: str = CONVERSE, rules: Rules | None = None, /, **body: Any) -> ModelCall | None:
    return recognise("POST", url, json.dumps(body or QUESTION).encode(), rules or Rules())


def answer(content: object, url: str = CONVERSE, content_type: str = "application/json") -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_answer(call(url), body, content_type)


def streamed(*events: dict[str, Any]) -> Answer:
    return answer(amazon.event_stream(events), f"{MODEL}/converse-stream", amazon.CONTENT_TYPE)


def invoked(content: object) -> Answer:
    return answer(content, INVOKE)


def invoked_streamed(*events: Any) -> Answer:
    return answer(amazon.chunks(events), f"{MODEL}/invoke-with-response-stream", amazon.CONTENT_TYPE)


# Recognising


@pytest.mark.parametrize(
    ("url", "name", "stream"),
    [
        (CONVERSE, "Bedrock converse", False),
        (f"{MODEL}/converse-stream", "Bedrock converse", True),
        (INVOKE, "Bedrock invoke", False),
        (f"{MODEL}/invoke-with-response-stream", "Bedrock invoke", True),
        ("http://127.0.0.1:80/proxy/bedrock/model/m/converse", "Bedrock converse", False),
        (f"{HOST}/openai/v1/chat/completions", "chat completions", False),
    ],
)
def test_a_model_call_is_recognised_by_its_route(url: str, name: str, stream: bool) -> None:
    found = call(url, **QUESTION)
    assert (found.family.name, found.stream) == (name, stream)


def test_the_body_of_invoke_is_the_providers_own() -> None:
    for body in (CLAUDE, {"prompt": "hi"}, {"inputText": "hi"}, {"inputs": "hi", "parameters": {}}):
        assert call(INVOKE, **body).family.name == "Bedrock invoke"


@pytest.mark.parametrize(
    "url",
    [
        f"{MODEL}/count-tokens",
        f"{MODEL}/invoke-with-bidirectional-stream",
        f"{HOST}/async-invoke",
        f"{HOST}/guardrail-checks/invoke",
        f"{HOST}/guardrail/g/version/1/apply",
        "http://127.0.0.1:80/chain/invoke",
        "http://127.0.0.1:80/model/invoke",
        "http://127.0.0.1:80/converse",
    ],
)
def test_everything_else_is_no_model_call(url: str) -> None:
    assert call(url, **QUESTION) is None


# What identifies a request


@pytest.mark.parametrize(
    "ids",
    [
        ("anthropic.claude-3%3A0", "anthropic.claude-3:0", "anthropic.claude-3%3a0"),
        (
            "arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fus.a.b-v1%3A0",
            "arn:aws:bedrock:us-east-1:1:inference-profile%2Fus.a.b-v1:0",
            "arn:aws:bedrock:us-east-1:1:inference-profile/us.a.b-v1:0",
        ),
    ],
)
def test_the_key_is_the_same_however_a_client_quotes_the_model(ids: tuple[str, ...]) -> None:
    assert len({call(f"{HOST}/model/{model}/converse").key for model in ids}) == 1
    assert call(f"{HOST}/model/{ids[0]}/converse").key != call(f"{HOST}/model/another/converse").key


def second_step(run: str, city: str = "o-1", found: str = "sunny", thinking: str = "hm") -> dict[str, Any]:
    """What a tool agent asks after the first answer; everything that has `run` in it is of the provider's making."""
    said = [
        {"reasoningContent": {"reasoningText": {"text": thinking, "signature": f"sig-{run}"}}},
        {"reasoningContent": {"redactedContent": f"opaque-{run}"}},
        {"toolUse": {"toolUseId": f"tooluse_{run}", "name": "weather", "input": {"id": city}}},
    ]
    result = {"toolUseId": f"tooluse_{run}", "content": [{"json": {"id": found}}], "status": "success"}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": said},
        {"role": "user", "content": [{"toolResult": result}]},
    ]
    return {**QUESTION, "messages": messages}


def test_the_second_step_of_a_tool_agent_is_the_same_question_in_every_run() -> None:
    assert call(**second_step("a")).key == call(**second_step("b")).key
    others = [second_step("a", city="o-2"), second_step("a", found="rain"), second_step("a", thinking="ha")]
    assert len({call(**body).key for body in (second_step("a"), *others)}) == 4


OVERRIDE = {"model": "amazon.nova:1", "temperature": 1, "top_p": 0.5, "max_tokens": 5, "stop": ["."]}


def test_an_override_by_the_common_name_is_set_where_this_api_has_it() -> None:
    found = call(CONVERSE, Rules(override=OVERRIDE), **QUESTION)
    config = {"temperature": 1, "topP": 0.5, "maxTokens": 5, "stopSequences": ["."]}
    assert found.url == f"{HOST}/model/amazon.nova%3A1/converse"
    assert json.loads(found.body) == {"messages": MESSAGES, "inferenceConfig": config}
    found = call(INVOKE, Rules(override={"model": "m2", "temperature": 1}), **CLAUDE)
    assert (found.url, json.loads(found.body)) == (f"{HOST}/model/m2/invoke", {**CLAUDE, "temperature": 1})


@pytest.mark.parametrize(("url", "name"), [(CONVERSE, "Bedrock converse"), (INVOKE, "Bedrock invoke")])
def test_an_override_is_refused_where_the_client_signed_the_request(
    monkeypatch: pytest.MonkeyPatch, url: str, name: str
) -> None:
    rules = Rules(override={"temperature": 1})
    plan = Plan("burst", 0, runs=2, concurrency=1, cache="off", not_before=0.0, seed=1, rules=rules)
    sampler = Sampler(plan, None)
    monkeypatch.setattr(active, "sampler", sampler)
    sampler.start_run(0)
    body = json.dumps(QUESTION).encode()
    signed = [("Authorization", "AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=y")]
    with pytest.raises(Refusal, match=f"override cannot be set .*: {name} requests are signed by the client"):
        exchanges.asked("POST", url, body, signed)
    assert exchanges.asked("POST", url, body, [("Authorization", "Bearer key")]).call.rewritten


# Answers of converse, whole and streamed


PNG = "iVBORw0KGgo="
COUNTS = {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10}


def whole(*content: dict[str, Any], reason: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    output = {"message": {"role": "assistant", "content": list(content)}}
    return {"output": output, "stopReason": reason, "usage": COUNTS, "metrics": {"latencyMs": 5}, **more}


def start(index: int, **begun: Any) -> dict[str, Any]:
    return {"contentBlockStart": {"contentBlockIndex": index, "start": begun}}


def delta(index: int, **piece: Any) -> dict[str, Any]:
    return {"contentBlockDelta": {"contentBlockIndex": index, "delta": piece, "p": "abc"}}


def stop(index: int) -> dict[str, Any]:
    return {"contentBlockStop": {"contentBlockIndex": index}}


def end(reason: str = "end_turn") -> list[dict[str, Any]]:
    return [{"messageStop": {"stopReason": reason}}, {"metadata": {"usage": COUNTS, "metrics": {"latencyMs": 9}}}]


MESSAGE_START = {"messageStart": {"role": "assistant"}}
CONTENT = [
    {"reasoningContent": {"reasoningText": {"text": "hm, hm", "signature": "sig-1"}}},
    {"reasoningContent": {"redactedContent": "b3BhcXVl"}},
    {"text": "Paris."},
    {"image": {"format": "png", "source": {"bytes": PNG}}},
    {"toolUse": {"toolUseId": "tooluse_1", "name": "weather", "input": {"to": 1, "city": "Åre"}}},
    {"toolUse": {"toolUseId": "tooluse_2", "name": "stop", "input": {}}},
]
EVENTS = [
    MESSAGE_START,
    delta(0, reasoningContent={"text": "hm, "}),
    delta(0, reasoningContent={"text": "hm"}),
    delta(0, reasoningContent={"signature": "sig-2"}),
    stop(0),
    delta(1, reasoningContent={"redactedContent": "b3BhcXVl"}),
    stop(1),
    delta(2, text="Par"),
    delta(2, citation={"title": "x", "location": {"web": {"url": "u"}}}),
    delta(2, text="is."),
    stop(2),
    start(3, image={"format": "png"}),
    delta(3, image={"source": {"bytes": "iVBORw=="}}),
    delta(3, image={"source": {"bytes": "DQoaCg=="}}),
    stop(3),
    start(4, toolUse={"toolUseId": "tooluse_9", "name": "weather"}),
    delta(4, toolUse={"input": '{"to":1,'}),
    delta(4, toolUse={"input": '"city":"\\u00c5re"}'}),
    stop(4),
    start(5, toolUse={"toolUseId": "tooluse_8", "name": "stop"}),
    stop(5),
    *end("tool_use"),
]


def test_a_message_whole_and_streamed() -> None:
    arguments = '{"city": "Åre", "to": 1}'
    output = f"Paris.\n{medium('image/png', PNG)}\n[tool call] weather({arguments})\n[tool call] stop({{}})"
    calls = (ToolCall("weather", arguments), ToolCall("stop", "{}"))
    expected = Answer(output, "Paris.", calls, "tool_use", None, None, 7, 3, "hm, hm")
    assert answer(whole(*CONTENT, reason="tool_use")) == expected
    assert streamed(*EVENTS) == expected


def test_text_with_citations_is_text_and_results_of_the_providers_tools_are_left_out() -> None:
    cited = {"citationsContent": {"content": [{"text": "Par"}, {"text": "is."}], "citations": [{"title": "x"}]}}
    asked = {"toolUse": {"toolUseId": "t", "name": "search", "input": {"q": "x"}, "type": "server_tool_use"}}
    result = {"toolResult": {"toolUseId": "t", "content": [{"text": "another every time"}]}}
    assert answer(whole(asked, result, cited)).output == 'Paris.\n[tool call] search({"q": "x"})'
    events = [
        MESSAGE_START,
        start(0, toolUse={"toolUseId": "t", "name": "search", "type": "server_tool_use"}),
        delta(0, toolUse={"input": '{"q": "x"}'}),
        start(1, toolResult={"toolUseId": "t"}),
        delta(1, toolResult=[{"text": "another every time"}]),
        delta(2, text="Paris."),
        *end(),
    ]
    assert streamed(*events).output == 'Paris.\n[tool call] search({"q": "x"})'


def test_media_that_the_provider_keeps_stand_for_themselves_by_address() -> None:
    where = {"s3Location": {"uri": "s3://bucket/1.mp4"}}
    found = answer(whole({"video": {"format": "mp4", "source": where}}))
    assert found.output == medium("video/mp4", "s3://bucket/1.mp4")


def test_what_a_guardrail_put_in_place_of_an_answer_is_marked() -> None:
    found = answer(whole({"text": "Sorry."}, reason="guardrail_intervened"))
    assert (found.output, found.text) == ("Sorry.\n[refusal] stopped: guardrail_intervened", "Sorry.")
    events = [MESSAGE_START, delta(0, text="Sorry."), *end("guardrail_intervened")]
    assert streamed(*events) == found


def test_the_model_that_a_router_chose_is_known() -> None:
    trace = {"promptRouter": {"invokedModelId": "arn:aws:bedrock:m-1"}}
    assert answer(whole({"text": "Paris."}, trace=trace)).model == "arn:aws:bedrock:m-1"
    events = [MESSAGE_START, delta(0, text="Paris."), *end()[:1], {"metadata": {"usage": COUNTS, "trace": trace}}]
    assert streamed(*events) == answer(whole({"text": "Paris."}, trace=trace))


def test_a_tool_call_that_the_token_limit_cut_off_is_compared_as_it_was_written() -> None:
    begun = start(0, toolUse={"toolUseId": "t", "name": "weather"})
    found = streamed(MESSAGE_START, begun, delta(0, toolUse={"input": '{"city": "Os'}), *end("max_tokens"))
    assert (found.output, found.finish_reason) == ('[tool call] weather({"city": "Os)', "max_tokens")


def test_an_empty_message_is_an_answer() -> None:
    assert answer(whole()).output == streamed(MESSAGE_START, *end()).output == ""


# Answers of invoke, whole and streamed, by provider


METRICS = {"inputTokenCount": 7, "outputTokenCount": 3, "invocationLatency": 812, "firstByteLatency": 311}


def last(**fields: Any) -> dict[str, Any]:
    return {**fields, "amazon-bedrock-invocationMetrics": METRICS}


CLAUDE_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-3",
    "content": [{"type": "text", "text": "Paris."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 7, "output_tokens": 3},
}
CLAUDE_EVENTS = [
    {"type": "message_start", "message": {**CLAUDE_MESSAGE, "id": "msg_2", "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Par"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "is."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
    last(type="message_stop"),
]


def says(reason: str | None, model: str | None = None, text: str = "Paris.") -> Answer:
    return Answer(text, text, (), reason, model, None, 7, 3)


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
FORMS = {
    "claude": (CLAUDE_MESSAGE, CLAUDE_EVENTS, says("end_turn", "claude-3")),
    "claude, completions": (
        {"type": "completion", "completion": "Paris.", "stop_reason": "stop_sequence", "stop": "\n\nHuman:"},
        [
            {"type": "completion", "completion": "Par", "stop_reason": None, "stop": None},
            {"type": "completion", "completion": "is.", "stop_reason": "stop_sequence", "stop": "\n\nHuman:"},
        ],
        Answer("Paris.", "Paris.", (), "stop_sequence"),
    ),
    "nova": (
        whole({"text": "Paris."}),
        [
            MESSAGE_START,
            delta(0, text="Par"),
            delta(0, text="is."),
            stop(0),
            end()[0],
            {"metadata": {"usage": COUNTS, "metrics": {}, "trace": {}}, "amazon-bedrock-invocationMetrics": METRICS},
        ],
        says("end_turn"),
    ),
    "openai": (
        {
            "id": "chatcmpl-1",
            "created": 1700000001,
            "model": "gpt-oss",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris."}}],
            "usage": USAGE,
        },
        [
            {
                "id": "chatcmpl-2",
                "model": "gpt-oss",
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Par"}}],
            },
            {
                "id": "chatcmpl-2",
                "model": "gpt-oss",
                "choices": [{"index": 0, "delta": {"content": "is."}, "finish_reason": "stop"}],
            },
            last(id="chatcmpl-2", model="gpt-oss", choices=[], usage=USAGE),
        ],
        says("stop", "gpt-oss"),
    ),
    "mistral, chat": (
        {"choices": [{"index": 0, "message": {"content": "Paris."}, "stop_reason": "stop"}], "usage": USAGE},
        [
            {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Par"}, "stop_reason": None}]},
            last(choices=[{"index": 0, "message": {"content": "is."}, "stop_reason": "stop"}], usage=USAGE),
        ],
        says("stop"),
    ),
    "deepseek": (
        {"choices": [{"text": "Paris.", "stop_reason": "length"}], "usage": USAGE},
        [
            {"choices": [{"text": "Par", "stop_reason": None}]},
            last(choices=[{"text": "is.", "stop_reason": "length"}], usage=USAGE),
        ],
        says("length"),
    ),
    "llama": (
        {"generation": "Paris.", "prompt_token_count": 7, "generation_token_count": 3, "stop_reason": "stop"},
        [
            {"generation": "", "prompt_token_count": 7, "generation_token_count": 1, "stop_reason": None},
            {"generation": "Par", "prompt_token_count": None, "generation_token_count": 2, "stop_reason": None},
            {"generation": "is.", "prompt_token_count": None, "generation_token_count": 3, "stop_reason": None},
            last(generation="", prompt_token_count=None, generation_token_count=3, stop_reason="stop"),
        ],
        says("stop"),
    ),
    "titan": (
        {
            "inputTextTokenCount": 7,
            "results": [{"tokenCount": 3, "outputText": "Paris.", "completionReason": "FINISH"}],
        },
        [
            {"outputText": "Par", "index": 0, "totalOutputTextTokenCount": None, "completionReason": None},
            last(outputText="is.", index=0, totalOutputTextTokenCount=3, completionReason="FINISH"),
        ],
        says("FINISH"),
    ),
    "mistral": (
        {"outputs": [{"text": "Paris.", "stop_reason": "stop"}]},
        [{"outputs": [{"text": "Par", "stop_reason": None}]}, {"outputs": [{"text": "is.", "stop_reason": "stop"}]}],
        Answer("Paris.", "Paris.", (), "stop"),
    ),
    "command": (
        {"id": "1", "prompt": "x", "generations": [{"id": "2", "text": "Paris.", "finish_reason": "COMPLETE"}]},
        [
            {"index": 0, "is_finished": False, "text": "Par"},
            {"index": 0, "is_finished": False, "text": "is."},
            {"is_finished": True, "finish_reason": "COMPLETE", "response": {"id": "3", "generations": []}},
        ],
        Answer("Paris.", "Paris.", (), "COMPLETE"),
    ),
    "command, not by token": (
        {"generations": [{"id": "2", "text": "Paris.", "finish_reason": "COMPLETE"}]},
        [{"generations": [{"id": "4", "text": "Paris.", "finish_reason": "COMPLETE"}]}],
        Answer("Paris.", "Paris.", (), "COMPLETE"),
    ),
    "command-r": (
        {"response_id": "1", "generation_id": "2", "text": "Paris.", "chat_history": [], "finish_reason": "COMPLETE"},
        [
            {"event_type": "stream-start", "is_finished": False, "generation_id": "3"},
            {"event_type": "text-generation", "is_finished": False, "text": "Paris."},
            last(
                event_type="stream-end",
                is_finished=True,
                finish_reason="COMPLETE",
                response={"generation_id": "3", "text": "Paris.", "finish_reason": "COMPLETE"},
            ),
        ],
        Answer("Paris.", "Paris.", (), "COMPLETE"),
    ),
    "command-a": (
        {"id": "1", "finish_reason": "COMPLETE", "message": {"content": [{"type": "text", "text": "Paris."}]}},
        [
            {"type": "message-start", "id": "2", "delta": {"message": {"role": "assistant", "content": []}}},
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Par"}}}},
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "is."}}}},
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}},
        ],
        Answer("Paris.", "Paris.", (), "COMPLETE"),
    ),
    "jurassic": (
        {
            "id": 1,
            "prompt": {"text": "x", "tokens": []},
            "completions": [{"data": {"text": "Paris.", "tokens": []}, "finishReason": {"reason": "endoftext"}}],
        },
        None,
        Answer("Paris.", "Paris.", (), "endoftext"),
    ),
}


@pytest.mark.parametrize("provider", FORMS)
def test_every_providers_form_is_read(provider: str) -> None:
    content, events, expected = FORMS[provider]
    found = invoked(content)
    assert found == expected
    if events is None:
        return
    parts = invoked_streamed(*events)
    assert parts.output == expected.output
    assert (parts.text, parts.finish_reason, parts.model) == (found.text, found.finish_reason, found.model)
    if expected.output_tokens:
        assert (parts.input_tokens, parts.output_tokens) == (7, 3)


STREAMS = [
    pytest.param(events[:kept], id=f"{provider}, {kept}")
    for provider, (_, events, _) in FORMS.items()
    for kept in range(len(events or ()))
    # The end may be told before the counts come.
    if provider not in ("nova", "openai") or kept < len(events) - (2 if provider == "nova" else 1)
]


@pytest.mark.parametrize("events", STREAMS)
def test_a_providers_stream_without_its_end_is_no_answer(events: list[Any]) -> None:
    with pytest.raises(Unreadable, match="broke off"):
        invoked_streamed(*events)


def test_several_alternatives_are_told_apart() -> None:
    items = [{"text": "Paris.", "finish_reason": "COMPLETE"}, {"text": "Rome.", "finish_reason": "MAX_TOKENS"}]
    found = invoked({"generations": items})
    assert found.output == "[choice 0] Paris.\n[choice 1] Rome."
    assert invoked_streamed({"generations": items}) == found


def test_tools_of_a_provider_are_read_as_at_the_provider() -> None:
    tool = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
    claude = {**CLAUDE_MESSAGE, "content": [tool], "stop_reason": "tool_use"}
    function = {"id": "1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    mistral = {
        "choices": [{"index": 0, "message": {"content": "", "tool_calls": [function]}, "stop_reason": "tool_calls"}]
    }
    command = {"text": "", "generation_id": "1", "tool_calls": [{"name": "weather", "parameters": {"city": "Oslo"}}]}
    outputs = [invoked(content).output for content in (claude, mistral, command)]
    assert outputs == ['[tool call] weather({"city": "Oslo"})'] * 3


@pytest.mark.parametrize(
    ("content", "output"),
    [
        ({"embedding": [0.25, -1.0], "inputTextTokenCount": 5}, "[[0.25,-1.0]]"),
        ({"embeddings": [[0.5], [1]], "id": "1", "texts": ["a", "b"]}, "[[0.5],[1]]"),
        ({"embeddings": {"float": [[0.5]], "int8": [[3]]}, "id": "1"}, '[{"float":[[0.5]],"int8":[[3]]}]'),
        ({"embedding": None, "embeddings": [[0.5]]}, "[[0.5]]"),
        ({"images": [PNG], "error": None}, medium("image", PNG)),
    ],
)
def test_embeddings_and_images(content: dict[str, Any], output: str) -> None:
    assert invoked(content).output == output


def test_a_bare_image_is_an_answer() -> None:
    assert answer(b"\x89PNG", INVOKE, "image/png").output == medium("image/png", "iVBORw==")


def test_an_answer_of_an_unknown_form_is_compared_as_json_without_what_is_new_each_time() -> None:
    def one(run: str, said: str = "Paris.") -> dict[str, Any]:
        inner = {"created_at": run, "said": said, "id": run}
        return {"requestId": run, "b": [inner], "a": 1, "amazon-bedrock-trace": {"latency": run}}

    assert invoked(one("1")) == invoked(one("2"))
    assert invoked(one("1")).output == '{"a": 1, "b": [{"said": "Paris."}]}'
    assert invoked(one("1", "Rome.")).output != invoked(one("1")).output
    assert invoked([{"score": 1, "id": "x"}]).output == '[{"score": 1}]'
    parts = [invoked_streamed(one(run), {"id": run}, last()) for run in ("1", "2")]
    assert parts[0].output == parts[1].output == '[{"a": 1, "b": [{"said": "Paris."}]}]'


# What is no answer


@pytest.mark.parametrize("kept", range(len(EVENTS) - 1))
def test_a_stream_without_its_end_is_no_answer(kept: int) -> None:
    with pytest.raises(Unreadable, match="broke off"):
        streamed(*EVENTS[:kept])


@pytest.mark.parametrize("exception", ["throttlingException", "modelStreamErrorException", "internalServerException"])
@pytest.mark.parametrize(
    ("url", "begun"),
    [
        (f"{MODEL}/converse-stream", amazon.event_stream(EVENTS)),
        (f"{MODEL}/invoke-with-response-stream", amazon.chunks(CLAUDE_EVENTS)),
    ],
)
def test_an_exception_in_the_stream_is_no_answer(url: str, begun: bytes, exception: str) -> None:
    broken = amazon.message(b'{"message": "it broke"}', message_type="exception", exception_type=exception)
    with pytest.raises(Unreadable, match=f"in an error: {exception}: .*it broke"):
        answer(begun + broken, url, amazon.CONTENT_TYPE)


STREAM = f"{MODEL}/invoke-with-response-stream"


@pytest.mark.parametrize(
    ("url", "body", "content_type"),
    [
        (CONVERSE, b"", "application/json"),
        (CONVERSE, b"{}", "application/json"),
        (CONVERSE, b"[]", "application/json"),
        (CONVERSE, b'{"message": "Too many tokens"}', "application/json"),
        (CONVERSE, json.dumps(whole(reason=None)).encode(), "application/json"),
        (CONVERSE, json.dumps({**whole(), "output": {"message": {"content": "Paris."}}}).encode(), "application/json"),
        (CONVERSE, json.dumps(whole({"image": {"error": {"message": "x"}}})).encode(), "application/json"),
        (f"{MODEL}/converse-stream", amazon.event_stream(EVENTS)[:-1], amazon.CONTENT_TYPE),
        (f"{MODEL}/converse-stream", b"", amazon.CONTENT_TYPE),
        (f"{MODEL}/converse-stream", amazon.event_stream([{"messageStop": "end_turn"}]), amazon.CONTENT_TYPE),
        (INVOKE, b"", "application/json"),
        (INVOKE, b"{}", "application/json"),
        (INVOKE, b"[]", "application/json"),
        (INVOKE, b"null", "application/json"),
        (INVOKE, b'{"id": "1"}', "application/json"),
        (INVOKE, b'{"embedding": []}', "application/json"),
        (INVOKE, b'{"embeddings": []}', "application/json"),
        (INVOKE, b'{"type": "error", "error": {"type": "overloaded_error"}}', "application/json"),
        (INVOKE, b"<html>", "text/html"),
        (
            STREAM,
            amazon.chunks([*CLAUDE_EVENTS[:3], {"type": "error", "error": {}}, *CLAUDE_EVENTS[3:]]),
            amazon.CONTENT_TYPE,
        ),
        (STREAM, amazon.chunks([last()]), amazon.CONTENT_TYPE),
        (STREAM, amazon.event_stream([{"chunk": {"bytes": "{not base64}"}}]), amazon.CONTENT_TYPE),
        (STREAM, amazon.event_stream([{"chunk": {"bytes": "e25vdCBqc29u"}}]), amazon.CONTENT_TYPE),
        (STREAM, amazon.event_stream([{"chunk": {}}]), amazon.CONTENT_TYPE),
    ],
)
def test_errors_and_fragments_are_never_answers(url: str, body: bytes, content_type: str) -> None:
    with pytest.raises(Unreadable):
        answer(body, url, content_type)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def fields(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON))


BLOCK = fields("text", "reasoningContent", "toolUse", "image", "citationsContent")
PIECE = st.fixed_dictionaries(
    {"contentBlockIndex": JSON | st.integers(0, 1)}, optional={"start": BLOCK, "delta": BLOCK}
)
KINDS = st.sampled_from(["contentBlockStart", "contentBlockDelta", "messageStop", "metadata", "messageStart"])
EVENT = st.builds(lambda kind, payload: {kind: payload}, KINDS, PIECE | JSON)
CHAT_FORMS = fields("type", "output", "choices", "message", "event_type", "generation_id", "response")
TEXT_FORMS = fields("results", "generations", "outputs", "completions", "outputText", "text", "finishReason", "data")
OTHER_FORMS = fields("embedding", "embeddings", "images", "amazon-bedrock-invocationMetrics")
FORM = CHAT_FORMS | TEXT_FORMS | OTHER_FORMS


@given(JSON, st.lists(BLOCK, max_size=3), st.lists(EVENT | st.sampled_from(EVENTS), max_size=6))
def test_no_json_whatever_it_is_breaks_the_reading_of_converse(content: Any, blocks: Any, events: Any) -> None:
    for body in (content, whole(*blocks), {"output": {"message": {"content": content}}, "usage": content}):
        with contextlib.suppress(Unreadable):
            answer(body)
    with contextlib.suppress(Unreadable):
        streamed(*events, *end())


@given(FORM | JSON, st.lists(FORM | JSON | st.sampled_from(CLAUDE_EVENTS), max_size=4))
def test_no_json_whatever_it_is_breaks_the_reading_of_invoke(content: Any, events: list[Any]) -> None:
    with contextlib.suppress(Unreadable):
        invoked(content)
    with contextlib.suppress(Unreadable):
        invoked_streamed(*events)


def test_no_depth_breaks_the_reading() -> None:
    for depth in (*range(850, 1000), 100_000):
        with contextlib.suppress(Unreadable):
            answer(b'{"a":' * depth + b"1" + b"}" * depth, INVOKE)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.data())
def test_however_it_is_cut_a_stream_gives_the_whole_answer(text: str, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[begin:stop] for begin, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = answer(whole({"text": text}))
    assert streamed(MESSAGE_START, *(delta(0, text=piece) for piece in pieces), *end()) == expected
    llama = [{"generation": piece, "stop_reason": None} for piece in pieces]
    assert invoked_streamed(*llama, last(generation="", stop_reason="stop")).output == text
