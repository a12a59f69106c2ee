"""Whether two samples of the same groups come from one distribution, and which of many such comparisons to believe."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

from pytest_llm_determinism.analysis.chance import fisher

__all__ = ["RATE", "difference", "discoveries"]

RATE = 0.05
"""The false-discovery rate: of the tests that are said to have drifted, at most this share is expected to be wrong."""

TABLES = 50_000
"""Kinds of half a table up to which `difference` counts all tables: it then takes a second at most."""

BITS = 100_000_000
"""What these may take in memory: their chances are whole numbers of as many bits as there are runs."""

_Ways = dict[int, dict[int, int]]
"""How many runs of the first sample some groups hold → the chance of such a table, up to a factor → number of ways."""


def difference(before: Sequence[int], after: Sequence[int]) -> float:
    """How likely two samples of one distribution are to differ as much as these do: the exact p-value.

    Both count the runs in the same groups, in the same order. Given how many there are in each group and each sample,
    every way to deal the runs out to the samples is equally likely. p is the share of all tables that are no more
    likely than the one seen: the test of R. A. Fisher, for more than two groups by G. H. Freeman and J. H. Halton
    ("Note on an exact treatment of contingency, goodness of fit and other problems of significance", Biometrika 38,
    1951). All tables are counted, in whole numbers: first those of either half of the groups, which are then put
    together. Nothing is rounded, and nothing drawn at random.

    Where there are too many tables (never for 30 runs and 30, often for groups of a hundred), every group is held
    against all others by Fisher's test, and the smallest of these chances counts, times their number (Bonferroni).
    Which of the two is used depends on the sizes of groups and samples alone, so a test that speaks where p <= alpha is
    wrong at most with the chance alpha.

    1.0 if a sample is empty, if there is only one group, and if all runs are alone in their group: those tell nothing.
    """
    groups = [(then, now) for then, now in zip(before, after, strict=True) if then or now]
    runs, total = sum(before), sum(before) + sum(after)
    if runs in (0, total) or len(groups) < 2:
        return 1.0
    if len(groups) == 2:
        return fisher(groups[0][0], sum(groups[0]), runs, total)
    sizes = [then + now for then, now in groups]
    ways = _two_halves(sizes, runs)
    if ways is None:
        kinds = {(then, then + now) for then, now in groups}
        return min(1.0, len(groups) * min(fisher(then, size, runs, total) for then, size in kinds))
    seen = math.prod(math.comb(size, then) for size, (then, _) in zip(sizes, groups, strict=True))
    return _no_more_likely(*ways, runs, seen) / math.comb(total, runs)


def _two_halves(sizes: Sequence[int], runs: int) -> tuple[_Ways, _Ways] | None:
    """All ways to fill half of the groups, and the other half; None if they are too many."""
    number = Counter(sizes)
    limit = min(TABLES, BITS // sum(sizes))
    halves: tuple[_Ways, _Ways] = ({0: {1: 1}}, {0: {1: 1}})
    # Groups of one size give few kinds of tables, so they stay together; the large ones come first, each where there
    # are fewer so far.
    for size in sorted(number, reverse=True):
        half = min(halves, key=_kinds)
        # Groups of one run all have the same chance wherever that run is, so they are put in at once.
        added, times = (number[1], 1) if size == 1 else (size, number[size])
        for _ in range(times):
            if _kinds(half) * (min(added, runs) + 1) > 10 * limit:
                return None
            _add(half, added, runs, alike=size == 1)
            if _kinds(half) > limit:
                return None
    return halves


def _kinds(ways: _Ways) -> int:
    return sum(map(len, ways.values()))


def _add(ways: _Ways, size: int, runs: int, alike: bool) -> None:
    """Put one more group into these ways, or so many groups of one run."""
    more: _Ways = {}
    for count, choices in enumerate(_binomials(size, runs)):
        factor, times = (1, choices) if alike else (choices, 1)
        for taken, kinds in ways.items():
            if taken + count > runs:
                continue
            found = more.setdefault(taken + count, {})
            for chance, number in kinds.items():
                found[chance * factor] = found.get(chance * factor, 0) + number * times
    ways.clear()
    ways.update(more)


def _binomials(total: int, most: int) -> Iterator[int]:
    """The ways to choose 0, 1, … of these, up to so many."""
    ways = 1
    for chosen in range(min(total, most) + 1):
        yield ways
        ways = ways * (total - chosen) // (chosen + 1)


def _no_more_likely(one: _Ways, other: _Ways, runs: int, seen: int) -> int:
    """The ways to deal out the runs whose tables are no more likely than one with this chance."""
    found = 0
    for taken, kinds in one.items():
        rest = sorted(other.get(runs - taken, {}).items())
        chances = [chance for chance, _ in rest]
        up_to = [0, *accumulate(chance * number for chance, number in rest)]
        for chance, number in kinds.items():
            found += chance * number * up_to[bisect_right(chances, seen // chance)]
    return found


def discoveries(chances: Sequence[float], rate: float = RATE) -> list[bool]:
    """Which of these p-values to believe, so that the expected share of wrong ones among those is at most `rate`.

    The step-up procedure of Y. Benjamini and Y. Hochberg ("Controlling the false discovery rate", Journal of the Royal
    Statistical Society B 57, 1995): the k smallest, for the largest k of which the last is at most k / number * rate.
    It holds for independent tests, and for those that tend to differ together, as when one model answers them all.
    """
    ordered = sorted(chances)
    highest = max(
        (chance for place, chance in enumerate(ordered, 1) if chance * len(chances) <= place * rate), default=-1.0
    )
    return [chance <= highest for chance in chances]
