"""The figures that the best-known experiment of this kind published, for a look at one's own beside them."""

from __future__ import annotations

from pytest_llm_determinism.settings import Settings, shown

SOURCE = "https://152334h.github.io/blog/non-determinism-in-gpt-4/"

FIGURES = {
    "gpt-4": (12, 11, 12),
    "gpt-3.5-turbo": (4, 4, 3),
    "text-davinci-003": (3, 2, 4),
    "text-davinci-001": (2, 2, 2),
    "davinci-instruct-beta": (1, 1, 1),
    "davinci": (1, 1, 1),
}
"""Unique answers in each attempt (`SOURCE`, the table under "Empirical Results")."""

ATTEMPTS = 3
MAX_TOKENS = 128
_SETTINGS = {"runs": 30, "attempts": ATTEMPTS, "load": ("solo",), "temperature": 0}


def conditions(settings: Settings, max_tokens: int | None, same_question: bool) -> tuple[str, ...]:
    """Under which conditions the figures came about, and where one's own are others."""
    differing = [settings.quote(name) for name, value in _SETTINGS.items() if getattr(settings, name) != value]
    if max_tokens != MAX_TOKENS:
        differing.append(f"max_tokens={shown(max_tokens)} (--max-tokens)")
    if not same_question:
        differing.append("another question")
    theirs = (
        f"{ATTEMPTS} attempts of {_SETTINGS['runs']} calls, one at a time, max_tokens={MAX_TOKENS}, temperature=0, with"
        " a logit_bias against the end of the text"
    )
    return (
        f"published: {SOURCE}",
        f"  its conditions: {theirs}",
        f"  here: {', '.join(differing)}" if differing else "  here: the same, but for that logit_bias",
        "  davinci and davinci-instruct-beta answered alike because they fell into a repeating loop",
    )
