"""The HTTP routes: OpenAI's models, chat completions, completions and responses, plain and streamed.

Requests are validated as strictly as the real service does, because a test of an application should meet the
same errors here. Parameters that would change the answer and are not built are refused, not ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from . import FINGERPRINT, MODELS, words
from .engine import MAX_BATCH, Engine, Generation, Sampling, Token
from .model import CONTEXT, DEFAULT_CAPACITY_FACTOR, build

__all__ = ["create_app", "serve"]

DEFAULT_MAX_TOKENS = 256
"""Longest answer of a chat or a response that does not say; as in the original, a completion stops at 16."""

Body = dict[str, Any]


class ApiError(Exception):
    """An answer in OpenAI's error format."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def response(self) -> JSONResponse:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status)


# --- reading a request ---


async def _body(request: Request) -> Body:
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise ApiError(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(body, dict):
        raise ApiError("The body of the request must be a JSON object.")
    return body


def _wrong(name: str, expected: str, value: object) -> ApiError:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ApiError(
        f"Invalid value for '{name}': expected {expected}, but got {shown}.", param=name, code="invalid_value"
    )


def _number(body: Body, name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    # The comparison is written so that NaN, which Python's JSON reader accepts, is refused as well.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _wrong(name, f"a number between {low:g} and {high:g}", value)
    return float(value)


def _integer(body: Body, name: str, low: int, high: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise _wrong(
            name,
            f"an integer of at least {low}" + (f" and at most {high}" if high is not None else ""),
            value,
        )
    return value


def _boolean(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong(name, "a boolean", value)
    return value


def _refuse(body: Body, *names: str) -> None:
    for name in names:
        if body.get(name) not in (None, False):
            raise ApiError(f"The reference server does not support '{name}'.", param=name, code="unsupported_parameter")


def _stop(body: Body) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if (
        not isinstance(strings, list)
        or len(strings) > 4
        or not all(isinstance(string, str) and string for string in strings)
    ):
        raise _wrong("stop", "a string or a list of up to four strings, none empty", value)
    return tuple(strings)


def _logit_bias(body: Body) -> tuple[tuple[int, float], ...]:
    value = body.get("logit_bias")
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise _wrong("logit_bias", "an object of token ids and numbers", value)
    biases = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and int(token) < words.VOCABULARY_SIZE):
            raise ApiError(
                f"Invalid key in 'logit_bias': {token!r}. The ids of this vocabulary are 0 to "
                f"{words.VOCABULARY_SIZE - 1}.",
                param="logit_bias",
                code="invalid_value",
            )
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise _wrong("logit_bias", "numbers between -100 and 100", bias)
        biases.append((int(token), float(bias)))
    return tuple(biases)


def _sampling(body: Body, max_tokens: int, top_logprobs: int | None) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=_number(body, "temperature", 1.0, 0, 2),
        top_p=_number(body, "top_p", 1.0, 0, 1),
        seed=_integer(body, "seed", -(2**63), 2**63 - 1),
        stop=_stop(body),
        logit_bias=_logit_bias(body),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2, 2),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2, 2),
        top_logprobs=top_logprobs,
    )


