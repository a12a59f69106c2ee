"""Reading a request: what is asked, or the error that says why it cannot be.

Requests are validated as strictly as the real service does, because a test of an application should meet the
same errors here. Parameters that would change the answer and are not built are refused, not ignored.

Here is what the APIs have in common; `chat`, `completions` and `responses` read their questions with it. A
function that takes a body and a name reads the parameter of that name, and raises `ApiError` when it is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from . import words
from .engine import Sampling

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "ApiError",
    "Body",
    "Question",
    "boolean",
    "encode_messages",
    "integer",
    "plain_text_only",
    "read_body",
    "read_messages",
    "read_sampling",
    "read_streaming",
    "refuse",
    "wrong",
]

DEFAULT_MAX_TOKENS = 256
"""Longest answer of a chat or a response that does not say; as in the original, a completion stops at 16."""

Body = dict[str, Any]
"""A JSON object, as it came in or goes out."""


class ApiError(Exception):
    """An answer in OpenAI's error format."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def response(self) -> JSONResponse:
        """The error as it is sent."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status)


@dataclass(frozen=True)
class Question:
    """A validated request: the answers to make, and how the route wants them shown.

    The prompts are token ids, and each is answered `choices` times.
    """

    model: str
    prompts: list[list[int]]
    sampling: Sampling
    choices: int = 1
    logprobs: bool = False
    stream: bool = False
    include_usage: bool = False


async def read_body(request: Request) -> Body:
    """The JSON object that was posted. Raises `ApiError` for anything else."""
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise ApiError(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(body, dict):
        raise ApiError("The body of the request must be a JSON object.")
    return body


def wrong(name: str, expected: str, value: object) -> ApiError:
    """The error for a value that is not what the parameter `name` takes, to be raised by the caller."""
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ApiError(
        f"Invalid value for '{name}': expected {expected}, but got {shown}.", param=name, code="invalid_value"
    )


def _number(body: Body, name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    # The comparison is written so that NaN, which Python's JSON reader accepts, is refused as well.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise wrong(name, f"a number between {low:g} and {high:g}", value)
    return float(value)


def integer(body: Body, name: str, low: int, high: int | None = None) -> int | None:
    """An integer from `low` to `high`, both allowed; None when it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise wrong(
            name,
            f"an integer of at least {low}" + (f" and at most {high}" if high is not None else ""),
            value,
        )
    return value


def boolean(body: Body, name: str) -> bool:
    """A boolean; False when it is absent or null."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(name, "a boolean", value)
    return value


def refuse(body: Body, *names: str) -> None:
    """Raise for the first of these parameters that asks for something. Absent, null and false ask for nothing."""
    for name in names:
        if body.get(name) not in (None, False):
            raise ApiError(f"The reference server does not support '{name}'.", param=name, code="unsupported_parameter")


def read_messages(body: Body, name: str) -> list[object]:
    """A required list of at least one message. The messages themselves are not looked at."""
    if name not in body:
        raise ApiError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    value = body[name]
    if not isinstance(value, list) or not value:
        raise wrong(name, "a list of at least one message", value)
    return value


def _text(content: object, name: str) -> str:
    """The content of a message as text. Parts that are no text count too: another image, another prompt."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict):
                raise wrong(name, "a string or a list of content parts", part)
            text = part.get("text")
            parts.append(text if isinstance(text, str) else json.dumps(part, sort_keys=True))
        return "\n".join(parts)
    raise wrong(name, "a string or a list of content parts", content)


def encode_messages(messages: Sequence[object], name: str, tools: object) -> list[int]:
    """The conversation as one prompt. Whatever a message says is in it, and so are the tools.

    `name` is the parameter the messages came in, for the errors; items without a role are allowed in `input`.
    """
    lines = []
    if tools:
        lines.append("tools: " + json.dumps(tools, sort_keys=True))
    for index, message in enumerate(messages):
        place = f"{name}[{index}]"
        if not isinstance(message, dict):
            raise wrong(place, "an object", message)
        role = message.get("role")
        if isinstance(role, str) and role:
            line = f"{role}: {_text(message.get('content'), f'{place}.content')}"
            if message.get("tool_calls"):
                line += json.dumps(message["tool_calls"], sort_keys=True)
            lines.append(line)
        elif name == "input" and isinstance(message.get("type"), str):
            lines.append(json.dumps(message, sort_keys=True))
        else:
            raise ApiError(f"Missing required parameter: '{place}.role'.", param=f"{place}.role")
    return words.encode("\n".join([*lines, "assistant:"]))


def _stop(body: Body) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if (
        not isinstance(strings, list)
        or len(strings) > 4
        or not all(isinstance(string, str) and string for string in strings)
    ):
        raise wrong("stop", "a string or a list of up to four strings, none empty", value)
    return tuple(strings)


def _logit_bias(body: Body) -> tuple[tuple[int, float], ...]:
    value = body.get("logit_bias")
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise wrong("logit_bias", "an object of token ids and numbers", value)
    biases = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and int(token) < words.VOCABULARY_SIZE):
            raise ApiError(
                f"Invalid key in 'logit_bias': {token!r}. The ids of this vocabulary are 0 to "
                f"{words.VOCABULARY_SIZE - 1}.",
                param="logit_bias",
                code="invalid_value",
            )
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise wrong("logit_bias", "numbers between -100 and 100", bias)
        biases.append((int(token), float(bias)))
    return tuple(biases)


def read_sampling(body: Body, max_tokens: int, top_logprobs: int | None) -> Sampling:
    """What all three APIs say in the same words. The two they name differently are the caller's to read."""
    return Sampling(
        max_tokens=max_tokens,
        temperature=_number(body, "temperature", 1.0, 0, 2),
        top_p=_number(body, "top_p", 1.0, 0, 1),
        seed=integer(body, "seed", -(2**63), 2**63 - 1),
        stop=_stop(body),
        logit_bias=_logit_bias(body),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2, 2),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2, 2),
        top_logprobs=top_logprobs,
    )


def plain_text_only(name: str, form: object) -> None:
    """Raise when `form`, the format asked for by the parameter `name`, is anything but text."""
    kind = form.get("type") if isinstance(form, dict) else form
    if kind not in (None, "text"):
        raise ApiError(
            f"Unsupported value for '{name}': the reference server answers in plain text only, not in {kind!r}.",
            param=name,
            code="unsupported_value",
        )


def read_streaming(body: Body) -> tuple[bool, bool]:
    """Whether to stream, and whether the stream ends with the usage."""
    stream = boolean(body, "stream")
    options = body.get("stream_options")
    if options is None:
        return stream, False
    if not isinstance(options, dict):
        raise wrong("stream_options", "an object", options)
    if not stream:
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    return stream, boolean(options, "include_usage")
