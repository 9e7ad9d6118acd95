"""Sets of predictions: counts, transferred thresholds, intervals, and what a validation needs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.estimates import (
    FEW_CANCERS,
    estimate_all,
    find_share_threshold,
    find_threshold_of_mean,
    measure_levels,
    transfer_thresholds,
    weigh_images,
)
from pipeline.evaluation.metrics import NO_TRANSFER, measure
from tests.pipeline.synthetic_run import make_oof
from tests.pipeline.synthetic_tables import make_breasts, shuffle


def test_a_threshold_is_transferred_from_the_other_folds():
    breasts = transfer_thresholds(make_breasts())
    for fold, part in breasts.groupby("fold"):
        others = breasts[breasts["fold"] != fold]
        expected = measure(others["cancer"], others["probability"]).threshold_best
        assert (part["threshold"] == expected).all()
    assert len(set(breasts["threshold"])) > 1


@given(st.lists(st.integers(0, 40).map(lambda number: number / 40), min_size=1, max_size=60), st.floats(0, 1))
def test_a_share_of_the_highest_is_recalled_and_whoever_equals_the_last_of_them(probabilities, rate):
    """Against counting from the top; one at least, and the order plays no part."""
    count = max(1, int(rate * len(probabilities) + 0.5))
    threshold = find_share_threshold(np.array(probabilities), rate)
    recalled = [value for value in probabilities if value >= threshold]
    above = [value for value in probabilities if value > threshold]
    assert len(above) < count <= len(recalled)
    assert threshold == find_share_threshold(np.array(probabilities[::-1]), rate)


def test_the_threshold_of_the_mean_recalls_as_much_of_it_as_of_each_model_though_their_scales_differ():
    """Of models that rank alike: the mean ranks so too, and nothing but the scales is between them."""
    scores = np.random.default_rng(0).normal(-3, 1, 2_000)
    scales = [(1.0, 0.0), (0.5, -2.0), (2.0, 3.0)]
    models = np.array([1 / (1 + np.exp(-(slope * scores + shift))) for slope, shift in scales])
    folds = pd.concat([pd.DataFrame({"fold": k, "probability": model}) for k, model in enumerate(models)])
    threshold = find_threshold_of_mean(folds, 0.05)
    assert (models.mean(axis=0) >= threshold - 1e-12).mean() == 0.05
    pooled = find_share_threshold(folds["probability"].to_numpy(), 0.05)
    assert (models.mean(axis=0) >= pooled).mean() < 0.04
    assert find_threshold_of_mean(shuffle(folds), 0.05) == threshold


def test_a_threshold_chosen_elsewhere_is_no_better_than_the_best_one():
    for seed in range(5):
        breasts = transfer_thresholds(make_breasts(seed=seed))
        found = estimate_all({"all": breasts}, num_replicates=2)["all"].metrics
        assert found.pf1_transferred <= found.pf1_best


def test_where_the_other_folds_have_no_cancer_nothing_is_transferred():
    breasts = make_breasts(num_folds=2)
    breasts.loc[breasts["fold"] == 1, "cancer"] = 0
    breasts = transfer_thresholds(breasts)
    tables = {"pooled": breasts} | dict(iter(breasts.groupby("fold")))
    found = estimate_all(tables, num_replicates=50)
    assert found[0].metrics.undefined["pf1_transferred"] == NO_TRANSFER
    assert found["pooled"].metrics.undefined["pf1_transferred"] == NO_TRANSFER
    assert "pf1_transferred" not in found[0].intervals
    assert "pf1_transferred" not in found["pooled"].intervals


def test_a_slice_has_its_own_counts_and_the_figures_of_its_rows_alone():
    breasts = make_breasts()
    left = breasts[breasts["laterality"] == "L"]
    found = estimate_all({"all": breasts, "left": left}, num_replicates=50)["left"]
    assert (found.num_patients, found.num_breasts, found.num_images) == (200, 200, 400)
    assert found.num_cancers == left["cancer"].sum()
    assert found.metrics == measure(
        left["cancer"],
        left["probability"],
        patients=left["patient_id"],
        thresholds=left["threshold"],
        folds=left["fold"],
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1_000_000))
def test_the_order_of_the_rows_changes_no_bit_of_figures_and_intervals(seed):
    breasts = make_breasts(num_patients=40, num_cancers=9)
    tables = {"all": breasts, "left": breasts[breasts["laterality"] == "L"]}
    shuffled = {key: shuffle(table, seed) for key, table in tables.items()}
    found, again = (estimate_all(sets, num_replicates=20) for sets in (tables, shuffled))
    assert found == again
    for key, estimate in found.items():
        assert (estimate.auc.of_cancers == again[key].auc.of_cancers).all()
        assert (estimate.auc.of_negatives == again[key].auc.of_negatives).all()


def test_a_validation_gets_both_levels_without_intervals():
    oof = make_oof()
    of_breasts, of_images = measure_levels(oof)
    assert of_images.auc == measure(oof["cancer"], oof["probability"]).auc
    breasts = to_breasts(oof)
    assert of_breasts.auc == pytest.approx(measure(breasts["cancer"], breasts["probability"]).auc)
    assert of_breasts.pf1_transferred is None


@pytest.mark.parametrize(("num_sick", "is_few"), [(FEW_CANCERS - 1, True), (FEW_CANCERS, False)])
def test_few_cancers_are_few_patients_with_cancer(num_sick, is_few):
    """Each has cancer in both breasts: twice as many breasts and four times as many images have it."""
    oof = make_oof(num_patients=40)
    oof["cancer"] = (oof["patient_id"].astype(int) < num_sick).astype(int)
    for table in (oof, to_breasts(oof)):
        found = estimate_all({"all": table.assign(threshold=np.nan)}, num_replicates=5)["all"]
        assert found.num_cancers >= 2 * num_sick
        assert found.num_cancer_patients == num_sick
        assert found.has_few_cancers is is_few


def test_an_image_level_table_counts_breasts_and_images():
    oof = make_oof(num_patients=10, num_cancers=3).assign(threshold=np.nan)
    found = estimate_all({"all": pd.DataFrame(oof)}, num_replicates=5)["all"]
    assert (found.num_patients, found.num_breasts, found.num_images, found.num_cancers) == (10, 20, 40, 6)


def test_breasts_with_more_images_weigh_no_more():
    """Each breast's images add up to one; the weighted AUC is that of one image drawn from each breast."""
    oof = make_oof(num_patients=30, num_cancers=12).drop(index=[0, 5, 9]).reset_index(drop=True)
    oof = pd.concat([oof, oof.iloc[::3].assign(image_id=lambda part: "7" + part["image_id"])])
    oof = oof.reset_index(drop=True)
    weights = weigh_images(oof)
    sums = weights.groupby([oof["patient_id"], oof["laterality"]]).sum()
    assert sums.to_numpy() == pytest.approx(1)
    assert len(set(weights)) > 1
    parts = {label: oof[oof["cancer"] == label] for label in (0, 1)}
    pairs = won = 0.0
    for cancer, of_cancer in parts[1].iterrows():
        for other, of_other in parts[0].iterrows():
            if of_cancer["fold"] == of_other["fold"]:
                weight = weights[cancer] * weights[other]
                difference = of_cancer["probability"] - of_other["probability"]
                won, pairs = won + weight * (np.sign(difference) + 1) / 2, pairs + weight
    found = estimate_all({"all": oof.assign(threshold=np.nan)}, num_replicates=3)["all"]
    assert found.auc_weighted.auc == pytest.approx(won / pairs)
    assert found.auc_weighted.auc != pytest.approx(found.metrics.auc, abs=1e-3)
