"""What a suite will ask: reckoned from earlier reports, and how it is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.analysis.forecast import Known, Planned, forecast, known
from pytest_llm_determinism.analysis.statistics import agreement_lower
from pytest_llm_determinism.commands.suite import lines

DEFAULTS: dict[str, Any] = {
    "runs": 30,
    "attempts": 1,
    "load": ["burst"],
    "max_unique": 1,
    "min_agreement": None,
    "confidence": None,
    "max_errors": 0,
}


def made(load: str = "burst", runs: int = 10, live: int = 10, **other: Any) -> dict[str, Any]:
    """An experiment of a JSON report, as far as it matters here."""
    return {
        "load": load,
        "completed": runs,
        "errors": 0,
        "neighbour_calls": 0,
        "calls": {"live": live, "cached": 0},
        "usage": {"input_tokens": 70, "output_tokens": 30},
        "seconds": 2.0,
        "cost": {"live": 0.01, "saved": 0.0, "currency": "USD"},
        **other,
    }


def test_calls_tokens_time_and_price_are_those_of_the_earlier_runs() -> None:
    told = known({"experiments": [made(live=20), made(live=20)]})

    assert told == Known(2.0, None, 3.5, 1.5, {"burst": 0.2}, 0.0005, "USD")
    found = forecast(Planned("t", {**DEFAULTS, "attempts": 2}), told)
    assert (found.calls, found.assumed, found.neighbours) == (120, False, 0)
    assert (found.input_tokens, found.output_tokens, found.seconds) == (420, 180, pytest.approx(12))
    assert found.price == pytest.approx(0.06)


def test_what_a_report_does_not_tell_is_not_guessed() -> None:
    cached = made(calls={"live": 4, "cached": 6}, usage={"input_tokens": 70, "output_tokens": None}, cost=None)

    told = known({"experiments": [made(), cached]})

    # Where answers came from the store, the time is not that of the model; the other experiment tells it.
    assert told == Known(1.0, None, 7.0, None, {"burst": 0.2}, None, None)
    found = forecast(Planned("t", {**DEFAULTS, "load": ["solo", "burst"]}), told)
    assert (found.output_tokens, found.seconds, found.price) == (None, None, None)
    assert known({"experiments": [made(runs=0, live=0)]}) is None
    two = [made(), made(cost={"live": 1, "saved": 0, "currency": "EUR"})]
    assert known({"experiments": two}).price is None  # type: ignore[union-attr]


def test_runs_that_asked_nothing_will_take_no_tokens_and_no_money() -> None:
    free = {"live": 0.0, "saved": 0.0, "currency": "USD"}
    nothing = made(live=0, usage={"input_tokens": None, "output_tokens": None}, cost=free)

    assert known({"experiments": [nothing]}) == Known(0.0, None, 0.0, 0.0, {"burst": 0.2}, 0.0, "USD")


def test_money_saved_is_money_to_be_spent_with_an_empty_store() -> None:
    cost = {"live": 0.0, "saved": 0.02, "currency": "EUR"}

    told = known({"experiments": [made(calls={"live": 0, "cached": 10}, cost=cost)]})

    assert told == Known(1.0, None, 7.0, 3.0, {}, 0.002, "EUR")


def test_neighbours_are_reckoned_for_the_runs_under_crowd() -> None:
    told = known({"experiments": [made("solo"), made("crowd", neighbour_calls=25)]})

    found = forecast(Planned("t", {**DEFAULTS, "load": ["solo", "crowd"]}), told)

    assert (found.calls, found.neighbours) == (60, 75)
    assert forecast(Planned("t", {**DEFAULTS, "load": ["crowd"]}), None).neighbours is None


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, [30]),
        ({"max_unique": 2}, [15, 15]),
        ({"max_unique": 40, "runs": 10}, [1] * 10),
        ({"max_unique": 3, "min_agreement": 0.9}, [27, 3]),
        ({"max_errors": 5}, [25]),
    ],
)
def test_a_pass_shows_what_the_worst_runs_that_pass_show(settings: dict[str, Any], counts: list[int]) -> None:
    assert Planned("t", {**DEFAULTS, **settings}).shown_by_a_pass() == agreement_lower(counts)


def test_a_claim_with_confidence_is_shown_by_a_pass() -> None:
    claim = {"max_unique": 2, "min_agreement": 0.6, "confidence": 0.99}

    assert Planned("t", {**DEFAULTS, **claim}).shown_by_a_pass() == 0.6


@given(runs=st.integers(2, 60), max_unique=st.integers(1, 5), data=st.data())
def test_no_runs_that_pass_show_less(runs: int, max_unique: int, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, runs - 1), max_size=max_unique - 1, unique=True).map(sorted))
    counts = [end - start for start, end in zip([0, *cuts], [*cuts, runs], strict=True)]

    least = Planned("t", {**DEFAULTS, "runs": runs, "max_unique": max_unique}).shown_by_a_pass()

    assert agreement_lower(counts) >= least


def suite(*tests: dict[str, Any], **others: Any) -> dict[str, Any]:
    numbered = [{"nodeid": f"t.py::test_{number}", "settings": test} for number, test in enumerate(tests)]
    return {"tests": numbered, "skipped": 0, "ungated": 0, "unmarked": 0, "with_llm": 0, "wrong": [], **others}


POWER = (
    "a model that flips 1 % of the time passes this gate 74 % of the time; to catch it 95 times of 100 takes 299 runs"
)


def test_a_suite_without_an_earlier_report_says_what_is_assumed() -> None:
    many = {**DEFAULTS, "attempts": 2, "load": ["solo", "crowd"], "runs": 50}

    assert lines(suite(DEFAULTS, many, skipped=1, ungated=2, with_llm=1, unmarked=3), {}, 0.01, 0.95) == [
        "test                          runs               calls  a pass shows",
        "t.py::test_1  200 in 4 experiments  ≥ 200 + neighbours        94.1 %",
        "t.py::test_0                    30                ≥ 30        90.2 %",
        "all 2 tests                    230  ≥ 230 + neighbours        90.2 %",
        "",
        (
            "calls: one a run is assumed, and there may be more; they, tokens, time and price are known from an earlier"
            " report: --from FILE.json"
        ),
        "calls are those with an empty store: what is there already is not asked again",
        ("neighbours under crowd come on top of the calls and the tokens; how many is known from an earlier report"),
        "1 test marked to be skipped",
        "gate=off: 2 tests marked, and would run once without being gated",
        "1 test not marked and using llm: one call for each thing that is asked",
        f"with 30 runs, the fewest, {POWER}",
    ]


def test_a_suite_with_earlier_reports_says_of_what_nothing_is_known() -> None:
    told = {
        "t.py::test_0": Known(2.0, None, 100.0, 20.0, {"burst": 3.0}, 0.001, "USD"),
        "t.py::test_1": Known(1.0, None, None, None, {}, 0.002, "EUR"),
    }

    assert lines(suite(DEFAULTS, DEFAULTS, DEFAULTS), told, 0.01, 0.95) == [
        "test          runs  calls  tokens in + out       time                      price  a pass shows",
        "t.py::test_0    30     60      6000 + 1200    1.5 min                 0.0600 USD        90.2 %",
        "t.py::test_1    30     30                –          –                 0.0600 EUR        90.2 %",
        "t.py::test_2    30   ≥ 30                –          –                          –        90.2 %",
        "all 3 tests     90  ≥ 120    ≥ 6000 + 1200  ≥ 1.5 min  ≥ 0.0600 USD + 0.0600 EUR        90.2 %",
        "",
        "calls: of 1 test no report tells them; one a run is assumed, and there may be more",
        "calls are those with an empty store: what is there already is not asked again",
        "time is that of an earlier session whose answers were all live, one test after the other",
        (
            "price: of 1 test none is known: no report has it, which takes the extra 'cost' in the session that is"
            " reported"
        ),
        f"with 30 runs, the fewest, {POWER}",
    ]


def test_why_no_price_is_known_is_told_in_the_words_of_the_report() -> None:
    unpriced = "no price is known for m at https://host.example"

    told = known({"experiments": [made(cost=None, unpriced=unpriced)]})

    assert told is not None
    assert f"price: of 1 test none is known: {unpriced}" in lines(suite(DEFAULTS), {"t.py::test_0": told}, 0.01, 0.95)


def test_only_the_tests_of_the_most_calls_are_listed() -> None:
    tests = [{**DEFAULTS, "runs": 2 + number} for number in range(100)]

    told = lines(suite(*tests), {}, 0.01, 0.95)

    assert len(told) < 30
    assert told[1].startswith("t.py::test_99 ")
    assert told[21].split() == ["…", "and", "80", "more", "tests", "3320", "≥", "3320", "5.0", "%"]
    assert told[22].split() == ["all", "100", "tests", "5150", "≥", "5150", "5.0", "%"]


def test_a_node_id_cannot_steer_the_terminal() -> None:
    hostile = suite(DEFAULTS)
    hostile["tests"][0]["nodeid"] = "t.py::test_it[\x1b[2J]"

    assert "\x1b" not in "".join(lines(hostile, {}, 0.01, 0.95))


@pytest.mark.parametrize(
    ("others", "first"),
    [
        ({"unmarked": 3}, "no test would be gated: none of 3 tests is marked with @pytest.mark.deterministic"),
        ({"unmarked": 1, "skipped": 1}, "no test would be gated"),
    ],
)
def test_a_suite_without_gated_tests_is_told_so(others: dict[str, int], first: str) -> None:
    assert lines(suite(**others), {}, 0.01, 0.95)[0] == first
