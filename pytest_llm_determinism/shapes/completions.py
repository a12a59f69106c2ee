"""OpenAI Completions (``POST …/completions``), the older API that continues a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_llm_determinism.shapes.answer import AZURE_DEPLOYMENT, Answer, Choice, Family, answer_of, in_order
from pytest_llm_determinism.shapes.choices import read_choices


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
    def add(choice: Choice, item: dict[str, Any]) -> None:
        choice.text += str(item.get("text") or "")

    choices, last, usage = read_choices(events, add)
    return answer_of([choice for _, choice in sorted(choices.items())], last, usage)


FAMILY = Family("completions", _route, _asks, _read, _read_stream, model_path=AZURE_DEPLOYMENT)
