"""What one text has in place of the words of another, in bounded time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import takewhile

from markupsafe import Markup

from pytest_llm_determinism.analysis.graphemes import splits_grapheme
from pytest_llm_determinism.analysis.units import LONGEST_WORD, UNSPACED
from pytest_llm_determinism.report.html.visible import gap, visible

__all__ = ["difference"]

COMPARED = 240
"""Words (and signs) of either text that are compared, from the first in which they differ to the last: the time it
takes grows with their square."""

READ = 20_000
"""Characters of either text that are read."""

CONTEXT = 60
"""Characters of what both texts have that are shown beside a difference."""

# A space belongs to the word that follows it, so that words and not the spaces between them are found again.
_PIECE = re.compile(rf" ?(?:[{UNSPACED}]|[^\W{UNSPACED}]{{1,{LONGEST_WORD}}}|[^\w\s])|\r\n|\s")


def difference(before: str, after: str) -> Markup:
    """`after` as HTML, with what it has instead of `before`: ``<del>`` what only `before` has, ``<ins>`` what only
    `after` has. Long stretches that both have, and what is too long to compare, are left out, and counted."""
    old, new = _pieces(before[:READ]), _pieces(after[:READ])
    first = _common(old, new)
    last = _common(old[first:][::-1], new[first:][::-1]) if max(len(before), len(after)) <= READ else 0
    old_end, new_end = len(old) - last, len(new) - last
    shown = [_same("".join(new[:first]), begins=True, ends=False)]
    old_middle, new_middle = old[first : min(old_end, first + COMPARED)], new[first : min(new_end, first + COMPARED)]
    shown.extend(_changes(old_middle, new_middle))
    old_rest = "".join(old[first + COMPARED : old_end]) + before[READ:]
    new_rest = "".join(new[first + COMPARED : new_end]) + after[READ:]
    if old_rest or new_rest:
        shown.append(gap(f"{len(old_rest)} and {len(new_rest)} characters are not compared"))
    shown.append(_same("".join(new[new_end:]), begins=False, ends=True))
    return Markup("").join(shown)


def _pieces(text: str) -> list[str]:
    if text.isascii():
        return _PIECE.findall(text)
    pieces: list[str] = []
    for match in _PIECE.finditer(text):
        if pieces and splits_grapheme(text, match.start()):
            pieces[-1] += match.group()
        else:
            pieces.append(match.group())
    return pieces


def _common(old: Sequence[str], new: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))


def _changes(old: list[str], new: list[str]) -> Iterator[Markup]:
    for removed, added, same in _differences(old, new):
        space = " " if removed[:1] == added[:1] == " " else ""
        yield Markup(space)
        if removed:
            yield Markup("<del>{}</del>").format(_with_line_ends(removed.removeprefix(space)))
        if added:
            yield Markup("<ins>{}</ins>").format(_with_line_ends(added.removeprefix(space)))
        yield _same(same, begins=False, ends=False)


def _differences(old: list[str], new: list[str]) -> list[tuple[str, str, str]]:
    """What is removed, what is added, and what is the same up to the next difference, over and over.

    Some words are the same in any two texts. They are no more than a coincidence where less is the same than differs
    before and after it, and then count as different, as N. Fraser has it in diff-match-patch ("semantic cleanup").
    """
    found: list[tuple[str, str, str]] = []
    for start, old_end, new_start, new_end, size in _blocks(old, new):
        removed, added = "".join(old[start:old_end]), "".join(new[new_start:new_end])
        while found and len(found[-1][2]) <= min(_longer(*found[-1][:2]), _longer(removed, added)):
            before = found.pop()
            removed, added = before[0] + before[2] + removed, before[1] + before[2] + added
        found.append((removed, added, "".join(new[new_end : new_end + size])))
    return found


def _blocks(old: list[str], new: list[str]) -> Iterator[tuple[int, int, int, int, int]]:
    """Each difference as its places in both texts, with the number of pieces that are the same after it."""
    at_old = at_new = 0
    for match in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        yield at_old, match.a, at_new, match.b, match.size
        at_old, at_new = match.a + match.size, match.b + match.size


def _longer(one: str, other: str) -> int:
    return max(len(one), len(other))


def _same(text: str, *, begins: bool, ends: bool) -> Markup:
    """What both texts have: its ends, where differences stand beside it."""
    before, after = 0 if begins else CONTEXT, 0 if ends else CONTEXT
    if len(text) <= before + after + CONTEXT:
        return visible(text)
    left_out = len(text) - before - after
    return visible(text[:before]) + gap(f"{left_out} characters are the same") + visible(text[len(text) - after :])


def _with_line_ends(text: str) -> Markup:
    """A line end that differs is seen."""
    return Markup('<span class="esc">↵</span>\n').join(map(visible, text.split("\n")))
