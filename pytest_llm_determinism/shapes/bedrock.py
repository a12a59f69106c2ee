"""Amazon Bedrock's one form for all models (``POST …/model/{id}/converse`` and ``…/converse-stream``)."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pytest_llm_determinism.shapes.answer import (
    Answer,
    Choice,
    Family,
    ToolCall,
    Unreadable,
    answer_of,
    arguments_of,
    decoded,
    medium,
    text_of,
    text_or_none,
)
from pytest_llm_determinism.shapes.plain import inner, kept, limited

# An id may be an ARN, in which there are slashes: how they are quoted differs among clients.
_MODEL = re.compile(r"/model/(?P<model>.+)/converse(?:-stream)?$")

_SAID_ALL = ("end_turn", "tool_use", "max_tokens", "stop_sequence", "model_context_window_exceeded")
_MEDIA = ("image", "video", "audio")


def _route(path: str) -> bool:
    return _MODEL.search(path) is not None


def _asks(body: dict[str, Any]) -> bool:
    return True


def _streams(path: str, body: Mapping[str, Any]) -> bool:
    return path.endswith("-stream")


def _read(content: dict[str, Any]) -> Answer:
    blocks, reason = content["output"]["message"]["content"], content.get("stopReason")
    if not isinstance(blocks, list) or not (blocks or reason):
        raise Unreadable(f"a response without content: {str(content)[:80]}")
    choice = Choice(finish_reason=reason)
    for block in blocks:
        _add(choice, block)
    if reason and reason not in _SAID_ALL:
        choice.refusal = f"stopped: {reason}"
    usage = content.get("usage") or {}
    counts = {
        "input_tokens": usage.get("inputTokens"),
        "output_tokens": usage.get("outputTokens"),
        # Under the second name where a model that answers in this form is invoked.
        "cached_tokens": usage.get("cacheReadInputTokens", usage.get("cacheReadInputTokenCount")),
    }
    router = (content.get("trace") or {}).get("promptRouter") or {}
    return replace(answer_of([choice], content, counts), model=text_or_none(router.get("invokedModelId")))


def _add(choice: Choice, block: dict[str, Any]) -> None:
    """Add a block of content. What the provider's own tools gave is not the model's words, and is left out."""
    choice.text += block.get("text") or text_of((block.get("citationsContent") or {}).get("content"))
    choice.reasoning += ((block.get("reasoningContent") or {}).get("reasoningText") or {}).get("text") or ""
    if block.get("toolUse"):
        called = block["toolUse"]
        choice.tool_calls.append(ToolCall(str(called.get("name")), arguments_of(called.get("input"))))
    for kind in _MEDIA:
        if block.get(kind):
            source = block[kind]["source"]
            data = source["bytes"] if "bytes" in source else source["s3Location"]["uri"]
            choice.media.append(medium(f"{kind}/{block[kind].get('format')}", data))


def _read_stream(events: Iterable[Any]) -> Answer:
    blocks: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    ended = False
    for event in events:
        if "contentBlockStart" in event:
            start = event["contentBlockStart"]
            blocks[start["contentBlockIndex"]] = {**start["start"]}
        elif "contentBlockDelta" in event:
            piece = event["contentBlockDelta"]
            _grow(blocks.setdefault(piece["contentBlockIndex"], {}), piece["delta"])
        elif "messageStop" in event:
            whole, ended = {**whole, **event["messageStop"]}, True
        elif "metadata" in event:
            whole = {**whole, **event["metadata"]}
    if not ended:
        raise Unreadable("a stream that broke off before its end")
    content = [_grown(block) for _, block in sorted(blocks.items())]
    return _read({**whole, "output": {"message": {"content": content}}})


def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
    if "text" in delta:
        block["text"] = block.get("text", "") + delta["text"]
    elif "reasoningContent" in delta:
        block["thinking"] = block.get("thinking", "") + delta["reasoningContent"].get("text", "")
    elif "toolUse" in delta:
        block["written"] = block.get("written", "") + delta["toolUse"]["input"]
    elif "image" in delta:
        block["data"] = block.get("data", b"") + decoded(delta["image"]["source"]["bytes"])


def _grown(block: dict[str, Any]) -> dict[str, Any]:
    """A block as it stands in a response that is not streamed, from its start and what its pieces amount to."""
    if "toolUse" in block:
        return {"toolUse": {**block["toolUse"], "input": _parsed(block.get("written") or "{}")}}
    if "image" in block:
        source = {"bytes": base64.b64encode(block.get("data", b"")).decode()}
        return {"image": {**block["image"], "source": source}}
    return {"text": block.get("text"), "reasoningContent": {"reasoningText": {"text": block.get("thinking")}}}


def _parsed(written: str) -> Any:
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written  # cut off by the token limit


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    given = inner(body, "inferenceConfig")
    return {
        "messages": [{"role": "user", "content": [{"text": question}]}],
        "inferenceConfig": {**kept(given, "temperature", "topP"), **limited(given, tokens, "maxTokens")},
    }


FAMILY = Family(
    "Bedrock converse",
    _route,
    _asks,
    _read,
    _read_stream,
    streams=_streams,
    model_path=_MODEL,
    model_in_body=False,
    places={
        "temperature": "inferenceConfig.temperature",
        "top_p": "inferenceConfig.topP",
        "max_tokens": "inferenceConfig.maxTokens",
        "max_output_tokens": "inferenceConfig.maxTokens",
        "max_completion_tokens": "inferenceConfig.maxTokens",
        "stop": "inferenceConfig.stopSequences",
    },
    plain=_plain,
)
