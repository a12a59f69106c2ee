"""Frozen dataclasses as JSON values and back, by the dataclasses' own annotations.

What is read may come from another version, another program or a damaged file. Fields that are not known are passed
over; one that is missing or of another kind is told by its JSON path: ``$.groups[1].count: a whole number is wanted,
not "x"``. An annotation may bring a check of its own, ``Annotated[str, check]``: a function that raises `ValueError`,
saying what is wanted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

_Record = TypeVar("_Record")

DEEPEST = 100
"""Levels of lists and objects, one within the other, that a record from a file may have; 16 forks take 50."""

_MOST = 2**53
"""From here on readers of JSON take one whole number for another."""

_LONGEST = 60
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class RecordError(ValueError):
    """A JSON value that is not what is wanted, as ``PATH: what is wrong``; the message is printable ASCII."""

    def __init__(self, wrong: str, place: str = "") -> None:
        super().__init__(wrong, place)
        self.wrong = wrong
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {self.wrong}"

    def within(self, place: str) -> RecordError:
        return RecordError(self.wrong, place + self.place)


def encode(value: Any) -> Any:
    """A dataclass as what JSON knows. Not `dataclasses.asdict`: that copies every run's index one by one."""
    if is_dataclass(value):
        return {part.name: encode(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, tuple):
        return [encode(part) for part in value] if value and is_dataclass(value[0]) else list(value)
    return value


def decode(kind: type[_Record], data: object) -> _Record:
    """A dataclass from the JSON value that `encode` makes of it.

    Annotations may be `int` (counts and places: from 0 to 2**53), `float`, `str`, `bool`, `Any`, dataclasses, and of
    all of these ``tuple[X, ...]``, ``dict[str, X]``, ``X | None`` and ``Annotated[X, check]``.

    Raises:
        RecordError: naming the place, from `data` as ``$``.
    """
    hint: Any = kind
    try:
        record: _Record = _reader(hint)(data)
    except RecordError as error:
        raise error.within("$") from None
    except RecursionError:
        raise RecordError("is nested too deep", "$") from None
    return record


def check(value: object) -> None:
    """Refuse what a program that reads JSON may stumble over, also in fields that are not known.

    Raises:
        RecordError: a number is not finite, or lists and objects are nested deeper than `DEEPEST`.
    """
    waiting = [("$", value, DEEPEST)]
    while waiting:
        place, value, depth = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise RecordError(_instead_of("a finite number", value), place)
        if isinstance(value, dict | list):
            if not depth:
                raise RecordError(f"is nested deeper than {DEEPEST} levels", place)
            if isinstance(value, dict):
                waiting.extend((place + field_place(name), part, depth - 1) for name, part in value.items())
            elif not _all_are(int, value):  # Lists of runs are long.
                waiting.extend((f"{place}[{index}]", part, depth - 1) for index, part in enumerate(value))


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """What makes a value of this annotation from a JSON value."""
    if hint is Any:
        return lambda value: value
    if hint in _PLAIN:
        return _PLAIN[hint]
    if isinstance(hint, type) and is_dataclass(hint):
        return partial(_record, hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return partial(_checked, _reader(arguments[0]), arguments[1])
    if origin is tuple and arguments[1:] == (...,):
        return partial(_many, arguments[0], _reader(arguments[0]))
    if origin is dict and arguments[0] is str:
        return partial(_mapping, _reader(arguments[1]))
    if origin in (Union, UnionType) and len(arguments) == 2 and arguments[1] is NoneType:
        return partial(_optional, _reader(arguments[0]))
    raise TypeError(f"no JSON form is known of {hint}")


@cache
def _fields(kind: type) -> list[tuple[str, Callable[[Any], Any], bool]]:
    """Name, reader and whether it must be there, of each field."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        (part.name, _reader(hints[part.name]), part.default is MISSING and part.default_factory is MISSING)
        for part in fields(kind)
    ]


def _record(kind: type, value: object) -> object:
    if not isinstance(value, dict):
        raise RecordError(_instead_of("an object", value))
    known = {}
    for name, reader, required in _fields(kind):
        if name in value:
            try:
                known[name] = reader(value[name])
            except RecordError as error:
                raise error.within(f".{name}") from None
        elif required:
            raise RecordError("is missing", f".{name}")
    return kind(**known)


def _many(kind: object, reader: Callable[[Any], Any], value: object) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RecordError(_instead_of("a list", value))
    if kind is str and _all_are(str, value):
        return tuple(value)
    if kind is int and _all_are(int, value) and (not value or 0 <= min(value) <= max(value) < _MOST):
        return tuple(value)
    parts = []
    for index, part in enumerate(value):
        try:
            parts.append(reader(part))
        except RecordError as error:
            raise error.within(f"[{index}]") from None
    return tuple(parts)


def _mapping(reader: Callable[[Any], Any], value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(_instead_of("an object", value))
    parts = {}
    for name, part in value.items():
        try:
            parts[name] = reader(part)
        except RecordError as error:
            raise error.within(field_place(name)) from None
    return parts


def _optional(reader: Callable[[Any], Any], value: object) -> Any:
    return None if value is None else reader(value)


def _checked(reader: Callable[[Any], Any], check: Callable[[Any], object], value: object) -> Any:
    known = reader(value)
    try:
        check(known)
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError(_instead_of(str(error), value)) from None
    return known


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(_instead_of("a number", value))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecordError(_instead_of("a finite number", value))
    return number


def _whole(value: object) -> int:
    # True is an int to Python, and no number to JSON.
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecordError(_instead_of("a whole number", value))
    if not 0 <= value < _MOST:
        raise RecordError(_instead_of("a whole number from 0 to 2**53", value))
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise RecordError(_instead_of("a text", value))
    return value


def _either(value: object) -> bool:
    if not isinstance(value, bool):
        raise RecordError(_instead_of("true or false", value))
    return value


def _nothing(value: object) -> None:
    if value is not None:
        raise RecordError(_instead_of("null", value))


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    int: _whole,
    float: _number,
    str: _text,
    bool: _either,
    NoneType: _nothing,
}


def _all_are(kind: object, values: list[Any]) -> bool:
    return set(map(type, values)) <= {kind}


def field_place(name: str) -> str:
    """The last part of a field's JSON path."""
    return f".{name}" if _NAME.fullmatch(name) else f"[{json.dumps(name)}]"


def _instead_of(wanted: str, value: object) -> str:
    if isinstance(value, dict | list):
        return f"{wanted} is wanted, not {'an object' if isinstance(value, dict) else 'a list'}"
    written = json.dumps(value[:_LONGEST] if isinstance(value, str) else value)
    cut = "..." if len(written) > _LONGEST else ""
    return f"{wanted} is wanted, not {written[:_LONGEST]}{cut}"
