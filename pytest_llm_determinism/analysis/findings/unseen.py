"""What varies beside the answer that is compared: reasoning, and counts of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from pytest_llm_determinism.analysis.findings.finding import Finding, counted
from pytest_llm_determinism.analysis.groups import Group, Outcome
from pytest_llm_determinism.runs import Exchange


def reasoning_varies(groups: Sequence[Group], items: Sequence[Outcome]) -> Finding | None:
    """Equal outputs that were reasoned out in different ways."""
    by_run = {item.run.index: item.output.reasoning for item in items}
    ways = max((len({by_run[run] for run in group.runs}) for group in groups), default=0)
    if ways < 2:
        return None
    return Finding(
        "reasoning-varies",
        f"{ways} different ways of reasoning led to the same output; if that matters, compare it with a callable that"
        " looks at output.reasoning: no named comparison does",
    )


def output_varies(items: Sequence[Outcome]) -> Finding | None:
    """The same answer, after the same reasoning, with different numbers of output tokens."""
    seen = _varying(items, lambda one: (one.request, one.told), lambda one: one.output_tokens)
    if not seen:
        return None
    return Finding(
        "usage-varies",
        f"the same answer was counted as different numbers of output tokens ({seen}): it was written in other tokens,"
        " or after reasoning that is not shown, so it was not computed in the same way; ask for logprobs to see which",
    )


def input_varies(items: Sequence[Outcome]) -> Finding | None:
    """The same request with different numbers of input tokens, where as many of them came from a cache.

    (Some providers leave those out of the count.)
    """
    seen = _varying(items, lambda one: (one.request, one.cached_tokens), lambda one: one.input_tokens)
    if not seen:
        return None
    return Finding(
        "usage-varies",
        f"the same request was counted as different numbers of input tokens ({seen}): the model was not given the same"
        " (another template, system prompt or tokenizer), so several backends serve it; ask the provider which, and"
        " pin one",
    )


def _varying(
    items: Sequence[Outcome], same: Callable[[Exchange], Hashable], count: Callable[[Exchange], int | None]
) -> str:
    """``20 × 12, 10 × 13``: the different counts, with their runs, of exchanges that are the same; empty if there are
    none."""
    counts: dict[Hashable, Counter[str]] = {}
    for slots, runs in Counter(item.slots for item in items).items():
        for exchange in slots:
            number = exchange and count(exchange)
            if exchange is not None and number is not None:
                counts.setdefault(same(exchange), Counter())[str(number)] += runs
    return next((counted(numbers) for numbers in counts.values() if len(numbers) > 1), "")
