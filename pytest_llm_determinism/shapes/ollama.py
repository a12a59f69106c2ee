"""Ollama's own API (``POST …/api/chat`` and ``…/api/generate``); it streams unless told not to."""

from __future__ import annotations

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
    medium,
)
from pytest_llm_determinism.shapes.plain import inner, kept, limited
from pytest_llm_determinism.shapes.tokens import tokens_in


def _route(path: str) -> bool:
    return path.endswith(("/api/chat", "/api/generate"))


def _asks(body: dict[str, Any]) -> bool:
    # Applications have routes of these names. And with no message, or an empty prompt, a model is only loaded.
    return isinstance(body.get("model"), str) and bool(body.get("messages") or body.get("prompt"))


def _streams(path: str, body: Mapping[str, Any]) -> bool:
    return body.get("stream") is not False


def _read(content: Any) -> Answer:
    return _read_stream([content])


def _read_stream(events: Iterable[Any]) -> Answer:
    choice = Choice()
    for event in events:
        if not isinstance(event, dict):
            continue
        _add(choice, event)
        if event.get("done") is True:
            if not any(field in event for field in ("message", "response", "image")):
                raise Unreadable(f"a response without an answer: {str(event)[:80]}")
            choice.finish_reason = event.get("done_reason")
            counts = {"input_tokens": event.get("prompt_eval_count"), "output_tokens": event.get("eval_count")}
            return answer_of([choice], event, counts)
    raise Unreadable("an answer that broke off before its end")


def _add(choice: Choice, event: dict[str, Any]) -> None:
    """Add what one event says: a message, or beside it the same fields under the older API's names."""
    said = event["message"] if "message" in event else {**event, "content": event.get("response")}
    choice.text += said.get("content") or ""
    choice.reasoning += said.get("thinking") or ""
    choice.tokens += tokens_in(event.get("logprobs"))
    choice.media.extend(medium("image", data) for data in said.get("images") or ())
    if said.get("image"):
        choice.media.append(medium("image", said["image"]))
    for call in said.get("tool_calls") or ():
        choice.tool_calls.append(ToolCall(call["function"]["name"], arguments_of(call["function"].get("arguments"))))


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    # All options: another size of the context, say, would load the model anew.
    given = inner(body, "options")
    asked = {"messages": [{"role": "user", "content": question}]} if "messages" in body else {"prompt": question}
    return {
        **kept(body, "model", "think", "keep_alive"),
        **asked,
        "stream": False,
        "options": {**kept(given, *given), **limited(given, tokens, "num_predict")},
    }


FAMILY = Family(
    "Ollama",
    _route,
    _asks,
    _read,
    _read_stream,
    streams=_streams,
    places={
        "temperature": "options.temperature",
        "seed": "options.seed",
        "top_p": "options.top_p",
        "top_k": "options.top_k",
        "max_tokens": "options.num_predict",
        "max_output_tokens": "options.num_predict",
        "max_completion_tokens": "options.num_predict",
        "stop": "options.stop",
        "presence_penalty": "options.presence_penalty",
        "frequency_penalty": "options.frequency_penalty",
    },
    plain=_plain,
)
