"""Findings from what a provider says beside the answer: backends, prompt caches, counts of tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.findings import ALPHA, findings
from pytest_llm_determinism.analysis.groups import group, outcomes
from pytest_llm_determinism.runs import Exchange, Run

ANSWERS = {"A": "give a refund", "B": "give a replacement", "C": "give nothing"}


def exchange(answer: str, request: str = "question", **told: Any) -> Exchange:
    fields: dict[str, Any] = {
        "model": "m",
        "fingerprint": None,
        "finish_reason": "stop",
        "input_tokens": None,
        "output_tokens": None,
    }
    return Exchange(request, 0, ANSWERS.get(answer, answer), **{**fields, **told})


def found(runs: Iterable[Exchange | Sequence[Exchange]]) -> dict[str, str]:
    """Code and message of what is found in runs, each given by its exchanges."""
    made = [Run(index, (one,) if isinstance(one, Exchange) else tuple(one)) for index, one in enumerate(runs)]
    items = outcomes(made, made[0])
    comparison = resolve("exact")
    every = findings(items, group(items, comparison), {}, comparison)
    assert len({one.code for one in every}) == len(every)
    return {one.code: one.message for one in every}


def with_backends(pattern: str, **names: Sequence[str | None]) -> list[Exchange]:
    """Runs with an answer a letter, and for each field one value a run."""
    return [
        exchange(letter, **{field: values[place] for field, values in names.items()})
        for place, letter in enumerate(pattern)
    ]


# backend-varies

PIN = (
    "several backends serve this model: pin its version, ask the provider for one backend, or accept one answer for"
    " each with max_unique"
)


def test_answers_that_follow_the_fingerprint() -> None:
    runs = with_backends("AAB" * 10, fingerprint=["fp_a", "fp_a", "fp_b"] * 10)
    assert found(runs) == {
        "backend-varies": "the answers follow system_fingerprint (p = 3.3e-08): fp_a: 20 × “give a refund”; fp_b: 10 ×"
        f" “give a replacement”; {PIN}"
    }


def test_answers_that_follow_the_model_name() -> None:
    runs = with_backends("AAB" * 10, model=["gpt-1", "gpt-1", "gpt-2"] * 10)
    assert found(runs) == {
        "backend-varies": "the answers follow the returned model name (p = 3.3e-08): gpt-1: 20 × “give a refund”;"
        f" gpt-2: 10 × “give a replacement”; {PIN}"
    }


def test_of_two_names_the_one_that_the_answers_follow_is_named() -> None:
    models = ["one", "other"] * 15
    fingerprints = ["fp_a", "fp_a", "fp_b"] * 10
    assert (
        "system_fingerprint"
        in found(with_backends("AAB" * 10, model=models, fingerprint=fingerprints))["backend-varies"]
    )
    assert "model name" in found(with_backends("AB" * 15, model=models, fingerprint=fingerprints))["backend-varies"]


def test_more_than_two_backends_and_answers() -> None:
    message = found(with_backends("ABC" * 6, fingerprint=["fp_a", "fp_b", "fp_c"] * 6))["backend-varies"]
    assert message.startswith(
        "the answers follow system_fingerprint (p = 0.002): fp_a: 6 × “give a refund”; fp_b: 6 × “give a replacement”;"
        " fp_c: 6 × “give nothing”; "
    )


def test_a_backend_that_is_not_named_is_one_too() -> None:
    runs = with_backends("A" * 15 + "B" * 15, fingerprint=["fp_a"] * 15 + [None] * 15)
    assert "none given: 15 × “give a replacement”" in found(runs)["backend-varies"]


def test_of_many_backends_and_answers_the_first_are_shown() -> None:
    pattern = "".join(chr(0x4E00 + place // 6) for place in range(60))
    message = found(with_backends(pattern, fingerprint=[f"fp_{place // 6}" for place in range(60)]))["backend-varies"]
    assert "fp_3: 6 × “七”; 6 more; several backends" in message


def test_it_is_the_call_at_which_runs_part_that_counts() -> None:
    # The first call goes to any backend and says the same; the second parts the runs, and with them the calls after it.
    def run(place: int) -> list[Exchange]:
        fingerprint = ["fp_a", "fp_b"][place % 2]
        first = exchange("same", fingerprint=["fp_x", "fp_y", "fp_z"][place % 3])
        rest = [exchange("A", "more", fingerprint=fingerprint)]
        return [
            first,
            *(rest if place % 2 else [exchange("B", "more", fingerprint=fingerprint), exchange("C", "even more")]),
        ]

    message = found(map(run, range(30)))["backend-varies"]
    assert message.startswith("the answers follow system_fingerprint (p = 1.3e-08): fp_a: 15 × ")


@pytest.mark.parametrize(
    ("pattern", "fingerprints"),
    [
        pytest.param("AAB" * 10, ["fp_a"] * 30, id="one backend"),
        pytest.param("AAB" * 10, [None] * 30, id="none named"),
        pytest.param("A" * 30, ["fp_a", "fp_b"] * 15, id="one answer"),
        pytest.param("AABB" * 7 + "AB", ["fp_a", "fp_b"] * 15, id="backends that have nothing to do with it"),
        pytest.param("AB", ["fp_a", "fp_b"], id="too few runs"),
        pytest.param("AABB", ["fp_a", "fp_a", "fp_b", "fp_b"], id="four runs are too few"),
        pytest.param("AAB" * 10, [f"fp_{place}" for place in range(30)], id="a new one each time"),
    ],
)
def test_answers_that_do_not_follow_the_backend(pattern: str, fingerprints: list[str | None]) -> None:
    assert found(with_backends(pattern, fingerprint=fingerprints)) == {}


@pytest.mark.parametrize("first", ["AB", "AA"], ids=["after they parted", "which nothing parted before"])
def test_a_call_that_some_runs_did_not_make_is_no_backend(first: str) -> None:
    short = [exchange(first[0], fingerprint="fp_a")]
    long = [exchange(first[1], fingerprint="fp_a"), exchange("C", "more", fingerprint="fp_b")]
    assert found([short, long] * 15) == {}


# cached-by-server

CACHE = (
    "a prompt from a cache is computed in another way: switch prompt caching off where the provider lets you, or fill"
    " the cache before the runs"
)


def test_answers_that_follow_the_prompt_cache() -> None:
    runs = [exchange("A" if place % 3 else "B", cached_tokens=128 if place % 3 else 0) for place in range(30)]
    assert found(runs) == {
        "cached-by-server": "the answers follow how much of the prompt the provider took from its cache (p = 3.3e-08):"
        f" 128 cached tokens: 20 × “give a refund”; 0 cached tokens: 10 × “give a replacement”; {CACHE}"
    }


def test_a_provider_that_says_nothing_where_nothing_was_cached() -> None:
    runs = [exchange("A" if place % 3 else "B", cached_tokens=128 if place % 3 else None) for place in range(30)]
    assert "0 cached tokens: 10 × “give a replacement”" in found(runs)["cached-by-server"]


@pytest.mark.parametrize(
    "cached",
    [
        pytest.param([128] * 30, id="always the same"),
        pytest.param([None] * 30, id="not told"),
        pytest.param([0, 128] * 15, id="nothing to do with it"),
        pytest.param([0] + [128] * 29, id="only the first was not"),
    ],
)
def test_answers_that_do_not_follow_the_prompt_cache(cached: list[int | None]) -> None:
    pattern = "B" + "A" * 29 if cached[1:] == [128] * 29 else "AABB" * 7 + "AB"
    assert found(exchange(letter, cached_tokens=told) for letter, told in zip(pattern, cached, strict=True)) == {}


@pytest.mark.parametrize("backends", [2, 3])
@pytest.mark.parametrize(("runs", "stability"), [(10, 0.5), (30, 0.9), (30, 0.5), (100, 0.7)])
def test_backends_at_random_raise_no_alarm(runs: int, stability: float, backends: int) -> None:
    randomly = random.Random(runs + backends)
    trials, alarms = 800, 0
    for _ in range(trials):
        pattern = "".join("A" if randomly.random() < stability else randomly.choice("BC") for _ in range(runs))
        names = [f"fp_{randomly.randrange(backends)}" for _ in range(runs)]
        models = [f"m_{randomly.randrange(2)}" for _ in range(runs)]
        alarms += "backend-varies" in found(with_backends(pattern, fingerprint=names, model=models))
    assert alarms <= ALPHA * trials + 3 * math.sqrt(trials * ALPHA)


# usage-varies


def test_one_answer_in_different_numbers_of_tokens() -> None:
    runs = [exchange("A", output_tokens=12 if place % 3 else 13) for place in range(30)]
    assert found(runs) == {
        "usage-varies": "the same answer was counted as different numbers of output tokens (20 × 12, 10 × 13): it was"
        " written in other tokens, or after reasoning that is not shown, so it was not computed in the same way; ask"
        " for logprobs to see which"
    }


def test_one_request_in_different_numbers_of_tokens() -> None:
    runs = [exchange("A", input_tokens=100 if place % 3 else 103) for place in range(30)]
    assert found(runs) == {
        "usage-varies": "the same request was counted as different numbers of input tokens (20 × 100, 10 × 103): the"
        " model was not given the same (another template, system prompt or tokenizer), so several backends serve it;"
        " ask the provider which, and pin one"
    }


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([exchange("A", output_tokens=3), exchange("B", output_tokens=4)], id="another answer"),
        pytest.param([exchange("A", output_tokens=3), exchange("A", output_tokens=None)], id="not always told"),
        pytest.param(
            [exchange("A", output_tokens=9, reasoning="so"), exchange("A", output_tokens=12, reasoning="or so")],
            id="other reasoning, which is shown",
        ),
        pytest.param(
            [exchange("A", input_tokens=9, cached_tokens=0), exchange("A", input_tokens=1, cached_tokens=8)],
            id="counted without those in a cache",
        ),
        pytest.param(
            [exchange("A", "one", input_tokens=9), exchange("A", "other", input_tokens=8)], id="another request"
        ),
    ],
)
def test_counts_that_may_differ(runs: list[Exchange]) -> None:
    assert "usage-varies" not in found(runs)
