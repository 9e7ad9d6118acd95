"""Figures of merit of labels and probabilities: pF1, areas, sensitivities, Brier score, thresholds.

Everything here takes 1-D arrays, in any order. A figure
that its formula leaves undefined is None and has its reason beside it. Each formula is written once, for R
weightings of the patients at a time; the plain figure is the one where each counts once.

Shape suffixes: N predictions, T thresholds, R weightings.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluation import formulas
from pipeline.evaluation.patient_stats import Floats, PatientSums, Totals, check_predictions

Unit = Literal["breast", "image"]
"""What a prediction is of."""
SPECIFICITIES = {90: 0.10, 95: 0.05, 98: 0.02}
"""Percent, and the share of negatives that may be recalled."""
RECALL_RATES = {2: 0.02, 5: 0.05, 10: 0.10}
"""Percent, and the share of exams that may be recalled."""

NO_PREDICTION = "there is no prediction"
NO_CANCER = {unit: f"there is no {unit} with cancer" for unit in ("breast", "image")}
ONLY_CANCER = {unit: f"there is no {unit} without cancer" for unit in ("breast", "image")}
NO_PAIR = {unit: f"no fold has {unit}s with and without cancer" for unit in ("breast", "image")}
NO_TRANSFER = "the other folds have no threshold to give"
SEVERAL_THRESHOLDS = "every fold has its own"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The figures of one set of predictions, of breasts or of images; None is undefined.

    Attributes:
        pf1: the competition's probabilistic F1 of the probabilities as they are.
        pf1_best: F1 of `probability >= threshold_best`, the largest that any threshold reaches on this set.
        pf1_transferred: F1 where each fold is recalled by the best threshold of the other folds.
        auc: area under the ROC curve, over the pairs of predictions within folds.
        auc_pooled: the same over all pairs, as if all folds' models were one.
        partial_auc: over specificity 0.9 to 1, standardised after McClish: 0.5 is guessing, 1 perfect.
        average_precision: mean precision over the cancers, each at the threshold that just finds it, where
            the logits of each fold's negatives are brought to mean 0 and deviation 1.
        sensitivity_at_specificity_90: largest share of cancers found with specificity 90 % or more over all
            folds, each of which recalls its part of the negatives.
        sensitivity_at_recall_rate_2: largest share of cancers found by their own probability with at most 2 %
            of the exams recalled, of each fold its part. An exam is recalled by the highest of its
            probabilities; where no ids tell a woman's exams apart, she counts as one.
        brier: mean squared difference between probability and label.
        undefined: the reason for each figure that is None.
    """

    pf1: float | None
    pf1_best: float | None
    threshold_best: float | None
    pf1_transferred: float | None
    threshold_transferred: float | None
    auc: float | None
    auc_pooled: float | None
    partial_auc: float | None
    average_precision: float | None
    sensitivity_at_specificity_90: float | None
    sensitivity_at_specificity_95: float | None
    sensitivity_at_specificity_98: float | None
    sensitivity_at_recall_rate_2: float | None
    sensitivity_at_recall_rate_5: float | None
    sensitivity_at_recall_rate_10: float | None
    brier: float | None
    undefined: dict[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float | None]:
        """All figures by name, in order."""
        return {name: getattr(self, name) for name in FIGURES}


FIGURES = [column.name for column in fields(Metrics) if column.name != "undefined"]
LOWER_IS_BETTER = {"brier"}
NOT_RANKED = {"threshold_best", "threshold_transferred"}
"""Figures of which neither more nor less is better."""


@dataclass(frozen=True)
class OperatingPoints:
    """What recalling every breast with `probability >= threshold` finds, for falling thresholds."""

    thresholds: Floats
    true_positives: Floats
    false_positives: Floats
    num_cancers: float

    @property
    def f1(self) -> Floats:
        """F1 of each threshold; 0 where there is no cancer to find."""
        recalled = self.true_positives + self.false_positives
        return formulas.f1(self.true_positives, recalled, self.num_cancers)


def measure(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    patients: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
    folds: ArrayLike | None = None,
    exams: ArrayLike | None = None,
    unit: Unit = "breast",
) -> Metrics:
    """Computes all figures of a set of predictions.

    Args:
        labels: 0 or 1, of each breast or of each image.
        probabilities: likewise.
        patients: ids; without them each prediction is a patient of her own.
        thresholds: the transferred threshold of each prediction, NaN where there is none.
        folds: of each prediction; without them all are of one model.
        exams: number of each prediction's exam; without them a patient has one.
        unit: what a prediction is of, for the reasons.
    """
    labels_N, probabilities_N = check_predictions(labels, probabilities)
    ids = np.arange(len(labels_N)) if patients is None else np.asarray(patients)
    unique, patients_N = np.unique(ids, return_inverse=True)
    thresholds_N = None if thresholds is None else np.asarray(thresholds, np.float64)
    sums = PatientSums(
        labels_N,
        probabilities_N,
        patients_N,
        num_patients=len(unique),
        recalled=apply_thresholds(probabilities_N, thresholds_N),
        folds=folds,
        exams=exams,
    )
    return measure_sums(sums, thresholds_N, unit=unit)


