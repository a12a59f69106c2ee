"""Models on Amazon Bedrock in their providers' own forms (``POST …/model/{id}/invoke``, also with a response stream).

Which provider's form an answer has is told by the answer. One of an unknown form is compared as the JSON that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytest_llm_determinism.shapes import anthropic, bedrock, chat, cohere, completions, embeddings
from pytest_llm_determinism.shapes.answer import (
    Answer,
    Choice,
    Family,
    Unreadable,
    answer_of,
    decoded,
    json_text,
    medium,
)
from pytest_llm_determinism.shapes.framing import checked

_MODEL = re.compile(r"/model/(?P<model>.+)/invoke(?:-with-response-stream)?$")

_METRICS = "amazon-bedrock-invocationMetrics"

# Where the forms that are no chat have alternatives, a text, why it ended, and the counts of tokens: Titan, Llama,
# Mistral, AI21, Cohere's Command, Anthropic's older completions.
_LISTS = ("results", "generations", "outputs", "completions")
_TEXTS = ("outputText", "generation", "completion", "text")
_REASONS = ("completionReason", "stop_reason", "finish_reason", "finishReason")
_INPUT_COUNTS = ("prompt_token_count", "inputTextTokenCount", "inputTokenCount")
_OUTPUT_COUNTS = ("generation_token_count", "totalOutputTextTokenCount", "outputTokenCount", "tokenCount")

# In small letters and without underscores.
_NEW_EACH_TIME = ("id", "created", "createdat", "generationid", "responseid", "requestid")


def _route(path: str) -> bool:
    return _MODEL.search(path) is not None


def _asks(body: dict[str, Any]) -> bool:
    return True


def _streams(path: str, body: Mapping[str, Any]) -> bool:
    return path.endswith("-stream")


def _read(content: Any) -> Answer:
    family = _family_of(content)
    if family is not None:
        return family.read(_like_openai(content))
    if not isinstance(content, dict):
        return _as_json(_lasting(content))
    if "embedding" in content or "embeddings" in content:
        found: Any = content.get("embedding") or content.get("embeddings")
        several = isinstance(found, list) and all(isinstance(vector, list) for vector in found)
        vectors = found if several else [found]
        return embeddings.FAMILY.read({"data": [{"embedding": vector} for vector in vectors]})
    if isinstance(content.get("images"), list):
        return answer_of([Choice(media=[medium("image", image) for image in content["images"]])], content, None)
    choices = _alternatives(content)
    if not choices:
        return _as_json(_lasting(content))
    return answer_of(choices, content, _counts({**_items(content)[0], **content}))


def _read_stream(events: Iterable[Any]) -> Answer:
    pieces = list(_pieces(events))
    if not pieces:
        raise Unreadable("a stream that broke off before its end")
    family = _family_of(pieces[0])
    if family is not None:
        return family.read_stream(_like_openai(piece) for piece in pieces)
    found = [_alternatives(piece) for piece in pieces]
    if not any(found):
        return _as_json([piece for piece in map(_lasting, pieces) if piece])
    metrics = pieces[-1].get(_METRICS)
    choices: dict[int, Choice] = {}
    for piece, alternatives in zip(pieces, found, strict=True):
        for number, one in enumerate(alternatives or [Choice(finish_reason=_reason(piece))]):
            choice = choices.setdefault(number, Choice())
            choice.text += one.text
            choice.finish_reason = one.finish_reason or choice.finish_reason
    if not metrics and not all(choice.finish_reason for choice in choices.values()):
        raise Unreadable("a stream that broke off before its end")
    return answer_of(list(choices.values()), pieces[-1], _counts(metrics or {}))


def _pieces(events: Iterable[Any]) -> Iterator[Any]:
    """What the provider itself sent as events."""
    for event in events:
        if "chunk" in event:
            text = decoded(event["chunk"]["bytes"]).decode("utf-8", "replace")
            try:
                piece = json.loads(text)
            except (ValueError, RecursionError):
                raise Unreadable(f"a stream with an event that is not JSON: {text[:80]!r}") from None
            yield checked(piece, text)


def _family_of(form: Any) -> Family | None:
    """The API whose form an answer has, or the first event of a streamed one."""
    if not isinstance(form, dict):
        return None
    kind = form.get("type")
    if kind in ("message", "message_start"):
        return anthropic.FAMILY
    if isinstance(form.get("output"), dict) or "messageStart" in form:
        return bedrock.FAMILY
    if isinstance(form.get("choices"), list):
        return completions.FAMILY if any("text" in item for item in form["choices"]) else chat.FAMILY
    if isinstance(form.get("message"), dict) or kind == "message-start":
        return cohere.V2
    if "generation_id" in form or "event_type" in form:
        return cohere.V1
    return None


def _like_openai(form: Any) -> Any:
    """An answer or event of those who have almost OpenAI's form, in exactly that form; any other as it is."""
    if not isinstance(form, dict) or not isinstance(form.get("choices"), list):
        return form
    choices = [
        {"delta": item.get("message"), "finish_reason": item.get("stop_reason"), **item} for item in form["choices"]
    ]
    return {**form, "choices": choices}


def _items(content: dict[str, Any]) -> list[Any]:
    return next((content[name] for name in _LISTS if isinstance(content.get(name), list)), [content])


def _alternatives(content: Any) -> list[Choice]:
    """The texts in an answer or a piece of one; none where the form is not known."""
    choices = []
    for item in _items(content) if isinstance(content, dict) else ():
        inner = item.get("data", item) if isinstance(item, dict) else None
        text = next((inner[name] for name in _TEXTS if name in inner), None) if isinstance(inner, dict) else None
        if not isinstance(text, str):
            return []
        choices.append(Choice(text, finish_reason=_reason(item)))
    return choices


def _reason(item: dict[str, Any]) -> str | None:
    reason = next((item[name] for name in _REASONS if item.get(name)), None)
    return reason.get("reason") if isinstance(reason, dict) else reason


def _counts(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": next((content[name] for name in _INPUT_COUNTS if name in content), None),
        "output_tokens": next((content[name] for name in _OUTPUT_COUNTS if name in content), None),
        "cached_tokens": content.get("cacheReadInputTokenCount"),
    }


def _lasting(content: Any) -> Any:
    """JSON without what is new in every answer."""
    return json.loads(
        json.dumps(content),
        object_hook=lambda part: {
            name: value
            for name, value in part.items()
            if name.lower().replace("_", "") not in _NEW_EACH_TIME and not name.startswith("amazon-bedrock-")
        },
    )


def _as_json(content: Any) -> Answer:
    if content in (None, "", [], {}):
        raise Unreadable("a response without an answer")
    return answer_of([Choice(json_text(content))], {}, None)


FAMILY = Family(
    "Bedrock invoke",
    _route,
    _asks,
    _read,
    _read_stream,
    streams=_streams,
    media=True,
    model_path=_MODEL,
    model_in_body=False,
)
