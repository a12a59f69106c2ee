"""Where runs part, drawn as a tree for a person at a terminal."""

from __future__ import annotations

import heapq
import unicodedata
from collections.abc import Sequence
from itertools import count

from pytest_llm_determinism.analysis.divergence import Branch, Divergence
from pytest_llm_determinism.analysis.excerpt import beginning_and_end, columns, excerpt
from pytest_llm_determinism.analysis.groups import Group, runs_in_words

__all__ = [
    "SHOWN_BRANCHES",
    "SHOWN_LINES",
    "WIDTH",
    "Drawing",
    "branch_text",
    "draw",
    "leaves",
    "shown_branches",
    "which_runs",
]

SHOWN_LINES = 20
"""Lines of branches: with what stands around them, a screen."""

SHOWN_BRANCHES = 6
"""Branches of one fork."""

WIDTH = 80
"""Columns of a line, where it is not so deep in the tree that no text would fit."""

_LEAST_TEXT = 24
_LONGEST_PATH = 48
_NAMED_RUNS = 8


def draw(parted: Divergence, groups: Sequence[Group]) -> list[str]:
    """The tree in at most a screen: first the forks that most runs came to.

    A branch is a line: how many runs took it, how they went on, and then where they part again, or which group that is.
    What is left out is counted.
    """
    return Drawing(parted, groups).lines()


def which_runs(group: Group) -> str:
    """``  (runs 4, 11)``, if they are known and few."""
    return "" if group.count > _NAMED_RUNS or not group.runs else f"  ({runs_in_words(group.runs)})"


class Drawing:
    """The tree with the forks that are shown chosen."""

    def __init__(self, parted: Divergence, groups: Sequence[Group]) -> None:
        self._root = parted
        self._groups = groups
        self._several_steps = any(len(group.parts) > 1 for group in groups)
        self._open = self._chosen()

    def lines(self) -> list[str]:
        lines = [f"they part {self.place(self._root, WIDTH - 12)}", *self._branches(self._root, "")]
        if self._root.follows:
            lines.append(f"that they differ at {_steps(self._root.follows)}, too, follows from it")
        closed = _forks(self._root) - len(self._open)
        if closed:
            forks = f"{closed} more fork{'' if closed == 1 else 's'}"
            lines.append(f"… and {forks}: see the JSON report (--determinism-report=FILE.json)")
        return lines

    def is_open(self, fork: Divergence) -> bool:
        """Whether the branches of this fork are shown."""
        return id(fork) in self._open

    def _chosen(self) -> set[int]:
        """The forks whose branches are shown, by `id`."""
        chosen = {id(self._root)}
        room = SHOWN_LINES - self._height(self._root)
        order = count()
        waiting = [(-branch.count, next(order), branch.then) for branch in shown_branches(self._root) if branch.then]
        heapq.heapify(waiting)
        while waiting:
            _, _, fork = heapq.heappop(waiting)
            if self._height(fork) <= room:
                chosen.add(id(fork))
                room -= self._height(fork)
                for branch in shown_branches(fork):
                    if branch.then:
                        heapq.heappush(waiting, (-branch.count, next(order), branch.then))
        return chosen

    def _height(self, fork: Divergence) -> int:
        shown = shown_branches(fork)
        reasons = sum(bool(group.reasoning) for branch in shown for group in self._alone(branch))
        return len(shown) + reasons + (len(shown) < len(fork.branches))

    def _alone(self, branch: Branch) -> tuple[Group, ...]:
        """The group that is all of this branch, if one is."""
        return (self._groups[branch.groups[0]],) if len(branch.groups) == 1 else ()

    def _branches(self, fork: Divergence, indent: str) -> list[str]:
        shown = shown_branches(fork)
        rest = fork.branches[len(shown) :]
        digits = len(str(shown[0].count))
        lines = []
        for branch in shown:
            last = branch is shown[-1] and not rest
            start = f"{indent}{'└─' if last else '├─'} {branch.count:>{digits}} × "
            inner = f"{indent}{'  ' if last else '│ '} "
            end = self._end(fork, branch)
            room = max(_LEAST_TEXT, WIDTH - 2 - columns(start) - columns(end))
            lines.append(start + branch_text(fork, branch, room) + end)
            lines.extend(
                f"{inner}{'':{digits}}   reasoning: “{excerpt(group.reasoning, width=max(_LEAST_TEXT, room - 11))}”"
                for group in self._alone(branch)
                if group.reasoning
            )
            if branch.then and self.is_open(branch.then):
                lines.extend(self._branches(branch.then, inner))
        if rest:
            runs = sum(branch.count for branch in rest)
            lines.append(f"{indent}└─ … and {len(rest)} more branches, of {runs} runs")
        return lines

    def _end(self, fork: Divergence, branch: Branch) -> str:
        """What stands after a branch's text."""
        if branch.then is None:
            alone = self._alone(branch)
            return which_runs(alone[0]) if alone else f"  ({len(branch.groups)} groups)" if branch.groups else ""
        if not self.is_open(branch.then):
            return f"  ({leaves(branch.then)} groups)"
        return f", then {self.place(branch.then, _LONGEST_PATH, fork)}".rstrip() + ":"

    def place(self, fork: Divergence, width: int, before: Divergence | None = None) -> str:
        """Where a fork is: ``at step 2, after 4 words, “…”``.

        Args:
            width: columns for all of it, if it is not long by itself.
            before: the fork that leads to it, whose branch tells the text up to here.
        """
        same_step = before is not None and before.step == fork.step
        same_text = same_step and before is not None and before.path == fork.path
        begins = fork.prefix if fork.path is None else fork.within
        places = []
        if self._several_steps and not same_step:
            places.append(f"at step {fork.step + 1}")
        if fork.path is not None:
            if not same_text:
                places.append(f"at {_path(fork.path)}")
        elif begins:
            places.append(f"after {fork.index} {fork.unit}{'' if fork.index == 1 else 's'}")
        elif not any(branch.missing for branch in fork.branches):
            places.append(f"at the first {fork.unit}")
        if begins and not same_text:
            after = "after " if fork.path is not None else ""
            room = max(_LEAST_TEXT, width - columns(", ".join((*places, after))) - 2)
            places.append(f"{after}“{_before_branches(excerpt(begins, len(begins), room))}”")
        return ", ".join(places)