def _text(content: object, name: str) -> str:
    """The content of a message as text. Parts that are no text count too: another image, another prompt."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict):
                raise _wrong(name, "a string or a list of content parts", part)
            text = part.get("text")
            parts.append(text if isinstance(text, str) else json.dumps(part, sort_keys=True))
        return "\n".join(parts)
    raise _wrong(name, "a string or a list of content parts", content)


def _prompt(messages: Sequence[object], name: str, tools: object) -> list[int]:
    lines = []
    if tools:
        lines.append("tools: " + json.dumps(tools, sort_keys=True))
    for index, message in enumerate(messages):
        place = f"{name}[{index}]"
        if not isinstance(message, dict):
            raise _wrong(place, "an object", message)
        role = message.get("role")
        if isinstance(role, str) and role:
            line = f"{role}: {_text(message.get('content'), f'{place}.content')}"
            if message.get("tool_calls"):
                line += json.dumps(message["tool_calls"], sort_keys=True)
            lines.append(line)
        elif name == "input" and isinstance(message.get("type"), str):
            lines.append(json.dumps(message, sort_keys=True))
        else:
            raise ApiError(f"Missing required parameter: '{place}.role'.", param=f"{place}.role")
    return words.encode("\n".join([*lines, "assistant:"]))


def _plain_text(body: Body, name: str, form: object) -> None:
    kind = form.get("type") if isinstance(form, dict) else form
    if kind not in (None, "text"):
        raise ApiError(
            f"Unsupported value for '{name}': the reference server answers in plain text only, not in {kind!r}.",
            param=name,
            code="unsupported_value",
        )


@dataclass(frozen=True)
class _Question:
    """A validated request: the answers to make, and how the route wants them shown."""

    model: str
    prompts: list[list[int]]
    sampling: Sampling
    choices: int = 1
    logprobs: bool = False
    stream: bool = False
    include_usage: bool = False


def _streaming(body: Body) -> tuple[bool, bool]:
    stream = _boolean(body, "stream")
    options = body.get("stream_options")
    if options is None:
        return stream, False
    if not isinstance(options, dict):
        raise _wrong("stream_options", "an object", options)
    if not stream:
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    return stream, _boolean(options, "include_usage")


def _messages(body: Body, name: str) -> list[object]:
    if name not in body:
        raise ApiError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    value = body[name]
    if not isinstance(value, list) or not value:
        raise _wrong(name, "a list of at least one message", value)
    return value


def _chat_question(body: Body) -> _Question:
    messages = _messages(body, "messages")
    _plain_text(body, "response_format", body.get("response_format"))
    _refuse(body, "functions", "audio")
    logprobs = _boolean(body, "logprobs")
    top = _integer(body, "top_logprobs", 0, 20)
    if top is not None and not logprobs:
        raise ApiError("'top_logprobs' is only allowed when 'logprobs' is enabled.", param="top_logprobs")
    limit = _integer(body, "max_completion_tokens", 1) or _integer(body, "max_tokens", 1) or DEFAULT_MAX_TOKENS
    stream, include_usage = _streaming(body)
    return _Question(
        model=body["model"],
        prompts=[_prompt(messages, "messages", body.get("tools"))],
        sampling=_sampling(body, limit, (top or 0) if logprobs else None),
        choices=_integer(body, "n", 1, 128) or 1,
        logprobs=logprobs,
        stream=stream,
        include_usage=include_usage,
    )


def _completion_question(body: Body) -> _Question:
    _refuse(body, "echo", "suffix")
    if (_integer(body, "best_of", 1) or 1) > 1:
        _refuse(body, "best_of")
    if body.get("prompt") is None:
        raise ApiError("Missing required parameter: 'prompt'.", param="prompt", code="missing_required_parameter")
    top = _integer(body, "logprobs", 0, 5)
    stream, include_usage = _streaming(body)
    return _Question(
        model=body["model"],
        prompts=_completion_prompts(body["prompt"]),
        sampling=_sampling(body, _integer(body, "max_tokens", 1) or 16, top),
        choices=_integer(body, "n", 1, 128) or 1,
        logprobs=top is not None,
        stream=stream,
        include_usage=include_usage,
    )


def _completion_prompts(value: object) -> list[list[int]]:
    if isinstance(value, str):
        return [words.encode(value)]
    if isinstance(value, list) and value:
        if _is_ids(value):
            return [value]
        if all(isinstance(item, str) for item in value):
            return [words.encode(item) for item in value]
        if all(isinstance(item, list) and item and _is_ids(item) for item in value):
            return value
    raise _wrong("prompt", f"a string, a list of strings, or token ids between 0 and {words.TOTAL_IDS - 1}", value)


def _is_ids(items: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item < words.TOTAL_IDS for item in items)


def _response_question(body: Body) -> _Question:
    _refuse(body, "previous_response_id", "conversation", "background", "prompt")
    text = body.get("text")
    _plain_text(body, "text.format", text.get("format") if isinstance(text, dict) else text)
    value = body.get("input")
    if isinstance(value, str):
        messages: list[object] = [{"role": "user", "content": value}]
    else:
        messages = _messages(body, "input")
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise _wrong("instructions", "a string", instructions)
        messages = [{"role": "system", "content": instructions}, *messages]
    include = body.get("include") or []
    if not isinstance(include, list):
        raise _wrong("include", "a list", include)
    top = _integer(body, "top_logprobs", 0, 20)
    logprobs = top is not None or "message.output_text.logprobs" in include
    return _Question(
        model=body["model"],
        prompts=[_prompt(messages, "input", body.get("tools"))],
        sampling=_sampling(
            body,
            _integer(body, "max_output_tokens", 1) or DEFAULT_MAX_TOKENS,
            (top or 0) if logprobs else None,
        ),
        logprobs=logprobs,
        stream=_boolean(body, "stream"),
    )


# --- making the answers ---


class _Models:
    """The engines, each built when its model is first asked for."""

    def __init__(self, capacity_factor: float) -> None:
        self._capacity_factor = capacity_factor
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def engine(self, name: str) -> Engine:
        with self._lock:
            engine = self._engines.get(name)
            if engine is None:
                network = build(name, slots=MAX_BATCH, capacity_factor=self._capacity_factor)
                engine = self._engines[name] = Engine(network, name=f"engine-{name}")
            return engine

    def ready(self, name: str) -> Engine | None:
        return self._engines.get(name)

    def fingerprint(self, name: str) -> str:
        """Changes with whatever changes the arithmetic of a model, so with the capacity factor as well."""
        suffix = f"-{self._capacity_factor:g}" if name == "moe-capacity" else ""
        return f"{FINGERPRINT}-{name}{suffix}"

    def close(self) -> None:
        with self._lock:
            for engine in self._engines.values():
                engine.close()


class _Answers:
    """All answers to one question, on their way. Leaving the context takes the unfinished ones out of the
    batch."""

    def __init__(self, question: _Question, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

        def progress() -> None:
            # The loop may be closed by the time an engine notices that the server stops.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._news.set)

        self.generations: list[Generation] = []
        for prompt in question.prompts:
            for _ in range(question.choices):
                sampling = question.sampling
                if sampling.seed is not None:
                    # Each choice draws from a stream of its own, or all choices were the same.
                    sampling = replace(sampling, seed=sampling.seed % 2**64 + (len(self.generations) << 64))
                limit = min(sampling.max_tokens, CONTEXT - len(prompt))
                sampling = replace(sampling, max_tokens=limit)
                self.generations.append(
                    Generation(prompt or [words.END_OF_TEXT], sampling, progress, every_token=question.stream)
                )
        engine.submit(self.generations)

    def __enter__(self) -> _Answers:
        return self

    def __exit__(self, *_: object) -> None:
        for generation in self.generations:
            generation.cancel()

    async def news(self) -> bool:
        """Wait until something happened; whether all answers are finished."""
        await self._news.wait()
        self._news.clear()
        for generation in self.generations:
            if generation.error is not None:
                raise ApiError(f"The engine failed: {generation.error!r}", status=500)
        return all(generation.done for generation in self.generations)

    async def finished(self, request: Request) -> bool:
        """Wait for all answers; False when the client went away first."""

        async def work() -> None:
            while not await self.news():
                pass

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.create_task(work()), asyncio.create_task(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                return False
            tasks[0].result()
            return True
        finally:
            for task in tasks:
                task.cancel()


@dataclass
class _Delta:
    """What became certain of one answer since the last look."""

    index: int
    text: str
    tokens: list[Token]
    finish_reason: str | None


class _Reader:
    """Follows the answers of a stream and cuts them into deltas: one for each token, one for the end.

    Tokens that came while nobody looked are not merged, so that the same answer is always the same stream.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations = generations
        self._seen = [(0, 0) for _ in generations]
        self._ended = [False for _ in generations]

    def deltas(self) -> Iterator[_Delta]:
        for index, generation in enumerate(self._generations):
            if self._ended[index]:
                continue
            # Read first what the engine's thread writes last.
            reason = generation.finish_reason
            visible = generation.visible
            count, start = self._seen[index]
            for token in generation.tokens[count:]:
                end = start + len(token.text)
                if end > visible and reason is None:
                    break
                yield _Delta(index, generation.text[start : min(end, visible)], [token], None)
                count, start = count + 1, end
            self._seen[index] = (count, start)
            if reason is not None:
                self._ended[index] = True
                yield _Delta(index, "", [], reason)


