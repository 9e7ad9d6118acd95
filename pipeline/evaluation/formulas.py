"""The formulas of the figures of merit, on sums over the predictions.

Each takes the sums of R weightings and returns a figure for each, [R]; NaN is undefined.

What ranks predictions ranks within folds: the probabilities of different folds are of different models, and
comparing them misjudges all (Parker, Guenter, Bedo 2007, doi:10.1186/1471-2105-8-326). Pairs are made within
a fold, the highest are taken of each fold, and counts are summed over the folds. Average precision alone
needs one ranking, and gets it by bringing the folds onto one scale.

Shape suffixes: T thresholds, R weightings, F folds.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

from pipeline.evaluation.patient_stats import ROUNDING, SMALLEST_PROBABILITY, Floats, Totals

LARGEST_FALSE_POSITIVE_RATE = 0.1
"""Of the partial AUC."""


def clip_probabilities(probabilities: Floats) -> Floats:
    """Returns probabilities so far from 0 and 1 that their logits and logarithms are finite."""
    return np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)


def to_logits(probabilities: ArrayLike) -> Floats:
    """Returns log-odds; those of 0 and of 1 are large and finite."""
    return np.asarray(logit(clip_probabilities(np.asarray(probabilities, np.float64))))


def f1(found: Floats, recalled: Floats, num_cancers: Floats | float) -> Floats:
    """F1 of so many calls, of which so many found one of the cancers; 0 where there is neither."""
    both = np.asarray(recalled + num_cancers)
    return 2 * found / np.where(both == 0, 1, both)


def pf1(totals: Totals) -> Floats:
    """The competition's pF1; equals F1 where probabilities are 0 or 1.

    With cP = ctp / (ctp + cfp) and cR = ctp / positives, its 2 cP cR / (cP + cR) is
    2 ctp / (ctp + cfp + positives), and 0 where ctp is 0, also where every probability is: the official code
    then compares NaN with 0 and returns 0. Without a cancer it divides two Python integers, and fails.
    """
    ctp, ctp_and_cfp = totals.scalars["probability_of_cancers"], totals.scalars["probability"]
    return np.where(totals.num_cancers > 0, f1(ctp, ctp_and_cfp, totals.num_cancers), np.nan)


def f1_by_threshold(totals: Totals) -> Floats:
    """F1 at each threshold, [T, R]; 0 where there is no cancer to find."""
    return f1(totals.found, totals.found + totals.negatives_through, totals.num_cancers)


def best_f1(totals: Totals, best: int | None) -> Floats:
    """F1 at the threshold with that number, whatever threshold the weighting itself would choose."""
    if best is None:
        return np.full_like(totals.num_cancers, np.nan)
    return np.where(totals.num_cancers > 0, f1_by_threshold(totals)[best], np.nan)


def best_thresholds(totals: Totals) -> Floats:
    """The threshold of the largest F1, the highest of equally good ones; always a cancer's probability."""
    if not len(totals.thresholds):
        return np.full_like(totals.num_cancers, np.nan)
    best_R = totals.thresholds[f1_by_threshold(totals).argmax(axis=0)]
    return np.where(totals.num_cancers > 0, best_R, np.nan)


def find_best(totals: Totals) -> int | None:
    """The number of the first weighting's best threshold; None without a cancer."""
    return int(f1_by_threshold(totals)[:, 0].argmax()) if totals.num_cancers[0] else None


def sensitivity_at_specificity(totals: Totals, rate: float) -> Floats:
    """The share of cancers found where at most that share of negatives is recalled, of each fold its part."""
    found_R, known_R = np.zeros((2, len(totals.num_cancers)))
    allowed_FR = share_out(np.array([fold.num_negatives for fold in totals.by_fold]), rate)
    for fold, allowed_R in zip(totals.by_fold, allowed_FR, strict=True):
        is_known_R = fold.num_negatives > 0  # without negatives there is no specificity
        found_R += is_known_R * _count_found(fold, fold.negatives_through, allowed_R)
        known_R += is_known_R * fold.num_cancers
    return _divide(found_R, known_R, known_R > 0)


def sensitivity_at_recall_rate(totals: Totals, rate: float) -> Floats:
    """The share of cancers found where at most that share of the exams is recalled, of each fold its part."""
    found_R = np.zeros_like(totals.num_cancers)
    allowed_FR = share_out(np.array([fold.num_exams for fold in totals.by_fold]), rate)
    for fold, allowed_R in zip(totals.by_fold, allowed_FR, strict=True):
        found_R += _count_found(fold, fold.exams_through, allowed_R)
    return _divide(found_R, totals.num_cancers, totals.num_cancers > 0)


def share_out(counts_FR: Floats, rate: float) -> Floats:
    """Returns how many of each fold's exams or negatives may be recalled, [F, R]: together that share of all.

    A fold's part is its own share rounded down, and one more where the remainder is among the largest (of
    equal ones, the earlier fold's): rounding down alone would recall nobody of many small folds.
    """
    share_FR = rate * counts_FR
    parts_FR = np.floor(share_FR + ROUNDING)
    remainder_FR = np.round(share_FR - parts_FR, 9)
    rank_FR = np.argsort(np.argsort(-remainder_FR, axis=0, kind="stable"), axis=0)
    left_R = count_recalls(counts_FR.sum(axis=0), rate) - parts_FR.sum(axis=0)
    return np.asarray(parts_FR + (rank_FR < left_R))


