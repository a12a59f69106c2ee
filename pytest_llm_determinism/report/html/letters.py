"""The letter and colour by which a group is known all over a test, and runs in their order by these letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Turn(NamedTuple):
    """Runs in a row that are the same."""

    cell: Cell
    runs: int


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


def in_order(experiment: Experiment, letters: Sequence[Letter]) -> list[Turn]:
    """The runs of an experiment, each as its group's letter, as an error, without output, or not made.

    A report may claim any number of runs; what it lists alone takes time and space.
    """
    told = {
        run: Cell(known.name, known.kind)
        for group, known in zip(experiment.groups, letters, strict=True)
        for run in group.runs
    }
    told |= {run: Cell(ERROR, "error") for failed in experiment.error_messages for run in failed.runs}
    made = min(experiment.completed + experiment.errors, experiment.runs)
    turns: list[Turn] = []
    at = 0
    for run in [*sorted(run for run in told if run < experiment.runs), experiment.runs]:
        _add(turns, Cell(SILENT, "silent"), min(run, made) - at)
        _add(turns, Cell(NOT_MADE, "unmade"), run - max(at, made))
        if run in told:
            _add(turns, told[run], 1)
        at = run + 1
    return turns


def _add(turns: list[Turn], cell: Cell, count: int) -> None:
    if count <= 0:
        return
    if turns and turns[-1].cell == cell:
        count += turns.pop().runs
    turns.append(Turn(cell, count))


def sequence(turns: Sequence[Turn], most: int = 24) -> str:
    """``A ×12, B, A ×17``: how often in a row; of many turns the first are told."""
    named = [(_SPOKEN.get(cell.name, cell.name), count) for cell, count in turns]
    told = [f"{name} ×{count}" if count > 1 else name for name, count in named[:most]]
    return ", ".join(told) + (f", … ({len(turns) - most} more turns)" if len(turns) > most else "")


_SPOKEN = {ERROR: "error", SILENT: "no output", NOT_MADE: "not made"}


def fitted(turns: Sequence[Turn]) -> tuple[int, list[Cell]]:
    """As many cells as a strip has, and the number of runs in each: one, or several that share a cell."""
    each = max(1, -(-sum(turn.runs for turn in turns) // CELLS))
    cells: list[Cell] = []
    shared: Counter[Cell] = Counter()
    for cell, count in turns:
        while count:
            some = min(count, each - shared.total())
            shared[cell] += some
            count -= some
            if shared.total() == each:
                cells.append(_majority(shared))
                shared.clear()
    return each, cells + ([_majority(shared)] if shared else [])


def _majority(shared: Counter[Cell]) -> Cell:
    [(most, _)] = shared.most_common(1)
    return most if len(shared) == 1 else Cell(f"{most.name}+", most.kind)
