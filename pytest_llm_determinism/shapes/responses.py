"""OpenAI Responses (``POST …/responses``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_llm_determinism.shapes.answer import (
    AZURE_DEPLOYMENT,
    Answer,
    Choice,
    Family,
    ToolCall,
    Unreadable,
    answer_of,
    arguments_of,
    medium,
    text_of,
)

_ASKED = ("arguments", "input", "action", "queries", "code")
_ENDINGS = ("response.completed", "response.incomplete")


def _route(path: str) -> bool:
    return path.endswith("/responses")


def _asks(body: dict[str, Any]) -> bool:
    return "input" in body or "prompt" in body


def _read(content: dict[str, Any]) -> Answer:
    if content.get("status") in ("failed", "cancelled", "queued", "in_progress"):
        raise Unreadable(f"a response whose status is {content['status']}")
    items = content.get("output")
    if not isinstance(items, list):
        raise Unreadable(f"a response without output: {str(content)[:80]}")
    choice = Choice()
    for item in items:
        kind = str(item.get("type", ""))
        if kind == "message":
            for part in item.get("content") or ():
                choice.text += str(part.get("text") or "")
                choice.refusal += str(part.get("refusal") or "")
        elif kind == "reasoning":
            choice.reasoning += text_of(item.get("summary")) + text_of(item.get("content"))
        elif kind == "image_generation_call":
            choice.media.append(medium("image", str(item.get("result") or "")))
        elif kind.endswith("_call"):
            # Calls of the provider's own tools have an action, or queries, in place of arguments.
            asked = next(
                (item[field] for field in ("arguments", "input", "action", "queries", "code") if field in item), ""
            )
            choice.tool_calls.append(ToolCall(str(item.get("name") or kind), arguments_of(asked)))
    incomplete = content.get("incomplete_details")
    choice.finish_reason = incomplete.get("reason") if isinstance(incomplete, dict) else content.get("status")
    return answer_of([choice], content, content.get("usage"))


def _read_stream(events: Iterable[Any]) -> Answer:
    for event in events:
        if isinstance(event, dict) and event.get("type") == "response.failed":
            raise Unreadable(f"a stream that ended in a failure: {str(event)[:200]}")
        if isinstance(event, dict) and event.get("type") in _ENDINGS:
            return _read(event["response"])
    raise Unreadable("a stream that broke off before its end")


FAMILY = Family("responses", _route, _asks, _read, _read_stream, model_path=AZURE_DEPLOYMENT)
