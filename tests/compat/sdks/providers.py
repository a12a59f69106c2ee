"""What the providers' APIs send: for each, the answers of a scripted model in that API's form, whole or streamed.

Every id, time and signature differs from answer to answer, as the providers' own do.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from amazon import CONTENT_TYPE, chunks, event_stream
from scripted import Call, Reply

TOOL = "weather"
ARGUMENTS = {"city": "Oslo"}

_numbers = itertools.count(1)

Object = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What the model says: a text, or a call of the tool.

    Attributes:
        tool: name and arguments of the tool that it calls instead of giving a text.
    """

    text: str = ""
    tool: tuple[str, Object] | None = None


def answered(call: Call, said: Said) -> Reply:
    """The answer to a request, in the form of the API that it was sent to; 404 for a route that no API has."""
    path = call.path.partition("?")[0]
    for pattern, answer in _ROUTES:
        if re.search(pattern, path):
            return answer(call, said)
    return Reply(status=404, raw=b"{}")


def vector(text: str) -> list[float]:
    """A text as an embedding: one number a character."""
    return [float(ord(character)) for character in text]


def _json(content: object) -> Reply:
    return Reply(raw=json.dumps(content).encode())


def _sse(events: Iterable[Object | str], named: bool = False, newline: str = "\n") -> Reply:
    """A stream of server-sent events; with their ``type`` as name of the event, where the API does so."""
    lines = []
    for event in events:
        if named and isinstance(event, dict):
            lines.append(f"event: {event['type']}{newline}")
        lines.append(f"data: {event if isinstance(event, str) else json.dumps(event)}{newline}{newline}")
    return Reply(raw="".join(lines).encode(), content_type="text/event-stream")


def _lines(events: Iterable[Object], content_type: str) -> Reply:
    return Reply(raw="".join(json.dumps(event) + "\n" for event in events).encode(), content_type=content_type)


def _pieces(text: str) -> list[str]:
    """A text in pieces that do not end where words do."""
    return [text[at : at + 5] for at in range(0, len(text), 5)]


# OpenAI: chat completions, completions, responses, embeddings


def _chat(call: Call, said: Said) -> Reply:
    number = next(_numbers)
    whole: Object = {"id": f"chatcmpl-{number}", "created": 1700000000 + number, "model": "m-1"}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    calls = []
    if said.tool:
        name, arguments = said.tool
        function = {"name": name, "arguments": json.dumps(arguments)}
        calls = [{"id": f"call{number:05}", "type": "function", "function": function}]
    reason = "tool_calls" if calls else "stop"
    if not call.body.get("stream"):
        message: Object = {"role": "assistant", "content": None if calls else said.text}
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return _json({**whole, "object": "chat.completion", "choices": [choice], "usage": usage})

    def chunk(reason: str | None = None, **delta: Any) -> Object:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**whole, "object": "chat.completion.chunk", "choices": [choice]}

    deltas: list[Object] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _pieces(said.text)]
    deltas += [{"tool_calls": [{"index": index, **one}]} for index, one in enumerate(calls)]
    last = {**chunk(reason), "usage": usage}
    return _sse([*(chunk(**delta) for delta in deltas), last, "[DONE]"])


def _completion(call: Call, said: Said) -> Reply:
    number = next(_numbers)
    whole = {"id": f"cmpl-{number}", "object": "text_completion", "created": 1700000000 + number, "model": "m-1"}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}

    def choices(text: str, reason: str | None) -> Object:
        return {**whole, "choices": [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None}]}

    if not call.body.get("stream"):
        return _json({**choices(said.text, "stop"), "usage": usage})
    return _sse([*(choices(piece, None) for piece in _pieces(said.text)), choices("", "stop"), "[DONE]"])


