"""An API that a plugin knows and we do not: its hook ``pytest_determinism_output`` reads the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pytest_llm_determinism.shapes.answer import Answer, Unreadable

UNKNOWN_API = "an API that pytest_determinism_output reads"
"""Name of the family of such calls."""


class NotAModelCall(Unreadable):
    """The hook looked at the response and found that the request was no question to a model."""


class HookFailed(Exception):
    """The hook raised something."""


class _Unanswered(BaseException):
    """The hook reads of a response that is not there yet. No `Exception`, so that a hook's own handlers let it pass."""


class HTTPExchange:
    """One request and its response, as ``pytest_determinism_output`` sees it.

    The hook is asked twice: before the request is sent, when reading anything of the response tells that the request
    is of interest, and when the response is there.

    Attributes:
        method, url: of the request; the URL as it is sent.
        request: the request's body, bytes.
    """

    def __init__(self, url: str, request: bytes) -> None:
        self.method = "POST"
        self.url = url
        self.request = request
        self._response: tuple[bytes, str] | None = None

    def request_json(self) -> Any:
        """The request's body as parsed JSON, None if it is none."""
        try:
            return json.loads(self.request)
        except (ValueError, RecursionError):
            return None

    @property
    def body(self) -> bytes:
        """The response's body, without content encoding; of a stream, all of it."""
        return self._answered()[0]

    @property
    def content_type(self) -> str:
        """The response's media type."""
        return self._answered()[1]

    @property
    def text(self) -> str:
        """The response's body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The response's body as parsed JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.body)

    def _answered(self) -> tuple[bytes, str]:
        if self._response is None:
            raise _Unanswered
        return self._response


Hook = Callable[[HTTPExchange], "str | None"]


def is_of_interest(hook: Hook, url: str, body: bytes) -> bool:
    """Whether the hook wants to read the response to a request.

    Raises:
        HookFailed: it raised something.
    """
    try:
        return hook(HTTPExchange(url, body)) is not None
    except _Unanswered:
        return True
    except Exception as error:
        raise HookFailed(f"pytest_determinism_output raised {type(error).__name__}: {error}") from error


def read(hook: Hook, url: str, request: bytes, body: bytes, content_type: str) -> Answer:
    """What the hook finds in a response.

    Raises:
        Unreadable: it raised something, or returned something else than text.
        NotAModelCall: it returned None.
    """
    exchange = HTTPExchange(url, request)
    exchange._response = (body, content_type)
    try:
        output = hook(exchange)
    except Exception as error:
        raise Unreadable(f"pytest_determinism_output raised {type(error).__name__}: {error}") from None
    if output is None:
        raise NotAModelCall("pytest_determinism_output found no output in it")
    if not isinstance(output, str):
        raise Unreadable(f"pytest_determinism_output returned {type(output).__name__}, not text: {output!r:.80}")
    return Answer(output=output, text=output)
