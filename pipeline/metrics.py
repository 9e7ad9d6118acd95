"""Figures of merit of labels and probabilities: pF1, ROC AUC, average precision, the best threshold.

Knows no tables, files, folds or models: everything here takes 1-D arrays and forgets their order. A figure
that its formula leaves undefined is None, and `explain_undefined` says why. Each formula is written once, for
R weightings at a time; the plain figure is the one where all weights are 1.

Shape suffixes: N predictions, P those with cancer, R weightings (of a bootstrap).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NO_CANCER = "there is no breast with cancer"
ONLY_CANCER = "there is no breast without cancer"
ALL_ZERO = "every probability is 0"
FIGURES = ["pf1", "pf1_best", "threshold_best", "auc", "average_precision"]


@dataclass(frozen=True, kw_only=True)
class BreastMetrics:
    """The figures of one set of breasts, such as a fold; None is undefined.

    Attributes:
        num_images: images behind the breasts.
        pf1: pF1 of the probabilities as they are.
        pf1_best: F1 of `probability >= threshold_best`, the largest that any threshold reaches on this set.
        undefined: the reason for each figure that is None.
    """

    num_images: int
    num_breasts: int
    num_cancers: int
    pf1: float | None
    pf1_best: float | None
    threshold_best: float | None
    auc: float | None
    average_precision: float | None
    undefined: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OperatingPoints:
    """What calling back every breast with `probability >= threshold` finds, for falling thresholds."""

    thresholds: Floats
    true_positives: Floats
    false_positives: Floats
    num_cancers: float

    @property
    def f1(self) -> Floats:
        """F1 of each threshold; 0 where there is no cancer to find."""
        return 2 * self.true_positives / (self.true_positives + self.false_positives + self.num_cancers)


def measure(labels: ArrayLike, probabilities: ArrayLike, *, num_images: int) -> BreastMetrics:
    """Computes all figures of a set of breasts."""
    labels_N, probabilities_N = _checked(labels, probabilities)
    best = best_threshold(labels_N, probabilities_N)
    return BreastMetrics(
        num_images=num_images,
        num_breasts=len(labels_N),
        num_cancers=int(labels_N.sum()),
        pf1=pf1(labels_N, probabilities_N),
        pf1_best=best[1] if best else None,
        threshold_best=best[0] if best else None,
        auc=auc(labels_N, probabilities_N),
        average_precision=average_precision(labels_N, probabilities_N),
        undefined=explain_undefined(labels_N, probabilities_N),
    )


def explain_undefined(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, str]:
    """Returns the reason for each figure that these labels and probabilities leave undefined."""
    labels_N, probabilities_N = _checked(labels, probabilities)
    if not labels_N.any():
        return dict.fromkeys(FIGURES, NO_CANCER)
    reasons = {}
    if labels_N.all():
        reasons["auc"] = ONLY_CANCER
    if not (probabilities_N > 0).any():
        reasons["pf1"] = ALL_ZERO
    return reasons


def pf1(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Probabilistic F1 as the RSNA competition defines it; equals F1 where probabilities are 0 or 1.

    None without a cancer and where every probability is 0: there the official code divides by zero.
    """
    return _defined(weighted_pf1(labels, probabilities, _ones(labels)))


