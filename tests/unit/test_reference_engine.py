"""The network, its routing and the running batch of the reference server."""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.reference import FINGERPRINT, MODELS, routing, words
from pytest_llm_determinism.reference.engine import BatchLog, Composition, Engine, Generation, Sampling
from pytest_llm_determinism.reference.model import EXPERTS, Network, Span, Weight, build

STABLE = ("dense", "moe-dropless", "loop")
PROMPTS = [
    words.encode(text)
    for text in (
        "Write a short story about a fox",
        "What is the capital of France?",
        "ocean",
        "user: tell me a joke\nassistant:",
        "the old house by the river was quiet " * 9,
        "1 + 1 = ?",
    )
]


def decode_together(network: Network, arrivals: Sequence[tuple[int, list[int]]], length: int) -> list[list[int]]:
    """Greedy answers of requests that join at given steps: the engine without threads."""
    waiting = sorted(enumerate(arrivals), key=lambda item: item[1][0])
    running: list[tuple[int, Span]] = []
    answers: list[list[int]] = [[] for _ in arrivals]
    step = 0
    while waiting or running:
        while waiting and waiting[0][1][0] <= step:
            number, (_, prompt) = waiting.pop(0)
            slot = min(set(range(len(arrivals))) - {span.slot for _, span in running})
            running.append((number, Span(slot, prompt, 0, len(prompt))))
        step += 1
        if not running:
            continue
        chosen = network.forward([span for _, span in running]).logits.argmax(axis=1).tolist()
        following = []
        for (number, span), token in zip(running, chosen, strict=True):
            answers[number].append(token)
            if token != words.END_OF_TEXT and len(answers[number]) < length:
                following.append((number, Span(span.slot, [token], span.offset + len(span.tokens), span.prompt)))
        running = following
    return answers


def alone(network: Network, prompt: list[int], length: int) -> list[int]:
    return decode_together(network, [(0, prompt)], length)[0]


def spread(count: int, length: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(length) for _ in range(count)]


# --- the network ---


@pytest.mark.parametrize("name", STABLE)
def test_rows_do_not_depend_on_what_shares_the_step(name: str) -> None:
    network = build(name, slots=24)
    expected = [alone(network, prompt, 40) for prompt in PROMPTS]
    for seed, count in enumerate((2, 5, 8, 13, 24)):
        source = random.Random(seed)
        chosen = [source.randrange(len(PROMPTS)) for _ in range(count)]
        starts = spread(count, 40, seed)
        answers = decode_together(
            network, [(start, PROMPTS[number]) for start, number in zip(starts, chosen, strict=True)], 40
        )
        assert answers == [expected[number] for number in chosen]


@pytest.mark.parametrize("name", STABLE)
def test_logits_are_equal_to_the_last_bit_in_any_company(name: str) -> None:
    network = build(name, slots=32)
    spans = [Span(slot, PROMPTS[slot % 6] + [slot + 1], 0, len(PROMPTS[slot % 6])) for slot in range(32)]
    single = np.concatenate([network.forward([span]).logits for span in spans])
    assert np.array_equal(network.forward(spans).logits, single)
    assert np.array_equal(network.forward(spans[::-1]).logits[::-1], single)


def test_half_precision_is_stable_alone_and_in_lockstep_and_not_when_starts_are_spread() -> None:
    network = build("dense-fp16", slots=8)
    for prompt in PROMPTS[:3]:
        single = alone(network, prompt, 64)
        assert alone(network, prompt, 64) == single
        lockstep = decode_together(network, [(0, prompt)] * 8, 64)
        assert all(answer == lockstep[0] for answer in lockstep)
        several = decode_together(network, [(start, prompt) for start in spread(8, 64, 3)], 64)
        assert len({tuple(answer) for answer in [single, *several]}) > 1


def test_half_precision_is_the_same_network() -> None:
    fixed, half = build("dense", slots=1), build("dense-fp16", slots=1)
    differences = []
    for prompt in PROMPTS:
        a, b = (network.forward([Span(0, prompt, 0, len(prompt))]).logits[0, 1:] for network in (fixed, half))
        differences.append(float(np.corrcoef(a, b)[0, 1]))
    assert min(differences) > 0.9