def _response(call: Call, said: Said) -> Reply:
    number = next(_numbers)
    part: Object = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
    item: Object = {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed"}
    item["content"] = [part]
    if said.tool:
        name, arguments = said.tool
        item = {"id": f"fc_{number}", "type": "function_call", "status": "completed", "call_id": f"call_{number}"}
        item |= {"name": name, "arguments": json.dumps(arguments)}
    usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    whole: Object = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1700000000 + number,
        "model": "m-1",
        "status": "completed",
        "output": [item],
        "usage": usage
        | {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1,
    }
    if not call.body.get("stream"):
        return _json(whole)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    events: list[Object] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *({"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []} for piece in _pieces(said.text)),
        {"type": "response.output_text.done", **at, "text": said.text, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return _sse([{**event, "sequence_number": number} for number, event in enumerate(events)], named=True)


def _embeddings(call: Call, said: Said) -> Reply:
    numbers: Any = vector(said.text)
    if call.body.get("encoding_format") == "base64":
        numbers = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    data = [{"object": "embedding", "index": 0, "embedding": numbers}]
    return _json(
        {"object": "list", "data": data, "model": "m-1", "id": f"emb-{next(_numbers)}"}
        | {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
    )


# Anthropic, also inside of Bedrock


def _message(said: Said) -> Object:
    number = next(_numbers)
    content: Object = {"type": "text", "text": said.text}
    if said.tool:
        name, arguments = said.tool
        content = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments}
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": "m-1",
        "content": [content],
        "stop_reason": "tool_use" if said.tool else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 3},
    }


def _message_events(said: Said) -> Iterator[Object]:
    whole = _message(said)
    yield {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "ping"}
    for piece in _pieces(said.text):
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    yield {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 3}}
    yield {"type": "message_stop"}


def _messages(call: Call, said: Said) -> Reply:
    return _sse(_message_events(said), named=True) if call.body.get("stream") else _json(_message(said))


# Google


def _generate_content(call: Call, said: Said) -> Reply:
    number = next(_numbers)

    def content(part: Object, reason: str | None) -> Object:
        return {
            "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": reason, "index": 0}],
            "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10},
            "modelVersion": "m-1",
            "responseId": f"response-{number}",
        }

    if said.tool:
        name, arguments = said.tool
        called = {"name": name, "args": arguments, "id": f"call-{number}"}
        signature = base64.b64encode(f"thought {number}".encode()).decode()
        return _json(content({"functionCall": called, "thoughtSignature": signature}, "STOP"))
    if "stream" in call.path:
        *pieces, last = _pieces(said.text)
        events = [*(content({"text": piece}, None) for piece in pieces), content({"text": last}, "STOP")]
        return _sse(events, newline="\r\n")
    return _json(content({"text": said.text}, "STOP"))


# Cohere


