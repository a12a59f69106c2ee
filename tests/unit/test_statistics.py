"""What is said of a model's next call, against scipy, against exact enumeration, and by simulation."""

import itertools
import math
from collections import Counter
from fractions import Fraction
from functools import cache

import numpy
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from pytest_llm_determinism.analysis.statistics import (
    agreement,
    agreement_lower,
    disagreement,
    entropy,
    new_output_chance,
    pass_probability,
    percent,
    power_in_words,
    runs_needed,
    runs_to_catch,
    unseen_flips,
)

sizes = st.lists(st.integers(1, 50), max_size=8)
levels = st.floats(0.01, 0.9999)
shares = st.floats(0.001, 0.999)


def sequences(chances, runs):
    """All that the runs of a model with these chances can give, as a tuple of answers, each with its chance."""
    for given_answers in itertools.product(range(len(chances)), repeat=runs):
        yield given_answers, math.prod(chances[answer] for answer in given_answers)


def sizes_of(answers):
    return list(Counter(answers).values())


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([], 0.0), ([0], 0.0), ([1], 1.0), ([30], 1.0), ([1, 2, 1], 0.5), ([7, 20, 3], 20 / 30)],
)
def test_agreement_is_the_share_of_the_largest_group(counts, expected):
    assert agreement(counts) == expected


@pytest.mark.parametrize(
    ("counts", "confidence", "expected"),
    [
        ([], 0.95, 0.0),
        ([1], 0.95, 0.0),
        ([1, 1, 1], 0.95, 0.0),
        ([2], 0.95, 0.05),
        ([30], 0.95, 0.9019),
        ([300], 0.95, 0.9900),
        ([30], 0.99, 0.8532),
        ([29, 1], 0.95, 0.8466),
        ([1, 15, 14], 0.95, 0.3203),
    ],
)
def test_agreement_lower(counts, confidence, expected):
    assert round(agreement_lower(counts, confidence), 4) == expected


@pytest.mark.parametrize("runs", [2, 3, 5, 10, 30, 240, 1000, 10_000, 100_000])
@pytest.mark.parametrize("confidence", [0.001, 0.3, 0.5, 0.9, 0.95, 0.99, 0.999999, 1 - 1e-12])
def test_agreement_lower_is_the_quantile_of_the_beta_distribution(runs, confidence):
    shares = (0.0001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999)
    largest = {2, runs - 2, runs - 1, runs, *(round(share * runs) for share in shares)}
    for count in sorted(size for size in largest if 2 <= size <= runs):
        # Groups of one run leave any count the largest.
        bound = agreement_lower([count, *[1] * (runs - count)], confidence)
        expected = beta.ppf(1 - confidence, count - 1, runs - count + 1)
        assert bound == pytest.approx(expected, abs=1e-9), (count, runs)


@given(st.integers(2, 1000), levels)
def test_agreement_lower_of_identical_runs(runs, confidence):
    assert agreement_lower([runs], confidence) == (1 - confidence) ** (1 / (runs - 1))


@given(sizes, levels)
def test_agreement_lower_is_below_the_agreement_and_falls_with_confidence(counts, confidence):
    bound = agreement_lower(counts, confidence)
    assert 0 <= agreement_lower(counts, (1 + confidence) / 2) <= bound < 1
    if confidence >= 0.5:
        assert bound <= agreement(counts)


@given(st.integers(2, 200), st.data(), levels)
def test_agreement_lower_rises_with_every_agreeing_run_and_falls_with_every_other(largest, data, confidence):
    others = data.draw(st.integers(0, largest - 1))
    bound = agreement_lower([largest, others], confidence)
    assert agreement_lower([largest + 1, others], confidence) > bound
    assert agreement_lower([largest, others + 1], confidence) < bound
    assert agreement_lower([others, largest], confidence) == bound


# Coverage: how often the bound is right. All tests but the one that says so compute it exactly.

RUNS = (5, 10, 30, 100, 300)
CONFIDENCES = (0.9, 0.95, 0.99)
ROUNDING = 1e-9


@cache
def bounds(runs, confidence):
    """The bound by the size of the largest group, computed with groups of one run beside it."""
    return numpy.array([agreement_lower([size, *[1] * (runs - size)], confidence) for size in range(runs + 1)])


