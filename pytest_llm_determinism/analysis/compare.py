"""When two outputs are the same: a comparison gives each a normal form, and equal forms are one group."""

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Rational
from typing import Any

from pytest_llm_determinism.shapes.answer import ToolCall

__all__ = ["LAXER", "NAMED", "Comparison", "RunOutput", "form", "is_json", "resolve"]


class RunOutput(str):
    """What a run is compared by: its `parts`, one a step or recorded value, joined by newlines.

    As strings, ("a\\nb",) and ("a", "b") are equal; what tells them apart is `parts`. What the model thought aloud is
    no part of it; a callable that wants to compare it finds it in `reasoning`, joined by newlines.

    Attributes:
        tool_calls_by_part: the tool calls that stand in each part.
    """

    parts: tuple[str, ...]
    reasoning: str
    tool_calls_by_part: tuple[tuple[ToolCall, ...], ...]

    def __new__(
        cls, parts: Iterable[str], reasoning: str = "", tool_calls: Iterable[tuple[ToolCall, ...]] = ()
    ) -> "RunOutput":
        if isinstance(parts, str):
            raise TypeError("RunOutput takes a tuple of parts, not one string")
        kept = tuple(parts)
        self = super().__new__(cls, "\n".join(kept))
        self.parts = kept
        self.reasoning = reasoning
        self.tool_calls_by_part = tuple(tool_calls) or ((),) * len(kept)
        return self

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools the model wanted called in this run, in order: `name`, and `arguments` as JSON text."""
        return tuple(call for calls in self.tool_calls_by_part for call in calls)

    @property
    def parsed(self) -> Any:
        """The output as a JSON value; of a run of several parts a list with one value a part.

        Raises:
            ValueError: a part is not JSON. It never stands for a value, or outputs that differ could be equal.
        """
        values = []
        for part in self.parts:
            try:
                values.append(json.loads(part))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the output is not JSON ({error}): {part[:80]!r}") from None
        return values[0] if len(values) == 1 else values


@dataclass(frozen=True)
class Comparison:
    """A comparison in force: `key` gives the normal form of an output."""

    name: str
    normalise: Callable[[Any], object]
    by_part: bool
    """Whether `normalise` takes each part of an output, or the whole `RunOutput`."""

    def key(self, output: RunOutput) -> Hashable:
        """The normal form of an output. Lists, dicts and sets in it are frozen, and NaN is equal to itself.

        Raises TypeError if `normalise` returned something else that cannot be hashed, and whatever it raises.
        """
        if self.by_part:
            form: object = tuple([self.normalise(part) for part in output.parts])
        else:
            form = self.normalise(output)
        try:
            return _frozen(form)
        except TypeError as error:
            raise TypeError(
                f"comparison {self.name} returned a value that cannot be grouped ({error}); "
                "return text, numbers, or tuples, lists, dicts or sets of them"
            ) from error


def exact(text: str) -> str:
    """Every character counts."""
    return text


def stripped(text: str) -> str:
    """White space at the start and the end does not count."""
    return text.strip()


def whitespace(text: str) -> str:
    """A run of white space is as good as one space, and none counts at the start and the end."""
    return " ".join(text.split())


def casefold(text: str) -> str:
    """As `whitespace`, and upper or lower case does not count (Unicode case folding: "ß" is "SS")."""
    return " ".join(text.casefold().split())


def json_value(text: str) -> Hashable:
    """The JSON value counts, not how it is written; what is not JSON is compared exactly.

    Order of keys, spacing, escapes and the form of numbers (1, 1.0, 1e0) do not count; numbers are compared
    exactly, however long; of a repeated key the last value counts. Equal to no JSON, and to itself only: text
    that is not JSON by RFC 8259 (so neither is NaN), or nested too deeply to read.
    """
    try:
        # One flat text as the form: nested tuples would overflow the stack when they are compared.
        return _canonical(_DECODER.decode(text))
    except (ValueError, RecursionError):
        return ("not JSON", text)


def json_output(output: RunOutput) -> Hashable:
    """The JSON values of all parts, see `json_value`; of tool calls the names and the JSON values of the arguments."""
    return tuple(map(_json_part, output.parts, output.tool_calls_by_part))


def _json_part(part: str, calls: Sequence[ToolCall]) -> Hashable:
    if not calls:
        return json_value(part)
    return json_value(_text_beside(part, calls)), tuple((call.name, json_value(call.arguments)) for call in calls)


def _text_beside(part: str, calls: Sequence[ToolCall]) -> str:
    """A part without its tool calls. Where each of them stood is left, as between the choices of an answer."""
    for call in calls:
        part = part.replace(call.line(), "", 1)
    return part.strip("\n")


NAMED: dict[str, Callable[[str], Hashable]] = {
    "exact": exact,
    "stripped": stripped,
    "whitespace": whitespace,
    "casefold": casefold,
    "json": json_value,
}
"""The built-in comparisons by name; each takes one part of an output."""

LAXER: tuple[str, ...] = ("stripped", "whitespace", "casefold", "json")
"""The order in which laxer comparisons are tried when outputs differ, the least lax first."""


def is_json(output: RunOutput) -> bool:
    """Whether the `json` comparison reads all of an output as JSON: each part, and the arguments of each tool call."""
    for part, calls in zip(output.parts, output.tool_calls_by_part, strict=True):
        text = _text_beside(part, calls)
        texts = [*((text,) if text or not calls else ()), *(call.arguments for call in calls)]
        if not all(isinstance(json_value(text), str) for text in texts):
            return False
    return True


def resolve(value: object, extra: Mapping[str, Callable[[str], object]] = {}) -> Comparison:
    """The comparison that a setting means.

    `value` is a name from `NAMED` or from `extra` (which also takes one part of an output), a callable that
    takes the whole `RunOutput`, or such a callable as "package.module:function". A callable may return any
    value that `Comparison.key` can freeze; its name is "module:qualname", or the text it was given as.

    Raises ValueError, saying what is allowed, if it is none of these, and if `extra` has the name of a
    built-in.
    """
    replaced = ", ".join(sorted(NAMED.keys() & extra.keys()))
    if replaced:
        raise ValueError(f"an added comparison cannot have the name of a built-in one: {replaced}")
    if not isinstance(value, str):
        if not callable(value):
            raise ValueError(_not_a_comparison(value, extra))
        return Comparison(_callable_name(value), value, by_part=False)
    if value == "json":
        return Comparison(value, json_output, by_part=False)
    if value in NAMED:
        return Comparison(value, NAMED[value], by_part=True)
    if value in extra:
        return Comparison(value, _checked(value, extra[value]), by_part=True)
    module, _, path = value.partition(":")
    if module and path:
        return Comparison(value, _checked(value, _imported(value, module, path)), by_part=False)
    raise ValueError(_not_a_comparison(value, extra))


def _not_a_comparison(value: object, extra: Mapping[str, object]) -> str:
    names = [*NAMED, *extra]
    allowed = f"{', '.join(names)}, a callable, or 'package.module:function'"
    close = _closest(value, names) if isinstance(value, str) else ""
    if close:
        return f"{value!r} is not a comparison; did you mean {close!r}? Use {allowed}"
    return f"{value!r} is not a comparison; use {allowed}"


def _closest(name: str, names: Iterable[str]) -> str:
    import difflib  # for an error message only

    return "".join(difflib.get_close_matches(name, list(names), n=1))


def _imported(value: str, module_name: str, path: str) -> object:
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # an import runs code, which may raise anything
        raise ValueError(
            f"comparison {value!r}: cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    done = module_name
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            close = _closest(name, dir(found))
            hint = f"; did you mean {close!r}?" if close else ""
            raise ValueError(f"comparison {value!r}: {done!r} has no {name!r}{hint}") from error
        done = f"{done}.{name}"
    return found


def _checked(name: str, found: object) -> Callable[[Any], object]:
    if not callable(found):
        raise ValueError(f"comparison {name!r} is not a callable but of type {type(found).__name__}")
    return found


def _callable_name(function: Callable[..., object]) -> str:
    # Instances with __call__ (functools.partial, for one) have no name of their own.
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', 'builtins')}:{named.__qualname__}"


def _frozen(value: object) -> Hashable:
    # The types stand in the forms because a list and a tuple of the same items are not equal.
    if isinstance(value, dict):
        return (dict, frozenset((key, _frozen(item)) for key, item in value.items()))
    if isinstance(value, list):
        return (list, tuple(map(_frozen, value)))
    if isinstance(value, tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, float) and value != value:
        return (float, "nan")
    hash(value)
    return value


def form(key: Hashable) -> str:
    """SHA-256 (hex) of a normal form, the same in every process: equal forms have the same one, others another.

    Empty for a form in which something stands that only this process can compare, such as an object of a class of one's
    own.
    """
    try:
        return hashlib.sha256(_encoded(key)).hexdigest()
    except _OfThisProcess:
        return ""


class _OfThisProcess(Exception):
    """A value that another process cannot be told."""


def _encoded(value: object) -> bytes:
    """A frozen value as bytes. Every part begins with its length, so no two values run together to the same."""
    if isinstance(value, str):
        kind, parts = b"text", [value.encode("utf-8", "surrogatepass")]
    elif isinstance(value, bytes):
        kind, parts = b"bytes", [value]
    elif isinstance(value, tuple):
        kind, parts = b"tuple", list(map(_encoded, value))
    elif isinstance(value, frozenset):
        kind, parts = b"set", sorted(map(_encoded, value))
    elif isinstance(value, (Rational, float, Decimal)):
        # 1, 1.0 and True are equal.
        exact = isinstance(value, Rational) or math.isfinite(value)
        kind, parts = b"number", [str(Fraction(value) if exact else float(value)).encode()]
    elif value is None or isinstance(value, type):
        # Types: those that `_frozen` puts beside what it froze.
        kind, parts = b"name", [getattr(value, "__qualname__", "None").encode()]
    else:
        raise _OfThisProcess
    return b"%s %d(%s)" % (kind, len(parts), b"".join(b"%d:%s" % (len(part), part) for part in parts))


class _Number(str):
    """A JSON number in the one form that all ways to write it share: its digits and a power of ten."""


def _number(text: str) -> _Number:
    mantissa, _, exponent = text.lower().partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.removeprefix("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return _Number("0")
    power = int(exponent or 0) - len(fraction) + len(digits) - len(significant)
    return _Number(f"{sign}{significant}e{power}")


def _not_rfc_8259(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_number, parse_int=_number, parse_constant=_not_rfc_8259)


def _canonical(value: object) -> str:
    if isinstance(value, dict):
        members = [f"{json.dumps(key)}:{_canonical(item)}" for key, item in sorted(value.items())]
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, _Number):
        return str(value)
    return json.dumps(value)
