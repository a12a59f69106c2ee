"""Cohere's chat (``POST …/v2/chat``), and its older form (``POST …/v1/chat``)."""

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
    text_of,
)
from pytest_llm_determinism.shapes.plain import DECODING, kept, limited

_FAILED = ("ERROR", "TIMEOUT", "USER_CANCEL")
_WITHHELD = "ERROR_TOXIC"


def _begun(reason: Any) -> Choice:
    """An answer that ended for this reason, with nothing in it yet."""
    if reason in _FAILED:
        raise Unreadable(f"an answer that ended in a failure: {reason}")
    return Choice(finish_reason=reason, refusal=f"stopped: {reason}" if reason == _WITHHELD else "")


def _counts(usage: Any) -> Any:
    usage = usage or {}
    counted = usage.get("tokens") or usage.get("billed_units")
    return {**(counted if isinstance(counted, dict) else {}), "cached_tokens": usage.get("cached_tokens")}


# Version 2


def _asks(body: dict[str, Any]) -> bool:
    return isinstance(body.get("messages"), list) and isinstance(body.get("model"), str)


def _read(content: dict[str, Any]) -> Answer:
    message, reason = content.get("message"), content.get("finish_reason")
    if not isinstance(message, dict) or not (message or reason):
        raise Unreadable(f"a response without a message: {str(content)[:80]}")
    choice = _begun(reason)
    parts = message.get("content") or ()
    choice.text = text_of(parts)
    # The plan is what a model with tools thinks aloud.
    choice.reasoning = message.get("tool_plan") or ""
    for part in parts if isinstance(parts, list) else ():
        choice.reasoning += part.get("thinking") or ""
    for call in message.get("tool_calls") or ():
        function = call["function"]
        choice.tool_calls.append(ToolCall(str(function.get("name")), arguments_of(function.get("arguments"))))
    return answer_of([choice], content, _counts(content.get("usage")))


def _read_stream(events: Iterable[Any]) -> Answer:
    name = None
    said = {"text": "", "thinking": "", "tool_plan": ""}
    calls: dict[int, dict[str, str]] = {}
    for event in events:
        if not isinstance(event, dict):
            continue
        kind, delta = event.get("type"), event.get("delta") or {}
        if kind == "message-start":
            name = event.get("id")
        elif kind == "message-end":
            if delta.get("error"):
                raise Unreadable(f"a stream that ended in an error: {str(delta['error'])[:200]}")
            parts = [{"text": said["text"]}, {"thinking": said["thinking"]}]
            functions = [{"function": function} for _, function in sorted(calls.items())]
            whole = {"content": parts, "tool_plan": said["tool_plan"], "tool_calls": functions}
            return _read({"id": name, "message": whole, **delta})
        message = delta.get("message") or {}
        content = message.get("content")
        for field, piece in {**message, **(content if isinstance(content, dict) else {})}.items():
            if field in said:
                said[field] += piece or ""
        if message.get("tool_calls"):
            function = calls.setdefault(event["index"], {"name": "", "arguments": ""})
            for field, piece in message["tool_calls"]["function"].items():
                function[field] += piece or ""
    raise Unreadable("a stream that broke off before its end")


# Version 1


def _asks_v1(body: dict[str, Any]) -> bool:
    # Applications have routes of this name. The provider's own SDK says whether to stream; a model need not be named.
    return isinstance(body.get("message"), str) and ("model" in body or "stream" in body)


def _read_v1(content: dict[str, Any]) -> Answer:
    if not isinstance(content.get("text"), str):
        raise Unreadable(f"a response without a text: {str(content)[:80]}")
    choice = _begun(content.get("finish_reason"))
    choice.text = content["text"]
    for call in content.get("tool_calls") or ():
        choice.tool_calls.append(ToolCall(str(call.get("name")), arguments_of(call.get("parameters"))))
    for query in content.get("search_queries") or ():
        choice.tool_calls.append(ToolCall("search", str(query.get("text"))))
    return answer_of([choice], content, _counts(content.get("meta")))


def _read_v1_stream(events: Iterable[Any]) -> Answer:
    for event in events:
        if isinstance(event, dict) and event.get("event_type") == "stream-end":
            whole = event["response"]
            return _read_v1({**whole, "finish_reason": event.get("finish_reason") or whole.get("finish_reason")})
    raise Unreadable("a stream that broke off before its end")


_PLACES = {
    "top_p": "p",
    "top_k": "k",
    "stop": "stop_sequences",
    "max_output_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
}


def _plain_v1(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any]:
    decoding = kept(body, *DECODING, "model", "p", "k", "safety_mode")
    return {**decoding, **limited(body, tokens, "max_tokens"), "message": question, "stream": False}


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any]:
    asked = _plain_v1(body, question, tokens)
    asked["messages"] = [{"role": "user", "content": asked.pop("message")}]
    return asked


V2 = Family(
    "Cohere chat",
    lambda path: path.endswith("/v2/chat"),
    _asks,
    _read,
    _read_stream,
    places=_PLACES,
    plain=_plain,
)
V1 = Family(
    "Cohere chat v1",
    lambda path: path.endswith("/v1/chat"),
    _asks_v1,
    _read_v1,
    _read_v1_stream,
    places=_PLACES,
    plain=_plain_v1,
)