def auc(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Area under the ROC curve; None unless both classes are there."""
    return _defined(weighted_auc(labels, probabilities, _ones(labels)))


def average_precision(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Mean precision over the cancers, each at the threshold that just finds it; None without a cancer."""
    return _defined(weighted_average_precision(labels, probabilities, _ones(labels)))


def best_threshold(labels: ArrayLike, probabilities: ArrayLike) -> tuple[float, float] | None:
    """Finds the threshold that maximises F1 of `probability >= threshold` over all distinct probabilities.

    Returns:
        The threshold, the highest of equally good ones, and its F1; None without a cancer.
    """
    points = find_operating_points(labels, probabilities)
    if not points.num_cancers:
        return None
    best = int(np.argmax(points.f1))
    return float(points.thresholds[best]), float(points.f1[best])


def all_ones_pf1(prevalence: float) -> float:
    """The pF1 of answering 1 for every breast: the score that a useful model must pass."""
    return 2 * prevalence / (1 + prevalence)


def find_operating_points(labels: ArrayLike, probabilities: ArrayLike) -> OperatingPoints:
    """Counts what each distinct threshold finds: the points of the ROC, precision-recall and F1 curves."""
    labels_N, probabilities_N = _checked(labels, probabilities)
    order_N = np.argsort(-probabilities_N, kind="stable")
    sorted_N = probabilities_N[order_N]
    is_last_N = np.append(sorted_N[1:] != sorted_N[:-1], True)[: len(sorted_N)]  # of equal probabilities
    true_positives = np.cumsum(labels_N[order_N])[is_last_N]
    called_back = np.flatnonzero(is_last_N) + 1.0
    return OperatingPoints(
        sorted_N[is_last_N], true_positives, called_back - true_positives, float(labels_N.sum())
    )


def weighted_pf1(labels: ArrayLike, probabilities: ArrayLike, weights_RN: Floats) -> Floats:
    """The pF1 of each row of weights [R]; NaN is undefined.

    With cP = ctp / (ctp + cfp) and cR = ctp / positives, the competition's 2 cP cR / (cP + cR) is
    2 ctp / (ctp + cfp + positives), and 0 where ctp is 0.
    """
    true_positives_R, total_R, positives_R = _add_up(labels, probabilities, weights_RN)
    return _divide(2 * true_positives_R, total_R + positives_R, (positives_R > 0) & (total_R > 0))


def weighted_f1(labels: ArrayLike, answers: ArrayLike, weights_RN: Floats) -> Floats:
    """The F1 of yes-or-no answers for each row of weights [R]; NaN without a cancer, 0 if none is yes."""
    true_positives_R, called_back_R, positives_R = _add_up(labels, answers, weights_RN)
    return _divide(2 * true_positives_R, called_back_R + positives_R, positives_R > 0)


def weighted_auc(labels: ArrayLike, probabilities: ArrayLike, weights_RN: Floats) -> Floats:
    """The ROC AUC of each row of weights [R], ties counting one half; NaN is undefined."""
    ranking = _Ranking(labels, probabilities)
    positives_RP = ranking.positives(weights_RN)
    above_RP, through_RP = ranking.negatives_above(weights_RN)
    num_positives_R = positives_RP.sum(axis=1)
    num_negatives_R = weights_RN.sum(axis=1) - num_positives_R
    below_RP = num_negatives_R[:, None] - (above_RP + through_RP) / 2
    pairs_R = num_positives_R * num_negatives_R
    return _divide((positives_RP * below_RP).sum(axis=1), pairs_R, pairs_R > 0)


def weighted_average_precision(labels: ArrayLike, probabilities: ArrayLike, weights_RN: Floats) -> Floats:
    """The average precision of each row of weights [R]; NaN is undefined."""
    ranking = _Ranking(labels, probabilities)
    positives_RP = ranking.positives(weights_RN)
    _, false_RP = ranking.negatives_above(weights_RN)
    true_RP = ranking.positives_through(positives_RP)
    precision_RP = _divide(true_RP, true_RP + false_RP, positives_RP > 0)
    num_positives_R = positives_RP.sum(axis=1)
    found_R = np.nansum(positives_RP * precision_RP, axis=1)
    return _divide(found_R, num_positives_R, num_positives_R > 0)


class _Ranking:
    """Predictions sorted by falling probability, and where each cancer stands among them.

    Attributes:
        order_N: the sorting; `labels_N` is sorted by it.
        above_P: for each cancer the number of predictions with a higher probability.
        through_P: the same with those of equal probability.
    """

    def __init__(self, labels: ArrayLike, probabilities: ArrayLike) -> None:
        labels_N, probabilities_N = _checked(labels, probabilities)
        self.order_N = np.lexsort((labels_N, -probabilities_N))
        self.labels_N = labels_N[self.order_N]
        falling_N = -probabilities_N[self.order_N]
        falling_P = falling_N[self.labels_N == 1]
        self.above_P = np.searchsorted(falling_N, falling_P, side="left")
        self.through_P = np.searchsorted(falling_N, falling_P, side="right")
        self.positives_through_P = np.searchsorted(falling_P, falling_P, side="right")

    def positives(self, weights_RN: Floats) -> Floats:
        """The weights of the cancers, by falling probability."""
        return weights_RN[:, self.order_N[self.labels_N == 1]]

    def negatives_above(self, weights_RN: Floats) -> tuple[Floats, Floats]:
        """For each cancer the weight of the negatives above it, and of those above or level with it."""
        sums_RN = _running_sums(weights_RN[:, self.order_N] * (1 - self.labels_N))
        return sums_RN[:, self.above_P], sums_RN[:, self.through_P]

    def positives_through(self, positives_RP: Floats) -> Floats:
        """For each cancer the weight of the cancers with its probability or a higher one."""
        return _running_sums(positives_RP)[:, self.positives_through_P]


def _add_up(labels: ArrayLike, probabilities: ArrayLike, weights_RN: Floats) -> tuple[Floats, Floats, Floats]:
    """Weighs the clipped probabilities of the cancers, those of all, and the number of cancers, each [R]."""
    labels_N, probabilities_N = _checked(labels, probabilities)
    order_N = np.lexsort((labels_N, probabilities_N))  # floats add up the same whatever order they came in
    is_cancer_N, weights_RN = labels_N[order_N] == 1, weights_RN[:, order_N]
    weighed_RN = weights_RN * np.clip(probabilities_N[order_N], 0.0, 1.0)
    return (
        weighed_RN[:, is_cancer_N].sum(axis=1),
        weighed_RN.sum(axis=1),
        weights_RN[:, is_cancer_N].sum(axis=1),
    )


def _running_sums(weights_RN: Floats) -> Floats:
    """Column k holds the sum of the first k columns."""
    sums = np.zeros((weights_RN.shape[0], weights_RN.shape[1] + 1))
    np.cumsum(weights_RN, axis=1, out=sums[:, 1:])
    return sums


def _divide(numerator: Floats, denominator: Floats, is_defined: NDArray[np.bool_]) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=is_defined)


def _defined(figure_R: Floats) -> float | None:
    return None if np.isnan(figure_R[0]) else float(figure_R[0])


def _ones(labels: ArrayLike) -> Floats:
    return np.ones((1, np.size(labels)))


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Floats, Floats]:
    """Returns both as float64.

    Raises:
        ValueError: if they differ in length, a label is not 0 or 1, or a probability is NaN.
    """
    labels_N, probabilities_N = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if labels_N.ndim != 1 or labels_N.shape != probabilities_N.shape:
        raise ValueError(
            f"labels {labels_N.shape} and probabilities {probabilities_N.shape} must be 1-D of one length"
        )
    if not np.isin(labels_N, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(probabilities_N).any():
        raise ValueError("probabilities must not be NaN")
    return labels_N, probabilities_N
