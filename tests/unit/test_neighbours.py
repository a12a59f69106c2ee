"""What neighbours ask, how many are wanted at a time, and what becomes of a crowd whose neighbours fail."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism import crowd
from pytest_llm_determinism.analysis.findings import Finding, neighbours_failed
from pytest_llm_determinism.budget import Budget, share
from pytest_llm_determinism.crowd import Crowd, NeighbourCount, question, spread
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.settings import from_text, resolve
from pytest_llm_determinism.shapes import FAMILIES, ModelCall, Rules, recognise

# What they ask


def call(url: str, body: dict[str, Any], **rules: Any) -> ModelCall:
    found = recognise("POST", url, json.dumps(body).encode(), Rules(**rules))
    assert found is not None
    return found


OPENAI = "https://host/v1"
GEMINI = "https://host/v1beta/models/gemini-x"
BEDROCK = "https://bedrock/model/some.model"
DECODING = {"temperature": 0, "top_p": 0.5, "seed": 7}
MESSAGES = [{"role": "system", "content": "MINE"}, {"role": "user", "content": "MINE"}]
TOOLS = [{"type": "function", "function": {"name": "MINE", "parameters": {}}}]
MORE = {"tools": TOOLS, "tool_choice": "auto", "stream": True, "n": 3, "user": "MINE", "metadata": {"id": "MINE"}}
ASKED = [{"role": "user", "content": "Q?"}]

BODIES = {
    "chat": (
        f"{OPENAI}/chat/completions",
        {
            "model": "m",
            "messages": MESSAGES,
            **DECODING,
            **MORE,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 3,
            "logit_bias": {"1": 2},
            "stop": ["MINE"],
            "response_format": {"type": "json_schema", "json_schema": {"name": "MINE"}},
            "prediction": {"type": "content", "content": "MINE"},
            "reasoning_effort": "low",
            "provider": {"order": ["one"]},
        },
        {
            "model": "m",
            **DECODING,
            "reasoning_effort": "low",
            "provider": {"order": ["one"]},
            "max_tokens": 20,
            "messages": ASKED,
        },
    ),
    "chat, its limit by another name": (
        f"{OPENAI}/chat/completions",
        {"model": "m", "messages": MESSAGES, "max_completion_tokens": 500},
        {"model": "m", "max_completion_tokens": 20, "messages": ASKED},
    ),
    "a deployment of Azure": (
        "https://host/openai/deployments/mine/chat/completions?api-version=1",
        {"messages": MESSAGES, "temperature": 0.0},
        {"temperature": 0.0, "max_tokens": 20, "messages": ASKED},
    ),
    "an agent of Mistral": (
        f"{OPENAI}/agents/completions",
        {"agent_id": "a", "messages": MESSAGES},
        {"agent_id": "a", "max_tokens": 20, "messages": ASKED},
    ),
    "completions": (
        f"{OPENAI}/completions",
        {"model": "m", "prompt": ["MINE"], "suffix": "MINE", "echo": True, "best_of": 2, **DECODING, "max_tokens": 9},
        {"model": "m", **DECODING, "max_tokens": 20, "prompt": "Q?"},
    ),
    "responses": (
        f"{OPENAI}/responses",
        {
            "model": "m",
            "input": [{"role": "user", "content": "MINE"}],
            "instructions": "MINE",
            "previous_response_id": "resp-1",
            "conversation": "conv-1",
            "background": True,
            "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"format": {"type": "json_object"}},
            **DECODING,
            **MORE,
        },
        {
            "model": "m",
            **DECODING,
            "reasoning": {"effort": "low"},
            "max_output_tokens": 20,
            "input": "Q?",
            "store": False,
        },
    ),
    "messages": (
        f"{OPENAI}/messages",
        {
            "model": "m",
            "max_tokens": 500,
            "system": "MINE",
            "messages": MESSAGES[1:],
            "thinking": {"type": "enabled", "budget_tokens": 300},
            "temperature": 1,
            "stop_sequences": ["MINE"],
            **MORE,
        },
        {"model": "m", "temperature": 1, "max_tokens": 20, "messages": ASKED},
    ),
    "messages on Google's cloud": (
        "https://host/v1/projects/p/locations/l/publishers/anthropic/models/claude-x:streamRawPredict",
        {"anthropic_version": "vertex-1", "max_tokens": 500, "messages": MESSAGES[1:], "stream": True},
        {"anthropic_version": "vertex-1", "max_tokens": 20, "messages": ASKED},
    ),
    "generateContent": (
        f"{GEMINI}:streamGenerateContent?alt=sse",
        {
            "contents": [{"parts": [{"text": "MINE"}]}],
            "systemInstruction": {"parts": [{"text": "MINE"}]},
            "generationConfig": {
                "temperature": 0,
                "topK": 4,
                "candidateCount": 2,
                "stopSequences": ["MINE"],
                "responseSchema": {"title": "MINE"},
                "thinkingConfig": {"thinkingBudget": 0},
            },
            "cachedContent": "MINE",
        },
        {
            "contents": [{"role": "user", "parts": [{"text": "Q?"}]}],
            "generationConfig": {
                "temperature": 0,
                "topK": 4,
                "thinkingConfig": {"thinkingBudget": 0},
                "maxOutputTokens": 20,
            },
        },
    ),
    "Ollama's chat": (
        "http://host/api/chat",
        {
            "model": "m",
            "messages": MESSAGES,
            "options": {"temperature": 0, "num_ctx": 8192, "stop": ["MINE"]},
            "format": {"title": "MINE"},
            "keep_alive": "1h",
            "think": False,
        },
        {
            "model": "m",
            "think": False,
            "keep_alive": "1h",
            "messages": ASKED,
            "stream": False,
            "options": {"temperature": 0, "num_ctx": 8192, "num_predict": 20},
        },
    ),
    "Ollama's generate": (
        "http://host/api/generate",
        {"model": "m", "prompt": "MINE", "system": "MINE", "context": [1, 2], "images": ["MINE"]},
        {"model": "m", "prompt": "Q?", "stream": False, "options": {"num_predict": 20}},
    ),
    "Cohere": (
        "https://host/v2/chat",
        {"model": "m", "messages": MESSAGES, "k": 1, "p": 0.5, "documents": ["MINE"], "stream": True},
        {"model": "m", "p": 0.5, "k": 1, "max_tokens": 20, "stream": False, "messages": ASKED},
    ),
    "Cohere's older form": (
        "https://host/v1/chat",
        {"model": "m", "message": "MINE", "chat_history": [{"message": "MINE"}], "preamble": "MINE"},
        {"model": "m", "max_tokens": 20, "message": "Q?", "stream": False},
    ),
    "Bedrock converse": (
        f"{BEDROCK}/converse",
        {
            "messages": [{"role": "user", "content": [{"text": "MINE"}]}],
            "system": [{"text": "MINE"}],
            "inferenceConfig": {"temperature": 0, "maxTokens": 500, "stopSequences": ["MINE"]},
            "toolConfig": {"tools": TOOLS},
        },
        {
            "messages": [{"role": "user", "content": [{"text": "Q?"}]}],
            "inferenceConfig": {"temperature": 0, "maxTokens": 20},
        },
    ),
    "embeddings": (
        f"{OPENAI}/embeddings",
        {"model": "m", "input": ["MINE", "MINE"], "dimensions": 3, "encoding_format": "base64", "user": "MINE"},
        {"model": "m", "dimensions": 3, "encoding_format": "base64", "input": "Q?"},
    ),
    "text generation": (
        "https://host/anywhere",
        {"inputs": "MINE", "parameters": {"temperature": 0.1, "do_sample": False, "stop": ["MINE"], "details": True}},
        {"inputs": "Q?", "parameters": {"temperature": 0.1, "do_sample": False, "max_new_tokens": 20}},
    ),
    "text generation for a list": (
        "https://host/anywhere",
        {"inputs": ["MINE"], "parameters": {"max_new_tokens": 500}},
        {"inputs": ["Q?"], "parameters": {"max_new_tokens": 20}},
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_neighbour_asks_the_same_model_something_else_and_repeats_nothing(name: str) -> None:
    url, body, expected = BODIES[name]
    sampled = call(url, body)
    neighbour = sampled.plainly("Q?", 20)
    assert neighbour is not None
    assert json.loads(neighbour.body) == expected
    assert (neighbour.url, neighbour.family, neighbour.rewritten) == (url, sampled.family, True)
    assert b"MINE" not in neighbour.body
    again = call(url, expected)
    assert (again.family, again.stream) == (sampled.family, neighbour.stream)


def test_every_family_with_plain_questions_is_tried_above() -> None:
    tried = {call(url, body).family.name for url, body, _ in BODIES.values()}
    assert tried == {family.name for family in FAMILIES if family.plain is not None}
    assert {family.name for family in FAMILIES if family.plain is None} == {"Bedrock invoke"}


def test_without_a_limit_of_its_own_an_answer_is_limited_as_the_application_limits_it() -> None:
    sampled = call(f"{OPENAI}/chat/completions", {"model": "m", "messages": MESSAGES})
    limited = call(f"{OPENAI}/chat/completions", {"model": "m", "messages": MESSAGES, "max_completion_tokens": 500})
    bodies = [json.loads(found.plainly("Q?", None).body) for found in (sampled, limited)]
    assert bodies == [
        {"model": "m", "messages": ASKED},
        {"model": "m", "max_completion_tokens": 500, "messages": ASKED},
    ]


def test_what_settings_override_holds_for_neighbours_too() -> None:
    body = {"model": "m", "messages": MESSAGES, "temperature": 1}
    sampled = call(f"{OPENAI}/chat/completions", body, override={"model": "other", "temperature": 0, "logprobs": True})
    neighbour = sampled.plainly("Q?", 20)
    assert json.loads(neighbour.body) == {"model": "other", "temperature": 0, "max_tokens": 20, "messages": ASKED}


NONE = {
    "a gap in a text": (f"{OPENAI}/fim/completions", {"model": "m", "prompt": "def f(", "suffix": ")"}, {}),
    "a prompt that the provider keeps": (f"{OPENAI}/responses", {"prompt": {"id": "pmpt"}}, {}),
    "a form of Bedrock's own for each model": (f"{BEDROCK}/invoke", {"inputText": "a"}, {}),
    "an API that a hook reads": (f"{OPENAI}/own", {"ask": "a"}, {"output": lambda exchange: exchange.text}),
}


@pytest.mark.parametrize("name", NONE)
def test_of_some_requests_no_plain_question_can_be_made(name: str) -> None:
    url, body, rules = NONE[name]
    assert call(url, body, **rules).plainly("Q?", 20) is None


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_questions_have_about_as_many_words_as_wanted(seed: int, words: int) -> None:
    asked = question(random.Random(seed), words)
    assert max(1, words) <= len(asked.split()) <= max(words, 4) + 16
    assert asked.endswith("?")
    assert "{" not in asked


def test_questions_vary() -> None:
    chance = random.Random(1)
    assert len({question(chance, 1) for _ in range(200)}) == 20
    assert len({question(chance, 100) for _ in range(200)}) == 200


CHAT = call(f"{OPENAI}/chat/completions", {"model": "m", "messages": MESSAGES})


def test_a_neighbour_never_asks_what_is_sampled() -> None:
    asked = sorted({question(random.Random(seed), 1) for seed in range(300)})
    one = call(f"{OPENAI}/chat/completions", {"messages": [{"role": "user", "content": " ".join(asked[1:])}]})
    found = company()
    texts = {prompt(found.neighbour(found.route(one), one, None).call) for _ in range(50)}
    assert asked[0] in texts
    assert texts.isdisjoint(asked[1:])


def prompt(neighbour: ModelCall) -> str:
    return str(json.loads(neighbour.body)["messages"][0]["content"])


def test_lengths_of_questions_and_answers_vary_up_to_that_of_the_sampled_answer() -> None:
    found = company()
    route = found.route(CHAT)
    first = found.neighbour(route, CHAT, 500)
    assert json.loads(first.call.body)["max_tokens"] == crowd.SHORTEST_ANSWER
    assert first.words < 16
    found.answered(route)
    rest = [found.neighbour(route, CHAT, 500) for _ in range(500)]
    tokens = [json.loads(neighbour.call.body)["max_tokens"] for neighbour in rest]
    assert (min(tokens), 450 < max(tokens) <= 500) == (16, True)
    assert sum(count < 90 for count in tokens) == pytest.approx(250, abs=60)
    words = [neighbour.words for neighbour in rest]
    assert min(words) < 10
    assert 250 < max(words) < 330


# How many


@given(st.integers(0, 2**32), st.integers(1, 10), st.integers(0, 100))
def test_numbers_are_drawn_within_their_limits(seed: int, low: int, more: int) -> None:
    assert low <= spread(random.Random(seed), low, low + more) <= low + more


def test_small_numbers_are_drawn_as_often_as_large_ones() -> None:
    chance = random.Random(1)
    drawn = Counter(spread(chance, 1, 15) for _ in range(8000))
    octaves = [sum(drawn[number] for number in range(2**power, 2 ** (power + 1))) for power in range(4)]
    assert octaves == pytest.approx([2000] * 4, rel=0.1)
    assert set(drawn) == set(range(1, 16))


def company(most: int = 4, budget: Budget | None = None) -> Crowd:
    return Crowd(most, 1, budget)


def test_so_many_come_as_are_wanted_and_the_number_changes_within_the_time_of_a_call() -> None:
    found = company()
    route = found.route(CHAT)
    now, came, seen = 100.0, 0, []
    for _ in range(4000):
        before = now
        while not (wait := found.enter(route, now, 2.0)):
            came += 1
        # Half as long, or half as long again, as a fourth of what a call takes.
        now += wait
        assert 0 < now - before <= 0.75
        seen.append(found._in_flight)
        for _ in range(found._in_flight):
            found.leave()
    assert found.count == NeighbourCount(came)
    assert set(seen) == {0, 1, 2, 3, 4}
    assert now - 100 == pytest.approx(4000 * 0.5, rel=0.05)


def test_those_in_flight_are_no_more_than_wanted() -> None:
    found = company(most=3)
    route = found.route(CHAT)
    now = 100.0
    for _ in range(500):
        now += found.enter(route, now, 1.0)
    assert found._in_flight == found.count.calls == 3


def test_while_nobody_knows_how_long_a_call_takes_the_first_guess_is_short() -> None:
    found = company()
    route = found.route(CHAT)
    while not (wait := found.enter(route, 100.0, None)):
        pass
    assert wait <= 1.5 * crowd.FIRST_GUESS


# Budget and pace


def settings(**given: str) -> Any:
    return resolve(from_text(given, {}, "pytest.ini")[0], {}, {})


def test_a_turn_is_left_to_whoever_waits_for_it_but_for_every_third() -> None:
    budget = Budget(settings(rate="1/s"))
    found = company(most=1, budget=budget)
    route = found.route(CHAT)
    found._wanted, found._until = 1, 1000.0
    assert budget.take(100.0) == 0
    found.sampled()
    # A turn that has just come free is not taken, one that nobody wanted is.
    assert found.enter(route, 100.9, 3.0) == pytest.approx(0.15)
    assert found.enter(route, 101.0, 3.0) == pytest.approx(0.05)
    assert found.enter(route, 101.06, 3.0) == 0
    found.leave()
    for now in (102.06, 103.06):
        assert budget.take(now) == 0
        found.sampled()
    assert found.enter(route, 104.05, 3.0) == pytest.approx(0.01)
    assert found.enter(route, 104.06, 3.0) == 0
    assert found.count == NeighbourCount(2)


@pytest.mark.parametrize("shared", [False, True])
def test_a_turn_that_is_taken_late_does_not_bring_the_next_one_forward(tmp_path: Path, shared: bool) -> None:
    share(tmp_path)
    with closing(Budget(settings(rate="1/s"), tmp_path if shared else None)) as budget:
        assert budget.take(100.0, free_for=0.05) == 0
        assert budget.take(101.03, free_for=0.05) == pytest.approx(0.02)
        assert budget.take(101.06, free_for=0.05) == 0
        assert budget.take(102.0) == pytest.approx(0.06)


def test_with_no_call_left_no_neighbour_comes_any_more() -> None:
    found = company(budget=Budget(settings(max_calls="1")))
    route = found.route(CHAT)
    found._wanted, found._until = 4, 1000.0
    assert found.enter(route, 100.0, 1.0) == 0
    assert found.enter(route, 100.0, 1.0) is None
    with pytest.raises(Refusal, match="max_calls=1"):
        found.enter_first(route, 100.0)
    assert found.count == NeighbourCount(1)


# Neighbours that fail


def test_after_a_failure_there_are_none_for_a_while_and_longer_after_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "time", SimpleNamespace(monotonic=lambda: 100.0))
    found = company()
    route = found.route(CHAT)
    found._wanted, found._until = 4, 1000.0
    neighbour = found.neighbour(route, CHAT, None)
    for pause in (0.25, 0.5, 1.0):
        found.failed(route, neighbour, 429, "HTTP 429: slow down")
        assert found.enter(route, 100.0, 1.0) == found.enter_first(route, 100.0) == pause
    assert (found.count, route.failed) == (NeighbourCount(0, 3, "HTTP 429: slow down"), 3)
    found.answered(route)
    assert route.failed == 0
    other = found.route(call(f"{OPENAI}/responses", {"model": "m", "input": "a"}))
    assert found.enter(other, 100.0, 1.0) == 0


def test_neighbours_that_fail_together_are_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0] * 5 + [101.0, 101.5, 102.0])
    monkeypatch.setattr(crowd, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = company()
    route = found.route(CHAT)
    together = [found.neighbour(route, CHAT, None) for _ in range(5)]
    for neighbour in together:
        found.failed(route, neighbour, 429, "HTTP 429")
    assert (found.count.failures, route.failed, route.held_until) == (5, 1, 101.25)
    found.failed(route, found.neighbour(route, CHAT, None), 429, "HTTP 429")
    assert route.failed == 2


def test_a_limit_that_is_refused_at_first_is_left_out() -> None:
    found = company()
    route = found.route(CHAT)
    found.failed(route, found.neighbour(route, CHAT, None), 400, "HTTP 400: use max_completion_tokens")
    assert json.loads(found.neighbour(route, CHAT, None).call.body).keys() == {"model", "messages"}


def test_a_question_that_is_refused_later_may_have_been_too_long() -> None:
    found = company()
    route = found.route(CHAT)
    found.answered(route)
    neighbour = next(one for _ in range(500) if (one := found.neighbour(route, CHAT, None)).words > 200)
    found.failed(route, neighbour, 400, "HTTP 400: too long")
    assert max(found.neighbour(route, CHAT, None).words for _ in range(200)) <= neighbour.words // 2 + 16


def test_the_finding_says_how_many_failed_and_how() -> None:
    assert neighbours_failed(95, 12, "HTTP 429: slow down") == Finding(
        "neighbours-failed",
        "12 of 95 neighbours failed (HTTP 429: slow down), so the crowd was thinner than meant; ask for fewer with"
        " neighbours, or for less at once",
    )
    assert neighbours_failed(95, 0, "") is None
