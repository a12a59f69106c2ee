"""Where outputs differ that have a structure: the path in a JSON document, the argument of a tool call."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llm_determinism.analysis.compare import json_value
from pytest_llm_determinism.shapes.answer import ToolCall

__all__ = ["Difference", "between_calls", "between_documents"]

LONGEST_VALUE = 60
"""Characters up to which texts that differ are shown as a whole."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A place at which several outputs have not all the same.

    Attributes:
        path: ``$.items[2].price`` in a JSON document; ``get_weather.city`` for an argument of a tool call, ``tool call
            1`` for the call itself, ``tool call 2: get_weather.city`` where several are made.
        values: what each output has there, as it is to be shown; None where it has no such place.
        same: equal for those that have the same there.
        text: whether the values are texts, some of them long: worth looking for the place within.
    """

    path: str
    values: tuple[str | None, ...]
    same: tuple[Hashable, ...]
    text: bool = False


def between_documents(texts: Sequence[str], name: str = "$") -> Difference | None:
    """The first place, in the order of the first document, at which these JSON documents differ in value.

    Names that the first document lacks come after its own. None if they are equal as JSON values (as the comparison
    `json` has it), if one is not JSON by RFC 8259 or too deep to read, and if one is neither object nor array.

    Args:
        name: of the whole document.
    """
    documents = _documents(texts)
    return None if documents is None else _first(_differences(name, documents))


def between_calls(outputs: Sequence[str], calls: Sequence[Sequence[ToolCall]]) -> Difference | None:
    """The first place at which these outputs differ in the tool calls that close them.

    What is equal as JSON but written otherwise comes last. None if the outputs differ before the calls, and if the
    calls do not close them one after the other, as in an answer with several choices.
    """
    if not any(calls):
        return None
    before = {_before(output, made) for output, made in zip(outputs, calls, strict=True)}
    if len(before) > 1 or None in before:
        return None
    number = max(map(len, calls))
    places = [[made[place] if place < len(made) else None for made in calls] for place in range(number)]
    titles = [f"tool call {place + 1}" for place in range(number)]
    # One call needs no number.
    within = ["" if number == 1 else f"{title}: " for title in titles]
    return _first(
        found
        for between in (_between_names_or_values, _between_writings)
        for place in range(number)
        if (found := between(places[place], titles[place], within[place]))
    )


def _before(output: str, calls: Sequence[ToolCall]) -> str | None:
    """What the output says before these calls; None if they do not stand at its end."""
    closing = "\n".join([call.line() for call in calls])
    if output == closing:
        return ""
    if not closing:
        return output
    return output.removesuffix(f"\n{closing}") if output.endswith(f"\n{closing}") else None


def _between_names_or_values(calls: Sequence[ToolCall | None], title: str, within: str) -> Difference | None:
    made = [call for call in calls if call is not None]
    names = tuple(None if call is None else call.name for call in calls)
    if len(set(names)) > 1:
        return Difference(title, names, names)
    arguments = [call.arguments for call in made]
    if len(set(arguments)) == 1:
        return None
    documents = _documents(arguments)
    if documents is None:
        return _between_writings(calls, title, within)
    return _first(_differences(within + made[0].name, documents))


def _between_writings(calls: Sequence[ToolCall | None], title: str, within: str) -> Difference | None:
    arguments = tuple(call.arguments for call in calls if call is not None)
    if len(set(arguments)) == 1 or calls[0] is None:
        return None
    return Difference(within + calls[0].name, arguments, arguments, text=max(map(len, arguments)) > LONGEST_VALUE)


class _Absent:
    """What stands for a value where there is none."""


_ABSENT = _Absent()

_OPENS_A_DOCUMENT = re.compile(r"\s*[\[{]")


def _not_rfc_8259(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


# A number stays as it is written, as bytes, which nothing else in a document is: so it is never equal to a text.
_DECODER = json.JSONDecoder(parse_float=str.encode, parse_int=str.encode, parse_constant=_not_rfc_8259)


def _documents(texts: Sequence[str]) -> list[Any] | None:
    if not all(_OPENS_A_DOCUMENT.match(text) for text in texts):
        return None
    try:
        return [_DECODER.decode(text) for text in texts]
    except (ValueError, RecursionError):
        return None


def _differences(path: str, values: Sequence[Any]) -> Iterator[Difference]:
    first = values[0]
    if all(value == first for value in values):
        return
    if all(type(value) is dict for value in values):
        for name in _names(values):
            inner = f"{path}.{name}" if _PLAIN_NAME(name) else f"{path}[{json.dumps(name, ensure_ascii=False)}]"
            yield from _differences(inner, [value.get(name, _ABSENT) for value in values])
    elif all(type(value) is list for value in values):
        for number in range(max(map(len, values))):
            inner = f"{path}[{number}]"
            yield from _differences(inner, [value[number] if number < len(value) else _ABSENT for value in values])
    elif all(type(value) is str for value in values) and max(map(len, values)) > LONGEST_VALUE:
        yield Difference(path, tuple(values), tuple(values), text=True)
    else:
        written = tuple(None if value is _ABSENT else _written(value) for value in values)
        same = tuple(None if text is None else json_value(text) for text in written)
        if len(set(same)) > 1:
            yield Difference(path, written, same)


_PLAIN_NAME = re.compile(r"[^\W\d]\w*").fullmatch
"""A name that needs no quotes in a path, see RFC 9535, section 2.5.1."""


def _names(objects: Sequence[dict[str, Any]]) -> list[str]:
    own = objects[0]
    return [*own, *sorted({name for value in objects for name in value if name not in own})]


def _written(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        members = (f"{json.dumps(name, ensure_ascii=False)}: {_written(item)}" for name, item in value.items())
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _first(found: Iterator[Difference]) -> Difference | None:
    """The first of them; None if there is none, or if the documents are too deep to look through."""
    try:
        return next(found, None)
    except RecursionError:
        return None