def _usage(question: _Question, generations: Sequence[Generation]) -> tuple[int, int]:
    return sum(map(len, question.prompts)), sum(len(generation.tokens) for generation in generations)


def _chat_usage(question: _Question, generations: Sequence[Generation]) -> Body:
    prompt, answer = _usage(question, generations)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _logprob(text: str, logprob: float) -> Body:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _logprobs(tokens: Sequence[Token]) -> list[Body]:
    return [
        _logprob(token.text, token.logprob)
        | {"top_logprobs": [_logprob(text, logprob) for _, text, logprob in token.top]}
        for token in tokens
    ]


def _event(data: Body, name: str | None = None) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n"


def _failure(error: ApiError) -> str:
    return _event({"error": {"message": str(error), "type": "server_error", "param": None, "code": None}}, "error")


def _head(prefix: str, kind: str, question: _Question, fingerprint: str) -> Body:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": question.model,
        "system_fingerprint": fingerprint,
    }


# --- chat completions ---


def _chat(question: _Question, generations: Sequence[Generation], fingerprint: str) -> Body:
    return _head("chatcmpl", "chat.completion", question, fingerprint) | {
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": generation.text, "refusal": None},
                "logprobs": {"content": _logprobs(generation.tokens), "refusal": None} if question.logprobs else None,
                "finish_reason": generation.finish_reason,
            }
            for index, generation in enumerate(generations)
        ],
        "usage": _chat_usage(question, generations),
    }


