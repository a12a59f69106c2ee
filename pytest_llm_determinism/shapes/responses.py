"""OpenAI Responses (``POST …/responses``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_llm_determinism.shapes.answer import (
    AZURE_DEPLOYMENT,
    Answer,
    Choice,
    Family,
    Token,
    ToolCall,
    Unreadable,
    answer_of,
    arguments_of,
    medium,
    text_of,
)
from pytest_llm_determinism.shapes.plain import OPENAI, inner, kept, limited
from pytest_llm_determinism.shapes.tokens import tokens_in

_ASKED = ("arguments", "input", "action", "queries", "code")
_ENDINGS = ("response.completed", "response.incomplete")


def _route(path: str) -> bool:
    return path.endswith("/responses")


def _asks(body: dict[str, Any]) -> bool:
    return "input" in body or "prompt" in body


def _read(content: dict[str, Any], told: Iterable[Token] = ()) -> Answer:
    """The answer in a response; `told` are the tokens that came before it, which it need not repeat."""
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
                choice.tokens += tokens_in(part.get("logprobs"))
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
    choice.tokens = choice.tokens or [*told]
    return answer_of([choice], content, content.get("usage"))


def _read_stream(events: Iterable[Any]) -> Answer:
    told: list[Token] = []
    for event in events:
        if isinstance(event, dict) and event.get("type") == "response.failed":
            raise Unreadable(f"a stream that ended in a failure: {str(event)[:200]}")
        if isinstance(event, dict) and event.get("type") == "response.output_text.delta":
            told += tokens_in(event.get("logprobs"))
        if isinstance(event, dict) and event.get("type") in _ENDINGS:
            return _read(event["response"], told)
    raise Unreadable("a stream that broke off before its end")


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    if "prompt" in body and "model" not in body:
        return None  # a prompt that the provider keeps says which model
    reasoning = kept(inner(body, "reasoning"), "effort")
    return {
        **kept(body, *OPENAI),
        **({"reasoning": reasoning} if reasoning else {}),
        **limited(body, tokens, "max_output_tokens"),
        "input": question,
        "store": False,
    }


FAMILY = Family("responses", _route, _asks, _read, _read_stream, model_path=AZURE_DEPLOYMENT, plain=_plain)
