"""Server-sent events as model APIs use them: each event's data is one JSON text, ``[DONE]`` ends the stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pytest_llm_determinism.shapes.answer import Choice, Unreadable

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


def read_choices(
    events: Iterable[Any], add: Callable[[Choice, dict[str, Any]], None]
) -> tuple[dict[int, Choice], dict[str, Any], Any]:
    """The alternatives of a streamed completion by index, what the events say besides, and the usage.

    Args:
        add: adds to a choice what one event says of it.

    Raises:
        Unreadable: the stream broke off.
    """
    choices: dict[int, Choice] = {}
    rest: dict[str, Any] = {}
    usage = None
    done = False
    for event in events:
        if event == DONE:
            done = True
        if not isinstance(event, dict):
            continue
        rest.update({field: value for field, value in event.items() if value is not None})
        usage = event.get("usage") or usage
        for item in event.get("choices") or ():
            choice = choices.setdefault(item.get("index", 0), Choice())
            add(choice, item)
            choice.finish_reason = item.get("finish_reason") or choice.finish_reason
    # Not every server sends the end marker, and not every one gives a reason before it: one of them is enough.
    if not done and not (choices and all(choice.finish_reason for choice in choices.values())):
        raise Unreadable("a stream that broke off before its end")
    return choices, rest, usage
