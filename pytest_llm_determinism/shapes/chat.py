"""OpenAI Chat Completions (``POST …/chat/completions``), also under Azure-style paths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_llm_determinism.shapes.answer import (
    Answer,
    Choice,
    Family,
    ToolCall,
    answer_of,
    in_order,
    text_of,
)
from pytest_llm_determinism.shapes.sse import read_choices


def _route(path: str) -> bool:
    return path.endswith("/chat/completions")


def _asks(body: dict[str, Any]) -> bool:
    return isinstance(body.get("messages"), list)


def _read(content: dict[str, Any]) -> Answer:
    choices = []
    for item in in_order(content.get("choices") or ()):
        message = item.get("message") or {}
        calls = [
            _tool_call(call.get("function") or call.get("custom") or {}) for call in message.get("tool_calls") or ()
        ]
        if message.get("function_call"):
            calls.append(_tool_call(message["function_call"]))
        choices.append(
            Choice(
                text_of(message.get("content")),
                message.get("refusal") or "",
                calls,
                item.get("finish_reason"),
            )
        )
    return answer_of(choices, content, content.get("usage"))


def _tool_call(function: dict[str, Any]) -> ToolCall:
    return ToolCall(str(function.get("name")), str(function.get("arguments", function.get("input", ""))))


def _read_stream(events: Iterable[Any]) -> Answer:
    calls: dict[tuple[int, int], tuple[str, str]] = {}

    def add(choice: Choice, item: dict[str, Any]) -> None:
        delta = item.get("delta") or {}
        choice.text += text_of(delta.get("content"))
        choice.refusal += delta.get("refusal") or ""
        fragments = list(delta.get("tool_calls") or ())
        if delta.get("function_call"):
            fragments.append({"index": 0, "function": delta["function_call"]})
        for fragment in fragments:
            place = (item.get("index", 0), fragment.get("index", 0))
            name, arguments = calls.get(place, ("", ""))
            function = fragment.get("function") or {}
            calls[place] = (name + (function.get("name") or ""), arguments + (function.get("arguments") or ""))

    choices, last, usage = read_choices(events, add)
    for (index, _), (name, arguments) in sorted(calls.items()):
        choices[index].tool_calls.append(ToolCall(name, arguments))
    return answer_of([choice for _, choice in sorted(choices.items())], last, usage)


FAMILY = Family("chat completions", _route, _asks, _read, _read_stream)
