import math
import random
import time
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from pytest_llm_determinism.analysis.statistics import (
    agreement,
    agreement_lower,
    disagreement,
    new_output_chance,
    pass_probability,
    percent,
    runs_needed,
)

sizes = st.lists(st.integers(1, 50), max_size=8)
levels = st.floats(0.01, 0.9999)


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
@pytest.mark.parametrize("confidence", [0.001, 0.3, 0.5, 0.9, 0.95, 0.99, 0.999999])
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


def test_agreement_lower_is_quick_for_many_runs():
    started = time.perf_counter()
    for count in (50_001, 60_000, 90_000, 99_000, 99_999):
        agreement_lower([count, 100_000 - count])
    assert (time.perf_counter() - started) / 5 < 0.01


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


@pytest.mark.parametrize(
    "chances",
    [
        [1.0],
        [0.99, 0.01],
        [0.905, 0.095],
        [0.9, *[0.01] * 10],
        [0.7, 0.2, 0.1],
        [0.5, 0.5],
    ],
    ids=str,
)
def test_agreement_lower_is_at_most_the_true_chance_as_often_as_it_says(chances):
    random_source = random.Random(20240611)
    bound = cache(agreement_lower)
    experiments = 4000
    holds = 0
    for _ in range(experiments):
        counts = Counter(random_source.choices(range(len(chances)), chances, k=30))
        (answer, _), *_ = counts.most_common(1)
        holds += bound(tuple(sorted(counts.values()))) <= chances[answer]
    noise = 3 * math.sqrt(0.95 * 0.05 / experiments)
    assert holds / experiments >= 0.95 - noise


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


@pytest.mark.parametrize(
    ("counts", "expected"), [([], 1.0), ([1], 1.0), ([30], 0.0), ([28, 1, 1], 2 / 30), ([2, 2, 1], 0.2)]
)
def test_new_output_chance(counts, expected):
    assert new_output_chance(counts) == expected


def test_a_flip_rate_of_one_percent_passes_a_gate_of_30_runs_three_times_out_of_four():
    assert percent(pass_probability(0.01, 30)) == "74.0 %"
    assert pass_probability(0, 30) == 1.0
    assert pass_probability(1, 30) == 0.0


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
