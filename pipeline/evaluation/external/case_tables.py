"""Tables for a statistician: a row per image and a row per breast, with all that was said and decided."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data_prep.rsna.exam_table import name_breast
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.calibration import Calibrator, cross_fit, fit_platt, to_arrays
from pipeline.evaluation.formulas import to_logits
from pipeline.runs.run_folder import IMAGE_PROBABILITY

FOLD_PROBABILITY = "probability_fold_"
"""How the name of the column of one fold's probabilities begins."""
BESIDE = ["pixel_probability", "age_probability"]
"""Columns beside `probability`, of pixels and age, where a run takes age: of pixels alone, of age alone."""
CALIBRATED_BY = fit_platt
"""The calibration that the tables hold: Platt's keeps the ranking, and needs the fewest cancers."""
DECISIONS = ["calibrated", "threshold", "recalled"]
IDS = ["prediction_id", "patient_id"]
"""The first columns of both tables."""


@dataclass(frozen=True)
class CaseTables:
    """The rows of all images and of all breasts."""

    images: pd.DataFrame
    breasts: pd.DataFrame


def make_case_tables(images: pd.DataFrame, breasts: pd.DataFrame) -> CaseTables:
    """Puts together what is known of each case.

    Args:
        images: one row per image: what names its breast, image_id, probability (NaN where it failed), and
            where known prediction_id, file, view, cancer, fold, `probability_fold_<k>`, and where the run
            takes age that and the probabilities `BESIDE`.
        breasts: what names a breast, prediction_id, probability, and where known `calibrated` and
            `threshold`.

    Returns:
        Tables in the order of `images` and `breasts`. `logit` is of an image's probability, and of a breast
        the mean of its images'. An image has its breast's calibrated probability and decision; `recalled` is
        1 or 0, empty without a threshold.
    """
    breast = name_breast(images)
    ids, decided = ["prediction_id", *breast], breasts.assign(recalled=_decide(breasts))
    known = [name for name in [*ids, *DECISIONS] if name in decided]
    images = images.drop(columns=["prediction_id"], errors="ignore").assign(
        logit=to_logits(images["probability"])
    )
    rows = images.merge(decided[known], on=breast, how="left", validate="many_to_one")
    of_folds = [*list_fold_columns(images), *(name for name in BESIDE if name in images)]
    by_breast = images.groupby(breast)
    found: dict[str, pd.Series[Any]] = {
        name: _join(images.assign(probability=images[name])) for name in of_folds
    }
    found |= {"logit": by_breast["logit"].mean(), "num_images": by_breast["probability"].count()}
    shared = ("fold", "cancer", *(["age"] if BESIDE[0] in images else []))
    found |= {name: by_breast[name].first() for name in shared if name in images}
    if "view" in images:
        ordered = images.dropna(subset=["view"]).sort_values("view")
        found["views"] = ordered.groupby(breast)["view"].agg("+".join)
    keys = pd.MultiIndex.from_frame(decided[breast])
    table = decided.assign(**{name: column.reindex(keys).to_numpy() for name, column in found.items()})
    ends = ["probability", IMAGE_PROBABILITY, *of_folds, "logit", *DECISIONS]
    return CaseTables(
        _select(rows, [*ids, "image_id", "file", "view", *shared, *ends]),
        _select(table, [*ids, "num_images", "views", *shared, *ends]),
    )


def list_fold_columns(images: pd.DataFrame) -> list[str]:
    """Returns the names of the columns of each fold's probabilities."""
    return [str(name) for name in images if str(name).startswith(FOLD_PROBABILITY)]


def tabulate_oof_cases(oof: pd.DataFrame, breasts: pd.DataFrame, *, is_calibrated: bool) -> CaseTables:
    """Makes the tables of out-of-fold predictions.

    The probability of a fold stands with its own patients alone, whose labels it has not learned from.

    Args:
        oof: one row per image.
        breasts: the same as breasts, with `threshold`.
        is_calibrated: whether there is enough to calibrate each fold by the others.
    """
    calibrated = cross_fit(breasts, CALIBRATED_BY)["probability"] if is_calibrated else np.nan
    of_folds = {
        f"{FOLD_PROBABILITY}{fold}": oof["probability"].where(oof["fold"] == fold)
        for fold in sorted(oof["fold"].unique())
    }
    return make_case_tables(oof.assign(**of_folds), breasts.assign(calibrated=calibrated))


def fit_calibrator(learned: pd.DataFrame) -> Calibrator | None:
    """Fits `CALIBRATED_BY` on a run's out-of-fold breasts; None where one class is missing."""
    if learned["cancer"].nunique() < 2:
        return None
    return CALIBRATED_BY(*to_arrays(learned))


def calibrate_breasts(breasts: pd.DataFrame, learned: pd.DataFrame) -> pd.DataFrame:
    """Adds `calibrated`: each probability corrected by what the run's out-of-fold breasts teach."""
    calibrator = fit_calibrator(learned)
    if calibrator is None:
        return breasts.assign(calibrated=np.nan)
    return breasts.assign(calibrated=calibrator(breasts["probability"].to_numpy(np.float64)))


def _decide(breasts: pd.DataFrame) -> "pd.Series[int] | float":
    if "threshold" not in breasts:
        return np.nan
    recalled = (breasts["probability"] >= breasts["threshold"]).astype("Int64")
    return recalled.where(breasts["threshold"].notna())


def _join(images: pd.DataFrame) -> "pd.Series[float]":
    return to_breasts(images).set_index(name_breast(images))["probability"]


def _select(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table[[name for name in columns if name in table]]
