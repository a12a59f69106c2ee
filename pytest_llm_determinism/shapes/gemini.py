"""Gemini (``POST …/models/{model}:generateContent`` and ``:streamGenerateContent``), at both of Google's hosts."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_llm_determinism.shapes.answer import (
    Answer,
    Choice,
    Family,
    ToolCall,
    Unreadable,
    answer_of,
    arguments_of,
    decoded,
    json_text,
    medium,
    text_or_none,
)
from pytest_llm_determinism.shapes.plain import inner, kept, limited
from pytest_llm_determinism.shapes.tokens import tokens_in

_MODEL = re.compile(r"/(?:models|tunedModels|endpoints)/(?P<model>[^/:]+):(?:streamG|g)enerateContent$")

_SAID_ALL = (None, "STOP", "MAX_TOKENS", "FINISH_REASON_UNSPECIFIED")


def _route(path: str) -> bool:
    return path.endswith((":generateContent", ":streamGenerateContent"))


def _asks(body: dict[str, Any]) -> bool:
    return "contents" in body


def _streams(path: str, body: Mapping[str, Any]) -> bool:
    return path.endswith(":streamGenerateContent")


@dataclass(slots=True)
class _Candidate(Choice):
    """One of the alternatives, with what comes in pieces: calls as they were sent, audio by media type."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    audio: dict[str, bytes] = field(default_factory=dict)


def _read(content: dict[str, Any]) -> Answer:
    if any(not (item.get("content") or item.get("finishReason")) for item in content.get("candidates") or ()):
        raise Unreadable(f"a candidate without content: {str(content)[:80]}")
    return _answer(*_joined([content]))


def _read_stream(events: Iterable[Any]) -> Answer:
    candidates, rest = _joined(event for event in events if isinstance(event, dict))
    if any(candidate.finish_reason is None for candidate in candidates):
        raise Unreadable("a stream that broke off before its end")
    return _answer(candidates, rest)


def _joined(pieces: Iterable[dict[str, Any]]) -> tuple[list[_Candidate], dict[str, Any]]:
    """The alternatives in order, and what the pieces say besides."""
    candidates: dict[int, _Candidate] = {}
    rest: dict[str, Any] = {}
    for piece in pieces:
        rest = {**rest, **piece}
        for item in piece.get("candidates") or ():
            candidate = candidates.setdefault(item.get("index") or 0, _Candidate())
            candidate.finish_reason = item.get("finishReason") or candidate.finish_reason
            candidate.tokens += tokens_in(item.get("logprobsResult"))
            for part in (item.get("content") or {}).get("parts") or ():
                _add(candidate, part)
    return [candidate for _, candidate in sorted(candidates.items())], rest


def _add(candidate: _Candidate, part: dict[str, Any]) -> None:
    if part.get("thought"):
        candidate.reasoning += str(part.get("text") or "")
    elif "functionCall" in part:
        _add_call(candidate.calls, part["functionCall"])
    elif "toolCall" in part:
        call = part["toolCall"]
        candidate.calls.append({"name": call.get("toolType"), "args": call.get("args")})
    elif "executableCode" in part:
        # A call of the provider's own tool. What the tools gave is not the model's words, and is left out.
        candidate.calls.append({"name": "code_execution", "args": part["executableCode"].get("code")})
    elif "inlineData" in part:
        kind, data = str(part["inlineData"].get("mimeType")), str(part["inlineData"].get("data"))
        if kind.startswith("audio/"):
            candidate.audio[kind] = candidate.audio.get(kind, b"") + decoded(data)
        else:
            candidate.media.append(medium(kind, data))
    elif "fileData" in part:
        candidate.media.append(medium(str(part["fileData"].get("mimeType")), str(part["fileData"].get("fileUri"))))
    else:
        candidate.text += str(part.get("text") or "")


def _add_call(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """Add a call of a function, or a piece of the last one, whose arguments may be streamed."""
    if calls and calls[-1].get("willContinue"):
        begun = calls.pop()
        fragments = [*(begun.get("partialArgs") or ()), *(call.get("partialArgs") or ())]
        call = {**begun, **call, "partialArgs": fragments, "willContinue": call.get("willContinue")}
    calls.append(call)


def _arguments(call: dict[str, Any]) -> str:
    """Arguments as JSON; streamed ones by their paths (``{"$.city": "Paris"}``)."""
    values: dict[str, Any] = {}
    for fragment in call.get("partialArgs") or ():
        path = fragment["jsonPath"]
        value = next((value for name, value in fragment.items() if name.endswith("Value")), None)
        known = values.get(path)
        values[path] = known + value if isinstance(known, str) and isinstance(value, str) else value
    return json_text(values) if values else arguments_of(call.get("args") or {})


def _answer(candidates: list[_Candidate], rest: dict[str, Any]) -> Answer:
    choices: list[Choice] = []
    for candidate in candidates:
        candidate.tool_calls = [ToolCall(str(call.get("name")), _arguments(call)) for call in candidate.calls]
        candidate.media += [medium(kind, base64.b64encode(data).decode()) for kind, data in candidate.audio.items()]
        if candidate.finish_reason not in _SAID_ALL:
            candidate.refusal = f"stopped: {candidate.finish_reason}"
        choices.append(candidate)
    blocked = (rest.get("promptFeedback") or {}).get("blockReason")
    if blocked and not choices:
        # The provider's policy has answered in the model's place: the application goes on with this, as with a refusal.
        choices.append(Choice(refusal=f"blocked: {blocked}", finish_reason=blocked))
    usage = rest.get("usageMetadata") or {}
    counts = {
        "input_tokens": usage.get("promptTokenCount"),
        "output_tokens": usage.get("candidatesTokenCount"),
        "cached_tokens": usage.get("cachedContentTokenCount"),
    }
    return replace(
        answer_of(choices, rest, counts),
        model=text_or_none(rest.get("modelVersion")),
        id=text_or_none(rest.get("responseId")),
    )


_DECODING = ("temperature", "topP", "topK", "seed", "presencePenalty", "frequencyPenalty")


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    given = inner(body, "generationConfig")
    thinking = {"thinkingConfig": given["thinkingConfig"]} if "thinkingConfig" in given else {}
    return {
        **kept(body, "model"),
        "contents": [{"role": "user", "parts": [{"text": question}]}],
        "generationConfig": {**kept(given, *_DECODING), **thinking, **limited(given, tokens, "maxOutputTokens")},
    }


FAMILY = Family(
    "generateContent",
    _route,
    _asks,
    _read,
    _read_stream,
    streams=_streams,
    model_path=_MODEL,
    model_in_body=False,
    places={
        "temperature": "generationConfig.temperature",
        "seed": "generationConfig.seed",
        "top_p": "generationConfig.topP",
        "top_k": "generationConfig.topK",
        "max_tokens": "generationConfig.maxOutputTokens",
        "max_output_tokens": "generationConfig.maxOutputTokens",
        "max_completion_tokens": "generationConfig.maxOutputTokens",
        "stop": "generationConfig.stopSequences",
        "n": "generationConfig.candidateCount",
        "presence_penalty": "generationConfig.presencePenalty",
        "frequency_penalty": "generationConfig.frequencyPenalty",
        "logprobs": "generationConfig.responseLogprobs",
        "top_logprobs": "generationConfig.logprobs",
    },
    plain=_plain,
)
