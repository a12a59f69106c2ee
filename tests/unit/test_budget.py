"""Calls counted, and given their turns, over threads and processes."""

from __future__ import annotations

import heapq
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.bill import Charge
from pytest_llm_determinism.budget import Budget, share
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.settings import Settings, from_text, resolve


def settings(**given: Any) -> Settings:
    cli, _ = from_text(given, {}, "pytest.ini")
    return resolve(cli, {}, {})


def budgets(folder: Path | None, count: int = 1, **given: Any) -> list[Budget]:
    """As many processes have them: one each, with the count in common."""
    if folder is not None:
        share(folder)
    return [Budget(settings(**given), folder) for _ in range(count)]


@pytest.fixture(params=["alone", "shared"])
def budget(request: pytest.FixtureRequest, tmp_path: Path):
    """Make a budget: ``budget(max_calls="2")``."""
    made: list[Budget] = []

    def make(**given: Any) -> Budget:
        made.extend(budgets(tmp_path / "locks" if request.param == "shared" else None, **given))
        return made[-1]

    yield make
    for one in made:
        one.close()


def starts(processes: list[Budget], asked_at: list[float]) -> list[float]:
    """When calls start that are asked for at these times, each by one process after the other."""
    waiting = [(at, number) for number, at in enumerate(asked_at)]
    heapq.heapify(waiting)
    started = []
    while waiting:
        now, number = heapq.heappop(waiting)
        try:
            seconds = processes[number % len(processes)].take(now)
        except Refusal:
            continue
        if seconds:
            heapq.heappush(waiting, (now + seconds, number))
        else:
            started.append(now)
    return started


def test_calls_that_are_all_asked_for_at_once_start_at_even_distances(budget) -> None:
    assert starts([budget(rate="4/s")], [10.0] * 6) == [10.0, 10.25, 10.5, 10.75, 11.0, 11.25]


def test_a_pause_saves_no_turns_for_later(budget) -> None:
    assert starts([budget(rate="30/min")], [0.0, 100.0, 100.0, 100.0]) == [0.0, 100.0, 102.0, 104.0]


def test_processes_share_the_turns(tmp_path: Path) -> None:
    processes = budgets(tmp_path, 3, rate="1/s", max_calls="7")
    assert starts(processes, [0.0] * 9) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    for process in processes:
        process.close()


@given(
    st.lists(st.floats(0, 1000), min_size=1, max_size=60),
    st.integers(1, 50),
    st.sampled_from([("s", 1.0), ("min", 60.0), ("h", 3600.0)]),
    st.integers(0, 60),
)
def test_no_window_of_the_given_time_has_more_starts_than_the_rate_says(
    asked_at: list[float], calls: int, time: tuple[str, float], most: int
) -> None:
    unit, length = time
    started = starts(budgets(None, rate=f"{calls}/{unit}", max_calls=str(most)), asked_at)

    assert len(started) == min(most, len(asked_at))
    for index, first in enumerate(started):
        # A start at the very end of the window is in the next one; the millisecond is for rounding.
        assert sum(at < first + length - 0.001 for at in started[index:]) <= calls


def test_without_a_rate_calls_start_at_once_whatever_the_clock_says(budget) -> None:
    assert starts([budget(max_calls="9")], [5.0, 4.0, 5.0, 3.0]) == [3.0, 4.0, 5.0, 5.0]


def test_who_is_refused_does_not_use_up_a_turn(budget) -> None:
    limited = budget(max_calls="1", rate="1/h")
    assert limited.take(0.0) == 0.0
    for now in (0.0, 1.0, 5000.0):
        with pytest.raises(Refusal):
            limited.take(now)


def test_who_waits_takes_nothing(budget) -> None:
    limited = budget(max_calls="2", rate="1/h")
    limited.take(0.0)
    assert [limited.take(now) for now in (1.0, 2.0, 3599.0)] == [3599.0, 3598.0, 1.0]
    assert limited.left == 1


def take_all(limited: Budget) -> int:
    """Calls made until no more may be."""
    made = 0
    while True:
        try:
            seconds = limited.take(time.monotonic())
        except Refusal:
            return made
        if seconds:
            time.sleep(seconds)
        else:
            made += 1


def test_threads_make_not_one_call_too_many(budget) -> None:
    limited, together = budget(max_calls="500"), threading.Barrier(8)

    def take(_: int) -> int:
        together.wait(60)
        return take_all(limited)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 500
    assert limited.left == 0