def agreements(runs, confidence, least=0.6):
    """From `least` to 0.999, and where the coverage is worst: just below and above the values of the bound."""
    near = [
        value + aside
        for bound in bounds(runs, confidence)
        for value in (bound, 1 - bound)
        for aside in (-1e-10, 1e-10)
        if least <= value + aside <= 0.9999
    ]
    return numpy.array([*numpy.linspace(least, 0.999, 100), *near])


def coverage(runs, confidence, chance, *, of_seen=False, above=0.0):
    """The chance that the bound is right for a model of two answers, of which one has this chance, at least 0.5.

    `of_seen`: the bound is taken for the chance of the answer in the largest group; of two groups of one size, for
    the rarer answer's. `above`: only bounds above this can be wrong.
    """
    first = numpy.arange(runs + 1)
    found = bounds(runs, confidence)[numpy.maximum(first, runs - first)]
    truth = numpy.where(2 * first > runs, chance, 1 - chance) if of_seen else chance
    return binom.pmf(first, runs, chance)[(found <= truth) | (found <= above)].sum()


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_with_two_answers_the_bound_is_right_as_often_as_it_says(runs, confidence):
    covered = [coverage(runs, confidence, chance) for chance in agreements(runs, confidence)]
    assert min(covered) >= confidence - ROUNDING


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_a_bound_above_one_half_is_right_of_the_answer_seen_too(runs, confidence):
    covered = [coverage(runs, confidence, chance, of_seen=True, above=0.5) for chance in agreements(runs, confidence)]
    assert min(covered) >= confidence - ROUNDING


@pytest.mark.parametrize(("confidence", "short"), [(0.9, 0.056), (0.95, 0.028), (0.99, 0.006)])
def test_a_bound_below_one_half_falls_short_of_the_answer_seen_by_no_more_than_is_said(confidence, short):
    # Beside the usual numbers of runs those that are worst among 2 to 600.
    worst = min(
        coverage(runs, confidence, chance, of_seen=True)
        for runs in (*RUNS, 14, 18, 19, 52, 66, 113)
        for chance in agreements(runs, confidence)
    )
    assert confidence - short <= worst < confidence - 0.9 * short
    for runs in (*RUNS, 14, 18, 19, 52, 66, 113):
        for chance in agreements(runs, confidence, least=0.8):
            assert coverage(runs, confidence, chance, of_seen=True) >= confidence - ROUNDING


MODELS = [
    [0.6, 0.2, 0.2],
    [0.6, 0.39, 0.01],
    [0.7, 0.1, 0.1, 0.1],
    [0.9, 0.05, 0.05],
    [0.99, 0.004, 0.003, 0.003],
]


@pytest.mark.parametrize("chances", MODELS, ids=str)
@pytest.mark.parametrize("runs", [5, 10])
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_with_several_answers_the_bound_is_right_as_often_as_it_says(chances, runs, confidence):
    bound = bounds(runs, confidence)
    covered = sum(
        scipy.stats.multinomial.pmf((*counts, runs - sum(counts)), runs, chances)
        for counts in itertools.product(range(runs + 1), repeat=len(chances) - 1)
        if sum(counts) <= runs and bound[max(*counts, runs - sum(counts))] <= chances[0]
    )
    assert covered >= confidence - ROUNDING
    # One other answer instead of several adds chances to miss.
    assert covered >= coverage(runs, confidence, chances[0]) - ROUNDING


