"""Counts, figures and intervals of sets of predictions, such as a fold or a slice.

A table of predictions has a row per breast or per image: `fold, patient_id, laterality, cancer, probability`,
`num_images` of breasts, `threshold`, the transferred one (NaN where there is none), and `exam_id` where a
patient's exams are told apart. A breast is then one of an exam, while a patient stays one patient.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data_prep.rsna.exam_table import name_breast, number_exams
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.bootstrap import NUM_REPLICATES, SEED, Interval, SetKey, replicate
from pipeline.evaluation.metrics import Metrics, Unit, apply_thresholds, measure, measure_sums
from pipeline.evaluation.patient_stats import ROUNDING, Floats, Integers, PatientSums
from pipeline.evaluation.uncertainty.auc_variance import AucEstimate, estimate_auc
from pipeline.evaluation.uncertainty.intervals import find_intervals
from pipeline.runs.run_folder import IMAGE_PROBABILITY

AUC_WEIGHTED = "auc_weighted"
"""The AUC per image where each counts as one over the number of its breast's images (Williamson, Datta,
Satten 2003, "Marginal analyses of clustered data when cluster size is informative", Biometrics 59:36)."""
FEW_CANCERS = 20
"""A slice with fewer is marked, and two runs with fewer cannot be told apart."""


@dataclass(frozen=True)
class Estimate:
    """What is known of a set of predictions, such as those of a fold or a slice.

    Attributes:
        num_cancers: predictions with cancer: breasts at breast level, images at image level.
        num_cancer_patients: patients with one or more of them, who are independent of one another.
        metrics: its figures; None is undefined and has a reason in `metrics.undefined`.
        auc: its AUC with each patient's part in it.
        auc_weighted: of images, the same with each weighted by one over its breast's number of images in
            the set (the inverse size of its cluster); None for breasts.
        intervals: 95 % intervals by figure; an undefined figure has none.
        no_interval: why a defined figure has none.
    """

    num_patients: int
    num_images: int
    num_breasts: int
    num_cancers: int
    num_cancer_patients: int
    metrics: Metrics
    auc: AucEstimate
    auc_weighted: AucEstimate | None
    intervals: dict[str, Interval]
    no_interval: dict[str, str]

    @property
    def figures(self) -> dict[str, float | None]:
        """All figures by name, in order; those of images end with the weighted AUC."""
        weighted = {} if self.auc_weighted is None else {AUC_WEIGHTED: self.auc_weighted.auc}
        return self.metrics.figures | weighted

    @property
    def undefined(self) -> dict[str, str]:
        """The reason for each figure that is None."""
        reasons = self.metrics.undefined
        is_lacking = self.auc_weighted is not None and self.auc_weighted.auc is None
        return reasons | ({AUC_WEIGHTED: reasons["auc"]} if is_lacking else {})

    @property
    def has_few_cancers(self) -> bool:
        """Whether too few patients have cancer for its differences from others to mean much."""
        return self.num_cancer_patients < FEW_CANCERS


def estimate_all(
    tables: Mapping[SetKey, pd.DataFrame], *, seed: int = SEED, num_replicates: int = NUM_REPLICATES
) -> dict[SetKey, Estimate]:
    """Computes figures and intervals of several sets, with the same bootstrap draws for all."""
    sums = add_up_patients(tables)
    replicates = replicate(sums, seed=seed, num_replicates=num_replicates)
    numbers, num_patients = number_patients(tables)
    estimates = {}
    for key, table in tables.items():
        metrics = measure_sums(sums[key], table["threshold"].to_numpy(), unit=_find_unit(table))
        aucs = {"auc": estimate_auc_of(table, numbers[key], num_patients)}
        aucs["auc_pooled"] = estimate_auc_of(table.assign(fold=0), numbers[key], num_patients)
        if _find_unit(table) == "image":
            weights = weigh_images(table)
            aucs[AUC_WEIGHTED] = estimate_auc_of(table, numbers[key], num_patients, weights=weights)
        intervals, reasons = find_intervals(table, numbers[key], metrics, replicates[key], aucs)
        estimates[key] = Estimate(
            **_count(table),
            metrics=metrics,
            auc=aucs["auc"],
            auc_weighted=aucs.get(AUC_WEIGHTED),
            intervals=intervals,
            no_interval=reasons,
        )
    return estimates


def estimate_auc_of(
    table: pd.DataFrame,
    patients: Integers,
    num_patients: int,
    *,
    weights: "pd.Series[float] | None" = None,
) -> AucEstimate:
    """Computes the AUC of a table within folds, with each patient's part in it."""
    columns = table["cancer"], table["probability"], patients
    return estimate_auc(*columns, num_patients=num_patients, folds=table["fold"], weights=weights)


