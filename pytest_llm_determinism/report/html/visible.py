"""Texts from models as HTML that shows what they are made of: nothing in them acts, nothing is invisible."""

from __future__ import annotations

from itertools import groupby

from markupsafe import Markup, escape

__all__ = ["cut_visible", "visible"]

BEGINNING, END = 2400, 800
"""Characters that are shown of a text's beginning and end, if it is longer than both."""


def visible(text: str) -> Markup:
    """The text escaped, with its line ends; every other character that is not printable stands as its Python escape,
    marked as one: control characters, bidirectional controls, invisible and unusual spaces, lone surrogates."""
    return Markup("\n").join(map(_line, text.split("\n")))


def _line(line: str) -> Markup:
    if line.isprintable():
        return escape(line)
    return Markup("").join(
        escape("".join(part)) if printable else Markup('<span class="esc">{}</span>').format(_escapes("".join(part)))
        for printable, part in groupby(line, str.isprintable)
    )


def _escapes(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def cut_visible(text: str) -> Markup:
    """As `visible`; of a long text the middle is left out, and how much that is."""
    left_out = len(text) - BEGINNING - END
    if left_out <= 0:
        return visible(text)
    return visible(text[:BEGINNING]) + gap(f"{left_out} characters are left out here") + visible(text[-END:])


def gap(what: str) -> Markup:
    """The place of something that is left out."""
    return Markup('<span class="gap">… {} …</span>').format(what)
