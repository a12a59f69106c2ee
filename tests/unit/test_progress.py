"""How far repetitions are: what is counted, and the one line that says it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sampling import question, run, sampler, says

from pytest_llm_determinism import underway
from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.excerpt import columns
from pytest_llm_determinism.report.progress import Progress, line
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import Sampler
from pytest_llm_determinism.settings import Value
from pytest_llm_determinism.settings import resolve as resolved
from pytest_llm_determinism.underway import Underway


def progress(**changes: object) -> Progress:
    fields = {
        "name": "tests/test_triage.py::test_refund",
        "experiment": 1,
        "experiments": 1,
        "load": "burst",
        "attempt": 0,
        "attempts": 1,
        "runs": 30,
        "done": 12,
        "groups": 2,
        "errors": 0,
        "live": 16,
        "cached": 4,
        "neighbours": 0,
        "seconds_left": 125.0,
    }
    return Progress(**(fields | changes))  # type: ignore[arg-type]


# One experiment


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "tests/test_triage.py::test_refund: 12 of 30 runs, 2 groups, 16 calls live, 4 cached, about 2 min left",
        ),
        (
            {"experiment": 3, "experiments": 6, "load": "crowd", "attempts": 2, "attempt": 1, "neighbours": 34},
            (
                "[3/6] tests/test_triage.py::test_refund under crowd, attempt 2: 12 of 30 runs, 2 groups,"
                " 16 calls live with 34 neighbours, 4 cached, about 2 min left"
            ),
        ),
        (
            {"done": 1, "groups": 1, "errors": 1, "live": 1, "cached": 0, "neighbours": 1, "seconds_left": None},
            "tests/test_triage.py::test_refund: 1 of 30 runs, 1 group, 1 error, 1 call live with 1 neighbour",
        ),
        (
            {"done": 0, "groups": None, "live": 0, "cached": 0, "seconds_left": None},
            "tests/test_triage.py::test_refund: 0 of 30 runs",
        ),
        (
            {"name": "test_it[\x1b[2J\u202e\ud800]", "live": 0, "seconds_left": None},
            "test_it[\\x1b[2J\\u202e\\ud800]: 12 of 30 runs, 2 groups, 4 cached",
        ),
    ],
)
def test_a_line_says_how_far_an_experiment_is(changes: dict[str, object], expected: str) -> None:
    assert line([progress(**changes)]) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.1, "seconds left"),
        (9.9, "seconds left"),
        (10, "about 10 s left"),
        (94, "about 90 s left"),
        (95, "about 2 min left"),
        (5000, "about 83 min left"),
        (9000, "about 2 h left"),
    ],
)
def test_the_time_left_is_told_no_more_exactly_than_it_is_known(seconds: float, expected: str) -> None:
    assert line([progress(seconds_left=seconds)]).rpartition(", ")[2] == expected


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (101, "tests/test_triage.py::test_refund: 12 of 30 runs, 2 groups, 16 calls live, 4 cached, about 2 min left"),
        (100, "…sts/test_triage.py::test_refund: 12 of 30 runs, 2 groups, 16 calls live, 4 cached, about 2 min left"),
        (84, "…py::test_refund: 12 of 30 runs, 2 groups, 16 calls live, 4 cached, about 2 min left"),
        (83, "…iage.py::test_refund: 12 of 30 runs, 2 groups, 16 live, 4 cached, about 2 min left"),
        (78, "…py::test_refund: 12 of 30 runs, 2 groups, 16 live, 4 cached, about 2 min left"),
        (77, "tests/test_triage.py::test_refund: 12 of 30 runs, 2 groups, about 2 min left"),
        (66, "…triage.py::test_refund: 12 of 30 runs, 2 groups, about 2 min left"),
        (50, "….py::test_refund: 12 of 30 runs, about 2 min left"),
        (32, "….py::test_refund: 12 of 30 runs"),
        (30, "12 of 30 runs"),
        (8, "12 of 3…"),
        (0, "…"),
    ],
)
def test_a_narrow_line_keeps_the_end_of_the_name_and_the_runs(width: int, expected: str) -> None:
    assert line([progress()], width) == expected


def test_a_wide_character_takes_two_columns() -> None:
    assert line([progress(name="test_it[的的的的的的的的的的]", seconds_left=None, cached=0, live=0)], 41) == (
        "…的的的的的的的]: 12 of 30 runs, 2 groups"
    )


# Several, in several workers


def test_a_line_for_several_tests_names_them_all() -> None:
    others = [
        progress(name="a.py::TestA::test_one", done=3, neighbours=5, seconds_left=None),
        progress(name="b.py::test_two[gpt-4o]", done=30, live=0, cached=30, seconds_left=20.0),
    ]
    assert line([progress(), *others]) == (
        "3 tests: test_refund 12 of 30, TestA::test_one 3 of 30, test_two[gpt-4o] 30 of 30;"
        " 32 calls live with 5 neighbours, 38 cached, about 2 min left"
    )
    assert line([progress(), *others], 80) == (
        "3 tests: test_refund 12 of 30, TestA::tes…; 32 live, 38 cached, about 2 min left"
    )
    assert line([progress(), *others], 69) == ("3 tests: test_refund 12 of 30, TestA::test_one 3 o…; about 2 min left")
    assert line([progress(seconds_left=None)] * 3, 30) == "3 tests: test_refund 12 of 30…"


@given(
    st.lists(
        st.builds(
            progress,
            name=st.text(max_size=60),
            experiments=st.integers(1, 3),
            errors=st.integers(0, 10),
            neighbours=st.integers(0, 10**6),
            seconds_left=st.none() | st.floats(0, 1e6),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 200),
)
def test_a_line_fits_and_cannot_steer_a_terminal(shown: list[Progress], width: int) -> None:
    text = line(shown, width)
    assert columns(text) <= width
    assert text.isprintable()


# What is counted


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock."""
    now = [100.0]
    monkeypatch.setattr(underway.time, "monotonic", lambda: now[0])

    def set_clock(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return set_clock


def watched(running: Sampler, runs: list[Run], compare: object = "exact", **settings: object) -> Underway:
    given = {name: Value(value, "cli", name) for name, value in settings.items()}
    made = Underway("test_it", resolved(given, {}, {}), resolve(compare), None)
    made.begin(running, runs)
    return made


def test_what_takes_no_longer_than_a_second_is_not_shown(moment: Callable[[float], None]) -> None:
    made = watched(sampler(), [])
    moment(0.9)
    assert made.look() == []
    moment(1.0)
    assert [one.name for one in made.look()] == ["test_it"]


def test_answers_count_before_the_body_was_run_for_them(moment: Callable[[float], None]) -> None:
    running = sampler(runs=5, concurrency=2)
    runs: list[Run] = []
    made = watched(running, runs)
    seen = []

    def look(seconds: float) -> None:
        moment(seconds)
        (one,) = made.look()
        seen.append((one.done, one.groups, one.live, one.cached, one.seconds_left))

    running.start_run(0)
    first = running.ask(question("capital?"))
    assert first is not None
    first.sent()
    look(2)
    known = first.keep(0, says("Paris."))
    assert known is not None
    first.answered(known)
    runs.append(running.finish_run())
    look(4)
    running.start_run(1)
    second = running.ask(question("capital?"))
    assert second is not None
    for number, text in ((2, "Paris."), (3, "Lyon."), (4, "Paris.")):
        second.sent()
        second.keep(number, says(text))
        look(4 + 2 * number)

    assert seen == [
        (0, None, 1, 0, None),
        (1, 1, 1, 0, None),
        (2, 1, 2, 0, None),  # in flight are two
        (3, 2, 3, 0, 2 * 8 / 2),
        (4, 2, 4, 0, 1 * 10 / 3),
    ]


def test_a_run_of_several_calls_counts_when_all_are_answered(moment: Callable[[float], None]) -> None:
    running = sampler(runs=4)
    runs = [run(running, 0, ("city?", "Paris"), ("country?", "France"))]
    made = watched(running, runs)
    moment(2)
    running.start_run(1)
    ask = running.ask(question("city?"))
    assert ask is not None
    done = []
    for number in (1, 2, 3):
        ask.sent()
        ask.keep(number, says("Paris"))
        (one,) = made.look()
        done.append((one.done, one.groups))
    assert done == [(1, 1), (2, 1), (2, 1)]


def test_a_run_that_ended_in_an_error_is_done(moment: Callable[[float], None]) -> None:
    running = sampler(runs=4)
    made = watched(running, [Run(0, (), error="HTTP 500"), Run(1, (), ("a",)), Run(2, (), ("b",))])
    moment(2)
    (one,) = made.look()
    assert (one.done, one.errors, one.groups, one.seconds_left) == (3, 1, 2, None)


def test_groups_are_those_of_the_comparison_and_unknown_under_one_of_the_users(moment: Callable[[float], None]) -> None:
    runs = [Run(0, (), ("a b",)), Run(1, (), ("A  b",)), Run(2, (), ("c",))]

    def same(_: object) -> object:
        raise AssertionError("called by a thread that is not the test's")

    groups = []
    for compare in ("exact", "casefold", same):
        made = watched(sampler(), runs, compare)
        moment(2)
        groups.extend(one.groups for one in made.look())
        moment(0)
    assert groups == [3, 2, None]


def test_each_experiment_of_a_test_is_counted_for_itself(moment: Callable[[float], None]) -> None:
    made = watched(sampler(load="solo"), [Run(0, (), ("a",))], load=("solo", "burst"), attempts=2)
    moment(2)
    made.begin(sampler(load="burst", attempt=1), [Run(0, (), ("b",))])
    assert line(made.look()) == "[2/4] test_it under burst, attempt 2: 1 of 5 runs, 1 group"
