"""The reference server over real HTTP with the real client, and its life as a child process."""

from __future__ import annotations

import asyncio
import http.client
import importlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from pytest_llm_determinism.reference import FINGERPRINT, MODELS, words
from pytest_llm_determinism.reference import process as reference_process
from pytest_llm_determinism.reference.process import ReferenceUnavailable, start_reference_server
from pytest_llm_determinism.reference.server import create_app, serve

FOX = "Write a short story about a fox"
MESSAGES: Any = [{"role": "user", "content": FOX}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = start_reference_server()
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def post(url: str, path: str, body: bytes | dict[str, Any]) -> tuple[int, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", parts.path + path, data, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


# --- models ---


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(MODELS)
    assert client.models.retrieve("loop").object == "model"


@pytest.mark.parametrize("model", MODELS)
def test_every_model_answers_the_same_one_call_after_the_other(client: openai.OpenAI, model: str) -> None:
    answers = {
        client.completions.create(model=model, prompt=FOX, max_tokens=24, temperature=0).choices[0].text
        for _ in range(3)
    }
    assert len(answers) == 1
    assert len(answers.pop().split()) > 10


# --- chat completions ---


def test_a_chat_completion(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="dense", messages=MESSAGES, max_completion_tokens=20, temperature=0)
    again = client.chat.completions.create(model="dense", messages=MESSAGES, max_completion_tokens=20, temperature=0)
    assert answer.id.startswith("chatcmpl-")
    assert answer.id != again.id
    assert abs(answer.created - time.time()) < 60
    assert answer.system_fingerprint == f"{FINGERPRINT}-dense"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == again.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert answer.usage.prompt_tokens == len(words.encode(f"user: {FOX}\nassistant:"))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20


def test_an_answer_ends_by_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="dense", messages=MESSAGES, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert 24 < answer.usage.completion_tokens < 256


def test_a_streamed_chat_is_the_whole_chat(client: openai.OpenAI) -> None:
    settings: Any = {
        "model": "dense", "messages": MESSAGES, "max_tokens": 20, "temperature": 0,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(delta.delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert deltas[-1].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    logprobs = [token for delta in deltas if delta.logprobs for token in delta.logprobs.content or []]
    assert whole.choices[0].logprobs is not None
    assert logprobs == whole.choices[0].logprobs.content
    assert len(chunks) == 1 + 20 + 1 + 1  # the role, the tokens, the reason, the usage


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="dense", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    for token in tokens:
        assert bytes(token.bytes or []).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
        assert token.logprob < 0


def test_choices_differ_unless_greedy_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def texts(**settings: Any) -> list[str | None]:
        answer = client.chat.completions.create(model="dense", messages=MESSAGES, max_tokens=12, n=3, **settings)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    assert len(set(texts(temperature=0))) == 1
    assert len(set(texts())) == 3
    assert texts(seed=-5) == texts(seed=-5) != texts(seed=6)


def test_several_streamed_choices(client: openai.OpenAI) -> None:
    settings: Any = {"model": "dense", "messages": MESSAGES, "max_tokens": 9, "n": 2, "seed": 3}
    whole = client.chat.completions.create(**settings)
    texts: Counter[int] = Counter()
    parts: dict[int, str] = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**settings, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
            texts[choice.index] += choice.finish_reason is not None
    assert parts == {choice.index: choice.message.content for choice in whole.choices}
    assert texts == {0: 1, 1: 1}


@pytest.mark.parametrize("stream", [False, True])
def test_stop_and_bias_over_http(client: openai.OpenAI, stream: bool) -> None:
    whole = client.completions.create(model="dense", prompt=FOX, max_tokens=12, temperature=0).choices[0].text
    word = whole.split()[4]
    settings: Any = {"model": "dense", "prompt": FOX, "max_tokens": 12, "temperature": 0, "stream": stream}

    def answer(**more: Any) -> tuple[str, str | None]:
        reply = client.completions.create(**settings, **more)
        choices = [chunk.choices[0] for chunk in reply] if stream else [reply.choices[0]]
        return "".join(choice.text for choice in choices), choices[-1].finish_reason

    assert answer(stop=f" {word}") == (whole[: whole.index(f" {word}")], "stop")
    assert answer(stop=["nowhere"]) == (whole, "length")
    assert word not in answer(logit_bias={str(words.TOKENS.index(word)): -100})[0].split()


def test_content_parts_tools_and_roles_are_part_of_the_prompt(client: openai.OpenAI) -> None:
    def text(messages: Any, **more: Any) -> str | None:
        answer = client.chat.completions.create(model="dense", messages=messages, max_tokens=16, temperature=0, **more)
        return answer.choices[0].message.content

    image = {"type": "image_url", "image_url": {"url": "data:,1"}}
    plain = text(MESSAGES)
    assert text([{"role": "user", "content": [{"type": "text", "text": FOX}]}]) == plain
    others = [
        text([{"role": "system", "content": FOX}]),
        text([{"role": "user", "content": [{"type": "text", "text": FOX}, image]}]),
        text(MESSAGES, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]),
    ]
    assert len({plain, *others}) == 4


# --- completions ---


def test_prompts_as_text_texts_and_ids(client: openai.OpenAI) -> None:
    def texts(prompt: Any) -> list[str]:
        answer = client.completions.create(model="dense", prompt=prompt, temperature=0)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 16 * len(answer.choices)
        return [choice.text for choice in answer.choices]

    fox, sea = texts(FOX)[0], texts("the sea")[0]
    assert texts([FOX, "the sea"]) == [fox, sea]
    assert texts(words.encode(FOX)) == [fox]
    assert texts([words.encode(FOX), words.encode("the sea")]) == [fox, sea]
    assert texts("") not in ([fox], [sea])


def test_completion_logprobs_whole_and_streamed(client: openai.OpenAI) -> None:
    settings: Any = {"model": "dense", "prompt": FOX, "max_tokens": 7, "temperature": 0, "logprobs": 2}
    choice = client.completions.create(**settings).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == choice.text
    for token, value, top, offset in zip(
        logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or [], logprobs.text_offset or [],
        strict=True,
    ):  # fmt: skip
        assert choice.text[offset:].startswith(token)
        assert top[token] == value == max(top.values())
        assert len(top) == 2
    streamed = [chunk.choices[0] for chunk in client.completions.create(**settings, stream=True)]
    assert "".join(part.text for part in streamed) == choice.text
    assert [token for part in streamed if part.logprobs for token in part.logprobs.tokens or []] == logprobs.tokens
    assert [at for part in streamed if part.logprobs for at in part.logprobs.text_offset or []] == logprobs.text_offset


# --- responses ---


def test_a_response(client: openai.OpenAI) -> None:
    cut = client.responses.create(model="dense", input=FOX, max_output_tokens=20, temperature=0)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage is not None
    assert cut.usage.output_tokens == 20
    whole = client.responses.create(model="dense", input=FOX, temperature=0)
    assert whole.status == "completed"
    assert whole.output_text.startswith(cut.output_text)
    assert whole.id != cut.id
    chat = client.chat.completions.create(model="dense", messages=MESSAGES, temperature=0)
    assert chat.choices[0].message.content == whole.output_text
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": FOX}]}]
    assert client.responses.create(model="dense", input=items, temperature=0).output_text == whole.output_text
    told = client.responses.create(model="dense", input=FOX, instructions="be brief", temperature=0)
    assert told.output_text != whole.output_text


@pytest.mark.parametrize("limit", [20, None])
def test_a_streamed_response_is_the_whole_response(client: openai.OpenAI, limit: int | None) -> None:
    settings: Any = {
        "model": "dense", "input": FOX, "temperature": 0, "max_output_tokens": limit,
        "include": ["message.output_text.logprobs"], "top_logprobs": 1,
    }  # fmt: skip
    whole = client.responses.create(**settings)
    events: list[Any] = list(client.responses.create(**settings, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [kind for kind in kinds if kind != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed" if limit is None else "response.incomplete",
    ]
    assert len(deltas) == whole.usage.output_tokens
    assert "".join(event.delta for event in deltas) == whole.output_text == events[-1].response.output_text
    assert events[-4].text == whole.output_text
    assert events[-1].response.usage == whole.usage
    assert events[-1].response.id == events[0].response.id
    streamed = [token.logprob for event in deltas for token in event.logprobs]
    content: Any = whole.output[0]
    assert streamed == [token.logprob for token in content.content[0].logprobs]


def test_the_stream_helper_of_the_client(client: openai.OpenAI) -> None:
    with client.responses.stream(model="dense", input=FOX, temperature=0) as stream:
        final = stream.get_final_response()
    assert final.output_text
    with client.chat.completions.stream(model="dense", messages=MESSAGES, temperature=0) as chat:
        assert chat.get_final_completion().choices[0].message.content == final.output_text


# --- x_reference ---


CHAT_TOKENS = len(words.encode(f"user: {FOX}\nassistant:"))
SOLO = [
    {"steps": 1, "sequences": 1, "own": 1, "tokens": CHAT_TOKENS},
    {"steps": 19, "sequences": 1, "own": 1, "tokens": 1},
]
COMPANY = {
    "dense": {"batch": SOLO},
    "dense-fp16": {"batch": [SOLO[0] | {"parts": 3}, SOLO[1] | {"parts": 32}]},
    "moe-dropless": {"experts": 8, "capacity_factor": None, "batch": SOLO},
    "moe-capacity": {
        "experts": 8,
        "capacity_factor": 2.5,
        "batch": [SOLO[0] | {"capacity": 8}, SOLO[1] | {"capacity": 1}],
    },
}


@pytest.mark.parametrize("model", COMPANY)
def test_every_answer_tells_its_company(client: openai.OpenAI, model: str) -> None:
    expected = COMPANY[model] | {"dropped": {"own": 0, "batch": 0}, "choices": [{"dropped_at": []}]}
    chat: Any = {"model": model, "messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    response: Any = {"model": model, "input": FOX, "max_output_tokens": 20, "temperature": 0}
    text: Any = {"model": model, "prompt": f"user: {FOX}\nassistant:", "max_tokens": 20, "temperature": 0}
    usage: Any = {"stream_options": {"include_usage": True}}

    def company(answer: Any) -> Any:
        return answer.model_extra["x_reference"]

    assert company(client.chat.completions.create(**chat)) == expected
    assert company(client.completions.create(**text)) == expected
    assert company(client.responses.create(**response)) == expected
    for create, settings in (
        (client.chat.completions.create, chat),
        (client.chat.completions.create, chat | usage),
        (client.completions.create, text),
        (client.completions.create, text | usage),
    ):
        *others, last = create(**settings, stream=True)
        assert company(last) == expected
        assert all("x_reference" not in chunk.model_extra for chunk in others)
    *_, completed = client.responses.create(**response, stream=True)
    assert company(completed.response) == expected


def test_the_async_client_is_told_too(url: str) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            settings: Any = {"model": "dense", "messages": MESSAGES, "max_tokens": 20, "temperature": 0}
            whole = await client.chat.completions.create(**settings)
            return [whole, *[chunk async for chunk in await client.chat.completions.create(**settings, stream=True)]]

    whole, *_, last = asyncio.run(ask())
    assert whole.x_reference == last.x_reference
    assert whole.x_reference["batch"] == SOLO


def test_several_choices_are_told_in_the_last_chunk(client: openai.OpenAI) -> None:
    settings: Any = {"model": "moe-capacity", "messages": MESSAGES, "max_tokens": 9, "temperature": 0, "n": 8}
    whole: Any = client.chat.completions.create(**settings)
    *others, last = client.chat.completions.create(**settings, stream=True)
    assert last.model_extra["x_reference"] == whole.x_reference
    assert not any("x_reference" in chunk.model_extra for chunk in others)
    assert whole.x_reference["batch"] == [
        {"steps": 1, "sequences": 8, "own": 8, "tokens": 8 * CHAT_TOKENS, "capacity": 5 * CHAT_TOKENS},
        {"steps": 8, "sequences": 8, "own": 8, "tokens": 8, "capacity": 5},
    ]


def test_one_batch_answers_the_same_each_time_and_drops_those_that_come_last(client: openai.OpenAI) -> None:
    """Experts take five of eight equal tokens: the first five answers are as without a limit, the others are not."""
    settings: Any = {"max_tokens": 48, "temperature": 0}
    unlimited = client.completions.create(model="moe-dropless", prompt=FOX, **settings).choices[0].text
    batch: Any = settings | {"model": "moe-capacity", "prompt": [FOX] * 8}
    first, *others = [client.completions.create(**batch) for _ in range(4)]
    texts = [choice.text for choice in first.choices]
    assert texts[:5] == [unlimited] * 5
    assert unlimited not in texts[5:]
    told: Any = first.model_extra
    at = [choice["dropped_at"] for choice in told["x_reference"]["choices"]]
    assert at[:5] == [[]] * 5
    assert all(at[5:])
    total = sum(times for drops in at for _, times in drops)
    assert told["x_reference"]["dropped"] == {"own": total, "batch": total}
    for other in others:
        assert [choice.text for choice in other.choices] == texts
        assert other.model_extra == first.model_extra


def test_company_of_other_requests_is_not_ones_own(url: str, client: openai.OpenAI) -> None:
    long: Any = {"model": "moe-capacity", "prompt": [FOX] * 7, "max_tokens": 3000, "logit_bias": {"0": -100}}
    with client.completions.create(**long, temperature=0, stream=True) as stream:
        next(iter(stream))
        answer: Any = client.completions.create(model="moe-capacity", prompt=FOX, max_tokens=5, temperature=0)
    prompt = len(words.encode(FOX))
    assert answer.x_reference["batch"] == [
        {"steps": 1, "sequences": 8, "own": 1, "tokens": 7 + prompt, "capacity": math.ceil(2.5 * (7 + prompt) / 4)},
        {"steps": 4, "sequences": 8, "own": 1, "tokens": 8, "capacity": 5},
    ]
    assert 0 < answer.x_reference["dropped"]["own"] < answer.x_reference["dropped"]["batch"]
    # The server hears a moment later that nobody listens to the long answers any more.
    begun = time.monotonic()
    while answer.x_reference["batch"][-1]["sequences"] > 1:
        assert time.monotonic() < begun + 10
        answer = client.completions.create(model="moe-capacity", prompt=FOX, max_tokens=1)


# --- errors ---


def test_an_unknown_model_names_the_known(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"`gpt-4` does not exist.*dense, dense-fp16") as caught:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


CHAT = "/chat/completions"
TEXT = "/completions"
RESPONSES = "/responses"


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (CHAT, {"temperature": 2.1}, "temperature"),
        (CHAT, {"temperature": -0.1}, "temperature"),
        (CHAT, {"temperature": "0"}, "temperature"),
        (CHAT, {"temperature": True}, "temperature"),
        (CHAT, {"temperature": float("nan")}, "temperature"),
        (CHAT, {"top_p": 1.5}, "top_p"),
        (CHAT, {"max_tokens": -1}, "max_tokens"),
        (CHAT, {"max_tokens": 1.5}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"n": 0}, "n"),
        (CHAT, {"seed": "7"}, "seed"),
        (CHAT, {"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        (CHAT, {"stop": ""}, "stop"),
        (CHAT, {"logit_bias": [1]}, "logit_bias"),
        (CHAT, {"logit_bias": {"fox": 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {str(words.VOCABULARY_SIZE): 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"1": 101}}, "logit_bias"),
        (CHAT, {"logprobs": 1}, "logprobs"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"stream": "yes"}, "stream"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"presence_penalty": 3}, "presence_penalty"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": ["hello"]}, "messages[0]"),
        (CHAT, {"messages": [{"content": "hello"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": "the fox " * 2100}]}, "messages"),
        (CHAT, {"model": None}, "model"),
        (CHAT, {"model": 4}, "model"),
        (TEXT, {"prompt": None}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": [words.TOTAL_IDS]}, "prompt"),
        (TEXT, {"prompt": {"text": "fox"}}, "prompt"),
        (TEXT, {"logprobs": 6}, "logprobs"),
        (TEXT, {"echo": True}, "echo"),
        (TEXT, {"best_of": 3}, "best_of"),
        (RESPONSES, {"input": None}, "input"),
        (RESPONSES, {"instructions": 3}, "instructions"),
        (RESPONSES, {"max_output_tokens": 0}, "max_output_tokens"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSES, {"text": {"format": {"type": "json_schema"}}}, "text.format"),
    ],
)
def test_a_bad_parameter_is_named(url: str, path: str, change: dict[str, Any], param: str) -> None:
    good: dict[str, Any] = {
        CHAT: {"messages": MESSAGES},
        TEXT: {"prompt": FOX},
        RESPONSES: {"input": FOX},
    }[path]
    status, body = post(url, path, {"model": "dense"} | good | change)
    assert status == 400
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"
    assert param.split("[")[0] in body["error"]["message"] or body["error"]["code"] == "context_length_exceeded"


def test_bad_json_and_bad_routes(url: str) -> None:
    for body in (b"{", b"\xff", b"[]"):
        status, answer = post(url, CHAT, body)
        assert status == 400
        assert "JSON" in answer["error"]["message"]
    assert post(url, "/embeddings", {}) == (
        404,
        {
            "error": {
                "message": "Invalid URL (POST /v1/embeddings)",
                "type": "invalid_request_error",
                "param": None,
                "code": "unknown_url",
            }
        },
    )
    assert post(url, "/models", {})[0] == 405


def test_missing_messages(url: str) -> None:
    status, body = post(url, CHAT, {"model": "dense"})
    assert status == 400
    assert body["error"]["message"] == "Missing required parameter: 'messages'."


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_capacity_factor_is_a_positive_number(factor: float) -> None:
    with pytest.raises(ValueError, match="capacity factor"):
        create_app(factor)


# --- concurrency over HTTP ---


def unique_of(client: openai.OpenAI, model: str, runs: int) -> int:
    texts: list[str] = []

    def call(delay: float) -> None:
        time.sleep(delay)
        answer = client.completions.create(model=model, prompt=FOX, max_tokens=96, temperature=0)
        texts.append(answer.choices[0].text)

    call(0)
    threads = [threading.Thread(target=call, args=(0.013 * number,)) for number in range(runs - 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(set(texts))


@pytest.mark.parametrize("model", MODELS)
def test_only_the_unstable_models_differ_when_starts_are_spread(client: openai.OpenAI, model: str) -> None:
    unique = unique_of(client, model, 16)
    assert (unique > 1) == (model in ("dense-fp16", "moe-capacity"))


def test_a_client_that_leaves_does_not_stay_in_the_batch(url: str, client: openai.OpenAI) -> None:
    settings: Any = {"model": "moe-capacity", "prompt": FOX, "max_tokens": 24, "temperature": 0}
    expected = client.completions.create(**settings).choices[0].text
    long: dict[str, Any] = {"model": "moe-capacity", "prompt": FOX, "max_tokens": 4000, "logit_bias": {"0": -100}}
    for stream in (False, True):
        parts = urlsplit(url)
        left = [http.client.HTTPConnection(parts.hostname or "", parts.port) for _ in range(12)]
        for connection in left:
            connection.request("POST", parts.path + TEXT, json.dumps(long | {"stream": stream}))
        time.sleep(0.2)
        for connection in left:
            connection.close()
        time.sleep(0.2)
        assert client.completions.create(**settings).choices[0].text == expected


# --- the process ---


def test_start_and_stop() -> None:
    server = start_reference_server(capacity_factor=8.0)
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        answer = client.completions.create(model="moe-capacity", prompt=FOX)
    assert answer.system_fingerprint == f"{FINGERPRINT}-moe-capacity-8"
    server.stop()
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_the_child_ends_with_its_parent() -> None:
    script = (
        "import os, signal\n"
        "from pytest_llm_determinism.reference.process import start_reference_server\n"
        "print(start_reference_server().pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # Reading to the end of the pipe proves too that the child does not hold the parent's stdout.
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=20)
    child = int(done.stdout)
    while time.monotonic() < begun + 10:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the server outlived its parent")


def test_importing_the_parents_side_imports_nothing_heavy() -> None:
    code = (
        "import sys, pytest_llm_determinism.reference.process as p\n"
        "print({'numpy', 'starlette', 'uvicorn', 'openai', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_missing_dependency_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else find(name))
    with pytest.raises(ReferenceUnavailable, match=r"needs numpy: pip install 'pytest-llm-determinism\[reference\]'"):
        start_reference_server()


def test_a_dying_child_shows_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReferenceUnavailable, match=r"(?s)ended before it was ready.*capacity factor must be") as caught:
        start_reference_server(capacity_factor=-1.0)
    assert "Traceback" in str(caught.value)
    monkeypatch.setattr(reference_process.sys, "executable", "/nonexistent/python")
    with pytest.raises(ReferenceUnavailable, match="could not be started"):
        start_reference_server()


def test_a_slow_child_is_given_up() -> None:
    with pytest.raises(ReferenceUnavailable, match=r"not ready after 0\.001 seconds"):
        start_reference_server(timeout=0.001)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_without_a_traceback(number: signal.Signals) -> None:
    code = "from pytest_llm_determinism.reference.server import serve; serve(announce=lambda u: print(u, flush=True))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        base = child.stdout.readline().strip()
        assert post(base, TEXT, {"model": "dense", "prompt": FOX})[0] == 200
        child.send_signal(number)
        _, said = child.communicate(timeout=10)
    assert (child.returncode, said) == (0, "")


def test_serving_in_a_thread_and_a_port_in_use() -> None:
    stop, announced = threading.Event(), []
    ready = threading.Event()

    def announce(url: str) -> None:
        announced.append(url)
        ready.set()

    thread = threading.Thread(target=serve, kwargs={"announce": announce, "stop": stop})
    thread.start()
    try:
        assert ready.wait(10)
        port = urlsplit(announced[0]).port
        assert port
        assert post(announced[0], TEXT, {"model": "loop", "prompt": FOX})[0] == 200
        with pytest.raises(OSError, match="in use"):
            serve(port=port)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