def shown_branches(fork: Divergence) -> Sequence[Branch]:
    """The branches that are shown: some are left out only if that takes less room than they would."""
    return fork.branches if len(fork.branches) <= SHOWN_BRANCHES + 1 else fork.branches[:SHOWN_BRANCHES]


def branch_text(fork: Divergence, branch: Branch, width: int) -> str:
    """How a branch goes on, in one line."""
    if branch.missing:
        return "(no such step)" if fork.path is None else "(not there)"
    begins = fork.prefix if fork.path is None else fork.within
    if begins is None:
        return excerpt(branch.text, width=width)
    if not branch.text:
        return ("(the output ends)" if fork.path is None else "(the text ends)") if begins else "(empty)"
    then = branch.then
    if then is None or (then.step, then.path) != (fork.step, fork.path):
        return f"“{excerpt(branch.text, width=width - 2)}”"
    up_to = then.prefix if then.path is None else then.within or ""
    return f"“{_before_branches(beginning_and_end(up_to[len(begins) :], width - 2))}”"


def _before_branches(line: str) -> str:
    """Without the space that stands before the next word."""
    return line[:-1] if line[-2:-1].strip() and line.endswith(" ") else line


def _path(path: str) -> str:
    """A path whose characters stand in their order on any screen: numbers after a right-to-left name would not."""
    shown = beginning_and_end(path, _LONGEST_PATH)
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.bidirectional(one) in _RIGHT_TO_LEFT else one
        for one in shown
    )


_RIGHT_TO_LEFT = ("R", "AL", "AN")


def _steps(steps: Sequence[int]) -> str:
    """``steps 3, 4``, counted from 1; of many the first are shown."""
    shown = ", ".join([str(step + 1) for step in steps[:8]]) + (", …" if len(steps) > 8 else "")
    return f"step{'s' if len(steps) > 1 else ''} {shown}"


def _forks(fork: Divergence) -> int:
    return 1 + sum(_forks(branch.then) for branch in fork.branches if branch.then)


def leaves(fork: Divergence) -> int:
    """The groups in all branches."""
    return sum(leaves(branch.then) if branch.then else len(branch.groups) for branch in fork.branches)
