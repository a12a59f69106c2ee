import hashlib
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llm_determinism.analysis.compare import NAMED, form, resolve
from pytest_llm_determinism.analysis.groups import Group, group, in_order_of, missing_calls, outcomes
from pytest_llm_determinism.runs import Exchange, Run


def exchange(request, output="", occurrence=0, fingerprint=None, model=None):
    return Exchange(request, occurrence, output, model, fingerprint, "stop", 7, 3)


def run(index, *asked, **more):
    """A run that asked these requests, written "A" or "A=answer", in this order."""
    return Run(index, tuple(exchange(*text.split("=")) for text in asked), **more)


def requests(slots):
    return [found and found.request for found in slots]


def outputs(*runs):
    """The parts each of these runs is compared by, by run; the first is the one that gives the order."""
    return {item.run.index: item.output.parts for item in outcomes(runs, runs[0])}


def grouped(runs, compare="exact"):
    return group(outcomes(runs, runs[0]), resolve(compare))


# Order

exchanges = st.lists(
    st.builds(exchange, st.sampled_from("ABCDE"), st.sampled_from(("yes", "no")), st.integers(0, 2)),
    unique_by=lambda found: (found.request, found.occurrence),
)


@settings(deadline=None)
@given(exchanges, st.data())
def test_any_order_of_the_same_exchanges_gives_the_slots_of_the_first_run(asked, data):
    first = Run(0, tuple(asked))
    other = Run(1, tuple(data.draw(st.permutations(asked))))
    assert in_order_of(first, other) == in_order_of(first, first) == first.exchanges


@settings(deadline=None)
@given(exchanges, st.data())
def test_any_order_of_a_part_of_the_exchanges_gives_the_same_slots(asked, data):
    first = Run(0, tuple(asked))
    part = data.draw(st.lists(st.sampled_from(asked), unique=True)) if asked else []
    slots = in_order_of(first, Run(1, tuple(part)))
    assert slots == in_order_of(first, Run(1, tuple(data.draw(st.permutations(part)))))
    assert [found for found in slots if found is not None] == [found for found in asked if found in part]
    assert all(found in (None, expected) for found, expected in zip(slots, asked, strict=False))
    assert slots[-1:] != (None,)


@settings(deadline=None)
@given(exchanges, exchanges)
def test_no_exchange_is_lost_or_doubled(asked, others):
    slots = in_order_of(Run(0, tuple(asked)), Run(1, tuple(others)))
    assert sorted(str(found) for found in slots if found is not None) == sorted(map(str, others))


@pytest.mark.parametrize(
    ("first", "asked", "slots"),
    [
        pytest.param("ABC", "CAB", "ABC", id="another order"),
        pytest.param("ABC", "AXC", "AXC", id="a prompt that varies"),
        pytest.param("ABC", "XCA", "AXC", id="a prompt that varies, in another order"),
        pytest.param("ABC", "YXB", "YBX", id="two that vary, as they were started"),
        pytest.param("AB", "AXBY", "ABXY", id="more than the first run made"),
        pytest.param("ABC", "CX", "X C", id="a place that stays free"),
        pytest.param("ABC", "A", "A", id="no free places at the end"),
        pytest.param("", "BA", "BA", id="a first run without a call"),
        pytest.param("AB", "", "", id="no call"),
    ],
)
def test_the_place_of_each_exchange(first, asked, slots):
    found = in_order_of(run(0, *first), run(1, *asked))
    assert requests(found) == [None if letter == " " else letter for letter in slots]


def test_the_same_request_sent_twice_has_two_places():
    first = Run(0, (exchange("A", "one"), exchange("A", "two", occurrence=1), exchange("B")))
    other = Run(1, (exchange("A", "2", occurrence=1), exchange("B"), exchange("A", "1")))
    assert [found.output for found in in_order_of(first, other)] == ["1", "2", ""]


# Outputs


def test_the_output_of_a_run_is_that_of_its_exchanges_in_the_order_of_the_first_run():
    assert outputs(run(0, "A=one", "B=two"), run(1, "B=two", "A=one")) == {0: ("one", "two"), 1: ("one", "two")}


def test_what_is_recorded_beats_the_exchanges_of_every_run():
    runs = [run(0, "A=one"), run(1, "A=two", recorded=("refund", "7")), run(2, "A=three", recorded=("refund",))]
    assert outputs(*runs) == {0: (), 1: ("refund", "7"), 2: ("refund",)}


