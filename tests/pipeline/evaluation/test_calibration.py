"""Calibration: the methods against scikit-learn's, never fitted on what they correct."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from pipeline.evaluation.calibration import (
    METHODS,
    PlattScaling,
    calibrate,
    cross_fit,
    fit_by_model,
    fit_isotonic,
    fit_platt,
    fit_temperature,
)
from tests.pipeline.synthetic_tables import make_breasts, shuffle


class Scores(ClassifierMixin, BaseEstimator):
    """A classifier whose decision is the feature itself."""

    def fit(self, features, labels):
        self.classes_ = np.array([0, 1])
        return self

    def decision_function(self, features):
        return features[:, 0]

    def predict(self, features):
        return (features[:, 0] > 0).astype(int)


def arrays(breasts):
    return breasts["cancer"].to_numpy(float), breasts["probability"].to_numpy()


@pytest.mark.parametrize("method", ["sigmoid", "temperature", "isotonic"])
def test_each_method_is_scikit_learns(method):
    """Temperature has no smoothed targets there, hence the wider tolerance."""
    labels, probabilities = arrays(make_breasts(num_patients=2_000, num_cancers=400))
    fit = {"sigmoid": fit_platt, "temperature": fit_temperature, "isotonic": fit_isotonic}[method]
    logits = logit(probabilities)[:, None]
    scores = FrozenEstimator(Scores().fit(logits, labels))
    oracle = CalibratedClassifierCV(scores, method=method, ensemble=False).fit(logits, labels)
    expected = oracle.predict_proba(logits)[:, 1]
    tolerance = {"sigmoid": 1e-4, "temperature": 3e-3, "isotonic": 1e-12}[method]
    assert fit(labels, probabilities)(probabilities) == pytest.approx(expected, abs=tolerance)


def test_the_description_is_enough_to_calibrate_elsewhere():
    labels, probabilities = arrays(make_breasts(num_patients=500, num_cancers=100))
    platt = fit_platt(labels, probabilities)
    numbers = platt.describe()
    expected = expit(numbers["slope"] * logit(probabilities) + numbers["intercept"])
    assert platt(probabilities) == pytest.approx(expected)
    temperature = fit_temperature(labels, probabilities)
    expected = expit(logit(probabilities) / temperature.describe()["temperature"])
    assert temperature(probabilities) == pytest.approx(expected)
    assert PlattScaling(2.0, 0.0).describe() == {
        "slope": 2.0,
        "intercept": 0.0,
    }  # whatever its numbers
    isotonic = fit_isotonic(labels, probabilities)
    points = isotonic.describe()
    expected = np.interp(probabilities, points["probabilities"], points["calibrated"])
    assert isotonic(probabilities) == pytest.approx(expected)


def test_a_known_distortion_is_undone():
    """Probabilities that are right on average, then made too sure of themselves by half a temperature."""
    generator = np.random.default_rng(0)
    honest = expit(generator.normal(-1, 1.5, 20_000))
    labels = (generator.random(20_000) < honest).astype(float)
    distorted = expit(logit(honest) * 2)
    assert fit_temperature(labels, distorted).describe()["temperature"] == pytest.approx(2, rel=0.05)
    platt = fit_platt(labels, expit(logit(honest) * 2 + 3))
    assert (platt.slope, platt.intercept) == (pytest.approx(0.5, rel=0.05), pytest.approx(-1.5, rel=0.05))


def test_calibrating_helps_where_probabilities_are_off():
    breasts = make_breasts(num_patients=1_000, num_cancers=100)
    found = calibrate(breasts)
    methods = found.methods
    for name in METHODS:
        assert methods[name].metrics.brier < methods["raw"].metrics.brier
        if name != "temperature":
            assert found.errors[name].found < found.errors["raw"].found


@pytest.mark.parametrize("name", METHODS)
def test_no_breast_takes_part_in_its_own_correction(name):
    """Turning the labels of one fold leaves its own corrected probabilities and threshold as they are."""
    breasts = make_breasts()
    before = cross_fit(breasts, METHODS[name])
    is_own = (breasts["fold"] == 2).to_numpy()
    turned = breasts.assign(cancer=np.where(is_own, 1 - breasts["cancer"], breasts["cancer"]))
    after = cross_fit(turned, METHODS[name])
    judged = ["probability", "threshold"]
    assert (after[judged][is_own] == before[judged][is_own]).all(axis=None)
    assert (after["probability"][~is_own] != before["probability"][~is_own]).any()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("probability", [[0.3] * 6, [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
def test_equal_separated_and_inverted_probabilities_give_numbers(name, probability):
    labels, probabilities = np.array([0.0, 0, 0, 1, 1, 1]), np.array(probability, dtype=float)
    corrected = METHODS[name](labels, probabilities)(probabilities)
    assert ((corrected >= 0) & (corrected <= 1)).all()


def test_where_the_other_folds_lack_a_class_only_the_raw_probabilities_are_judged():
    breasts = make_breasts(num_folds=2)
    breasts.loc[breasts["fold"] == 1, "cancer"] = 0
    found = calibrate(breasts)
    assert list(found.methods) == ["raw"]
    assert found.undefined.startswith("without fold 0 there are no longer breasts with and without cancer")
    assert found.parameters == {}
    assert list(found.by_model) == [0]  # the only fold with both classes


def test_isotonic_regression_is_offered_only_where_it_does_not_worsen_the_brier_score():
    """With few cancers its steps follow chance; with many and bent probabilities it mends them."""
    generator = np.random.default_rng(0)
    for spread, bend, is_offered in ((0.3, 1, False), (1.5, 3, True)):
        honest = expit(generator.normal(-3, spread, 800))
        cancer = (generator.random(800) < honest).astype(int)
        breasts = make_breasts(400).assign(cancer=cancer, probability=expit(bend * logit(honest)))
        found = calibrate(breasts)
        corrected, raw = (found.methods[name].metrics.brier for name in ("isotonic", "raw"))
        assert (corrected <= raw) == is_offered
        assert set(found.parameters) == {"platt", "temperature", *(["isotonic"] if is_offered else [])}
        assert set(found.left_out) == set(METHODS) - set(found.parameters)
        assert all("worse than" in reason for reason in found.left_out.values())


def test_each_model_has_platt_scaling_of_its_own_fold():
    """Its numbers are those of the fold alone, and undo how its model bends the truth."""
    generator = np.random.default_rng(0)
    breasts = make_breasts(num_patients=6_000, num_folds=2)
    truth = generator.normal(-1, 1.5, len(breasts))
    fold = breasts["fold"].to_numpy()
    breasts["cancer"] = (generator.random(len(breasts)) < expit(truth)).astype(int)
    breasts["probability"] = expit(np.where(fold == 0, truth, 2 * truth + 3))
    found = fit_by_model(breasts)
    own = breasts[fold == 0].sort_values("probability")
    assert found[0] == fit_platt(*arrays(own)).describe()
    assert found[0]["slope"] == pytest.approx(1, abs=0.07)
    assert found[1]["slope"] == pytest.approx(0.5, abs=0.05)
    assert found[1]["intercept"] == pytest.approx(-1.5, abs=0.1)


def test_corrected_probabilities_have_slope_1_and_the_right_sum():
    breasts = make_breasts(num_patients=500, num_cancers=100)
    found = calibrate(breasts).recalibrations
    assert found["raw"].figures["observed_over_expected"] < 0.5
    for name in ("platt", "isotonic"):
        interval = found[name].intervals["observed_over_expected"]
        assert interval.low < 1 < interval.high
    assert found["platt"].figures["slope"] == pytest.approx(1, abs=0.1)


def test_bins_hold_all_breasts_and_their_shares():
    found = calibrate(make_breasts()).bins
    assert set(found["method"]) == {"raw", *METHODS}
    for _, bins in found.groupby("method"):
        assert (bins["num_breasts"].sum(), bins["num_cancers"].sum()) == (400, 20)
        assert (bins["share_of_cancers"] == bins["num_cancers"] / bins["num_breasts"]).all()
        assert (bins["low"] <= bins["share_of_cancers"]).all()
        assert (bins["share_of_cancers"] <= bins["high"]).all()
    raw = found[found["method"] == "raw"]
    assert (raw["num_breasts"] == 40).all()
    assert raw["mean_probability"].is_monotonic_increasing


def test_the_order_of_the_breasts_does_not_matter():
    breasts = make_breasts()
    first, second = calibrate(breasts), calibrate(shuffle(breasts))
    assert first.parameters == second.parameters
    assert first.methods == second.methods
    assert first.recalibrations == second.recalibrations
    assert first.errors == second.errors
    assert first.by_model == second.by_model
    pd.testing.assert_frame_equal(first.bins, second.bins, check_exact=True)
