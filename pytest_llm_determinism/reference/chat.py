"""Chat completions: their questions, their answers in one piece and as streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from .answers import Answers, Reader, answer_head, chunk_end, logprob_entries, server_sent_event, usage, usage_chunk
from .engine import Token
from .questions import (
    DEFAULT_MAX_TOKENS,
    ApiError,
    Body,
    Question,
    boolean,
    encode_messages,
    integer,
    plain_text_only,
    read_messages,
    read_sampling,
    read_streaming,
    refuse,
)

__all__ = ["read", "stream", "whole"]


def read(body: Body) -> Question:
    """The question of a request whose `model` is known to be right. Raises `ApiError` for any other mistake."""
    messages = read_messages(body, "messages")
    plain_text_only("response_format", body.get("response_format"))
    refuse(body, "functions", "audio")
    logprobs = boolean(body, "logprobs")
    top = integer(body, "top_logprobs", 0, 20)
    if top is not None and not logprobs:
        raise ApiError("'top_logprobs' is only allowed when 'logprobs' is enabled.", param="top_logprobs")
    limit = integer(body, "max_completion_tokens", 1) or integer(body, "max_tokens", 1) or DEFAULT_MAX_TOKENS
    stream, include_usage = read_streaming(body)
    return Question(
        model=body["model"],
        prompts=[encode_messages(messages, "messages", body.get("tools"))],
        sampling=read_sampling(body, limit, (top or 0) if logprobs else None),
        choices=integer(body, "n", 1, 128) or 1,
        logprobs=logprobs,
        stream=stream,
        include_usage=include_usage,
    )


def whole(question: Question, answers: Answers, fingerprint: str) -> Body:
    """The answer in one piece, made when all its choices are finished."""
    return answer_head("chatcmpl", "chat.completion", question, fingerprint) | {
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": generation.text, "refusal": None},
                "logprobs": {"content": logprob_entries(generation.tokens), "refusal": None}
                if question.logprobs
                else None,
                "finish_reason": generation.finish_reason,
            }
            for index, generation in enumerate(answers.generations)
        ],
        "usage": usage(question, answers.generations),
        "x_reference": answers.company(),
    }


async def stream(question: Question, answers: Answers, fingerprint: str) -> AsyncIterator[str]:
    """The answer as server-sent events, as it is made, token by token. Raises `ApiError` when the engine fails."""
    head = answer_head("chatcmpl", "chat.completion.chunk", question, fingerprint)

    reader = Reader(answers.generations)

    def chunk(index: int, delta: Body, tokens: Sequence[Token] = (), finish_reason: str | None = None) -> str:
        logprobs = {"content": logprob_entries(tokens), "refusal": None} if question.logprobs and tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return server_sent_event(head | {"choices": [choice]} | chunk_end(question, answers, reader))

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
        yield usage_chunk(head, question, answers)
    yield "data: [DONE]\n\n"
