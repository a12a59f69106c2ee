"""Reading and checking ``@pytest.mark.deterministic(...)``: marks in, values with their source out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_llm_determinism.settings import TABLE, SettingError, Value, parse

NAME = "deterministic"
KEYWORDS = tuple(setting.name for setting in TABLE.values() if setting.marker)


def read(marks: Iterable[tuple[tuple[object, ...], Mapping[str, object]]]) -> dict[str, Value]:
    """The values set by markers, given as (positional arguments, keywords), the closest to the test first.

    The closest marker wins per keyword; a wrong keyword or value anywhere is an error.

    Raises:
        SettingError: says which keyword or value is wrong and what to write instead.
    """
    values: dict[str, Value] = {}
    for positional, keywords in marks:
        if positional:
            written = ", ".join(map(repr, positional))
            raise SettingError(
                f"@pytest.mark.{NAME}({written}) takes keywords only; write for example @pytest.mark.{NAME}(runs=30)"
            )
        for name, value in keyword_values(keywords, f"@pytest.mark.{NAME}").items():
            values.setdefault(name, value)
    return values


def keyword_values(keywords: Mapping[str, object], where: str) -> dict[str, Value]:
    """Keywords of the marker, or of `determinism.repeat`, as values."""
    for name in keywords:
        if name not in KEYWORDS:
            raise SettingError(_unknown(name, where))
    return {name: Value(parse(TABLE[name], given, where), "marker", where) for name, given in keywords.items()}


def _unknown(name: str, where: str) -> str:
    if name in TABLE:
        setting = TABLE[name]
        return f"{name} cannot be set in {where}; use {setting.flag} or {setting.ini} in the ini file"
    import difflib

    near = difflib.get_close_matches(name, KEYWORDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown keyword {name!r} in {where}: {hint}It takes {', '.join(KEYWORDS)}"
