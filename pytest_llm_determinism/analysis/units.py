"""The units by which texts are compared: words, and tokens where the responses tell them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_llm_determinism.analysis.graphemes import splits_grapheme, whole

__all__ = ["LONGEST_WORD", "TOKENS", "UNSPACED", "WORDS", "Unit", "in_tokens"]

LONGEST_WORD = 40
"""Characters up to which a word is kept whole: a longer one (base64, say) would hide where it differs."""


@dataclass(frozen=True, slots=True)
class Unit:
    """How texts are cut into pieces. The functions take them in the form in which they are compared.

    Attributes:
        name: as `Divergence.unit` tells it.
        plain: from a text in that form, the text itself.
        length: how many pieces a text has.
        begins: whether at this index of a text a piece may begin, or the last have ended.
        ends: where the piece ends that differs from other texts', given the index to which the texts are the same, and
            the one (at or before it) where the piece begins.
        longest: characters after which a piece may be cut itself.
    """

    name: str
    plain: Callable[[str], str]
    length: Callable[[str], int]
    begins: Callable[[str, int], bool]
    ends: Callable[[str, int, int], int]
    longest: int | None

    def common(self, texts: Sequence[str]) -> int:
        """The length of what all texts begin with, up to the piece in which they differ."""
        parted = common_length(texts)
        if all(self.begins(text, parted) for text in texts):
            return parted
        # Before that place all texts are the same, so that one answers for all.
        text = texts[0]
        last = parted
        if any(splits_grapheme(other, parted) for other in texts):
            last = next(index for index in range(parted - 1, -1, -1) if not splits_grapheme(text, index))
        for index in range(min(last, parted - 1), -1, -1):
            if self.longest is not None and last - index >= self.longest:
                return last
            # Whether a piece begins may depend on the character after it, and the last but one has none that all share.
            if all(self.begins(text, index) for text in (texts if index == parted - 1 else texts[:1])):
                return index
        return last

    def pieces(self, texts: Sequence[str], begun: int) -> list[str]:
        """The piece of each text that begins at `begun`, given by `common`; "" where the text ends there."""
        parted = common_length(texts)
        return [text[begun : self.ends(text, parted, begun)] for text in texts]


def common_length(texts: Sequence[str]) -> int:
    """How many characters all texts begin with."""
    # What the first and the last in order have in common, all between them have.
    first, last = min(texts), max(texts)
    # Halving, since slices are compared much faster than characters one by one.
    low, high = 0, min(len(first), len(last))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == last[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts that put no spaces between words, as a set of a regular expression: Thai, Lao, Burmese, Khmer, Chinese,
Japanese."""

_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_is_unspaced = re.compile(f"[{UNSPACED}]").match

_JOINING = ".,:-'’"
"""Signs that are part of a word between two of its letters or digits: 3.5, 12:30, 2026-01-02, don't."""


def _stands_alone(character: str) -> bool:
    """Whether a character that is not white space is a piece by itself: punctuation, symbols, unspaced scripts."""
    if character.isascii():
        return not (character.isalnum() or character == "_")
    return unicodedata.category(character)[0] in "PS" or _is_unspaced(character) is not None


def _in_word(character: str) -> bool:
    return not (character.isspace() or _stands_alone(character))


def _word_begins(text: str, index: int) -> bool:
    if not 0 < index < len(text):
        return True
    before, after = text[index - 1], text[index]
    if before.isspace() or after.isspace():
        begins = before.isspace() != after.isspace()
    elif after in _JOINING:
        begins = not (_in_word(before) and all(map(_in_word, text[index + 1 : index + 2] or " ")))
    elif before in _JOINING:
        begins = not (_in_word(after) and all(map(_in_word, text[max(0, index - 2) : index - 1] or " ")))
    else:
        begins = _stands_alone(before) or _stands_alone(after)
    return begins and not splits_grapheme(text, index)


def _word_ends(text: str, parted: int, begun: int) -> int:
    end = parted
    most = min(parted + LONGEST_WORD, len(text))
    if not text[begun:parted].strip():
        while end < most and text[end].isspace():
            end += 1
        if end < most:
            end += 1
    while end < most and not _word_begins(text, end):
        end += 1
    return whole(text, end)


WORDS = Unit(
    name="word",
    plain=str,
    length=lambda text: sum(1 for _ in _WORD.finditer(text)),
    begins=_word_begins,
    ends=_word_ends,
    longest=LONGEST_WORD,
)
"""A word is what stands between white space; in scripts that put none between words, each letter. Punctuation counts
with the word it stands at, but texts may part between the two."""

_END = "\0"


def in_tokens(tokens: Sequence[str]) -> str | None:
    """A text as its tokens, each closed by a sign of its own; None if that sign stands in one of them.

    So equal beginnings of such texts are equal tokens, and are found as fast as equal characters. A token without text
    belongs to the one before.
    """
    text = "".join([f"{token}{_END}" for token in tokens])
    return text if text.count(_END) == len(tokens) else None


def _without_ends(text: str) -> str:
    return text.replace(_END, "")


def _token_begins(text: str, index: int) -> bool:
    if not 0 < index < len(text):
        return True
    if text[index - 1] != _END or text[index] == _END:
        return False
    before = _without_ends(text[:index])
    return not splits_grapheme(before + text[index], len(before))


def _token_ends(text: str, parted: int, begun: int) -> int:
    end = parted
    while end < len(text):
        end = text.index(_END, end) + 1
        if _token_begins(text, end):
            break
    return end


TOKENS = Unit(
    name="token",
    plain=_without_ends,
    length=lambda text: text.count(_END),
    begins=_token_begins,
    ends=_token_ends,
    longest=None,
)
"""The model's own pieces of a text, in the form of `in_tokens`."""
