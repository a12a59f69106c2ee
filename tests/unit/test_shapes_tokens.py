"""The tokens of an answer, and the input that came from a provider's cache, in every API that tells them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from amazon import CONTENT_TYPE, chunks
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import ResponseOutputText, ResponseTextDeltaEvent

from pytest_llm_determinism.shapes import Answer, read_answer, recognise
from pytest_llm_determinism.shapes.answer import Token

HOST = "https://api.test/v1"
CHAT, COMPLETIONS, RESPONSES = f"{HOST}/chat/completions", f"{HOST}/completions", f"{HOST}/responses"
GEMINI = "https://api.test/v1beta/models/m:generateContent"
OLLAMA = "https://api.test/api/chat"
BEDROCK = "https://api.test/model/m"
ASKED = {
    "model": "m",
    "messages": [{"role": "user", "content": "q"}],
    "prompt": "q",
    "input": "q",
    "inputs": "q",
    "message": "q",
    "contents": [],
    "parameters": {},
    "max_tokens": 9,
}


def answer(url: str, body: bytes | Any, content_type: str = "application/json", **asked: Any) -> Answer:
    call = recognise("POST", url, json.dumps({**ASKED, **asked}).encode())
    assert call is not None
    return read_answer(call, body if isinstance(body, bytes) else json.dumps(body).encode(), content_type)


def sse(url: str, *events: Any) -> Answer:
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return answer(url, body + b"data: [DONE]\n\n", "text/event-stream", stream=True)


def lines(url: str, *events: Any) -> Answer:
    return answer(url, b"".join(json.dumps(event).encode() + b"\n" for event in events), "application/x-ndjson")


# Tokens: " re", "fund", each with an alternative

TOKENS = (
    Token(" re", -0.7, ((" re", -0.7), (" No", -0.8))),
    Token("fund", -0.1, (("fund", -0.1), ("view", -2.5))),
)
BARE = tuple(Token(token.text, token.logprob) for token in TOKENS)


def entry(token: Token, top: bool = True) -> dict[str, Any]:
    """A token as Chat Completions, Responses and Ollama tell it."""

    def told(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    others = [told(*other) for other in token.others] if top else []
    return {**told(token.text, token.logprob), "top_logprobs": others}


ENTRIES = [entry(token) for token in TOKENS]


def chat(logprobs: Any, text: str = " refund", **message: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "logprobs": logprobs,
        "finish_reason": "stop",
    }
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def chunk(text: str | None, logprobs: Any, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def test_chat_completions_whole_and_streamed() -> None:
    whole = chat({"content": ENTRIES, "refusal": None})
    parts = [
        chunk("", None),
        chunk(" re", {"content": ENTRIES[:1]}),
        chunk("fund", {"content": ENTRIES[1:]}),
        chunk(None, None, "stop"),
    ]
    assert answer(CHAT, whole).tokens == sse(CHAT, *parts).tokens == TOKENS
    read = ChatCompletion.model_validate(whole).choices[0].logprobs
    assert read is not None
    assert read.content is not None
    assert [(one.token, one.top_logprobs[1].logprob) for one in read.content] == [(" re", -0.8), ("fund", -2.5)]
    assert ChatCompletionChunk.model_validate(parts[1]).choices[0].logprobs is not None


def columns(*tokens: Token, top: bool = True) -> dict[str, Any]:
    """Tokens as Completions tell them."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.others) for token in tokens] if top else None,
        "text_offset": [0] * len(tokens),
    }


def completion(text: str, logprobs: Any, reason: str | None = "stop") -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}


def test_completions_whole_and_streamed() -> None:
    whole = completion(" refund", columns(*TOKENS))
    assert answer(COMPLETIONS, whole).tokens == TOKENS
    parts = [completion(" re", columns(TOKENS[0]), None), completion("fund", columns(TOKENS[1]))]
    assert sse(COMPLETIONS, *parts).tokens == TOKENS
    assert answer(COMPLETIONS, completion(" refund", columns(*TOKENS, top=False))).tokens == BARE
    read = Completion.model_validate(whole).choices[0].logprobs
    assert read is not None
    assert read.top_logprobs == [dict(token.others) for token in TOKENS]


