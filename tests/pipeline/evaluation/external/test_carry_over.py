"""What a run has learned, held against scikit-learn and plain counting on other women's breasts."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import f1_score, recall_score

from pipeline.evaluation.external.carry_over import carry_calibration, carry_thresholds, with_threshold
from pipeline.evaluation.external.external_set import OperatingRule
from tests.pipeline.synthetic_tables import make_breasts, shuffle


def test_both_ways_to_carry_a_threshold_are_scikit_learns() -> None:
    breasts = make_breasts(num_folds=1, skill=2.0)
    by_probability, by_rate = carry_thresholds(breasts, OperatingRule(0.5, 0.6, 0.1))
    highest = breasts["probability"].sort_values(ascending=False).iloc[len(breasts) // 10 - 1]
    assert (by_probability.threshold, by_rate.threshold) == (0.6, highest)
    assert by_rate.recalled == 0.1
    for carried in (by_probability, by_rate):
        recalled = breasts["probability"] >= carried.threshold
        expected = f1_score(breasts["cancer"], recalled)
        assert carried.estimate.metrics.pf1_transferred == pytest.approx(expected)
        of_breasts, _ = carried.operating_point.tables
        assert of_breasts.figures["sensitivity"] == pytest.approx(recall_score(breasts["cancer"], recalled))


def test_a_run_without_a_threshold_carries_none_over() -> None:
    for carried in carry_thresholds(make_breasts(num_folds=1), OperatingRule(None, None, None)):
        assert carried.threshold is carried.recalled is None
        assert carried.estimate.metrics.pf1_transferred is None
        assert carried.operating_point.tables == []


def test_the_calibration_is_learned_from_the_run_alone() -> None:
    """Other labels of the external set change no corrected probability; isotonic's is scikit-learn's."""
    learned, breasts = make_breasts(seed=1), with_threshold(make_breasts(num_folds=1, seed=2), 0.5)
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(learned["probability"], learned["cancer"])
    expected = model.predict(breasts["probability"])
    brier = np.mean((expected - breasts["cancer"]) ** 2)
    found = carry_calibration(learned, breasts)
    assert found.methods["isotonic"].metrics.brier == pytest.approx(brier)
    others = carry_calibration(learned, breasts.assign(cancer=1 - breasts["cancer"]))
    assert others.parameters == found.parameters
    assert carry_calibration(shuffle(learned), breasts).parameters == found.parameters
    assert set(found.bins["method"]) == {"raw", "platt", "isotonic", "temperature"}


def test_a_ranking_stays_what_it_was() -> None:
    """Platt's and the temperature's curves rise, and take the threshold along."""
    found = carry_calibration(make_breasts(skill=2.0, seed=1), with_threshold(make_breasts(num_folds=1), 0.5))
    raw = found.methods["raw"].metrics
    for name in ("platt", "temperature"):
        assert found.methods[name].metrics.auc == pytest.approx(raw.auc)
        assert found.methods[name].metrics.pf1_transferred == pytest.approx(raw.pf1_transferred)


def test_a_run_of_one_class_teaches_nothing() -> None:
    found = carry_calibration(make_breasts(num_cancers=0), with_threshold(make_breasts(num_folds=1), 0.5))
    assert list(found.methods) == ["raw"]
    assert "no breasts with and without cancer" in found.undefined
