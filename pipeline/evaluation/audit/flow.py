"""The flow of cases, from the rows of the table to what was predicted, and what is not recorded of it.

STARD and TRIPOD+AI ask for it: a cancer whose files all failed is in no figure.
"""

from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.rsna.exam_table import name_breast
from pipeline.runs.run_folder import OOF_EXAM_COLUMNS

IN_TABLE, NO_FILE = "in the table", "left out: no file"
IN_CACHE, PREDICTED, NOT_IN_RUN, LOST = "in the cache", "predicted", "not in this run", "lost"
LEARNED = "left out: the run has learned from the patient"
OTHER_IMAGES = "the cache holds other images now"
FLOW_COLUMNS = ["step", "num_images", "num_breasts", "num_cancers"]


@dataclass(frozen=True)
class Flow:
    """What became of the images that were to be prepared.

    Attributes:
        steps: a row per step: `step`, images, breasts and breasts with cancer. The first is what the cache's
            table holds, before it, where `--present-only` has left out rows, these and all rows. Then images
            that failed by reason (with the breasts that they are of), what was predicted, and what the run
            never had, as in a cache that has grown since. The last are the breasts of which no image could be
            used. Without a cache, only what was predicted.
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
    if cache is None:
        predicted = _count_step(PREDICTED, oof, name_breast(oof))
        return Flow(pd.DataFrame([predicted], columns=FLOW_COLUMNS), missing, unknown)
    exams, failures = cache.read_exams(prepared_only=False), cache.read_failures()
    if "cancer" not in exams:
        raise UserError(f"{cache.folder} is a cache of the test split and has no labels")
    absent = cache.read_left_out(exams)
    every = pd.concat([exams, absent]) if len(absent) else exams
    breast = name_breast(every, oof)
    is_predicted = _find(exams, oof, [*breast, "image_id"])
    if is_predicted.sum() < len(oof):
        raise UserError(OTHER_IMAGES)
    has_failed = exams["image_id"].isin(failures["image_id"])
    failed = exams[~is_predicted].merge(failures[["image_id", "reason"]], on="image_id")
    others = exams[~is_predicted & ~has_failed]
    parts = [(IN_TABLE, every), (NO_FILE, absent)] if len(absent) else []
    parts += [(IN_CACHE, exams)]
    parts += [(f"failed: {reason}", part) for reason, part in failed.groupby("reason")]
    parts.append((PREDICTED, oof))
    lost = every[~_find(every, pd.concat([oof, others]), breast)]
    parts += [(step, part) for step, part in ((NOT_IN_RUN, others), (LOST, lost)) if len(part)]
    rows = [_count_step(step, part, breast) for step, part in parts]
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
    breast = name_breast(exams, predicted)
    is_left_out = exams["patient_id"].isin([*left_out])
    failed = exams[~is_left_out].merge(failures[["image_id", "reason"]], on="image_id")
    lost = exams[~is_left_out & ~_find(exams, predicted, breast)]
    parts = [(IN_TABLE, exams)]
    parts += [(LEARNED, exams[is_left_out])] if is_left_out.any() else []
    parts += [(f"failed: {reason}", part) for reason, part in failed.groupby("reason")]
    parts += [(PREDICTED, predicted)]
    parts += [(LOST, lost)] if len(lost) else []
    rows = [_count_step(step, part, breast) for step, part in parts]
    return Flow(pd.DataFrame(rows, columns=FLOW_COLUMNS), find_missing(predicted))


def find_missing(images: pd.DataFrame) -> dict[str, float]:
    """Returns the share of images of which a column of the exam table is not recorded."""
    return {name: float(images[name].isna().mean()) for name in OOF_EXAM_COLUMNS if name in images}


def _count_step(step: str, images: pd.DataFrame, breast: list[str]) -> tuple[str, int, int, int]:
    breasts = images.drop_duplicates(breast)
    return step, len(images), len(breasts), int((breasts["cancer"] == 1).sum())
