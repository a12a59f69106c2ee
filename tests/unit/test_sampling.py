"""What a run is given, what is fetched ahead for the runs after it, and what counts as its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import WINDOW, Ask, Plan, Received, Sampler
from pytest_llm_determinism.shapes import ModelCall, recognise
from pytest_llm_determinism.store import Sample, SampleStore, sample_key

URL = "https://api.test/v1/chat/completions"


def plan(**changes: object) -> Plan:
    settings = {
        "load": "burst",
        "attempt": 0,
        "runs": 5,
        "concurrency": 8,
        "cache": "auto",
        "not_before": 0.0,
        "seed": 1,
    }
    return Plan(**(settings | changes))  # type: ignore[arg-type]


def sampler(store: SampleStore | None = None, **changes: object) -> Sampler:
    return Sampler(plan(**changes), store)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    opened = SampleStore(tmp_path / "store")
    yield opened
    opened.close()


def question(prompt: str) -> ModelCall:
    body = {"messages": [{"role": "user", "content": prompt}]}
    found = recognise("POST", URL, json.dumps(body).encode())
    assert found is not None
    return found


def says(text: str, status: int = 200, at: float = 1000.0, seconds: float = 0.5) -> Sample:
    choices = [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]
    return Sample.of(
        status, [("content-type", "application/json")], json.dumps({"choices": choices}).encode(), at, seconds
    )


def told(ask: Ask, text: str) -> None:
    """The model answers the run's own call, unless its sample is at hand."""
    if ask.known is not None:
        ask.answered(ask.known)
        return
    ask.sent()
    sample = says(text)
    ask.concluded(Received(sample, known=ask.keep(ask.run.index, sample)))


def asks(running: Sampler, prompt: str, answer: str = "yes") -> list[int]:
    """The active run asks and is answered; the runs fetched ahead for, all answered alike."""
    ask = running.ask(question(prompt))
    ahead = [] if ask.known is not None else ask.ahead()
    for run in ahead:
        ask.keep(run, says(answer))
    told(ask, answer)
    return ahead


def run(running: Sampler, index: int, *steps: tuple[str, str]) -> Run:
    running.start_run(index)
    for prompt, answer in steps:
        asks(running, prompt, answer)
    return running.finish_run()


# Who is fetched ahead


def test_the_first_run_travels_alone_and_the_second_fetches_for_all_later_ones() -> None:
    running = sampler()
    ahead = []
    for index in range(5):
        running.start_run(index)
        ahead.append(asks(running, "capital?"))
        running.finish_run()
    assert ahead == [[], [2, 3, 4], [], [], []]


def test_nothing_is_fetched_ahead_one_at_a_time() -> None:
    running = sampler(concurrency=1)
    run(running, 0, ("capital?", "yes"))
    running.start_run(1)
    assert asks(running, "capital?") == []


def test_a_prompt_that_differs_in_every_run_is_never_fetched_ahead() -> None:
    running = sampler()
    for index in range(5):
        running.start_run(index)
        assert asks(running, f"capital at {index} o'clock?") == []
        running.finish_run()


def test_a_prompt_that_only_one_earlier_run_of_several_asked_is_not_fetched_ahead() -> None:
    running = sampler(runs=9)
    run(running, 0, ("a?", "yes"))
    run(running, 1, ("b?", "yes"))
    run(running, 2, ("c?", "yes"))
    running.start_run(3)
    assert asks(running, "a?") == []


def test_no_more_than_the_batch_is_fetched_ahead() -> None:
    running = sampler(runs=30, batch=3)
    run(running, 0, ("capital?", "yes"))
    running.start_run(1)
    assert asks(running, "capital?") == [2, 3]


def test_what_is_held_in_memory_does_not_grow_with_the_runs() -> None:
    running = sampler(runs=10 * WINDOW)
    run(running, 0, ("capital?", "yes"))
    running.start_run(1)
    assert len(running.ask(question("capital?")).ahead()) <= WINDOW


def test_at_a_later_step_only_runs_that_were_told_the_same_are_fetched_for() -> None:
    running = sampler(runs=6)
    answers = ["left", "left", "left", "right", "left", "right"]
    run(running, 0, ("where?", answers[0]), ("and left?", "yes"))

    running.start_run(1)
    first = running.ask(question("where?"))
    assert first.ahead() == [2, 3, 4, 5]
    for index in first.ahead():
        first.keep(index, says(answers[index]))
    told(first, answers[1])
    assert asks(running, "and left?") == [2, 4]
    running.finish_run()

    assert run(running, 2, ("where?", ""), ("and left?", "")).exchanges[0].output == "left"
    running.start_run(3)
    told(running.ask(question("where?")), "")
    assert asks(running, "and right?") == []  # the first to be told so
    running.finish_run()
    run(running, 4, ("where?", ""), ("and left?", ""))
    run(running, 5, ("where?", ""), ("and right?", "yes"))
    assert running.calls.live == 6  # runs 0 and 1 both steps, runs 3 and 5 one each; runs 2 and 4 found theirs