async def _chat_stream(question: _Question, answers: _Answers, fingerprint: str) -> AsyncIterator[str]:
    head = _head("chatcmpl", "chat.completion.chunk", question, fingerprint)

    def chunk(index: int, delta: Body, tokens: Sequence[Token] = (), finish_reason: str | None = None) -> str:
        logprobs = {"content": _logprobs(tokens), "refusal": None} if question.logprobs and tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return _event(head | {"choices": [choice]} | ({"usage": None} if question.include_usage else {}))

    reader = _Reader(answers.generations)
    for index in range(len(answers.generations)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    finished = False
    while not finished:
        finished = await answers.news()
        for delta in reader.deltas():
            if delta.text or delta.tokens:
                yield chunk(delta.index, {"content": delta.text}, delta.tokens)
            if delta.finish_reason is not None:
                yield chunk(delta.index, {}, (), delta.finish_reason)
    if question.include_usage:
        yield _event(head | {"choices": [], "usage": _chat_usage(question, answers.generations)})
    yield "data: [DONE]\n\n"


# --- completions ---


def _legacy_logprobs(tokens: Sequence[Token], offset: int) -> Body:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {text: logprob for _, text, logprob in token.top} | {token.text: token.logprob} for token in tokens
        ],
        "text_offset": offsets,
    }


def _completion(question: _Question, generations: Sequence[Generation], fingerprint: str) -> Body:
    return _head("cmpl", "text_completion", question, fingerprint) | {
        "choices": [
            {
                "index": index,
                "text": generation.text,
                "logprobs": _legacy_logprobs(generation.tokens, 0) if question.logprobs else None,
                "finish_reason": generation.finish_reason,
            }
            for index, generation in enumerate(generations)
        ],
        "usage": _chat_usage(question, generations),
    }


