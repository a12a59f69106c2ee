"""The finding `near-tie`: which tokens are almost equally likely, as the responses tell it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.findings import findings
from pytest_llm_determinism.analysis.groups import group, outcomes
from pytest_llm_determinism.runs import Exchange, Run
from pytest_llm_determinism.shapes.answer import Token


def token(text: str, chance: float, **others: float) -> Token:
    """A token with its probability, and those of others, in which `_` stands for a space."""
    told = {text: chance, **{name.replace("_", " "): likely for name, likely in others.items()}} if others else {}
    return Token(text, math.log(chance), tuple((name, math.log(likely)) for name, likely in told.items()))


SAME = (token("I", 0.9), token(" give", 0.9))
REFUND = (*SAME, token(" refund", 0.498, _replacement=0.497, _money=0.001), token(".", 0.9))
REPLACEMENT = (*SAME, token(" replacement", 0.499, _refund=0.496, _money=0.001), token(".", 0.9))


def answer(tokens: Sequence[Token], request: str = "question") -> Exchange:
    text = "".join(token.text for token in tokens)
    return Exchange(request, 0, text, "m", None, "stop", None, None, tokens=tuple(tokens))


def found(*runs: Sequence[Token] | list[Exchange]) -> dict[str, str]:
    made = [Run(index, tuple(run) if isinstance(run, list) else (answer(run),)) for index, run in enumerate(runs)]
    items = outcomes(made, made[0])
    comparison = resolve("exact")
    return {one.code: one.message for one in findings(items, group(items, comparison), {}, comparison)}


WHY = (
    "are almost equally likely, so a small difference in the server's arithmetic (what shares the batch, another"
    " kernel) tips the answer; word the prompt so that no two answers are as good, or ask the provider for"
    " batch-invariant serving"
)


def test_two_tokens_that_are_almost_equally_likely() -> None:
    message = f"at token 2 “ refund” (49.8 %) and “ replacement” (49.7 %) {WHY}"
    assert found(REFUND, REPLACEMENT, REFUND) == {"near-tie": message}


def test_in_an_agent_the_step_is_named() -> None:
    runs = [[answer(SAME), answer(tokens, "more")] for tokens in (REFUND, REPLACEMENT)]
    assert found(*runs)["near-tie"].startswith("at step 2, token 2 “ refund” (49.8 %)")


def test_the_likelihoods_are_those_of_one_answer() -> None:
    bare = (*SAME, token(" refund", 0.51))
    # The largest group's answer tells no alternatives, the other does.
    assert found(bare, bare, REPLACEMENT)["near-tie"].startswith(
        "at token 2 “ replacement” (49.9 %) and “ refund” (49.6 %) are"
    )


def test_without_alternatives_each_answer_tells_its_own() -> None:
    one, other = (*SAME, token(" refund", 0.51)), (*SAME, token(" replacement", 0.5))
    assert found(one, other)["near-tie"].startswith("at token 2 “ refund” (51.0 %) and “ replacement” (50.0 %) are")


def test_of_several_ways_to_go_on_the_closest_is_named() -> None:
    last = (*SAME, token(" money", 0.4, _refund=0.41))
    tokens = (*SAME, token(" refund", 0.4, _replacement=0.25, _money=0.35))
    message = found(tokens, tokens, REPLACEMENT, last)["near-tie"]
    assert message.startswith("at token 2 “ refund” (40.0 %) and “ money” (35.0 %) are")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(token("a", 0.6, b=0.39), token("b", 0.61, a=0.38), id="60 to 39"),
        pytest.param(token("a", 0.9, c=0.05), token("b", 0.9, d=0.05), id="each sure, and not of the same"),
        pytest.param(token("a", 0.9), token("b", 0.9), id="each sure, without alternatives"),
        pytest.param(token("a", 0.5), token("b", 0.3), id="far apart, without alternatives"),
        pytest.param(token("a", 0.03, b=0.029, c=0.9), token("b", 0.03, a=0.029, c=0.9), id="both unlikely: drawn"),
        pytest.param(Token("a", -9999.0), Token("b", -9999.0), id="not told"),
        pytest.param(Token("a", -9999.0, (("b", -9999.0),)), Token("b", -9999.0), id="not told, with an alternative"),
    ],
)
def test_tokens_that_are_no_tie(one: Token, other: Token) -> None:
    assert found((*SAME, one), (*SAME, other)) == {}


def test_the_limit_of_a_tie_is_a_quarter_in_logprob() -> None:
    def with_gap(gap: float) -> dict[str, str]:
        one = Token("a", -0.6, (("a", -0.6), ("b", -0.6 - gap)))
        return found((*SAME, one), (*SAME, Token("b", -0.7)))

    assert list(with_gap(0.249)) == ["near-tie"]
    assert with_gap(0.251) == {}


def test_answers_without_tokens_and_answers_that_end_show_no_tie() -> None:
    without = [Exchange("question", 0, text, "m", None, "stop", None, None) for text in "ab"]
    assert found([without[0]], [without[1]]) == {}
    assert found(REFUND, [without[1]]) == {}
    assert found(SAME, REFUND) == {}
    assert found(REFUND, REFUND) == {}
