"""Where the groups of an experiment part: the step, the place in it, and how the runs go on from there."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

__all__ = ["Branch", "Divergence", "common_prefix", "divergence", "excerpt"]

# Longest excerpt of a branch, in characters from where the texts part.
_LONGEST = 60
_WORD = re.compile(r"\s*\S*")
_LAST_WORD = re.compile(r"\S*\Z")

_REGIONAL = "".join(map(chr, range(0x1F1E6, 0x1F200)))
_ZERO_WIDTH_NON_JOINER, _ZERO_WIDTH_JOINER = "\u200c", "\u200d"


@dataclass(frozen=True)
class Branch:
    """One way to go on after the common prefix, and how many runs took it.

    `text` is as the model wrote it, control characters included: show it through `excerpt`.
    """

    text: str
    count: int


@dataclass(frozen=True)
class Divergence:
    """Where groups part.

    `step` is 0-based; `index` is the length, in `unit`s, of `prefix`: what all texts of that step begin with.
    """

    step: int
    index: int
    unit: str
    prefix: str
    branches: tuple[Branch, ...]

    def to_json(self) -> dict[str, Any]:
        """The object of the JSON report."""
        return {
            "step": self.step,
            "index": self.index,
            "unit": self.unit,
            "prefix": self.prefix,
            "branches": [{"text": branch.text, "count": branch.count} for branch in self.branches],
        }


def divergence(groups: Sequence[tuple[tuple[str, ...], int]]) -> Divergence | None:
    """Where these groups part; None for fewer than two, and if all of them have the same text.

    Each group is given by the parts of one of its outputs, one string a step, and its number of runs. The
    first step at which parts differ is the one described. A group without that step ends before it.

    The unit is the character, and a grapheme that differs in part belongs to the branches as a whole. Groups
    that have the next word in common (of a longer one the first 60 characters) share a branch, so the counts
    of the branches add up to all runs. A branch's text is what its groups have in common, cut at a word to
    about 60 characters: with " …" if more follows in one of them, with "…" if that is within a word. It is ""
    where the text ends. The branches are in order of count, equal counts in order of first appearance.

    Linear in the size of the texts.
    """
    step = _first_difference([parts for parts, _ in groups])
    if step is None:
        return None
    texts = ["".join(parts[step : step + 1]) for parts, _ in groups]
    parted = len(common_prefix(texts))
    index = parted
    while any(_splits_grapheme(text, index) for text in texts):
        index -= 1

    # A step that is missing and one that is empty are two ways to go on, hence the flag.
    ways: dict[tuple[bool, str], list[tuple[str, int]]] = {}
    for text, (parts, count) in zip(texts, groups, strict=True):
        end = _word_end(text, parted)
        way = ways.setdefault((step < len(parts), text[index:end]), [])
        # Enough to describe it: a copy of all that follows would double the memory.
        way.append((text[index : max(end, parted + _LONGEST) + 1], count))
    branches = [
        Branch(
            _in_common([text for text, _ in way], len(word), parted - index + _LONGEST),
            sum(count for _, count in way),
        )
        for (_, word), way in ways.items()
    ]
    branches.sort(key=lambda branch: -branch.count)
    return Divergence(step, index, "character", texts[0][:index], tuple(branches))


def excerpt(text: str, around: int = 0, width: int = 72) -> str:
    """One line of at most `width` (2 or more) characters of `text` about `around`, safe for a terminal.

    What is not printable (line ends, escape sequences, C1 and bidirectional controls, invisible and unusual
    spaces, lone surrogates) stands as a Python escape such as "\\n", and a backslash as two, so that
    different texts look different. What is left out at a side is marked "…"; two thirds of the line are for
    what follows `around`.
    """
    around = min(max(around, 0), len(text))
    # Nothing gets shorter by escaping, so one character more than the width shows that something is cut.
    before = _printable_pieces(text, max(0, around - width - 1), around)
    after = _printable_pieces(text, around, min(len(text), around + width + 1))
    room = max(width // 3, width - sum(map(len, after)))
    left = "".join(reversed(_fitting(before[::-1], room)))
    return left + "".join(_fitting(after, width - len(left)))


def _first_difference(outputs: Sequence[tuple[str, ...]]) -> int | None:
    for step in range(max(map(len, outputs), default=0)):
        first = outputs[0][step : step + 1]
        if any(parts[step : step + 1] != first for parts in outputs):
            return step
    return None


def common_prefix(texts: Sequence[str]) -> str:
    """The characters with which all texts begin."""
    # What the first and the last in order have in common, all between them have.
    first, last = min(texts), max(texts)
    if last.startswith(first):
        return first
    return first[: next(index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)]


def _word_end(text: str, start: int) -> int:
    found = _WORD.match(text, start, start + _LONGEST)
    end = found.end() if found else start
    while _splits_grapheme(text, end):
        end += 1
    return end


def _in_common(texts: Sequence[str], least: int, longest: int) -> str:
    """What texts that share at least `least` characters have in common, up to `longest`, cut at a word."""
    common = common_prefix(texts)[: max(least, longest)]
    if all(text == common for text in texts):
        return common
    whole_words = common if _ends_word(common, texts) else _LAST_WORD.sub("", common)
    shown = common[: max(least, len(whole_words.rstrip()))]
    return shown + (" …" if _ends_word(shown, texts) else "…")


def _ends_word(common: str, texts: Iterable[str]) -> bool:
    following = (text[len(common) : len(common) + 1] for text in texts)
    return all(not character or character.isspace() for character in following)


def _splits_grapheme(text: str, index: int) -> bool:
    """Whether `index` is within what a reader sees as one character.

    The rules of Unicode Standard Annex 29 that text from models meets, for strings that may hold lone
    surrogates.
    """
    if not 0 < index < len(text):
        return False
    before, after = text[index - 1], text[index]
    if before < "\u0300" and after < "\u0300":
        return before == "\r" and after == "\n"
    kind = unicodedata.category(after)
    return (
        kind.startswith("M")  # combining marks and variation selectors
        or after in (_ZERO_WIDTH_NON_JOINER, _ZERO_WIDTH_JOINER)
        or (before == _ZERO_WIDTH_JOINER and kind.startswith("S"))  # emoji are symbols
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= after <= "\U000e007f"  # tags, as in the flag of Scotland
        or ("\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff")
        # Two regional indicators make a flag, so it matters how many stand before.
        or (after in _REGIONAL and (index - len(text[:index].rstrip(_REGIONAL))) % 2 == 1)
    )


def _printable_pieces(text: str, start: int, end: int) -> list[str]:
    pieces: list[str] = []
    for index in range(start, end):
        character = text[index]
        if not character.isprintable() or character == "\\":
            character = character.encode("unicode_escape").decode("ascii")
        if pieces and _splits_grapheme(text, index):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _fitting(pieces: list[str], room: int) -> list[str]:
    """The first pieces that fit into `room` characters; if not all, with a last "…"."""
    if sum(map(len, pieces)) <= room:
        return pieces
    kept = sum(length < room for length in accumulate(map(len, pieces)))
    return [*pieces[:kept], "…"]
