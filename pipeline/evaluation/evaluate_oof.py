"""From out-of-fold predictions, or those of an external set, to all that is known of a run."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from data_prep.errors import UserError
from data_prep.rsna.exam_table import number_exams
from pipeline.evaluation.age.age_gain import AgeGain, measure_age
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.audit.flow import Flow, describe_flow
from pipeline.evaluation.audit.shortcuts import ShortcutAudit, audit_shortcuts
from pipeline.evaluation.calibration import Calibration, calibrate
from pipeline.evaluation.decisions.decision_curve import DecisionCurve, draw_up_decisions
from pipeline.evaluation.estimates import (
    AUC_WEIGHTED,
    Estimate,
    estimate_all,
    find_threshold_of_mean,
    transfer_thresholds,
)
from pipeline.evaluation.external.external_set import ExternalSet
from pipeline.evaluation.fold_summary import describe_folds
from pipeline.evaluation.metrics import RECALL_RATES, largest_sensitivity
from pipeline.evaluation.operating_point import OperatingPoint, describe_operating_point
from pipeline.evaluation.slices import describe_breasts, describe_images, explain_missing, list_values
from pipeline.evaluation.threshold_stability import sweep
from pipeline.evaluation.uncertainty.auc_variance import find_p_of_heterogeneity
from pipeline.evaluation.uncertainty.repeats import Repeats

POOLED = ("", "")


@dataclass(frozen=True)
class Slice:
    """The predictions of one kind.

    Attributes:
        kind: such as `site`.
        value: such as `1`.
    """

    kind: str
    value: str
    estimate: Estimate


@dataclass(frozen=True)
class UnitEvaluation:
    """All figures of breasts, or of images.

    Attributes:
        table: the predictions: ids, fold, cancer, probability, and `threshold`, the other folds' best one.
        kinds: what the slices are made of, a text column per kind with the index of `table`.
        folds: by fold number; of an external set, what that fold's model makes of all of it.
        pooled: all folds together; of an external set, their ensemble.
        slices: by kind and value, in the order to show them.
        heterogeneity: by kind, the p value of one AUC for all its values that have cancers enough; None
            where fewer than two have.
        fold_tables: the predictions that the figures of each fold are of.
    """

    table: pd.DataFrame
    kinds: pd.DataFrame
    folds: dict[int, Estimate]
    pooled: Estimate
    slices: list[Slice]
    heterogeneity: dict[str, float | None]
    fold_tables: Mapping[int, pd.DataFrame]


@dataclass(frozen=True)
class Evaluation:
    """What is known of a run once all its folds are trained, or of it on an external set.

    Attributes:
        oof: out-of-fold image predictions, or the ensemble's, sorted by patient and image.
        breasts: the level that counts; a breast's probability is the mean of its images'.
        images: the same figures of single images.
        fold_table: who is in which fold, a row per fold.
        calibration: of breasts.
        stability: F1 of breasts around the best pooled threshold, see `threshold_stability`.
        missing_slices: why kinds of slices are not there.
        audit: what tells the label without a look at a pixel.
        flow: what became of the table's rows.
        age: what the woman's age adds.
        operating_point: what recalling by the transferred thresholds does.
        decisions: whether recalling by risk does more good than recalling all women, or none.
        repeats: the run beside its finished repeats; None where there are none.
        external: what is known of an external set alone; None out of fold.
    """

    oof: pd.DataFrame
    breasts: UnitEvaluation
    images: UnitEvaluation
    fold_table: pd.DataFrame
    calibration: Calibration
    stability: pd.DataFrame
    missing_slices: dict[str, str]
    audit: ShortcutAudit
    flow: Flow
    age: AgeGain
    operating_point: OperatingPoint
    decisions: DecisionCurve
    repeats: Repeats | None = None
    external: ExternalSet | None = None

    @property
    def threshold(self) -> float | None:
        """The best threshold on the pooled predictions of breasts, each of a single model.

        Of an external set it is the one that the run has for the mean of all folds' models.
        """
        if self.external is not None:
            return self.external.rule.threshold_of_mean
        return self.breasts.pooled.metrics.threshold_best

    @property
    def recall_rate(self) -> float | None:
        """The share of breasts that `threshold` recalls; of an external set, the run's own share."""
        if self.external is not None:
            return self.external.rule.recall_rate
        if self.threshold is None:
            return None
        return float((self.breasts.table["probability"] >= self.threshold).mean())

    @property
    def threshold_of_mean(self) -> float | None:
        """The threshold of the mean of all folds' models, for submissions; it stands for `recall_rate`."""
        if self.external is not None:
            return self.external.rule.threshold_of_mean
        rate = self.recall_rate
        return None if rate is None else find_threshold_of_mean(self.breasts.table, rate)

    @property
    def lead(self) -> tuple[str, Estimate]:
        """The figure that stands first, and what it is of: breasts, or images if counting tells."""
        if self.audit.counting_tells:
            return AUC_WEIGHTED, self.images.pooled
        return "auc", self.breasts.pooled

    @property
    def ceilings(self) -> dict[int, float]:
        """The largest sensitivity per breast that any model could have at each recall rate, in per cent."""
        breasts = self.breasts.table
        if not breasts["cancer"].any():
            return {}
        return {
            percent: largest_sensitivity(breasts["cancer"], number_exams(breasts), breasts["fold"], rate)
            for percent, rate in RECALL_RATES.items()
        }


