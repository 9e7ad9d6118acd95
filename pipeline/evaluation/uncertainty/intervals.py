"""Which interval each figure gets, or why it has none.

AUCs have one by their patients' variance, sensitivities at a recall rate one of so many independent women
with cancer, all others by the bootstrap. A share of 0 or 1, which no draw moves, reaches as far as the exact
interval of so many.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import beta

from data_prep.rsna.exam_table import number_exams
from pipeline.evaluation.bootstrap import Interval, find_interval
from pipeline.evaluation.metrics import RECALL_RATES, SPECIFICITIES, Metrics, largest_sensitivity
from pipeline.evaluation.patient_stats import Floats, Integers
from pipeline.evaluation.uncertainty.auc_variance import TAIL, AucEstimate, find_auc_interval

LARGEST_P = 0.05
"""Of what is taken for more than chance."""
HELD_FIXED = "it is held fixed"
NO_REPLICATE = "no replicate has both classes"
ONE_PATIENT = "only one patient has, or lacks, cancer, and one alone has no spread"
NO_SPREAD = "every patient's pairs say the same"
NO_WIDTH = "every replicate gives the same"
NO_CHANCE = "so few women may be recalled that none of them is of a fold with cancer"
SHARES = [f"sensitivity_at_specificity_{percent}" for percent in SPECIFICITIES]
CAPPED = {f"sensitivity_at_recall_rate_{percent}": rate for percent, rate in RECALL_RATES.items()}


def find_intervals(
    table: pd.DataFrame,
    patients: Integers,
    metrics: Metrics,
    replicates: Mapping[str, Floats],
    aucs: Mapping[str, AucEstimate],
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Returns the 95 % intervals of a set's figures, and the reason for each defined figure without one.

    Args:
        table: of the predictions.
        patients: number of each row's patient.
        metrics: the figures.
        replicates: of each figure but `threshold_transferred`, [R].
        aucs: those that have an interval by their patients' variance.
    """
    defined = {name: value for name, value in metrics.figures.items() if value is not None}
    defined |= {name: estimate.auc for name, estimate in aucs.items() if estimate.auc is not None}
    exams = number_exams(table)
    num_cancer_patients = len(np.unique(patients[table["cancer"].to_numpy() == 1]))
    intervals, reasons = {}, {}
    for name, value in defined.items():
        if name in aucs:
            found, reason = find_auc_interval(aucs[name]), _explain_auc(aucs[name])
        elif name == "threshold_transferred":
            found, reason = None, HELD_FIXED
        else:
            found = find_interval(replicates[name])
            reason = NO_REPLICATE if found is None else NO_WIDTH
        if name in CAPPED:
            ceiling = largest_sensitivity(table["cancer"], exams, table["fold"], CAPPED[name])
            found, reason = _cap(find_share_interval(value, num_cancer_patients), ceiling), NO_CHANCE
        elif name in SHARES:
            found = _widen_share(found, value, num_cancer_patients)
        if found is None or not found.has_width:
            reasons[name] = reason
        else:
            intervals[name] = found
    return intervals, reasons


def find_exact_interval(share: float, num_independent: int) -> Interval:
    """Returns Clopper's and Pearson's 95 % interval (1934) of a share of so many independent observations.

    Args:
        share: observed, 0 to 1.
        num_independent: what the observations amount to; patients, where several are of one.
    """
    found, missed = share * num_independent, (1 - share) * num_independent
    low = 0.0 if found == 0 else float(beta.ppf(TAIL, found, missed + 1))
    high = 1.0 if missed == 0 else float(beta.ppf(1 - TAIL, found + 1, missed))
    return Interval(low, high, 0)


def find_share_interval(share: float, num_independent: int) -> Interval:
    """Returns a 95 % interval of the share of cancers that are found among the few highest.

    It is the mid-P one of a share of so many independent observations (Lancaster 1961, "Significance tests in
    discrete distributions", J. Am. Stat. Assoc. 56:223); of 0 or 1 it is the exact one. How many are recalled
    is fixed, so each cancer found leaves less room for another, and the figure varies less than such a share.
    The bootstrap can be too narrow here: drawn twice, the one woman who may be recalled of a fold is two.

    Args:
        share: observed, 0 to 1.
        num_independent: women with cancer.
    """
    if share in {0.0, 1.0}:
        return find_exact_interval(share, num_independent)
    found, missed = share * num_independent, (1 - share) * num_independent

    def reach_share(truth: float) -> float:
        at_least, more = betainc(found, missed + 1, truth), betainc(found + 1, missed, truth)
        return float(at_least + more) / 2

    def find_end(tail: float) -> float:
        return float(brentq(lambda truth: reach_share(truth) - tail, 0, 1))

    return Interval(find_end(TAIL), find_end(1 - TAIL), 0)


def _widen_share(found: Interval | None, share: float, num_independent: int) -> Interval | None:
    """Returns an interval that holds its share; one of 0 or 1 reaches as far as the exact one.

    A share of few recalled women jumps, and a draw that doubles the one who is recalled recalls nobody.
    """
    if found and found.has_width and share not in {0.0, 1.0}:
        return Interval(min(found.low, share), max(found.high, share), found.num_undefined)
    exact = find_exact_interval(share, num_independent)
    if found is None:
        return exact
    return Interval(min(found.low, exact.low), max(found.high, exact.high), found.num_undefined)


def _cap(found: Interval, ceiling: float) -> Interval:
    return Interval(min(found.low, ceiling), min(found.high, ceiling), found.num_undefined)


def _explain_auc(estimate: AucEstimate) -> str:
    return ONE_PATIENT if estimate.num_independent == 1 else NO_SPREAD


def correct_by_holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values that may each be held against 5 %, however many there are (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return corrected.tolist()