def test_identical_batches_give_identical_answers_with_capacity() -> None:
    network = build("moe-capacity", slots=12)
    arrivals = [(start, PROMPTS[number % 6]) for number, start in enumerate(spread(12, 30, 5))]
    assert decode_together(network, arrivals, 48) == decode_together(network, arrivals, 48)


def test_a_larger_capacity_factor_gives_fewer_answers_and_a_huge_one_gives_one() -> None:
    prompt = PROMPTS[0]
    unique = []
    for factor in (1.0, 2.5, 1000.0):
        network = build("moe-capacity", slots=16, capacity_factor=factor)
        answers = [alone(network, prompt, 48)]
        for seed in (1, 2):
            answers += decode_together(network, [(start, prompt) for start in spread(10, 48, seed)], 48)
        unique.append(len({tuple(answer) for answer in answers}))
    assert unique[0] > unique[1] > unique[2] == 1


def test_a_huge_capacity_is_no_capacity() -> None:
    capacity, dropless = (build(name, slots=1, capacity_factor=1e6) for name in ("moe-capacity", "moe-dropless"))
    assert [alone(capacity, prompt, 20) for prompt in PROMPTS] == [alone(dropless, prompt, 20) for prompt in PROMPTS]


def test_a_step_tells_whose_tokens_found_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    kept = routing.kept

    def watched(experts: Any, limit: int, count: int) -> Any:
        room = kept(experts, limit, count)
        seen.append((room, np.bincount(experts[room]).max()))
        return room

    monkeypatch.setattr(routing, "kept", watched)
    network = build("moe-capacity", slots=6, capacity_factor=1.25)
    step = network.forward([Span(slot, prompt, 0, len(prompt)) for slot, prompt in enumerate(PROMPTS)])

    expected, row = [], 0
    for prompt in PROMPTS:
        expected.append(sum(int((~room[row : row + len(prompt)]).sum()) for room, _ in seen))
        row += len(prompt)
    assert len(seen) == 2
    assert step.dropped == expected
    assert sum(expected) > 0
    assert step.capacity == max(fullest for _, fullest in seen) == math.ceil(1.25 * row * 2 / EXPERTS)


def test_a_step_without_overflow_drops_nothing() -> None:
    single = [Span(0, PROMPTS[0], 0, len(PROMPTS[0]))]
    assert build("moe-capacity", slots=1, capacity_factor=4.0).forward(single).dropped == ()
    assert build("moe-dropless", slots=1).forward(single).capacity is None