async def _completion_stream(question: _Question, answers: _Answers, fingerprint: str) -> AsyncIterator[str]:
    head = _head("cmpl", "text_completion", question, fingerprint)
    reader = _Reader(answers.generations)
    offsets = [0 for _ in answers.generations]
    finished = False
    while not finished:
        finished = await answers.news()
        for delta in reader.deltas():
            choice = {
                "index": delta.index,
                "text": delta.text,
                "logprobs": _legacy_logprobs(delta.tokens, offsets[delta.index]) if question.logprobs else None,
                "finish_reason": delta.finish_reason,
            }
            offsets[delta.index] += sum(len(token.text) for token in delta.tokens)
            yield _event(head | {"choices": [choice]} | ({"usage": None} if question.include_usage else {}))
    if question.include_usage:
        yield _event(head | {"choices": [], "usage": _chat_usage(question, answers.generations)})
    yield "data: [DONE]\n\n"


# --- responses ---


def _part(question: _Question, text: str, tokens: Sequence[Token]) -> Body:
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": _logprobs(tokens) if question.logprobs else [],
    }


def _message(ident: str, status: str, content: list[Body]) -> Body:
    return {"id": ident, "type": "message", "status": status, "role": "assistant", "content": content}


def _response_head(question: _Question, body: Body, fingerprint: str) -> Body:
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": question.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "system_fingerprint": fingerprint,
        "temperature": question.sampling.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": question.sampling.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _response_end(question: _Question, generation: Generation, message: str) -> Body:
    prompt, answer = _usage(question, [generation])
    complete = generation.finish_reason == "stop"
    status = "completed" if complete else "incomplete"
    return {
        "status": status,
        "incomplete_details": None if complete else {"reason": "max_output_tokens"},
        "output": [_message(message, status, [_part(question, generation.text, generation.tokens)])],
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + answer,
        },
    }


async def _response_stream(question: _Question, answers: _Answers, head: Body) -> AsyncIterator[str]:
    number = -1
    ident = f"msg_{uuid.uuid4().hex}"
    place = {"item_id": ident, "output_index": 0, "content_index": 0}

    def event(name: str, **fields: Any) -> str:
        nonlocal number
        number += 1
        return _event({"type": name, "sequence_number": number} | fields, name)

    yield event("response.created", response=head)
    yield event("response.in_progress", response=head)
    yield event("response.output_item.added", output_index=0, item=_message(ident, "in_progress", []))
    yield event("response.content_part.added", **place, part=_part(question, "", ()))
    (generation,) = answers.generations
    reader = _Reader(answers.generations)
    finished = False
    while not finished:
        finished = await answers.news()
        for delta in reader.deltas():
            if delta.text or delta.tokens:
                logprobs = _logprobs(delta.tokens) if question.logprobs else []
                yield event("response.output_text.delta", **place, delta=delta.text, logprobs=logprobs)
    end = _response_end(question, generation, ident)
    part = end["output"][0]["content"][0]
    yield event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
    yield event("response.content_part.done", **place, part=part)
    yield event("response.output_item.done", output_index=0, item=end["output"][0])
    yield event(f"response.{end['status']}", response=head | end)


# --- the application ---


