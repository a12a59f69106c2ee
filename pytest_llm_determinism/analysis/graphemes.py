"""Where a text may be cut: never within what a reader sees as one character."""

from __future__ import annotations

import unicodedata

_REGIONAL = "".join(map(chr, range(0x1F1E6, 0x1F200)))
_ZERO_WIDTH_NON_JOINER, _ZERO_WIDTH_JOINER = "\u200c", "\u200d"


def splits_grapheme(text: str, index: int) -> bool:
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


def whole(text: str, end: int) -> int:
    """The first place at or after `end` that splits no grapheme."""
    while splits_grapheme(text, end):
        end += 1
    return end
