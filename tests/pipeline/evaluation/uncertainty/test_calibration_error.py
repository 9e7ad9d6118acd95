"""The calibration error against scikit-learn's bins, and beside a constant and right probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from pipeline.evaluation.uncertainty.calibration_error import CalibrationError, expect_error, find_bins


def find_oracle(labels, probabilities):
    """scikit-learn gives the means of each bin, not how many predictions it holds."""
    shares, means = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
    counts = np.bincount(find_bins(probabilities))
    return np.abs(shares - means) @ counts[counts > 0] / len(labels)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=40))
def test_it_is_that_of_scikit_learns_bins(rows):
    labels, probabilities = np.array([[1.0, 0.5], [0.0, 0.5], *rows], float).T
    found = CalibrationError.compare(labels, probabilities, np.arange(len(labels)) % 2)
    assert found.found == pytest.approx(find_oracle(labels, probabilities))


def test_the_constant_is_the_other_folds_share_of_cancers():
    labels, folds = np.array([1.0, 0, 0, 0, 0, 0, 0, 0, 1, 1]), np.array([0] * 4 + [1] * 6)
    found = CalibrationError.compare(labels, np.linspace(0.1, 0.9, 10), folds)
    assert found.constant == pytest.approx(4 / 10 * (2 / 6 - 1 / 4) + 6 / 10 * (2 / 6 - 1 / 4))
    alone = CalibrationError.compare(labels, np.linspace(0.1, 0.9, 10), np.zeros(10))
    assert alone.constant == pytest.approx(0, abs=1e-12)


def test_probabilities_that_are_right_score_what_is_expected_of_them_and_not_0():
    """Of equal probabilities, the mean absolute deviation of a binomial."""
    probabilities = np.full(400, 0.1)
    counts = np.random.default_rng(1).binomial(400, 0.1, 100_000)
    expected = np.abs(counts / 400 - 0.1).mean()
    assert expect_error(probabilities, num_draws=4_000) == pytest.approx(expected, rel=0.05)
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(0, 0.1, 2_000)
    labels = generator.random((200, 2_000)) < probabilities
    scores = [find_oracle(drawn, probabilities) for drawn in labels]
    assert expect_error(probabilities) == pytest.approx(np.mean(scores), rel=0.05)
    assert np.mean(scores) > 0.002


def test_the_order_changes_no_bit():
    generator = np.random.default_rng(0)
    columns = generator.integers(0, 2, 200), generator.random(200), generator.integers(0, 3, 200)
    order = generator.permutation(200)
    assert CalibrationError.compare(*columns) == CalibrationError.compare(*(each[order] for each in columns))
