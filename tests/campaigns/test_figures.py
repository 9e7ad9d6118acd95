"""The simulations of `make campaign`, with fewer runs."""

import math
from pathlib import Path

import pytest

from tests.campaigns.figures import compare_equals, cover, cover_recall_rate, score_crops_at_random


@pytest.mark.slow
@pytest.mark.parametrize("num_cancers", [10, 60])
def test_intervals_hold_the_truth_within_folds_and_the_pooled_ones_do_not(num_cancers: int) -> None:
    """Four standard errors of 150 runs below 95 %; the pooled AUC is of another thing."""
    found = cover(num_cancers, auc=0.922, num_runs=150)
    assert found["within"].share > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 150)
    if num_cancers == 60:
        assert found["pooled"].share < 0.8


@pytest.mark.slow
def test_the_interval_at_a_recall_rate_of_few_women_holds_the_truth() -> None:
    """Women have two breasts alike, and of each fold only two may be recalled."""
    assert cover_recall_rate(20, auc=0.85, num_runs=150).share >= 0.93


@pytest.mark.slow
def test_equal_runs_are_seldom_told_apart() -> None:
    """5 % of 20 is 1; more than 5 would be a chance of one in three thousand."""
    verdicts, _ = compare_equals(20, num_replicates=100)
    assert verdicts["better"] + verdicts["worse"] <= 5
    assert verdicts.total() == 20


@pytest.mark.slow
def test_random_numbers_on_real_crops_score_a_half_whatever_the_number_of_images(real_data: Path) -> None:
    found = score_crops_at_random(real_data / "rsna_png256", 30)
    assert found["weighted"].mean() == pytest.approx(0.5, abs=0.01)
    assert found["mean of logits"].mean() == pytest.approx(0.5, abs=0.015)
    assert found["highest"].mean() > 0.65
    assert found["mean of probabilities"].mean() > 0.53
    assert found["audit"].max() >= 0.99
