"""OpenAI Chat Completions (``POST …/chat/completions``), also under Azure-style paths.

Many providers speak it (Mistral, Groq, Together, Hugging Face's router, vLLM, llama.cpp, …); what they add is read here
too: reasoning, content in parts, Mistral's routes for agents and for filling in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_llm_determinism.shapes.answer import (
    AZURE_DEPLOYMENT,
    Answer,
    Choice,
    Family,
    ToolCall,
    answer_of,
    arguments_of,
    in_order,
    medium,
    text_of,
)
from pytest_llm_determinism.shapes.choices import read_choices
from pytest_llm_determinism.shapes.plain import OPENAI, kept, limited
from pytest_llm_determinism.shapes.tokens import tokens_in

_ROUTES = ("/chat/completions", "/agents/completions", "/fim/completions")


def _route(path: str) -> bool:
    return path.endswith(_ROUTES)


def _asks(body: dict[str, Any]) -> bool:
    return isinstance(body.get("messages"), list) or isinstance(body.get("prompt"), str)


def _read(content: dict[str, Any]) -> Answer:
    choices = []
    for item in in_order(content.get("choices") or ()):
        message = item.get("message") or {}
        choice = Choice(finish_reason=item.get("finish_reason"), tokens=tokens_in(item.get("logprobs")))
        _add_message(choice, message)
        choice.media = _media(message)
        audio = message.get("audio") or {}
        if audio:
            choice.text += str(audio.get("transcript") or "")
            choice.media.append(medium("audio", str(audio.get("data") or "")))
        choice.tool_calls = [
            _tool_call(call.get("function") or call.get("custom") or {}) for call in message.get("tool_calls") or ()
        ]
        if message.get("function_call"):
            choice.tool_calls.append(_tool_call(message["function_call"]))
        choices.append(choice)
    return answer_of(choices, content, content.get("usage"))


def _add_message(choice: Choice, message: dict[str, Any]) -> None:
    """What a message and a piece of one have alike: text, reasoning, refusal."""
    content = message.get("content")
    choice.text += text_of(content)
    choice.reasoning += str(message.get("reasoning_content") or message.get("reasoning") or "")
    choice.reasoning += _thinking(content)
    choice.refusal += message.get("refusal") or ""


def _thinking(content: object) -> str:
    """Reasoning that comes as a part of the content (``{"type": "thinking", "thinking": …}``)."""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(text_of(part.get("thinking")) for part in parts if part.get("type") == "thinking")


def _media(message: dict[str, Any]) -> list[str]:
    """Images, as the content's parts or beside it."""
    content = message.get("content")
    parts = [*(content if isinstance(content, list) else ()), *(message.get("images") or ())]
    return [
        medium("image", _address(part["image_url"])) for part in parts if isinstance(part, dict) and "image_url" in part
    ]


def _address(image: object) -> str:
    return str(image.get("url") or "") if isinstance(image, dict) else str(image)


def _tool_call(function: dict[str, Any]) -> ToolCall:
    return ToolCall(str(function.get("name")), arguments_of(function.get("arguments", function.get("input", ""))))


def _read_stream(events: Iterable[Any]) -> Answer:
    calls: dict[tuple[int, int], tuple[str, str]] = {}
    audio: dict[int, list[str]] = {}

    def add(choice: Choice, item: dict[str, Any]) -> None:
        delta = item.get("delta") or {}
        index = item.get("index", 0)
        _add_message(choice, delta)
        choice.media.extend(_media(delta))
        if delta.get("audio"):
            choice.text += str(delta["audio"].get("transcript") or "")
            audio.setdefault(index, []).append(str(delta["audio"].get("data") or ""))
        fragments = list(delta.get("tool_calls") or ())
        if delta.get("function_call"):
            fragments.append({"index": 0, "function": delta["function_call"]})
        for number, fragment in enumerate(fragments):
            place = (index, fragment.get("index", number))
            name, arguments = calls.get(place, ("", ""))
            function = fragment.get("function") or fragment.get("custom") or {}
            piece = arguments_of(function.get("arguments", function.get("input")))
            calls[place] = (name + (function.get("name") or ""), arguments + piece)

    choices, last, usage = read_choices(events, add)
    for index, heard in audio.items():
        choices[index].media.append(medium("audio", *heard))
    for (index, _), (name, arguments) in sorted(calls.items()):
        choices[index].tool_calls.append(ToolCall(name, arguments))
    return answer_of([choice for _, choice in sorted(choices.items())], last, usage)


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    if "messages" not in body:
        return None  # a text with a gap to fill in
    return {
        **kept(body, *OPENAI, "agent_id"),
        **({"provider": body["provider"]} if "provider" in body else {}),  # a router's choice of whom to ask
        **limited(body, tokens, "max_tokens", "max_completion_tokens"),
        "messages": [{"role": "user", "content": question}],
    }


FAMILY = Family("chat completions", _route, _asks, _read, _read_stream, model_path=AZURE_DEPLOYMENT, plain=_plain)
