"""Where the groups of an experiment part: one tree of all of them, fork by fork.

A fork is told by what the runs said: by token where the responses tell tokens, else by word; in JSON documents by path,
in tool calls by argument; of several steps the first at which they differ comes first. Everything here takes time that
grows linearly with the size of the outputs: each level of the tree looks at each output once, and `DEPTH` bounds the
levels.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from pytest_llm_determinism.analysis.compare import NAMED, Comparison, RunOutput
from pytest_llm_determinism.analysis.graphemes import whole
from pytest_llm_determinism.analysis.groups import Group, Outcome
from pytest_llm_determinism.analysis.structure import Difference, between_calls, between_documents
from pytest_llm_determinism.analysis.units import TOKENS, WORDS, Unit, in_tokens
from pytest_llm_determinism.shapes.answer import Token, ToolCall

__all__ = ["Branch", "Divergence", "Part", "TokenFork", "Way", "divergence", "first_fork", "ways"]

DEPTH = 16
"""Forks one within the other that are told; readers of JSON refuse what is nested deeper than 64 levels or so."""

FORKS = 256
"""Forks that are told in all, those of most runs first: each repeats what leads to it."""

LONGEST = 200
"""Characters of a branch's text; the groups have all of it."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One way to go on after a fork, and how many runs took it.

    `text` is as the model wrote it, control characters included: show it through `excerpt`.

    Attributes:
        text: how it goes on, up to the next fork within it or to the end, cut after about 200 characters; "" where the
            text ends. At a `path` it is the value there, see `Divergence.within`.
        then: the next fork of these runs; `index`, `prefix` and `within` of it count from the start of the text, too.
        groups: where no fork follows, the groups in this branch, as places in the experiment's list. More than one
            where forks are left out (at most 16 are told one within the other, 256 in all), and where the comparison
            in force tells outputs apart that have the same text.
        missing: these runs have nothing there: no such step, tool call, or path.
    """

    text: str
    count: int
    then: Divergence | None = None
    groups: tuple[int, ...] = ()
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Divergence:
    """A fork: where groups part. The whole tree, as the first fork.

    Under the comparisons `stripped`, `whitespace` and `casefold` texts stand in the form in which they are compared.

    Attributes:
        step: 0-based.
        index: the length of `prefix` in `unit`s: ``token``s, or ``word``s, which is what stands between white space (in
            scripts that have none between words, each letter); a word that `prefix` ends in counts.
        prefix: what all texts of that step begin with, up to the token or word in which they differ, or up to
            punctuation beside it. A grapheme is never split, a word only if it is longer than 40 characters.
        branches: in order of count, equal counts in order of the groups. The counts add up to all runs of the fork.
        path: in outputs with a structure, the place at which they differ: ``$.items[2].price`` in JSON,
            ``get_weather.city`` in the arguments of a tool call, ``tool call 2`` where it is the call itself.
        within: where the values at `path` are texts and not all short, what all of them begin with; the branches'
            texts go on from there. Else None, and the branches have whole values as JSON (a call has its tool's name).
        follows: later steps at which the branches differ, too, after having asked different things.
    """

    step: int
    index: int
    unit: str
    prefix: str
    branches: tuple[Branch, ...]
    path: str | None = None
    within: str | None = None
    follows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """What a run said at one step.

    Attributes:
        text: in the form in which it is compared.
        form: equal for those that are the same under the comparison in force.
        asked: what it is the answer to, by the request's key; None if that is not known.
        tool_calls: those that close the text.
        tokens: of the text, where they are known.
    """

    text: str
    form: Hashable
    asked: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: tuple[Token, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Way:
    """What the runs of one group said, one part a step; None for a step that they did not make."""

    parts: tuple[Part | None, ...]
    count: int


def ways(groups: Sequence[Group], items: Iterable[Outcome], comparison: Comparison) -> list[Way]:
    """The groups' ways, each that of its first run.

    Args:
        items: the runs that are in the groups.
    """
    by_run = {item.run.index: item for item in items}
    return [Way(_parts(by_run[group.runs[0]], comparison), group.count) for group in groups]


def _parts(item: Outcome, comparison: Comparison) -> tuple[Part | None, ...]:
    if item.run.recorded:
        return tuple(_part(text, comparison) for text in item.run.recorded)
    return tuple(
        None
        if exchange is None
        else _part(exchange.output, comparison, exchange.request, exchange.tool_calls, exchange.tokens)
        for exchange in item.slots
    )


def _part(
    said: str,
    comparison: Comparison,
    asked: str | None = None,
    tool_calls: tuple[ToolCall, ...] = (),
    tokens: tuple[Token, ...] = (),
) -> Part:
    if comparison.name in NAMED and comparison.name != "json":
        text = str(NAMED[comparison.name](said))
        return Part(text, text, asked, tool_calls, tokens)
    # A callable takes the whole output, and says nothing of a part.
    by_part = comparison.by_part or comparison.name == "json"
    form = comparison.key(RunOutput((said,), tool_calls=(tool_calls,))) if by_part else said
    return Part(said, form, asked, tool_calls, tokens)


def divergence(ways: Sequence[Way]) -> Divergence | None:
    """Where these groups part; None for fewer than two, and if all of them say the same."""
    tree = _Tree(ways)
    root = tree.fork(range(len(ways)))
    if root is None:
        return None
    growing: list[tuple[int, int, int, _Branch]] = []
    order = count()

    def grow(fork: _Fork, depth: int) -> None:
        if depth < DEPTH:
            for branch in fork.branches:
                if len(branch.ways) > 1:
                    heapq.heappush(growing, (-branch.count, next(order), depth, branch))

    grow(root, 1)
    forks = 1
    while growing and forks < FORKS:
        _, _, depth, branch = heapq.heappop(growing)
        branch.then = tree.fork(branch.ways)
        if branch.then is not None:
            forks += 1
            grow(branch.then, depth + 1)
    return root.told()


@dataclass(slots=True)
class _Branch:
    text: str
    count: int
    ways: list[int]
    missing: bool
    then: _Fork | None = None

    def told(self) -> Branch:
        then = None if self.then is None else self.then.told()
        return Branch(self.text, self.count, then, () if then else tuple(sorted(self.ways)), self.missing)


@dataclass(slots=True)
class _Fork:
    step: int
    index: int
    unit: str
    prefix: str
    branches: list[_Branch] = field(default_factory=list)
    path: str | None = None
    within: str | None = None
    follows: tuple[int, ...] = ()

    def told(self) -> Divergence:
        return Divergence(
            self.step,
            self.index,
            self.unit,
            self.prefix,
            tuple(branch.told() for branch in self.branches),
            self.path,
            self.within,
            self.follows,
        )


class _Tree:
    """Finds the forks of some ways, which it knows by their places in the list."""

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = ways
        self._steps = max((len(way.parts) for way in ways), default=0)
        self._compared: dict[int, tuple[Unit, list[str]]] = {}

    def fork(self, members: Iterable[int]) -> _Fork | None:
        """Where these ways part; None if they say the same."""
        known = list(members)
        step = next((step for step in range(self._steps) if len({self._form(way, step) for way in known}) > 1), None)
        if step is None:
            return None
        # The largest group says in which order a document is read.
        known.sort(key=self._largest(known, step).__ne__)
        unit, compared = self._in_units(step)
        texts = [compared[way] for way in known]
        begun = unit.common(texts)
        fork = _Fork(step, unit.length(texts[0][:begun]), unit.name, unit.plain(texts[0][:begun]))
        found = self._difference(known, step)
        if found is None:
            fork.branches = self._branches(known, step, unit, texts, begun)
        elif found.text:
            fork.path = found.path
            values = [value or "" for value in found.values]
            begun = WORDS.common(values)
            fork.within = values[0][:begun]
            fork.branches = self._branches(known, step, WORDS, values, begun)
        else:
            fork.path = found.path
            fork.branches = self._values(known, found, step)
        if len(fork.branches) == 1:
            return None  # a comparison that is not the same each time
        fork.branches.sort(key=lambda branch: (-branch.count, min(branch.ways)))
        fork.follows = self._follows(step, fork.branches)
        return fork

    def _part(self, way: int, step: int) -> Part | None:
        parts = self._ways[way].parts
        return parts[step] if step < len(parts) else None

    def _form(self, way: int, step: int) -> Hashable:
        part = self._part(way, step)
        return part and (part.form,)

    def _text(self, way: int, step: int) -> str:
        part = self._part(way, step)
        return part.text if part else ""

    def _largest(self, ways: Sequence[int], step: int) -> int:
        return min(ways, key=lambda way: (-self._ways[way].count, self._text(way, step)))

    def _in_units(self, step: int) -> tuple[Unit, list[str]]:
        """The texts of a step, of all ways: in tokens where all of them tell these, else in words."""
        if step not in self._compared:
            texts = [self._text(way, step) for way in range(len(self._ways))]
            in_token_form = self._in_tokens(step)
            self._compared[step] = (WORDS, texts) if in_token_form is None else (TOKENS, in_token_form)
        return self._compared[step]

    def _in_tokens(self, step: int) -> list[str] | None:
        parts = [self._part(way, step) for way in range(len(self._ways))]
        if not any(part and part.tokens for part in parts):
            return None
        texts = []
        for part in parts:
            tokens = [token.text for token in part.tokens] if part else []
            text = in_tokens(tokens) if "".join(tokens) == (part.text if part else "") else None
            if text is None:
                return None
            texts.append(text)
        return texts

    def _difference(self, ways: Sequence[int], step: int) -> Difference | None:
        parts = [self._part(way, step) for way in ways]
        made = [part for part in parts if part is not None]
        if len(made) < len(parts):
            return None
        texts = [part.text for part in made]
        return between_documents(texts) or between_calls(texts, [part.tool_calls for part in made])

    def _branches(self, ways: Sequence[int], step: int, unit: Unit, texts: Sequence[str], begun: int) -> list[_Branch]:
        """Ways whose piece at `begun` is the same share a branch."""
        together: dict[tuple[bool, str], list[tuple[int, str]]] = {}
        for way, text, piece in zip(ways, texts, unit.pieces(texts, begun), strict=True):
            together.setdefault((self._part(way, step) is None, piece), []).append((way, text))
        branches = []
        for (missing, _), members in together.items():
            alike = [text for _, text in members]
            end = unit.common(alike) if len(alike) > 1 else len(alike[0])
            branches.append(self._branch([way for way, _ in members], unit.plain(alike[0][begun:end]), missing))
        return branches

    def _values(self, ways: Sequence[int], found: Difference, step: int) -> list[_Branch]:
        """Ways with the same value share a branch."""
        together: dict[Hashable, dict[int, str | None]] = {}
        for way, same, value in zip(ways, found.same, found.values, strict=True):
            together.setdefault(same, {})[way] = value
        return [
            self._branch(list(values), shown or "", shown is None)
            for values in together.values()
            for shown in (values[self._largest(list(values), step)],)
        ]

    def _branch(self, ways: list[int], text: str, missing: bool) -> _Branch:
        shown = text if len(text) <= LONGEST else text[: whole(text, LONGEST)]
        return _Branch(shown, sum(self._ways[way].count for way in ways), ways, missing)

    def _follows(self, step: int, branches: Sequence[_Branch]) -> tuple[int, ...]:
        """The later steps at which the branches differ and had been asked different things.

        What differs although the same was asked does not follow from what came before.
        """
        if self._steps == step + 1:
            return ()
        return tuple(later for later in range(step + 1, self._steps) if self._differ_by_question(later, branches))

    def _differ_by_question(self, step: int, branches: Sequence[_Branch]) -> bool:
        told: list[dict[str | None, set[Hashable]]] = []
        for branch in branches:
            by_question: dict[str | None, set[Hashable]] = {}
            for way in branch.ways:
                part = self._part(way, step)
                if part is not None:
                    if part.asked is None:
                        return False
                    by_question.setdefault(part.asked, set()).add(part.form)
            told.append(by_question)
        answers: dict[str | None, set[Hashable]] = {}
        for by_question in told:
            for question, forms in by_question.items():
                if answers.setdefault(question, forms) != forms:
                    return False
        return len({frozenset().union(*by_question.values()) for by_question in told}) > 1


@dataclass(frozen=True, slots=True)
class TokenFork:
    """The first fork of all groups, by token.

    Attributes:
        step: 0-based.
        index: how many tokens all groups have in common.
        tokens: for each group its token there; None where its answer has ended, and where it made no such step.
    """

    step: int
    index: int
    tokens: tuple[Token | None, ...]


def first_fork(ways: Sequence[Way]) -> TokenFork | None:
    """Where these groups part by token; None if they do not, and if one does not tell the tokens of what it said."""
    steps = max((len(way.parts) for way in ways), default=0)
    for step in range(steps):
        parts = [way.parts[step] if step < len(way.parts) else None for way in ways]
        if len({part and (part.form,) for part in parts}) < 2:
            continue
        if any(part and "".join([token.text for token in part.tokens]) != part.text for part in parts):
            return None
        told = [part.tokens if part else () for part in parts]
        for index in range(max(map(len, told))):
            tokens = tuple(tokens[index] if index < len(tokens) else None for tokens in told)
            if len({token and token.text for token in tokens}) > 1:
                return TokenFork(step, index, tokens)
        return None
    return None
