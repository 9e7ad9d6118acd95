"""Figures of merit against scikit-learn, exact fractions, brute force and hand-checked values."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score, roc_curve

from pipeline.evaluation import formulas, metrics
from pipeline.evaluation.patient_stats import PatientSums

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
    found = metrics.measure(labels, probabilities).pf1
    expected = pf1_in_fractions(labels, probabilities) if (probabilities > 0).any() else 0
    assert found == pytest.approx(float(expected))


def official_pf1(labels, predictions):
    """The competition's code as it was published, on pandas columns as its scorer calls it."""
    y_true_count = ctp = cfp = 0
    for idx in range(len(labels)):
        prediction = min(max(predictions[idx], 0), 1)
        if labels[idx]:
            y_true_count += 1
            ctp += prediction
        else:
            cfp += prediction
    c_precision = ctp / (ctp + cfp)
    c_recall = ctp / y_true_count
    if c_precision > 0 and c_recall > 0:
        return 2 * (c_precision * c_recall) / (c_precision + c_recall)
    return 0


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # it divides 0.0 by 0.0
@pytest.mark.parametrize("labels", [[1, 0, 1], [1, 1, 1], [0, 0, 0]])
@pytest.mark.parametrize("probabilities", [[0.0, 0.0, 0.0], [0.25, 0.0, 0.5], [0.0, 0.5, 0.0]])
def test_pf1_is_what_the_official_code_says_and_undefined_where_that_fails(labels, probabilities):
    found = metrics.measure(labels, probabilities).pf1
    try:
        expected = official_pf1(pd.Series(labels), pd.Series(probabilities))
    except ZeroDivisionError:
        expected = None
    assert found == (None if expected is None else pytest.approx(expected))
    assert (expected is None) == (not any(labels))


@given(predictions(st.sampled_from([0.0, 1.0])))
def test_pf1_of_zeros_and_ones_is_f1(case):
    labels, recalled = case
    if recalled.any():
        assert metrics.measure(labels, recalled).pf1 == pytest.approx(f1_score(labels, recalled))


def test_pf1_of_all_ones_on_the_training_breasts():
    """492 cancers among 23,826 breasts: the figure that the competition's forum knows."""
    labels = np.zeros(23_826)
    labels[:492] = 1
    found = metrics.measure(labels, np.ones(23_826)).pf1
    assert found == pytest.approx(0.0405, abs=5e-5)
    assert found == pytest.approx(metrics.all_ones_pf1(492 / 23_826))


def test_pf1_is_zero_where_only_negatives_have_a_probability():
    assert metrics.measure([1, 0], [0.0, 0.7]).pf1 == 0.0


@given(predictions())
def test_areas_and_brier_score_are_scikit_learns(case):
    labels, probabilities = case
    found = metrics.measure(labels, probabilities)
    assert found.auc == pytest.approx(roc_auc_score(labels, probabilities))
    assert found.partial_auc == pytest.approx(roc_auc_score(labels, probabilities, max_fpr=0.1))
    assert found.average_precision == pytest.approx(average_precision_score(labels, probabilities))
    assert found.brier == pytest.approx(brier_score_loss(labels, probabilities))


@given(predictions())
def test_sensitivity_at_a_specificity_is_the_highest_point_of_the_roc_curve(case):
    labels, probabilities = case
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, probabilities, drop_intermediate=False)
    found = metrics.measure(labels, probabilities)
    for percent, rate in metrics.SPECIFICITIES.items():
        expected = true_positive_rate[false_positive_rate <= rate + 1e-9].max()
        assert getattr(found, f"sensitivity_at_specificity_{percent}") == pytest.approx(expected)


@given(predictions(max_size=80), st.integers(1, 30))
def test_a_woman_is_recalled_by_the_highest_of_her_probabilities(case, num_patients):
    """The best of all thresholds, tried one by one, that call back no more women than allowed."""
    labels, probabilities = case
    patients = np.arange(len(labels)) % num_patients
    found = metrics.measure(labels, probabilities, patients=patients)
    highest = [probabilities[patients == patient].max() for patient in np.unique(patients)]
    for percent, rate in metrics.RECALL_RATES.items():
        allowed = [t for t in np.unique(probabilities) if np.mean(highest >= t) <= rate + 1e-9]
        expected = max([np.mean(probabilities[labels == 1] >= t) for t in allowed], default=0)
        assert getattr(found, f"sensitivity_at_recall_rate_{percent}") == pytest.approx(expected)