def test_a_step_whose_earlier_answer_is_not_known_yet_is_not_fetched_for() -> None:
    running = sampler()
    run(running, 0, ("where?", "left"), ("and left?", "yes"))
    running.start_run(1)
    told(running.ask(question("where?")), "left")  # a client that cannot be used for more than its own call
    assert asks(running, "and left?") == []


def test_a_run_that_ended_in_an_error_is_no_example_for_the_others() -> None:
    running = sampler()
    running.start_run(0)
    running.ask(question("capital?")).failed("HTTP 500")
    running.finish_run()
    running.start_run(1)
    assert asks(running, "capital?") == []
    running.finish_run()
    running.start_run(2)
    assert asks(running, "capital?") == [3, 4]


@pytest.mark.parametrize("status", [400, 401, 404, 429])
def test_after_a_refusal_by_the_server_no_more_is_fetched_ahead_for_that_request(status: int) -> None:
    running = sampler(runs=9)
    run(running, 0, ("a?", "yes"), ("b?", "yes"))
    running.start_run(1)
    ask = running.ask(question("a?"))
    assert ask.ahead()
    assert ask.keep(2, says("too many requests", status)) is None
    assert ask.ahead() == []
    told(ask, "yes")
    running.finish_run()
    running.start_run(2)
    assert running.ask(question("a?")).ahead() == []


def test_a_server_that_fails_may_be_asked_ahead_again() -> None:
    running = sampler()
    run(running, 0, ("a?", "yes"))
    running.start_run(1)
    ask = running.ask(question("a?"))
    ask.keep(2, says("out of order", 500))
    assert ask.ahead() == [2, 3, 4]


def test_what_was_fetched_ahead_is_not_fetched_again() -> None:
    running = sampler()
    run(running, 0, ("a?", "yes"))
    running.start_run(1)
    ask = running.ask(question("a?"))
    ask.keep(3, says("yes"))
    assert ask.ahead() == [2, 4]


# The same request twice


def test_the_same_request_twice_in_one_run_is_two_exchanges() -> None:
    running = sampler()
    found = run(running, 0, ("capital?", "Paris"), ("capital?", "Lyon"))
    assert [(exchange.occurrence, exchange.output) for exchange in found.exchanges] == [(0, "Paris"), (1, "Lyon")]


def test_a_failed_try_and_its_retry_are_one_exchange_without_an_error() -> None:
    running = sampler()
    running.start_run(0)
    running.ask(question("capital?")).failed("HTTP 500")
    told(running.ask(question("capital?")), "Paris")
    found = running.finish_run()
    assert [exchange.occurrence for exchange in found.exchanges] == [0]
    assert found.error is None


def test_identical_requests_at_once_are_told_apart_and_a_retry_takes_the_place_of_its_try() -> None:
    running = sampler()
    running.start_run(0)
    first, second, third = (running.ask(question("capital?")) for _ in range(3))
    told(second, "b")
    first.failed("ReadTimeout")
    again = running.ask(question("capital?"))
    told(third, "c")
    told(again, "a")
    found = running.finish_run()
    assert [(exchange.occurrence, exchange.output) for exchange in found.exchanges] == [(0, "a"), (1, "b"), (2, "c")]
    assert found.error is None


def test_exchanges_stand_in_the_order_in_which_they_were_started() -> None:
    running = sampler()
    running.start_run(0)
    first, second = running.ask(question("a?")), running.ask(question("b?"))
    told(second, "b")
    told(first, "a")
    assert [exchange.output for exchange in running.finish_run().exchanges] == ["a", "b"]


def test_a_call_that_was_given_up_is_neither_an_answer_nor_an_error() -> None:
    running = sampler()
    running.start_run(0)
    running.ask(question("a?")).abandoned()
    told(running.ask(question("a?")), "yes")
    running.ask(question("b?")).abandoned()
    found = running.finish_run()
    assert [(exchange.occurrence, exchange.output) for exchange in found.exchanges] == [(0, "yes")]
    assert found.error is None


def test_equal_exchanges_are_one_object() -> None:
    running = sampler()
    runs = [run(running, index, ("a?", "yes" * 100)) for index in range(5)]
    assert len({id(found.exchanges[0]) for found in runs}) == 1


# Errors


@pytest.mark.parametrize(
    ("received", "error"),
    [
        (Received(says("out of order", 500)), "HTTP 500: "),
        (Received(Sample.of(503, [], b"<html>\n hello", 0, 0)), "HTTP 503: <html> hello"),
        (Received(says("half"), broken=OSError("reset")), "OSError: reset"),
    ],
)
def test_an_error_that_lasts_is_the_runs_error_whatever_else_it_was_told(received: Received, error: str) -> None:
    running = sampler()
    running.start_run(0)
    running.ask(question("a?")).concluded(received)
    told(running.ask(question("b?")), "yes")
    assert running.finish_run().error.startswith(error)


