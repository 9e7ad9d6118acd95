"""The expected AUC of a recipe from its repeats, against formulas written out and limits that are known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from pipeline.evaluation.estimates import AUC_WEIGHTED, estimate_all, transfer_thresholds
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.uncertainty.auc_variance import estimate_auc, find_auc_interval, find_variance
from pipeline.evaluation.uncertainty.repeats import (
    REPEAT_FIGURES,
    REPEATS_COLUMNS,
    find_expected_auc,
    summarise_repeats,
)
from tests.campaigns.repeats import cover, draw_models
from tests.pipeline.synthetic_run import make_oof


def draw(num_repeats=4, *, spread=0.3, seed=0, num_cancers=30):
    return draw_models(num_cancers, auc=0.8, spread=spread, num_repeats=num_repeats, seed=seed).estimates


def covariance(first, second) -> float:
    """Of two AUCs, by the variance of their difference."""
    return (find_variance(first) + find_variance(second) - find_variance(first, second)) / 2


def test_patients_are_counted_after_obuchowski_and_rockette_and_training_after_nadeau_and_bengio():
    estimates = draw()
    found = find_expected_auc(estimates, num_folds=5)
    aucs = [each.auc for each in estimates]
    pairs = [(one, other) for i, one in enumerate(estimates) for other in estimates[i + 1 :]]
    assert found.auc == pytest.approx(np.mean(aucs))
    assert found.deviation == pytest.approx(np.std(aucs, ddof=1))
    num_models, of_models = 5 * len(aucs), 5 * np.var(aucs, ddof=1)
    assert found.of_training**2 == pytest.approx((1 / num_models + 0.2 / 0.8) * of_models)
    assert found.of_patients**2 == pytest.approx(np.mean([covariance(*pair) for pair in pairs]))
    assert found.interval.low < found.auc < found.interval.high


def test_repeats_that_do_not_differ_have_the_interval_of_one_run():
    (estimate,) = draw(1)
    found = find_expected_auc([estimate] * 3, num_folds=5)
    assert found.deviation == pytest.approx(0, abs=1e-12)
    one = find_auc_interval(estimate)
    assert [found.interval.low, found.interval.high] == pytest.approx([one.low, one.high])


def test_the_interval_is_wider_than_that_of_fixed_models_where_trainings_differ():
    found = [find_expected_auc(draw(5, spread=spread), num_folds=5) for spread in (0.0, 1.0)]
    calm, wild = (each.interval.high - each.interval.low for each in found)
    assert wild > 1.5 * calm
    assert found[1].of_training > 3 * found[0].of_training


def test_the_interval_holds_the_truth_where_that_of_one_run_does_not():
    """Of 120 studies, four standard errors below 95 %."""
    truth = float(norm.cdf(norm.ppf(0.8) / np.sqrt(1 + 0.6**2 / 2)))
    draws = [draw_models(30, auc=0.8, spread=0.6, num_repeats=5, seed=seed) for seed in range(120)]
    found = cover(draws, truth)
    assert found["all repeats"][0] > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 120)
    assert found["one run, models fixed"][0] < 0.9


@pytest.mark.parametrize(("labels", "is_known"), [([1, 1, 0, 0], True), ([1, 0, 0, 0], False)])
def test_a_single_patient_with_cancer_tells_nothing_of_other_patients(labels, is_known):
    scores = [[0.9, 0.4, 0.5, 0.1], [0.9, 0.3, 0.5, 0.1]]
    repeats = [estimate_auc(labels, score, range(4), num_patients=4, folds=[0] * 4) for score in scores]
    found = find_expected_auc(repeats, num_folds=5)
    assert (found.of_patients is not None) == is_known
    assert (found.interval is not None) == is_known


def test_without_an_auc_there_is_no_expected_one():
    estimate = estimate_auc([0, 0], [0.1, 0.2], [0, 1], num_patients=2, folds=[0, 0])
    found = find_expected_auc([estimate, estimate], num_folds=5)
    assert (found.auc, found.deviation, found.interval) == (None, None, None)


@pytest.mark.parametrize("figure", ["auc", AUC_WEIGHTED])
def test_the_table_has_the_figures_that_each_run_has_by_itself(figure):
    oofs = {number: make_oof(skill=1 + number) for number in range(3)}
    breasts = {number: require_breasts(oof) for number, oof in oofs.items()}
    repeats = summarise_repeats(oofs, breasts, {0: 5, 1: 7, 2: None}, figure=figure)
    assert list(repeats.table) == REPEATS_COLUMNS
    assert repeats.table["repeat"].tolist() == [0, 1, 2]
    assert repeats.table["seed"].isna().tolist() == [False, False, True]
    for row, oof in zip(repeats.table.to_dict("records"), oofs.values(), strict=True):
        tables = {"breasts": transfer_thresholds(require_breasts(oof)), "images": transfer_thresholds(oof)}
        found = {level: each.figures for level, each in estimate_all(tables, num_replicates=1).items()}
        expected = found["breasts"] | {AUC_WEIGHTED: found["images"][AUC_WEIGHTED]}
        assert {name: row[name] for name in REPEAT_FIGURES} == pytest.approx(
            {name: expected[name] for name in REPEAT_FIGURES}
        )
    assert repeats.expected.auc == pytest.approx(repeats.table[figure].mean())
    pd.testing.assert_series_equal(
        repeats.summary["std"], repeats.table[REPEAT_FIGURES].std(), check_names=False
    )