def test_the_right_breast_must_be_found_not_only_the_right_woman():
    """Ten women; the first is recalled for her healthy breast."""
    patients = np.repeat(np.arange(10), 2)
    labels, probabilities = np.zeros(20), np.full(20, 0.1)
    labels[0], probabilities[0], probabilities[1] = 1, 0.2, 0.9
    assert metrics.measure(labels, probabilities, patients=patients).sensitivity_at_recall_rate_10 == 1.0
    probabilities[0] = 0.1
    assert metrics.measure(labels, probabilities, patients=patients).sensitivity_at_recall_rate_10 == 0.0


@given(predictions(), st.data())
def test_weighted_figures_are_scikit_learns_and_those_of_repeated_patients(case, data):
    """A patient with weight 2 is the same as two such patients, a weight of 0 as none."""
    labels, probabilities = case
    counts = st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))
    weights = np.array([data.draw(counts), np.ones(len(labels))], dtype=float)
    rows = np.arange(len(labels))
    sums = PatientSums(labels, probabilities, rows, num_patients=len(labels))
    best = formulas.find_best(sums.add_up())
    figures = metrics.compute_figures(sums.add_up(weights.T), best=best)
    oracles = {"auc": roc_auc_score, "average_precision": average_precision_score, "brier": brier_score_loss}
    for number, weights_N in enumerate(weights):
        copies = np.repeat(rows, weights_N.astype(int))
        expected = metrics.measure(labels[copies], probabilities[copies]).figures
        for name in set(figures) - {"pf1_best", "pf1_transferred"}:
            value = figures[name][number]
            if expected[name] is None:
                assert np.isnan(value), name
            else:
                assert value == pytest.approx(expected[name]), name
                if name in oracles:
                    oracle = oracles[name](labels, probabilities, sample_weight=weights_N)
                    assert value == pytest.approx(oracle)
        if labels[copies].any():
            recalled = probabilities[copies] >= sums.thresholds_T[best]
            expected_f1 = f1_score(labels[copies], recalled, zero_division=0)
            assert figures["pf1_best"][number] == pytest.approx(expected_f1)


@given(predictions(), FEW_VALUES)
def test_transferred_f1_is_scikit_learns_at_that_threshold(case, threshold):
    labels, probabilities = case
    found = metrics.measure(labels, probabilities, thresholds=np.full(len(labels), threshold))
    expected = f1_score(labels, probabilities >= threshold, zero_division=0)
    assert (found.threshold_transferred, found.pf1_transferred) == (threshold, pytest.approx(expected))


@given(predictions())
def test_the_best_threshold_beats_every_other(case):
    labels, probabilities = case
    found = metrics.measure(labels, probabilities)
    scores = {value: f1_score(labels, probabilities >= value) for value in probabilities}
    assert found.pf1_best == pytest.approx(max(scores.values()))
    assert found.pf1_best == pytest.approx(scores[found.threshold_best])
    assert found.pf1_best == pytest.approx(metrics.measure(labels, probabilities >= found.threshold_best).pf1)


def test_of_equally_good_thresholds_the_highest_is_chosen():
    found = metrics.measure([1, 0, 0, 1], [0.9, 0.8, 0.7, 0.6])
    assert (found.threshold_best, found.pf1_best) == (0.9, pytest.approx(2 / 3))


@given(predictions(st.floats(0, 1)), st.randoms(), st.integers(1, 9))
def test_the_order_of_the_rows_changes_no_bit(case, random, num_patients):
    labels, probabilities = case
    patients = np.arange(len(labels)) % num_patients
    thresholds = np.where(patients % 2, 0.25, 0.5)
    shuffled = random.sample(range(len(labels)), len(labels))
    assert metrics.measure(
        labels, probabilities, patients=patients, thresholds=thresholds
    ) == metrics.measure(
        labels[shuffled],
        probabilities[shuffled],
        patients=patients[shuffled],
        thresholds=thresholds[shuffled],
    )


