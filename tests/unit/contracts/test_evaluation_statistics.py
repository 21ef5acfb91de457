"""avg@k, pass@k and their intervals against definitions in plain loops, and where intervals are known."""

from __future__ import annotations

import itertools
import random
from statistics import fmean

import pytest

from services.contracts.evaluations.statistics import accuracies, estimate, ks_of, pass_at_k, pass_shares


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 2), (6, 2, 3), (5, 0, 2), (5, 5, 3), (7, 6, 2), (3, 1, 3)])
def test_pass_at_k_is_the_mean_over_every_choice_of_k_samples(n: int, c: int, k: int) -> None:
    samples = [True] * c + [False] * (n - c)
    chosen = [any(choice) for choice in itertools.combinations(samples, k)]
    assert pass_shares([(n, c)], k) == [pytest.approx(fmean(chosen))]


def test_questions_without_a_judged_sample_count_nowhere() -> None:
    assert accuracies([(0, 0), (4, 1)]) == [0.25]
    assert pass_shares([(0, 0), (4, 4)], 4) == [1.0]
    assert pass_at_k([(0, 0)], 4) == 0.0


def test_an_interval_covers_the_truth_about_95_times_of_100() -> None:
    draw = random.Random(7)
    covered = 0
    for _ in range(200):
        found = estimate([float(draw.random() < 0.3) for _ in range(100)])
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_an_interval_is_the_same_each_time_and_narrows_with_more_questions() -> None:
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 1000
    assert estimate(few) == estimate(few)
    (narrow, wide) = (found.high - found.low for found in (estimate(many), estimate(few)) if found.low and found.high)
    assert narrow == pytest.approx(wide / 10, rel=0.2)


def test_one_question_has_no_interval() -> None:
    assert estimate([0.5]) == (0.5, None, None)
    assert estimate([]) == (0.0, None, None)


@pytest.mark.parametrize(("num_samples", "ks"), [(1, [1]), (2, [1, 2]), (16, [1, 2, 4, 8, 16]), (12, [1, 2, 4, 8, 12])])
def test_pass_at_k_is_told_for_powers_of_two_and_all_samples(num_samples: int, ks: list[int]) -> None:
    assert ks_of(num_samples) == ks
