"""What a person reads: the failure of a test, and its line in the summary."""

import datetime
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.excerpt import columns
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import outcomes
from pytest_llm_determinism.experiment import experiment
from pytest_llm_determinism.report.text import age, cost, explain, spent, table, worth
from pytest_llm_determinism.results import CallCount, Cost, TestResult
from pytest_llm_determinism.runs import Exchange, Run

NOW = datetime.datetime(2026, 1, 2, 12, 0, tzinfo=datetime.UTC)


def ago(**more):
    return (NOW - datetime.timedelta(**more)).isoformat()


def made(*outputs, load="burst", attempt=0, live=None, cached=0, oldest=None, failures=(), compare="exact", seed=7):
    """An experiment with one run an output; a tuple is an output of several steps, an exception an API error, and a run
    itself."""
    runs = [output if isinstance(output, Run) else one_run(index, output) for index, output in enumerate(outputs)]
    return experiment(
        load=load,
        attempt=attempt,
        seed=seed,
        neighbour_calls=0,
        wanted=len(runs),
        runs=runs,
        items=outcomes(runs, runs[0]) if runs else [],
        requests={},
        comparison=resolve(compare),
        confidence=0.95,
        calls=CallCount(len(runs) if live is None else live, cached, oldest),
        seconds=1.0,
        failures=failures,
    )


def one_run(index, output):
    if isinstance(output, Exception):
        return Run(index, (), error=str(output))
    steps = (output,) if isinstance(output, str) else output
    return Run(index, tuple(Exchange(f"q{step}", 0, text, "m", None, "stop", 1, 1) for step, text in enumerate(steps)))


def result(*experiments, verdict="nondeterministic", reason="2 unique of 5 (4/1), max_unique=1", **more):
    counts = (5,) if experiments else ()
    more = {"settings": {}, "counts": counts, **more}
    return TestResult("test_it.py::test", verdict, reason, 2, experiments=experiments, **more)


def told(*experiments, **more):
    return explain(result(*experiments, **more), NOW)


def body(*experiments, **more):
    """The lines about experiments, between reason and verdict."""
    lines = told(*experiments, **more).splitlines()
    return lines[2 : lines.index("verdict     nondeterministic") - 1]


# Whole texts


def test_one_experiment():
    found = made(*["The capital is Paris."] * 3, "The capital is Lyon.", "The capital is Paris.")
    text = told(
        found, decided_by="max_unique=1 (default)", advice="see whether load matters: --determinism-load=solo,burst"
    )
    assert (
        text
        == """\
2 unique of 5 (4/1), max_unique=1

under burst: 2 unique of 5 runs, another call agrees at least 24.9 % of the time, at 95 %
  they part after 3 words, “The capital is”
  ├─ 4 × “Paris.”  (runs 0, 1, 2, 4)
  └─ 1 × “Lyon.”  (run 3)
  5 calls live; seed 7

verdict     nondeterministic
decided by  max_unique=1 (default)
try next    see whether load matters: --determinism-load=solo,burst"""
    )


def test_how_many_outputs_there_were_as_written_is_told_where_the_comparison_makes_them_fewer():
    found = made("Yes", "YES", "yes", "no", compare="casefold")
    assert body(found)[0].startswith("under burst: 2 unique of 4 runs (4 as written), another call agrees at least ")
    passed = result(made("a", "a", compare="casefold"), found, verdict="passed", reason="1 unique of 6")
    assert "under burst; 4 unique as written; another call agrees" in table([passed], NOW)[0]


def test_what_was_overridden_stands_in_every_text():
    settings = {"override": {"value": ["seed=7", 'model="m"'], "source": "cli"}}
    shown = result(made("yes", "yes"), verdict="passed", reason="1 unique of 2", settings=settings)
    assert [line for line in explain(shown, NOW).splitlines() if "seed=7" in line] == [
        'override    seed=7, model="m"',
    ]
    assert 'under burst; override seed=7, model="m"; another call agrees' in table([shown], NOW)[0]