def evaluate_oof(
    oof: pd.DataFrame,
    files: pd.DataFrame | None = None,
    flow: Flow | None = None,
    *,
    no_cache: str = "there is no cache",
) -> Evaluation:
    """Computes everything from out-of-fold image predictions, as `collect_oof` gives them.

    Args:
        oof: one row per image.
        files: what a cache knows of them, as `read_file_traits` gives it; None where there is none.
        flow: of cases, from the cache's tables; None where there is none.
        no_cache: why not.

    Raises:
        UserError: if a breast's images differ in label.
    """
    breasts = transfer_thresholds(require_breasts(oof))
    audit = audit_shortcuts(oof, breasts, files, no_files="" if files is not None else no_cache)
    return judge_predictions(
        transfer_thresholds(oof),
        breasts,
        calibration=calibrate(breasts),
        decisions=draw_up_decisions(breasts),
        audit=audit,
        age=measure_age(oof, counting_tells=audit.counting_tells),
        flow=flow or describe_flow(oof, None, unknown=no_cache),
    )


def judge_predictions(
    images: pd.DataFrame,
    breasts: pd.DataFrame,
    *,
    calibration: Calibration,
    decisions: DecisionCurve,
    audit: ShortcutAudit,
    age: AgeGain,
    flow: Flow,
    folds: Mapping[int, tuple[pd.DataFrame, pd.DataFrame]] | None = None,
    external: ExternalSet | None = None,
) -> Evaluation:
    """Computes all figures of predictions whose transferred `threshold` is known.

    Args:
        images: one row per image.
        breasts: the same as breasts.
        calibration: of the breasts.
        decisions: of the breasts.
        audit: of both.
        age: what it adds to the images' pixels.
        flow: of cases.
        folds: images and breasts as each fold's figures are of; None where each fold has rows of its own.
        external: of an external set.
    """
    oof = images.drop(columns="threshold")
    kinds = describe_images(oof)
    of_images = None if folds is None else {fold: tables[0] for fold, tables in folds.items()}
    of_folds = None if folds is None else {fold: tables[1] for fold, tables in folds.items()}
    of_breasts = estimate_level(breasts, describe_breasts(oof, kinds, breasts), of_folds)
    best = of_breasts.pooled.metrics.threshold_best
    threshold = best if external is None else external.rule.threshold_of_mean
    return Evaluation(
        oof=oof,
        breasts=of_breasts,
        images=estimate_level(images, kinds, of_images),
        fold_table=describe_folds(oof),
        calibration=calibration,
        stability=sweep(breasts, threshold),
        missing_slices=explain_missing(oof),
        operating_point=describe_operating_point(breasts),
        decisions=decisions,
        audit=audit,
        age=age,
        flow=flow,
        external=external,
    )


def estimate_level(
    table: pd.DataFrame, kinds: pd.DataFrame, folds: Mapping[int, pd.DataFrame] | None = None
) -> UnitEvaluation:
    """Computes figures and intervals of all predictions, of each fold and of each slice."""
    if folds is None:
        folds = {int(str(fold)): part for fold, part in table.groupby("fold")}
    values = [(str(kind), value) for kind in kinds for value in list_values(kinds[kind])]
    tables: dict[tuple[str, str], pd.DataFrame] = {POOLED: table}
    tables |= {("fold", str(fold)): part for fold, part in folds.items()}
    tables |= {(kind, value): table[kinds[kind] == value] for kind, value in values}
    estimates = estimate_all(tables)
    slices = [Slice(kind, value, estimates[kind, value]) for kind, value in values]
    return UnitEvaluation(
        table=table,
        kinds=kinds,
        folds={fold: estimates["fold", str(fold)] for fold in folds},
        pooled=estimates[POOLED],
        slices=slices,
        heterogeneity={str(kind): _find_p([part for part in slices if part.kind == kind]) for kind in kinds},
        fold_tables=folds,
    )


def _find_p(slices: list[Slice]) -> float | None:
    """Returns the p value of one AUC for all slices that have cancers enough to tell."""
    enough = [part.estimate.auc for part in slices if not part.estimate.has_few_cancers]
    return find_p_of_heterogeneity(enough)


def require_breasts(oof: pd.DataFrame) -> pd.DataFrame:
    """Averages each breast's images.

    Raises:
        UserError: if they differ in label.
    """
    try:
        return to_breasts(oof)
    except ValueError as error:
        raise UserError(
            f"the predictions contradict themselves: {error}; mend train.csv and train again"
        ) from None
