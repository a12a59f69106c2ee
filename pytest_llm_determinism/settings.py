"""The one table of settings, and how a setting gets its value.

Marker keywords, command-line flags, ini keys, ``--help`` and the table in ``docs/settings.md`` are all made
from `TABLE`. A flag wins over the marker, the marker over ini, ini over the default; every value remembers
where it came from, so that a message can say so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LOADS = ("solo", "burst", "crowd")
CACHE_MODES = ("auto", "refresh", "replay", "off")
COMPARISONS = ("exact", "stripped", "whitespace", "casefold", "json")
REFERENCE = "reference"
REPORT_FORMATS = {".json": "files", ".html": "html", ".md": "markdown", ".csv": "csv_file"}
"""The formats of reports by the ending of a file's name, with the module of ``report`` that makes them."""

_DURATION = r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class SettingError(ValueError):
    """A value that cannot be used; the message says what, where from, and what to write instead."""


# Plain classes: making a dataclass costs every pytest session that has the plugin installed some of its 5 ms.


class Setting:
    """One row of the table.

    Args:
        parse: takes the text of a flag or an ini file, or the object given to the marker, and returns the value or
            raises `ValueError` with the reason.
        marker: whether the marker takes it as a keyword.
        several: whether it has several values.
        number: whether its values are numbers, if it has one.
    """

    __slots__ = ("default", "flag", "help", "ini", "marker", "metavar", "name", "number", "parse", "several")

    def __init__(
        self,
        name: str,
        default: object,
        parse: Callable[[Any], Any],
        metavar: str,
        help: str,
        marker: bool = True,
        several: bool = False,
        number: bool = False,
    ) -> None:
        self.name = name
        self.default = default
        self.parse = parse
        self.metavar = metavar
        self.help = help
        self.marker = marker
        self.several = several
        self.number = number
        self.flag = "--determinism-" + name.replace("_", "-")
        self.ini = "determinism_" + name


class Value:
    """A setting's value with its source (``cli``, ``marker``, ``ini`` or ``default``) and that source in words."""

    __slots__ = ("source", "value", "where")

    def __init__(self, value: Any, source: str, where: str) -> None:
        self.value = value
        self.source = source
        self.where = where