def test_reasoning_is_shown_below_the_output_it_led_to():
    runs = [
        Run(n, (Exchange("q", 0, text, "m", None, "stop", 1, 1, reasoning),))
        for n, (text, reasoning) in enumerate((("Paris", "France, so Paris."), ("Lyon", "\x1bFrance?"), ("Paris", "-")))
    ]
    assert body(made(*runs))[1:6] == [
        "  they part at the first word",
        "  ├─ 2 × “Paris”  (runs 0, 2)",
        "  │      reasoning: “France, so Paris.”",
        "  └─ 1 × “Lyon”  (run 1)",
        "         reasoning: “\\x1bFrance?”",
    ]
    assert body(made(*[replace(run, recorded=("Paris",)) for run in runs]))[1:2] == ["  3 × “Paris”"]
    same = [replace(run, exchanges=(replace(run.exchanges[0], output="Paris"),)) for run in runs]
    assert body(made(*same))[1:3] == ["  3 × “Paris”", "      reasoning: “France, so Paris.”"]


def test_groups_with_the_same_text_are_listed():
    runs = [one_run(index, "yes") for index in range(9)]
    runs = [replace(run, exchanges=(replace(run.exchanges[0], reasoning=str(min(run.index, 7))),)) for run in runs]
    assert body(made(*runs, compare=lambda output: output.reasoning))[1:-1] == [
        "  2 × “yes”  (runs 7, 8)",
        "      reasoning: “7”",
        *[line for run in range(5) for line in (f"  1 × “yes”  (run {run})", f"      reasoning: “{run}”")],
        "  … and 2 more groups",
    ]


def test_several_loads_tell_what_they_share_once():
    shared = Finding("load-sensitive", "each load is stable by itself, but they answer differently")
    solo = made(*["yes"] * 3, load="solo")
    burst = made(*["no"] * 3, seed=8)
    again = made(*["no"] * 3, attempt=1, live=0, cached=3, oldest=ago(hours=3), seed=9)
    text = told(
        replace(solo, findings=(shared,)),
        replace(burst, findings=(Finding("truncated", "all 3 outputs hit the token limit"), shared)),
        replace(again, findings=(Finding("truncated", "all 3 outputs hit the token limit"), shared)),
        reason="2 unique of 9 (6/3), max_unique=1",
    )
    assert (
        text
        == """\
2 unique of 9 (6/3), max_unique=1

under solo: 1 unique of 3 runs, another call agrees at least 22.4 % of the time, at 95 %
  3 × “yes”
  3 calls live; seed 7
  load-sensitive: each load is stable by itself, but they answer differently

under burst: 1 unique of 3 runs, another call agrees at least 22.4 % of the time, at 95 %
  3 × “no”
  3 calls live; seed 8
  truncated: all 3 outputs hit the token limit

under burst, attempt 2: 1 unique of 3 runs, another call agrees at least 22.4 % of the time, at 95 %
  3 × “no”
  3 answers from the store (oldest 3 hours): a replay is no new evidence; seed 9

verdict     nondeterministic"""
    )


def test_of_many_branches_the_first_are_shown():
    outputs = [f"Choose {word}." for word in "abcdefgh"]
    assert body(made(*outputs, *["Choose a."] * 10)) == [
        "under burst: 8 unique of 18 runs, another call agrees at least 36.4 % of the time, at 95 %",
        "  they part after 1 word, “Choose”",
        "  ├─ 11 × “a.”",
        "  ├─  1 × “b.”  (run 1)",
        "  ├─  1 × “c.”  (run 2)",
        "  ├─  1 × “d.”  (run 3)",
        "  ├─  1 × “e.”  (run 4)",
        "  ├─  1 × “f.”  (run 5)",
        "  └─ … and 2 more branches, of 2 runs",
        "  18 calls live; seed 7",
    ]


def test_an_agent_is_told_by_the_step_at_which_its_runs_part():
    found = made(("lookup(7)", "Refund it."), ("lookup(7)", "Refund half."), ("lookup(7)", "Refund it."))
    assert body(found)[1:-1] == [
        "  they part at step 2, after 1 word, “Refund”",
        "  ├─ 2 × “it.”  (runs 0, 2)",
        "  └─ 1 × “half.”  (run 1)",
    ]


def test_values_that_are_recorded_have_steps_too():
    runs = [Run(index, (), recorded=("refund", amount)) for index, amount in enumerate(("EUR 70", "EUR 75"))]
    assert body(made(*runs, live=0))[1:] == [
        "  they part at step 2, after 1 word, “EUR”",
        "  ├─ 1 × “70”  (run 0)",
        "  └─ 1 × “75”  (run 1)",
        "  0 calls live; seed 7",
    ]


