"""Whether recalling women by their risk does more good than recalling all of them, or none.

Who recalls from a risk of p on accepts (1 - p) / p needless recalls for one cancer found. Net benefit takes
that as the price of a needless recall (Vickers and Elkin 2006, "Decision curve analysis", Medical Decision
Making 26:565, doi:10.1177/0272989X06295361). Its two shares are re-weighted to a screening population, as at
the operating point, and so are the risks that a threshold is held against.

Shape suffixes: P patients, M of their exams, T thresholds, R weightings.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import logit

from data_prep.rsna.exam_table import number_exams
from pipeline.evaluation.bootstrap import (
    MOST_UNDEFINED,
    NUM_REPLICATES,
    SEED,
    draw_weights,
    find_interval,
)
from pipeline.evaluation.calibration import PlattScaling, cross_fit, fit_platt
from pipeline.evaluation.estimates import FEW_CANCERS
from pipeline.evaluation.operating_point import SCREENING_PREVALENCE
from pipeline.evaluation.patient_stats import Floats

THRESHOLDS = np.arange(2, 101) / 1000
"""Risks from which on a woman is recalled: 0.2 % to 10 %, around the 0.5 % who have cancer in screening."""
DECISION_COLUMNS = [
    *("threshold", "net_benefit", "low", "high", "recall_all", "recall_none"),
    *("sensitivity", "specificity", "recall_rate"),
]


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit per woman at each threshold, where as many women have cancer as in screening.

    Attributes:
        points: a row for each of `THRESHOLDS`: net_benefit of recalling by the model, its 95 % interval
            low and high (drawn by patient, the calibration held fixed), what recalling all and none would
            give, and the model's sensitivity, specificity and recall rate. Empty where there is no risk; an
            interval is NaN where too many draws are undefined.
        undefined: why there is none; empty if there is.
        has_few_cancers: whether under 20 women have cancer, too few to tell from chance.
    """

    points: pd.DataFrame
    undefined: str = ""
    has_few_cancers: bool = False


def draw_up_decisions(
    breasts: pd.DataFrame, *, seed: int = SEED, num_replicates: int = NUM_REPLICATES
) -> DecisionCurve:
    """Computes the decision curve of women, or of exams where these are told apart.

    Each has the highest probability of its breasts.

    Args:
        breasts: a table of predictions.
        seed: of the bootstrap.
        num_replicates: draws.
    """
    women = breasts.groupby(number_exams(breasts))[["patient_id", "fold", "cancer", "probability"]].max()
    patients_M = pd.factorize(women["patient_id"], sort=True)[0]
    undefined = _find_obstacle(women)
    if undefined:
        return DecisionCurve(pd.DataFrame(columns=DECISION_COLUMNS), undefined)
    risks_M = cross_fit(women, fit_screening_risk)["probability"].to_numpy()
    cancer_M, recalled_TM = women["cancer"].to_numpy() == 1, risks_M >= THRESHOLDS[:, None]
    found_TM, wrong_TM = (recalled_TM & cancer_M).astype(float), (recalled_TM & ~cancer_M).astype(float)

    def find_shares(weights_MR: Floats) -> tuple[Floats, Floats]:
        with np.errstate(invalid="ignore"):  # a draw without cancers
            return (
                found_TM @ weights_MR / (cancer_M @ weights_MR),
                wrong_TM @ weights_MR / (~cancer_M @ weights_MR),
            )

    draws = draw_weights(women["patient_id"].nunique(), seed=seed, num_replicates=num_replicates)
    drawn_TR = np.concatenate(
        [find_net_benefit(*find_shares(weights_PR[patients_M])) for weights_PR in draws], axis=1
    )
    is_known_T = np.isnan(drawn_TR).mean(axis=1) <= MOST_UNDEFINED
    pairs = zip(drawn_TR, is_known_T, strict=True)
    intervals = [find_interval(drawn_R) if is_known else None for drawn_R, is_known in pairs]
    found_T1, wrong_T1 = find_shares(np.ones((len(women), 1)))
    everyone_T1 = np.ones_like(found_T1)
    points = pd.DataFrame(
        {
            "threshold": THRESHOLDS,
            "net_benefit": find_net_benefit(found_T1, wrong_T1)[:, 0],
            "low": [interval.low if interval else np.nan for interval in intervals],
            "high": [interval.high if interval else np.nan for interval in intervals],
            "recall_all": find_net_benefit(everyone_T1, everyone_T1)[:, 0],
            "recall_none": 0.0,
            "sensitivity": found_T1[:, 0],
            "specificity": 1 - wrong_T1[:, 0],
            "recall_rate": (
                SCREENING_PREVALENCE * found_T1[:, 0] + (1 - SCREENING_PREVALENCE) * wrong_T1[:, 0]
            ),
        }
    )
    num_with_cancer = women.loc[cancer_M, "patient_id"].nunique()
    return DecisionCurve(points[DECISION_COLUMNS], has_few_cancers=num_with_cancer < FEW_CANCERS)


def fit_screening_risk(labels_N: Floats, probabilities_N: Floats) -> PlattScaling:
    """Fits Platt scaling, and moves it from the share of cancers here to that of screening.

    By Bayes's rule another share of cancers adds the difference of the log-odds to every logit.
    """
    fitted = fit_platt(labels_N, probabilities_N)
    shift = float(logit(SCREENING_PREVALENCE) - logit(labels_N.mean()))
    return replace(fitted, intercept=fitted.intercept + shift)


def find_net_benefit(found_TR: Floats, wrong_TR: Floats) -> Floats:
    """Returns net benefit per woman screened at each of `THRESHOLDS`.

    Args:
        found_TR: share of the women with cancer who are recalled.
        wrong_TR: share of the women without who are.
    """
    price_T1 = (THRESHOLDS / (1 - THRESHOLDS))[:, None]
    true_positives_TR = SCREENING_PREVALENCE * found_TR
    false_positives_TR = (1 - SCREENING_PREVALENCE) * wrong_TR
    return np.asarray(true_positives_TR - price_T1 * false_positives_TR)  # Vickers and Elkin 2006


def _find_obstacle(women: pd.DataFrame) -> str:
    for fold in sorted(women["fold"].unique()):
        if women.loc[women["fold"] != fold, "cancer"].nunique() < 2:
            return f"without fold {fold} there are no longer women with and without cancer to learn from"
    return ""
