"""Anthropic Messages (``POST …/messages``), also on Google's cloud (``…/publishers/anthropic/models/…:rawPredict``)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_llm_determinism.shapes.answer import (
    Answer,
    Choice,
    Family,
    ToolCall,
    Unreadable,
    answer_of,
    arguments_of,
    json_text,
    says_stream,
)
from pytest_llm_determinism.shapes.plain import kept, limited

_ON_GOOGLE = re.compile(r"/publishers/anthropic/models/(?P<model>[^/:]+):(?:streamR|r)awPredict$")

# What a piece of a streamed block adds to, by the piece's type. Signatures and citations are no part of an answer.
_GROWING = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def _route(path: str) -> bool:
    return path.endswith("/messages") or _ON_GOOGLE.search(path) is not None


def _asks(body: dict[str, Any]) -> bool:
    return isinstance(body.get("messages"), list) and "max_tokens" in body


def _streams(path: str, body: Mapping[str, Any]) -> bool:
    return says_stream(path, body) or path.endswith(":streamRawPredict")


def _read(content: dict[str, Any]) -> Answer:
    blocks, reason = content.get("content"), content.get("stop_reason")
    if not isinstance(blocks, list) or not (blocks or reason):
        raise Unreadable(f"a message without content: {str(content)[:80]}")
    choice = Choice(finish_reason=reason)
    for block in blocks:
        kind = str(block.get("type"))
        if kind == "text":
            choice.text += block["text"]
        elif kind == "thinking":
            choice.reasoning += block["thinking"]
        elif kind.endswith("tool_use"):
            # Also the tools that the provider runs. Their results are not the model's words, and are left out.
            choice.tool_calls.append(ToolCall(str(block.get("name")), _arguments(block)))
    if reason == "refusal":
        # The explanation beside the category is not meant to be stable.
        choice.refusal = str((content.get("stop_details") or {}).get("category") or "refused")
    return answer_of([choice], content, content.get("usage"))


def _arguments(block: dict[str, Any]) -> str:
    written = block.get("partial_json")
    if not written:
        return arguments_of(block.get("input") or {})
    try:
        return json_text(json.loads(written))
    except (ValueError, RecursionError):
        return str(written)  # cut off by the token limit


def _read_stream(events: Iterable[Any]) -> Answer:
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    for event in events:
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "message_start":
            message = {**event["message"]}
        elif kind == "content_block_start":
            blocks[event["index"]] = {**event["content_block"]}
        elif kind == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            field = _GROWING.get(delta.get("type"))
            if field is not None:
                block[field] = (block.get(field) or "") + delta[field]
        elif kind == "message_delta":
            counted = {name: count for name, count in (event.get("usage") or {}).items() if count is not None}
            message = {**message, **event["delta"], "usage": {**(message.get("usage") or {}), **counted}}
        elif kind == "message_stop":
            return _read({**message, "content": [block for _, block in sorted(blocks.items())]})
    raise Unreadable("a stream that broke off before its end")


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    return {
        **kept(body, "model", "temperature", "top_p", "top_k", "service_tier", "anthropic_version"),
        **limited(body, tokens, "max_tokens"),
        "messages": [{"role": "user", "content": question}],
    }


FAMILY = Family(
    "messages",
    _route,
    _asks,
    _read,
    _read_stream,
    streams=_streams,
    model_path=_ON_GOOGLE,
    places={
        "stop": "stop_sequences",
        "max_output_tokens": "max_tokens",
        "max_completion_tokens": "max_tokens",
    },
    plain=_plain,
)
