"""Tokens that are almost equally likely at the place where groups part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pytest_llm_determinism.analysis.compare import Comparison
from pytest_llm_determinism.analysis.divergence import first_fork, ways
from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.findings.finding import Finding
from pytest_llm_determinism.analysis.groups import Group, Outcome
from pytest_llm_determinism.analysis.statistics import percent
from pytest_llm_determinism.shapes.answer import Token

NEAR = 0.25
"""Almost equal: log-probabilities at most this far apart, as for 56 % and 44 %.

Servers compute in bfloat16, whose numbers have 8 significant bits: logits between 16 and 32, as large models have them,
are 1/8 apart. Two of them that round in opposite directions change their distance by as much, and what was rounded in
the layers before comes on top; so twice that step is what other arithmetic can make of no difference at all. Measured
on SmolLM2-135M-Instruct in bfloat16, decoded greedily alone and in batches of two, three and five: wherever the answers
parted, the two logits were 0 or 1/8 apart."""

_UNLIKELY = -9999.0
"""What OpenAI and who speaks like it tell of a token that is not among the likeliest, in place of its logprob."""


def near_tie(items: Sequence[Outcome], groups: Sequence[Group], comparison: Comparison) -> Finding | None:
    """The token of most runs at the first fork, and of the others the one that comes closest to it, if that is near."""
    if len(groups) < 2 or not any(exchange is not None and exchange.tokens for exchange in items[0].slots):
        return None
    fork = first_fork(ways(groups, items, comparison))
    if fork is None:
        return None
    runs: Counter[str] = Counter()
    first: dict[str, Token] = {}
    for group, token in zip(groups, fork.tokens, strict=True):
        if token is not None:
            runs[token.text] += group.count
            first.setdefault(token.text, token)
    if len(first) < 2:
        return None
    most = first[runs.most_common(1)[0][0]]
    pairs = (_likelihoods(most, other) for other in first.values() if other is not most)
    near = [pair for pair in pairs if pair is not None]
    if not near:
        return None
    one, other = min(near, key=lambda pair: pair[0][1] - pair[1][1])
    step = f"step {fork.step + 1}, " if any(len(group.parts) > 1 for group in groups) else ""
    return Finding(
        "near-tie",
        f"at {step}token {fork.index} {_shown(*one)} and {_shown(*other)} are almost equally likely, so a small"
        " difference in the server's arithmetic (what shares the batch, another kernel) tips the answer; word the"
        " prompt so that no two answers are as good, or ask the provider for batch-invariant serving",
    )


def _likelihoods(one: Token, other: Token) -> tuple[tuple[str, float], tuple[str, float]] | None:
    """The two tokens with their logprobs, the likelier first, if they are almost equal and nothing is likelier.

    As one answer tells both; where neither does, for want of alternatives, as each answer tells its own.
    """
    for told, sought in ((one, other), (other, one)):
        at_the_place = dict(told.others)
        logprob = at_the_place.pop(sought.text, None)
        if logprob is not None:
            pair = sorted(((told.text, told.logprob), (sought.text, logprob)), key=lambda entry: -entry[1])
            best = max(pair[0][1], *at_the_place.values(), _UNLIKELY)
            return (pair[0], pair[1]) if pair[1][1] > _UNLIKELY and best - pair[1][1] <= NEAR else None
    if max(len(one.others), len(other.others)) > 1:
        return None  # what is not among the alternatives is less likely than all of them
    pair = sorted(((one.text, one.logprob), (other.text, other.logprob)), key=lambda entry: -entry[1])
    # A token that another one almost equals has not much more than half of the probability.
    tied = pair[0][1] <= -math.log1p(math.exp(-NEAR))
    return (pair[0], pair[1]) if tied and pair[1][1] > _UNLIKELY and pair[0][1] - pair[1][1] <= NEAR else None


def _shown(text: str, logprob: float) -> str:
    return f"“{excerpt(text, width=24)}” ({percent(math.exp(logprob))})"
