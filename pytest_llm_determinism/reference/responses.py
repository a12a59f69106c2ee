"""Responses: their questions, their answers in one piece and as streams. A response is always one answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from .answers import Answers, Reader, logprob_entries, server_sent_event, token_counts
from .engine import Token
from .questions import (
    DEFAULT_MAX_TOKENS,
    Body,
    Question,
    boolean,
    encode_messages,
    integer,
    plain_text_only,
    read_messages,
    read_sampling,
    refuse,
    wrong,
)

__all__ = ["begin", "read", "stream", "whole"]


def read(body: Body) -> Question:
    """The question of a request whose `model` is known to be right. Raises `ApiError` for any other mistake."""
    refuse(body, "previous_response_id", "conversation", "background", "prompt")
    text = body.get("text")
    plain_text_only("text.format", text.get("format") if isinstance(text, dict) else text)
    value = body.get("input")
    if isinstance(value, str):
        messages: list[object] = [{"role": "user", "content": value}]
    else:
        messages = read_messages(body, "input")
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise wrong("instructions", "a string", instructions)
        messages = [{"role": "system", "content": instructions}, *messages]
    include = body.get("include") or []
    if not isinstance(include, list):
        raise wrong("include", "a list", include)
    top = integer(body, "top_logprobs", 0, 20)
    logprobs = top is not None or "message.output_text.logprobs" in include
    return Question(
        model=body["model"],
        prompts=[encode_messages(messages, "input", body.get("tools"))],
        sampling=read_sampling(
            body,
            integer(body, "max_output_tokens", 1) or DEFAULT_MAX_TOKENS,
            (top or 0) if logprobs else None,
        ),
        logprobs=logprobs,
        stream=boolean(body, "stream"),
    )


def begin(question: Question, body: Body, fingerprint: str) -> Body:
    """The response before its first token: what `whole` and `stream` complete. Each call makes a new id."""
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


def whole(question: Question, answers: Answers, head: Body) -> Body:
    """The response in one piece, made when its one answer is finished."""
    return head | _end(question, answers, f"msg_{uuid.uuid4().hex}")


async def stream(question: Question, answers: Answers, head: Body) -> AsyncIterator[str]:
    """The response as server-sent events, as it is made, token by token. Raises `ApiError` when the engine fails."""
    number = -1
    ident = f"msg_{uuid.uuid4().hex}"
    place = {"item_id": ident, "output_index": 0, "content_index": 0}

    def event(name: str, **fields: Any) -> str:
        nonlocal number
        number += 1
        return server_sent_event({"type": name, "sequence_number": number} | fields, name)

    yield event("response.created", response=head)
    yield event("response.in_progress", response=head)
    yield event("response.output_item.added", output_index=0, item=_message(ident, "in_progress", []))
    yield event("response.content_part.added", **place, part=_part(question, "", ()))
    reader = Reader(answers.generations)
    finished = False
    while not finished:
        finished = await answers.news()
        for delta in reader.deltas():
            if delta.text or delta.tokens:
                logprobs = logprob_entries(delta.tokens) if question.logprobs else []
                yield event("response.output_text.delta", **place, delta=delta.text, logprobs=logprobs)
    end = _end(question, answers, ident)
    part = end["output"][0]["content"][0]
    yield event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
    yield event("response.content_part.done", **place, part=part)
    yield event("response.output_item.done", output_index=0, item=end["output"][0])
    yield event(f"response.{end['status']}", response=head | end)


def _end(question: Question, answers: Answers, message: str) -> Body:
    (generation,) = answers.generations
    prompt, answer = token_counts(question, [generation])
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
        "x_reference": answers.company(),
    }


def _message(ident: str, status: str, content: list[Body]) -> Body:
    return {"id": ident, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(question: Question, text: str, tokens: Sequence[Token]) -> Body:
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": logprob_entries(tokens) if question.logprobs else [],
    }
