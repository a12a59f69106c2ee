"""The letter and colour by which a group is known all over a test, and runs in their order by these letters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from pytest_llm_determinism.analysis.groups import Group
from pytest_llm_determinism.results import Experiment

COLOURS = 8
"""Groups that have a colour of their own; the others share one, and have letters of their own."""

CELLS = 300
"""Cells of a strip; with more runs than that, a cell is several of them."""

ERROR, SILENT, NOT_MADE = "!", "–", "·"


@dataclass(frozen=True, slots=True)
class Letter:
    """A group's name, ``A`` for the largest, and the class of its colour."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a strip, or several by what most of them are, with a ``+`` if some are something else."""

    name: str
    kind: str


def letter(place: int) -> Letter:
    """Of the group at this place in order of size: A to Z, then AA."""
    name, rest = "", place + 1
    while rest:
        rest, one = divmod(rest - 1, 26)
        name = chr(ord("A") + one) + name
    return Letter(name, f"g{place}" if place < COLOURS else "others")


def identity(group: Group) -> str:
    """What is equal for the same group in several experiments of a test."""
    return group.form or group.sha256


def in_order(experiment: Experiment, letters: Sequence[Letter]) -> list[Cell]:
    """The runs of an experiment, each as its group's letter, as an error, without output, or not made."""
    cells = [Cell(NOT_MADE, "unmade")] * experiment.runs
    made = experiment.completed + experiment.errors
    cells[:made] = [Cell(SILENT, "silent")] * made
    for group, known in zip(experiment.groups, letters, strict=True):
        _put(cells, group.runs, Cell(known.name, known.kind))
    for failed in experiment.error_messages:
        _put(cells, failed.runs, Cell(ERROR, "error"))
    return cells


def _put(cells: list[Cell], runs: Iterable[int], cell: Cell) -> None:
    for run in runs:
        if 0 <= run < len(cells):
            cells[run] = cell


def sequence(cells: Sequence[Cell], most: int = 24) -> str:
    """``A 12, B 1, A 17``: how often in a row; of many turns the first are told."""
    turns = [(name, sum(1 for _ in same)) for name, same in groupby(cell.name for cell in cells)]
    told = [f"{_SPOKEN.get(name, name)} ×{count}" if count > 1 else _SPOKEN.get(name, name) for name, count in turns]
    return ", ".join(told[:most]) + (f", … ({len(told) - most} more turns)" if len(told) > most else "")


_SPOKEN = {ERROR: "error", SILENT: "no output", NOT_MADE: "not made"}


def fitted(cells: Sequence[Cell]) -> tuple[int, list[Cell]]:
    """As many cells as a strip has, and the number of runs in each."""
    each = -(-len(cells) // CELLS)
    return each, list(_by_majority(cells, each)) if each > 1 else list(cells)


def _by_majority(cells: Sequence[Cell], each: int) -> Iterator[Cell]:
    for start in range(0, len(cells), each):
        some = cells[start : start + each]
        most = max(some, key=some.count)
        yield most if some.count(most) == len(some) else Cell(f"{most.name}+", most.kind)