@pytest.mark.parametrize("count", [1, 3, 8, 24])
def test_a_step_tells_into_how_many_parts_products_were_split(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    parts = Weight.parts
    monkeypatch.setattr(Weight, "parts", lambda weight, count: asked.append(count) or parts(weight, count))
    network = build("dense-fp16", slots=24)
    network.forward([Span(slot, PROMPTS[0], 0, len(PROMPTS[0])) for slot in range(count)])
    asked.clear()
    step = network.forward([Span(slot, [slot + 1], len(PROMPTS[0]), len(PROMPTS[0])) for slot in range(count)])
    assert set(asked) == {step.parts}
    assert step.parts == math.ceil(32 / count)
    assert build("dense", slots=1).forward([Span(0, PROMPTS[0], 0, len(PROMPTS[0]))]).parts is None


@pytest.mark.parametrize("name", [name for name in MODELS if name != "loop"])
def test_answers_vary_and_end(name: str) -> None:
    network = build(name, slots=1)
    answers = [alone(network, prompt, 200) for prompt in PROMPTS]
    assert len({tuple(answer[:12]) for answer in answers}) == len(answers)
    assert all(len(answer) >= 24 for answer in answers)
    assert sum(answer[-1] == words.END_OF_TEXT for answer in answers) >= len(answers) - 1
    assert all(len(set(answer)) > 0.4 * len(answer) for answer in answers)


def test_the_loop_collapses_and_still_depends_on_the_prompt() -> None:
    network = build("loop", slots=1)
    answers = [alone(network, prompt, 100) for prompt in PROMPTS]
    assert all(len(set(answer[-40:])) <= 12 for answer in answers)
    assert len({tuple(answer) for answer in answers}) > 3


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no model 'gpt-4'; there are dense, "):
        build("gpt-4", slots=1)


def test_the_fingerprint_stands_for_this_arithmetic() -> None:
    """Answers are the same on every machine. Whoever changes them gives `FINGERPRINT` a new number, and this."""
    answers = {name: [alone(build(name, slots=1), prompt, 32) for prompt in PROMPTS] for name in MODELS}
    digest = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()[:16]
    assert (FINGERPRINT, digest) == ("reference-1", "a95d7a8799499282")


# --- routing ---


@given(st.floats(0.01, 8), st.integers(1, 500), st.integers(2, 16))
def test_capacity_is_the_share_of_the_step(factor: float, tokens: int, experts: int) -> None:
    assert routing.capacity(factor, tokens, experts) == math.ceil(factor * tokens * 2 / experts)
    assert routing.capacity(factor, tokens, experts) >= 1


@st.composite
def choices(draw: st.DrawFn) -> list[list[int]]:
    pair = st.lists(st.integers(0, EXPERTS - 1), min_size=2, max_size=2, unique=True)
    return draw(st.lists(pair, min_size=1, max_size=40))


@given(choices(), st.integers(1, 12))
def test_overflow_is_dropped_in_batch_order(experts: list[list[int]], limit: int) -> None:
    filled = [0] * EXPERTS
    expected = []
    for pair in experts:
        row = []
        for expert in pair:
            row.append(filled[expert] < limit)
            filled[expert] += 1
        expected.append(row)
    assert routing.kept(np.array(experts), limit, EXPERTS).tolist() == expected


@given(st.lists(st.lists(st.integers(-40, 40), min_size=EXPERTS, max_size=EXPERTS), min_size=1, max_size=20))
def test_the_two_best_experts_are_chosen(scores: list[list[int]]) -> None:
    experts, gates = routing.choose(np.array(scores, dtype=np.float64) / 8)
    for row, chosen, shares in zip(scores, experts.tolist(), gates.tolist(), strict=True):
        best = sorted(range(EXPERTS), key=lambda expert: (-row[expert], expert))[:2]
        assert chosen == best
        assert sum(shares) == 1
        lead = (row[best[0]] - row[best[1]]) / 8
        assert shares[0] == pytest.approx(1 / (1 + math.exp(-lead)), abs=0.005)


# --- the running batch ---


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(build("dense", slots=32))
    yield engine
    engine.close()


def ask(engine: Engine, *prompts: list[int], **sampling: object) -> list[Generation]:
    done = threading.Event()
    generations = [
        Generation(prompt, Sampling(**{"max_tokens": 32, "temperature": 0.0} | sampling), done.set)  # type: ignore[arg-type]
        for prompt in prompts
    ]
    engine.submit(generations)
    finish(generations, done)
    return generations


def finish(generations: Sequence[Generation], done: threading.Event) -> None:
    while not all(generation.done for generation in generations):
        assert done.wait(10)
        done.clear()


def test_the_engine_answers_as_the_network_does(engine: Engine) -> None:
    expected = [alone(build("dense", slots=1), prompt, 32) for prompt in PROMPTS]
    generations = ask(engine, *PROMPTS)
    assert [generation.text for generation in generations] == [words.decode(answer) for answer in expected]
    assert {generation.finish_reason for generation in generations} == {"length"}


def test_more_requests_than_places_are_all_answered(engine: Engine) -> None:
    generations = ask(engine, *PROMPTS * 12, max_tokens=5)
    assert {generation.finish_reason for generation in generations} == {"length"}
    assert len({generation.text for generation in generations}) == len(PROMPTS)


def test_requests_of_one_call_travel_in_lockstep() -> None:
    engine = Engine(build("dense-fp16", slots=8))
    try:
        for prompt in PROMPTS[:3]:
            assert len({generation.text for generation in ask(engine, *[prompt] * 8, max_tokens=48)}) == 1
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("name", "factor", "capacities", "parts"),
    [
        ("dense", 2.5, [None] * 4, [None] * 4),
        ("dense-fp16", 2.5, [None] * 4, [2, 11, 16, 32]),
        ("moe-dropless", 2.5, [None] * 4, [None] * 4),
        ("moe-capacity", 4.0, [18, 3, 2, 1], [None] * 4),
        ("moe-capacity", 2.5, [12, 2, 2, 1], [None] * 4),
    ],
    ids=["dense", "dense-fp16", "moe-dropless", "room-for-all", "moe-capacity"],
)
def test_the_log_tells_who_shared_the_batch(
    name: str, factor: float, capacities: list[int | None], parts: list[int | None]
) -> None:
    engine = Engine(build(name, slots=8, capacity_factor=factor))
    done = threading.Event()
    single, double = BatchLog(), BatchLog()
    asked = [(PROMPTS[0], 5, single), (PROMPTS[0], 3, double), (PROMPTS[2] * 4, 8, double)]
    generations = [Generation(prompt, Sampling(limit, temperature=0.0), done.set, log) for prompt, limit, log in asked]
    try:
        engine.submit(generations)
        finish(generations, done)
    finally:
        engine.close()
    shared = list(zip([3, 3, 2, 1], [18, 3, 2, 1], capacities, parts, strict=True))

    def stretches(own: list[int], steps: list[int]) -> list[tuple[Composition, int]]:
        return [
            (Composition(sequences, mine, *others), lasted)
            for mine, (sequences, *others), lasted in zip(own, shared, steps, strict=False)
        ]

    assert single.stretches == stretches([1, 1, 1], [1, 2, 2])
    assert double.stretches == stretches([2, 2, 1, 1], [1, 2, 2, 3])
    dropped = [drop for generation in generations for drop in generation.dropped]
    assert double.dropped == sum(times for _, times in dropped)
    assert single.dropped == sum(times for step, times in dropped if step < 5)


