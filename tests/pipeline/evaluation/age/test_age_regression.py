"""The regression of pixels and age against the likelihood itself, and what must not leak between folds."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from pipeline.evaluation.age.age_gain import measure_age
from pipeline.evaluation.age.age_regression import (
    BY_AGE,
    BY_PIXELS,
    NormalScores,
    add_age_to_ensemble,
    add_age_to_oof,
    fit_age_regression,
    fit_folds,
)
from pipeline.evaluation.aggregate import to_breasts
from tests.pipeline.evaluation.age.age_tables import as_ensemble, make_oof_of_ages


def draw(number=4000, seed=0):
    """Labels, scores and ages of breasts."""
    generator = np.random.default_rng(seed)
    ages = np.where(generator.random(number) < 0.2, np.nan, generator.uniform(40, 90, number))
    scores = generator.normal(size=number)
    by_age = np.where(np.isnan(ages), 0.3, 0.5 * (ages - 60) / 10)
    cancer = generator.random(number) < expit(-1.8 + scores + by_age)
    return cancer.astype(float), scores, ages


def test_the_coefficients_are_those_of_the_penalised_likelihood() -> None:
    """The oracle is the formula, minimised by scipy: normal priors of deviation 3, and 0.3 of age's part."""
    labels, scores, ages = draw()
    decades = np.where(np.isnan(ages), 0, (ages - 60) / 10)
    columns = np.stack([np.ones_like(ages), scores, decades, np.isnan(ages)], axis=1)

    def loss(coefficients):
        log_odds = columns @ coefficients
        likelihood = labels @ log_odds - np.logaddexp(0, log_odds).sum()
        return -likelihood + ((coefficients[1:] / [3, 0.3, 0.3]) ** 2).sum() / 2

    expected = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-6}).x
    found = fit_age_regression(labels, scores, ages)
    np.testing.assert_allclose(
        [found.intercept, found.slope, found.per_decade, found.unknown], expected, atol=1e-4
    )
    np.testing.assert_allclose(expected, [-1.8, 1.0, 0.5, 0.3], atol=0.25)


def test_pixels_that_rank_the_wrong_way_do_not_count() -> None:
    labels, scores, ages = draw()
    found = fit_age_regression(labels, -scores, ages)
    assert found == fit_age_regression(labels, None, ages)
    assert found.slope == 0
    assert found.per_decade > 0


def test_with_one_class_there_is_nothing_to_learn() -> None:
    oof = make_oof_of_ages(100)
    healthy = oof.assign(cancer=0)
    added = add_age_to_oof(healthy)
    np.testing.assert_allclose(added["probability"], oof["probability"], rtol=1e-12)
    assert added[BY_AGE].max() < 1e-6, "none has cancer"


def test_a_missing_age_counts_as_unknown_even_where_all_were_known() -> None:
    labels, scores, ages = draw()
    found = fit_age_regression(labels, scores, np.where(np.isnan(ages), 60.0, ages))
    assert found.unknown == pytest.approx(0, abs=1e-9)
    assert found(np.array([0.1]), np.array([np.nan])) == found(np.array([0.1]), np.array([60.0]))


def test_normal_scores_are_those_of_ranks_and_go_on_beyond() -> None:
    log_odds = np.random.default_rng(0).normal(size=500).round(1)  # with ties
    scores = NormalScores.of(log_odds)
    np.testing.assert_allclose(scores(log_odds), norm.ppf((rankdata(log_odds) - 0.5) / 500), rtol=1e-12)
    ends = scores(np.array([log_odds.max(), log_odds.max() + 2, log_odds.min() - 3, log_odds.min()]))
    np.testing.assert_allclose([ends[1] - ends[0], ends[3] - ends[2]], [2, 3])
    everywhere = np.linspace(-9, 9, 10_001)
    assert (np.diff(scores(everywhere)) > 0).all()
    assert np.isfinite(NormalScores.of(np.full(7, 0.3))(everywhere)).all()
    alike = NormalScores.of(np.array([0.1, 0.2]).repeat(50) + 1e-9 * np.arange(100))
    assert len(alike.scores) == 2, "what differs by rounding is the same"
    many = np.random.default_rng(1).normal(size=20_000)
    few = NormalScores.of(many)
    assert len(few.scores) <= 1000
    np.testing.assert_allclose(few(many), norm.ppf((rankdata(many) - 0.5) / 20_000), atol=0.01)