def test_one_recorded_value_has_no_step_however_many_calls_were_made():
    runs = [replace(one_run(index, ("a", "b")), recorded=(text,)) for index, text in enumerate(("yes", "no"))]
    assert len(made(*runs).steps) == 2
    assert body(made(*runs))[1:-1] == [
        "  they part at the first word",
        "  ├─ 1 × “yes”  (run 0)",
        "  └─ 1 × “no”  (run 1)",
    ]


def test_an_output_that_ends_where_others_go_on():
    assert body(made("yes", "yes, and more", "yes"))[1:-1] == [
        "  they part after 1 word, “yes”",
        "  ├─ 2 × (the output ends)  (runs 0, 2)",
        "  └─ 1 × “, and more”  (run 1)",
    ]


def test_empty_outputs():
    assert body(made("", "", "so"))[1:-1] == [
        "  they part at the first word",
        "  ├─ 2 × (empty)  (runs 0, 1)",
        "  └─ 1 × “so”  (run 2)",
    ]
    assert body(made("", ""))[1:-1] == ["  2 × “”"]


def test_runs_of_a_group_are_named_when_they_are_few():
    lines = body(made(*"abababababababababab", *"aaa"))
    assert lines[2:4] == ["  ├─ 13 × “a”", "  └─ 10 × “b”"]
    lines = body(made(*"abababababababab"))
    assert lines[2:4] == [
        "  ├─ 8 × “a”  (runs 0, 2, 4, 6, 8, 10, 12, 14)",
        "  └─ 8 × “b”  (runs 1, 3, 5, 7, 9, 11, 13, 15)",
    ]


def test_errors_are_told_with_their_runs():
    text = told(
        made(ValueError("HTTP 500: busy"), ValueError("HTTP 429: slow"), ValueError("HTTP 500: busy")),
        verdict="inconclusive",
        reason="3 of 3 runs ended in an API error, max_errors=0: HTTP 500: busy",
        counts=(),
    )
    assert (
        text
        == """\
3 of 3 runs ended in an API error, max_errors=0: HTTP 500: busy

under burst: none of 3 runs completed
  2 × HTTP 500: busy  (runs 0, 2)
  1 × HTTP 429: slow  (run 1)
  3 calls live; seed 7

verdict     inconclusive"""
    )


def test_of_many_kinds_of_errors_the_most_frequent_are_shown():
    outputs = [ValueError(f"{name}Error: sorry") for name in "abcdefgh"] + [ValueError("zError: no 1")] * 9
    assert body(made("yes", *outputs, ValueError("zError: no 2")))[2:-1] == [
        "  10 × zError: no 1",
        "   1 × aError: sorry  (run 1)",
        "   1 × bError: sorry  (run 2)",
        "   1 × cError: sorry  (run 3)",
        "   1 × dError: sorry  (run 4)",
        "   1 × eError: sorry  (run 5)",
        "  … and 3 more kinds of errors",
    ]


def test_runs_without_output():
    assert body(made((), ()))[0] == "under burst: no output in 2 runs"
    assert body(made(()))[0] == "under burst: no output in 1 run"
    assert body(made(ValueError("sorry"), ValueError("sorry")))[0] == "under burst: none of 2 runs completed"


def test_a_refusal_before_any_run():
    assert told(verdict="inconclusive", reason="refused") == "refused\n\nverdict     inconclusive"


# Long and hostile texts


def test_long_outputs_are_shown_where_they_part():
    start = "so " * 2000
    lines = body(made(*[f"{start}it is {city}{' then' * 900} and so on." for city in ("Paris", "Lyon")]))
    assert lines[1:-1] == [
        "  they part after 2002 words, “…o so so so so so so so so so so so so so it is”",
        "  ├─ 1 × “Paris then then then then then then then then then then the…”  (run 0)",
        "  └─ 1 × “Lyon then then then then then then then then then then then…”  (run 1)",
    ]


HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "a\nb\r\nc\u2028d\x85e\x0bf",
    "\u202eevil\u2066\u200f",
    "\x00\x08\x7f\u200b\ufeff",
    "\ud83d",
    "\U000e0041",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_outputs_do_not_reach_the_terminal(hostile):
    lines = body(made(hostile, hostile + "x", "so " + hostile, ("a", hostile), ("a", hostile + " y")))
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_errors_and_requests_do_not_reach_the_terminal(hostile):
    found = replace(
        made("a", ValueError(f"HTTP 400: {hostile}")), findings=(Finding("prompt-varies", f"differ at {hostile}"),)
    )
    more = {"decided_by": f"compare={hostile} (default)", "advice": hostile}
    hurt = result(found, verdict="inconclusive", reason=f"HTTP 400: {hostile}", **more)
    text = explain(hurt, NOW)
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) == 11
    assert all(line.isprintable() for line in table([hurt, replace(hurt, counts=())], NOW))


def test_what_is_hostile_is_shown_as_an_escape():
    assert told(reason="HTTP 400: \x1b[31m\u202e\ud83d").splitlines()[0] == "HTTP 400: \\x1b[31m\\u202e\\ud83d"
    assert body(made("\x1b[31mred\n", "b\\"))[2:4] == [
        "  ├─ 1 × “\\x1b[31mred\\n”  (run 0)",
        "  └─ 1 × “b\\\\”  (run 1)",
    ]


def test_a_reason_of_several_lines_is_one_in_the_summary_of_pytest():
    assert told(reason="HTTP 500: busy\nsorry").splitlines()[0] == "HTTP 500: busy\\nsorry"


outputs = st.text(st.characters(), max_size=200) | st.text("a \n\x1b\u202e\ud800", max_size=300)


@settings(deadline=None)
@given(st.lists(st.tuples(outputs) | st.tuples(outputs, outputs), min_size=1, max_size=8))
def test_no_output_at_all_reaches_the_terminal_raw_or_at_length(texts):
    lines = body(replace(made(*texts), findings=()))
    assert all(line.isprintable() for line in lines)
    assert max(map(columns, lines)) <= 100
    assert len(lines) <= 24


# Where answers came from


@pytest.mark.parametrize(
    ("live", "cached", "oldest", "text"),
    [
        (0, 0, None, "0 calls live"),
        (1, 0, None, "1 call live"),
        (30, 0, None, "30 calls live"),
        (29, 1, ago(hours=3), "29 calls live, 1 answer from the store (oldest 3 hours)"),
        (1, 29, None, "1 call live, 29 answers from the store"),
        (0, 30, ago(days=2), "30 answers from the store (oldest 2 days): a replay is no new evidence"),
        (0, 1, None, "1 answer from the store: a replay is no new evidence"),
    ],
)
def test_where_answers_came_from(live, cached, oldest, text):
    found = made("a", "a", live=live, cached=cached, oldest=oldest)
    assert body(found)[-1] == f"  {text}; seed 7"
    assert table([result(found)], NOW)[0].endswith(f"at 95 %; {text}")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"seconds": -90}, "0 seconds"),
        ({"seconds": 0}, "0 seconds"),
        ({"seconds": 1}, "1 second"),
        ({"seconds": 1.9}, "1 second"),
        ({"seconds": 59.9}, "59 seconds"),
        ({"minutes": 1}, "1 minute"),
        ({"minutes": 59, "seconds": 59}, "59 minutes"),
        ({"hours": 1}, "1 hour"),
        ({"hours": 23, "minutes": 59}, "23 hours"),
        ({"days": 1}, "1 day"),
        ({"days": 400}, "400 days"),
    ],
)
def test_the_age_of_a_sample(more, text):
    assert age(ago(**more), NOW) == text


def test_the_age_of_a_sample_from_another_time_zone():
    assert age("2026-01-02T12:30:00+02:00", NOW) == "1 hour"


# The summary


BOUND = "another call agrees at least"


