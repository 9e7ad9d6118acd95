"""Metrics against scikit-learn, exact fractions and hand-checked figures."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from pipeline import metrics

FEW_VALUES = st.integers(0, 8).map(lambda eighths: eighths / 8)  # many ties


@st.composite
def predictions(draw, probabilities=FEW_VALUES, max_size=40):
    """Labels with both classes, and probabilities."""
    pairs = draw(st.lists(st.tuples(st.integers(0, 1), probabilities), max_size=max_size))
    pairs += [(0, draw(probabilities)), (1, draw(probabilities))]
    labels, values = zip(*draw(st.permutations(pairs)), strict=True)
    return np.array(labels), np.array(values)


def pf1_in_fractions(labels, probabilities):
    """The competition's formula, literally and without rounding."""
    clipped = [min(max(Fraction(float(value)), Fraction(0)), Fraction(1)) for value in probabilities]
    ctp = sum(value for value, label in zip(clipped, labels, strict=True) if label)
    cfp = sum(value for value, label in zip(clipped, labels, strict=True) if not label)
    precision, recall = ctp / (ctp + cfp), ctp / int(sum(labels))
    return 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0


@given(predictions(st.floats(-0.5, 1.5)))
def test_pf1_is_the_competitions_formula(case):
    """Computed in exact fractions, with probabilities outside [0, 1] clipped."""
    labels, probabilities = case
    if not (probabilities > 0).any():
        assert metrics.pf1(labels, probabilities) is None
    else:
        assert metrics.pf1(labels, probabilities) == pytest.approx(
            float(pf1_in_fractions(labels, probabilities))
        )


@given(predictions(st.sampled_from([0.0, 1.0])))
def test_pf1_of_zeros_and_ones_is_f1(case):
    labels, answers = case
    if answers.any():
        assert metrics.pf1(labels, answers) == pytest.approx(f1_score(labels, answers))


def test_pf1_of_all_ones_on_the_training_breasts():
    """492 cancers among 23,826 breasts: the figure that the competition's forum knows."""
    labels = np.zeros(23_826)
    labels[:492] = 1
    assert metrics.pf1(labels, np.ones(23_826)) == pytest.approx(0.0405, abs=5e-5)
    assert metrics.pf1(labels, np.ones(23_826)) == pytest.approx(metrics.all_ones_pf1(492 / 23_826))


def test_pf1_is_zero_where_only_negatives_have_a_probability():
    assert metrics.pf1([1, 0], [0.0, 0.7]) == 0.0


@given(predictions())
def test_auc_and_average_precision_are_scikit_learns(case):
    labels, probabilities = case
    assert metrics.auc(labels, probabilities) == pytest.approx(roc_auc_score(labels, probabilities))
    expected = average_precision_score(labels, probabilities)
    assert metrics.average_precision(labels, probabilities) == pytest.approx(expected)


@given(predictions(), st.data())
def test_weighted_figures_are_scikit_learns_and_those_of_repeated_rows(case, data):
    """A weight of 2 is the same as the row twice, a weight of 0 as no row."""
    labels, probabilities = case
    counts = st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))
    weights_RN = np.array([data.draw(counts), np.ones(len(labels))], dtype=float)
    figures = {
        metrics.weighted_auc: (metrics.auc, roc_auc_score),
        metrics.weighted_average_precision: (metrics.average_precision, average_precision_score),
        metrics.weighted_pf1: (metrics.pf1, None),
    }
    for weighted, (plain, oracle) in figures.items():
        for weights_N, figure in zip(weights_RN, weighted(labels, probabilities, weights_RN), strict=True):
            repeats = weights_N.astype(int)
            expected = plain(np.repeat(labels, repeats), np.repeat(probabilities, repeats))
            assert (figure == pytest.approx(expected)) if expected is not None else np.isnan(figure)
            if oracle and expected is not None:
                assert figure == pytest.approx(oracle(labels, probabilities, sample_weight=weights_N))


@given(predictions(st.sampled_from([0.0, 1.0])), st.data())
def test_weighted_f1_of_answers_is_scikit_learns(case, data):
    """Zero where nobody is called back; undefined without a cancer."""
    labels, answers = case
    counts = st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))
    weights_N = np.array(data.draw(counts), dtype=float)
    (figure,) = metrics.weighted_f1(labels, answers, weights_N[None])
    if weights_N @ labels:
        expected = f1_score(labels, answers, sample_weight=weights_N, zero_division=0)
        assert figure == pytest.approx(expected)
    else:
        assert np.isnan(figure)


@given(predictions())
def test_the_best_threshold_beats_every_other(case):
    labels, probabilities = case
    threshold, best = metrics.best_threshold(labels, probabilities)
    scores = {value: f1_score(labels, probabilities >= value) for value in probabilities}
    assert best == pytest.approx(max(scores.values()))
    assert best == pytest.approx(scores[threshold])
    assert best == metrics.pf1(labels, probabilities >= threshold)


def test_of_equally_good_thresholds_the_highest_is_chosen():
    assert metrics.best_threshold([1, 0, 0, 1], [0.9, 0.8, 0.7, 0.6]) == (0.9, pytest.approx(2 / 3))


@given(predictions(st.floats(0, 1)), st.randoms())
def test_the_order_of_the_rows_changes_no_bit(case, random):
    labels, probabilities = case
    shuffled = random.sample(range(len(labels)), len(labels))
    assert metrics.measure(labels, probabilities, num_images=9) == metrics.measure(
        labels[shuffled], probabilities[shuffled], num_images=9
    )


@pytest.mark.parametrize(
    ("labels", "probabilities", "undefined"),
    [
        ([0, 0], [0.1, 0.2], dict.fromkeys(metrics.FIGURES, metrics.NO_CANCER)),
        ([], [], dict.fromkeys(metrics.FIGURES, metrics.NO_CANCER)),
        ([1, 1], [0.1, 0.2], {"auc": metrics.ONLY_CANCER}),
        ([1, 0], [0.0, 0.0], {"pf1": metrics.ALL_ZERO}),
        ([1, 0], [0.0, -1.0], {"pf1": metrics.ALL_ZERO}),
        ([1, 1], [0.0, 0.0], {"auc": metrics.ONLY_CANCER, "pf1": metrics.ALL_ZERO}),
        ([1, 0], [0.3, 0.4], {}),
    ],
)
def test_undefined_figures_are_none_and_explained(labels, probabilities, undefined):
    measured = metrics.measure(labels, probabilities, num_images=2)
    assert measured.undefined == undefined
    assert {name for name in metrics.FIGURES if getattr(measured, name) is None} == set(undefined)


def test_operating_points_count_what_each_threshold_calls_back():
    points = metrics.find_operating_points([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1])
    assert points.thresholds.tolist() == [0.9, 0.5, 0.1]
    assert points.true_positives.tolist() == [1, 2, 2]
    assert points.false_positives.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "probabilities"), [([0, 1], [0.5]), ([0, 2], [0.5, 0.5]), ([0, 1], [0.5, np.nan])]
)
def test_malformed_input_is_refused(labels, probabilities):
    with pytest.raises(ValueError, match="must"):
        metrics.auc(labels, probabilities)
