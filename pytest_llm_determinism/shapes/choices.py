"""The alternatives of a streamed completion, as the OpenAI APIs and their many relatives send them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pytest_llm_determinism.shapes.answer import Choice, Unreadable
from pytest_llm_determinism.shapes.framing import DONE
from pytest_llm_determinism.shapes.tokens import tokens_in


def read_choices(
    events: Iterable[Any], add: Callable[[Choice, dict[str, Any]], None]
) -> tuple[dict[int, Choice], dict[str, Any], Any]:
    """The alternatives of a streamed completion by index, what the events say besides, and the usage.

    Args:
        add: puts into a choice, in which the tokens stand already, what one event says of it.

    Raises:
        Unreadable: the stream broke off.
    """
    pieces: dict[int, list[Choice]] = {}
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
            piece = Choice(finish_reason=item.get("finish_reason"), tokens=tokens_in(item.get("logprobs")))
            add(piece, item)
            pieces.setdefault(item.get("index", 0), []).append(piece)
    choices = {index: _joined(found) for index, found in pieces.items()}
    # Not every server sends the end marker, and not every one gives a reason before it: one of them is enough.
    if not done and not (choices and all(choice.finish_reason for choice in choices.values())):
        raise Unreadable("a stream that broke off before its end")
    return choices, rest, usage


def _joined(pieces: list[Choice]) -> Choice:
    return Choice(
        text="".join([piece.text for piece in pieces]),
        refusal="".join([piece.refusal for piece in pieces]),
        finish_reason=next((piece.finish_reason for piece in reversed(pieces) if piece.finish_reason), None),
        reasoning="".join([piece.reasoning for piece in pieces]),
        media=[line for piece in pieces for line in piece.media],
        tokens=[token for piece in pieces for token in piece.tokens],
    )