NEEDS_CANCER = set(metrics.FIGURES) - {"brier", "threshold_transferred"}
NEEDS_OTHERS = {"auc", "auc_pooled", "partial_auc"}
NEEDS_OTHERS |= {f"sensitivity_at_specificity_{n}" for n in metrics.SPECIFICITIES}


@pytest.mark.parametrize(
    ("labels", "probabilities", "undefined"),
    [
        ([0, 0], [0.1, 0.2], dict.fromkeys(NEEDS_CANCER, metrics.NO_CANCER["breast"])),
        ([1, 1], [0.1, 0.2], dict.fromkeys(NEEDS_OTHERS, metrics.ONLY_CANCER["breast"])),
        ([1, 0], [0.0, 0.0], {}),
        (
            [1, 1],
            [0.0, 0.0],
            dict.fromkeys(NEEDS_OTHERS, metrics.ONLY_CANCER["breast"]),
        ),
        ([1, 0], [0.3, 0.4], {}),
    ],
)
def test_undefined_figures_are_none_and_explained(labels, probabilities, undefined):
    measured = metrics.measure(labels, probabilities, thresholds=[0.5, 0.5])
    assert measured.undefined == undefined
    assert {name for name, value in measured.figures.items() if value is None} == set(undefined)


def test_nothing_is_undefined_for_one_reason():
    assert metrics.measure([], []).undefined == dict.fromkeys(metrics.FIGURES, metrics.NO_PREDICTION)


def test_without_a_transferred_threshold_there_is_no_transferred_figure():
    names = ["pf1_transferred", "threshold_transferred"]
    for thresholds in (None, [np.nan, 0.5]):
        found = metrics.measure([1, 0], [0.3, 0.4], thresholds=thresholds)
        assert found.undefined == dict.fromkeys(names, metrics.NO_TRANSFER)
    found = metrics.measure([1, 0], [0.3, 0.4], thresholds=[0.2, 0.5])
    assert found.undefined == {"threshold_transferred": metrics.SEVERAL_THRESHOLDS}
    assert found.pf1_transferred == 1.0


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
        metrics.measure(labels, probabilities)


@given(predictions(st.floats(0, 1), max_size=60), st.integers(2, 4))
def test_pairs_are_made_within_folds_alone(case, num_folds):
    """Counted one by one."""
    labels, probabilities = case
    folds = np.arange(len(labels)) % num_folds
    won = pairs = 0.0
    for one in np.flatnonzero(labels == 1):
        for other in np.flatnonzero((labels == 0) & (folds == folds[one])):
            pairs += 1
            won += np.sign(probabilities[one] - probabilities[other]) / 2 + 0.5
    found = metrics.measure(labels, probabilities, folds=folds)
    assert found.auc == (pytest.approx(won / pairs) if pairs else None)
    assert found.auc_pooled == pytest.approx(roc_auc_score(labels, probabilities))
    if not pairs:
        assert found.undefined["auc"] == metrics.NO_PAIR["breast"]


WITHIN_FOLDS = {"auc", "partial_auc", "average_precision"}
WITHIN_FOLDS |= {f"sensitivity_at_specificity_{n}" for n in metrics.SPECIFICITIES}
WITHIN_FOLDS |= {f"sensitivity_at_recall_rate_{n}" for n in metrics.RECALL_RATES}


def test_a_fold_on_another_scale_changes_no_ranking():
    """The model of fold 1 is twice as sure of everything; who is ranked where in each fold stays."""
    generator = np.random.default_rng(0)
    labels, folds = np.arange(600) % 6 == 0, np.arange(600) // 6 % 3
    scores = generator.normal(size=600) + labels
    before, after = (
        metrics.measure(labels, 1 / (1 + np.exp(-moved)), folds=folds)
        for moved in (scores, np.where(folds == 1, 2 * scores - 3, scores))
    )
    for name in WITHIN_FOLDS:
        assert getattr(after, name) == pytest.approx(getattr(before, name)), name
    assert after.auc_pooled < before.auc_pooled - 0.05