class Settings:
    """The settings in force for one test: ``settings.runs`` is a value, ``settings.origin("runs")`` its source."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name].value
        except KeyError:
            raise AttributeError(name) from None

    def origin(self, name: str) -> Value:
        return self._values[name]

    def quote(self, name: str) -> str:
        """``max_unique=1 (default)``: how every message names a setting."""
        found = self._values[name]
        return f"{name}={shown(found.value)} ({found.where})"

    def to_json(self) -> dict[str, dict[str, object]]:
        return {name: {"value": _jsonable(found.value), "source": found.source} for name, found in self._values.items()}


def shown(value: object) -> str:
    """A value as a person would write it in a flag."""
    if value is None:
        return "none"
    if value is True or value is False:
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(shown(part) for part in value)
    if isinstance(value, Override):
        return ", ".join(value.pairs())
    if isinstance(value, (Duration, Rate)):
        return value.text
    if callable(value):
        return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', repr(value))}"
    return str(value)


def _jsonable(value: object) -> object:
    if isinstance(value, (Duration, Rate)):
        return value.text
    if isinstance(value, Override):
        return value.pairs()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [_jsonable(part) for part in value]
    return shown(value)


class Duration(float):
    """Seconds, remembering how they were written."""

    text: str

    def __new__(cls, seconds: float, text: str) -> Duration:
        made = super().__new__(cls, seconds)
        made.text = text
        return made


class Rate(float):
    """Calls a second, remembering how they were written."""

    text: str

    def __new__(cls, per_second: float, text: str) -> Rate:
        made = super().__new__(cls, per_second)
        made.text = text
        return made


class Override(dict[str, Any]):
    """Values set in the body of a request, by dotted path."""

    def pairs(self) -> list[str]:
        """``NAME=JSON``, as one writes it in a flag."""
        import json

        return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.items()]


# Parsers. Each raises ValueError with the rule; the caller adds the value, the source and the test.


def _whole(minimum: int, rule: str) -> Callable[[object], int]:
    def parse(given: object) -> int:
        if isinstance(given, str) and re.fullmatch(r"[+-]?\d+", given.strip()):
            number = int(given)
        elif isinstance(given, int) and not isinstance(given, bool):
            number = given
        else:
            raise ValueError(rule)
        if number < minimum:
            raise ValueError(rule)
        return number

    return parse


def _number(rule: str, accepts: Callable[[float], bool]) -> Callable[[object], float]:
    def parse(given: object) -> float:
        if isinstance(given, bool) or not isinstance(given, (int, float, str)):
            raise ValueError(rule)
        try:
            number = float(given)
        except ValueError:
            raise ValueError(rule) from None
        if not accepts(number):
            raise ValueError(rule)
        return number

    return parse


def _or_none(parse: Callable[[Any], Any]) -> Callable[[object], Any]:
    def parse_or_none(given: object) -> Any:
        if given is None or (isinstance(given, str) and given.strip().lower() == "none"):
            return None
        return parse(given)

    return parse_or_none


def _on_off(given: object) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str):
        word = given.strip().lower()
        if word in ("on", "true", "yes", "1"):
            return True
        if word in ("off", "false", "no", "0"):
            return False
    raise ValueError("write on or off")


def _one_of(words: tuple[str, ...]) -> Callable[[object], str]:
    def parse(given: object) -> str:
        if isinstance(given, str) and given.strip() in words:
            return given.strip()
        raise ValueError(f"write one of {', '.join(words)}{did_you_mean(given, words)}")

    return parse


def did_you_mean(given: object, words: Iterable[str]) -> str:
    """`` (did you mean solo?)``, or nothing where no word is near."""
    import difflib

    near = difflib.get_close_matches(str(given), list(words), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _words(given: object) -> list[str]:
    """The values of a setting that takes several: a list, or text with commas."""
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(",")]
    elif isinstance(given, (list, tuple)) and all(isinstance(part, str) for part in given):
        parts = [piece.strip() for part in given for piece in part.split(",")]
    else:
        raise ValueError("write one name, or several with commas or as a list")
    if not parts or not all(parts):
        raise ValueError("write one name, or several with commas or as a list")
    return parts


def _load(given: object) -> tuple[str, ...]:
    loads = _words(given)
    for load in loads:
        if load not in LOADS:
            raise ValueError(f"write one or several of {', '.join(LOADS)}{did_you_mean(load, LOADS)}")
    if len(set(loads)) != len(loads):
        raise ValueError("name each load once")
    return tuple(loads)


def _compare(given: object) -> object:
    if callable(given):
        return given
    if isinstance(given, str) and given.strip():
        # Whether the name exists is known only with the comparisons that plugins add, so it is resolved later
        # (`comparison_in_force`), still before any call is made.
        return given.strip()
    raise ValueError(f"write one of {', '.join(COMPARISONS)}, a callable, or 'package.module:function'")


def _endpoint(given: object) -> str:
    rule = f"write a base URL such as https://host/v1, or {REFERENCE}"
    if not isinstance(given, str):
        raise ValueError(rule)
    text = given.strip()
    if text != REFERENCE and not re.match(r"https?://[^/\s]+", text):
        raise ValueError(rule)
    return text.rstrip("/")


def _model(given: object) -> tuple[str, ...]:
    models = _words(given)
    if len(set(models)) != len(models):
        raise ValueError("name each model once")
    return tuple(models)


def _duration(given: object) -> Duration:
    rule = "write a duration such as 90s, 30m, 12h, 7d, or none"
    if not isinstance(given, str):
        raise ValueError(rule)
    found = re.fullmatch(_DURATION, given.strip())
    if found is None:
        raise ValueError(rule)
    return Duration(float(found[1]) * _SECONDS[found[2]], given.strip())


def _rate(given: object) -> Rate:
    rule = "write calls per time, such as 2/s, 50/min or 1000/h, or none"
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*/\s*(s|sec|m|min|h|d)", given.strip()) if isinstance(given, str) else None
    if found is None or float(found[1]) == 0:
        raise ValueError(rule)
    assert isinstance(given, str)
    return Rate(float(found[1]) / _SECONDS[found[2][0]], given.strip())


def _override(given: object) -> Override:
    rule = 'write NAME=JSON, such as temperature=0, seed=7 or model=gpt-4o (in a marker also a dict: {"seed": 7})'
    made = json_pairs(given, rule)
    if "stream" in made:
        raise ValueError("stream cannot be overridden: the application reads what it asked for")
    return made


def json_pairs(given: object, rule: str) -> Override:
    """Values of a request by dotted path, of ``NAME=JSON`` texts or of a mapping; what is no JSON is a text.

    Raises:
        ValueError: one of them is wrong, or there is none; says which is given twice, else the rule.
    """
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, (list, tuple)) or not texts:
            raise ValueError(rule)
        pairs = [_pair(text, rule) for text in texts]
    made = Override()
    for name, value in pairs:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s.=]+(\.[^\s.=]+)*", name):
            raise ValueError(rule)
        if name in made:
            raise ValueError(f"{name} is given twice")
        made[name] = _plain_json(value, rule)
    if not made:
        raise ValueError(rule)
    return made


def _pair(text: object, rule: str) -> tuple[str, object]:
    name, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not equals:
        raise ValueError(rule)
    import json

    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return name.strip(), value.strip()


def _plain_json(value: object, rule: str) -> object:
    """The value as a request carries it."""
    import json

    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ValueError(rule) from None


QUESTION_FIELDS = ("messages", "prompt", "input", "inputs", "contents", "model", "message")


def _ignore(given: object) -> tuple[str, ...]:
    rule = "write paths in request bodies, such as metadata.trace_id, user or messages[0].name"
    from pytest_llm_determinism.shapes.request import path_steps

    paths = _words(given)
    for path in paths:
        try:
            path_steps(path)
        except ValueError:
            raise ValueError(rule) from None
        if path.removeprefix("$.") in QUESTION_FIELDS:
            raise ValueError(f"{path} is the question itself; {rule}")
    return tuple(paths)


def _directory(given: object) -> str:
    if isinstance(given, (str, os.PathLike)) and str(given).strip():
        return str(given).strip()
    raise ValueError("write the path of a directory")


def _file(given: object) -> str:
    if isinstance(given, (str, os.PathLike)) and str(given).strip():
        return str(given).strip()
    raise ValueError("write the path of a JSON report, or none")


def _report(given: object) -> tuple[str, ...]:
    paths = _words(given)
    for path in paths:
        if os.path.splitext(path)[1] not in REPORT_FORMATS:
            raise ValueError(f"write a file name that ends in {', '.join(REPORT_FORMATS)}")
    if len(set(paths)) != len(paths):
        raise ValueError("name each file once")
    return tuple(paths)


_ANY_NUMBER = "write a number from 0 to 2, or none to leave it out of the request"

TABLE: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "gate",
            True,
            _on_off,
            "on|off",
            "off: marked bodies run once, unobserved, and the summary says how many tests were not gated",
            marker=False,
        ),
        Setting(
            "runs",
            30,
            _whole(2, "a gate needs at least 2 runs; write 2 or more"),
            "K",
            "runs of each body",
            number=True,
        ),
        Setting(
            "attempts",
            1,
            _whole(1, "write 1 or more"),
            "N",
            "independent repetitions of the runs; the worst counts",
            number=True,
        ),
        Setting(
            "max_unique",
            1,
            _whole(1, "at least one output is always there; write 1 or more"),
            "N",
            "more different outputs than this fail the test",
            number=True,
        ),
        Setting(
            "min_agreement",
            None,
            _or_none(_number("write a share above 0 and at most 1, such as 0.95", lambda x: 0 < x <= 1)),
            "SHARE",
            "fail when a smaller share of the runs is in the largest group",
            number=True,
        ),
        Setting(
            "confidence",
            None,
            _or_none(_number("write a level between 0 and 1, such as 0.95", lambda x: 0 < x < 1)),
            "LEVEL",
            "min_agreement must hold for the lower bound at this confidence, not only for the runs seen",
            number=True,
        ),
        Setting(
            "max_errors",
            0,
            _whole(0, "write 0 or more"),
            "N",
            "runs that may end in an API error and still give a verdict",
            number=True,
        ),
        Setting(
            "compare",
            "exact",
            _compare,
            "HOW",
            f"when two outputs are the same: {', '.join(COMPARISONS)}, or package.module:function",
        ),
        Setting(
            "load",
            ("burst",),
            _load,
            "LOAD",
            "what else is in flight while sampling: solo (one request at a time), burst (many, with spread"
            " starts), crowd (unrelated requests that come and go), or several of them",
            several=True,
        ),
        Setting(
            "concurrency",
            8,
            _whole(1, "write 1 or more"),
            "N",
            "calls in flight for the whole session, divided among xdist workers",
            number=True,
        ),
        Setting(
            "rate",
            None,
            _or_none(_rate),
            "CALLS/TIME",
            "live calls started per time, for the whole session: 2/s, 50/min",
            marker=False,
        ),
        Setting(
            "neighbours",
            8,
            _whole(1, "write 1 or more"),
            "N",
            "most unrelated requests in flight under crowd, on top of concurrency; divided among xdist workers, too",
            number=True,
        ),
        Setting("fail_fast", False, _on_off, "on|off", "stop sampling as soon as the gate cannot pass any more"),
        Setting(
            "endpoint",
            None,
            _or_none(_endpoint),
            "URL",
            f"base URL of the model API, or {REFERENCE} for the bundled server; exported to the code under test"
            " as OPENAI_BASE_URL",
            marker=False,
        ),
        Setting(
            "model",
            None,
            _or_none(_model),
            "NAME",
            "model of the llm fixture; with several, each test that uses llm runs once per model",
            marker=False,
            several=True,
        ),
        Setting(
            "temperature",
            0,
            _or_none(_number(_ANY_NUMBER, lambda x: 0 <= x <= 2)),
            "T",
            "temperature of the llm fixture; none leaves it out of the request",
            marker=False,
            number=True,
        ),
        Setting(
            "override",
            None,
            _or_none(_override),
            "NAME=JSON",
            "set in the body of every observed request, such as temperature=0, seed=7 or model=gpt-4o (JSON, else a"
            " string); may be given several times",
            several=True,
        ),
        Setting(
            "ignore",
            None,
            _or_none(_ignore),
            "PATH",
            "paths in request bodies that are no part of the question, such as metadata.trace_id; still sent",
            several=True,
        ),
        Setting(
            "cache",
            "auto",
            _one_of(CACHE_MODES),
            "MODE",
            "auto: use and fill the store; refresh: ask again; replay: never touch the network; off: no store",
            marker=False,
        ),
        Setting(
            "cache_dir",
            ".pytest_llm_determinism",
            _directory,
            "DIR",
            "directory of the store, relative to rootdir",
            marker=False,
        ),
        Setting(
            "cache_ttl",
            Duration(86400, "1d"),
            _or_none(_duration),
            "AGE",
            "older samples are asked again (not under replay): 12h, 7d, none",
            marker=False,
        ),
        Setting(
            "max_calls",
            None,
            _or_none(_whole(0, "write 0 or more, or none")),
            "N",
            "live calls the session may make; tests that need more end inconclusive, and the next session goes on",
            marker=False,
            number=True,
        ),
        Setting(
            "max_cost",
            None,
            _or_none(_number("write an amount in USD above 0, such as 0.50, or none", lambda x: 0 < x < float("inf"))),
            "USD",
            "money, by public list prices, that the live calls of the session may cost; tests that need more end"
            " inconclusive (needs the extra cost)",
            marker=False,
            number=True,
        ),
        Setting(
            "report",
            None,
            _or_none(_report),
            "FILE",
            f"write a report to this file ({', '.join(REPORT_FORMATS)}); may be given several times",
            marker=False,
            several=True,
        ),
        Setting(
            "baseline",
            None,
            _or_none(_file),
            "FILE",
            "an earlier JSON report to compare with: tests whose answers are others now end drifted",
            marker=False,
        ),
    )
}


def parse(setting: Setting, given: object, where: str) -> Any:
    """The value that `given` stands for.

    Raises:
        SettingError: naming the setting, the value, where it came from and what to write instead.
    """
    try:
        return setting.parse(given)
    except ValueError as error:
        # A flag that takes several values comes as a list of texts.
        written = ",".join(map(str, given)) if isinstance(given, list) and given else given
        written = written if isinstance(written, str) else repr(written)
        raise SettingError(f"{setting.name}={written} (from {where}): {error}") from None


def defaults() -> dict[str, Value]:
    return {name: Value(setting.default, "default", "default") for name, setting in TABLE.items()}


def from_text(
    flags: Mapping[str, object], ini: Mapping[str, object], ini_file: str
) -> tuple[dict[str, Value], dict[str, Value]]:
    """The values given by flags and by ini, parsed. Both map setting names to what was written, if anything.

    Raises:
        SettingError: for the first value that cannot be used.
    """
    cli = {
        name: Value(parse(TABLE[name], given, f"{TABLE[name].flag}"), "cli", f"{TABLE[name].flag}")
        for name, given in flags.items()
        if given is not None
    }
    file = {
        name: Value(
            parse(TABLE[name], given, f"{TABLE[name].ini} in {ini_file}"),
            "ini",
            f"{TABLE[name].ini} in {ini_file}",
        )
        for name, given in ini.items()
        if given is not None
    }
    return cli, file


def resolve(cli: Mapping[str, Value], marker: Mapping[str, Value], file: Mapping[str, Value]) -> Settings:
    """Flag over marker over ini over default."""
    return Settings(defaults() | dict(file) | dict(marker) | dict(cli))


def check_claim(settings: Settings) -> None:
    """Refuse a claim that the runs can never support.

    Raises:
        SettingError: names the runs that are needed.
    """
    if settings.confidence is None or settings.min_agreement is None:
        return
    if settings.min_agreement == 1:
        raise SettingError(
            f"{settings.quote('min_agreement')} can be shown by no number of runs at"
            f" {settings.quote('confidence')}; write a share below 1"
        )
    from pytest_llm_determinism.analysis.statistics import runs_needed

    needed = runs_needed(settings.min_agreement, settings.confidence)
    if settings.runs < needed:
        raise SettingError(
            f"{settings.quote('runs')} can never show {settings.quote('min_agreement')} at"
            f" {settings.quote('confidence')}, not even when all runs agree; write runs={needed} or more, or claim less"
        )
