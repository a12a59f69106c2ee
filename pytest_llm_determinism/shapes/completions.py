"""OpenAI Completions (``POST …/completions``), the older API that continues a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_llm_determinism.shapes.answer import AZURE_DEPLOYMENT, Answer, Choice, Family, answer_of, in_order
from pytest_llm_determinism.shapes.choices import read_choices
from pytest_llm_determinism.shapes.plain import OPENAI, kept, limited
from pytest_llm_determinism.shapes.tokens import tokens_in


def _route(path: str) -> bool:
    return path.endswith("/completions") and not path.endswith("/chat/completions")


def _asks(body: dict[str, Any]) -> bool:
    return "prompt" in body


def _read(content: dict[str, Any]) -> Answer:
    choices = [
        Choice(
            str(item.get("text") or ""),
            finish_reason=item.get("finish_reason"),
            tokens=tokens_in(item.get("logprobs")),
        )
        for item in in_order(content.get("choices") or ())
    ]
    return answer_of(choices, content, content.get("usage"))


def _read_stream(events: Iterable[Any]) -> Answer:
    def add(choice: Choice, item: dict[str, Any]) -> None:
        choice.text += str(item.get("text") or "")

    choices, last, usage = read_choices(events, add)
    return answer_of([choice for _, choice in sorted(choices.items())], last, usage)


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    return {**kept(body, *OPENAI), **limited(body, tokens, "max_tokens"), "prompt": question}


FAMILY = Family("completions", _route, _asks, _read, _read_stream, model_path=AZURE_DEPLOYMENT, plain=_plain)
