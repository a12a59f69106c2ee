"""Text generation of Hugging Face: its inference servers and endpoints, and what has the same form (SageMaker).

It has no route of its own and is told by its body. Other tasks (classification, translation, images, …) are asked in
the same form; they are model calls too, and their answer is compared as the JSON or the media that it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_llm_determinism.shapes.answer import Answer, Choice, Family, Unreadable, answer_of, json_text
from pytest_llm_determinism.shapes.framing import DONE
from pytest_llm_determinism.shapes.plain import DECODING, inner, kept, limited
from pytest_llm_determinism.shapes.tokens import tokens_in


def _route(path: str) -> bool:
    return False


def _asks(body: dict[str, Any]) -> bool:
    asked = body.get("inputs")
    texts = asked if isinstance(asked, list) and asked else [asked]
    return isinstance(body.get("parameters"), dict) and all(isinstance(text, str) for text in texts)


def _read(content: Any) -> Answer:
    items = content if isinstance(content, list) else [content]
    if all(isinstance(item, list) for item in items):
        items = [item for several in items for item in several]  # one list for each of several inputs
    if not items or any(item in (None, "", [], {}) or _is_error(item) for item in items):
        raise Unreadable(f"a response without an answer: {str(content)[:80]}")
    if not all(isinstance(item, dict) and "generated_text" in item for item in items):
        if not isinstance(content, (dict, list)):
            raise Unreadable(f"JSON of an unknown form: {str(content)[:80]}")
        return answer_of([Choice(json_text(content))], {}, None)
    details = [item.get("details") or {} for item in items]
    choices = [
        Choice(_text(item["generated_text"]), finish_reason=detail.get("finish_reason"), tokens=tokens_in(detail))
        for item, detail in zip(items, details, strict=True)
    ]
    return answer_of(choices, items[0], _usage(details[0]) if len(details) == 1 else None)


def _is_error(item: object) -> bool:
    return isinstance(item, dict) and bool(item.get("error"))


def _text(generated: object) -> str:
    if generated is None:
        raise Unreadable("a generated text that is null")
    # Some pipelines answer a conversation with the conversation.
    return generated if isinstance(generated, str) else json_text(generated)


def _usage(details: dict[str, Any]) -> dict[str, Any]:
    return {"input_tokens": details.get("input_length"), "output_tokens": details.get("generated_tokens")}


def _read_stream(events: Iterable[Any]) -> Answer:
    text, done = "", False
    tokens: list[Any] = []
    tops: list[Any] = []
    last: dict[str, Any] = {}
    for event in events:
        if event == DONE:
            done = True
        if not isinstance(event, dict):
            continue
        token = event.get("token") or {}
        if not token.get("special"):
            text += str(token.get("text") or "")
        if token:
            tokens.append(token)
            tops.append(event.get("top_tokens") or ())
        if event.get("generated_text") is not None or event.get("details"):
            last = event
    if not last and not (done and text):
        raise Unreadable("a stream that broke off before its end")
    if last.get("generated_text") is None:
        last = {**last, "generated_text": text}
    return _read({**last, "details": {**(last.get("details") or {}), "tokens": tokens, "top_tokens": tops}})


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    given = inner(body, "parameters")
    return {
        **kept(body, "model"),
        "inputs": [question] if isinstance(body.get("inputs"), list) else question,
        "parameters": {**kept(given, *DECODING, "do_sample"), **limited(given, tokens, "max_new_tokens")},
    }


FAMILY = Family(
    "text generation",
    _route,
    _asks,
    _read,
    _read_stream,
    anywhere=True,
    model_in_body=False,
    media=True,
    places={
        "temperature": "parameters.temperature",
        "seed": "parameters.seed",
        "top_p": "parameters.top_p",
        "top_k": "parameters.top_k",
        "max_tokens": "parameters.max_new_tokens",
        "max_output_tokens": "parameters.max_new_tokens",
        "max_completion_tokens": "parameters.max_new_tokens",
        "stop": "parameters.stop",
        "frequency_penalty": "parameters.frequency_penalty",
    },
    plain=_plain,
)