@pytest.mark.parametrize("common", [0.6, 0.75, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("others", [1, 10, 1000])
@pytest.mark.parametrize("runs", RUNS)
def test_simulated_coverage(common, others, runs):
    random_source = numpy.random.default_rng(20240611)
    experiments = 2000
    # The first of the others is as frequent as all that follow together, and so on.
    weights = numpy.maximum(0.5 ** numpy.arange(others), 1e-9)
    counts = random_source.multinomial(runs, [common, *(1 - common) * weights / weights.sum()], size=experiments)
    for confidence in CONFIDENCES:
        covered = (bounds(runs, confidence)[counts.max(axis=1)] <= common).mean()
        assert covered >= confidence - 3 * math.sqrt(confidence * (1 - confidence) / experiments)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(2, 400), levels)
def test_identical_runs_are_right_of_the_answer_seen_whatever_the_model(weights, runs, confidence):
    bound = agreement_lower([runs], confidence)
    chances = [weight / sum(weights) for weight in weights]
    assert sum(chance**runs for chance in chances if chance < bound) <= 1 - confidence + ROUNDING


# Stopping early

INCOMPLETE = st.lists(st.sampled_from([*"AABC", None]), min_size=2, max_size=40)
"""What runs gave, None for an API error."""


@given(INCOMPLETE, st.data(), levels)
def test_stopping_early_never_gives_a_higher_bound_than_going_on(answers, data, confidence):
    made = answers[: data.draw(st.integers(0, len(answers)))]
    given_so_far = [answer for answer in made if answer is not None]
    whole = agreement_lower(sizes_of(answer for answer in answers if answer is not None), confidence)
    wanted = len(answers) - made.count(None)
    assert agreement_lower(sizes_of(given_so_far), confidence, wanted) <= whole + 1e-12


def stopped(answers, rule):
    """The runs up to the first at which the rule holds of the sizes of the groups."""
    for made in range(1, len(answers)):
        if rule(sizes_of(answers[:made])):
            return answers[:made]
    return answers


@pytest.mark.parametrize("chance", [Fraction(6, 10), Fraction(75, 100), Fraction(9, 10), Fraction(98, 100)], ids=str)
@pytest.mark.parametrize("max_unique", [1, 2])
def test_under_fail_fast_the_bound_is_right_at_least_as_often_as_without(chance, max_unique):
    runs, confidence = 7, 0.9
    rest = 1 - chance
    exact, whole, early = Fraction(0), Fraction(0), Fraction(0)
    for answers, weight in sequences([chance, rest * 2 / 3, rest / 3], runs):
        made = sizes_of(stopped(answers, lambda counts: len(counts) > max_unique))
        exact += weight
        whole += weight * (agreement_lower(sizes_of(answers), confidence) <= chance)
        early += weight * (agreement_lower(made, confidence, runs) <= chance)
    assert exact == 1
    assert early >= whole >= Fraction(9, 10)


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_the_bound_is_right_as_often_as_it_says_when_runs_stop_at_the_second_output(runs, confidence):
    bound = bounds(runs, confidence)
    alike = numpy.arange(1, runs + 1)
    for chance in agreements(runs, confidence):
        covered = 0.0
        for first in (chance, 1 - chance):
            # The first answer, so often in a row, then the other one, or no run is left.
            chances = first**alike * numpy.where(alike < runs, 1 - first, 1)
            covered += chances[bound[alike] <= chance].sum()
        assert covered >= confidence - ROUNDING


@pytest.mark.parametrize(("common", "runs"), [(0.6, 100), (0.9, 300), (0.97, 300)])
def test_counting_only_the_runs_made_would_be_wrong_and_counting_all_wanted_is_right(common, runs):
    random_source = numpy.random.default_rng(7)
    experiments = 400
    bound = cache(lambda agreeing, counted: agreement_lower([agreeing], 0.95, counted))
    right_of_made = right_of_wanted = 0
    for _ in range(experiments):
        agreeing = numpy.cumsum(random_source.random(runs) < common).tolist()
        # The rule that flatters most: stop where the runs made look best.
        looks, best = max((bound(count, made), count) for made, count in enumerate(agreeing, start=1))
        right_of_made += looks <= common
        right_of_wanted += bound(best, runs) <= common
    noise = 3 * math.sqrt(0.95 * 0.05 / experiments)
    assert right_of_made / experiments < 0.95 - noise
    assert right_of_wanted / experiments >= 0.95 - noise


@pytest.mark.parametrize(
    ("counts", "runs", "expected"),
    [
        ([30], 30, 0.9019),
        ([6, 1], 30, 0.0705),
        ([29, 1], 30, 0.8466),
        ([29], 30, 0.8466),
        ([2], 3, 0.0253),
        ([1], 30, 0.0),
        ([], 30, 0.0),
    ],
)
def test_runs_that_were_not_made_count_as_disagreeing(counts, runs, expected):
    assert round(agreement_lower(counts, 0.95, runs), 4) == expected
    if sum(counts) > 1:
        missing = [1] * (runs - sum(counts))
        assert agreement_lower(counts, 0.95, runs) == agreement_lower([*counts, *missing], 0.95)


def test_no_more_runs_are_made_than_wanted():
    with pytest.raises(ValueError, match="30 runs were made, which is more than the 29 that were wanted"):
        agreement_lower([30], 0.95, 29)


@pytest.mark.parametrize("confidence", [-1, 0, 1, 95, math.nan])
def test_a_confidence_is_between_0_and_1(confidence):
    with pytest.raises(ValueError, match=f"a confidence must be between 0 and 1, not {confidence}"):
        agreement_lower([30], confidence)
    with pytest.raises(ValueError, match="a confidence must be between 0 and 1"):
        runs_needed(0.9, confidence)


@pytest.mark.parametrize(
    ("min_agreement", "confidence", "expected"),
    [
        (0.99, 0.95, 300),
        (0.9, 0.95, 30),
        (0.999, 0.99, 4604),
        (0.999999, 0.95, 2995732),
        (0.5, 0.5, 2),
        (0.05, 0.95, 2),
        (0.0, 0.95, 2),
    ],
)
def test_runs_needed(min_agreement, confidence, expected):
    assert runs_needed(min_agreement, confidence) == expected


@given(st.floats(0, 0.9999999), levels)
def test_runs_needed_is_the_fewest_that_show_the_agreement(min_agreement, confidence):
    runs = runs_needed(min_agreement, confidence)
    assert agreement_lower([runs], confidence) >= min_agreement
    assert runs == 2 or agreement_lower([runs - 1], confidence) < min_agreement


def test_runs_needed_answers_for_the_largest_number_below_1():
    assert runs_needed(math.nextafter(1, 0), 0.95) > 10**15


@pytest.mark.parametrize("min_agreement", [1, 1.5, math.nan])
def test_no_number_of_runs_shows_certainty(min_agreement):
    with pytest.raises(ValueError, match=f"no number of runs shows an agreement of {min_agreement}"):
        runs_needed(min_agreement, 0.95)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([], 0.0), ([1], 0.0), ([30], 0.0), ([1, 1], 1.0), ([1, 2], 2 / 3), ([2, 2], 2 / 3), ([1] * 30, 1.0)],
)
def test_disagreement(counts, expected):
    assert disagreement(counts) == pytest.approx(expected)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 1))
