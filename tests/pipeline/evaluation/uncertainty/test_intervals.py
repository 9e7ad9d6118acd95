"""Each figure's interval, and why it has none."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from pipeline.evaluation.estimates import estimate_all
from pipeline.evaluation.metrics import largest_sensitivity
from pipeline.evaluation.uncertainty.intervals import (
    HELD_FIXED,
    NO_CHANCE,
    NO_WIDTH,
    ONE_PATIENT,
    find_exact_interval,
    find_share_interval,
)
from tests.pipeline.synthetic_tables import make_breasts


def estimate(breasts):
    return estimate_all({"all": breasts}, num_replicates=200)["all"]


@pytest.mark.parametrize("found", [0, 1, 7, 19, 20])
def test_the_exact_interval_is_scipys(found):
    expected = binomtest(found, 20).proportion_ci(method="exact")
    interval = find_exact_interval(found / 20, 20)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("num_cancers", [0, 1, 2, 8, 60])
@pytest.mark.parametrize("skill", [0.0, 9.0])
def test_an_interval_has_width_and_holds_its_figure_or_a_reason_stands_there(num_cancers, skill):
    found = estimate(make_breasts(num_cancers=num_cancers, skill=skill))
    assert set(found.intervals).isdisjoint(found.no_interval)
    for name, value in found.figures.items():
        if value is None:
            assert name not in found.intervals | found.no_interval
            continue
        assert (name in found.intervals) != (name in found.no_interval), name
        if name in found.intervals:
            assert found.intervals[name].low < found.intervals[name].high
            assert found.intervals[name].low <= value <= found.intervals[name].high, name
    assert found.no_interval["threshold_transferred"] == HELD_FIXED


def test_one_cancer_says_nothing_of_how_sure_an_auc_is():
    found = estimate(make_breasts(num_cancers=1, skill=0.0))
    assert 0 < found.metrics.auc < 1
    assert found.no_interval["auc"] == ONE_PATIENT


def test_all_cancers_found_is_no_certainty():
    breasts = make_breasts(num_patients=200, num_cancers=6, num_folds=1)
    breasts["probability"] = np.where(breasts["cancer"] == 1, 0.9, breasts["probability"] / 2)
    found = estimate(breasts)
    num_women = breasts.loc[breasts["cancer"] == 1, "patient_id"].nunique()
    for name in ("sensitivity_at_specificity_90", "sensitivity_at_recall_rate_10", "auc"):
        assert found.figures[name] == 1
        assert found.intervals[name].low == pytest.approx(0.025 ** (1 / num_women), abs=1e-9)
        assert found.intervals[name].high == 1


def test_an_interval_without_width_is_not_blamed_on_the_cancers():
    """All replicates agree, because the truth is the answer."""
    breasts = make_breasts(num_patients=100, num_cancers=60, num_folds=2)
    breasts["probability"] = breasts["cancer"].astype(float)
    reasons = estimate(breasts).no_interval
    assert reasons["pf1_best"] == NO_WIDTH
    assert not any("cancers" in reason for reason in reasons.values())


def test_no_interval_passes_what_no_model_could_find():
    breasts = make_breasts(num_patients=100, num_cancers=60, skill=3.0, num_folds=2)
    found = estimate(breasts)
    for percent in (2, 5, 10):
        columns = breasts["cancer"], breasts["patient_id"], breasts["fold"]
        ceiling = largest_sensitivity(*columns, percent / 100)
        assert ceiling < 0.5
        assert found.intervals[f"sensitivity_at_recall_rate_{percent}"].high <= ceiling
    few = make_breasts(num_patients=40, num_cancers=24, num_folds=4)  # 2 % of 40 women is none
    assert estimate(few).no_interval["sensitivity_at_recall_rate_2"] == NO_CHANCE


@pytest.mark.parametrize(("found", "number"), [(1, 5), (3, 20), (19, 20), (30, 60)])
def test_ends_of_a_share_are_where_its_mid_p_value_is_a_fortieth(found, number):
    """Half of the probability of what was seen counts as more extreme, and half as less."""
    interval = find_share_interval(found / number, number)
    above = binom.sf(found, number, interval.low) + binom.pmf(found, number, interval.low) / 2
    below = binom.cdf(found - 1, number, interval.high) + binom.pmf(found, number, interval.high) / 2
    assert (above, below) == pytest.approx((0.025, 0.025))
    exact = find_exact_interval(found / number, number)
    assert exact.low < interval.low < found / number < interval.high < exact.high


def test_ends_of_a_share_move_with_it_between_whole_numbers():
    """Breasts and images give shares that no number of women has."""
    shares = np.linspace(0.01, 0.99, 99)
    intervals = [find_share_interval(share, 10) for share in shares]
    for ends in zip(*((each.low, each.high) for each in intervals), strict=True):
        assert (np.diff(ends) > 0).all()
    assert find_share_interval(0, 10) == find_exact_interval(0, 10)
    assert find_share_interval(1, 10) == find_exact_interval(1, 10)


def test_a_sensitivity_at_a_recall_rate_is_as_sure_as_so_many_women_with_cancer():
    """Of five of them both breasts have cancer."""
    breasts = make_breasts(num_patients=150, num_cancers=20)
    breasts.loc[breasts["patient_id"].isin(list("01234")), "cancer"] = 1
    found = estimate(breasts)
    assert found.num_cancer_patients < found.num_cancers
    for percent in (2, 5, 10):
        name = f"sensitivity_at_recall_rate_{percent}"
        expected = find_share_interval(found.figures[name], found.num_cancer_patients)
        ceiling = largest_sensitivity(
            breasts["cancer"], breasts["patient_id"], breasts["fold"], percent / 100
        )
        assert found.intervals[name].low == expected.low
        assert found.intervals[name].high == min(expected.high, ceiling)
