"""Breast predictions: means that do not depend on the order of the images."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from pipeline.evaluation.aggregate import to_breasts


def make_images(num_patients=12, seed=0):
    """Two to five images for each of both breasts, with awkward floats."""
    generator = np.random.default_rng(seed)
    rows = [
        {"fold": patient % 3, "patient_id": str(patient * 7), "laterality": side, "cancer": patient % 2}
        for patient in range(num_patients)
        for side in "LR"
        for _ in range(generator.integers(2, 6))
    ]
    return pd.DataFrame(rows).assign(probability=generator.random(len(rows)))


def test_a_breast_is_the_mean_of_its_images_on_the_logit():
    images = make_images()
    breasts = to_breasts(images).set_index("prediction_id")
    for (patient_id, laterality), views in images.groupby(["patient_id", "laterality"]):
        breast = breasts.loc[f"{patient_id}_{laterality}"]
        assert breast["probability"] == pytest.approx(expit(logit(views["probability"]).mean()))
        assert breast["num_images"] == len(views)
        assert breast["cancer"] == views["cancer"].iloc[0]
        assert breast["fold"] == views["fold"].iloc[0]
    assert len(breasts) == 24


@settings(max_examples=25)
@given(st.randoms())
def test_the_order_of_the_images_changes_no_bit(random):
    images = make_images()
    shuffled = images.iloc[random.sample(range(len(images)), len(images))]
    pd.testing.assert_frame_equal(to_breasts(images), to_breasts(shuffled), check_exact=True)


def test_a_breast_may_be_its_most_suspicious_image():
    images = make_images()
    breasts = to_breasts(images, "max").set_index("prediction_id")
    for (patient_id, laterality), views in images.groupby(["patient_id", "laterality"]):
        assert breasts.loc[f"{patient_id}_{laterality}", "probability"] == views["probability"].max()
    assert to_breasts(images.assign(probability=np.nan), "max")["probability"].isna().all()


def test_breasts_stand_in_numeric_order_of_their_ids():
    images = pd.DataFrame(
        {"patient_id": ["100", "20", "3", "20"], "laterality": ["L", "R", "L", "L"], "probability": 0.5}
    )
    assert to_breasts(images)["prediction_id"].tolist() == ["3_L", "20_L", "20_R", "100_L"]


def test_an_image_without_a_probability_does_not_count_but_its_breast_keeps_a_row():
    images = pd.DataFrame(
        {"patient_id": "7", "laterality": ["L", "L", "R"], "probability": [0.25, np.nan, np.nan]}
    )
    breasts = to_breasts(images)
    assert breasts["prediction_id"].tolist() == ["7_L", "7_R"]
    assert breasts["num_images"].tolist() == [1, 0]
    assert breasts["probability"].tolist() == [0.25, pytest.approx(np.nan, nan_ok=True)]


def test_without_labels_there_are_no_label_columns():
    """A test set has neither fold nor cancer."""
    breasts = to_breasts(make_images().drop(columns=["fold", "cancer"]))
    assert list(breasts) == ["prediction_id", "patient_id", "laterality", "num_images", "probability"]
    assert list(to_breasts(make_images()))[3:5] == ["fold", "cancer"]


@pytest.mark.parametrize("name", ["cancer", "fold"])
def test_a_breast_with_two_values_is_refused(name):
    images = make_images()
    images.loc[0, name] += 1
    with pytest.raises(ValueError, match=f"breast 0_L has images of different {name}"):
        to_breasts(images)


def test_random_numbers_do_not_tell_how_many_images_a_breast_has():
    """As in a set where breasts with cancer have more images: a mean of small probabilities does tell."""
    generator = np.random.default_rng(0)
    sizes = np.tile([1, 4], 2_000)
    breast = np.repeat(np.arange(len(sizes)), sizes)
    images = pd.DataFrame(
        {
            "patient_id": breast.astype(str),
            "laterality": "L",
            "probability": expit(generator.normal(-4, 1.5, len(breast))),
        }
    )
    breasts = to_breasts(images)
    has_four = breasts["num_images"] == 4
    plain = images.groupby("patient_id")["probability"].mean()[breasts["patient_id"]].to_numpy()
    assert roc_auc_score(has_four, breasts["probability"]) == pytest.approx(0.5, abs=0.03)
    assert roc_auc_score(has_four, plain) > 0.6


def test_a_breast_lies_between_its_images_and_one_image_is_its_breast():
    images = make_images().assign(probability=np.tile([0.0, 1.0, 0.3, 0.3], 100)[: len(make_images())])
    breasts = to_breasts(images)
    by_breast = images.groupby(["patient_id", "laterality"])["probability"]
    ids = pd.MultiIndex.from_frame(breasts[["patient_id", "laterality"]])
    assert (breasts["probability"].to_numpy() >= by_breast.min()[ids].to_numpy()).all()
    assert (breasts["probability"].to_numpy() <= by_breast.max()[ids].to_numpy()).all()
    single = images.drop_duplicates(["patient_id", "laterality"])
    alone = to_breasts(single).set_index(["patient_id", "laterality"])["probability"]
    assert (
        alone[pd.MultiIndex.from_frame(single[["patient_id", "laterality"]])]
        == single["probability"].to_numpy()
    ).all()
