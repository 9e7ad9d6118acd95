"""F1 around the threshold and at other prevalences, against copies of rows and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.metrics import f1_score

from pipeline.evaluation.estimates import estimate_all
from pipeline.evaluation.threshold_stability import STABILITY_COLUMNS, sweep
from tests.pipeline.synthetic_tables import make_breasts, shuffle


def test_each_shifted_threshold_has_its_f1():
    breasts = make_breasts()
    found = sweep(breasts, 0.6, num_replicates=10)
    shifted = found[found["change"] == "threshold"]
    for row in shifted.itertuples():
        assert logit(row.threshold) == pytest.approx(logit(0.6) + row.by)
        expected = f1_score(breasts["cancer"], breasts["probability"] >= row.threshold, zero_division=0)
        assert row.pf1 == pytest.approx(expected)


def test_another_prevalence_is_a_weight_of_the_cancers():
    breasts = make_breasts(num_cancers=40)
    found = sweep(breasts, 0.6, num_replicates=10)
    prevalences = found[found["change"] == "prevalence"]
    for row in prevalences.itertuples():
        weight = row.prevalence / (1 - row.prevalence) / (0.1 / 0.9)
        weights = np.where(breasts["cancer"] == 1, weight, 1)
        assert weights @ breasts["cancer"] / weights.sum() == pytest.approx(0.1 * row.by)
        recalled = breasts["probability"] >= 0.6
        assert row.pf1 == pytest.approx(f1_score(breasts["cancer"], recalled, sample_weight=weights))
    assert prevalences["pf1"].is_monotonic_increasing


def test_unchanged_is_the_run_s_own_figure_and_interval():
    breasts = make_breasts()
    estimate = estimate_all({"all": breasts}, num_replicates=100)["all"]
    found = sweep(breasts, estimate.metrics.threshold_best, num_replicates=100)
    same = found[((found["change"] == "threshold") & (found["by"] == 0)) | (found["by"] == 1.0)]
    same = same[(same["threshold"] == estimate.metrics.threshold_best)]
    interval = estimate.intervals["pf1_best"]
    assert len(same) == 2
    for row in same.itertuples():
        assert (row.pf1, row.low, row.high) == pytest.approx(
            (estimate.metrics.pf1_best, interval.low, interval.high)
        )


def test_a_prevalence_of_all_or_more_is_left_out():
    assert sweep(make_breasts(num_cancers=200), 0.5, num_replicates=2)["prevalence"].max() < 1


def test_without_a_threshold_the_table_is_empty():
    found = sweep(make_breasts(num_cancers=0), None)
    assert list(found) == STABILITY_COLUMNS
    assert found.empty


def test_the_order_of_the_breasts_does_not_matter():
    breasts = make_breasts()
    first, second = (sweep(table, 0.5, num_replicates=20) for table in (breasts, shuffle(breasts)))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