def weigh_images(images: pd.DataFrame) -> "pd.Series[float]":
    """Returns one over the number of its breast's images for each image, so that all breasts count alike."""
    return 1 / images.groupby(name_breast(images))["cancer"].transform("size")


def number_patients(tables: Mapping[SetKey, pd.DataFrame]) -> tuple[dict[SetKey, Integers], int]:
    """Returns the number of each row's patient, the same in all tables, and how many patients there are."""
    ids = np.unique(np.concatenate([table["patient_id"].to_numpy(np.str_) for table in tables.values()]))
    numbers = pd.Index(ids)
    return {key: numbers.get_indexer(table["patient_id"]) for key, table in tables.items()}, len(ids)


def add_up_patients(tables: Mapping[SetKey, pd.DataFrame]) -> dict[SetKey, PatientSums]:
    """Adds all tables up by patient; a patient has the same number in each."""
    numbers, num_patients = number_patients(tables)
    return {
        key: PatientSums(
            table["cancer"],
            table["probability"],
            numbers[key],
            num_patients=num_patients,
            recalled=apply_thresholds(table["probability"].to_numpy(), table["threshold"].to_numpy()),
            folds=table["fold"],
            exams=number_exams(table),
        )
        for key, table in tables.items()
    }


def measure_levels(oof: pd.DataFrame) -> tuple[Metrics, Metrics]:
    """Returns the figures of breasts and of images without intervals: what an epoch's validation needs.

    Args:
        oof: one row per image: patient_id, laterality, cancer, probability, and `image_probability` where
            that is its breast's; images are then judged by it.
    """
    own = oof.assign(probability=oof[IMAGE_PROBABILITY]) if IMAGE_PROBABILITY in oof else oof
    tables = to_breasts(oof), own
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


def find_threshold_of_mean(breasts: pd.DataFrame, rate: float) -> float:
    """Returns the threshold for the mean of all folds' models: the mean of the folds' own, of equal recall.

    A breast that just reaches that share in the eyes of each model has that mean, whatever scales they have.

    Args:
        breasts: a table of predictions.
        rate: the share of each fold's breasts to be recalled.
    """
    folds = (part["probability"].to_numpy(np.float64) for _, part in breasts.groupby("fold"))
    return float(np.mean([find_share_threshold(probabilities_N, rate) for probabilities_N in folds]))


def find_share_threshold(probabilities_N: Floats, rate: float) -> float:
    """Returns the probability that a share of them reaches: of the last one to be recalled.

    So many are recalled as the share comes closest to, halves rounded up, and one at least. Others that have
    the very same probability as the last one reach it too, so that equal breasts get equal answers.
    """
    count = max(1, math.floor(rate * len(probabilities_N) + 0.5))
    return float(np.sort(probabilities_N)[-count])


def recalls_any(rate: float, count: int) -> bool:
    """Whether a share of so many is one or more."""
    return rate * count >= 1 - ROUNDING


def _find_unit(table: pd.DataFrame) -> Unit:
    return "breast" if "num_images" in table else "image"


def _count(table: pd.DataFrame) -> dict[str, int]:
    return {
        "num_patients": table["patient_id"].nunique(),
        "num_images": int(table["num_images"].sum()) if "num_images" in table else len(table),
        "num_breasts": len(table[name_breast(table)].drop_duplicates()),
        "num_cancers": int(table["cancer"].sum()),
        "num_cancer_patients": table.loc[table["cancer"] == 1, "patient_id"].nunique(),
    }