def test_each_of_the_two_apis_may_answer_in_the_others_form() -> None:
    assert answer(CHAT, chat(columns(*TOKENS))).tokens == TOKENS
    assert answer(COMPLETIONS, completion(" refund", {"content": ENTRIES})).tokens == TOKENS


def response(*logprobs: Any, texts: tuple[str, ...] = (" refund",)) -> dict[str, Any]:
    parts = [
        {"type": "output_text", "text": text, "annotations": [], "logprobs": told}
        for text, told in zip(texts, logprobs, strict=True)
    ]
    message = {"id": "m-1", "type": "message", "role": "assistant", "status": "completed", "content": parts}
    return {"id": "r-1", "object": "response", "model": "m", "status": "completed", "output": [message]}


def test_responses_whole_in_parts_and_streamed() -> None:
    whole = response(ENTRIES)
    assert answer(RESPONSES, whole).tokens == TOKENS
    assert answer(RESPONSES, response(ENTRIES[:1], ENTRIES[1:], texts=(" re", "fund"))).tokens == TOKENS
    place = {"item_id": "m-1", "output_index": 0, "content_index": 0, "sequence_number": 1}
    deltas = [
        {"type": "response.output_text.delta", **place, "delta": token.text, "logprobs": [entry(token)]}
        for token in TOKENS
    ]
    for end in (whole, response([])):
        assert sse(RESPONSES, *deltas, {"type": "response.completed", "response": end}).tokens == TOKENS
    read = ResponseOutputText.model_validate(whole["output"][0]["content"][0]).logprobs
    assert read is not None
    assert [one.top_logprobs[1].logprob for one in read] == [-0.8, -2.5]
    told = ResponseTextDeltaEvent.model_validate(deltas[0]).logprobs[0]
    assert told.top_logprobs is not None
    assert told.top_logprobs[1].token == " No"


