"""What the sizes of the groups say about the next call.

Every function takes the sizes of the groups of one experiment (`counts`, in runs, in any order) or plain
rates between 0 and 1, and returns a number; nothing here knows about outputs, pytest or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = [
    "agreement",
    "agreement_lower",
    "disagreement",
    "entropy",
    "new_output_chance",
    "pass_probability",
    "percent",
    "power_in_words",
    "runs_needed",
    "runs_to_catch",
    "unseen_flips",
]


def agreement(counts: Sequence[int]) -> float:
    """The share of the runs that are in the largest group; 0.0 for no runs."""
    return max(counts) / sum(counts) if sum(counts) else 0.0


def agreement_lower(counts: Sequence[int], confidence: float = 0.95, runs: int | None = None) -> float:
    """The least chance that another call gives the model's most common answer, at this confidence.

    The exact one-sided lower bound of Clopper and Pearson ("The use of confidence or fiducial limits
    illustrated in the case of the binomial", Biometrika 26, 1934) for c - 1 agreements in K - 1 trials, where
    c is the size of the largest group and K the number of runs. With all runs identical that is (1 -
    confidence) ** (1 / (K - 1)): 0.9019 for 30 runs at 0.95. Fewer than two runs show nothing: 0.0.

    One run is given away because the answer to agree with is not known beforehand but read off the runs. How
    far the level holds, for independent calls:

    - Identical runs: for every model. The bound is above the chance p of the answer seen where p ** (K - 1) <
      alpha; over all such answers, sum p ** K < alpha * sum p <= alpha.
    - A model that gives its most common answer at least 60 % of the time: always. To merge all its other
      answers into one only adds chances to miss, and with two answers the coverage was computed exactly for
      2 to 600 runs and levels from 0.5 to 0.9999.
    - Below that, answers that are about equally likely take turns at being the largest group, each with a
      chance to miss of its own; the level can fall short, with two of them by up to 1 - confidence.

    Which answer is the model's most common one is shown as well where the bound is above one half. Where it is
    not, the largest group may by chance be another answer: taken for the chance of the answer *seen*, the bound
    of a model of two answers, one given 60 % of the time or more, holds at up to 5.6 points less than 0.9, 2.8
    less than 0.95, 0.6 less than 0.99, and falls short only below an agreement of 80 %.

    Args:
        runs: how many runs were to give an output, where that is more than `counts` has. Each that is missing
            counts as one that disagrees, which makes the bound hold under every rule by which sampling may have
            stopped. For let the experiment go on, in thought, to all its runs: groups only grow, so its largest
            has at least max(counts) runs, and the bound, which rises with that size, is at least this one. This
            one is too high only where that of the whole experiment is. A run that ended in an API error is
            no trial: it says nothing of the answers. (If there are more errors among the runs not made, the
            whole experiment has fewer trials, and its bound is higher still.)

    Raises ValueError for a confidence that is not between 0 and 1, and for fewer `runs` than `counts` has.
    """
    alpha = _alpha(confidence)
    made = sum(counts)
    if runs is not None and runs < made:
        raise ValueError(f"{made} runs were made, which is more than the {runs} that were wanted")
    agreeing, trials = max(counts, default=0) - 1, (made if runs is None else runs) - 1
    if trials < 1 or agreeing < 1:
        return 0.0
    if agreeing == trials:
        # Not left to the iteration: this never falls as runs are added, on which runs_needed relies.
        return math.pow(alpha, 1 / trials)
    return _binomial_lower(agreeing, trials, alpha)


def runs_needed(min_agreement: float, confidence: float) -> int:
    """The fewest runs (at least 2) that, all identical, show this agreement: 300 for 0.99 at 0.95.

    It is `agreement_lower` that decides, so a gate of exactly this many runs can pass and one of fewer
    cannot.

    Raises ValueError for a confidence that is not between 0 and 1, and for an agreement of 1 or more, which
    no number of runs can show.
    """
    _alpha(confidence)
    if not min_agreement < 1:
        raise ValueError(f"no number of runs shows an agreement of {min_agreement}; ask for less than 1")
    return _fewest(lambda runs: agreement_lower([runs], confidence) >= min_agreement)


def disagreement(counts: Sequence[int]) -> float:
    """The chance that two different runs disagree; 0.0 for fewer than two runs.

    1 - sum c (c - 1) / (K (K - 1)), the unbiased estimator of E. H. Simpson ("Measurement of diversity",
    Nature 163, 1949).
    """
    runs = sum(counts)
    if runs < 2:
        return 0.0
    pairs = runs * (runs - 1)
    return (pairs - sum(count * (count - 1) for count in counts)) / pairs


def new_output_chance(counts: Sequence[int]) -> float:
    """The chance that the next run shows an output not seen yet; 1.0 for no runs.

    (groups seen once) / K, the estimator of I. J. Good after A. M. Turing ("The population frequencies of
    species and the estimation of population parameters", Biometrika 40, 1953). Its mean is exactly the mean
    chance that run K shows an output that none of the K - 1 before it did: a little more than that of run K + 1.
    """
    runs = sum(counts)
    return sum(count == 1 for count in counts) / runs if runs else 1.0


def entropy(counts: Sequence[int]) -> float:
    """The entropy of the outputs seen, in bits: 0.0 for identical runs (or none), log2 K where all K differ.

    sum p log2(1 / p) over the groups' shares p (C. E. Shannon, "A mathematical theory of communication", Bell
    System Technical Journal 27, 1948). It describes the runs made; nothing is added for outputs not seen. As an
    estimate of the model's entropy it is too low, by about (m - 1) / (2 K ln 2) bits for a model of m answers
    (G. A. Miller, "Note on the bias of information estimates", 1955).
    """
    runs = sum(counts)
    return math.fsum(count / runs * math.log2(runs / count) for count in counts if count)


def pass_probability(flip_rate: float, runs: int, max_unique: int = 1) -> float:
    """The chance that a model passes a gate of this many runs: 0.7397 for 30 runs and a flip rate of 1 %.

    `flip_rate` is the chance that a call does not give the model's common answer, whatever the other calls give.

    With one group allowed, it is the most that any model of this flip rate has: (1 - flip_rate) ** runs that
    no run flips, plus flip_rate ** runs that all do, to one and the same other answer.

    With more groups allowed, it depends on what the flips give. Flips that share max_unique - 1 other answers
    always pass, however many runs are made. What is returned is the other end, where each flip gives an answer of
    its own: the chance that fewer than max_unique runs flip.
    """
    if runs <= max_unique:
        return 1.0
    if flip_rate in (0, 1):
        return 1.0 if flip_rate == 0 or max_unique == 1 else 0.0
    if max_unique == 1:
        passing = math.exp(runs * math.log1p(-flip_rate)) + flip_rate**runs
    elif max_unique - 1 < runs * flip_rate:
        passing = _binomial_tail(runs - max_unique + 1, runs, math.log1p(-flip_rate), math.log(flip_rate))
    else:
        passing = 1 - _binomial_tail(max_unique, runs, math.log(flip_rate), math.log1p(-flip_rate))
    # Too small for a number, it is still a chance.
    return passing or math.ulp(0.0)


def runs_to_catch(flip_rate: float, catch: float = 0.95, max_unique: int = 1) -> int:
    """The fewest runs (at least 2) at which a gate fails a model of this flip rate with the chance `catch`.

    299 for a flip rate of 1 % and 0.95. `pass_probability` decides, so for max_unique above 1 it holds for flips
    that each give an answer of their own.

    Raises ValueError for a flip rate or a `catch` that is not between 0 and 1.
    """
    for value, name in ((flip_rate, "flip rate"), (catch, "chance to catch")):
        if not 0 < value < 1:
            raise ValueError(f"a {name} must be between 0 and 1, not {value}")
    return _fewest(lambda runs: pass_probability(flip_rate, runs, max_unique) <= 1 - catch)


def power_in_words(flip_rate: float, runs: int, max_unique: int = 1, catch: float = 0.95) -> str:
    """What a gate of this many runs sees of a model with this flip rate, and what it takes to see it, in a sentence.

    Raises ValueError as `runs_to_catch` does.
    """
    apart, unseen = (
        (", each time to an answer of its own,", f"; {unseen_flips(max_unique)}") if max_unique > 1 else ("", "")
    )
    return (
        f"a model that flips {100 * flip_rate:.12g} % of the time{apart} passes this gate"
        f" {percent(pass_probability(flip_rate, runs, max_unique), 0)} of the time; to catch it"
        f" {100 * catch:.12g} times of 100 takes {runs_to_catch(flip_rate, catch, max_unique)} runs{unseen}"
    )


def unseen_flips(max_unique: int) -> str:
    """Which flips a gate that allows several groups never sees, in a clause."""
    give = (
        "all give one and the same other answer" if max_unique == 2 else f"give {max_unique - 1} other answers at most"
    )
    return f"flips that {give} always pass"


def percent(value: float, decimals: int = 1) -> str:
    """A share between 0 and 1 for a message: `0.9019` is "90.2 %".

    Rounded, except that "100.0 %" and "0.0 %" are said of exactly 1 and 0 only: what would round to them is
    "> 99.9 %" and "< 0.1 %".
    """
    text, step = f"{100 * value:.{decimals}f}", 10.0**-decimals
    if text == f"{100:.{decimals}f}" and value < 1:
        return f"> {100 - step:.{decimals}f} %"
    if text == f"{0:.{decimals}f}" and value > 0:
        return f"< {step:.{decimals}f} %"
    return f"{text} %"


def _fewest(enough: Callable[[int], bool]) -> int:
    """The fewest runs, at least 2, that are enough, where more always are."""
    too_few, found = 1, 2
    while not enough(found):
        too_few, found = found, 2 * found
    while found - too_few > 1:
        middle = (too_few + found) // 2
        too_few, found = (too_few, middle) if enough(middle) else (middle, found)
    return found


def _alpha(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence must be between 0 and 1, not {confidence}")
    return 1 - confidence


def _binomial_lower(agreeing: int, trials: int, alpha: float) -> float:
    """The p at which `agreeing` or more of `trials` (0 < agreeing < trials) have the chance alpha.

    With pmf the chance of exactly `agreeing`, the upper tail is pmf * S, where S is the series of the ratios
    of neighbouring chances: all terms positive, so nothing cancels. Newton's method runs on the logarithm of
    the tail over y = log p. Its slope there is agreeing / S, and S grows with p, so the function is concave:
    from a start left of the root each step goes right and none goes past it. The first step that does not go
    right is rounding. Within 1e-9 for up to 100 000 trials and an alpha of up to 0.999.
    """
    log_choose = _log_choose(trials, agreeing)
    # The tail is at most choose * p ** agreeing, so this start is left of the root.
    y = (math.log(alpha) - log_choose) / agreeing
    while True:
        odds = math.exp(y) / -math.expm1(y)
        series = _tail_series(agreeing, trials, odds)
        log_pmf = log_choose + agreeing * y + (trials - agreeing) * math.log(-math.expm1(y))
        following = y + (math.log(alpha) - log_pmf - math.log(series)) * series / agreeing
        if not y < following < 0:
            return math.exp(y)
        y = following


def _binomial_tail(least: int, trials: int, log_rate: float, log_rest: float) -> float:
    """The chance of `least` or more of `trials`, where that is more than are to be expected.

    The rate of one, and what it leaves to 1, come as logarithms.
    """
    series = _tail_series(least, trials, math.exp(log_rate - log_rest))
    log_pmf = _log_choose(trials, least) + least * log_rate + (trials - least) * log_rest
    return math.exp(log_pmf) * series


def _log_choose(trials: int, chosen: int) -> float:
    return math.lgamma(trials + 1) - math.lgamma(chosen + 1) - math.lgamma(trials - chosen + 1)


def _tail_series(agreeing: int, trials: int, odds: float) -> float:
    total = term = 1.0
    for count in range(agreeing, trials):
        term *= (trials - count) / (count + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return total
