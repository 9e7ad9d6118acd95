"""The flow of cases, from the images of the cache to what was predicted, and what is not recorded of it.

STARD and TRIPOD+AI ask for it: a cancer whose files all failed is in no figure.
"""

from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.rsna.exam_table import BREAST
from pipeline.runs.run_folder import OOF_EXAM_COLUMNS

IN_CACHE, PREDICTED, NOT_IN_RUN, LOST = "in the cache", "predicted", "not in this run", "lost"
IN_TABLE, LEARNED = "in the table", "left out: the run has learned from the patient"
OTHER_IMAGES = "the cache holds other images now"
IMAGE = [*BREAST, "image_id"]
FLOW_COLUMNS = ["step", "num_images", "num_breasts", "num_cancers"]


@dataclass(frozen=True)
class Flow:
    """What became of the images that were to be prepared.

    Attributes:
        steps: a row per step: `step`, images, breasts and breasts with cancer. The first is what the cache's
            table holds: images that failed by reason (with the breasts that they are of), what was predicted,
            and what the run never had, as in a cache that has grown since. The last are the breasts all of
            whose images failed. Without a cache, only what was predicted.
        missing: by column of the exam table, the share of images of which it is not recorded.
        unknown: why nothing is known of the cache; empty where it is.
    """

    steps: pd.DataFrame
    missing: dict[str, float]
    unknown: str = ""

    @property
    def num_lost_cancers(self) -> int:
        """Breasts with cancer of which no image could be used."""
        lost = self.steps[self.steps["step"] == LOST]
        return int(lost["num_cancers"].sum())


def describe_flow(oof: pd.DataFrame, cache: Cache | None, *, unknown: str = "") -> Flow:
    """Follows each row of the cache's table.

    Args:
        oof: one row per image that was predicted.
        cache: the run's; None where it is not at hand.
        unknown: why not.

    Raises:
        UserError: if a table of the cache is damaged, or a predicted image is not in it.
    """
    missing = find_missing(oof)
    predicted = count_step(PREDICTED, oof)
    if cache is None:
        return Flow(pd.DataFrame([predicted], columns=FLOW_COLUMNS), missing, unknown)
    exams, failures = cache.read_exams(prepared_only=False), cache.read_failures()
    if "cancer" not in exams:
        raise UserError(f"{cache.folder} is a cache of the test split and has no labels")
    is_predicted = _find(exams, oof, IMAGE)
    if is_predicted.sum() < len(oof):
        raise UserError(OTHER_IMAGES)
    has_failed = exams["image_id"].isin(failures["image_id"])
    failed = exams[~is_predicted].merge(failures[["image_id", "reason"]], on="image_id")
    rows = [count_step(IN_CACHE, exams)]
    rows += [count_step(f"failed: {reason}", part) for reason, part in failed.groupby("reason")]
    rows.append(predicted)
    others = exams[~is_predicted & ~has_failed]
    lost = exams[~_find(exams, pd.concat([oof, others]), BREAST)]
    rows += [count_step(step, part) for step, part in ((NOT_IN_RUN, others), (LOST, lost)) if len(part)]
    return Flow(pd.DataFrame(rows, columns=FLOW_COLUMNS), missing)


def _find(images: pd.DataFrame, among: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Returns whether each image agrees with one of the others in these columns."""
    known = pd.MultiIndex.from_frame(among[columns])
    return pd.Series(pd.MultiIndex.from_frame(images[columns]).isin(known), images.index)


def describe_external_flow(
    exams: pd.DataFrame, failures: pd.DataFrame, left_out: Collection[str], predicted: pd.DataFrame
) -> Flow:
    """Follows each row of an external set's table.

    Args:
        exams: all of them.
        failures: `image_id` and `reason` of images that could not be used.
        left_out: ids of patients who were left out.
        predicted: one row per image that is judged.
    """
    is_left_out = exams["patient_id"].isin([*left_out])
    failed = exams[~is_left_out].merge(failures[["image_id", "reason"]], on="image_id")
    lost = exams[~is_left_out & ~_find(exams, predicted, BREAST)]
    rows = [count_step(IN_TABLE, exams)]
    rows += [count_step(LEARNED, exams[is_left_out])] if is_left_out.any() else []
    rows += [count_step(f"failed: {reason}", part) for reason, part in failed.groupby("reason")]
    rows += [count_step(PREDICTED, predicted)]
    rows += [count_step(LOST, lost)] if len(lost) else []
    return Flow(pd.DataFrame(rows, columns=FLOW_COLUMNS), find_missing(predicted))


def find_missing(images: pd.DataFrame) -> dict[str, float]:
    """Returns the share of images of which a column of the exam table is not recorded."""
    return {name: float(images[name].isna().mean()) for name in OOF_EXAM_COLUMNS if name in images}


def count_step(step: str, images: pd.DataFrame) -> tuple[str, int, int, int]:
    """Returns a row of the flow."""
    breasts = images.drop_duplicates(BREAST)
    return step, len(images), len(breasts), int((breasts["cancer"] == 1).sum())