def test_an_error_belongs_to_its_run_alone() -> None:
    running = sampler()
    running.start_run(0)
    running.ask(question("a?")).failed("HTTP 500")
    assert running.finish_run().error == "HTTP 500"
    assert run(running, 1, ("a?", "yes")).error is None


@pytest.mark.parametrize("sample", [says("oops", 500), says("oops", 429), Sample.of(200, [], b"<html>", 0, 0)])
def test_what_is_no_answer_is_never_kept(store: SampleStore, sample: Sample) -> None:
    running = sampler(store)
    running.start_run(0)
    ask = running.ask(question("a?"))
    assert ask.keep(0, sample) is None
    assert ask.keep(1, sample) is None
    ask.abandoned()
    assert running.ask(question("a?")).known is None
    assert not store.directory.exists()


# The store


def test_each_run_gets_its_own_sample_from_the_store(store: SampleStore) -> None:
    first = sampler(store, concurrency=1)
    for index in range(3):
        run(first, index, ("a?", f"answer {index}"))

    again = sampler(store)
    outputs = [run(again, index, ("a?", "not asked")).exchanges[0].output for index in range(3)]

    assert outputs == ["answer 0", "answer 1", "answer 2"]
    assert (again.calls.live, again.calls.cached, again.calls.oldest) == (0, 3, 1000.0)
    assert again.calls.oldest_sample() == "1970-01-01T00:16:40+00:00"


def test_what_was_fetched_ahead_in_this_experiment_is_live_and_not_from_the_store(store: SampleStore) -> None:
    running = sampler(store, concurrency=8)
    for index in range(5):
        run(running, index, ("a?", "yes"))
    assert running.calls.cached == 0


@pytest.mark.parametrize("changes", [{"load": "solo"}, {"attempt": 1}])
def test_samples_of_another_load_or_attempt_are_not_used(store: SampleStore, changes: dict[str, object]) -> None:
    run(sampler(store), 0, ("a?", "yes"))
    other = sampler(store, **changes)
    other.start_run(0)
    assert other.ask(question("a?")).known is None


def test_samples_that_are_too_old_are_asked_again(store: SampleStore) -> None:
    run(sampler(store), 0, ("a?", "yes"))
    later = sampler(store, not_before=1000.5)
    later.start_run(0)
    assert later.ask(question("a?")).known is None


def test_without_a_store_nothing_is_kept_for_the_next_experiment(store: SampleStore) -> None:
    run(sampler(store, cache="off"), 0, ("a?", "yes"))
    assert not store.directory.exists()


def test_a_stored_sample_that_is_no_answer_is_asked_again(store: SampleStore) -> None:
    store.write(sample_key(question("a?").key, "burst", 0, 0, 0), Sample.of(200, [], b"<html>", 1000.0, 0.5))
    running = sampler(store)
    running.start_run(0)
    assert running.ask(question("a?")).known is None


def test_a_sample_that_is_missing_under_replay_is_refused_and_remembered(store: SampleStore) -> None:
    running = sampler(store, cache="replay")
    running.start_run(0)
    with pytest.raises(Refusal, match=r"not in the store and cache=replay .*run 0.*--determinism-cache=auto"):
        running.ask(question("a?"))
    assert running.refusal.startswith("a sample is not in the store")
    assert not isinstance(Refusal(), Exception)  # what SDKs retry, with sleeps
    found = running.finish_run()
    assert (found.exchanges, found.error) == ((), None)


def test_a_store_that_cannot_be_written_to_is_refused_and_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = SampleStore(tmp_path / "file" / "store")
    running = sampler(store)
    running.start_run(0)
    ask = running.ask(question("a?"))
    with pytest.raises(Refusal):
        ask.keep(0, says("yes"))
    assert "cannot be used" in running.refusal
    store.close()


# Recording, and being outside a run


def test_recorded_values_belong_to_the_active_run() -> None:
    running = sampler()
    running.start_run(0)
    running.record("a")
    running.record("b")
    assert running.finish_run().recorded == ("a", "b")
    assert run(running, 1).recorded == ()
    with pytest.raises(RuntimeError, match="outside a run"):
        running.record("c")


def test_a_request_outside_a_run_belongs_to_nobody() -> None:
    running = sampler()
    assert running.ask(question("a?")) is None
    run(running, 0)
    assert running.ask(question("a?")) is None


def test_an_answer_that_comes_after_its_run_changes_no_other() -> None:
    running = sampler()
    running.start_run(0)
    late = running.ask(question("a?"))
    running.finish_run()
    running.start_run(1)
    told(late, "late")
    assert running.finish_run().exchanges == ()