def test_runs_that_ended_in_an_api_error_are_left_out():
    runs = [run(0, "A=one", error="HTTP 500: overloaded"), run(1, "A=two"), run(2, error="TimeoutError: ")]
    assert outputs(*runs) == {1: ("two",)}


def test_a_gap_is_no_part_of_the_output():
    assert outputs(run(0, "A=one", "B=two"), run(1, "B=two")) == {0: ("one", "two"), 1: ("two",)}


def test_equal_outputs_are_one_object():
    runs = [run(index, "A=" + "".join(["refund"] * 2)) for index in range(3)]
    assert len({id(item.output) for item in outcomes(runs, runs[0])}) == 1


# Groups


def test_a_group_says_what_is_known_of_its_runs():
    runs = [
        Run(0, (exchange("A", "Paris", model="m-1", fingerprint="fp_b"), exchange("B", "Seine"))),
        Run(1, (exchange("A", "Lyon", model="m-2", fingerprint="fp_c"), exchange("B", "Rhône"))),
        Run(2, (exchange("A", "Paris", model="m-1", fingerprint="fp_a"), exchange("B", "Seine", model="m-0"))),
    ]
    assert grouped(runs) == [
        Group(
            count=2,
            output="Paris\nSeine",
            sha256=hashlib.sha256(b"Paris\nSeine").hexdigest(),
            runs=(0, 2),
            fingerprints=("fp_a", "fp_b"),
            models=("m-0", "m-1"),
            parts=("Paris", "Seine"),
            form=form(("Paris", "Seine")),
        ),
        Group(
            count=1,
            output="Lyon\nRhône",
            sha256=hashlib.sha256("Lyon\nRhône".encode()).hexdigest(),
            runs=(1,),
            fingerprints=("fp_c",),
            models=("m-2",),
            parts=("Lyon", "Rhône"),
            form=form(("Lyon", "Rhône")),
        ),
    ]


def test_the_largest_group_comes_first_and_of_equal_ones_the_earliest():
    runs = [run(index, f"A={letter}") for index, letter in enumerate("dbcabcaa")]
    assert [(found.output, found.count) for found in grouped(runs)] == [("a", 3), ("b", 2), ("c", 2), ("d", 1)]


def test_a_group_shows_the_output_of_its_first_run():
    runs = [run(3, "A= Refund\n"), run(4, "A=refund"), run(7, "A=REFUND")]
    (found,) = grouped(runs, "casefold")
    assert (found.output, found.parts, found.runs) == (" Refund\n", (" Refund\n",), (3, 4, 7))
    assert found.sha256 == hashlib.sha256(b" Refund\n").hexdigest()


def test_steps_that_differ_are_two_groups_although_the_text_is_the_same():
    found = grouped([run(0, "A=a\nb"), run(1, "A=a", "B=b")])
    assert [(one.output, one.parts) for one in found] == [("a\nb", ("a\nb",)), ("a\nb", ("a", "b"))]


def test_the_output_of_a_group_is_plain_text_even_of_half_a_character():
    (found,) = grouped([run(0, "A=\ud83d")])
    assert type(found.output) is str
    assert found.sha256 == hashlib.sha256(b"\xed\xa0\xbd").hexdigest()


def test_each_output_is_normalised_once():
    normalised = []
    comparison = replace(resolve("exact"), normalise=lambda text: normalised.append(text) or text)
    runs = [run(index, f"A={'ab'[index % 2]}") for index in range(50)]
    group(outcomes(runs, runs[0]), comparison)
    assert sorted(normalised) == ["a", "b"]


def test_no_runs_are_no_groups():
    assert group([], resolve("exact")) == []


