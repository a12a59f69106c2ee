"""Which HTTP requests are model calls, what identifies one, and what its answer says.

One module an API family (`chat`, `completions`, `responses`). A request is classified by its route and body,
never by its host: tests talk to their own servers through the same classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pytest_llm_determinism.shapes import chat, completions, responses
from pytest_llm_determinism.shapes.answer import Answer, Family, Unreadable
from pytest_llm_determinism.shapes.sse import read_events

__all__ = [
    "FAMILIES",
    "SECRET_PARAMETERS",
    "Answer",
    "Family",
    "ModelCall",
    "Unreadable",
    "may_be_model_call",
    "read_answer",
    "recognise",
]

SCHEMA = 1
"""Part of every key: a change of what identifies a request must not find the samples of another meaning."""

FAMILIES: tuple[Family, ...] = (chat.FAMILY, completions.FAMILY, responses.FAMILY)

SECRET_PARAMETERS = frozenset(
    [
        "key",
        "api_key",
        "apikey",
        "api-key",
        "access_token",
        "auth_token",
        "token",
        "code",
        "sig",
        "signature",
        "secret",
        "password",
        "subscription-key",
    ]
)

# Ids that the provider made and the application sends back. They differ in every run without being part of the
# question, so they are renamed by order of appearance.
_ID_FIELDS = frozenset(("id", "tool_call_id", "call_id", "tool_use_id", "item_id", "previous_response_id"))
_CONVERSATION_FIELDS = ("messages", "input", "previous_response_id")


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One recognised request.

    Attributes:
        family: the API family.
        key: SHA-256 (hex) of the canonical request.
        canonical: the canonical request as JSON text: schema, method, URL without secrets, body.
        stream: whether a streamed answer was asked for.
    """

    family: Family
    key: str
    canonical: str
    stream: bool


def may_be_model_call(method: str, path: str) -> bool:
    """Whether a request could be a model call, from its method and path alone: most traffic is told apart here."""
    return method == "POST" and any(family.route(path.rstrip("/")) for family in FAMILIES)


def recognise(method: str, url: str, body: bytes, origins: Mapping[str, str] | None = None) -> ModelCall | None:
    """The model call that a request is, or None for every other request.

    Args:
        method: HTTP method.
        url: the whole URL.
        body: the request's body as sent.
        origins: names for origins (``http://127.0.0.1:4711``) whose address changes from session to session
            although the server behind it is the same.
    """
    if method != "POST":
        return None
    return _recognise(url, body, tuple((origins or {}).items()))


@lru_cache(maxsize=64)
def _recognise(url: str, body: bytes, origins: tuple[tuple[str, str], ...]) -> ModelCall | None:
    split = urlsplit(url)
    path = split.path.rstrip("/")
    candidates = [family for family in FAMILIES if family.route(path)]
    if not candidates:
        return None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    for family in candidates:
        if family.asks(content):
            canonical = _canonical(_public_url(url, dict(origins)), content)
            key = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
            return ModelCall(family, key, canonical, content.get("stream") is True)
    return None


def read_answer(call: ModelCall, body: bytes, content_type: str) -> Answer:
    """What a response says.

    Raises:
        Unreadable: the body is no answer: not JSON, an error in a successful response, a stream that broke off.
    """
    try:
        return _read_answer(call, body.decode("utf-8", "replace"), content_type)
    except (AttributeError, KeyError, TypeError) as error:
        raise Unreadable(f"JSON of an unknown form ({error}): {body[:80]!r}") from None


def _read_answer(call: ModelCall, text: str, content_type: str) -> Answer:
    if "event-stream" in content_type or (call.stream and text.lstrip().startswith(("data:", "event:", ":"))):
        return call.family.read_stream(read_events(text))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable(f"not JSON but {content_type or 'of no content type'}: {text[:80]!r}") from None
    if not isinstance(content, dict):
        raise Unreadable(f"JSON of an unknown form: {text[:80]!r}")
    if content.get("error"):
        raise Unreadable(f"an error in a successful response: {json.dumps(content['error'])[:200]}")
    return call.family.read(content)


def _public_url(url: str, origins: Mapping[str, str]) -> str:
    """The URL without user, password, fragment and the values of parameters that carry secrets."""
    split = urlsplit(url)
    host = split.hostname or ""
    origin = f"{split.scheme}://{f'[{host}]' if ':' in host else host}{f':{split.port}' if split.port else ''}"
    query = [
        (name, "" if name.lower() in SECRET_PARAMETERS else value)
        for name, value in parse_qsl(split.query, keep_blank_values=True)
    ]
    suffix = "?" + urlencode(sorted(query)) if query else ""
    return origins.get(origin, origin) + split.path.rstrip("/") + suffix


def _canonical(url: str, body: dict[str, Any]) -> str:
    names: dict[str, str] = {}
    renamed = {
        field: _rename_ids({field: value}, names)[field] if field in _CONVERSATION_FIELDS else _plain(value)
        for field, value in body.items()
    }
    return json.dumps(
        {"schema": SCHEMA, "method": "POST", "url": url, "body": renamed},
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _rename_ids(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            field: names.setdefault(part, f"id-{len(names) + 1}")
            if field in _ID_FIELDS and isinstance(part, str)
            else _rename_ids(part, names)
            for field, part in value.items()
        }
    if isinstance(value, list):
        return [_rename_ids(part, names) for part in value]
    return _plain(value)


def _plain(value: Any) -> Any:
    """Numbers in one form: SDKs write 0 and 0.0 for the same temperature."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {field: _plain(part) for field, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