def test_the_table():
    stable = made(*["a"] * 3, load="solo")
    drawn = replace(
        made("a", "b", "a"), findings=(Finding("sampling-on", "temperature is 1"), Finding("truncated", ""))
    )
    more = replace(made(*"aab", attempt=1, live=0, cached=3, oldest=ago(hours=1)), findings=drawn.findings[:1])
    lines = table(
        [
            replace(result(stable, counts=(3,)), nodeid="a.py::test_a", verdict="passed", reason="1 unique of 3"),
            result(drawn, more, counts=(4, 2), reason="2 unique of 6 (4/2), max_unique=1"),
            replace(
                result(made(ValueError("x")), counts=(), reason="1 of 1 runs ended\n in an API error: " + "x" * 200),
                verdict="inconclusive",
            ),
        ],
        NOW,
    )
    assert [line.partition("under ")[0] for line in lines] == [
        "passed            a.py::test_a      1 unique of 3                      ",
        "nondeterministic  test_it.py::test  2 unique of 6 (4/2), max_unique=1  ",
        "inconclusive      test_it.py::test  1 of 1 runs ended in an API error: " + "x" * 200,
    ]
    assert [line.partition("under ")[2].split("; ") for line in lines] == [
        ["solo", f"{BOUND} 22.4 % of the time, at 95 %", "3 calls live"],
        [
            "burst",
            f"{BOUND} 2.5 % of the time, at 95 %",
            "3 calls live, 3 answers from the store (oldest 1 hour)",
            "sampling-on",
            "truncated",
        ],
        [""],
    ]


def test_several_loads_share_one_line_with_the_lowest_bound():
    found = result(made(*["a"] * 30, load="solo"), made(*["a"] * 3))
    (line,) = table([found], NOW)
    assert line.endswith(f"  under solo,burst; {BOUND} 22.4 % of the time, at 95 %; 33 calls live")


def test_the_table_of_no_results():
    assert table([], NOW) == []


def test_runs_that_were_not_made_are_said():
    runs = [one_run(index, output) for index, output in enumerate("aab")]
    stopped = replace(made(*runs, ValueError("HTTP 500")), runs=30)
    assert body(stopped)[0] == (
        f"under burst: 2 unique of 3 runs, {BOUND} 2.5 % of the time, at 95 %; stopped after 4 of 30 runs, and those"
        " not made count as disagreeing"
    )


def test_what_a_pass_is_worth_is_told_of_the_fewest_runs_that_passed():
    settings = {"max_unique": {"value": 1, "source": "default"}}
    passed = [
        replace(result(made("yes", "yes"), settings=settings, counts=(count,)), verdict="passed") for count in (300, 30)
    ]
    failed = result(made("yes", "no"), settings=settings, counts=(1, 1))
    (line,) = worth([*passed, failed])
    assert line == (
        "with 30 runs, a model that flips 1 % of the time passes this gate 74 % of the time; to catch it 95 times of"
        " 100 takes 299 runs"
    )
    assert worth([failed]) == []


# Money


def paid(live, saved=0.0, currency="USD"):
    return replace(made("yes"), cost=Cost(live, saved, currency))


def unpriced(reason):
    return replace(made("yes"), unpriced=reason)


@pytest.mark.parametrize(
    ("experiments", "text"),
    [
        ([paid(0.01), paid(0.0023)], "spent about 0.0123 USD live"),
        ([paid(0.0123, 0.45)], "spent about 0.0123 USD live, 0.45 USD saved by the store"),
        ([paid(0.0, 0.45)], "about 0.45 USD saved by the store"),
        ([paid(0.0)], "spent nothing"),
        (
            [paid(1.0), paid(2.0, 4.0, "EUR")],
            "spent about 1.00 USD live; spent about 2.00 EUR live, 4.00 EUR saved by the store",
        ),
        ([paid(1.0), made("yes")], "spent about 1.00 USD live; no price known for the rest"),
        ([made("yes")], "no price known"),
    ],
)
def test_what_experiments_cost(experiments, text):
    assert cost(experiments) == text


def test_a_session_says_what_it_cost_and_of_which_tests_that_is_not_known():
    one, other = result(paid(0.5), unpriced("no price is known for m\x1b[2J")), result(unpriced("why not"))
    assert spent([one, replace(other, nodeid="test_it.py::other"), other]) == [
        "spent about 0.50 USD live (estimated by public list prices, without the tests whose cost is not known)",
        "cost not known of 1 test: no price is known for m\\x1b[2J",
        "cost not known of 2 tests: why not",
    ]
    assert spent([result(*(unpriced(f"reason {number}") for number in range(7)))]) == [
        *(f"cost not known of 1 test: reason {number}" for number in range(5)),
        "cost not known for 2 more reasons",
    ]


def test_nobody_is_told_of_money_that_was_not_asked_for_or_not_spent():
    assert spent([result(made("yes")), result(paid(0.0))]) == []
    assert body(paid(0.0)) == body(made("yes"))
    assert body(paid(0.0123))[-1] == "  1 call live; spent about 0.0123 USD live; seed 7"
