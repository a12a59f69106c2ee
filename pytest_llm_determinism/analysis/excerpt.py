"""Texts from models in one line, safe for a terminal."""

from __future__ import annotations

import unicodedata
from itertools import accumulate

from pytest_llm_determinism.analysis.graphemes import splits_grapheme

__all__ = ["beginning_and_end", "columns", "excerpt"]


def excerpt(text: str, around: int = 0, width: int = 72) -> str:
    """One line of at most `width` (2 or more) columns of `text` about `around`, safe for a terminal.

    What is not printable (line ends, escape sequences, C1 and bidirectional controls, invisible and unusual
    spaces, lone surrogates) stands as a Python escape such as "\\n", and a backslash as two, so that
    different texts look different. What is left out at a side is marked "…"; two thirds of the line are for
    what follows `around`.
    """
    around = min(max(around, 0), len(text))
    # Nothing gets narrower by escaping, so one character more than the width shows that something is cut.
    before = _printable_pieces(text, max(0, around - width - 1), around)
    after = _printable_pieces(text, around, min(len(text), around + width + 1))
    room = max(width // 3, width - sum(map(columns, after)))
    left = "".join(reversed(_fitting(before[::-1], room)))
    return left + "".join(_fitting(after, width - columns(left)))


def beginning_and_end(text: str, width: int = 72) -> str:
    """As `excerpt`, with what is left out in the middle."""
    first = _printable_pieces(text, 0, min(len(text), width + 1))
    if sum(map(columns, first)) <= width:
        return "".join(first)
    beginning = "".join(_fitting(first, width // 2)[:-1])
    last = _printable_pieces(text, max(0, len(text) - width - 1), len(text))
    return beginning + "".join(reversed(_fitting(last[::-1], width - columns(beginning))))


def columns(text: str) -> int:
    """The most columns that a terminal takes for a printable text: two for a wide character, such as an emoji."""
    return len(text) if text.isascii() else len(text) + sum(unicodedata.east_asian_width(c) in "WF" for c in text)


def _printable_pieces(text: str, start: int, end: int) -> list[str]:
    pieces: list[str] = []
    for index in range(start, end):
        character = text[index]
        if not character.isprintable() or character == "\\":
            character = character.encode("unicode_escape").decode("ascii")
        if pieces and splits_grapheme(text, index):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _fitting(pieces: list[str], room: int) -> list[str]:
    """The first pieces that fit into `room` columns; if not all, with a last "…"."""
    if sum(map(columns, pieces)) <= room:
        return pieces
    kept = sum(width < room for width in accumulate(map(columns, pieces)))
    return [*pieces[:kept], "…"]
