"""What an answer says, whichever API gave it, and what an API family has to know."""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Unreadable(ValueError):
    """A response that is no answer, with the reason; it is an error, never an output."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model asked for it; the provider's id is no part of it.

    Attributes:
        arguments: as text, JSON unless the model wrote something else.
    """

    name: str
    arguments: str

    @property
    def parsed(self) -> Any:
        """The arguments as a JSON value.

        Raises:
            ValueError: they are not JSON.
        """
        return json.loads(self.arguments)

    def line(self) -> str:
        """How it stands in an output."""
        return f"[tool call] {self.name}({self.arguments})"


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer, as the response tells it.

    Attributes:
        logprob: natural logarithm of its probability.
        others: the likeliest tokens at its place with their logprobs, as far as they were asked for; it may be among
            them.
    """

    text: str
    logprob: float
    others: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One response.

    Attributes:
        output: what runs are compared by: the text, then refusal, audio and images (by hash), tool calls by name and
            arguments.
        text: the text alone.
        finish_reason: as the provider names it; several choices are joined by commas.
        input_tokens, output_tokens: as the provider counts them, None where it does not.
        reasoning: what the model thought aloud; no part of the output.
        cached_tokens: of the input tokens those that the provider took from a cache of its own, None where it does not
            say.
        tokens: of the text, where the response tells them and there is one choice only. They differ a little from call
            to call without the answer differing.
        id: the provider's name for this answer, by which a later request may refer to it.
        raw: the response as parsed JSON; of a stream, its last event.
    """

    output: str
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    model: str | None = None
    fingerprint: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning: str = ""
    cached_tokens: int | None = None
    tokens: tuple[Token, ...] = field(default=(), compare=False, repr=False)
    id: str | None = field(default=None, compare=False)
    raw: Any = field(default=None, compare=False, repr=False)


def says_stream(path: str, body: Mapping[str, Any]) -> bool:
    """Whether a request asks for a stream, as most APIs do it: by a field of the body."""
    return body.get("stream") is True


@dataclass(frozen=True, slots=True)
class Family:
    """One API family.

    Attributes:
        name: for messages.
        route: whether a URL's path (without a closing slash) is this API's.
        asks: whether a request's body is a question to a model.
        read: the answer in a JSON response; raises `Unreadable`.
        read_stream: the answer in the events of a stream, each parsed JSON; raises `Unreadable`.
        streams: whether a request, by its path and body, asks for a streamed answer.
        anywhere: whether it is told by its body alone, whatever the route, in requests that call themselves JSON.
        media: whether an answer may be a bare image, piece of audio or video, by its content type.
        model_path: finds the model in a URL's path as group ``model``, where the API has it there.
        model_in_body: whether the body names the model.
        places: where this API's body has what others have at the top, as dotted paths (``temperature`` →
            ``options.temperature``): an override of the common name is meant for there.
        plain: from a body, a question and the tokens of the longest answer (None where the body may not limit it
            further), the body that asks the same model this question, not streamed and with nothing else of what was
            asked; None for a body of which none can be made. Without it the API has no plain questions.
    """

    name: str
    route: Callable[[str], bool]
    asks: Callable[[dict[str, Any]], bool]
    read: Callable[[Any], Answer]
    read_stream: Callable[[Iterable[Any]], Answer]
    streams: Callable[[str, Mapping[str, Any]], bool] = says_stream
    anywhere: bool = False
    media: bool = False
    model_path: re.Pattern[str] | None = None
    model_in_body: bool = True
    places: Mapping[str, str] = field(default_factory=dict)
    plain: Callable[[Mapping[str, Any], str, int | None], dict[str, Any] | None] | None = None


AZURE_DEPLOYMENT = re.compile(r"/openai/deployments/(?P<model>[^/]+)/")
"""Azure names the model, as a deployment, in the path."""


@dataclass(slots=True)
class Choice:
    """One of the alternatives of an answer, as it is put together.

    Attributes:
        media: one line for each piece of audio or image, see `medium`.
        tokens: as far as the response tells them, see `tokens_in`.
    """

    text: str = ""
    refusal: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None
    reasoning: str = ""
    media: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)

    def output(self) -> str:
        if not (self.refusal or self.tool_calls or self.media):
            return self.text
        lines = [self.text] if self.text else []
        if self.refusal:
            lines.append(f"[refusal] {self.refusal}")
        lines.extend(self.media)
        lines.extend(call.line() for call in self.tool_calls)
        return "\n".join(lines)


