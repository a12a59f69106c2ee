"""Credentials of a request, so that a server that echoes them does not carry them to disk, reports or messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pytest_llm_determinism.shapes import SECRET_PARAMETERS
from pytest_llm_determinism.shapes.request import public_url

_HEADERS = frozenset(
    ("authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "ocp-apim-subscription-key")
)

# Fields of a body that carry credentials, as those of the servers of tools that a model may use. In a body a "key",
# "code" or "signature" is as a rule a part of the question.
_FIELDS = (_HEADERS | SECRET_PARAMETERS | {"authorization_token", "cookie"}) - {
    "key",
    "code",
    "token",
    "sig",
    "signature",
}

_SHORTEST = 8
"""Shorter values are placeholders ("x", "none"), and would be found in every text."""

HIDDEN = "[secret]"


def credentials(headers: Iterable[tuple[str, str]], url: str) -> tuple[str, ...]:
    """The secret values in a request's headers and URL; of ``Bearer sk-…`` the part after the scheme."""
    values = [value.rpartition(" ")[2] for name, value in headers if name.lower() in _HEADERS]
    values += [value for name, value in parse_qsl(urlsplit(url).query) if name.lower() in SECRET_PARAMETERS]
    return tuple(value for value in values if len(value) >= _SHORTEST)


def hidden(text: str, secrets: Iterable[str]) -> str:
    """A text in which no secret stands."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def hidden_bytes(body: bytes, secrets: Iterable[str]) -> bytes:
    """As `hidden`, for bytes."""
    for secret in secrets:
        body = body.replace(secret.encode(), HIDDEN.encode())
    return body


def without_credentials(canonical: str, secrets: Iterable[str]) -> dict[str, Any] | None:
    """A canonical request, parsed, in which no secret stands, nor what fields of a body are for that carry credentials;
    None for one that is nested too deep."""
    try:
        request: dict[str, Any] = json.loads(hidden(canonical, secrets))
        return {**request, "body": _without(request["body"])}
    except RecursionError:
        return None


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {field: _hidden_field(field.lower(), part) for field, part in value.items()}
    if isinstance(value, list):
        return [_without(part) for part in value]
    return value


def _hidden_field(field: str, value: Any) -> Any:
    if isinstance(value, str):
        if field in _FIELDS:
            return HIDDEN
        return _public(value) if field.endswith("url") and value.startswith(("http://", "https://")) else value
    if isinstance(value, dict) and field in ("headers", "extra_headers"):
        return dict.fromkeys(value, HIDDEN)
    return _without(value)


def _public(url: str) -> str:
    try:
        return public_url(url, {})
    except ValueError:
        return HIDDEN
