"""Completions, the API before chat: their questions, their answers in one piece and as streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from . import words
from .answers import Answers, Reader, answer_head, chunk_end, server_sent_event, usage, usage_chunk
from .engine import Token
from .questions import ApiError, Body, Question, integer, read_sampling, read_streaming, refuse, wrong

__all__ = ["read", "stream", "whole"]


def read(body: Body) -> Question:
    """The question of a request whose `model` is known to be right. Raises `ApiError` for any other mistake."""
    refuse(body, "echo", "suffix")
    if (integer(body, "best_of", 1) or 1) > 1:
        refuse(body, "best_of")
    if body.get("prompt") is None:
        raise ApiError("Missing required parameter: 'prompt'.", param="prompt", code="missing_required_parameter")
    top = integer(body, "logprobs", 0, 5)
    stream, include_usage = read_streaming(body)
    return Question(
        model=body["model"],
        prompts=_prompts(body["prompt"]),
        sampling=read_sampling(body, integer(body, "max_tokens", 1) or 16, top),
        choices=integer(body, "n", 1, 128) or 1,
        logprobs=top is not None,
        stream=stream,
        include_usage=include_usage,
    )


def _prompts(value: object) -> list[list[int]]:
    if isinstance(value, str):
        return [words.encode(value)]
    if isinstance(value, list) and value:
        if _is_ids(value):
            return [value]
        if all(isinstance(item, str) for item in value):
            return [words.encode(item) for item in value]
        if all(isinstance(item, list) and item and _is_ids(item) for item in value):
            return value
    raise wrong("prompt", f"a string, a list of strings, or token ids between 0 and {words.TOTAL_IDS - 1}", value)


def _is_ids(items: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item < words.TOTAL_IDS for item in items)


def whole(question: Question, answers: Answers, fingerprint: str) -> Body:
    """The answer in one piece, made when all its choices are finished."""
    return answer_head("cmpl", "text_completion", question, fingerprint) | {
        "choices": [
            {
                "index": index,
                "text": generation.text,
                "logprobs": _logprobs(generation.tokens, 0) if question.logprobs else None,
                "finish_reason": generation.finish_reason,
            }
            for index, generation in enumerate(answers.generations)
        ],
        "usage": usage(question, answers.generations),
        "x_reference": answers.company(),
    }


async def stream(question: Question, answers: Answers, fingerprint: str) -> AsyncIterator[str]:
    """The answer as server-sent events, as it is made, token by token. Raises `ApiError` when the engine fails."""
    head = answer_head("cmpl", "text_completion", question, fingerprint)
    reader = Reader(answers.generations)
    offsets = [0 for _ in answers.generations]
    finished = False
    while not finished:
        finished = await answers.news()
        for delta in reader.deltas():
            choice = {
                "index": delta.index,
                "text": delta.text,
                "logprobs": _logprobs(delta.tokens, offsets[delta.index]) if question.logprobs else None,
                "finish_reason": delta.finish_reason,
            }
            offsets[delta.index] += sum(len(token.text) for token in delta.tokens)
            yield server_sent_event(head | {"choices": [choice]} | chunk_end(question, answers, reader))
    if question.include_usage:
        yield usage_chunk(head, question, answers)
    yield "data: [DONE]\n\n"


def _logprobs(tokens: Sequence[Token], offset: int) -> Body:
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
