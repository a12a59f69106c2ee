"""Credentials of a request, so that a server that echoes them does not carry them to disk, reports or messages."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qsl, urlsplit

from pytest_llm_determinism.shapes import SECRET_PARAMETERS

_HEADERS = frozenset(
    ("authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "ocp-apim-subscription-key")
)
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
