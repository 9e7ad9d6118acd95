"""Slope, intercepts, observed over expected, scaled Brier score: against scipy and drawing patients."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.metrics import brier_score_loss, d2_brier_score

from pipeline.evaluation.uncertainty.recalibration import (
    ONE_CLASS,
    ONE_PATIENT,
    ONE_PROBABILITY,
    RECALIBRATION_FIGURES,
    SEPARATED,
    fit_line,
    recalibrate,
)
from tests.pipeline.synthetic_tables import make_breasts


def draw(num_women=300, *, slope=1.0, intercept=0.0, seed=0):
    """Two breasts a woman whose true logits resemble each other; returns labels, probabilities, women."""
    generator = np.random.default_rng(seed)
    women = np.repeat(np.arange(num_women), 2)
    truth = generator.normal(size=num_women)[women] + generator.normal(size=2 * num_women) - 2
    labels = (generator.random(2 * num_women) < expit(slope * truth + intercept)).astype(float)
    return labels, expit(truth), women


def test_the_line_is_the_most_likely_one_and_the_sums_agree():
    labels, probabilities, women = draw(slope=0.6, intercept=-0.5)
    found = recalibrate(labels, probabilities, women).figures

    def cross_entropy(line):
        logits = line[0] * logit(probabilities) + line[1]
        return np.sum(np.logaddexp(0, logits) - labels * logits)

    best = minimize(cross_entropy, [1.0, 0.0], method="BFGS", options={"gtol": 1e-8}).x
    assert (found["slope"], found["intercept"]) == pytest.approx(tuple(best), abs=1e-5)
    expected = expit(logit(probabilities) + found["intercept_of_slope_1"]).sum()
    assert expected == pytest.approx(labels.sum())
    assert found["observed_over_expected"] == pytest.approx(labels.sum() / probabilities.sum())


def test_the_brier_score_of_the_prevalence_is_what_a_constant_scores():
    labels, probabilities, women = draw()
    found = recalibrate(labels, probabilities, women).figures
    constant = np.full(len(labels), labels.mean())
    assert found["brier_of_prevalence"] == pytest.approx(brier_score_loss(labels, constant))
    assert found["brier_scaled"] == pytest.approx(d2_brier_score(labels, probabilities))


def test_the_intervals_are_as_wide_as_drawing_women_makes_them():
    labels, probabilities, women = draw(400)
    found = recalibrate(labels, probabilities, women)
    generator = np.random.default_rng(1)
    values = []
    for _ in range(200):
        drawn = generator.integers(400, size=400)
        rows = (2 * drawn[:, None] + [0, 1]).ravel()
        copies = recalibrate(labels[rows], probabilities[rows], np.repeat(np.arange(400), 2)).figures
        values.append([copies[name] for name in found.intervals])
    rarer = len(np.unique(women[labels == 1]))
    for name, deviation in zip(found.intervals, np.std(values, axis=0), strict=True):
        interval, reach = found.intervals[name], t.ppf(0.975, rarer - 1) * deviation
        assert interval.high - interval.low == pytest.approx(2 * reach, rel=0.25), name
        assert interval.low < found.figures[name] < interval.high


def test_they_hold_the_truth():
    """Four standard errors of 200 runs below 95 %."""
    held = np.zeros(4)
    for seed in range(200):
        intervals = recalibrate(*draw(seed=seed)).intervals
        truth = {"slope": 1, "intercept": 0, "intercept_of_slope_1": 0, "observed_over_expected": 1}
        held += [intervals[name].low <= value <= intervals[name].high for name, value in truth.items()]
    assert (held / 200 > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 200)).all()


def test_a_woman_counts_once_however_many_predictions_she_has():
    labels, probabilities, women = draw()
    once = recalibrate(labels, probabilities, women)
    twice = recalibrate(*(np.tile(column, 2) for column in (labels, probabilities, women)))
    for name, interval in once.intervals.items():
        assert twice.figures[name] == pytest.approx(once.figures[name], abs=1e-6)
        found = twice.intervals[name]
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-5)


def test_the_order_changes_no_bit():
    columns = draw()
    order = np.random.default_rng(1).permutation(len(columns[0]))
    assert recalibrate(*columns) == recalibrate(*(column[order] for column in columns))


@pytest.mark.parametrize(
    ("labels", "probabilities", "undefined"),
    [
        ([0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4], dict.fromkeys(RECALIBRATION_FIGURES, ONE_CLASS)),
        ([1, 1, 1, 1], [0.1, 0.2, 0.3, 0.4], dict.fromkeys(RECALIBRATION_FIGURES, ONE_CLASS)),
        ([0, 1, 0, 1], [0.2] * 4, dict.fromkeys(["slope", "intercept"], ONE_PROBABILITY)),
        ([0, 0, 1, 1], [0.0, 0.2, 0.2, 1.0], dict.fromkeys(["slope", "intercept"], SEPARATED)),
        ([1, 1, 0, 0], [0.0, 0.1, 0.2, 1.0], dict.fromkeys(["slope", "intercept"], SEPARATED)),
        ([0, 1, 0, 1], [0.0, 0.1, 0.2, 1.0], {}),
    ],
)
def test_what_has_no_answer_is_none_with_a_reason(labels, probabilities, undefined):
    found = recalibrate(labels, probabilities, np.arange(4))
    assert found.undefined == undefined
    assert {name for name, value in found.figures.items() if value is None} == set(undefined)
    assert set(found.intervals) | set(found.no_interval) == set(found.figures) - set(undefined)
    assert all(np.isfinite(interval.high) for interval in found.intervals.values())


def test_one_patient_with_cancer_says_nothing_of_how_sure_it_is():
    breasts = make_breasts(num_cancers=1)
    found = recalibrate(breasts["cancer"], breasts["probability"], breasts["patient_id"].astype(int))
    assert found.intervals == {}
    assert found.no_interval["slope"] == ONE_PATIENT


@pytest.mark.parametrize("num_predictions", [40, 97, 100])
@pytest.mark.parametrize("probability", [0.02, 0.5, 0.3])
def test_the_line_through_equal_logits_is_level(num_predictions, probability):
    """Their deviation may be 1e-16 instead of 0."""
    targets = np.arange(num_predictions) % 10 == 0
    logits = np.full(num_predictions, logit(probability))
    assert fit_line(targets.astype(float), logits) == (0.0, pytest.approx(logit(targets.mean())))
