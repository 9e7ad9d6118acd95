"""How sure an AUC is: the variance that the patients' own parts in it give, without a draw.

A patient's predictions resemble each other, so she counts as one (Obuchowski 1997, "Nonparametric analysis of
clustered ROC curve data", Biometrics 53:567; with one prediction each it is DeLong's variance). Pairs are
made within folds, as in `formulas.auc`. The models are held fixed.

Shape suffixes: N predictions, M patients, K estimates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import chi2, t

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.patient_stats import Floats, Integers

TAIL = 0.025
"""Of each side of a 95 % interval."""


@dataclass(frozen=True)
class AucEstimate:
    """An AUC over the pairs within folds, and what each patient adds to it.

    Attributes:
        auc: None where no fold has both classes.
        of_cancers: how far each patient's cancers move it from its mean, [M].
        of_negatives: the same of her negatives, [M].
        num_cancer_patients: patients with a cancer that is in a pair.
        num_negative_patients: patients with a negative that is in a pair.
    """

    auc: float | None
    of_cancers: Floats = field(compare=False)
    of_negatives: Floats = field(compare=False)
    num_cancer_patients: int
    num_negative_patients: int

    @property
    def num_independent(self) -> int:
        """Patients of the rarer class: as many as there are independent observations of it."""
        return min(self.num_cancer_patients, self.num_negative_patients)


def estimate_auc(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    *,
    num_patients: int,
    folds: ArrayLike,
    weights: ArrayLike | None = None,
) -> AucEstimate:
    """Computes an AUC within folds and each patient's part in it.

    Args:
        labels: 0 or 1, of each prediction.
        probabilities: of each prediction, or any score.
        patients: number of each prediction's patient.
        num_patients: of whom some may have no prediction here.
        folds: of each prediction.
        weights: of each prediction; a pair counts as the product of its two. By default all are 1.
    """
    columns = (labels, probabilities, patients, folds)
    labels_N, scores_N, patients_N, folds_N = map(np.asarray, columns)
    weights_N = np.ones(len(labels_N)) if weights is None else np.asarray(weights, np.float64)
    order_N = np.lexsort((weights_N, labels_N, scores_N, patients_N, folds_N))  # floats add up in one order
    labels_N, scores_N, patients_N = labels_N[order_N], scores_N[order_N], patients_N[order_N]
    folds_N, weights_N = folds_N[order_N], weights_N[order_N]
    won_N, pairs_N = np.zeros((2, len(labels_N)))
    for fold in np.unique(folds_N):
        own = folds_N == fold
        won_N[own], pairs_N[own] = _share_pairs(labels_N[own] == 1, scores_N[own], weights_N[own])
    is_cancer_N, in_pair_N = labels_N == 1, pairs_N > 0
    pairs = pairs_N[is_cancer_N].sum()
    auc = float(won_N[is_cancer_N].sum() / pairs) if pairs else None
    moved_N = (won_N - (auc or 0.0) * pairs_N) / (pairs or 1.0)
    cancers, negatives = in_pair_N & is_cancer_N, in_pair_N & ~is_cancer_N
    return AucEstimate(
        auc,
        np.bincount(patients_N[cancers], moved_N[cancers], num_patients).astype(np.float64),
        np.bincount(patients_N[negatives], moved_N[negatives], num_patients).astype(np.float64),
        len(np.unique(patients_N[cancers])),
        len(np.unique(patients_N[negatives])),
    )


def find_variance(first: AucEstimate, second: AucEstimate | None = None) -> float:
    """Returns an AUC's variance, or that of the difference of two on the same predictions' patients.

    NaN with a single patient of a class, which has no spread.
    """
    of_cancers_M, of_negatives_M = first.of_cancers, first.of_negatives
    if second is not None:
        of_cancers_M, of_negatives_M = of_cancers_M - second.of_cancers, of_negatives_M - second.of_negatives
    if first.num_independent < 2:
        return float("nan")
    both = max(first.num_cancer_patients, first.num_negative_patients)
    variance = (  # Obuchowski 1997, equations 4 to 6
        _widen(first.num_cancer_patients) * (of_cancers_M**2).sum()
        + _widen(first.num_negative_patients) * (of_negatives_M**2).sum()
        + 2 * _widen(both) * (of_cancers_M * of_negatives_M).sum()
    )
    return max(0.0, float(variance))


def find_auc_interval(estimate: AucEstimate) -> Interval | None:
    """Returns a 95 % interval on the logit; None where nothing tells how wide it is.

    It reaches as far as that of a perfect ranking at least, whose limit is exact: a ranking with that AUC
    would put all n independent cancers above all negatives with a probability of at most AUC to the nth.
    """
    auc, number = estimate.auc, estimate.num_independent
    if auc is None:
        return None
    bound = TAIL ** (1 / number)
    if auc in {0.0, 1.0}:
        return Interval(bound, 1.0, 0) if auc else Interval(0.0, 1 - bound, 0)
    variance = find_variance(estimate)
    if np.isnan(variance) or variance == 0:
        return None
    reach = t.ppf(1 - TAIL, number - 1) * np.sqrt(variance) / (auc * (1 - auc))
    low, high = expit(logit(auc) + np.array([-reach, reach]))
    return Interval(min(float(low), bound), max(float(high), 1 - bound), 0)


def find_difference(first: AucEstimate, second: AucEstimate) -> tuple[Interval | None, float | None]:
    """Returns the 95 % interval of the first AUC minus the second, and the p value of their being equal.

    The AUCs are of the same patients. The p value is two-sided; neither is known where nothing varies.
    """
    if first.auc is None or second.auc is None:
        return None, None
    variance = find_variance(first, second)
    if np.isnan(variance) or variance == 0:
        return None, None
    difference, deviation, freedom = first.auc - second.auc, np.sqrt(variance), first.num_independent - 1
    reach = float(t.ppf(1 - TAIL, freedom) * deviation)
    p = float(2 * t.sf(abs(difference) / deviation, freedom))
    return Interval(difference - reach, difference + reach, 0), p


def find_p_of_guessing(estimate: AucEstimate) -> float:
    """Returns the one-sided p value of an AUC of 0.5 or less; 1 where nothing tells how sure it is.

    Of a perfect ranking it is exact: guessing puts all n independent cancers on top with 0.5 to the nth.
    """
    auc, number = estimate.auc, estimate.num_independent
    if auc == 1.0:
        return 0.5**number
    variance = find_variance(estimate)
    if not auc or np.isnan(variance) or variance == 0:
        return 1.0
    return float(t.sf(logit(auc) * auc * (1 - auc) / np.sqrt(variance), number - 1))


def find_p_of_heterogeneity(estimates: Sequence[AucEstimate]) -> float | None:
    """Returns the p value of all AUCs being equal: Wald's test on the logit; None for fewer than two.

    Sets may share patients, such as left and right breasts: their covariance is taken into account.
    """
    known = [each for each in estimates if each.auc is not None and 0 < each.auc < 1]
    known = [each for each in known if find_variance(each) > 0]
    if len(known) < 2:
        return None
    aucs_K = np.array([each.auc for each in known], np.float64)
    parts_KM = np.stack([each.of_cancers + each.of_negatives for each in known])
    covariance_KK = parts_KM @ parts_KM.T
    np.fill_diagonal(covariance_KK, [find_variance(each) for each in known])
    slopes_K = aucs_K * (1 - aucs_K)
    contrasts = np.diff(np.eye(len(known)), axis=0)
    differences = contrasts @ logit(aucs_K)
    spread = contrasts @ (covariance_KK / np.outer(slopes_K, slopes_K)) @ contrasts.T
    statistic = differences @ np.linalg.pinv(spread) @ differences
    return float(chi2.sf(statistic, len(known) - 1))


def _share_pairs(is_cancer_N: ArrayLike, scores_N: Floats, weights_N: Floats) -> tuple[Floats, Floats]:
    """Returns the weight of the pairs that each prediction of one ranking wins for the model, and of all."""
    cancer_N = np.asarray(is_cancer_N, bool)
    below_N, level_N, all_N = _weigh_others(scores_N, scores_N[~cancer_N], weights_N[~cancer_N])
    above_N, also_level_N, every_N = _weigh_others(-scores_N, -scores_N[cancer_N], weights_N[cancer_N])
    won_N = np.where(cancer_N, below_N + level_N / 2, above_N + also_level_N / 2)
    return weights_N * won_N, weights_N * np.where(cancer_N, all_N, every_N)


def _weigh_others(scores_N: Floats, others: Floats, weights: Floats) -> tuple[Floats, Floats, float]:
    """Returns the weight of the others below each score and level with it, and of all of them."""
    order: Integers = np.lexsort((weights, others))
    cumulative = np.append(0.0, np.cumsum(weights[order]))
    below_N = cumulative[np.searchsorted(others[order], scores_N, side="left")]
    through_N = cumulative[np.searchsorted(others[order], scores_N, side="right")]
    return below_N, through_N - below_N, float(cumulative[-1])


def _widen(number: int) -> float:
    return number / (number - 1)
