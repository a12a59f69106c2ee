"""Where runs part, as a picture (SVG): ways as thick as the runs that take them, in the colours of their groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup

from pytest_llm_determinism.analysis.divergence import Branch, Divergence
from pytest_llm_determinism.analysis.excerpt import columns
from pytest_llm_determinism.analysis.groups import Group
from pytest_llm_determinism.report.html.letters import Letter
from pytest_llm_determinism.report.tree import Drawing, branch_text, leaves, shown_branches

ROW, BEND, MARGIN = 38, 40, 12
LETTER_WIDTH = 7.3
"""Of a monospaced font of 12 pixels; a text is fitted to it, whatever font a reader has."""

THICKEST, THINNEST = 22.0, 1.5
LONGEST_TEXT = 26
"""Columns of a branch's text."""


def picture(parted: Divergence, groups: Sequence[Group], letters: Sequence[Letter]) -> Markup:
    """The tree of `report.tree.draw` as an SVG element: the same forks and branches, without the first fork's place.

    Args:
        letters: those of `groups`, place by place.
    """
    return _Picture(parted, groups, letters).svg()


@dataclass(frozen=True, slots=True)
class _Way:
    """One branch, laid out: its row, and what it leads to."""

    branch: Branch | None
    text: str
    note: str
    letter: Letter | None
    count: int
    y: float
    then: tuple[_Way, ...]


class _Picture:
    def __init__(self, parted: Divergence, groups: Sequence[Group], letters: Sequence[Letter]) -> None:
        self._root = parted
        self._drawing = Drawing(parted, groups)
        self._letters = letters
        self._rows = count()
        self._most = sum(branch.count for branch in parted.branches)
        self._right = 0.0

    def svg(self) -> Markup:
        ways = self._laid_out(self._root)
        height = next(self._rows) * ROW + MARGIN
        drawn = Markup("").join(self._fork(MARGIN, _middle(ways), ways))
        width = self._right + MARGIN
        # Its text stands beside it, as a tree of lines.
        return Markup(
            '<svg class="tree" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
            ' aria-hidden="true">{drawn}</svg>'
        ).format(width=width, height=height, drawn=drawn)

    def _laid_out(self, fork: Divergence) -> tuple[_Way, ...]:
        shown = shown_branches(fork)
        ways = [self._way(fork, branch) for branch in shown]
        rest = fork.branches[len(shown) :]
        if rest:
            runs = sum(branch.count for branch in rest)
            ways.append(_Way(None, f"… and {len(rest)} more branches", "", None, runs, self._row(), ()))
        return tuple(ways)

    def _way(self, fork: Divergence, branch: Branch) -> _Way:
        text = branch_text(fork, branch, LONGEST_TEXT)
        if branch.then and self._drawing.is_open(branch.then):
            then = self._laid_out(branch.then)
            note = self._drawing.place(branch.then, LONGEST_TEXT, fork)
            return _Way(branch, text, note, None, branch.count, _middle(then), then)
        groups = leaves(branch.then) if branch.then else len(branch.groups)
        letter = self._letters[branch.groups[0]] if not branch.then and groups == 1 else None
        note = f"{groups} groups" if letter is None and groups else ""
        return _Way(branch, text, note, letter, branch.count, self._row(), ())

    def _row(self) -> float:
        return MARGIN / 2 + (next(self._rows) + 0.5) * ROW

    def _fork(self, x: float, y: float, ways: Sequence[_Way]) -> Iterator[Markup]:
        start = y - sum(map(self._thickness, ways)) / 2
        for way in ways:
            thick = self._thickness(way)
            yield Markup(
                '<path class="way {kind}" stroke-width="{thick:.1f}" d="M{x:.0f} {a:.1f}C{mid:.0f} {a:.1f} {mid:.0f}'
                ' {b:.1f} {end:.0f} {b:.1f}"/>'
            ).format(
                kind=way.letter.kind if way.letter else "several",
                thick=thick,
                x=x,
                mid=x + BEND / 2,
                end=x + BEND,
                a=start + thick / 2,
                b=way.y,
            )
            start += thick
            yield from self._label(x + BEND, way)

    def _label(self, x: float, way: _Way) -> Iterator[Markup]:
        if way.letter:
            yield Markup(
                '<rect class="{kind}" x="{x:.0f}" y="{top:.1f}" width="22" height="20" rx="4"/>'
                '<text class="letter" x="{middle:.0f}" y="{base:.1f}">{letter}</text>'
            ).format(kind=way.letter.kind, x=x, top=way.y - 10, middle=x + 11, base=way.y + 4, letter=way.letter.name)
            x += 22
        x += 8
        number = f"{way.count} ×"
        yield _text("number", x, way.y + (-1 if way.note else 4), number)
        after = x + (columns(number) + 1) * LETTER_WIDTH
        yield _text("said", after, way.y + (-1 if way.note else 4), way.text)
        if way.note:
            yield _text("note", x, way.y + 13, way.note)
        end = max(after + columns(way.text) * LETTER_WIDTH, x + columns(way.note) * LETTER_WIDTH * 11 / 12)
        self._right = max(self._right, end)
        if way.then:
            yield from self._fork(end + 10, way.y, way.then)

    def _thickness(self, way: _Way) -> float:
        return max(THINNEST, THICKEST * way.count / self._most)


def _middle(ways: Sequence[_Way]) -> float:
    return (ways[0].y + ways[-1].y) / 2


def _text(kind: str, x: float, y: float, text: str) -> Markup:
    scale = 11 / 12 if kind == "note" else 1
    return Markup('<text class="{}" x="{:.0f}" y="{:.1f}" textLength="{:.0f}">{}</text>').format(
        kind, x, y, columns(text) * LETTER_WIDTH * scale, text
    )