PROCESS = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_budget import Budget, settings, take_all
limited = Budget(settings(max_calls=sys.argv[3]), Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
print(take_all(limited), flush=True)
sys.stdin.readline()
"""


def start(folder: Path, calls: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), str(folder), str(calls)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_make_not_one_call_too_many_and_leave_none_when_one_is_killed(tmp_path: Path) -> None:
    share(tmp_path)
    processes = [start(tmp_path, 20_000) for _ in range(3)]
    for process in processes:
        assert says(process) == "ready"
    for process in processes:
        go(process)
    killed, *others = processes
    time.sleep(0.05)
    killed.kill()
    made = [int(says(process)) for process in others]
    for process in others:
        process.communicate("\n")
    killed.communicate(timeout=60)

    # What the killed one made before is counted, whatever it was doing when it died.
    assert 0 < sum(made) <= 20_000
    with pytest.raises(Refusal):
        budgets(tmp_path, max_calls="20000")[0].take(0.0)
    more = budgets(tmp_path, max_calls="20001")[0]
    assert take_all(more) == 1
    more.close()


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE calls SET made = 99")
print("holds", flush=True)
sys.stdin.readline()
"""


def test_one_that_dies_with_the_count_in_its_hands_leaves_it_to_the_others(tmp_path: Path) -> None:
    (limited,) = budgets(tmp_path, max_calls="2")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "calls.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert says(holder) == "holds"
        started = time.monotonic()
        assert 0 < limited.take(0.0) < 0.1
        assert time.monotonic() - started < 30
        holder.kill()
    assert take_all(limited) == 2
    limited.close()


def test_a_worker_that_is_started_later_goes_on_with_the_same_count(tmp_path: Path) -> None:
    (first,) = budgets(tmp_path, max_calls="3")
    first.take(0.0)
    (second,) = budgets(tmp_path, max_calls="3")
    assert take_all(second) == 2
    first.close()
    second.close()


def test_a_count_that_is_missing_does_not_start_at_nothing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Budget(settings(max_calls="5", rate="2/s"), tmp_path / "elsewhere")
    with pytest.raises(Refusal) as refused:
        elsewhere.take(0.0)
    assert str(refused.value) == (
        "max_calls=5 (--determinism-max-calls) with rate=2/s (--determinism-rate) cannot be kept: the count of live"
        f" calls in {tmp_path / 'elsewhere' / 'calls.db'}, which the workers of one machine share, cannot be used:"
        " unable to open database file"
    )
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_whose_calls_the_parent_would_not_count_makes_none() -> None:
    (limited,) = budgets(None, max_calls="5")
    child = os.fork()
    if child == 0:
        try:
            limited.take(0.0)
        except Refusal as refusal:
            os._exit(7 if "max_calls=5 (--determinism-max-calls) cannot be kept in a process" in str(refusal) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(
            {"max_calls": "1"},
            "max_calls=1 (--determinism-max-calls) reached: 1 live call made in this session; raise it, or run again:"
            " samples that arrived are kept, and the next session goes on from there",
            id="auto",
        ),
        pytest.param(
            {"max_calls": "0", "cache": "refresh"},
            "max_calls=0 (--determinism-max-calls) reached: 0 live calls made in this session; raise it, or run again"
            " with --determinism-cache=auto: samples that arrived are kept, and the next session goes on from there",
            id="refresh",
        ),
        pytest.param(
            {"max_calls": "2", "cache": "off"},
            "max_calls=2 (--determinism-max-calls) reached: 2 live calls made in this session; raise it: with cache=off"
            " (--determinism-cache) nothing is kept, and the next session starts anew",
            id="off",
        ),
    ],
)
def test_a_spent_budget_says_what_to_do(given: dict[str, str], message: str) -> None:
    (limited,) = budgets(None, **given)
    while limited.left:
        limited.take(0.0)
    with pytest.raises(Refusal) as refused:
        limited.take(0.0)
    assert str(refused.value) == message


def test_the_summary_counts_the_tests_that_were_stopped() -> None:
    (limited,) = budgets(None, max_calls="1")
    limited.take(0.0)
    with pytest.raises(Refusal) as refused:
        limited.take(0.0)
    reason = str(refused.value)

    assert limited.note(["1 unique of 30"]) is None
    assert (
        limited.note([reason, "1 unique of 30"])
        == "max_calls=1 (--determinism-max-calls) reached: 1 test ended inconclusive"
    )
    assert limited.note([reason] * 3) == "max_calls=1 (--determinism-max-calls) reached: 3 tests ended inconclusive"


# Money


