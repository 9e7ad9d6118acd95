"""The AUC's variance against Obuchowski's and DeLong's formulas as written, the bootstrap and the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit
from scipy.stats import norm, t

from pipeline.evaluation.bootstrap import replicate
from pipeline.evaluation.metrics import measure
from pipeline.evaluation.patient_stats import PatientSums
from pipeline.evaluation.uncertainty.auc_variance import (
    estimate_auc,
    find_auc_interval,
    find_difference,
    find_p_of_guessing,
    find_p_of_heterogeneity,
    find_variance,
)


def draw(num_patients=150, num_cancers=30, *, auc=0.8, num_folds=1, seed=0):
    """Two breasts a woman, whose scores have a correlation of 0.5."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(2 * num_patients, dtype=int)
    labels[generator.choice(2 * num_patients, num_cancers, replace=False)] = 1
    patients = np.repeat(np.arange(num_patients), 2)
    own, shared = generator.normal(size=2 * num_patients), generator.normal(size=num_patients)[patients]
    scores = np.sqrt(0.5) * (own + shared) + np.sqrt(2) * norm.ppf(auc) * labels
    return labels, scores, patients, patients % num_folds


def estimate(case, **options):
    labels, scores, patients, folds = case
    return estimate_auc(labels, scores, patients, num_patients=max(patients) + 1, folds=folds, **options)


def obuchowski(labels, scores, patients):
    """Obuchowski 1997, equations 2 to 6, as written."""
    x, y = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    wins = (scores[x][:, None] > scores[y]) + 0.5 * (scores[x][:, None] == scores[y])
    theta, m, n = wins.mean(), len(x), len(y)
    ids = np.unique(patients)
    v10 = np.array([wins.mean(axis=1)[patients[x] == one].sum() for one in ids])
    v01 = np.array([wins.mean(axis=0)[patients[y] == one].sum() for one in ids])
    m_i = np.array([(patients[x] == one).sum() for one in ids])
    n_i = np.array([(patients[y] == one).sum() for one in ids])
    i10, i01, i = (m_i > 0).sum(), (n_i > 0).sum(), len(ids)
    s10 = i10 / ((i10 - 1) * m) * ((v10 - m_i * theta) ** 2).sum()
    s01 = i01 / ((i01 - 1) * n) * ((v01 - n_i * theta) ** 2).sum()
    s11 = i / (i - 1) * ((v10 - m_i * theta) * (v01 - n_i * theta)).sum()
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_one_ranking_is_obuchowskis(seed):
    case = draw(seed=seed)
    expected = obuchowski(*case[:3])
    # a patient with two cancers has no negative, which the paper's factor of the product counts all the same
    assert find_variance(estimate(case)) == pytest.approx(expected, rel=1e-3)