def candidate(*tokens: Token, reason: str | None = "STOP", top: bool = True) -> dict[str, Any]:
    def told(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "tokenId": 1, "logProbability": logprob}

    result = {"chosenCandidates": [told(token.text, token.logprob) for token in tokens]}
    if top:
        result["topCandidates"] = [{"candidates": [told(*other) for other in token.others]} for token in tokens]
    text = "".join(token.text for token in tokens)
    return {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": reason, "logprobsResult": result}]}


def test_gemini_whole_and_streamed() -> None:
    assert answer(GEMINI, candidate(*TOKENS)).tokens == TOKENS
    assert answer(GEMINI, candidate(*TOKENS, top=False)).tokens == BARE
    url = GEMINI.replace("generate", "streamGenerate")
    assert sse(url, candidate(TOKENS[0], reason=None), candidate(TOKENS[1])).tokens == TOKENS


def test_ollama_whole_and_streamed() -> None:
    def said(text: str, *told: dict[str, Any], done: bool = True) -> dict[str, Any]:
        return {"message": {"content": text}, "done": done, "logprobs": [*told]}

    assert answer(OLLAMA, said(" refund", *ENTRIES), stream=False).tokens == TOKENS
    pieces = [said(" re", ENTRIES[0], done=False), said("fund", ENTRIES[1], done=False), said("")]
    assert lines(OLLAMA, *pieces).tokens == TOKENS
    older = {"response": " refund", "done": True, "logprobs": [entry(token, top=False) for token in TOKENS]}
    assert answer("https://api.test/api/generate", older, stream=False).tokens == BARE


def test_text_generation_whole_and_streamed() -> None:
    def row(text: str, logprob: float, special: bool = False) -> dict[str, Any]:
        return {"id": 1, "text": text, "logprob": logprob, "special": special}

    rows = [row(token.text, token.logprob) for token in TOKENS]
    tops = [[row(*other) for other in token.others] for token in TOKENS]
    url = "https://api.test/"
    end = row("</s>", -0.01, special=True)
    details = {"finish_reason": "eos_token", "tokens": [*rows, end], "top_tokens": [*tops, [end]]}
    assert answer(url, [{"generated_text": " refund", "details": details}]).tokens == TOKENS
    details.pop("top_tokens")
    assert answer(url, [{"generated_text": " refund", "details": details}]).tokens == BARE
    events = [
        {"token": rows[0], "top_tokens": tops[0], "generated_text": None, "details": None},
        {"token": rows[1], "top_tokens": tops[1], "generated_text": None, "details": None},
        {"token": end, "generated_text": " refund", "details": {"finish_reason": "eos_token"}},
    ]
    assert sse(url, *events).tokens == TOKENS


def test_where_no_tokens_are_told_there_are_none() -> None:
    assert answer(CHAT, chat(None)).tokens == answer(CHAT, chat({"content": None})).tokens == ()
    assert answer(COMPLETIONS, completion(" refund", None)).tokens == ()
    assert answer(RESPONSES, response([])).tokens == ()


def test_of_several_choices_no_tokens_are_kept() -> None:
    one = chat({"content": ENTRIES})["choices"][0]
    assert answer(CHAT, {"choices": [one, {**one, "index": 1}]}).tokens == ()


def test_tokens_of_something_else_than_the_text_are_not_kept() -> None:
    told = {"content": ENTRIES}
    assert answer(CHAT, chat(told, text="fund")).tokens == ()  # of reasoning and text together
    assert answer(CHAT, chat(told, text=" refunds")).tokens == ()
    assert answer(CHAT, chat(told, text=" refun")).tokens == ()
    assert answer(CHAT, chat(told, text="")).tokens == ()


def test_tokens_after_the_text_are_left_out() -> None:
    end = entry(Token("<|im_end|>", -0.2))
    assert answer(CHAT, chat({"content": [*ENTRIES, end]})).tokens == TOKENS


def test_tokens_that_hold_a_piece_of_a_character_stand_with_the_last_of_them() -> None:
    pieces = [
        {"token": "\\xf0\\x9f", "logprob": -0.5, "bytes": [0xF0, 0x9F], "top_logprobs": []},
        {"token": "\\x98\\x80", "logprob": -0.1, "bytes": [0x98, 0x80], "top_logprobs": []},
        {"token": "!", "logprob": -0.2, "bytes": [0x21], "top_logprobs": []},
    ]
    whole = answer(CHAT, chat({"content": pieces}, text="😀!"))
    parts = sse(CHAT, *(chunk(text, {"content": [piece]}) for text, piece in zip(("", "😀", "!"), pieces, strict=True)))
    assert whole.tokens == parts.tokens == (Token("", -0.5), Token("😀", -0.1), Token("!", -0.2))
    assert answer(CHAT, chat({"content": pieces[:1]}, text="\ufffd")).tokens == ()


@given(st.text(min_size=1), st.data())
def test_however_a_text_is_cut_into_tokens_they_are_the_text(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    told = [{"token": repr(piece), "logprob": -1.0, "bytes": list(piece), "top_logprobs": []} for piece in pieces]
    tokens = answer(CHAT, chat({"content": told}, text=text)).tokens
    assert "".join(token.text for token in tokens) == text


ODD: list[Any] = [
    3,
    "refund",
    [None],
    [{"token": "a"}],
    {"content": 3},
    {"content": [{"token": "a", "logprob": None}]},
    {"content": [{"token": "a", "logprob": "x", "top_logprobs": [3]}]},
    {"content": [{"token": "a", "logprob": 1e9}]},
    {"content": [{"token": "a", "logprob": 10**400}]},
    {"content": [{"token": "a", "logprob": math.nan}]},
    {"content": [{"token": "a", "logprob": -1, "bytes": [999]}]},
    {"tokens": ["a"], "token_logprobs": []},
    {"tokens": ["a"], "token_logprobs": [None]},
    {"tokens": None, "token_logprobs": [-1.0]},
    {"tokens": ["a"]},
    {"chosenCandidates": [{}]},
    {"chosenCandidates": 1},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:60])
def test_what_is_odd_about_the_tokens_is_no_reason_to_refuse_an_answer(odd: Any) -> None:
    for found in (
        answer(CHAT, chat(odd, text="a")),
        answer(COMPLETIONS, completion("a", odd)),
        answer(RESPONSES, response(odd, texts=("a",))),
        sse(CHAT, chunk("a", odd, "stop")),
    ):
        assert (found.output, found.tokens) == ("a", ())


# Input tokens from a cache of the provider

OPENAI_USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
GEMINI_USAGE = {"promptTokenCount": 9, "candidatesTokenCount": 1, "cachedContentTokenCount": 4}
CONVERSE = {"output": {"message": {"content": [{"text": "a"}]}}, "stopReason": "end_turn"}
COHERE = {"id": "c", "message": {"role": "assistant", "content": [{"type": "text", "text": "a"}]}}


def claude(**usage: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "a"}]
    return {"type": "message", "model": "m", "content": content, "stop_reason": "end_turn", "usage": usage}