def medium(kind: str, *pieces: str) -> str:
    """How audio or an image stands in an output: ``[image/png sha256:…]``, by the hash of its bytes.

    Args:
        kind: a media type, or ``audio``.
        pieces: as they came, each for itself base64, a data URL, or the address at which the provider keeps it.
    """
    digest = hashlib.sha256()
    for data in pieces:
        if data.startswith("data:"):
            head, _, data = data.partition(",")
            kind = head[len("data:") :].partition(";")[0] or kind
        try:
            digest.update(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            digest.update(data.encode("utf-8", "surrogatepass"))
    return f"[{kind} sha256:{digest.hexdigest()[:16]}]"


def decoded(data: str) -> bytes:
    """The bytes of a piece of a stream.

    Raises:
        Unreadable: it is not base64.
    """
    try:
        return base64.b64decode(data)
    except ValueError:
        raise Unreadable(f"a piece that is not base64: {data[:80]!r}") from None


def answer_of(choices: list[Choice], raw: dict[str, Any], usage: Any) -> Answer:
    """An answer from its choices; `raw` gives id, model and fingerprint, `usage` the token counts."""
    if not choices:
        raise Unreadable(f"a response without an answer: {str(raw)[:80]}")
    usage = usage if isinstance(usage, dict) else {}
    several = len(choices) > 1
    return Answer(
        output=_whole(
            "\n".join(
                f"[choice {number}] {choice.output()}" if several else choice.output()
                for number, choice in enumerate(choices)
            )
        ),
        text=_whole("\n".join(choice.text for choice in choices)),
        tool_calls=tuple(call for choice in choices for call in choice.tool_calls),
        finish_reason=",".join(str(choice.finish_reason) for choice in choices if choice.finish_reason) or None,
        model=text_or_none(raw.get("model")),
        fingerprint=text_or_none(raw.get("system_fingerprint")),
        input_tokens=_count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        output_tokens=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        reasoning=_whole("\n".join(choice.reasoning for choice in choices if choice.reasoning)),
        cached_tokens=_cached(usage),
        tokens=() if several else _of_text(choices[0].tokens, _whole(choices[0].text)),
        id=text_or_none(raw.get("id")),
        raw=raw,
    )


_CACHED = ("cached_tokens", "cache_read_input_tokens", "prompt_cache_hit_tokens")


def _cached(usage: Mapping[str, Any]) -> int | None:
    """Input tokens that came from the provider's cache: by OpenAI and who speaks like it, Anthropic, DeepSeek."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    told = details.get("cached_tokens") if isinstance(details, dict) else None
    return _count(told if told is not None else next((usage[name] for name in _CACHED if name in usage), None))


def _of_text(told: Sequence[Token], text: str) -> tuple[Token, ...]:
    """The tokens that make up a text, joined exactly; none if these do not.

    A character that several tokens make up stands in the last of them. Tokens after the text (that it ends, what it was
    to stop at) are left out.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    found = []
    at = 0
    try:
        for token in told:
            if at == len(text):
                break
            piece = decoder.decode(token.text.encode("utf-8", "surrogateescape"))
            if not text.startswith(piece, at):
                return ()
            at += len(piece)
            found.append(token if piece == token.text else Token(piece, token.logprob, token.others))
    except UnicodeError:
        return ()
    return tuple(found) if at == len(text) else ()


_HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _whole(text: str) -> str:
    """The text with characters in one piece that a stream cut into UTF-16 halves."""
    if text.isascii():
        return text
    return _HALVES.sub(lambda found: found[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


def in_order(choices: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a response by index: the order in which a server lists them means nothing."""
    return sorted(choices, key=lambda choice: choice.get("index") or 0)


def text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def text_of(content: object) -> str:
    """The text of a message's content: a string, or a list of parts of which the text is taken."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            part if isinstance(part, str) else str(part.get("text") or "")
            for part in content
            if isinstance(part, (str, dict))
        )
    return ""


def arguments_of(value: object) -> str:
    """Arguments of a tool call as text: as they came, or where the API gives them parsed, as JSON with sorted keys."""
    if isinstance(value, str):
        return value
    return "" if value is None else json_text(value)


def json_text(value: object) -> str:
    """A value as JSON with sorted keys, so that equal values are equal texts."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
