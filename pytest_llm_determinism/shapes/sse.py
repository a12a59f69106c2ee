"""Server-sent events as model APIs use them: each event's data is one JSON text, ``[DONE]`` ends the stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pytest_llm_determinism.shapes.answer import Unreadable

DONE = "[DONE]"


def read_events(text: str) -> Iterator[Any]:
    """The data of each event, parsed; the end marker comes as the string `DONE`.

    Raises:
        Unreadable: an event is not JSON, or says that the server failed under way.
    """
    for block in text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        data = "\n".join(line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:"))
        if not data:
            continue
        if data.strip() == DONE:
            yield DONE
            continue
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise Unreadable(f"a stream with an event that is not JSON: {data[:80]!r}") from None
        if isinstance(event, dict) and (event.get("error") or event.get("type") == "error"):
            raise Unreadable(f"a stream that ended in an error: {data[:200]}")
        yield event
