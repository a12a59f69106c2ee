"""Embeddings as OpenAI has them (``POST …/embeddings``), also under Azure-style paths; many providers speak it."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_llm_determinism.shapes.answer import (
    AZURE_DEPLOYMENT,
    Answer,
    Choice,
    Family,
    Unreadable,
    answer_of,
    in_order,
)
from pytest_llm_determinism.shapes.plain import kept


def _route(path: str) -> bool:
    return path.endswith("/embeddings")


def _asks(body: dict[str, Any]) -> bool:
    return "input" in body


def _read(content: dict[str, Any]) -> Answer:
    vectors = [_vector(item["embedding"]) for item in in_order(content.get("data") or ())]
    if not vectors:
        raise Unreadable(f"a response without an embedding: {str(content)[:80]}")
    # Without spaces: a vector is no sequence of words, in which a loop could be looked for.
    text = json.dumps(vectors, sort_keys=True, separators=(",", ":"))
    return answer_of([Choice(text)], content, content.get("usage"))


def _vector(value: object) -> object:
    """A vector as its numbers, which is what the client makes of it.

    They are the exact values of the 32-bit floats in base64, and of the decimals in JSON: to round these would make
    vectors equal that differ. What does not decode to numbers (bits, 8-bit integers) is compared as it came.
    """
    if not value:
        raise Unreadable("an embedding that is empty")
    if not isinstance(value, str):
        return value
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        return value
    if len(data) % 4:
        return value
    numbers = struct.unpack(f"<{len(data) // 4}f", data)
    return numbers if all(map(math.isfinite, numbers)) else value


def _read_stream(events: Iterable[Any]) -> Answer:
    raise Unreadable("a stream, which embeddings are not")


def _plain(body: Mapping[str, Any], question: str, tokens: int | None) -> dict[str, Any] | None:
    return {**kept(body, "model", "dimensions", "encoding_format", "input_type", "task", "truncate"), "input": question}


FAMILY = Family("embeddings", _route, _asks, _read, _read_stream, model_path=AZURE_DEPLOYMENT, plain=_plain)
