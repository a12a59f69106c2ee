"""The exact tests against scipy's, against all orders counted one by one, and against what chance does."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_llm_determinism.analysis import chance
from pytest_llm_determinism.analysis.chance import all_in_one_class, at_least, change_point, independence, p_in_words


def flags(pattern: str) -> list[bool]:
    return [letter == "A" for letter in pattern]


# A change at one place


@pytest.mark.parametrize(
    ("pattern", "place", "p"),
    [
        ("AAABBB", 3, 2 / math.comb(6, 3)),
        ("BBBAAA", 3, 2 / math.comb(6, 3)),
        ("ABBBB", 1, 2 / 5),
        ("BBBBA", 4, 2 / 5),
        ("A" * 14 + "B" * 16, 14, 2 / math.comb(30, 14)),
        ("AABB" + "B" * 26, 2, 2 / math.comb(30, 2)),
        ("ABABAB", 1, 1.0),
        ("AB", 1, 1.0),
    ],
)
def test_a_change_is_where_the_shares_differ_most(pattern: str, place: int, p: float) -> None:
    found = change_point(flags(pattern))
    assert found[0] == place
    assert found[1] == pytest.approx(p)


@pytest.mark.parametrize("pattern", ["", "A", "AAAA", "BBB"])
def test_without_two_kinds_nothing_changes(pattern: str) -> None:
    assert change_point(flags(pattern)) == (0, 1.0)


@given(st.lists(st.booleans(), min_size=2, max_size=60).filter(lambda drawn: len(set(drawn)) == 2))
def test_the_chance_of_a_change_is_that_of_scipys_smirnov_test(drawn: list[bool]) -> None:
    places = [[place for place, flag in enumerate(drawn) if flag is kind] for kind in (True, False)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = stats.ks_2samp(*places, method="exact").pvalue
    assume(not caught)  # where rounding gives scipy a chance above 1, it falls back to an approximation
    assert change_point(drawn)[1] == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.booleans(), min_size=2, max_size=6).filter(lambda drawn: len(set(drawn)) == 2))
def test_the_chance_of_a_change_is_the_share_of_all_orders_that_show_as_much(drawn: list[bool]) -> None:
    def most(order: tuple[bool, ...]) -> float:
        shares = [[0.0], [0.0]]
        for flag in order:
            for kind in (True, False):
                shares[kind].append(shares[kind][-1] + (flag is kind) / order.count(kind))
        return max(abs(one - other) for one, other in zip(shares[0], shares[1], strict=True))

    orders = list(permutations(drawn))
    as_much = sum(most(order) >= most(tuple(drawn)) - 1e-9 for order in orders)
    assert change_point(drawn)[1] == pytest.approx(as_much / len(orders))


@pytest.mark.parametrize(("m", "n"), [(501, 500), (30, 8500), (60, 4300), (250, 1100)])
@pytest.mark.parametrize("z", [1.3, 1.6, 2.0])
def test_the_bound_for_long_sequences_is_above_the_chance(m: int, n: int, z: float) -> None:
    height = int(z * math.sqrt((m + n) * m * n))
    bound = math.exp(1 - 2 * height * height / (m * n * (m + n)))
    counted = chance._chance_to_reach(height, m, n)
    assert counted < bound < 2.5 * counted


def test_long_sequences_are_judged_by_the_bound() -> None:
    randomly = random.Random(1)
    drawn = [randomly.random() < (0.48 if place < 5000 else 0.52) for place in range(10_000)]
    place, p = change_point(drawn)
    places = [[place for place, flag in enumerate(drawn) if flag is kind] for kind in (True, False)]
    exact = stats.ks_2samp(*places).pvalue
    assert 4000 < place < 6000
    assert exact < p < 10 * exact
    assert change_point(flags("A" * 5000 + "B" * 5000)) == (5000, 0.0)


# Events that happen together


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 7))
def test_the_chance_of_so_many_events_is_the_sum_over_all_outcomes(chances: list[float], count: int) -> None:
    total = 0.0
    for outcome in range(2 ** len(chances)):
        happened = [bool(outcome >> place & 1) for place in range(len(chances))]
        if sum(happened) >= count:
            total += math.prod(p if yes else 1 - p for p, yes in zip(chances, happened, strict=True))
    assert at_least(count, chances) == pytest.approx(total)


def test_three_first_runs_of_three_experiments() -> None:
    assert at_least(3, [1 / 30] * 3) == pytest.approx(1 / 27_000)
    assert at_least(1, [1 / 30, 0.0, 0.0]) == pytest.approx(1 / 30)


# Every so many


def test_what_gathers_in_one_class_is_found_with_its_chance() -> None:
    period, place, p = all_in_one_class(flags("BBBA" * 7 + "BB"), 10)
    assert (period, place) == (4, 3)
    # Of 2 + 3 + … + 10 classes, this one holds all 7.
    assert p == pytest.approx(54 / math.comb(30, 7))


@given(st.lists(st.booleans(), min_size=4, max_size=40), st.integers(2, 10))
def test_the_chance_of_a_class_is_scipys_hypergeometric(drawn: list[bool], longest: int) -> None:
    classes = [
        drawn[place::period] for period in range(2, min(longest, len(drawn) // 2) + 1) for place in range(period)
    ]
    chances = [stats.hypergeom.sf(sum(here) - 1, len(drawn), sum(drawn), len(here)) for here in classes]
    p = all_in_one_class(drawn, longest)[2]
    if p < 1:
        assert p == pytest.approx(min(chances) * len(classes))
    else:
        # What is no more than is to be expected counts as certain.
        assert min(chances) * len(classes) > 0.9


# Two labels


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_of_two_values_each_it_is_fishers_test(pairs: list[tuple[bool, bool]]) -> None:
    one, other = zip(*pairs, strict=True)
    table = [[pairs.count((left, right)) for right in (True, False)] for left in (True, False)]
    expected = stats.fisher_exact(table).pvalue if len(set(one)) == len(set(other)) == 2 else 1.0
    assert independence(one, other) == pytest.approx(expected)


def _all_tables(one: list[str], other: list[str]) -> float:
    """The share of all orders with a table that is as unlikely: the test of Freeman and Halton, order by order."""

    def likelihood(order: tuple[str, ...]) -> float:
        return -sum(math.lgamma(count + 1) for count in Counter(zip(one, order, strict=True)).values())

    orders = list(permutations(other))
    seen = likelihood(tuple(other))
    return sum(likelihood(order) <= seen + 1e-9 for order in orders) / len(orders)


@pytest.mark.parametrize(
    ("one", "other"), [("aabbcc", "xyzxyz"), ("aaabbcc", "xxxyyzz"), ("aabbbcc", "xyxyxyz"), ("aaaabbc", "xxxxyyz")]
)
def test_of_more_values_it_is_near_the_count_of_all_orders(one: str, other: str) -> None:
    exact = _all_tables(list(one), list(other))
    found = independence(one, other)
    # It stops early where that is certain not to be below 1 %: then only that is right.
    assert abs(found - exact) < 0.01 if found <= 0.01 else exact > 0.005


def test_labels_that_go_together_in_more_than_two_values() -> None:
    assert independence("aaaaabbbbbccccc", "xxxxxyyyyyzzzzz") == 1 / 500
    assert independence("a" * 5000 + "b" * 3000 + "c" * 2000, "x" * 5000 + "y" * 5000) == 1 / 500
    assert independence("abcabcabcabcabc", "xxxxxyyyyyzzzzz") > 0.01


def test_answers_that_are_all_different_but_never_shared_by_two_backends() -> None:
    # Each backend draws from answers of its own: no single answer shows it, all together do.
    answers = "abcdef" * 5
    backends = ["one" if answer in "abc" else "other" for answer in answers]
    assert independence(answers, backends) == 1 / 500


@pytest.mark.parametrize(
    ("one", "other"), [("aaaa", "xyxy"), ("abab", "xxxx"), ("", "")], ids=["one value", "one other value", "nothing"]
)
def test_a_label_of_one_value_goes_with_anything(one: str, other: str) -> None:
    assert independence(one, other) == 1.0


@settings(deadline=None)
@given(st.integers(0, 100))
def test_the_same_labels_have_the_same_chance_every_time(seed: int) -> None:
    randomly = random.Random(seed)
    one, other = ([randomly.randrange(3) for _ in range(20)] for _ in range(2))
    assert independence(one, other) == independence(one, other)


# False alarms: p-values at most 1 % come up in at most 1 % of random orders, for any sizes of the groups

SIZES = [
    *([1, size - 1] for size in (5, 12, 30, 100)),
    *([2, size - 2] for size in (8, 30)),
    *([size // 2, size - size // 2] for size in (5, 11, 30, 100)),
    [10, 10, 10],
    [24, 3, 2, 1],
    [1] * 30,
]
ORDERS = 1500

ALLOWED = ORDERS // 100 + int(3 * math.sqrt(ORDERS * 0.01 * 0.99))
"""Three standard deviations above 1 %."""


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "+".join(map(str, sizes[:5])))
def test_no_test_is_wrong_more_often_than_it_says(sizes: list[int]) -> None:
    randomly = random.Random(sum(sizes))
    answers = [group for group, size in enumerate(sizes) for _ in range(size)]
    backends = [place % 3 for place in range(len(answers))]
    alarms = Counter[str]()
    for _ in range(ORDERS):
        randomly.shuffle(answers)
        first = [answer == 0 for answer in answers]
        alarms["change"] += change_point(first)[1] <= 0.01
        alarms["period"] += all_in_one_class(first, 10)[2] <= 0.01
        alarms["backends"] += independence(answers, backends) <= 0.01
        alarms["one backend"] += independence(first, [backend == 0 for backend in backends]) <= 0.01
    assert max(alarms.values()) <= ALLOWED


# In words


@pytest.mark.parametrize(
    ("chance", "words"), [(0.00833, "p = 0.0083"), (3.7e-5, "p = 3.7e-05"), (0.0, "p < 1e-9"), (1.0, "p = 1")]
)
def test_a_chance_in_words(chance: float, words: str) -> None:
    assert p_in_words(chance) == words
