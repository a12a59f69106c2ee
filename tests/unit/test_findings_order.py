"""Findings that the order of the runs shows, and all experiments together: where they must appear, and how seldom by
chance."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.findings import ALPHA, Finding, Observed, over_all
from pytest_llm_determinism.analysis.groups import missing_calls, outcomes
from pytest_llm_determinism.runs import Exchange, Run

ANSWERS = {"A": "give a refund", "B": "give a replacement", "C": "give nothing"}


def exchange(answer: str, request: str = "question") -> Exchange:
    return Exchange(request, 0, answer, "m", None, "stop", None, None)


def run(index: int, what: str) -> Run:
    """One run, by a letter for its answer, or by its error."""
    if len(what) > 1:
        return Run(index, (), error=what)
    return Run(index, (exchange(ANSWERS.get(what, what)),))


def observed(
    runs: Iterable[str] | Sequence[Run], load: str = "solo", attempt: int = 0, cached: int = 0, in_flight: int = 1
) -> Observed:
    made = [one if isinstance(one, Run) else run(index, one) for index, one in enumerate(runs)]
    items = outcomes(made, made[0])
    return Observed(load, attempt, made, items, in_flight, live=len(made) - cached, cached=cached)


def found(*experiments: Observed, whole: bool = True, compare: str = "exact") -> list[tuple[Finding, ...]]:
    missing = list(missing_calls([item for one in experiments for item in one.items]))
    return over_all(experiments, missing, resolve(compare), whole=whole)


def told(*experiments: Observed, **more: bool) -> list[dict[str, str]]:
    return [{one.code: one.message for one in findings} for findings in found(*experiments, **more)]


def attempts(*patterns: str) -> list[Observed]:
    return [observed(pattern, attempt=attempt) for attempt, pattern in enumerate(patterns)]


# first-run-differs

WHY = (
    "the first call travels alone, and meets a server whose caches may be cold; --determinism-load=solo, where every"
    " call travels alone, shows which of the two it is; if it is the caches, warm the model up before the runs"
)


def test_a_first_run_that_alone_differs_from_a_hundred() -> None:
    message = f"run 0 gave “give a refund”, 99 of the 99 others “give a replacement” (p = 0.01): {WHY}"
    assert told(observed("A" + "B" * 99)) == [{"first-run-differs": message}]


def test_one_experiment_of_less_than_a_hundred_runs_shows_nothing() -> None:
    assert told(observed("A" + "B" * 98)) == told(observed("A" + "B" * 29)) == [{}]


def test_first_runs_that_differ_in_each_of_several_experiments() -> None:
    message = (
        "run 0 gave “give a refund”, 29 of the 29 others “give a replacement”, in 3 of 3 experiments (p = 3.7e-05): "
        + WHY
    )
    assert told(*attempts(*["A" + "B" * 29] * 3)) == [{"first-run-differs": message}] * 3
    loads = [observed("A" + "B" * 29, load) for load in ("solo", "burst")]
    assert [list(one) for one in told(*loads)] == [["first-run-differs"]] * 2


def test_first_runs_that_differ_in_some_experiments_are_found_in_those() -> None:
    both = told(*attempts("A" + "B" * 29, "B" * 30, "A" + "B" * 29))
    assert [list(one) for one in both] == [["first-run-differs"], [], ["first-run-differs"]]
    assert "in 2 of 3 experiments (p = 0.0011)" in both[0]["first-run-differs"]


@pytest.mark.parametrize(
    "patterns",
    [
        pytest.param(["B" * 120], id="all agree"),
        pytest.param(["BA" + "B" * 118], id="the second run"),
        pytest.param(["A" + "B" * 118 + "A"], id="another run gave the same"),
        pytest.param(["A" + "BC" * 60], id="the others do not agree"),
        pytest.param(["A" + "B" * 29, "B" * 30, "B" * 30], id="one of three experiments of 30"),
        pytest.param(["A" + "B" * 29, "BA" + "B" * 28, "B" * 30], id="one of three, another run in the second"),
        pytest.param(["AB"] * 3, id="two runs each"),
    ],
)
def test_first_runs_that_do_not_stand_out(patterns: list[str]) -> None:
    assert not any("first-run-differs" in one for one in told(*attempts(*patterns)))


def test_nearly_all_others_agree() -> None:
    assert list(told(observed("A" + ("B" * 40 + "C") * 4 + "B" * 20))[0]) == ["first-run-differs"]
    # Each of these groups of one run might as well have been the first.
    assert told(observed("A" + "B" * 40 + "C" + "B" * 40 + "D" + "B" * 40 + "E" + "B" * 40)) == [{}]


def test_a_first_run_that_failed_is_no_answer() -> None:
    runs = [Run(0, (), error="HTTP 500: down"), *(run(index, "A" if index == 1 else "B") for index in range(1, 150))]
    assert told(observed(runs)) == [{}]


# changed-midway

CHANGED = (
    "something was changed while the runs were made (a new version, another replica, a server that got busy); run again"
    " with --determinism-cache=refresh, and pin the model's version"
)


def test_a_change_midway_is_found_with_its_place() -> None:
    message = (
        "runs 0–13 gave “give a refund” (14 of 14), runs 14–29 gave “give a replacement” (16 of 16) (p = 1.4e-08): "
        + CHANGED
    )
    assert told(observed("A" * 14 + "B" * 16)) == [{"changed-midway": message}]


@pytest.mark.parametrize(
    ("pattern", "seen"),
    [
        pytest.param(
            "AA" + "B" * 28,
            "runs 0–1 gave “give a refund” (2 of 2), runs 2–29 gave “give a replacement” (28 of 28) (p = 0.0046)",
            id="after two runs",
        ),
        pytest.param(
            "A" * 5 + "B" * 5,
            "runs 0–4 gave “give a refund” (5 of 5), runs 5–9 gave “give a replacement” (5 of 5) (p = 0.0079)",
            id="ten runs are enough",
        ),
        pytest.param(
            "A" * 15 + "ABABBABBBABABBB",
            "runs 0–15 gave “give a refund” (16 of 16), runs 16–29 gave “give a replacement” (10 of 14) (p = 0.00014)",
            id="stable before, not so after",
        ),
        pytest.param(
            "A" * 15 + "uvwxyzUVWXYZabc",
            "runs 0–14 gave “give a refund” (15 of 15), runs 15–29 gave “u” (1 of 15) (p = 1.3e-08)",
            id="different in every run after",
        ),
        pytest.param(
            "A" * 20 + "ABCABDABE" + "A" * 2 + "FGHIJ",
            "runs 0–20 gave “give a refund” (21 of 21), runs 21–35 gave “give a refund” (4 of 15) (p = 5.3e-06)",
            id="the same answer, less often",
        ),
        pytest.param(
            "B" * 299 + "A",
            "runs 0–298 gave “give a replacement” (299 of 299), run 299 gave “give a refund” (1 of 1) (p = 0.0067)",
            id="the last run of many",
        ),
    ],
)
def test_changes_of_other_kinds(pattern: str, seen: str) -> None:
    (one,) = told(observed(pattern))
    assert one["changed-midway"].startswith(seen + ": ")


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("A" * 30, id="no change"),
        pytest.param("AB" * 15, id="taking turns"),
        pytest.param("AAABBB", id="six runs are too few"),
        pytest.param("AABBBAABABBABAABBBABABAABABBAB", id="at random"),
        pytest.param("B" * 15 + "A" + "B" * 14, id="one odd run"),
        pytest.param("A" + "B" * 299, id="the first run, which is a finding of its own"),
        pytest.param("".join(map(chr, range(0x4E00, 0x4E00 + 30))), id="all different"),
    ],
)
def test_no_change_midway(pattern: str) -> None:
    assert "changed-midway" not in told(observed(pattern))[0]


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [
        pytest.param("A" * 14 + "B" * 16, True, id="all agree on either side"),
        pytest.param("A" * 13 + "BA" + "B" * 15, True, id="nearly all agree: some were in flight"),
        pytest.param("A" * 24 + "B" * 6, False, id="the last ones, while the batch drained"),
        pytest.param("A" * 6 + "B" * 24, False, id="the first ones, while the batch filled up"),
        pytest.param("A" * 15 + "ABBABBBBABBCBBB", False, id="they do not agree after it"),
        pytest.param("uvwxyzUVWXYZabc" + "A" * 15, False, id="they did not agree before it"),
    ],
)
def test_with_several_calls_in_flight_both_sides_must_agree(pattern: str, changed: bool) -> None:
    assert list(told(observed(pattern))[0]) == ["changed-midway"]
    assert list(told(observed(pattern, "burst", in_flight=8))[0]) == ["changed-midway"] * changed


def test_a_first_run_and_a_change_are_not_both_found_in_one_thing() -> None:
    assert list(told(observed("A" + "B" * 299))[0]) == ["first-run-differs"]
    assert list(told(observed("AA" + "B" * 298))[0]) == ["changed-midway"]


def test_attempts_follow_each_other_under_each_load() -> None:
    between = told(*attempts("A" * 10, "A" * 10, "B" * 10))
    seen = (
        "attempt 1 run 0 – attempt 2 run 9 gave “give a refund” (20 of 20), attempt 3 runs 0–9 gave “give a"
        " replacement” (10 of 10) (p = 6.7e-08)"
    )
    assert [one["changed-midway"].startswith(seen) for one in between] == [True] * 3
    # One load changes with the attempt; the other has answers of its own, always the same.
    loads = [
        observed(pattern, load, attempt)
        for attempt, pattern in enumerate(("A" * 10, "B" * 10))
        for load, pattern in (("solo", pattern), ("burst", "C" * 10))
    ]
    assert [list(one) for one in told(*loads)] == [["changed-midway"], [], ["changed-midway"], []]


def test_a_change_where_the_stored_answers_end_is_told() -> None:
    stored = told(observed("A" * 14 + "B" * 16, cached=14))[0]["changed-midway"]
    assert stored.endswith(
        "14 answers are from the store, exactly those before the change, so the model was probably changed since they"
        " were asked; ask all anew with --determinism-cache=refresh"
    )
    near = told(observed("A" * 14 + "B" * 16, cached=10))[0]["changed-midway"]
    assert "10 answers are from the store, others are new, so the model was probably changed" in near
    # All of them from the store say nothing about when the change came.
    assert told(observed("A" * 14 + "B" * 16, cached=30))[0]["changed-midway"].endswith(CHANGED)


def test_runs_are_compared_by_the_comparison_in_force() -> None:
    pattern = [Run(index, (exchange("refund" if index < 15 else "Refund\n"),)) for index in range(30)]
    assert [one.code for one in found(observed(pattern))[0]] == ["changed-midway"]
    assert found(observed(pattern), compare="casefold") == [()]


def test_an_order_that_fail_fast_made_says_nothing() -> None:
    # Sampling that stops at the first other answer always ends with it.
    stopped = observed("A" * 299 + "B")
    assert list(told(stopped)[0]) == ["changed-midway"]
    assert told(stopped, whole=False) == [{}]


# error-pattern

LIMIT, DOWN = "HTTP 429: slow down", "HTTP 500: oops"


def failing(pattern: str) -> list[str]:
    """Runs with the same answer, in which L is a rate limit, D a server that is down, and C a broken connection."""
    errors = {"L": LIMIT, "D": DOWN, "C": "ConnectError: refused"}
    return [errors.get(letter, "A") for letter in pattern]


RAN_OUT = (
    "the provider's rate or quota was used up; ask more slowly (--determinism-rate, --determinism-concurrency): what"
    " arrived is kept, so a rerun asks for the rest only"
)
NOT_READY = "the server was not ready yet; warm it up before the runs, then rerun: what arrived is kept"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        pytest.param(
            "." * 21 + "L" * 9,
            "0 of 21 failed with HTTP 429 in runs 0–20, 9 of 9 in runs 21–29 (p = 1.4e-07): " + RAN_OUT,
            id="a limit is reached",
        ),
        pytest.param(
            "." * 20 + "CDDCDCCDCD",
            "0 of 20 failed with ConnectError or HTTP 500 in runs 0–19, 10 of 10 in runs 20–29 (p = 6.7e-08):"
            " the server failed under way; look at its log: what arrived is kept, so a rerun asks for the rest only",
            id="the server dies",
        ),
        pytest.param(
            "D" * 5 + "." * 25,
            f"5 of 5 failed with HTTP 500 in runs 0–4, 0 of 25 in runs 5–29 (p = 1.4e-05): {NOT_READY}",
            id="the server starts",
        ),
        pytest.param(
            "...D" * 7 + "..",
            "7 of 7 that failed with HTTP 500 are every 4th run from run 3 on (p = 2.7e-05): one of several replicas"
            " behind the endpoint may be broken; ask whoever runs it",
            id="one of four replicas",
        ),
        pytest.param(
            ("." * 6 + "D") + "." * 10 + ("D." * 3) + "." * 17 + "L" * 10,
            "0 of 40 failed with HTTP 429 in runs 0–39, 10 of 10 in runs 40–49 (p < 1e-9): " + RAN_OUT,
            id="one kind has a pattern",
        ),
    ],
)
def test_errors_with_a_pattern(pattern: str, message: str) -> None:
    assert told(observed(failing(pattern))) == [{"error-pattern": message}]


def test_first_runs_that_alone_fail() -> None:
    message = f"run 0 alone failed with HTTP 500, in 3 of 3 experiments (p = 3.7e-05): {NOT_READY}"
    assert (
        told(*(observed(failing("D" + "." * 29), attempt=attempt) for attempt in range(3)))
        == [{"error-pattern": message}] * 3
    )


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("." * 30, id="no errors"),
        pytest.param("D" * 30, id="nothing else"),
        pytest.param("..D....D.DD......D..D.....D...", id="at random"),
        pytest.param("." * 29 + "D", id="the last of thirty"),
        pytest.param("D" + "." * 29, id="the first of thirty"),
    ],
)
def test_errors_without_a_pattern(pattern: str) -> None:
    assert told(observed(failing(pattern))) == [{}]


# runs-made-no-call


def test_runs_that_made_no_call() -> None:
    runs = [Run(0, (exchange("a"),)), Run(1, ()), Run(2, ())]
    message = (
        "runs 1, 2 made no model call at step 1, where 1 of 3 runs did, although nothing had parted them: an"
        " application's own cache (such as functools.cache) hides repeated calls; switch it off or clear it in the body"
    )
    assert told(observed(runs)) == [{"runs-made-no-call": message}]


def test_a_call_that_a_later_experiment_did_not_make_is_found_in_that_one() -> None:
    runs = [[Run(index, (exchange("a"), exchange("b", "more"))) for index in range(2)]]
    runs.append([Run(index, (exchange("a"),)) for index in range(2)])
    solo, burst = told(observed(runs[0], "solo"), observed(runs[1], "burst"))
    assert solo == {}
    assert burst["runs-made-no-call"].startswith(
        "runs 0, 1 made no model call at step 2, where 2 of 4 runs did, although nothing had parted them: "
    )


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([Run(0, (exchange("a"),)), Run(1, (exchange("a"),))], id="all did"),
        pytest.param([Run(0, (exchange("a"), exchange("c", "x"))), Run(1, (exchange("b"),))], id="they had parted"),
        pytest.param([Run(0, (exchange("a"),)), Run(1, (), broken_off=True)], id="its body broke off"),
        pytest.param([Run(0, (exchange("a"),)), Run(1, (), error="HTTP 500")], id="it failed"),
    ],
)
def test_runs_that_made_every_call(runs: list[Run]) -> None:
    assert told(observed(runs)) == [{}]


# False alarms: how often a code appears where the order of the runs means nothing

TRIALS = 1000


def _allowed(trials: int) -> int:
    """Three standard deviations above 1 %."""
    return int(ALPHA * trials + 3 * math.sqrt(trials * ALPHA * (1 - ALPHA)))


def _draws(randomly: random.Random, runs: int, stability: float, others: int) -> list[str]:
    """Independent answers: one of them with this chance, the others equally likely."""
    return ["A" if randomly.random() < stability else chr(0x4E00 + randomly.randrange(others)) for _ in range(runs)]


@pytest.mark.parametrize("runs", [5, 10, 30, 100])
@pytest.mark.parametrize(("stability", "others"), [(0.5, 1), (0.9, 1), (0.97, 1), (0.99, 100), (0.3, 3)])
def test_independent_answers_raise_no_alarm(runs: int, stability: float, others: int) -> None:
    randomly = random.Random(runs * others)
    alarms = Counter[str]()
    for _ in range(TRIALS):
        experiment = observed(_draws(randomly, runs, stability, others))
        alarms.update(one.code for one in found(experiment)[0])
    assert max(alarms.values(), default=0) <= _allowed(TRIALS)


@pytest.mark.parametrize("stability", [0.6, 0.9, 0.967])
def test_independent_answers_in_several_experiments_raise_no_alarm_either(stability: float) -> None:
    randomly = random.Random(7)
    alarms = Counter[str]()
    for _ in range(TRIALS):
        experiments = [
            observed(_draws(randomly, 30, stability, 2), load, attempt)
            for attempt in range(2)
            for load in ("solo", "burst")
        ]
        alarms.update({one.code for findings in found(*experiments) for one in findings})
    assert max(alarms.values(), default=0) <= _allowed(TRIALS)


@pytest.mark.parametrize("sizes", [(29, 1), (28, 2), (15, 15), (10, 10, 10), (99, 1), (26, 1, 1, 1, 1)])
def test_no_sizes_of_groups_raise_more_alarms_in_a_random_order(sizes: tuple[int, ...]) -> None:
    randomly = random.Random(sum(sizes))
    answers = [chr(0x4E00 + group) for group, size in enumerate(sizes) for _ in range(size)]
    alarms = Counter[str]()
    for _ in range(TRIALS):
        randomly.shuffle(answers)
        alarms.update(one.code for one in found(observed(answers))[0])
    assert max(alarms.values(), default=0) <= _allowed(TRIALS)


@pytest.mark.parametrize("rate", [0.03, 0.2, 0.5])
def test_errors_at_random_raise_no_alarm(rate: float) -> None:
    randomly = random.Random(3)
    alarms = Counter[str]()
    for _ in range(TRIALS):
        errors = [randomly.choice((LIMIT, DOWN)) if randomly.random() < rate else "A" for _ in range(30)]
        alarms.update(one.code for one in found(observed(errors))[0])
    assert max(alarms.values(), default=0) <= _allowed(TRIALS)
