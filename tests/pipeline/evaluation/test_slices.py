"""Kinds of images and breasts: texts, bands, and what is done where images differ or say nothing."""

import pandas as pd
import pytest

from data_prep.rsna.exam_table import read_exams
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.slices import describe_breasts, describe_images, explain_missing, list_values
from tests.pipeline.synthetic_run import add_exam_columns, make_oof


def make_images(**columns):
    """Three images of the left and one of the right breast."""
    rows = {"image_id": list("abcd"), "patient_id": "7", "laterality": list("LLLR"), "probability": 0.5}
    return pd.DataFrame(rows | columns)


def describe_both(images):
    kinds = describe_images(images)
    breasts = to_breasts(images)
    return describe_breasts(images, kinds, breasts).set_index(breasts["laterality"]), kinds


@pytest.mark.parametrize(
    ("age", "band"), [(39.5, "0 to 39"), (40, "40 to 49"), (79.9, "70 to 79"), (80, "80 or more")]
)
def test_ages_fall_into_bands(age, band):
    assert set(describe_images(make_images(age=age))["age"]) == {band}


def test_implants_are_words_and_what_is_empty_was_not_recorded():
    _, kinds = describe_both(make_images(implant=["0", "1", None, "1"], density=["A", None, None, None]))
    assert kinds["implant"].tolist() == ["no", "yes", "not recorded", "yes"]
    assert kinds["density"].tolist() == ["A", *["not recorded"] * 3]


def test_a_breast_has_the_value_of_its_images_and_several_where_they_differ():
    breasts, _ = describe_both(
        make_images(machine_id=["1", "2", "1", "9"], site_id=["1", None, None, None], density=None)
    )
    assert breasts["machine"].to_dict() == {"L": "several", "R": "9"}
    assert breasts["site"].to_dict() == {"L": "1", "R": "not recorded"}
    assert breasts["density"].to_dict() == {"L": "not recorded", "R": "not recorded"}


def test_views_are_the_images_of_the_breast():
    breasts, kinds = describe_both(make_images(view=["CC", "MLO", "MLO", "CC"]))
    assert kinds["views"].tolist() == ["3", "3", "3", "1"]
    assert breasts["views"].to_dict() == {"L": "3", "R": "1"}
    assert "view" not in breasts


def test_breasts_are_described_in_the_order_of_their_table():
    oof = add_exam_columns(make_oof())
    breasts = to_breasts(oof).sample(frac=1, random_state=3)
    described = describe_breasts(oof, describe_images(oof), breasts)
    site = oof.groupby("patient_id")["site_id"].first()
    assert described["site"].tolist() == site[breasts["patient_id"]].tolist()


def test_values_stand_in_their_order_with_gaps_last():
    values = ["not recorded", "21", "3", "several", "100", "others"]
    assert list_values(pd.Series(values)) == ["3", "21", "100", "not recorded", "others", "several"]


def test_of_very_many_values_the_frequent_ones_are_kept():
    machines = [str(number) for number in range(30) for _ in range(30 - number)]
    images = pd.DataFrame({"image_id": [str(row) for row in range(len(machines))], "machine_id": machines})
    kinds = describe_images(images.assign(patient_id="1", laterality="L"))
    assert set(kinds["machine"]) == {*map(str, range(19)), "others"}


def test_columns_that_are_not_there_are_named():
    assert set(explain_missing(make_images(view="CC"))) == {"site", "machine", "density", "age", "implant"}


def test_real_exams_are_sliced_as_pandas_counts_them(real_data):
    """RSNA's own train.csv: density is missing at all of site 2, ages have gaps, implants are numbers."""
    exams = read_exams(real_data / "rsna_csv", "train")
    kinds = describe_images(exams)
    for kind, column in {"view": "view", "site": "site_id", "machine": "machine_id"}.items():
        assert kinds[kind].value_counts().to_dict() == exams[column].value_counts().to_dict()
    assert (kinds["density"] == "not recorded").sum() == exams["density"].isna().sum()
    assert (kinds["age"] == "not recorded").sum() == exams["age"].isna().sum() > 0
    assert (kinds["implant"] == "yes").sum() == exams["implant"].sum()
    assert (kinds["age"] == "60 to 69").sum() == ((exams["age"] >= 60) & (exams["age"] < 70)).sum()
    breasts = to_breasts(exams.assign(probability=0.5))
    described = describe_breasts(exams, kinds, breasts)
    assert (described["density"][described["site"] == "2"] == "not recorded").all()
    assert len(described) == exams["prediction_id"].nunique()
