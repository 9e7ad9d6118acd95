"""The fold table: counts against pandas, and that a patient in two folds shows."""

import pytest

from pipeline.evaluation.fold_summary import describe_folds
from tests.pipeline.synthetic_run import add_exam_columns, make_oof


def test_each_fold_is_counted():
    oof = add_exam_columns(make_oof())
    found = describe_folds(oof).set_index("fold")
    for fold, part in oof.groupby("fold"):
        row, patients = found.loc[fold], part.drop_duplicates("patient_id")
        breasts = part.drop_duplicates(["patient_id", "laterality"])
        assert (row["num_patients"], row["num_breasts"], row["num_images"]) == (20, 40, 80)
        assert row["num_cancers"] == breasts["cancer"].sum() == row["num_cancer_images"] / 2
        assert row["prevalence"] == pytest.approx(breasts["cancer"].mean())
        sites = patients["site_id"].value_counts()
        assert row["sites"] == f"1: {sites['1']}, 2: {sites['2']}"
        assert row["age_median"] == patients["age"].median()
        assert row["num_without_age"] == patients["age"].isna().sum()


def test_what_is_not_recorded_has_no_column():
    assert not {"sites", "machines", "age_median"} & set(describe_folds(make_oof()))


def test_a_patient_in_two_folds_is_counted_in_both():
    oof = make_oof()
    assert describe_folds(oof)["num_patients_elsewhere"].tolist() == [0, 0, 0]
    oof.loc[oof.index[0], "fold"] = 2
    assert describe_folds(oof)["num_patients_elsewhere"].tolist() == [1, 0, 1]
