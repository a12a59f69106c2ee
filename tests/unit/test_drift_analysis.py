"""The exact test of two samples against all ways to deal them out and against scipy's, and the false discoveries."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_llm_determinism.analysis import drift
from pytest_llm_determinism.analysis.drift import difference, discoveries

small_tables = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=4)


def apart(table: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [then for then, _ in table], [now for _, now in table]


# What p is


@settings(max_examples=50, deadline=None)
@given(small_tables)
def test_p_is_the_share_of_all_ways_to_deal_the_runs_out_that_look_no_more_likely(table: list[tuple[int, int]]) -> None:
    before, after = apart(table)
    runs = [place for place, counts in enumerate(table) for _ in range(sum(counts))]
    ways = Counter(
        tuple(dealt.count(place) for place in range(len(table)))
        for dealt in combinations(runs, sum(before))  # a run of one group is not told from another of it
    )
    no_more_likely = sum(number for number in ways.values() if number <= ways[tuple(before)])
    assert difference(before, after) == pytest.approx(no_more_likely / sum(ways.values()))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=2))
def test_of_two_groups_it_is_scipys_fisher_test(table: list[tuple[int, int]]) -> None:
    before, after = apart(table)
    assert difference(before, after) == pytest.approx(stats.fisher_exact([before, after]).pvalue)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=5))
def test_of_more_groups_it_is_that_of_scipys_hypergeometric_tables(table: list[tuple[int, int]]) -> None:
    before, after = apart([counts for counts in table if any(counts)])
    sizes = [then + now for then, now in zip(before, after, strict=True)]
    if len(sizes) < 2 or not sum(before) or not sum(after):
        assert difference(before, after) == 1.0
        return
    drawn = stats.multivariate_hypergeom(sizes, sum(before))
    seen = drawn.pmf(before)
    first = list(product(*(range(size + 1) for size in sizes[:-1])))
    rest = [sum(before) - sum(counts) for counts in first]
    tables = [(*counts, last) for counts, last in zip(first, rest, strict=True) if 0 <= last <= sizes[-1]]
    expected = math.fsum(chance for chance in drawn.pmf(tables) if chance <= seen * (1 + 1e-9))
    assert difference(before, after) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "after", "p"),
    [
        # One stable answer that became another: only this table and its mirror are as unlikely.
        ([30, 0], [0, 30], 2 / math.comb(60, 30)),
        # One answer that became thirty: a table of the same chance has all thirty on the other side.
        ([30] + [0] * 30, [0] + [1] * 30, 2 / math.comb(60, 30)),
        # Fifteen pairs, each on one side.
        ([2] * 15 + [0] * 15, [0] * 15 + [2] * 15, math.comb(30, 15) / math.comb(60, 30)),
        # All alone in their group, and all different: every table is as likely.
        ([1] * 30 + [0] * 30, [0] * 30 + [1] * 30, 1.0),
        ([30], [30], 1.0),
        ([], [], 1.0),
        ([0, 0], [5, 3], 1.0),
        ([5, 3], [0, 0], 1.0),
    ],
)
def test_what_is_counted_by_hand(before: list[int], after: list[int], p: float) -> None:
    assert difference(before, after) == pytest.approx(p)


@given(small_tables, st.randoms())
def test_neither_the_order_of_groups_nor_which_sample_came_first_matters(
    table: list[tuple[int, int]], randomly: random.Random
) -> None:
    before, after = apart(table)
    randomly.shuffle(table)
    shuffled_before, shuffled_after = apart(table)
    assert difference(before, after) == pytest.approx(difference(shuffled_before, shuffled_after))
    assert difference(before, after) == pytest.approx(difference(after, before))


# Where there are too many tables


@settings(deadline=None)
@given(small_tables)
def test_with_too_many_tables_each_group_is_held_against_all_others(table: list[tuple[int, int]]) -> None:
    before, after = apart([counts for counts in table if any(counts)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "TABLES", 0)
        found = difference(before, after)
    if len(before) < 3 or not sum(before) or not sum(after):
        assert found == difference(before, after)
        return
    rest = [(sum(before) - then, sum(after) - now) for then, now in zip(before, after, strict=True)]
    each = [
        stats.fisher_exact([[then, now], others]).pvalue for then, now, others in zip(before, after, rest, strict=True)
    ]
    assert found == pytest.approx(min(1.0, len(each) * min(each)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1] * 30 + [0] * 30, [0] * 30 + [1] * 30),
        ([2, 3, 4, 5, 6, 3, 4, 3], [2, 3, 4, 5, 5, 5, 4, 2]),
        ([1] * 10_000 + [0] * 10_000, [0] * 10_000 + [1] * 10_000),
        ([5000] + [1] * 5000 + [0] * 5000, [5000] + [0] * 5000 + [1] * 5000),
        ([4000, 3000, 3000], [3900, 3100, 3000]),
        ([1000] * 10, [1000] * 10),
        ([200, 200, 200, 200, 200], [190, 210, 200, 200, 200]),
        ([334, 333, 333], [330, 330, 340]),
        ([10_000, 0], [0, 10_000]),
        ([100 - place % 7 for place in range(100)], [100 - place % 5 for place in range(100)]),
    ],
)
def test_it_is_quick(before: list[int], after: list[int]) -> None:
    started = time.process_time()
    difference(before, after)
    assert time.process_time() - started < 5


# Being wrong as often as p says, and no more

SHARES = (1.0,), (0.9, 0.1), (0.5, 0.3, 0.2), (0.5, 0.2, 0.1, 0.1, 0.1), (1 / 60,) * 60


@cache
def known(table: tuple[tuple[int, int], ...]) -> float:
    return difference(*apart(table))


def sampled(randomly: random.Random, then: Sequence[float], now: Sequence[float], runs: int = 30) -> float:
    before, after = (Counter(randomly.choices(range(len(shares)), shares, k=runs)) for shares in (then, now))
    return known(tuple(sorted((before[answer], after[answer]) for answer in before.keys() | after.keys())))


@pytest.mark.parametrize("tables", [drift.TABLES, 0], ids=["all tables", "each group"])
@pytest.mark.parametrize("shares", SHARES)
def test_without_a_change_p_is_at_most_alpha_with_the_chance_alpha(
    shares: tuple[float, ...], tables: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "TABLES", tables)
    known.cache_clear()
    randomly = random.Random(1)
    chances = [sampled(randomly, shares, shares) for _ in range(500)]
    known.cache_clear()
    for alpha in (0.001, 0.01, 0.05, 0.2):
        wrong = sum(chance <= alpha for chance in chances)
        # More would be seen once in a thousand times if the chance were alpha.
        assert wrong <= stats.binom.ppf(0.999, len(chances), alpha)


CHANGES = {
    "nothing": (),
    "one stable answer": (((1.0, 0.0), (0.0, 1.0)),),
    "a share": (((0.95, 0.05), (0.55, 0.45)),),
    "a new answer": (((1.0, 0.0), (0.8, 0.2)), ((0.5, 0.5, 0.0), (0.4, 0.2, 0.4))),
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("changed", [0.05, 0.3, 0.9])
def test_of_the_discoveries_at_most_one_in_twenty_is_wrong(changes: tuple, changed: float) -> None:
    randomly = random.Random(2)
    shares = []
    for _ in range(200):
        wrong = found = 0
        chances, is_change = [], []
        for _ in range(20):
            change = randomly.choice(changes) if changes and randomly.random() < changed else None
            same = randomly.choice(SHARES[:3])
            chances.append(sampled(randomly, *(change or (same, same))))
            is_change.append(change is not None)
        for believed, real in zip(discoveries(chances), is_change, strict=True):
            found += believed
            wrong += believed and not real
        shares.append(wrong / max(1, found))
    mean = sum(shares) / len(shares)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares) / len(shares))
    assert mean <= 0.05 + 3 * spread
    assert mean - 3 * spread <= 0.05


def test_changes_are_found() -> None:
    randomly = random.Random(3)
    chances = [sampled(randomly, (0.95, 0.05), (0.55, 0.45)) for _ in range(200)]
    assert sum(discoveries(chances)) > 180


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_discoveries_are_those_of_scipys_procedure(chances: list[float]) -> None:
    expected = [bool(chance <= 0.05) for chance in stats.false_discovery_control(chances)] if chances else []
    assert discoveries(chances) == expected


def test_two_that_are_believed_only_together() -> None:
    assert discoveries([0.04]) == [True]
    assert discoveries([0.04, 0.9]) == [False, False]
    assert discoveries([0.04, 0.05]) == [True, True]
    assert discoveries([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 10))
def test_what_is_below_its_share_of_the_rate_is_believed_whatever_the_others_are(
    chances: list[float], more: int
) -> None:
    # More tests may have been expected than came: the share is then smaller still.
    at_once = [chance <= 0.05 / (len(chances) + more) for chance in chances]
    assert all(believed for believed, sure in zip(discoveries(chances), at_once, strict=True) if sure)