def test_what_was_not_dropped_is_as_if_there_were_no_capacity() -> None:
    """All that company can change are the drops: up to the first one an answer is that of `moe-dropless`."""
    dropless = build("moe-dropless", slots=1)
    engine = Engine(build("moe-capacity", slots=32), max_batch=32)
    done = threading.Event()
    source = random.Random(4)

    def group(size: int) -> list[Generation]:
        prompt = PROMPTS[source.randrange(4)]
        return [Generation(prompt, Sampling(48, temperature=0.0), done.set, every_token=True) for _ in range(size)]

    asked: list[Generation] = []
    try:
        for size in (8, 1, 1, 2, 1, 3, 1, 1):
            joining = group(size)
            engine.submit(joining)
            asked += joining
            wanted = source.randrange(1, 6)
            while not joining[-1].done and len(joining[-1].tokens) < wanted:  # the next ones join some steps later
                assert done.wait(10)
                done.clear()
        finish(asked, done)
    finally:
        engine.close()
    untouched = 0
    for generation in asked:
        expected = [token for token in alone(dropless, list(generation.prompt), 48) if token != words.END_OF_TEXT]
        first = generation.dropped[0][0] if generation.dropped else None
        assert [token.id for token in generation.tokens][:first] == expected[:first]
        untouched += not generation.dropped
    assert 0 < untouched < len(asked)


def test_a_seed_fixes_the_draw(engine: Engine) -> None:
    def drawn(seed: int | None) -> str:
        return ask(engine, PROMPTS[0], temperature=1.0, seed=seed)[0].text

    assert drawn(1) == drawn(1) != drawn(2)
    assert len({drawn(None) for _ in range(3)}) == 3


def test_a_small_nucleus_or_temperature_is_greedy(engine: Engine) -> None:
    (greedy,) = ask(engine, PROMPTS[0])
    assert ask(engine, PROMPTS[0], temperature=1.0, top_p=0.0)[0].text == greedy.text
    assert ask(engine, PROMPTS[0], temperature=1e-9)[0].text == greedy.text


