"""What the sizes of the groups say about the next call.

Every function takes the sizes of the groups of one experiment (`counts`, in runs, in any order) or plain
rates between 0 and 1, and returns a number; nothing here knows about outputs, pytest or files.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

__all__ = [
    "agreement",
    "agreement_lower",
    "disagreement",
    "new_output_chance",
    "pass_probability",
    "percent",
    "runs_needed",
]


def agreement(counts: Sequence[int]) -> float:
    """The share of the runs that are in the largest group; 0.0 for no runs."""
    return max(counts) / sum(counts) if sum(counts) else 0.0


def agreement_lower(counts: Sequence[int], confidence: float = 0.95) -> float:
    """The least chance that another call agrees with the most common answer, at this confidence.

    The exact one-sided lower bound of Clopper and Pearson ("The use of confidence or fiducial limits
    illustrated in the case of the binomial", Biometrika 26, 1934) for c - 1 agreements in K - 1 trials, where
    c is the size of the largest group and K the number of runs. With all runs identical that is (1 -
    confidence) ** (1 / (K - 1)): 0.9019 for 30 runs at 0.95. Fewer than two runs show nothing: 0.0.

    One run is given away because the answer to agree with is not known beforehand but read off the runs. For
    identical runs this makes the bound hold whatever the answers' chances are: the chance of K identical runs
    is sum p ** K <= max(p) ** (K - 1). Where several answers are about equally likely, and the agreement
    therefore low, the level can fall a few points short.

    Raises ValueError for a confidence that is not between 0 and 1.
    """
    alpha = _alpha(confidence)
    agreeing, trials = max(counts, default=0) - 1, sum(counts) - 1
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
    enough = 2
    while agreement_lower([enough], confidence) < min_agreement:
        enough *= 2
    candidates = range(2, enough)
    return 2 + bisect_left(candidates, min_agreement, key=lambda runs: agreement_lower([runs], confidence))


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
    species and the estimation of population parameters", Biometrika 40, 1953).
    """
    runs = sum(counts)
    return sum(count == 1 for count in counts) / runs if runs else 1.0


def pass_probability(flip_rate: float, runs: int) -> float:
    """The chance that a flaky model passes a gate of this many runs that allows one group.

    `flip_rate` is the chance that a call differs from the model's common answer, independently of the other
    calls; the gate passes when no run does. 1 % passes a gate of 30 runs three times out of four.
    """
    return float((1 - flip_rate) ** runs)


def percent(value: float) -> str:
    """A share between 0 and 1 for a message: `0.9019` is "90.2 %".

    Rounded to one decimal, except that "100.0 %" and "0.0 %" are said of exactly 1 and 0 only: what would
    round to them is "> 99.9 %" and "< 0.1 %".
    """
    text = f"{100 * value:.1f} %"
    if text == "100.0 %" and value < 1:
        return "> 99.9 %"
    if text == "0.0 %" and value > 0:
        return "< 0.1 %"
    return text


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
    log_choose = math.lgamma(trials + 1) - math.lgamma(agreeing + 1) - math.lgamma(trials - agreeing + 1)
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


def _tail_series(agreeing: int, trials: int, odds: float) -> float:
    total = term = 1.0
    for count in range(agreeing, trials):
        term *= (trials - count) / (count + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return total