@given(predictions(st.integers(1, 15).map(lambda part: part / 16), max_size=60), st.integers(2, 4), st.data())
def test_average_precision_ranks_all_folds_after_each_is_standardised(case, num_folds, data):
    """Counted cancer by cancer, each patient as often as she was drawn; the scale is that of all patients."""
    labels, probabilities = case
    rows = np.arange(len(labels))
    folds = rows % num_folds
    scores = np.log(probabilities / (1 - probabilities))
    for fold in range(num_folds):
        others = scores[(folds == fold) & (labels == 0)]
        if len(others):
            scores[folds == fold] -= others.mean()
            scores[folds == fold] /= others.std() if len(set(others)) > 1 else 1
    drawn = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))
    sums = PatientSums(labels, probabilities, rows, num_patients=len(rows), folds=folds)
    found = formulas.average_precision(sums.add_up(np.array([drawn, np.ones(len(rows))], float).T))
    for value, counts in zip(found, (drawn, np.ones(len(rows))), strict=True):
        precisions = []
        for one in np.flatnonzero((labels == 1) & (counts > 0)):
            recalled = scores >= scores[one] - 1e-9
            precisions += [(counts * labels)[recalled].sum() / counts[recalled].sum()] * int(counts[one])
        assert value == pytest.approx(np.mean(precisions) if precisions else np.nan, nan_ok=True)


def test_few_cancers_in_a_fold_make_average_precision_no_higher():
    """Of folds that are alike: 2 cancers in each, where the mean of the folds' own is a third higher."""
    generator, folds = np.random.default_rng(0), np.arange(500) % 5
    labels = (np.arange(500) < 10).astype(int)
    pooled, found, of_folds = [], [], []
    for _ in range(100):
        scores = generator.normal(size=500) + 1.5 * labels
        pooled.append(average_precision_score(labels, scores))
        found.append(metrics.measure(labels, 1 / (1 + np.exp(-scores)), folds=folds).average_precision)
        own = [average_precision_score(labels[folds == n], scores[folds == n]) for n in range(5)]
        of_folds.append(np.mean(own))
    assert np.mean(found) == pytest.approx(np.mean(pooled), rel=0.1)
    assert np.mean(of_folds) > 1.25 * np.mean(pooled)


def test_what_five_small_folds_may_recall_together_is_not_rounded_away():
    """2 % of 150 women are 3, though of each fold's 30 less than one; the earliest folds recall them."""
    labels, folds = np.zeros(150), np.arange(150) % 5
    labels[:10] = 1  # two cancers in each fold
    probabilities = np.linspace(0.9, 0.1, 150)
    found = metrics.measure(labels, probabilities, folds=folds)
    assert found.sensitivity_at_recall_rate_2 == pytest.approx(3 / 10)
    assert metrics.largest_sensitivity(labels, np.arange(150), folds, 0.02) == pytest.approx(3 / 10)
    labels[:3] = 0  # of those recalled
    found = metrics.measure(labels, probabilities, folds=folds)
    assert found.sensitivity_at_recall_rate_2 == 0


@given(
    st.lists(st.lists(st.integers(0, 300), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([0.02, 0.05, 0.10]),
)
def test_recalls_are_shared_out_by_the_largest_remainder(women, rate):
    """One at a time and in fractions, in each of three weightings."""
    found = formulas.share_out(np.array(women, float), rate)
    for column, own in zip(found.T, np.array(women).T.tolist(), strict=True):
        shares = [Fraction(round(100 * rate), 100) * count for count in own]
        expected = [int(share) for share in shares]
        while sum(expected) < int(sum(shares)):
            missing = [share - part for share, part in zip(shares, expected, strict=True)]
            expected[missing.index(max(missing))] += 1
        assert column.tolist() == expected


def test_of_each_fold_the_same_share_of_women_is_recalled():
    """All of fold 1 is above all of fold 0; a tenth of both is recalled, and finds the first of each."""
    probabilities = np.concatenate([np.linspace(0.1, 0.2, 20), np.linspace(0.8, 0.9, 20)])
    labels, folds = np.zeros(40), np.repeat([0, 1], 20)
    labels[[19, 39, 25]] = 1
    found = metrics.measure(labels, probabilities, folds=folds)
    assert found.sensitivity_at_recall_rate_10 == pytest.approx(2 / 3)
    assert metrics.largest_sensitivity(labels, np.arange(40), folds, 0.05) == pytest.approx(2 / 3)
    assert metrics.largest_sensitivity(labels, np.arange(40), folds, 0.10) == 1
