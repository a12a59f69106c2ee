"""The alternatives of a streamed completion, as the OpenAI APIs and their many relatives send them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pytest_llm_determinism.shapes.answer import Choice, Unreadable
from pytest_llm_determinism.shapes.framing import DONE


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