def count_recalls(count: ArrayLike, rate: float) -> Floats:
    """Returns the most that are no more than that share of so many."""
    return np.floor(rate * np.asarray(count, np.float64) + ROUNDING)


def transferred_f1(totals: Totals) -> Floats:
    """F1 of those who are recalled; 0 if nobody is, undefined where that is not known."""
    f1_R = f1(totals.scalars["found"], totals.scalars["recalled"], totals.num_cancers)
    return np.where(totals.num_cancers > 0, f1_R, np.nan)


def auc(totals: Totals) -> Floats:
    """The share of the pairs within folds in which the cancer is higher, ties counting one half."""
    won_R = np.sum([_count_won(fold) for fold in totals.by_fold], axis=0)
    pairs_R = _count_pairs(totals)
    return _divide(won_R, pairs_R, pairs_R > 0)


def pooled_auc(totals: Totals) -> Floats:
    """The area under the ROC curve of all folds' predictions in one ranking."""
    pairs_R = totals.num_cancers * totals.num_negatives
    return _divide(_count_won(totals), pairs_R, pairs_R > 0)


def partial_auc(totals: Totals) -> Floats:
    """The area over specificity 0.9 to 1, standardised: McClish 1989, doi:10.1177/0272989X8900900307.

    The mean over the folds, each counting by its pairs.
    """
    pairs_R = _count_pairs(totals)
    parts = [_count_pairs(fold) * np.nan_to_num(_partial_auc_of_one_fold(fold)) for fold in totals.by_fold]
    return _divide(np.sum(parts, axis=0), pairs_R, pairs_R > 0)


def _partial_auc_of_one_fold(totals: Totals) -> Floats:
    """Returns it for predictions of one ranking.

    Each cancer lifts the curve by the same height, along the stretch of its ties: from the false positive
    rate `left` to `right`. Its part of the area is what lies between there and the limit.
    """
    limit = LARGEST_FALSE_POSITIVE_RATE
    num_negatives_R = np.maximum(totals.num_negatives, 1)
    left_TR, right_TR = (
        totals.negatives_above / num_negatives_R,
        totals.negatives_through / num_negatives_R,
    )
    from_left_TR, from_right_TR = np.maximum(limit - left_TR, 0), np.maximum(limit - right_TR, 0)
    width_TR = right_TR - left_TR
    sloped_TR = (from_left_TR**2 - from_right_TR**2) / (2 * np.where(width_TR > 0, width_TR, 1))
    part_TR = np.where(width_TR > 0, sloped_TR, from_left_TR)
    is_defined = (totals.num_cancers > 0) & (totals.num_negatives > 0)
    area_R = _divide((totals.cancers * part_TR).sum(axis=0), totals.num_cancers, is_defined)
    guessing, perfect = limit**2 / 2, limit
    return (1 + (area_R - guessing) / (perfect - guessing)) / 2


def average_precision(totals: Totals) -> Floats:
    """The mean precision over the cancers, in one ranking of all folds' standardised scores.

    A mean of the folds' own average precisions is too high where a fold has few cancers. So is one ranking by
    the share of the fold's negatives that are higher, which cannot tell a fold's highest apart. What
    standardises is learnt from all predictions, and held fixed in each weighting.
    """
    ranking = totals.standardized or totals
    precision_TR = ranking.found / np.maximum(ranking.found + ranking.negatives_through, 1)
    precisions_R = (ranking.cancers * precision_TR).sum(axis=0)
    return _divide(precisions_R, ranking.num_cancers, ranking.num_cancers > 0)


def brier(totals: Totals) -> Floats:
    """The mean squared error of the probabilities."""
    count_R = totals.scalars["predictions"]
    return _divide(totals.scalars["squared_error"], count_R, count_R > 0)


def _count_found(totals: Totals, recalled_TR: Floats, most_R: Floats) -> Floats:
    """Counts the cancers found by the lowest threshold that recalls no more than allowed."""
    return (totals.cancers * (recalled_TR <= most_R + ROUNDING)).sum(axis=0)


def _count_won(totals: Totals) -> Floats:
    """Counts the pairs of one ranking in which the cancer is higher, ties as one half."""
    level_TR = (totals.negatives_above + totals.negatives_through) / 2
    return (totals.cancers * (totals.num_negatives - level_TR)).sum(axis=0)


def _count_pairs(totals: Totals) -> Floats:
    """Counts the pairs of a cancer and a negative of the same fold."""
    return np.sum([fold.num_cancers * fold.num_negatives for fold in totals.by_fold], axis=0)


def _divide(numerator: Floats, denominator: Floats, is_defined: NDArray[np.bool_]) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=is_defined)
