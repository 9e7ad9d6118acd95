"""The regression of pixels and age against the likelihood itself, and what must not leak between folds."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from pipeline.evaluation.age.age_regression import (
    BY_AGE,
    BY_PIXELS,
    AgeRegression,
    add_age_to_ensemble,
    add_age_to_oof,
    fit_age_regression,
    fit_folds,
)
from pipeline.evaluation.aggregate import to_breasts
from tests.pipeline.evaluation.age.age_tables import as_ensemble, make_oof_of_ages


def draw(number=4000, seed=0):
    """Labels, probabilities and ages of breasts, and the coefficients that they were drawn by."""
    generator = np.random.default_rng(seed)
    ages = np.where(generator.random(number) < 0.2, np.nan, generator.uniform(40, 90, number))
    log_odds = generator.normal(-2, 1.5, number)
    by_age = np.where(np.isnan(ages), 0.3, 0.5 * (ages - 60) / 10)
    cancer = generator.random(number) < expit(-0.4 + 0.7 * log_odds + by_age)
    return cancer.astype(float), expit(log_odds), ages


def test_the_coefficients_are_those_of_the_penalised_likelihood() -> None:
    """The oracle is the formula, minimised by scipy: normal priors of deviation 1, none of the intercept."""
    labels, probabilities, ages = draw()
    decades = np.where(np.isnan(ages), 0, (ages - 60) / 10)
    columns = np.stack([np.ones_like(ages), logit(probabilities), decades, np.isnan(ages)], axis=1)

    def loss(coefficients):
        log_odds = columns @ coefficients
        likelihood = labels @ log_odds - np.logaddexp(0, log_odds).sum()
        return -likelihood + (coefficients[1:] ** 2).sum() / 2

    expected = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-6}).x
    found = fit_age_regression(labels, probabilities, ages)
    np.testing.assert_allclose(
        [found.intercept, found.slope, found.per_decade, found.unknown], expected, atol=1e-4
    )
    np.testing.assert_allclose(expected, [-0.4, 0.7, 0.5, 0.3], atol=0.25)


def test_pixels_that_rank_the_wrong_way_do_not_count() -> None:
    labels, probabilities, ages = draw()
    found = fit_age_regression(labels, 1 - probabilities, ages)
    assert found == fit_age_regression(labels, probabilities, ages, with_pixels=False)
    assert found.slope == 0
    assert found.per_decade > 0


def test_with_one_class_there_is_nothing_to_learn() -> None:
    probabilities, ages = np.array([0.1, 0.2]), np.array([50.0, np.nan])
    found = fit_age_regression(np.zeros(2), probabilities, ages)
    np.testing.assert_allclose(found(probabilities, ages), probabilities, rtol=1e-12)


def test_a_missing_age_counts_as_unknown_even_where_all_were_known() -> None:
    labels, probabilities, ages = draw()
    known = np.where(np.isnan(ages), 60.0, ages)
    found = fit_age_regression(labels, probabilities, known)
    assert found.unknown == pytest.approx(0, abs=1e-9)
    unknown = found(np.array([0.1]), np.array([np.nan]))
    assert unknown == found(np.array([0.1]), np.array([60.0]))


def test_a_breast_has_the_formula_of_its_images() -> None:
    oof = make_oof_of_ages(200, unknown=0)
    found = AgeRegression(-0.3, 0.8, 0.5, 0.1)
    images = oof.assign(probability=found(oof["probability"].to_numpy(), oof["age"].to_numpy()))
    breasts, ages = to_breasts(oof), oof.groupby(["patient_id", "laterality"])["age"].first()
    ages = ages[list(zip(breasts["patient_id"], breasts["laterality"], strict=True))].to_numpy()
    np.testing.assert_allclose(
        to_breasts(images)["probability"], found(breasts["probability"].to_numpy(), ages), rtol=1e-12
    )


def test_no_label_of_a_fold_reaches_its_own_predictions() -> None:
    oof = make_oof_of_ages(300)
    own = oof["fold"] == 1
    turned = oof.assign(cancer=oof["cancer"].mask(own, 1 - oof["cancer"]))
    before, after = add_age_to_oof(oof), add_age_to_oof(turned)
    columns = ["probability", BY_PIXELS, BY_AGE]
    assert before.loc[own, columns].equals(after.loc[own, columns])
    assert not before.loc[~own, columns].equals(after.loc[~own, columns])


def test_what_age_adds_can_be_taken_off_again() -> None:
    oof = make_oof_of_ages(300)
    added = add_age_to_oof(oof)
    assert added[BY_PIXELS].equals(oof["probability"])
    assert fit_folds(added) == fit_folds(oof)
    assert add_age_to_oof(added).equals(added)
    assert [*added["image_id"]] == [*oof["image_id"]]


def test_the_order_of_rows_changes_nothing() -> None:
    oof = make_oof_of_ages(300)
    shuffled = add_age_to_oof(oof.sample(frac=1, random_state=1)).sort_index()
    np.testing.assert_allclose(shuffled["probability"], add_age_to_oof(oof)["probability"], rtol=1e-6)


def test_an_ensemble_is_the_mean_of_its_folds_own_regressions() -> None:
    oof = make_oof_of_ages(300)
    fitted, images = fit_folds(oof), as_ensemble(oof)
    added = add_age_to_ensemble(images, fitted)
    columns = oof["probability"].to_numpy(), oof["age"].to_numpy()
    each = [fitted[fold].both(*columns) for fold in range(3)]
    np.testing.assert_allclose(added["probability"], np.mean(each, axis=0), rtol=1e-12)
    np.testing.assert_allclose(added["probability_fold_2"], each[2], rtol=1e-12)
    assert added[BY_PIXELS].equals(oof["probability"])


def test_an_image_that_failed_has_its_womans_age_alone() -> None:
    oof = make_oof_of_ages(300)
    images = as_ensemble(oof)
    names = ["probability", *(f"probability_fold_{fold}" for fold in range(3))]
    images.loc[0, names] = np.nan
    added = add_age_to_ensemble(images, fit_folds(oof))
    assert added.loc[0, names].isna().all()
    assert 0 < added.loc[0, BY_AGE] < 1
