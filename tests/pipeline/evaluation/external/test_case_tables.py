"""The tables of cases: a row each, means by hand, and no probability of a model that has seen the label."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from pipeline.evaluation.calibration import fit_platt
from pipeline.evaluation.estimates import transfer_thresholds
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.external.case_tables import (
    calibrate_breasts,
    make_case_tables,
    tabulate_oof_cases,
)
from tests.pipeline.synthetic_run import add_exam_columns, make_oof


def test_a_run_shows_each_case_with_its_own_folds_probability_alone() -> None:
    oof = add_exam_columns(make_oof(num_folds=3))
    breasts = transfer_thresholds(require_breasts(oof))
    cases = tabulate_oof_cases(oof, breasts, is_calibrated=True)
    assert len(cases.images) == len(oof)
    assert len(cases.breasts) == len(breasts)
    for table in (cases.images, cases.breasts):
        for fold in range(3):
            own = table["fold"] == fold
            assert table.loc[~own, f"probability_fold_{fold}"].isna().all()
            assert (table.loc[own, f"probability_fold_{fold}"] == table.loc[own, "probability"]).all()
    assert cases.images["logit"].to_numpy() == pytest.approx(logit(oof["probability"]).to_numpy())
    assert cases.breasts["logit"].to_numpy() == pytest.approx(logit(cases.breasts["probability"]).to_numpy())
    assert (cases.breasts["recalled"] == (breasts["probability"] >= breasts["threshold"])).all()


def test_a_fold_is_calibrated_by_the_others() -> None:
    oof = make_oof(num_folds=2)
    breasts = transfer_thresholds(require_breasts(oof))
    table = tabulate_oof_cases(oof, breasts, is_calibrated=True).breasts
    for fold in (0, 1):
        others = breasts[breasts["fold"] != fold].sort_values("probability")
        platt = fit_platt(others["cancer"].to_numpy(float), others["probability"].to_numpy())
        own = table[table["fold"] == fold]
        assert own["calibrated"].to_numpy() == pytest.approx(platt(own["probability"].to_numpy()), rel=1e-6)
    assert tabulate_oof_cases(oof, breasts, is_calibrated=False).breasts["calibrated"].isna().all()


def test_failed_images_and_lost_breasts_keep_their_rows() -> None:
    images = pd.DataFrame(
        {
            "patient_id": ["1", "1", "2"],
            "laterality": ["L", "L", "R"],
            "image_id": ["10", "11", "12"],
            "prediction_id": ["1_L", "1_L", "2_R"],
            "file": ["a.dcm", "b.dcm", ""],
            "view": ["MLO", "CC", None],
            "probability": [0.25, np.nan, np.nan],
            "probability_fold_0": [0.25, np.nan, np.nan],
        }
    )
    breasts = pd.DataFrame(
        {
            "patient_id": ["1", "2"],
            "laterality": ["L", "R"],
            "prediction_id": ["1_L", "2_R"],
            "probability": [0.25, 0.02],  # of the second, the share in training
        }
    )
    cases = make_case_tables(images, breasts)
    assert cases.images["file"].tolist() == ["a.dcm", "b.dcm", ""]
    assert cases.breasts["num_images"].tolist() == [1, 0]
    assert cases.breasts["views"].iloc[0] == "CC+MLO"
    assert cases.breasts["probability"].tolist() == [0.25, 0.02]
    assert cases.breasts["logit"].iloc[0] == pytest.approx(logit(0.25))
    assert cases.breasts["logit"].isna().tolist() == [False, True]
    assert cases.images["recalled"].isna().all()


def test_calibration_needs_both_classes() -> None:
    breasts = require_breasts(make_oof(num_cancers=0))
    assert calibrate_breasts(breasts, breasts)["calibrated"].isna().all()
