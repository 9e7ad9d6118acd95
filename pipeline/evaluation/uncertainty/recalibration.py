"""How far probabilities agree with the truth: slope, intercepts, observed over expected, scaled Brier score.

Each of these solves equations that are sums over predictions, so what a patient's predictions add to the sums
tells how sure it is; they resemble each other and count as one (Liang and Zeger 1986, Biometrika 73:13).
Nothing is drawn, and the models are held fixed.

Shape suffixes: N predictions, M patients, K figures.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.formulas import to_logits
from pipeline.evaluation.patient_stats import ROUNDING, Floats
from pipeline.evaluation.uncertainty.auc_variance import TAIL

WEAKEST_PENALTY = 1e6  # scikit-learn's C: a slope stays defined where all probabilities are equal
LARGEST_SHIFT = 100.0
"""Of the logits; those of clipped probabilities are within 17 of 0."""
RECALIBRATION_FIGURES = [
    *("slope", "intercept", "intercept_of_slope_1", "observed_over_expected"),
    *("brier_of_prevalence", "brier_scaled"),
]
ONE_CLASS = "all have cancer, or none has"
ONE_PROBABILITY = "all probabilities are equal"
SEPARATED = "the probabilities separate the classes, so that no slope is the best"
ONE_PATIENT = "only one patient has, or lacks, cancer, and one alone has no spread"
WITH_BRIER = "it is that of the share of cancers here, to compare with"


@dataclass(frozen=True)
class Recalibration:
    """What probabilities of one set are worth, beside what they seem to promise.

    Attributes:
        figures: by name of `RECALIBRATION_FIGURES`; None is undefined. `slope` and `intercept` are those of
            the line through the logits that fits the labels best, 1 and 0 where the probabilities are right;
            `intercept_of_slope_1` is what the logits lack so that as many cancers are expected as there are.
            `brier_of_prevalence` is the Brier score p (1 - p) of answering p, the share of cancers, for all,
            and `brier_scaled` by which share of that the score is lower: 0 tells nothing, 1 all.
        intervals: of 95 %, by Student's t of the rarer class's patients.
        undefined: why a figure is None.
        no_interval: why a defined figure has no interval.
    """

    figures: dict[str, float | None]
    intervals: dict[str, Interval] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    no_interval: dict[str, str] = field(default_factory=dict)


def recalibrate(labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike) -> Recalibration:
    """Computes all figures and their intervals.

    Args:
        labels: 0 or 1, of each prediction.
        probabilities: 0 to 1.
        patients: number of each prediction's patient, from 0.
    """
    columns = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64), np.asarray(patients)
    order_N = np.lexsort(columns)  # floats add up in one order
    labels_N, probabilities_N, patients_N = (column[order_N] for column in columns)
    found: dict[str, tuple[float, Floats]] = {}
    undefined = dict.fromkeys(RECALIBRATION_FIGURES, ONE_CLASS)
    if len(np.unique(labels_N)) == 2:
        logits_N = to_logits(probabilities_N)
        found = _compare_sums(labels_N, logits_N) | _score(labels_N, probabilities_N)
        obstacle = _find_obstacle(labels_N, logits_N)
        if not obstacle:
            found |= _find_line(labels_N, logits_N)
        undefined = {name: obstacle for name in RECALIBRATION_FIGURES if name not in found}
    rarer = min(len(np.unique(patients_N[labels_N == label])) for label in (0, 1))
    intervals, no_interval = _find_intervals(found, patients_N, rarer)
    figures = {name: found[name][0] if name in found else None for name in RECALIBRATION_FIGURES}
    return Recalibration(figures, intervals, undefined, no_interval)


def fit_line(targets_N: Floats, logits_N: Floats) -> tuple[float, float]:
    """Returns slope and intercept of the line through logits whose sigmoid fits targets from 0 to 1 best.

    The slope is 0 where all logits are equal.
    """
    centre, spread = float(logits_N.mean()), float(logits_N.std())
    if spread <= ROUNDING:  # all are equal, and no slope is better than another
        return 0.0, float(logit(targets_N.mean()))
    features = ((logits_N - centre) / spread)[:, None]
    model = LogisticRegression(C=WEAKEST_PENALTY, solver="newton-cholesky", tol=1e-10)
    model.fit(  # a target of 0.98 is 0.98 of a cancer and 0.02 of none
        np.concatenate([features, features]),
        np.repeat([1, 0], len(targets_N)),
        sample_weight=np.concatenate([targets_N, 1 - targets_N]),
    )
    slope = float(model.coef_[0, 0]) / spread
    return slope, float(model.intercept_[0]) - slope * centre


def _find_obstacle(labels_N: Floats, logits_N: Floats) -> str:
    """Returns why no line through the logits fits best; empty where one does."""
    cancers, negatives = logits_N[labels_N == 1], logits_N[labels_N == 0]
    if logits_N.min() == logits_N.max():
        return ONE_PROBABILITY
    is_separated = cancers.min() >= negatives.max() or negatives.min() >= cancers.max()
    return SEPARATED if is_separated else ""


def _find_line(labels_N: Floats, logits_N: Floats) -> dict[str, tuple[float, Floats]]:
    """Returns slope and intercept, each with how far every prediction moves it, [N]."""
    slope, intercept = fit_line(labels_N, logits_N)
    fitted_N = expit(slope * logits_N + intercept)
    features_2N = np.stack([logits_N, np.ones_like(logits_N)])
    information_22 = (features_2N * (fitted_N * (1 - fitted_N))) @ features_2N.T
    moved_2N = np.linalg.solve(information_22, features_2N * (labels_N - fitted_N))
    return {"slope": (slope, moved_2N[0]), "intercept": (intercept, moved_2N[1])}


def _compare_sums(labels_N: Floats, logits_N: Floats) -> dict[str, tuple[float, Floats]]:
    """Returns what compares the numbers of observed and of expected cancers, the ratio on the logarithm."""
    observed, expected_N = labels_N.sum(), expit(logits_N)

    def count_too_many(shift: float) -> float:
        return float(expit(logits_N + shift).sum() - observed)

    shift = float(brentq(count_too_many, -LARGEST_SHIFT, LARGEST_SHIFT, xtol=1e-12))
    shifted_N = expit(logits_N + shift)
    ratio = float(observed / expected_N.sum())
    return {
        "intercept_of_slope_1": (shift, (labels_N - shifted_N) / (shifted_N * (1 - shifted_N)).sum()),
        "observed_over_expected": (ratio, labels_N / observed - expected_N / expected_N.sum()),
    }


def _score(labels_N: Floats, probabilities_N: Floats) -> dict[str, tuple[float, Floats]]:
    """Returns the Brier score of the prevalence, and the scaled one."""
    errors_N, number = (probabilities_N - labels_N) ** 2, len(labels_N)
    score, prevalence = float(errors_N.mean()), float(labels_N.mean())
    null = prevalence * (1 - prevalence)
    moved_N = (errors_N - score) / number
    null_moved_N = (1 - 2 * prevalence) * (labels_N - prevalence) / number
    return {
        "brier_of_prevalence": (null, null_moved_N),
        "brier_scaled": (1 - score / null, score * null_moved_N / null**2 - moved_N / null),
    }


def _find_intervals(
    found: dict[str, tuple[float, Floats]], patients_N: ArrayLike, num_independent: int
) -> tuple[dict[str, Interval], dict[str, str]]:
    intervals, no_interval = {}, {}
    for name, (value, moved_N) in found.items():
        if name == "brier_of_prevalence":
            no_interval[name] = WITH_BRIER
        elif num_independent < 2:
            no_interval[name] = ONE_PATIENT
        else:
            moved_M = np.bincount(np.asarray(patients_N), weights=moved_N)
            widened = num_independent / (num_independent - 1)
            deviation = float(np.sqrt(widened * (moved_M**2).sum()))
            reach = float(t.ppf(1 - TAIL, num_independent - 1)) * deviation
            if name == "observed_over_expected":
                intervals[name] = Interval(value * float(np.exp(-reach)), value * float(np.exp(reach)), 0)
            else:
                intervals[name] = Interval(value - reach, value + reach, 0)
    return intervals, no_interval