def test_a_breast_ranks_by_its_formula_and_its_images_lie_around_it() -> None:
    oof = make_oof_of_ages(200)
    added, fitted = add_age_to_oof(oof), fit_folds(oof)
    breasts, after = to_breasts(oof), to_breasts(added)
    ages = oof.groupby(["patient_id", "laterality"])["age"].first()
    ages = ages[list(zip(breasts["patient_id"], breasts["laterality"], strict=True))].to_numpy()
    decades = np.where(np.isnan(ages), 0, (ages - 60) / 10)
    for fold in range(3):
        learned, own = fitted[fold].both, (breasts["fold"] == fold).to_numpy()
        log_odds = logit(breasts["probability"].to_numpy()[own])
        scores = norm.ppf((rankdata(log_odds) - 0.5) / len(log_odds))
        of_age = learned.per_decade * decades[own] + learned.unknown * np.isnan(ages[own])
        expected = learned.slope * scores + of_age
        assert (rankdata(after["probability"][own]) == rankdata(expected)).all()
    keys = [oof["patient_id"], oof["laterality"]]
    spread = [logit(table["probability"]).groupby(keys).agg(np.ptp) for table in (oof, added)]
    share = oof.groupby(keys)["fold"].first().map({fold: fitted[fold].both.share for fold in fitted})
    np.testing.assert_allclose(spread[1], share * spread[0], atol=1e-9)
    assert share.between(0.5, 0.999).all()


def test_scores_and_back_are_the_same_log_odds() -> None:
    scores = NormalScores.of(np.random.default_rng(0).normal(size=300))
    everywhere = np.linspace(-9, 9, 1001)
    np.testing.assert_allclose(scores.invert(scores(everywhere)), everywhere, atol=1e-9)


def test_without_an_effect_of_age_all_is_as_the_pixels_say() -> None:
    oof = make_oof_of_ages(200)
    added = add_age_to_oof(oof.assign(age=60.0))  # the same for all
    np.testing.assert_allclose(logit(added["probability"]), logit(oof["probability"]), atol=1e-2)


@pytest.mark.parametrize("by_pixels", [0.0, 0.1, 2.0])
def test_breasts_keep_the_probabilities_of_their_fold_in_another_order(by_pixels: float) -> None:
    """Also where pixels tell little or nothing, so that age decides."""
    oof = make_oof_of_ages(600, by_pixels=by_pixels)
    before, after = to_breasts(oof), to_breasts(add_age_to_oof(oof))
    for fold in range(3):
        one, other = (np.sort(table.loc[table["fold"] == fold, "probability"]) for table in (before, after))
        assert np.abs(one - other).max() < 0.2, "ties of age share a rank"
        assert one.mean() == pytest.approx(other.mean(), abs=0.01)


@pytest.mark.parametrize("stretch", [1.0, 6.0])
@pytest.mark.parametrize("counting_tells", [False, True])
def test_an_age_that_tells_nothing_takes_nothing(stretch: float, counting_tells: bool) -> None:
    """Neither from breasts nor from images, however sure the model is."""
    oof = make_oof_of_ages(by_age=0.0, seed=3)
    sure = oof.assign(probability=expit(stretch * logit(oof["probability"])))
    row = measure_age(sure, counting_tells=counting_tells).rows["pixels"]
    assert abs(row.loss) < 0.01


def test_a_model_that_is_too_sure_keeps_its_ranking() -> None:
    """Its log-odds are crowded together; by themselves, any age would outweigh what they tell."""
    oof = make_oof_of_ages(600, by_age=0.0, by_pixels=3.0)
    log_odds = logit(oof["probability"].to_numpy())
    crowded = oof.assign(probability=expit(np.where(log_odds > 0.5, 2.0, -2.0) + 1e-3 * log_odds))
    gain = measure_age(crowded, counting_tells=False)
    assert gain.rows["pixels"].auc > 0.9
    assert abs(gain.rows["pixels"].loss) < 0.005


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
    each = []
    for fold in range(3):
        mixed = oof.assign(**{name: oof["probability"] for name in images if "fold_" in name})
        alone = add_age_to_ensemble(mixed, dict.fromkeys(range(3), fitted[fold]))
        each.append(alone["probability"])
    np.testing.assert_allclose(added["probability"], np.mean(each, axis=0), rtol=1e-9)
    np.testing.assert_allclose(added["probability_fold_2"], each[2], rtol=1e-9)
    assert added[BY_PIXELS].equals(oof["probability"])


def test_an_image_that_failed_has_its_womans_age_alone() -> None:
    oof = make_oof_of_ages(300)
    images = as_ensemble(oof)
    names = ["probability", *(f"probability_fold_{fold}" for fold in range(3))]
    images.loc[0, names] = np.nan
    added = add_age_to_ensemble(images, fit_folds(oof))
    assert added.loc[0, names].isna().all()
    assert 0 < added.loc[0, BY_AGE] < 1
