"""What a request for something else has in common with the one it is made from: the model and how it decodes.

Only what is named here is taken over, so that nothing an application asked, or said of its users, goes along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DECODING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)

OPENAI = (*DECODING, "model", "reasoning_effort", "service_tier")
"""Fields that OpenAI's APIs and their many relatives have at the top."""


def kept(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The fields of these names that hold a number, a switch or a name."""
    return {name: body[name] for name in names if isinstance(body.get(name), (str, int, float))}


def inner(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object in a body; an empty one where there is none."""
    found = body.get(name)
    return found if isinstance(found, dict) else {}


def limited(body: Mapping[str, Any], tokens: int | None, *names: str) -> dict[str, Any]:
    """The longest answer, under that of the names which the body itself uses, else the first.

    Args:
        tokens: None leaves it as it is in the body, where nothing may be said of it.
    """
    name = next((name for name in names if body.get(name) is not None), names[0])
    return kept(body, name) if tokens is None else {name: tokens}