def test_disagreement_counts_the_pairs_that_differ(counts):
    runs = [group for group, count in enumerate(counts) for _ in range(count)]
    pairs = [(a, b) for index, a in enumerate(runs) for b in runs[:index]]
    assert disagreement(counts) == pytest.approx(sum(a != b for a, b in pairs) / len(pairs))


EXACT = [[Fraction(1)], [Fraction(9, 10), Fraction(1, 10)], [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)]]


@pytest.mark.parametrize("chances", EXACT, ids=str)
@pytest.mark.parametrize("runs", [2, 5])
def test_disagreement_is_right_on_average(chances, runs):
    mean = sum(weight * Fraction(disagreement(sizes_of(answers))) for answers, weight in sequences(chances, runs))
    assert float(mean) == pytest.approx(float(1 - sum(chance**2 for chance in chances)))


@pytest.mark.parametrize(
    ("counts", "expected"), [([], 1.0), ([1], 1.0), ([30], 0.0), ([28, 1, 1], 2 / 30), ([2, 2, 1], 0.2)]
)
def test_new_output_chance(counts, expected):
    assert new_output_chance(counts) == expected


@given(sizes.filter(bool))
def test_new_output_chance_is_the_share_of_runs_that_would_be_new_if_they_were_the_last(counts):
    runs = [group for group, count in enumerate(counts) for _ in range(count)]
    new = [runs.count(output) == 1 for output in runs]
    assert new_output_chance(counts) == pytest.approx(sum(new) / len(runs))


@pytest.mark.parametrize("chances", EXACT, ids=str)
@pytest.mark.parametrize("runs", [2, 5])
def test_new_output_chance_is_on_average_that_of_the_last_run(chances, runs):
    mean = sum(weight * Fraction(new_output_chance(sizes_of(answers))) for answers, weight in sequences(chances, runs))
    last = sum(weight for answers, weight in sequences(chances, runs) if answers[-1] not in answers[:-1])
    assert float(mean) == pytest.approx(float(last))


