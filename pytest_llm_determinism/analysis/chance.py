"""How likely it is that chance alone made what was seen: exact tests of the order of runs, and of a label they have.

All start from the same null hypothesis: the runs are exchangeable, so that, given how many gave what, every order of
them is equally likely. It holds for a model that draws each answer independently from whatever distribution, and for a
mixture of such models. A p-value is the share of all orders that look at least as striking as the one seen, so a
test that speaks where p <= alpha is wrong at most with the chance alpha, whatever the sizes of the groups.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate

__all__ = ["all_in_one_class", "at_least", "change_point", "fisher", "independence", "p_in_words"]

EXACT_UP_TO = 250_000
"""Cells up to which `change_point` counts paths: some ten milliseconds, and no more paths than a float can hold."""

ORDERS = 499
"""Random orders that `independence` looks at, so that no p-value of it is less than 1/500."""

SHUFFLED = 300
"""Most runs that `independence` puts in order; of more it takes as many at random."""


def change_point(flags: Sequence[bool]) -> tuple[int, float]:
    """The place at which a sequence changes most, and how likely a change like that is by chance.

    The place is the number of items before it at which the flags before and those after differ most: the maximum over
    all places of abs(share of the set ones that stand before it - share of the others that do). That is the two-sample
    statistic of Smirnov, so its chance is known exactly: paths over a lattice are counted, as J. L. Hodges describes it
    ("The significance probability of the Smirnov two-sample test", Arkiv för Matematik 3, 1958). As the maximum is over
    all places, so is the chance: nothing has to be corrected for having looked for the place. A clean change after t of
    K items has 2 / C(K, t), so that less than 10 items never show one at 1 %.

    For sequences with more than 250 000 pairs of a set and another item, an upper bound takes the place of the count:
    e exp(-2 z²) with z² = statistic² m n / (m + n), the inequality of Dvoretzky, Kiefer and Wolfowitz for two samples
    (F. Wei and R. M. Dudley, "Two-sample Dvoretzky-Kiefer-Wolfowitz inequalities", Statistics & Probability Letters 82,
    2012; for samples of different sizes it is not proven with this factor, but was above the count wherever tried).

    0 and 1.0 for a sequence of only one kind.
    """
    set_ones = sum(flags)
    others = len(flags) - set_ones
    if not set_ones or not others:
        return 0, 1.0
    # In whole numbers: the difference of the shares, times set_ones * others.
    heights = [abs(height) for height in accumulate(others if flag else -set_ones for flag in flags)]
    highest = max(heights)
    place = heights.index(highest) + 1
    if set_ones * others > EXACT_UP_TO:
        squared = highest * highest / (set_ones * others * len(flags))
        return place, min(1.0, math.exp(1 - 2 * squared))
    return place, _chance_to_reach(highest, set_ones, others)


def _chance_to_reach(height: int, m: int, n: int) -> float:
    """The chance that abs(i n - j m) reaches a height somewhere on a random path from (0, 0) to (m, n)."""
    below: list[float] = []
    start = 0
    for i in range(m + 1):
        low = max(0, (i * n - height) // m + 1)
        high = min(n, -((-i * n - height) // m) - 1)
        # A path comes from the row before, or from the left.
        before = below[low - start : high + 1 - start] if i else [1.0]
        below = list(accumulate(before + [0.0] * (high - low + 1 - len(before))))
        start = low
    if start + len(below) <= n or not below[-1]:
        return 1.0
    return max(0.0, -math.expm1(math.log(below[-1]) - _log_choose(m + n, m)))


def at_least(count: int, chances: Iterable[float]) -> float:
    """The chance that at least `count` of independent events happen, each with a chance of its own."""
    so_many = [1.0]
    for chance in chances:
        so_many = [
            happened * chance + not_yet * (1 - chance)
            for happened, not_yet in zip([0.0, *so_many], [*so_many, 0.0], strict=True)
        ]
    return min(1.0, math.fsum(so_many[count:]))


def all_in_one_class(flags: Sequence[bool], longest: int) -> tuple[int, int, float]:
    """The period, up to `longest`, and the place in it at which the set flags gather most, with the chance of that.

    For each period p and each place in it, how many set flags are at this place is hypergeometric; the smallest of all
    these chances counts, times their number (Bonferroni).
    """
    total, set_ones = len(flags), sum(flags)
    best = (1, 0, 1.0)
    looked = 0
    for period in range(2, min(longest, total // 2) + 1):
        for place in range(period):
            here = flags[place::period]
            looked += 1
            chance = _at_least_drawn(sum(here), len(here), set_ones, total)
            if chance < best[2]:
                best = (period, place, chance)
    return best[0], best[1], min(1.0, best[2] * max(1, looked))


def _at_least_drawn(found: int, drawn: int, wanted: int, total: int) -> float:
    """The chance to draw at least `found` of `wanted` items among `total` with `drawn` draws; 1.0 if that is to be
    expected."""
    if found * total <= drawn * wanted:
        return 1.0
    chance = 0.0
    for count in range(found, min(drawn, wanted) + 1):
        # From here on the terms only get smaller.
        term = _drawn(count, drawn, wanted, total)
        chance += term
        if term < chance * 1e-17:
            break
    return chance


def _drawn(found: int, drawn: int, wanted: int, total: int) -> float:
    if found < drawn + wanted - total:
        return 0.0
    return math.exp(_log_choose(wanted, found) + _log_choose(total - wanted, drawn - found) - _log_choose(total, drawn))


def independence(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """How likely two labels of the same items are to go together as they do if neither has to do with the other.

    The exact test of R. A. Fisher for two labels of two values each (two-sided: all tables that are no more likely than
    the one seen), and its extension to more by G. H. Freeman and J. H. Halton ("Note on an exact treatment of
    contingency, goodness of fit and other problems of significance", Biometrika 38, 1951), there by Monte Carlo: 499
    random orders from a fixed seed, of at most 300 items. The one seen counts as one more, with which the level holds
    exactly (A. C. A. Hope, "A simplified Monte Carlo significance test procedure", Journal of the Royal Statistical
    Society B 30, 1968). It stops as soon as p is known to be above 1 %.

    1.0 if one of the labels has only one value.
    """
    rows, columns = Counter(one), Counter(other)
    if len(rows) < 2 or len(columns) < 2:
        return 1.0
    if len(rows) == len(columns) == 2:
        row, column = next(iter(rows)), next(iter(columns))
        together = sum(pair == (row, column) for pair in zip(one, other, strict=True))
        return fisher(together, rows[row], columns[column], len(one))
    randomly = random.Random(0)
    if len(one) > SHUFFLED:
        taken = randomly.sample(range(len(one)), SHUFFLED)
        one, other = [one[place] for place in taken], [other[place] for place in taken]
    seen = _togetherness(one, other)
    shuffled = list(other)
    as_striking = 0
    for done in range(1, ORDERS + 1):
        randomly.shuffle(shuffled)
        as_striking += _togetherness(one, shuffled) >= seen * (1 - 1e-12)
        if 100 * (1 + as_striking) > ORDERS + 1:
            return (1 + as_striking) / (1 + done)
    return (1 + as_striking) / (1 + ORDERS)


def fisher(together: int, row: int, column: int, total: int) -> float:
    """The exact test of R. A. Fisher, two-sided: the chance of all tables that are no more likely than this one.

    Args:
        together: items that have both labels; `row` have the one, `column` the other, of `total`.
    """
    chances = [_drawn(count, row, column, total) for count in range(max(0, row + column - total), min(row, column) + 1)]
    seen = _drawn(together, row, column, total)
    return min(1.0, math.fsum(chance for chance in chances if chance <= seen * (1 + 1e-7)))


def _togetherness(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Minus the logarithm of a table's chance, given its margins, up to a constant."""
    return math.fsum(math.lgamma(count + 1) for count in Counter(zip(one, other, strict=True)).values())


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def p_in_words(chance: float) -> str:
    """A p-value for a message: ``p = 0.0083``, ``p < 1e-9``."""
    return f"p = {chance:.2g}" if chance >= 1e-9 else "p < 1e-9"
