"""From predictions of an external set to all that is known of a run there."""

from dataclasses import dataclass, field

import pandas as pd

from data_prep.rsna.exam_table import EXAM_ID
from pipeline.evaluation.age.age_gain import measure_age_elsewhere
from pipeline.evaluation.aggregate import name_as_table, to_breasts
from pipeline.evaluation.audit.flow import Flow
from pipeline.evaluation.audit.shortcuts import audit_shortcuts
from pipeline.evaluation.decisions.decision_curve import DECISION_COLUMNS, DecisionCurve
from pipeline.evaluation.evaluate_oof import Evaluation, judge_predictions, require_breasts
from pipeline.evaluation.external.carry_over import carry_calibration, carry_thresholds, with_threshold
from pipeline.evaluation.external.case_tables import (
    BESIDE,
    FOLD_PROBABILITY,
    CaseTables,
    calibrate_breasts,
    list_fold_columns,
    make_case_tables,
)
from pipeline.evaluation.external.external_set import ExternalSet, OperatingRule
from pipeline.evaluation.external.seen import LEFT_OUT_COLUMNS
from pipeline.evaluation.external.shift import describe_shift
from pipeline.runs.evaluation_folder import ExternalFolder
from pipeline.runs.run_folder import IMAGE_PROBABILITY, OOF_EXAM_COLUMNS, OOF_TYPES, read_table

ONE_MODEL = 0
"""The fold of all predictions of an ensemble, which are of one model."""
NO_DECISIONS = "the risks that it needs are learned from the run's own women, for single models"
"""Why an external set has no decision curve."""
PREDICTION_COLUMNS = [
    "image_id",
    "patient_id",
    "laterality",
    "prediction_id",
    "file",
    "cancer",
    "probability",
]
PREDICTION_TYPES = OOF_TYPES | {"prediction_id": "str", "file": "str"}


@dataclass(frozen=True)
class Circumstances:
    """What is known of an external set beside its predictions.

    Attributes:
        name: of the set.
        run_name: of the run.
        flow: of cases.
        files: what a manifest knows of the images, as `to_file_traits` gives it.
        own_tones: of the run's pictures, as `describe_shift` takes them.
        tones: of the set's.
        left_out: patients who were left out, with the columns of `LEFT_OUT_COLUMNS`.
        not_compared: why pictures could not be compared with the run's; empty where they were.
    """

    name: str
    run_name: str
    flow: Flow
    files: pd.DataFrame
    own_tones: pd.DataFrame
    tones: pd.DataFrame
    left_out: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=LEFT_OUT_COLUMNS))
    not_compared: str = ""


def select_predictions(images: pd.DataFrame) -> pd.DataFrame:
    """Returns the columns of an external set's `predictions.csv`."""
    known = [name for name in (IMAGE_PROBABILITY, EXAM_ID, *OOF_EXAM_COLUMNS, *BESIDE) if name in images]
    return images[[*PREDICTION_COLUMNS, *list_fold_columns(images), *known]]


def read_predictions(folder: ExternalFolder) -> pd.DataFrame:
    """Reads `predictions.csv`, as predictions of one model.

    Raises:
        UserError: if it is damaged.
    """
    table = read_table(folder.oof, PREDICTION_COLUMNS, dtype=PREDICTION_TYPES)
    return table.assign(fold=ONE_MODEL, file=table["file"].fillna(""))


def judge_external(
    images: pd.DataFrame, oof: pd.DataFrame, rule: OperatingRule, circumstances: Circumstances
) -> Evaluation:
    """Computes everything of an external set.

    Args:
        images: its predictions, as `read_predictions` gives them.
        oof: the run's own, out of fold.
        rule: how the run decides whom to recall.
        circumstances: what else is known.
    """
    breasts = with_threshold(require_breasts(images), rule.threshold_of_mean)
    folds = {}
    for name in list_fold_columns(images):
        of_fold = with_threshold(images.assign(probability=images[name]), rule.threshold)
        by_breast = with_threshold(to_breasts(of_fold), rule.threshold)
        folds[int(name.removeprefix(FOLD_PROBABILITY))] = of_fold, by_breast
    images = with_threshold(images, rule.threshold_of_mean)
    external = ExternalSet(
        name=circumstances.name,
        run_name=circumstances.run_name,
        rule=rule,
        carried=carry_thresholds(breasts, rule),
        shift=describe_shift(oof, images, circumstances.own_tones, circumstances.tones),
        num_learned=oof["patient_id"].nunique(),
        left_out=circumstances.left_out,
        not_compared=circumstances.not_compared,
    )
    audit = audit_shortcuts(images, breasts, circumstances.files)
    return judge_predictions(
        images,
        breasts,
        calibration=carry_calibration(require_breasts(oof), breasts),
        decisions=DecisionCurve(pd.DataFrame(columns=DECISION_COLUMNS), NO_DECISIONS),
        age=measure_age_elsewhere(images, oof, counting_tells=audit.counting_tells),
        audit=audit,
        flow=circumstances.flow,
        folds=folds,
        external=external,
    )


def tabulate_external_cases(evaluation: Evaluation, oof: pd.DataFrame) -> CaseTables:
    """Makes the tables of cases of an external set; `oof` is the run's own."""
    calibrated = calibrate_breasts(evaluation.breasts.table, require_breasts(oof))
    named = name_as_table(calibrated, evaluation.oof)
    return make_case_tables(evaluation.oof.drop(columns="fold"), named.drop(columns="fold"))