@pytest.mark.parametrize(
    ("url", "body"),
    [
        pytest.param(CHAT, {**chat(None), "usage": OPENAI_USAGE}, id="chat completions"),
        pytest.param(COMPLETIONS, {**completion("a", None), "usage": OPENAI_USAGE}, id="completions"),
        pytest.param(
            CHAT, {**chat(None), "usage": {"prompt_tokens": 9, "prompt_cache_hit_tokens": 4}}, id="as DeepSeek has it"
        ),
        pytest.param(
            RESPONSES,
            {**response([]), "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}}},
            id="responses",
        ),
        pytest.param(f"{HOST}/messages", claude(input_tokens=5, cache_read_input_tokens=4), id="Anthropic"),
        pytest.param(GEMINI, {**candidate(*TOKENS), "usageMetadata": GEMINI_USAGE}, id="Gemini"),
        pytest.param(
            "https://api.test/v2/chat",
            {**COHERE, "finish_reason": "COMPLETE", "usage": {"tokens": {"input_tokens": 9}, "cached_tokens": 4.0}},
            id="Cohere",
        ),
        pytest.param(
            "https://api.test/v1/chat",
            {"text": "a", "generation_id": "g", "meta": {"tokens": {"input_tokens": 9}, "cached_tokens": 4}},
            id="Cohere v1",
        ),
        pytest.param(
            f"{BEDROCK}/converse", {**CONVERSE, "usage": {"inputTokens": 5, "cacheReadInputTokens": 4}}, id="Bedrock"
        ),
        pytest.param(
            f"{BEDROCK}/invoke",
            {**CONVERSE, "usage": {"inputTokens": 5, "cacheReadInputTokenCount": 4}},
            id="Bedrock, invoked",
        ),
    ],
)
def test_input_from_a_cache_is_counted(url: str, body: dict[str, Any]) -> None:
    assert answer(url, body).cached_tokens == 4


def test_input_from_a_cache_is_counted_in_streams() -> None:
    assert sse(CHAT, chunk("a", None, "stop"), {"choices": [], "usage": OPENAI_USAGE}).cached_tokens == 4
    begun = {**claude(input_tokens=5, cache_read_input_tokens=4), "content": [], "stop_reason": None}
    events = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "a"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    assert sse(f"{HOST}/messages", *events).cached_tokens == 4
    metrics = {"inputTokenCount": 5, "cacheReadInputTokenCount": 4}
    last = {"outputText": "a", "completionReason": "FINISH", "amazon-bedrock-invocationMetrics": metrics}
    url = f"{BEDROCK}/invoke-with-response-stream"
    assert answer(url, chunks([last]), CONTENT_TYPE).cached_tokens == 4


def test_a_provider_that_does_not_say_is_not_said_to_have_no_cache() -> None:
    for usage in (None, {"prompt_tokens": 9}, {"prompt_tokens_details": None}, {"prompt_tokens_details": 3}):
        assert answer(CHAT, {**chat(None), "usage": usage}).cached_tokens is None
    none = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}
    assert answer(CHAT, {**chat(None), "usage": none}).cached_tokens == 0
