"""What a baseline keeps of a report, what it refuses, and how a test's answers compare with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism import settings as table
from pytest_llm_determinism.analysis.compare import RunOutput, form, resolve
from pytest_llm_determinism.analysis.groups import Group, group, outcomes
from pytest_llm_determinism.baseline import Baseline, condensed, load
from pytest_llm_determinism.experiment import experiment
from pytest_llm_determinism.results import AnswerCount, CallCount, Drift, Experiment, Shift, TestResult, read, report
from pytest_llm_determinism.runs import Exchange, Run
from pytest_llm_determinism.settings import SettingError, Settings, Value
from pytest_llm_determinism.shapes.request import question
from pytest_llm_determinism.verdict import DRIFTED, INCONCLUSIVE, NONDETERMINISTIC, PASSED

QUOTED = "baseline=base.json (--determinism-baseline)"


def canonical(prompt: str, host: str = "http://a:1") -> str:
    return json.dumps({"api": "chat", "url": f"{host}/v1/chat/completions", "body": {"prompt": prompt}})


def made(
    *runs: Sequence[tuple[str, str]] | str,
    load: str = "burst",
    attempt: int = 0,
    host: str = "http://a:1",
    fingerprint: str | None = "fp-1",
    wanted: int | None = None,
    compare: object = "exact",
) -> Experiment:
    """The experiment of these runs, each a sequence of prompts and answers, or the answer to one prompt."""
    requests: dict[str, str] = {}
    kept = []
    for index, asked in enumerate(runs):
        exchanges = []
        for prompt, answer in [("?", asked)] if isinstance(asked, str) else asked:
            requests[f"{host} {prompt}"] = canonical(prompt, host)
            exchanges.append(Exchange(f"{host} {prompt}", 0, answer, "m-1", fingerprint, "stop", 7, 3))
        kept.append(Run(index, tuple(exchanges)))
    return experiment(
        load=load,
        attempt=attempt,
        seed=len(kept) * 7,
        wanted=len(kept) if wanted is None else wanted,
        runs=kept,
        items=outcomes(kept, kept[0]) if kept else [],
        requests=requests,
        comparison=resolve(compare),
        confidence=0.95,
        calls=CallCount(3, 1, "2026-01-02T03:04:05+00:00"),
        neighbour_calls=0,
        seconds=1.5,
        failures=[],
    )


def judged(*experiments: Experiment, nodeid: str = "t.py::t", verdict: str = PASSED, **values: Any) -> TestResult:
    counts = tuple(found.count for made in experiments for found in made.groups)
    return TestResult(nodeid, verdict, "in short", len(counts), in_force(**values).to_json(), experiments, counts)


def in_force(**values: Any) -> Settings:
    return table.resolve({}, {name: Value(value, "marker", "the marker") for name, value in values.items()}, {})


def baseline(*experiments: Experiment, **values: Any) -> Baseline:
    return Baseline(report([judged(*experiments, **values)], {}), QUOTED)


def compared(then: Sequence[Experiment], now: Sequence[Experiment]) -> Drift:
    found = baseline(*then).drift("t.py::t", now)
    assert found is not None
    return found


# What is compared


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a\nb",), ("a", "b")),
        (("a", ""), ("a",)),
        (("ab", "c"), ("a", "bc")),
        ((), ("",)),
        ("1", 1),
        (b"a", "a"),
        (None, "None"),
        (frozenset("ab"), ("a", "b")),
        (frozenset(["ab"]), frozenset("ab")),
        (1, 2),
        (float("inf"), float("-inf")),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_forms_that_differ_have_another_sha(one: Any, other: Any) -> None:
    assert form(one)
    assert form(other)
    assert form(one) != form(other)


def test_equal_forms_have_one_sha() -> None:
    assert len({form(number) for number in (1, 1.0, True, Decimal(1))}) == 1
    assert form(0.0) == form(-0.0)
    keyed = resolve(lambda output: {"b": [1, {2, 3}], "a": float("nan")})
    assert form(keyed.key(RunOutput(("x",)))) == form(keyed.key(RunOutput(("y",))))


plain = st.recursive(
    st.none() | st.text(max_size=3) | st.integers(-2, 2) | st.floats(-2, 2) | st.binary(max_size=2),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)


@given(plain, plain)
def test_the_sha_of_two_forms_is_the_same_just_if_they_are_equal(one: Any, other: Any) -> None:
    assert (form(one) == form(other)) is (one == other)


def test_it_is_the_same_in_every_process() -> None:
    # Strings have another hash, and so sets another order, in each process.
    key = resolve(lambda output: {"b": [1, 2.5, None], "a": {*output}}).key(RunOutput(("Zürich \ud83d",)))
    assert form(key) == "a402e55bc0831393d0931fb70ff6d4a170d187bc3ee7fcd63427a833c84231b8"


def test_objects_that_only_this_process_knows_have_none() -> None:
    assert form((object(), "a")) == ""


# Comparing


def test_the_same_answers() -> None:
    found = compared([made("a", "a", "b")], [made("b", "a", "a", host="https://other")])
    assert found.shifts[0].answers == (AnswerCount("a", 2, 2), AnswerCount("b", 1, 1))
    assert found == Drift(chance=found.chance, shifts=(Shift("burst", found.shifts[0].chance, False, _answers(found)),))
    assert found.chance == pytest.approx(1.0)


def test_another_stable_answer_is_told_whatever_the_chance() -> None:
    found = compared([made("a", "a")], [made("b", "b", fingerprint="fp-2")])
    assert set(_answers(found)) == {AnswerCount("a", 2, 0), AnswerCount("b", 0, 2)}
    assert (found.replaced, found.chance) == (True, pytest.approx(1 / 3))
    assert found.backend == ("system_fingerprint was fp-1, is fp-2",)


def test_of_many_answers_the_most_frequent_are_kept_and_of_long_ones_the_beginning() -> None:
    found = compared([made(*(f"{number}{'x' * 300}" for number in range(20)))], [made("a", "a")])
    answers = _answers(found)
    assert (len(answers), found.shifts[0].more, answers[0]) == (12, 9, AnswerCount("a", 0, 2))
    assert {len(answer.output) for answer in answers[1:]} == {201}


def _answers(found: Drift) -> tuple[AnswerCount, ...]:
    return found.shifts[0].answers


def test_attempts_of_a_load_are_one_sample_and_loads_are_corrected_for() -> None:
    then = [made(*"aaaaa", load="solo"), made(*"aaaaa", load="solo", attempt=1), made(*"aaaaa")]
    now = [made(*"aaabb", load="solo"), made(*"abbbb", load="solo", attempt=1), made(*"aaaaa")]
    found = compared(then, now)

    assert [(shift.load, shift.answers[0]) for shift in found.shifts] == [
        ("solo", AnswerCount("a", 10, 4)),
        ("burst", AnswerCount("a", 5, 5)),
    ]
    assert found.chance == pytest.approx(2 * found.shifts[0].chance) == pytest.approx(2 * 0.010836, rel=1e-3)


def test_what_stopped_early_proves_no_change() -> None:
    found = compared([made(*"aaaaaaaaaa")], [made(*"bbbbbbbbbc", wanted=30)])
    assert found.chance == 1.0
    assert found.shifts[0].chance < 0.001


def test_what_is_asked_must_be_the_same() -> None:
    found = compared([made([("one", "a")])], [made([("two", "a")])])
    assert found == Drift(
        refused="the question is another than in the baseline at step 1, so the answers cannot be compared"
    )
    found = compared([made([("one", "a")])], [made([("one", "a"), ("two", "b")])])
    assert found.refused == "the question is another than in the baseline at step 2, so the answers cannot be compared"


def test_what_is_asked_after_another_answer_may_be_another() -> None:
    found = compared([made([("one", "a"), ("two a", "b")])], [made([("one", "c"), ("two c", "b")])])
    assert found.refused is None
    assert found.replaced


def test_prompts_that_vary_in_every_run_are_told_as_such() -> None:
    found = compared([made([("1", "a")], [("2", "a")])], [made([("3", "a")], [("4", "a")])])
    assert found.refused is not None
    assert found.refused.startswith("it sent 2 different requests at step 1, and others than in the baseline;")
    # The same two each time are the same question.
    assert compared([made([("1", "a")], [("2", "a")])], [made([("2", "a")], [("1", "a")])]).refused is None


def test_a_comparison_that_no_other_session_can_repeat_is_told() -> None:
    found = compared([made("a", "a", compare=lambda output: object)], [made("a", "a", compare=lambda output: object)])
    assert found.refused is None
    found = compared([made("a", "a")], [made("a", "a", compare=lambda output: compared)])
    assert found.refused is not None
    assert found.refused.startswith("its comparison returns objects that no other session can recognise")


def test_tests_without_evidence_are_not_in_it() -> None:
    held = Baseline(
        report(
            [
                judged(made("a", "a"), nodeid="whole"),
                judged(made(), nodeid="silent"),
                judged(made("a", wanted=3), nodeid="stopped"),
                judged(nodeid="refused"),
            ],
            {},
        ),
        QUOTED,
    )
    assert [name for name in ("whole", "silent", "stopped", "refused", "unknown") if name in held] == ["whole"]
    assert held.missing(["other"]) == ["whole"]
    assert held.drift("unknown", [made("a")]) is None


def test_things_asked_at_once_are_compared_in_the_order_of_the_baseline() -> None:
    held = baseline(made([("one", "a"), ("two", "b"), ("one ", "c")]))
    requests = {prompt: canonical(prompt, "https://b") for prompt in ("one", "one ", "two", "three")}
    run = Run(0, tuple(Exchange(key, 0, key, None, None, None, None, None) for key in ("two", "one ", "one")))

    assert [exchange.request for exchange in held.in_order("t.py::t", run, requests).exchanges] == [
        "one",
        "two",
        "one ",
    ]
    other = replace(run, exchanges=(*run.exchanges, Exchange("three", 0, "", None, None, None, None, None)))
    assert held.in_order("t.py::t", other, requests) is other
    assert held.in_order("unknown", run, requests) is run


def test_which_server_is_asked_is_no_part_of_the_question() -> None:
    asked = question(canonical("?"))
    assert asked == question(canonical("?", "https://b:2")) == question(canonical("?", "reference:fp"))
    assert asked != question(canonical("!"))


# Settings


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({}, {}, None),
        ({"runs": 10, "max_unique": 3, "concurrency": 2}, {}, None),
        ({"load": ("solo", "burst")}, {"load": ("burst", "solo")}, None),
        ({"load": ("solo", "burst")}, {}, "load=solo,burst (marker) then, load=burst (default) now"),
        ({"ignore": ("user",)}, {}, "ignore=user (marker) then, ignore=none (default) now"),
        ({}, {"compare": len}, "compare=exact (default) then, compare=builtins:len (the marker) now"),
        (
            {"override": table.Override({"seed": 7})},
            {"override": table.Override({"seed": 8})},
            "override=seed=7 (marker) then, override=seed=8 (the marker) now",
        ),
    ],
)
def test_other_settings_are_refused(then: dict[str, Any], now: dict[str, Any], told: str | None) -> None:
    held = baseline(made("a"), **then)
    held.check("unknown", in_force(**now), asks_with_llm=True)
    if told is None:
        held.check("t.py::t", in_force(**now), asks_with_llm=True)
        return
    with pytest.raises(SettingError) as error:
        held.check("t.py::t", in_force(**now), asks_with_llm=False)
    assert str(error.value) == (
        f"{QUOTED}: was made under other settings: {told}; set them as they were, or renew the baseline:"
        " llm-determinism report baseline REPORT.json -o BASELINE.json"
    )


def test_what_only_llm_asks_with_matters_only_to_it() -> None:
    held = baseline(made("a"), model=("m",))
    now = in_force(model=("n",), temperature=1)
    held.check("t.py::t", now, asks_with_llm=False)
    with pytest.raises(SettingError, match=r"temperature=0 .* temperature=1 .*; model=m .* model=n"):
        held.check("t.py::t", now, asks_with_llm=True)
    # With several, each test is of one of them, and its node id says which.
    baseline(made("a"), model=("m", "n")).check("t.py::t", in_force(model=("n", "o")), asks_with_llm=True)


# All of a session


def test_only_passed_tests_become_drifted() -> None:
    held = baseline(made(*"aaaaaaaaaa"))
    changed = judged(made(*"aaaaabbbbb"))
    drift = held.drift("t.py::t", changed.experiments)
    results = {
        name: replace(changed, nodeid=name, verdict=verdict, drift=replace(drift, overruled=name == "overruled"))
        for name, verdict in {
            "passed": PASSED,
            "overruled": PASSED,
            "nondeterministic": NONDETERMINISTIC,
            "inconclusive": INCONCLUSIVE,
        }.items()
    }
    results["not compared"] = replace(changed, drift=Drift(refused="another question"))
    results["new"] = changed
    settled, found = held.settled(results)

    assert found == ["passed"]
    assert {name: result.verdict for name, result in settled.items()} == {
        "passed": DRIFTED,
        "overruled": PASSED,
        "nondeterministic": NONDETERMINISTIC,
        "inconclusive": INCONCLUSIVE,
        "not compared": PASSED,
        "new": PASSED,
    }
    assert settled["passed"].reason == (
        "in short, distributed otherwise than in the baseline: 10/0 then, 5/5 now (p = 0.033, which stands out among 4"
        " tests)"
    )


# The small form


def test_a_condensed_report_is_a_report_and_as_good_a_baseline(tmp_path: Path) -> None:
    long = "x" * 5000 + "\ud83d\x1b[31m"
    tests = [judged(made(long, long, "b"), nodeid="z"), replace(judged(made("a", "a"), nodeid="a"), shard=0)]
    whole = report(tests, {"pytest": "9"})
    small = condensed(whole)

    path = tmp_path / "base.json"
    path.write_text(json.dumps(small, indent=1))
    assert read(path) == small
    assert [test["nodeid"] for test in small["tests"]] == ["a", "z"]
    assert len(path.read_text()) < 6000
    assert condensed(small) == small
    loaded, again = load(path, QUOTED)
    assert again == small
    now = [made(long, "b", "b")]
    assert loaded.drift("z", now) == Baseline(whole, QUOTED).drift("z", now)


def test_the_same_answers_give_the_same_bytes() -> None:
    one = [judged(made("a", "a", "b"), nodeid="b"), judged(made("c", "c"), nodeid="a")]
    other = [
        replace(judged(made("c", "c", host="https://b"), nodeid="a", rate=table.Rate(1, "1/s")), advice="renew"),
        judged(made("b", "a", "a", host="https://b"), nodeid="b"),
    ]
    assert json.dumps(condensed(report(one, {}))) == json.dumps(condensed(report(other, {"host": "b"})))


@pytest.mark.parametrize(
    ("verdict", "drift", "kept"),
    [
        (DRIFTED, Drift(0.001), (PASSED, "1 unique of 2")),
        (INCONCLUSIVE, Drift(refused="another question"), (PASSED, "1 unique of 2")),
        (INCONCLUSIVE, None, (INCONCLUSIVE, "in short")),
        (NONDETERMINISTIC, Drift(0.001), (NONDETERMINISTIC, "in short")),
    ],
)
def test_what_was_said_because_of_the_last_baseline_is_not_kept(
    verdict: str, drift: Drift | None, kept: tuple[str, str]
) -> None:
    small = condensed(report([replace(judged(made("a", "a"), verdict=verdict), drift=drift)], {}))
    assert (small["tests"][0]["verdict"], small["tests"][0]["reason"], small["tests"][0]["drift"]) == (*kept, None)


def test_a_report_of_an_older_version_is_refused() -> None:
    old = report([judged(made("a"))], {})
    del old["tests"][0]["experiments"][0]["groups"][0]["form"]
    with pytest.raises(SettingError) as error:
        Baseline(old, QUOTED)
    assert str(error.value) == (
        f"{QUOTED}: was made by a version that did not keep what answers are compared by; make it anew"
    )


def test_groups_know_their_form() -> None:
    comparison = resolve("casefold")
    run = [
        Run(index, (Exchange("k", 0, text, None, None, None, None, None),)) for index, text in enumerate(["A", "a "])
    ]
    found: list[Group] = group(outcomes(run, run[0]), comparison)
    assert [group.form for group in found] == [form(("a",))]