def test_bias_forbids_and_forces(engine: Engine) -> None:
    first = ask(engine, PROMPTS[0])[0].tokens[0].id
    assert first not in {token.id for token in ask(engine, PROMPTS[0], logit_bias=((first, -100.0),))[0].tokens}
    forced = ask(engine, PROMPTS[0], logit_bias=((first, 100.0),), max_tokens=4)[0]
    assert [token.id for token in forced.tokens] == [first] * 4
    penal = ask(engine, PROMPTS[0], logit_bias=((first, 30.0),), max_tokens=4, presence_penalty=60.0)[0]
    assert len({token.id for token in penal.tokens}) == 4


def test_a_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    (whole,) = ask(engine, PROMPTS[0])
    word = whole.tokens[5].text
    cut = whole.text.index(word)
    (stopped,) = ask(engine, PROMPTS[0], stop=("nowhere", word))
    assert (stopped.text, stopped.finish_reason) == (whole.text[:cut], "stop")
    across = whole.tokens[3].text[-1] + whole.tokens[4].text[:2]
    (stopped,) = ask(engine, PROMPTS[0], stop=(across,))
    assert stopped.text == whole.text[: whole.text.index(across)]


def test_what_may_begin_a_stop_string_is_held_back(engine: Engine) -> None:
    (whole,) = ask(engine, PROMPTS[0])
    stop = whole.tokens[3].text + whole.tokens[4].text + "!?"
    seen: list[tuple[str, int]] = []
    done = threading.Event()

    def progress() -> None:
        seen.append((generation.text, generation.visible))
        if generation.done:
            done.set()

    generation = Generation(PROMPTS[0], Sampling(max_tokens=8, temperature=0, stop=(stop,)), progress, every_token=True)
    engine.submit([generation])
    assert done.wait(10)
    start = whole.text.index(whole.tokens[3].text)
    assert seen[3][1] == start < len(seen[3][0])
    assert seen[4][1] == start
    assert seen[-1] == (generation.text, len(generation.text))
    assert generation.finish_reason == "length"


def test_logprobs_are_a_distribution(engine: Engine) -> None:
    (generation,) = ask(engine, PROMPTS[1], top_logprobs=words.VOCABULARY_SIZE, max_tokens=3)
    for token in generation.tokens:
        assert math.fsum(math.exp(logprob) for _, _, logprob in token.top) == pytest.approx(1)
        assert token.top[0] == (token.id, token.text, token.logprob)
        assert [logprob for *_, logprob in token.top] == sorted((logprob for *_, logprob in token.top), reverse=True)


def test_who_went_away_leaves_the_batch(engine: Engine) -> None:
    gone = Generation(PROMPTS[0], Sampling(max_tokens=4000, temperature=0, logit_bias=((0, -100.0),)), lambda: None)
    engine.submit([gone])
    while len(gone.tokens) < 3:
        time.sleep(0.001)
    gone.cancel()
    ask(engine, PROMPTS[1], max_tokens=4)
    length = len(gone.tokens)
    ask(engine, PROMPTS[1], max_tokens=4)
    assert len(gone.tokens) == length
    assert not engine._running
    assert sorted(engine._slots) == list(range(32))


def test_an_idle_engine_does_no_work(engine: Engine) -> None:
    ask(engine, PROMPTS[1], max_tokens=1)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1


def test_a_failing_step_fails_its_requests_and_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = ask(engine, PROMPTS[0])
    with monkeypatch.context() as patch:
        patch.setattr(engine.network, "forward", lambda spans: 1 / 0)
        (failed,) = ask(engine, PROMPTS[0])
    assert isinstance(failed.error, ZeroDivisionError)
    assert ask(engine, PROMPTS[0])[0].text == before.text


def test_a_closed_engine_takes_nothing() -> None:
    engine = Engine(build("loop", slots=1), max_batch=1)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([])