def answer(cents: int | None) -> Charge:
    """An answer of gpt-4 that costs so many cents, or one without a usage."""
    usage = "" if cents is None else f'{{"usage": {{"prompt_tokens": {cents * 1000 // 3}, "completion_tokens": 0}}}}'
    return Charge("https://api.openai.com/v1/chat/completions", "chat completions", "gpt-4", "gpt-4", usage)


ONE = answer(3)
"""Costs 0.03 USD."""


def test_calls_go_out_until_their_answers_reach_the_limit(budget) -> None:
    limited = budget(max_cost="0.08")
    for _ in range(3):
        assert limited.take(0.0) == 0.0
        limited.settle(ONE)
    with pytest.raises(Refusal) as refused:
        limited.take(0.0)
    reason = (
        "max_cost=0.08 (--determinism-max-cost) reached: about 0.09 USD spent in this session; raise it, or run again:"
        " samples that arrived are kept, and the next session goes on from there"
    )
    assert str(refused.value) == reason
    assert (
        limited.note([reason, "max_calls=3 (--determinism-max-calls) reached: …", "1 unique of 30"])
        == "max_cost=0.08 (--determinism-max-cost) reached: 1 test ended inconclusive"
    )


def test_a_call_in_flight_is_taken_to_cost_as_much_as_the_dearest_answer(budget) -> None:
    limited = budget(max_cost="0.1")
    # Nothing is known of these two.
    assert limited.take(0.0) == limited.take(0.0) == 0.0
    limited.settle(answer(0))
    limited.settle(ONE)
    # 3 cents are spent, and 3 more in flight with each of these.
    assert [limited.take(0.0) for _ in range(3)] == [0.0] * 3
    with pytest.raises(
        Refusal, match=r"about 0\.03 USD spent in this session, and 3 calls that have no answer may take"
    ):
        limited.take(0.0)
    limited.settle(None)
    assert limited.take(0.0) == 0.0


def test_an_answer_whose_price_is_not_known_ends_all(budget) -> None:
    limited = budget(max_cost="100")
    limited.take(0.0)
    limited.settle(answer(None))
    with pytest.raises(Refusal) as refused:
        limited.take(0.0)
    assert str(refused.value) == (
        "max_cost=100.0 (--determinism-max-cost) cannot be kept: an answer of gpt-4 at https://api.openai.com told no"
        " usage that a price could be made of (OpenAI's streams tell it where stream_options.include_usage is set); ask"
        " a model that has a price, or leave max_cost out"
    )


def test_a_call_that_will_have_no_price_is_not_made(budget) -> None:
    limited = budget(max_cost="100")
    limited.check(ONE)
    with pytest.raises(Refusal, match="cannot be kept: no price is known for mine at https://api"):
        limited.check(ONE._replace(asked="mine"))
    unlimited = budget(max_calls="1")
    unlimited.check(ONE._replace(asked="mine"))
    unlimited.take(0.0)
    unlimited.settle(answer(None))


def test_money_is_that_of_all_workers(tmp_path: Path) -> None:
    one, other = budgets(tmp_path, 2, max_cost="0.05")
    one.take(0.0)
    other.take(0.0)
    one.settle(ONE)
    with pytest.raises(Refusal, match=r"about 0\.03 USD spent in this session, and 1 call that has no answer"):
        one.take(0.0)
    other.settle(ONE)
    with pytest.raises(Refusal, match=r"about 0\.06 USD spent in this session; raise it"):
        other.take(0.0)
    one.close()
    other.close()


@given(
    prices=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    limit=st.integers(1, 60),
    in_flight=st.integers(1, 8),
    chance=st.randoms(use_true_random=False),
)
def test_spending_goes_beyond_the_limit_by_what_calls_in_flight_turn_out_dearer(
    prices: list[int], limit: int, in_flight: int, chance: Any
) -> None:
    """Never by more than one dearest answer, beside what those that were in flight cost more than was foreseen."""
    (limited,) = budgets(None, max_cost=str(limit / 100))
    waiting, flying, dearest = list(prices), [], 0
    paid = dearer = 0
    while waiting or flying:
        if waiting and len(flying) < in_flight:
            try:
                limited.take(0.0)
            except Refusal:
                waiting = []
                continue
            flying.append((waiting.pop(), dearest))
        if not waiting or chance.random() < 0.5:
            cents, foreseen = flying.pop(chance.randrange(len(flying)))
            limited.settle(answer(cents))
            paid += cents
            dearer += max(0, cents - foreseen)
            dearest = max(dearest, cents)
    assert paid <= limit + dearest + dearer