def test_with_one_breast_a_patient_the_variance_is_delongs():
    labels, scores, _, _ = draw(seed=4)
    cancers, others = scores[labels == 1], scores[labels == 0]
    wins = (cancers[:, None] > others) + 0.5 * (cancers[:, None] == others)
    expected = wins.mean(axis=1).var(ddof=1) / len(cancers) + wins.mean(axis=0).var(ddof=1) / len(others)
    found = estimate((labels, scores, np.arange(len(labels)), np.zeros(len(labels))))
    assert find_variance(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_folds", [1, 3])
def test_the_variance_is_that_of_the_bootstrap(num_folds):
    labels, scores, patients, folds = case = draw(400, 100, num_folds=num_folds)
    sums = PatientSums(labels, 1 / (1 + np.exp(-scores)), patients, num_patients=400, folds=folds)
    replicates = replicate({"all": sums}, seed=0, num_replicates=2_000)["all"]["auc"]
    assert find_variance(estimate(case)) == pytest.approx(replicates.var(), rel=0.15)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_the_auc_is_that_of_the_figures(seed, num_folds):
    labels, scores, _, folds = case = draw(20, 6, num_folds=num_folds, seed=seed)
    scores = np.round(scores)  # ties
    expected = measure(labels, scores, folds=folds).auc
    assert estimate((labels, scores, *case[2:])).auc == (
        None if expected is None else pytest.approx(expected)
    )


def test_weights_are_those_of_repeated_predictions():
    labels, scores, patients, folds = case = draw(40, 10, num_folds=2)
    weights = np.random.default_rng(1).integers(1, 4, len(labels))
    copies = np.repeat(np.arange(len(labels)), weights)
    weighted = estimate(case, weights=weights)
    repeated = estimate((labels[copies], scores[copies], patients[copies], folds[copies]))
    assert weighted.auc == pytest.approx(repeated.auc)
    assert find_variance(weighted) == pytest.approx(find_variance(repeated))


@pytest.mark.parametrize("num_cancers", [1, 3, 20])
def test_a_perfect_ranking_has_an_exact_limit_and_no_other_goes_higher(num_cancers):
    """With AUC A, n cancers of as many women are all above all others with probability A to the n at most."""
    labels = np.arange(100) < num_cancers
    case = labels, labels + np.linspace(0, 0.1, 100), np.arange(100), np.zeros(100)
    interval = find_auc_interval(estimate(case))
    assert interval.high == 1
    assert interval.low**num_cancers == pytest.approx(0.025)
    scores = case[1].copy()
    scores[0] = 1.0 - 1e-9  # still above all others but one tie
    scores[-1] = scores[0]
    almost = find_auc_interval(estimate((labels, scores, *case[2:])))
    if num_cancers == 1:
        assert almost is None  # one cancer has no spread
    else:
        assert almost.low <= interval.low


def test_where_nothing_varies_there_is_no_interval():
    labels = np.arange(30) % 3 == 0
    assert find_auc_interval(estimate((labels, np.zeros(30), np.arange(30), np.zeros(30)))) is None
    nothing = estimate((np.zeros(30), np.arange(30), np.arange(30), np.zeros(30)))
    assert (nothing.auc, find_auc_interval(nothing)) == (None, None)


def test_the_limits_mirror_with_the_scores():
    labels, scores, patients, folds = draw()
    forth = find_auc_interval(estimate((labels, scores, patients, folds)))
    back = find_auc_interval(estimate((labels, -scores, patients, folds)))
    assert (forth.low, forth.high) == pytest.approx((1 - back.high, 1 - back.low))


def test_paired_runs_are_told_apart_where_each_alone_could_not():
    labels, scores, patients, folds = draw(400, 60, num_folds=5)
    noise = np.random.default_rng(3).normal(0, 0.5, len(scores))
    better, worse = (
        estimate((labels, scores, patients, folds)),
        estimate((labels, scores + noise, patients, folds)),
    )
    interval, p = find_difference(worse, better)
    assert interval.high < 0
    assert p < 0.05
    assert find_auc_interval(better).low < worse.auc
    assert find_difference(better, better) == (None, None)


def test_differences_between_sets_are_found_where_there_are_some():
    alike = [estimate(draw(seed=seed)) for seed in (1, 2, 3)]
    other = estimate(draw(300, 100, auc=0.97, seed=4))
    pad = lambda each: type(each)(  # noqa: E731
        each.auc,
        np.pad(each.of_cancers, (0, 300 - len(each.of_cancers))),
        np.pad(each.of_negatives, (0, 300 - len(each.of_negatives))),
        each.num_cancer_patients,
        each.num_negative_patients,
    )
    assert find_p_of_heterogeneity([pad(each) for each in alike]) > 0.05
    assert find_p_of_heterogeneity([pad(each) for each in (*alike, other)]) < 0.01
    assert find_p_of_heterogeneity(alike[:1]) is None


def test_the_test_for_differences_keeps_its_level():
    """Halves of a set where all is alike, whose women have a breast in each, 300 times."""
    p_values = []
    for seed in range(300):
        labels, scores, patients, folds = draw(200, 80, seed=seed)
        halves = [np.arange(len(labels)) % 2 == side for side in (0, 1)]
        sets = [
            estimate_auc(labels[half], scores[half], patients[half], num_patients=200, folds=folds[half])
            for half in halves
        ]
        p_values.append(find_p_of_heterogeneity(sets))
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.04)


def test_guessing_has_a_p_value_of_one_half_and_a_perfect_ranking_an_exact_one():
    labels, scores, patients, folds = case = draw()
    one_sided = find_p_of_guessing(estimate(case))
    assert find_p_of_guessing(estimate((labels, -scores, patients, folds))) == pytest.approx(1 - one_sided)
    assert one_sided < 1e-4
    few = draw(num_patients=20, num_cancers=4)
    perfect = estimate((few[0], few[0].astype(float), few[2], few[3]))
    assert find_p_of_guessing(perfect) == 0.5**perfect.num_independent
    assert find_p_of_guessing(estimate((labels, 0 * scores, patients, folds))) == 1.0
    values = [find_p_of_guessing(estimate(draw(auc=0.5, seed=seed))) for seed in range(200)]
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.05)


@pytest.mark.parametrize("num_cancers", [6, 8])
def test_few_cancers_widen_an_interval_by_students_t(num_cancers):
    """On the logit it reaches t deviations to either side, with one degree of freedom less than cancers."""
    labels = (np.arange(100) < num_cancers).astype(int)
    scores = np.random.default_rng(1).normal(size=100) + 0.3 * labels
    found = estimate((labels, scores, np.arange(100), np.zeros(100)))
    interval = find_auc_interval(found)
    slope = found.auc * (1 - found.auc)
    reach = (logit(interval.high) - logit(interval.low)) / 2
    expected = t.ppf(0.975, num_cancers - 1) * np.sqrt(find_variance(found)) / slope
    assert reach == pytest.approx(expected)
    assert expected > 1.15 * norm.ppf(0.975) * np.sqrt(find_variance(found)) / slope