def apply_thresholds(probabilities_N: Floats, thresholds_N: Floats | None) -> NDArray[np.bool_] | None:
    """Returns which are recalled by the transferred thresholds; None if one is not known."""
    if thresholds_N is None or np.isnan(thresholds_N).any():
        return None
    return probabilities_N >= thresholds_N


def measure_sums(sums: PatientSums, thresholds_N: Floats | None = None, *, unit: Unit = "breast") -> Metrics:
    """Computes all figures of predictions that were added up by patient."""
    totals = sums.add_up()
    figures = compute_figures(totals, best=formulas.find_best(totals))
    values = {name: figure_R[0] for name, figure_R in figures.items()}
    distinct = np.unique([] if thresholds_N is None else thresholds_N)
    values["threshold_transferred"] = distinct[0] if len(distinct) == 1 else np.nan
    undefined = {name: _explain(name, totals, unit) for name in FIGURES if np.isnan(values[name])}
    defined = {name: None if name in undefined else float(values[name]) for name in FIGURES}
    return Metrics(**defined, undefined=undefined)


def compute_figures(totals: Totals, *, best: int | None) -> dict[str, Floats]:
    """Computes every figure but `threshold_transferred` for each weighting, [R]; NaN is undefined.

    Args:
        totals: sums of the predictions.
        best: number of the threshold that `pf1_best` is of.
    """
    figures = {
        "pf1": formulas.pf1(totals),
        "pf1_best": formulas.best_f1(totals, best),
        "threshold_best": formulas.best_thresholds(totals),
        "pf1_transferred": formulas.transferred_f1(totals),
        "auc": formulas.auc(totals),
        "auc_pooled": formulas.pooled_auc(totals),
        "partial_auc": formulas.partial_auc(totals),
        "average_precision": formulas.average_precision(totals),
        "brier": formulas.brier(totals),
    }
    for percent, rate in SPECIFICITIES.items():
        name = f"sensitivity_at_specificity_{percent}"
        figures[name] = formulas.sensitivity_at_specificity(totals, rate)
    for percent, rate in RECALL_RATES.items():
        name = f"sensitivity_at_recall_rate_{percent}"
        figures[name] = formulas.sensitivity_at_recall_rate(totals, rate)
    return figures


def all_ones_pf1(prevalence: float) -> float:
    """The pF1 of answering 1 for every breast: the score that a useful model must pass."""
    return 2 * prevalence / (1 + prevalence)


def largest_sensitivity(labels: ArrayLike, exams: ArrayLike, folds: ArrayLike, rate: float) -> float:
    """The largest sensitivity that any model could have with that share of the exams recalled.

    Less than 1 where some fold has more exams with cancer than are recalled of it.
    """
    labels_N, exams_N, folds_N = np.asarray(labels, np.float64), np.asarray(exams), np.asarray(folds)
    cancers = []  # of each fold's exams, falling
    for fold in np.unique(folds_N):
        ids_N = np.unique(exams_N[folds_N == fold], return_inverse=True)[1]
        cancers.append(np.sort(np.bincount(ids_N, weights=labels_N[folds_N == fold]))[::-1])
    allowed_F = formulas.share_out(np.array([[len(own)] for own in cancers], np.float64), rate)[:, 0]
    found = [own[: int(allowed)].sum() for own, allowed in zip(cancers, allowed_F, strict=True)]
    return float(np.sum(found) / labels_N.sum())


def find_operating_points(labels: ArrayLike, probabilities: ArrayLike) -> OperatingPoints:
    """Counts what each distinct threshold finds: the points of the ROC, precision-recall and F1 curves."""
    labels_N, probabilities_N = check_predictions(labels, probabilities)
    order_N = np.argsort(-probabilities_N, kind="stable")
    sorted_N = probabilities_N[order_N]
    is_last_N = np.append(sorted_N[1:] != sorted_N[:-1], True)[: len(sorted_N)]  # of equal probabilities
    true_positives = np.cumsum(labels_N[order_N])[is_last_N]
    recalled = np.flatnonzero(is_last_N) + 1.0
    return OperatingPoints(
        sorted_N[is_last_N], true_positives, recalled - true_positives, float(labels_N.sum())
    )


def _explain(name: str, totals: Totals, unit: Unit) -> str:
    if not totals.scalars["predictions"][0]:
        return NO_PREDICTION
    if name == "threshold_transferred":
        return NO_TRANSFER if np.isnan(totals.scalars["recalled"][0]) else SEVERAL_THRESHOLDS
    if not totals.num_cancers[0]:
        return NO_CANCER[unit]
    if name == "pf1_transferred":
        return NO_TRANSFER
    return NO_PAIR[unit] if totals.num_negatives[0] else ONLY_CANCER[unit]