some_runs = st.lists(
    st.lists(
        st.builds(
            exchange,
            st.sampled_from("AB"),
            st.sampled_from(("yes", "Yes", " yes", '{"a": 1}', '{"a":1.0}', "")),
            fingerprint=st.sampled_from((None, "fp_1", "fp_2")),
            model=st.sampled_from((None, "m")),
        ),
        unique_by=lambda found: found.request,
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(some_runs, st.sampled_from(list(NAMED)))
def test_groups_are_those_of_a_slow_obvious_grouping(asked, compare):
    runs = [Run(index, tuple(made)) for index, made in enumerate(asked)]
    items = outcomes(runs, runs[0])

    piles = []
    for item in items:
        for pile in piles:
            if resolve(compare).key(pile[0].output) == resolve(compare).key(item.output):
                pile.append(item)
                break
        else:
            piles.append([item])
    piles.sort(key=len, reverse=True)

    found = group(items, resolve(compare))
    assert [one.runs for one in found] == [tuple(item.run.index for item in pile) for pile in piles]
    assert [one.count for one in found] == [len(pile) for pile in piles]
    for one, pile in zip(found, piles, strict=True):
        said = [exchange for item in pile for exchange in item.run.exchanges]
        assert one.output == "\n".join(pile[0].output.parts)
        assert one.sha256 == hashlib.sha256(one.output.encode()).hexdigest()
        assert one.fingerprints == tuple(sorted({exchange.fingerprint for exchange in said} - {None}))
        assert one.models == tuple(sorted({exchange.model for exchange in said} - {None}))


def test_memory_grows_with_outputs_and_not_with_runs():
    answers = [(exchange("A", str(number) * 4000),) for number in range(10)]
    tracemalloc.start()
    try:
        runs = [Run(index, answers[index % 10]) for index in range(100_000)]
        items = outcomes(runs, runs[0])
        found = group(items, resolve("whitespace"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one.count for one in found] == [10_000] * 10
    assert most < 50_000_000


# Calls that some runs did not make


def missing(*runs):
    """What is missing as (1-based step, runs that made the call, runs that did not)."""
    return [
        (found.step + 1, [item.run.index for item in found.made], [item.run.index for item in found.missing])
        for found in missing_calls(outcomes(runs, runs[0]))
    ]


def test_runs_that_make_no_call_at_all_are_missing():
    assert missing(run(0, "A=yes"), run(1), run(2)) == [(1, [0], [1, 2])]


def test_runs_that_stop_early_though_they_were_told_the_same_are_missing():
    runs = [run(0, "A=yes", "B=no"), run(1, "A=yes"), run(2, "A=yes", "B=maybe"), run(3, "A=yes")]
    assert missing(*runs) == [(2, [0, 2], [1, 3])]


def test_a_gap_between_calls_is_missing():
    assert missing(run(0, "A=yes", "B=no", "C=so"), run(1, "A=yes", "C=so")) == [(2, [0], [1])]
    assert missing(run(0, "A=yes", "B=no"), run(1, "B=no")) == [(1, [0], [1])]


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([], id="no runs"),
        pytest.param([run(0), run(1)], id="no calls"),
        pytest.param([run(0, "A=yes", "B=no"), run(1, "B=no", "A=yes")], id="another order"),
        pytest.param([run(0, "A=yes", "B=no"), run(1, "A=yes", "X=no")], id="a prompt that varies"),
        pytest.param([run(0, "A=yes", "B=no"), run(1, "A=maybe")], id="parted before"),
        pytest.param([run(0, "A=yes", "B=no"), run(1, "A=yes", "B=maybe", "C=so")], id="parted before, one goes on"),
        pytest.param([run(0, "A=yes"), run(1, broken_off=True)], id="broken off before the call"),
        pytest.param([run(0, "A=yes", broken_off=True), run(1)], id="broken off after the call"),
        pytest.param([run(0, "A=yes", "B=no"), run(1, "A=yes", broken_off=True)], id="broken off between calls"),
        pytest.param([run(0, "A=yes"), run(1, error="HTTP 500: ")], id="an API error"),
        pytest.param([run(0, "A=yes", broken_off=True), run(1, "B=no"), run(2, "B=no")], id="a gap of all runs"),
    ],
)
def test_runs_that_had_a_reason_are_not_missing(runs):
    assert list(missing_calls(outcomes(runs, runs[0] if runs else run(0)))) == []


def test_runs_parted_before_are_looked_at_each_with_their_own():
    runs = [run(0, "A=yes"), run(1, "A=no", "B=so"), run(2, "A=yes"), run(3, "A=no")]
    assert missing(*runs) == [(2, [1], [3])]


def test_a_call_after_a_gap_of_all_runs_is_missing():
    runs = [run(0, "A=yes", "B=no", "C=so", broken_off=True), run(1, "A=yes", "C=so"), run(2, "A=yes")]
    assert missing(*runs) == [(3, [1], [2])]


def test_all_missing_calls_are_found_the_earliest_first():
    runs = [
        run(0, "A=yes", "B=no", "C=so"),
        run(1, "A=yes", "B=no"),
        run(2, "B=no", "C=so"),
        run(3, "A=yes", "C=so"),
        run(4, "A=yes", "B=no", "C=so"),
    ]
    assert missing(*runs) == [(1, [0, 1, 3, 4], [2]), (2, [0, 1, 4], [3]), (3, [0, 4], [1])]