def test_simulated_new_output_chance():
    random_source = numpy.random.default_rng(1953)
    chances = 0.5 ** numpy.arange(1, 21)
    chances[-1] *= 2
    answers = random_source.choice(20, size=(4000, 31), p=chances)
    estimated = numpy.mean([new_output_chance(sizes_of(runs[:30])) for runs in answers.tolist()])
    seen = numpy.mean([runs[30] not in runs[:30] for runs in answers.tolist()])
    assert estimated == pytest.approx(seen, abs=0.01)


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([], 0.0), ([1], 0.0), ([30], 0.0), ([15, 15], 1.0), ([1] * 8, 3.0), ([2, 1, 1], 1.5), ([29, 1], 0.2108)],
)
def test_entropy(counts, bits):
    assert round(entropy(counts), 4) == bits


@given(sizes.filter(bool))
def test_entropy_is_that_of_scipy(counts):
    assert entropy(counts) == pytest.approx(scipy.stats.entropy(counts, base=2), abs=1e-12)
    assert 0 <= entropy(counts) <= math.log2(len(counts)) + 1e-12


@pytest.mark.parametrize("chances", [[0.5, 0.5], [0.8, 0.2], [0.4, 0.3, 0.2, 0.1]], ids=str)
def test_simulated_entropy_is_too_low_by_about_what_is_said(chances):
    random_source = numpy.random.default_rng(1955)
    counts = random_source.multinomial(100, chances, size=4000)
    bias = (len(chances) - 1) / (2 * 100 * math.log(2))
    mean = numpy.mean([entropy(found) for found in counts.tolist()])
    assert mean == pytest.approx(scipy.stats.entropy(chances, base=2) - bias, abs=0.003)


# Power


def test_a_flip_rate_of_one_percent_passes_a_gate_of_30_runs_three_times_out_of_four():
    assert percent(pass_probability(0.01, 30)) == "74.0 %"
    assert pass_probability(0.01, 30) == pytest.approx(0.99**30)


@pytest.mark.parametrize(
    ("flip_rate", "runs", "max_unique", "expected"),
    [
        (0, 30, 1, 1.0),
        (0, 30, 2, 1.0),
        (1, 30, 1, 1.0),  # an answer that is always another is always the same
        (1, 30, 2, 0.0),
        (1, 2, 2, 1.0),
        (0.5, 1, 1, 1.0),
        (0.5, 2, 1, 0.5),
        (0.5, 3, 5, 1.0),
    ],
)
def test_pass_probability_at_the_ends(flip_rate, runs, max_unique, expected):
    assert pass_probability(flip_rate, runs, max_unique) == expected


@pytest.mark.parametrize("flip_rate", [Fraction(1, 100), Fraction(1, 10), Fraction(1, 2), Fraction(3, 4)], ids=str)
@pytest.mark.parametrize("runs", [2, 3, 7])
def test_pass_probability_counted_over_all_that_runs_can_give(flip_rate, runs):
    unique = Counter()
    for flips, weight in sequences([1 - flip_rate, flip_rate], runs):
        unique["alike", len(set(flips))] += weight
        # Each flip an answer of its own.
        unique["apart", len({number * flip for number, flip in enumerate(flips, start=1)})] += weight
    assert pass_probability(float(flip_rate), runs) == pytest.approx(float(unique["alike", 1]))
    for max_unique in range(2, runs + 1):
        passing = sum(unique["apart", count] for count in range(1, max_unique + 1))
        assert pass_probability(float(flip_rate), runs, max_unique) == pytest.approx(float(passing))


@given(shares, st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(2, 60))
def test_no_model_of_a_flip_rate_passes_a_gate_of_one_output_more_often(flip_rate, weights, runs):
    alike = (1 - flip_rate) ** runs + sum((flip_rate * weight / sum(weights)) ** runs for weight in weights)
    assert alike <= pass_probability(flip_rate, runs) * (1 + 1e-9)


