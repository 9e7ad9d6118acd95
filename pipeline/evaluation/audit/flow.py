"""The flow of cases, from the rows of the table to what was predicted, and what is not recorded of it.

STARD and TRIPOD+AI ask for it: a cancer whose files all failed is in no figure.
"""

from dataclasses import dataclass

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.rsna.exam_table import BREAST
from pipeline.runs.run_folder import OOF_EXAM_COLUMNS

IN_TABLE, PREDICTED, LOST = "in the table", "predicted", "lost"
FLOW_COLUMNS = ["step", "num_images", "num_breasts", "num_cancers"]


@dataclass(frozen=True)
class Flow:
    """What became of the table's rows.

    Attributes:
        steps: a row per step: `step`, images, breasts and breasts with cancer. The first is what the cache's
            table holds, then come images that failed by reason (with the breasts that they are of), what was
            predicted, and the breasts of which nothing was. Without a cache, only what was predicted.
        missing: by column of the exam table, the share of images of which it is not recorded.
        unknown: why nothing is known of the table; empty where it is.
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
        UserError: if a table of the cache is damaged.
    """
    missing = {name: float(oof[name].isna().mean()) for name in OOF_EXAM_COLUMNS if name in oof}
    predicted = _count(PREDICTED, oof)
    if cache is None:
        return Flow(pd.DataFrame([predicted], columns=FLOW_COLUMNS), missing, unknown)
    exams, failures = cache.read_exams(prepared_only=False), cache.read_failures()
    if "cancer" not in exams:
        raise UserError(f"{cache.folder} is a cache of the test split and has no labels")
    failed = exams.merge(failures[["image_id", "reason"]], on="image_id")
    rows = [_count(IN_TABLE, exams)]
    rows += [_count(f"failed: {reason}", part) for reason, part in failed.groupby("reason")]
    rows.append(predicted)
    known = pd.MultiIndex.from_frame(oof[BREAST])
    lost = exams[~pd.MultiIndex.from_frame(exams[BREAST]).isin(known)]
    if len(lost):
        rows.append(_count(LOST, lost))
    return Flow(pd.DataFrame(rows, columns=FLOW_COLUMNS), missing)


def _count(step: str, images: pd.DataFrame) -> tuple[str, int, int, int]:
    breasts = images.drop_duplicates(BREAST)
    return step, len(images), len(breasts), int((breasts["cancer"] == 1).sum())
