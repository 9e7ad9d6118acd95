"""From out-of-fold predictions to all that is known of a run."""

from dataclasses import dataclass

import pandas as pd

from data_prep.errors import UserError
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.calibration import Calibration, calibrate
from pipeline.evaluation.estimates import Estimate, estimate_all, transfer_thresholds
from pipeline.evaluation.fold_summary import describe_folds
from pipeline.evaluation.metrics import RECALL_RATES, largest_sensitivity
from pipeline.evaluation.slices import describe_breasts, describe_images, explain_missing, list_values
from pipeline.evaluation.threshold_stability import sweep

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
        folds: by fold number.
        pooled: all folds together.
        slices: by kind and value, in the order to show them.
    """

    table: pd.DataFrame
    kinds: pd.DataFrame
    folds: dict[int, Estimate]
    pooled: Estimate
    slices: list[Slice]


@dataclass(frozen=True)
class Evaluation:
    """What is known of a run once all its folds are trained.

    Attributes:
        oof: out-of-fold image predictions, sorted by patient and image.
        breasts: the level that counts; a breast's probability is the mean of its images'.
        images: the same figures of single images.
        fold_table: who is in which fold, a row per fold.
        calibration: of breasts.
        stability: F1 of breasts around the best pooled threshold, see `threshold_stability`.
        missing_slices: why kinds of slices are not there.
    """

    oof: pd.DataFrame
    breasts: UnitEvaluation
    images: UnitEvaluation
    fold_table: pd.DataFrame
    calibration: Calibration
    stability: pd.DataFrame
    missing_slices: dict[str, str]

    @property
    def threshold(self) -> float | None:
        """The best threshold on the pooled predictions of breasts, which a submission may use."""
        return self.breasts.pooled.metrics.threshold_best

    @property
    def ceilings(self) -> dict[int, float]:
        """The largest sensitivity per breast that any model could have at each recall rate, in per cent."""
        breasts = self.breasts.table
        if not breasts["cancer"].any():
            return {}
        return {
            percent: largest_sensitivity(breasts["cancer"], breasts["patient_id"], breasts["fold"], rate)
            for percent, rate in RECALL_RATES.items()
        }


def evaluate_oof(oof: pd.DataFrame) -> Evaluation:
    """Computes everything from out-of-fold image predictions, as `collect_oof` gives them.

    Raises:
        UserError: if a breast's images differ in label.
    """
    breasts = transfer_thresholds(require_breasts(oof))
    kinds = describe_images(oof)
    of_breasts = estimate_level(breasts, describe_breasts(oof, kinds, breasts))
    return Evaluation(
        oof=oof,
        breasts=of_breasts,
        images=estimate_level(transfer_thresholds(oof), kinds),
        fold_table=describe_folds(oof),
        calibration=calibrate(breasts),
        stability=sweep(breasts, of_breasts.pooled.metrics.threshold_best),
        missing_slices=explain_missing(oof),
    )


def estimate_level(table: pd.DataFrame, kinds: pd.DataFrame) -> UnitEvaluation:
    """Computes figures and intervals of all predictions, of each fold and of each slice."""
    folds = {int(str(fold)): part for fold, part in table.groupby("fold")}
    values = [(str(kind), value) for kind in kinds for value in list_values(kinds[kind])]
    tables: dict[tuple[str, str], pd.DataFrame] = {POOLED: table}
    tables |= {("fold", str(fold)): part for fold, part in folds.items()}
    tables |= {(kind, value): table[kinds[kind] == value] for kind, value in values}
    estimates = estimate_all(tables)
    return UnitEvaluation(
        table=table,
        kinds=kinds,
        folds={fold: estimates["fold", str(fold)] for fold in folds},
        pooled=estimates[POOLED],
        slices=[Slice(kind, value, estimates[kind, value]) for kind, value in values],
    )


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
