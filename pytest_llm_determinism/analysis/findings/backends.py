"""Groups that follow what a provider says of the backend, or of its prompt cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from pytest_llm_determinism.analysis.chance import independence, p_in_words
from pytest_llm_determinism.analysis.findings.finding import ALPHA, Finding, counted, names
from pytest_llm_determinism.analysis.groups import Group, Outcome
from pytest_llm_determinism.runs import Exchange


def backend_varies(items: Sequence[Outcome], groups: Sequence[Group]) -> Finding | None:
    """Groups that depend on the model's name as returned, or on `system_fingerprint`.

    What counts is the call at which the runs part. The exact test of independence, at 1 %; half of that for each of the
    two where both vary, unless they vary together. Backends that vary without the answers following them explain
    nothing.
    """
    parted = _parting(items)
    if parted is None:
        return None
    told: dict[tuple[Hashable, ...], tuple[str, list[str]]] = {}
    for name, field in (("the returned model name", "model"), ("system_fingerprint", "fingerprint")):
        labels = [str(getattr(exchange, field) or "none given") for exchange in parted]
        if len(set(labels)) > 1:
            told.setdefault(_partition(labels), (name, labels))
    for name, labels in told.values():
        chance = independence(labels, _groups_of(items, groups))
        if chance <= ALPHA / len(told):
            return Finding(
                "backend-varies",
                f"the answers follow {name} ({p_in_words(chance)}): {_table(labels, items, groups)}; several backends"
                " serve this model: pin its version, ask the provider for one backend, or accept one answer for each"
                " with max_unique",
            )
    return None


def cached_by_server(items: Sequence[Outcome], groups: Sequence[Group]) -> Finding | None:
    """Groups that depend on how much of the prompt came from the provider's cache, by the same test.

    A first run that alone was not cached is no evidence: that has the chance 1 in K whatever the cache does.
    """
    parted = _parting(items)
    if parted is None or all(exchange.cached_tokens is None for exchange in parted):
        return None
    # Some providers leave the field out where nothing was cached.
    labels = [f"{exchange.cached_tokens or 0} cached tokens" for exchange in parted]
    chance = independence(labels, _groups_of(items, groups))
    if chance > ALPHA:
        return None
    return Finding(
        "cached-by-server",
        f"the answers follow how much of the prompt the provider took from its cache ({p_in_words(chance)}):"
        f" {_table(labels, items, groups)}; a prompt from a cache is computed in another way: switch prompt caching off"
        " where the provider lets you, or fill the cache before the runs",
    )


def _parting(items: Sequence[Outcome]) -> list[Exchange] | None:
    """The exchange of each run at the first step at which they were told different things; None if there is no such
    step that all runs made."""
    step = 0
    told: set[tuple[str, str]] = set()
    while len(told) < 2:
        exchanges = [item.slots[step] if step < len(item.slots) else None for item in items]
        made = [exchange for exchange in exchanges if exchange is not None]
        if len(made) < len(items) or not made:
            return None
        told = {exchange.told for exchange in made}
        step += 1
    return made


def _partition(labels: Sequence[str]) -> tuple[Hashable, ...]:
    """Equal for labels that tell the same runs apart, whatever they are called."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(label, len(numbers)) for label in labels)


def _groups_of(items: Sequence[Outcome], groups: Sequence[Group]) -> list[int]:
    group_of = {run: number for number, group in enumerate(groups) for run in group.runs}
    return [group_of[item.run.index] for item in items]


def _table(labels: Sequence[str], items: Sequence[Outcome], groups: Sequence[Group], shown: int = 4) -> str:
    """``fp_a: 20 × “refund”; fp_b: 10 × “replacement”``, the most frequent label first."""
    named = names([group.output for group in groups])
    answers: dict[str, list[str]] = {}
    for label, number in zip(labels, _groups_of(items, groups), strict=True):
        answers.setdefault(label, []).append(named[number])
    rows = [f"{label}: {counted(answers[label], shown)}" for label, _ in Counter(labels).most_common(shown)]
    return "; ".join([*rows, *([f"{len(answers) - shown} more"] if len(answers) > shown else ())])
