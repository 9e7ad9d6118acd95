"""Beside a submission: a row per image and a row per breast for statisticians."""

from pathlib import Path

import pandas as pd

from data_prep.errors import UserError
from data_prep.storage.atomic import read_header, write_csv
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.external.carry_over import with_threshold
from pipeline.evaluation.external.case_tables import IDS, calibrate_breasts, make_case_tables
from pipeline.inference.run_predictions import RunPredictions


def write_cases(
    oof: pd.DataFrame,
    predictions: RunPredictions,
    breasts: pd.DataFrame,
    threshold: float | None,
    *,
    images_path: Path,
    breasts_path: Path,
) -> None:
    """Writes both tables; probabilities are calibrated by out-of-fold breasts.

    Args:
        oof: the out-of-fold images of what predicted.
        predictions: of all images.
        breasts: with the probabilities that the submission goes by.
        threshold: that decides; None where probabilities are submitted.
        images_path: of the table of images.
        breasts_path: of the table of breasts.
    """
    calibrated = calibrate_breasts(with_threshold(breasts, threshold), require_breasts(oof))
    cases = make_case_tables(predictions.images, calibrated)
    write_csv(images_path, cases.images)
    write_csv(breasts_path, cases.breasts)


def require_case_table(path: Path) -> None:
    """Makes sure that a table of cases replaces nothing but another one.

    Raises:
        UserError: if a file with other contents is there.
    """
    if path.is_file() and path.stat().st_size and read_header(path)[: len(IDS)] != IDS:
        raise UserError(
            f"{path} is not a table of predictions by case and would be overwritten: move it, or choose "
            "another --out"
        )