def _cohere(call: Call, said: Said) -> Reply:
    number = next(_numbers)
    usage = {"billed_units": {"input_tokens": 7, "output_tokens": 3}, "tokens": {"input_tokens": 7, "output_tokens": 3}}
    if call.body.get("stream"):
        block = {"type": "text", "text": ""}
        events: list[Object] = [
            {"type": "message-start", "id": f"c-{number}", "delta": {"message": {"role": "assistant", "content": []}}},
            {"type": "content-start", "index": 0, "delta": {"message": {"content": block}}},
            *(
                {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": piece}}}}
                for piece in _pieces(said.text)
            ),
            {"type": "content-end", "index": 0},
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": usage}},
        ]
        return _sse(events, named=True)
    message: Object = {"role": "assistant", "content": [{"type": "text", "text": said.text}]}
    if said.tool:
        name, arguments = said.tool
        function = {"name": name, "arguments": json.dumps(arguments)}
        calls = [{"id": f"{name}_{number}", "type": "function", "function": function}]
        message = {"role": "assistant", "tool_plan": "I look it up.", "tool_calls": calls}
    reason = "TOOL_CALL" if said.tool else "COMPLETE"
    return _json({"id": f"c-{number}", "finish_reason": reason, "message": message, "usage": usage})


def _cohere_v1(call: Call, said: Said) -> Reply:
    number = next(_numbers)
    whole = {"text": said.text, "generation_id": f"g-{number}", "response_id": f"r-{number}", "chat_history": []}
    whole |= {"finish_reason": "COMPLETE", "meta": {"billed_units": {"input_tokens": 7, "output_tokens": 3}}}
    if not call.body.get("stream"):
        return _json(whole)
    events: list[Object] = [
        {"event_type": "stream-start", "is_finished": False, "generation_id": f"g-{number}"},
        *({"event_type": "text-generation", "is_finished": False, "text": piece} for piece in _pieces(said.text)),
        {"event_type": "stream-end", "is_finished": True, "finish_reason": "COMPLETE", "response": whole},
    ]
    return _lines(events, "application/stream+json")


# Ollama


def _ollama(call: Call, said: Said) -> Reply:
    chat = call.path.endswith("/chat")
    number = next(_numbers)

    def event(text: str, **fields: Any) -> Object:
        said_here: Object = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
        at = f"2026-01-01T00:00:{number % 60:02}.{number:06}Z"
        return {"model": "m", "created_at": at, **said_here, "done": False, **fields}

    counts = {"prompt_eval_count": 7, "eval_count": 3}
    end = {"done": True, "done_reason": "stop", "total_duration": 1000 + number, **counts}
    if call.body.get("stream", True):
        events = [*(event(piece) for piece in _pieces(said.text)), event("", **end)]
        return _lines(events, "application/x-ndjson")
    whole = event(said.text, **end)
    if said.tool:
        name, arguments = said.tool
        whole["message"]["tool_calls"] = [{"function": {"name": name, "arguments": arguments}}]
    return _json(whole)


# Hugging Face's text generation


def _text_generation(call: Call, said: Said) -> Reply:
    if not call.body.get("stream"):
        return _json([{"generated_text": said.text}])
    *pieces, last = _pieces(said.text)

    def token(number: int, text: str, **end: Any) -> Object:
        return {"index": number, "token": {"id": number, "text": text, "logprob": -0.5, "special": False}, **end}

    details = {"finish_reason": "eos_token", "generated_tokens": len(pieces) + 1, "input_length": 7, "seed": None}
    events = [token(number, piece, generated_text=None, details=None) for number, piece in enumerate(pieces)]
    return _sse([*events, token(len(pieces), last, generated_text=said.text, details=details)])


# Amazon Bedrock


def _converse(call: Call, said: Said) -> Reply:
    number = next(_numbers)
    content: Object = {"text": said.text}
    if said.tool:
        name, arguments = said.tool
        content = {"toolUse": {"toolUseId": f"tooluse_{number}", "name": name, "input": arguments}}
    usage = {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10}
    return _json(
        {
            "output": {"message": {"role": "assistant", "content": [content]}},
            "stopReason": "tool_use" if said.tool else "end_turn",
            "usage": usage,
            "metrics": {"latencyMs": number},
        }
    )


def _converse_stream(call: Call, said: Said) -> Reply:
    number = next(_numbers)
    usage = {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10}
    events: list[Object] = [
        {"messageStart": {"role": "assistant"}},
        *({"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": piece}}} for piece in _pieces(said.text)),
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"metadata": {"usage": usage, "metrics": {"latencyMs": number}}},
    ]
    return _amazon(event_stream(events))


def _invoke(call: Call, said: Said) -> Reply:
    return _json(_message(said))


def _invoke_stream(call: Call, said: Said) -> Reply:
    return _amazon(chunks(_message_events(said)))


def _amazon(content: bytes) -> Reply:
    return Reply(raw=content, content_type=CONTENT_TYPE)


_ROUTES: tuple[tuple[str, Callable[[Call, Said], Reply]], ...] = (
    (r"/chat/completions$", _chat),
    (r"/completions$", _completion),
    (r"/responses$", _response),
    (r"/embeddings$", _embeddings),
    (r"/messages$", _messages),
    (r":(stream)?[gG]enerateContent$", _generate_content),
    (r"/v2/chat$", _cohere),
    (r"/v1/chat$", _cohere_v1),
    (r"/api/(chat|generate)$", _ollama),
    (r"/model/[^/]+/converse$", _converse),
    (r"/model/[^/]+/converse-stream$", _converse_stream),
    (r"/model/[^/]+/invoke$", _invoke),
    (r"/model/[^/]+/invoke-with-response-stream$", _invoke_stream),
    (r"/generation$", _text_generation),
)
