"""How answers end: for different reasons, at the token limit, in a loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_llm_determinism.analysis.findings.finding import Finding, counted
from pytest_llm_determinism.analysis.groups import Group, Outcome, Slots

TOKEN_LIMIT_REASONS = frozenset(
    ("length", "max_tokens", "max_output_tokens", "error_limit", "model_context_window_exceeded")
)


def finish_reason_varies(groups: Sequence[Group], items: Sequence[Outcome]) -> Finding | None:
    """Equal outputs that did not end for the same reason: an application that looks at it goes on differently."""
    by_run = {item.run.index: item.slots for item in items}
    for group in groups:
        reasons: Counter[str] = Counter()
        for slots, count in Counter(by_run[run] for run in group.runs).items():
            reasons[_reasons(slots)] += count
        if len(reasons) > 1:
            return Finding(
                "finish-reason-varies",
                f"the same output ended for different reasons: {counted(reasons)}; where the application looks at the"
                " reason it goes on differently: allow more tokens, or record the reason so that it is compared",
            )
    return None


def _reasons(slots: Slots) -> str:
    return "/".join(exchange.finish_reason or "no reason given" for exchange in slots if exchange is not None)


def truncated(items: Sequence[Outcome]) -> Finding | None:
    """Outputs that all hit the token limit."""
    last = [next((exchange for exchange in reversed(item.slots) if exchange is not None), None) for item in items]
    if not last or not all(exchange and _hit_the_limit(exchange.finish_reason) for exchange in last):
        return None
    return Finding(
        "truncated",
        f"all {len(last)} outputs hit the token limit: a fork may lie beyond it; allow more tokens",
    )


def _hit_the_limit(reason: str | None) -> bool:
    # The reasons of several choices are joined by commas.
    return reason is not None and TOKEN_LIMIT_REASONS.issuperset(reason.lower().split(","))


def degenerate_loop(groups: Sequence[Group]) -> Finding | None:
    """Outputs that end in a loop."""
    looping = sum(group.count for group in groups if any(_loops(part) for part in group.parts))
    total = sum(group.count for group in groups)
    if not looping:
        return None
    return Finding(
        "degenerate-loop",
        f"in {looping} of {total} runs the output ends by repeating itself, so a pass proves little: a model in a loop"
        " is stable whatever its arithmetic; ask for something that has an end, or for fewer tokens",
    )


LOOP_REPEATS = 4
"""Repetitions in a row before an output counts as a loop; with fewer, lists and refrains would."""

LOOP_WORDS = 12
"""Words a loop must fill at least, so that "no no no no" is none."""


def _loops(text: str) -> bool:
    """Whether the end of a text repeats one sequence of words."""
    words = text.split()[-512:]
    # The last word may be cut off by a token limit, so the loop is also looked for before it.
    for end in (len(words), len(words) - 1):
        for period in range(1, end // LOOP_REPEATS + 1):
            # Most texts differ in the last word already.
            if words[end - 1 - period] != words[end - 1]:
                continue
            length = period * max(LOOP_REPEATS, -(-LOOP_WORDS // period))
            if length <= end and words[end - length : end - period] == words[end - length + period : end]:
                return True
    return False
