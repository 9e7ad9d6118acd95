"""What training adds to the uncertainty of an AUC, from cross-validations with other seeds and splits.

All of them judge the same patients, as several readers read the same cases, so what the patients do to all is
the covariance of two repeats, as in a study with random readers and random cases (Obuchowski and Rockette
1995, Commun. Stat. Simul. Comput. 24:285, doi:10.1080/03610919508813243). All of them also learn from the
same patients, which hides a part of what training varies by: the correction is Nadeau's and Bengio's (2003,
"Inference for the generalization error", Machine Learning 52:239, doi:10.1023/A:1024068626366).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import t

from data_prep.rsna.exam_table import number_exams
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.estimates import (
    AUC_WEIGHTED,
    estimate_auc_of,
    number_patients,
    transfer_thresholds,
    weigh_images,
)
from pipeline.evaluation.metrics import measure
from pipeline.evaluation.uncertainty.auc_variance import TAIL, AucEstimate, find_auc_interval, find_variance

REPEAT_FIGURES = [
    *("auc", AUC_WEIGHTED, "average_precision", "pf1", "pf1_transferred", "pf1_best"),
    *("sensitivity_at_recall_rate_10", "brier"),
]
REPEATS_COLUMNS = ["repeat", "seed", *REPEAT_FIGURES]


@dataclass(frozen=True)
class ExpectedAuc:
    """The AUC that a recipe gives on average.

    Attributes:
        auc: mean over the repeats; None if one of them has none.
        deviation: standard deviation between the repeats.
        of_training: the part of the mean's standard error that comes from training.
        of_patients: the part that comes from the patients, whom all repeats share; None with a single patient
            of a class.
        interval: of 95 %; None where nothing tells how wide it is.
    """

    auc: float | None
    deviation: float | None
    of_training: float | None
    of_patients: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Repeats:
    """Finished cross-validations of one recipe on the same patients.

    Attributes:
        table: a row for each, as in `repeats.csv`: repeat (0 is the run itself), `train.seed` and the
            figures, per breast but for `auc_weighted`. NaN is undefined.
        figure: the AUC that leads the report.
        expected: that AUC of the recipe.
    """

    table: pd.DataFrame
    figure: str
    expected: ExpectedAuc

    @property
    def summary(self) -> pd.DataFrame:
        """Mean and standard deviation of each figure over the repeats, with the figures as index."""
        return self.table[REPEAT_FIGURES].agg(["mean", "std"]).T


def summarise_repeats(
    oofs: Mapping[int, pd.DataFrame],
    breasts: Mapping[int, pd.DataFrame],
    seeds: Mapping[int, int | None],
    *,
    figure: str,
) -> Repeats:
    """Computes the figures of two repeats or more, and the expected AUC of their recipe.

    Args:
        oofs: out-of-fold image predictions by number of the repeat, of the same images.
        breasts: the same of breasts.
        seeds: `train.seed` of each repeat; None where it is not known.
        figure: the AUC that leads: `auc` of breasts, or `auc_weighted` of images.
    """
    rows, estimates = [], []
    for number, images in oofs.items():
        aucs = {"auc": _estimate(breasts[number]), AUC_WEIGHTED: _estimate(images, is_weighted=True)}
        estimates.append(aucs[figure])
        table = transfer_thresholds(breasts[number])
        metrics = measure(
            table["cancer"],
            table["probability"],
            patients=table["patient_id"],
            thresholds=table["threshold"],
            folds=table["fold"],
            exams=number_exams(table),
        )
        figures = metrics.figures | {AUC_WEIGHTED: aucs[AUC_WEIGHTED].auc}
        rows.append({"repeat": number, "seed": seeds[number], **figures})
    table = pd.DataFrame(rows, columns=REPEATS_COLUMNS)
    table = table.astype({"seed": "Int64"} | dict.fromkeys(REPEAT_FIGURES, "float64"))
    return Repeats(
        table, figure, find_expected_auc(estimates, num_folds=next(iter(oofs.values()))["fold"].nunique())
    )


def find_expected_auc(estimates: Sequence[AucEstimate], *, num_folds: int) -> ExpectedAuc:
    """Returns the mean AUC of two repeats or more, with an interval that counts trainings and patients.

    The degrees of freedom are Satterthwaite's, of both parts; the interval is on the logit, and at least as
    wide as that of the mean with its models fixed.

    Args:
        estimates: of the repeats, with the same patients under the same numbers.
        num_folds: of each repeat.
    """
    aucs_R = np.array([each.auc for each in estimates], np.float64)
    if np.isnan(aucs_R).any():
        return ExpectedAuc(None, None, None, None, None)
    number, auc = len(aucs_R), float(aucs_R.mean())
    between = float(aucs_R.var(ddof=1))
    mean = AucEstimate(
        auc,
        np.mean([each.of_cancers for each in estimates], axis=0),
        np.mean([each.of_negatives for each in estimates], axis=0),
        min(each.num_cancer_patients for each in estimates),
        min(each.num_negative_patients for each in estimates),
    )
    # Nadeau and Bengio 2003, table 1: of J = R K models, (1 / J + n_test / n_train) s2, with s2 = K between
    of_training = between * (1 / number + num_folds / (num_folds - 1))
    if mean.num_independent < 2:
        return ExpectedAuc(auc, between**0.5, of_training**0.5, None, None)
    own = float(np.sum([find_variance(each) for each in estimates]))
    # Obuchowski and Rockette 1995: the mean over all pairs of repeats
    covariance = (number**2 * find_variance(mean) - own) / (number * (number - 1))
    of_patients = max(0.0, covariance)
    interval = find_auc_interval(mean)
    variance = of_patients + of_training
    if interval is not None and variance > 0 and 0 < auc < 1:
        freedom = variance**2 / (of_training**2 / (number - 1) + of_patients**2 / (mean.num_independent - 1))
        reach = t.ppf(1 - TAIL, freedom) * np.sqrt(variance) / (auc * (1 - auc))
        low, high = map(float, expit(logit(auc) + np.array([-reach, reach])))
        interval = Interval(min(low, interval.low), max(high, interval.high), 0)
    return ExpectedAuc(auc, between**0.5, of_training**0.5, of_patients**0.5, interval)


def _estimate(table: pd.DataFrame, *, is_weighted: bool = False) -> AucEstimate:
    numbers, num_patients = number_patients({"all": table})
    weights = weigh_images(table) if is_weighted else None
    return estimate_auc_of(table, numbers["all"], num_patients, weights=weights)