@pytest.mark.parametrize("runs", [3, 30, 1000, 100_000])
@pytest.mark.parametrize("flip_rate", [1e-9, 0.0001, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("max_unique", [2, 3, 10, 1000])
def test_pass_probability_is_that_of_the_binomial_distribution(runs, flip_rate, max_unique):
    if max_unique < runs:
        expected = binom.cdf(max_unique - 1, runs, flip_rate)
        assert pass_probability(flip_rate, runs, max_unique) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_simulated_gates_pass_as_often_as_is_said():
    random_source = numpy.random.default_rng(299)
    flips = random_source.random((20_000, 30)) < 0.01
    for max_unique in (1, 2):
        # With one output allowed what the flips give makes no difference here.
        passed = (flips.sum(axis=1) < max_unique).mean()
        assert passed == pytest.approx(pass_probability(0.01, 30, max_unique), abs=0.01)


def test_a_chance_too_small_for_a_number_is_not_0():
    assert 0 < pass_probability(0.5, 100_000) < 1e-300
    assert percent(pass_probability(0.5, 100_000, 3)) == "< 0.1 %"


@pytest.mark.parametrize(
    ("flip_rate", "catch", "max_unique", "expected"),
    [
        (0.01, 0.95, 1, 299),
        (0.001, 0.95, 1, 2995),
        (0.1, 0.95, 1, 29),
        (0.5, 0.95, 1, 6),
        (0.01, 0.5, 1, 69),
        (0.99, 0.01, 1, 2),
        (0.01, 0.95, 2, 473),
        (0.01, 0.95, 3, 628),
        (1e-12, 0.95, 1, 2_995_732_273_553),
    ],
)
def test_runs_to_catch(flip_rate, catch, max_unique, expected):
    assert runs_to_catch(flip_rate, catch, max_unique) == expected


@given(shares, shares, st.integers(1, 6))
def test_runs_to_catch_is_the_fewest_that_do(flip_rate, catch, max_unique):
    runs = runs_to_catch(flip_rate, catch, max_unique)
    assert pass_probability(flip_rate, runs, max_unique) <= 1 - catch
    assert runs == 2 or pass_probability(flip_rate, runs - 1, max_unique) > 1 - catch


@pytest.mark.parametrize("share", [-1, 0, 1, 95, math.nan])
def test_what_never_happens_is_not_caught(share):
    with pytest.raises(ValueError, match=f"a flip rate must be between 0 and 1, not {share}"):
        runs_to_catch(share)
    with pytest.raises(ValueError, match=f"a chance to catch must be between 0 and 1, not {share}"):
        runs_to_catch(0.01, share)


@pytest.mark.parametrize(
    ("arguments", "passes", "caught"),
    [
        ((0.01, 30), "1 % of the time passes this gate 74 % of the time", "95 times of 100 takes 299 runs"),
        (
            (0.001, 30, 1, 0.999),
            "0.1 % of the time passes this gate 97 % of the time",
            "99.9 times of 100 takes 6905 runs",
        ),
        ((0.07, 300), "7 % of the time passes this gate < 1 % of the time", "95 times of 100 takes 42 runs"),
        (
            (0.01, 100, 2),
            "1 % of the time, each time to an answer of its own, passes this gate 74 % of the time",
            "95 times of 100 takes 473 runs; flips that all give one and the same other answer always pass",
        ),
    ],
)
def test_power_in_words(arguments, passes, caught):
    assert power_in_words(*arguments) == f"a model that flips {passes}; to catch it {caught}"


def test_flips_that_are_never_seen():
    assert unseen_flips(2) == "flips that all give one and the same other answer always pass"
    assert unseen_flips(3) == "flips that give 2 other answers at most always pass"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.9019, "90.2 %"),
        (0, "0.0 %"),
        (1, "100.0 %"),
        (0.5, "50.0 %"),
        (0.9994, "99.9 %"),
        (0.9996, "> 99.9 %"),
        (math.nextafter(1, 0), "> 99.9 %"),
        (0.0006, "0.1 %"),
        (0.0004, "< 0.1 %"),
        (5e-324, "< 0.1 %"),
    ],
)
def test_percent(value, expected):
    assert percent(value) == expected


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [(0.7397, 0, "74 %"), (0.996, 0, "> 99 %"), (0.004, 0, "< 1 %"), (1, 0, "100 %"), (0.99997, 3, "99.997 %")],
)
def test_percent_with_other_decimals(value, decimals, expected):
    assert percent(value, decimals) == expected
