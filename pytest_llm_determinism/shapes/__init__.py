"""Which HTTP requests are model calls, what identifies one, and what its answer says.

One module an API family. A request is classified by its route and body, never by its host: tests talk to their own
servers through the same classes.
"""

from __future__ import annotations

import base64
import json
from functools import lru_cache
from urllib.parse import urlsplit

from pytest_llm_determinism.shapes import (
    anthropic,
    bedrock,
    bedrock_invoke,
    chat,
    cohere,
    completions,
    embeddings,
    gemini,
    hooked,
    ollama,
    responses,
    text_generation,
)
from pytest_llm_determinism.shapes.answer import Answer, Choice, Family, Unreadable, answer_of, medium
from pytest_llm_determinism.shapes.framing import events_of
from pytest_llm_determinism.shapes.hooked import HookFailed, HTTPExchange, NotAModelCall
from pytest_llm_determinism.shapes.request import (
    SECRET_PARAMETERS,
    CannotOverride,
    ModelCall,
    Rules,
    model_call,
    model_of,
    unknown_call,
)

__all__ = [
    "FAMILIES",
    "SECRET_PARAMETERS",
    "Answer",
    "CannotOverride",
    "Family",
    "HTTPExchange",
    "HookFailed",
    "ModelCall",
    "NotAModelCall",
    "Rules",
    "Unreadable",
    "may_be_model_call",
    "model_of",
    "read_answer",
    "recognise",
]

FAMILIES: tuple[Family, ...] = (
    chat.FAMILY,
    completions.FAMILY,
    responses.FAMILY,
    anthropic.FAMILY,
    gemini.FAMILY,
    ollama.FAMILY,
    cohere.V2,
    cohere.V1,
    bedrock.FAMILY,
    bedrock_invoke.FAMILY,
    embeddings.FAMILY,
    # Told by its body alone, so every other comes first.
    text_generation.FAMILY,
)

NO_RULES = Rules()


def may_be_model_call(method: str, path: str, content_type: str = "", rules: Rules = NO_RULES) -> bool:
    """Whether a request could be a model call, without looking at its body: most traffic is told apart here."""
    if method != "POST":
        return False
    path = path.rstrip("/")
    if rules.output is not None or any(family.route(path) for family in FAMILIES):
        return True
    return "json" in content_type and any(family.anywhere for family in FAMILIES)


def recognise(method: str, url: str, body: bytes, rules: Rules = NO_RULES) -> ModelCall | None:
    """The model call that a request is, or None for every other request.

    Args:
        method: HTTP method.
        url: the whole URL.
        body: the request's body as sent.

    Raises:
        CannotOverride: a setting overrides something that this request does not let be overridden.
        HookFailed: the hook that reads unknown APIs raised something.
    """
    return _recognise(url, body, rules) if method == "POST" else None


@lru_cache(maxsize=64)
def _recognise(url: str, body: bytes, rules: Rules) -> ModelCall | None:
    path = urlsplit(url).path.rstrip("/")
    candidates = [family for family in FAMILIES if family.anywhere or family.route(path)]
    if candidates:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            for family in candidates:
                if family.asks(content):
                    return model_call(family, url, body, content, rules)
    if rules.output is not None and hooked.is_of_interest(rules.output, url, body):
        return unknown_call(_UNKNOWN, url, body, rules)
    return None


def read_answer(call: ModelCall, body: bytes, content_type: str) -> Answer:
    """What a response says.

    Raises:
        Unreadable: the body is no answer: not JSON, an error in a successful response, a stream that broke off.
    """
    if call.hook is not None:
        return hooked.read(call.hook, call.url, call.body, body, content_type)
    try:
        return _read_answer(call, body, content_type)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
        raise Unreadable(f"JSON of an unknown form ({error}): {body[:80]!r}") from None


def _read_answer(call: ModelCall, body: bytes, content_type: str) -> Answer:
    if call.family.media and body and content_type.startswith(("image/", "audio/", "video/")):
        kind = content_type.partition(";")[0].strip()
        return answer_of([Choice(media=[medium(kind, base64.b64encode(body).decode())])], {}, None)
    events = events_of(body, content_type, call.stream)
    if events is not None:
        return call.family.read_stream(events)
    text = body.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        if not text.strip():
            raise Unreadable("an empty response") from None
        kind = "" if "json" in content_type else f" but {content_type or 'of no content type'}"
        raise Unreadable(f"not JSON{kind}: {text[:80]!r}") from None
    if isinstance(content, dict) and content.get("error"):
        raise Unreadable(f"an error in a successful response: {json.dumps(content['error'])[:200]}")
    return call.family.read(content)


def _never(*_: object) -> bool:
    return False


def _unread(*_: object) -> Answer:
    raise Unreadable("only a hook reads this API")


_UNKNOWN = Family(hooked.UNKNOWN_API, _never, _never, _unread, _unread)