def create_app(capacity_factor: float = DEFAULT_CAPACITY_FACTOR) -> Starlette:
    """The server as an ASGI application. `capacity_factor` sizes the expert buffers of `moe-capacity`."""
    if not 0 < capacity_factor < float("inf"):
        raise ValueError(f"the capacity factor must be a positive number, not {capacity_factor!r}")
    models = _Models(capacity_factor)

    async def asked(request: Request, read: Callable[[Body], _Question]) -> tuple[Body, _Question, Engine]:
        body = await _body(request)
        name = body.get("model")
        if name is None:
            raise ApiError("You must provide a model parameter.", param="model")
        if not isinstance(name, str):
            raise _wrong("model", "a string", name)
        known(name)
        question = read(body)
        longest = max(map(len, question.prompts))
        if longest >= CONTEXT:
            raise ApiError(
                f"This model's maximum context length is {CONTEXT} tokens. However, your prompt has {longest} tokens.",
                param="messages" if "messages" in body else "input" if "input" in body else "prompt",
                code="context_length_exceeded",
            )
        engine = models.ready(name)
        if engine is None:
            # Building a network takes a moment in which other requests should be served.
            engine = await asyncio.to_thread(models.engine, name)
        return body, question, engine

    def known(name: str) -> None:
        if name not in MODELS:
            raise ApiError(
                f"The model `{name}` does not exist. The reference server has: {', '.join(MODELS)}.",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def reply(
        request: Request,
        question: _Question,
        engine: Engine,
        whole: Callable[[Sequence[Generation]], Body],
        stream: Callable[[_Answers], AsyncIterator[str]],
    ) -> Response:
        if question.stream:

            async def events() -> AsyncIterator[str]:
                with _Answers(question, engine) as answers:
                    try:
                        async for event in stream(answers):
                            yield event
                    except ApiError as error:
                        yield _failure(error)

            return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        with _Answers(question, engine) as answers:
            if not await answers.finished(request):
                return Response(status_code=499)
            return JSONResponse(whole(answers.generations))

    async def chat(request: Request) -> Response:
        _, question, engine = await asked(request, _chat_question)
        print_ = models.fingerprint(question.model)
        return await reply(
            request,
            question,
            engine,
            lambda generations: _chat(question, generations, print_),
            lambda answers: _chat_stream(question, answers, print_),
        )

    async def completions(request: Request) -> Response:
        _, question, engine = await asked(request, _completion_question)
        print_ = models.fingerprint(question.model)
        return await reply(
            request,
            question,
            engine,
            lambda generations: _completion(question, generations, print_),
            lambda answers: _completion_stream(question, answers, print_),
        )

    async def responses(request: Request) -> Response:
        body, question, engine = await asked(request, _response_question)
        head = _response_head(question, body, models.fingerprint(question.model))
        return await reply(
            request,
            question,
            engine,
            lambda generations: head | _response_end(question, generations[0], f"msg_{uuid.uuid4().hex}"),
            lambda answers: _response_stream(question, answers, head),
        )

    started = int(time.time())

    def card(name: str) -> Body:
        return {"id": name, "object": "model", "created": started, "owned_by": "pytest-llm-determinism"}

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card(name) for name in MODELS]})

    async def one_model(request: Request) -> Response:
        known(request.path_params["name"])
        return JSONResponse(card(request.path_params["name"]))

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"Invalid URL ({request.method} {request.url.path})"
        return ApiError(message, status=error.status_code, code="unknown_url").response()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            models.close()

    return Starlette(
        routes=[
            Route("/v1/models", list_models),
            Route("/v1/models/{name}", one_model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/responses", responses, methods=["POST"]),
        ],
        exception_handlers={ApiError: refused, HTTPException: no_route},
        lifespan=lifespan,
    )


class _Server(uvicorn.Server):
    """Says when it accepts connections, and ends on a signal without raising it again."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The original repeats the signal when it is done, which ends in a traceback of KeyboardInterrupt.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    capacity_factor: float = DEFAULT_CAPACITY_FACTOR,
    announce: Callable[[str], object] = print,
    stop: threading.Event | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `stop` is set. Port 0 takes any free port.

    `announce` is called once with the base URL, as soon as connections are accepted. Raises `OSError` when
    the address cannot be bound.
    """
    app = create_app(capacity_factor)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener:
        # Inherited by each connection. asyncio sets it only on sockets that name their protocol, and without it
        # an answer sent in two pieces waits for an acknowledgement in between.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_keep_alive=60, timeout_graceful_shutdown=1
        )
        server = _Server(config, lambda: announce(f"http://{shown}:{bound}/v1"))
        if stop is not None:

            def watch() -> None:
                stop.wait()
                server.should_exit = True

            threading.Thread(target=watch, daemon=True).start()
        server.run(sockets=[listener])
