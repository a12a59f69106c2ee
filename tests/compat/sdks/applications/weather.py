"""What all applications have: where the model is, and the tool that it may call."""

import os
from typing import Any

ORIGIN = os.environ["MODEL_ORIGIN"]
KEY = "sk-test-secret"


def weather(city: str) -> str:
    """Get the weather in a city."""
    assert city == "Oslo"
    return "7 degrees and rain"


PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"name": "weather", "description": weather.__doc__, "parameters": PARAMETERS}


def text_of(vector: Any) -> str:
    """The text that the model wrote as an embedding, one number a character."""
    return "".join(chr(round(number)) for number in vector)
