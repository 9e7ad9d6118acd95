"""Counts, figures and intervals of sets of predictions, such as a fold or a slice.

A table of predictions has a row per breast or per image: `fold, patient_id, laterality, cancer, probability`,
`num_images` of breasts, and `threshold`, the transferred one (NaN where there is none).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data_prep.rsna.exam_table import BREAST
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.bootstrap import NUM_REPLICATES, SEED, Interval, SetKey, find_interval, replicate
from pipeline.evaluation.metrics import Metrics, Unit, apply_thresholds, measure, measure_sums
from pipeline.evaluation.patient_stats import PatientSums


@dataclass(frozen=True)
class Estimate:
    """What is known of a set of predictions, such as those of a fold or a slice.

    Attributes:
        num_cancers: predictions with cancer: breasts at breast level, images at image level.
        metrics: its figures; None is undefined and has a reason in `metrics.undefined`.
        intervals: 95 % intervals by figure; an undefined figure has none.
    """

    num_patients: int
    num_images: int
    num_breasts: int
    num_cancers: int
    metrics: Metrics
    intervals: dict[str, Interval]


def estimate_all(
    tables: Mapping[SetKey, pd.DataFrame], *, seed: int = SEED, num_replicates: int = NUM_REPLICATES
) -> dict[SetKey, Estimate]:
    """Computes figures and intervals of several sets, with the same bootstrap draws for all."""
    sums = add_up_patients(tables)
    replicates = replicate(sums, seed=seed, num_replicates=num_replicates)
    estimates = {}
    for key, table in tables.items():
        metrics = measure_sums(sums[key], table["threshold"].to_numpy(), unit=_find_unit(table))
        found = {name: find_interval(values) for name, values in replicates[key].items()}
        intervals = {
            name: interval
            for name, interval in found.items()
            if interval is not None and name not in metrics.undefined
        }
        estimates[key] = Estimate(**_count(table), metrics=metrics, intervals=intervals)
    return estimates


def add_up_patients(tables: Mapping[SetKey, pd.DataFrame]) -> dict[SetKey, PatientSums]:
    """Adds all tables up by patient; a patient has the same number in each."""
    ids = np.unique(np.concatenate([table["patient_id"].to_numpy(np.str_) for table in tables.values()]))
    numbers = pd.Index(ids)
    return {
        key: PatientSums(
            table["cancer"],
            table["probability"],
            numbers.get_indexer(table["patient_id"]),
            num_patients=len(ids),
            recalled=apply_thresholds(table["probability"].to_numpy(), table["threshold"].to_numpy()),
            folds=table["fold"],
        )
        for key, table in tables.items()
    }


def measure_levels(oof: pd.DataFrame) -> tuple[Metrics, Metrics]:
    """Returns the figures of breasts and of images without intervals: what an epoch's validation needs.

    Args:
        oof: one row per image: patient_id, laterality, cancer, probability.
    """
    tables = to_breasts(oof), oof
    of_breasts, of_images = (
        measure(table["cancer"], table["probability"], patients=table["patient_id"], unit=_find_unit(table))
        for table in tables
    )
    return of_breasts, of_images


def transfer_thresholds(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `threshold`: for each fold the best one of all other folds' predictions, NaN if they have none."""
    thresholds = {}
    for fold in table["fold"].unique():
        others = table[table["fold"] != fold]
        thresholds[fold] = measure(others["cancer"], others["probability"]).threshold_best
    return table.assign(threshold=table["fold"].map(thresholds).astype(float))


def _find_unit(table: pd.DataFrame) -> Unit:
    return "breast" if "num_images" in table else "image"


def _count(table: pd.DataFrame) -> dict[str, int]:
    return {
        "num_patients": table["patient_id"].nunique(),
        "num_images": int(table["num_images"].sum()) if "num_images" in table else len(table),
        "num_breasts": len(table[BREAST].drop_duplicates()),
        "num_cancers": int(table["cancer"].sum()),
    }
