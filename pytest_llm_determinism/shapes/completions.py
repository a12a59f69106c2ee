"""OpenAI Completions (``POST …/completions``), the older API that continues a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_llm_determinism.shapes.answer import Answer, Choice, Family, Unreadable, answer_of, in_order
from pytest_llm_determinism.shapes.sse import DONE


def _route(path: str) -> bool:
    return path.endswith("/completions") and not path.endswith("/chat/completions")


def _asks(body: dict[str, Any]) -> bool:
    return "prompt" in body


def _read(content: dict[str, Any]) -> Answer:
    choices = [
        Choice(str(item.get("text") or ""), finish_reason=item.get("finish_reason"))
        for item in in_order(content.get("choices") or ())
    ]
    return answer_of(choices, content, content.get("usage"))


def _read_stream(events: Iterable[Any]) -> Answer:
    choices: dict[int, Choice] = {}
    last: dict[str, Any] = {}
    usage = None
    done = False
    for event in events:
        if event == DONE:
            done = True
            continue
        if not isinstance(event, dict):
            continue
        last = {**last, **{field: value for field, value in event.items() if value is not None}}
        usage = event.get("usage") or usage
        for item in event.get("choices") or ():
            choice = choices.setdefault(item.get("index", 0), Choice())
            choice.text += str(item.get("text") or "")
            choice.finish_reason = item.get("finish_reason") or choice.finish_reason
    if not done and not (choices and all(choice.finish_reason for choice in choices.values())):
        raise Unreadable("a stream that broke off before its end")
    return answer_of([choice for _, choice in sorted(choices.items())], last, usage)


FAMILY = Family("completions", _route, _asks, _read, _read_stream)
