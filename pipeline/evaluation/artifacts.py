"""The evaluation of a finished run, or of it on an external set, as `metrics.json` and tables hold it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.storage.atomic import write_csv, write_json
from pipeline.evaluation.age.age_gain import AgeGain
from pipeline.evaluation.audit.flow import Flow, describe_flow
from pipeline.evaluation.audit.shortcuts import ShortcutAudit, tabulate_audit
from pipeline.evaluation.audit.traits import read_file_traits
from pipeline.evaluation.bootstrap import NUM_REPLICATES, SEED, Interval
from pipeline.evaluation.calibration import FOR_ONE_MODEL, Calibration
from pipeline.evaluation.estimates import AUC_WEIGHTED, Estimate
from pipeline.evaluation.evaluate_oof import Evaluation, UnitEvaluation, evaluate_oof
from pipeline.evaluation.external.case_tables import tabulate_oof_cases
from pipeline.evaluation.external.external_set import CarriedThreshold, ExternalSet
from pipeline.evaluation.metrics import FIGURES
from pipeline.evaluation.oof import collect_oof
from pipeline.evaluation.operating_point import SCREENING_PREVALENCE, OperatingPoint
from pipeline.evaluation.uncertainty.intervals import CAPPED
from pipeline.evaluation.uncertainty.recalibration import Recalibration
from pipeline.evaluation.uncertainty.repeats import Repeats
from pipeline.evaluation.uncertainty.run_repeats import compare_repeats
from pipeline.runs.evaluation_folder import EvaluationFolder
from pipeline.runs.records import find_cache
from pipeline.runs.run_folder import Run

MEAN_OF_LOGITS = "mean of logits"
"""What `metrics.json` says a breast's probability is of its images'; its threshold is for that alone."""
COUNTS = ["num_images", "num_breasts", "num_cancers"]
FIRST_FIGURES = ["pf1", "pf1_best", "threshold_best", "auc", "average_precision"]
FURTHER_FIGURES = [name for name in FIGURES if name not in FIRST_FIGURES]
FOLD_METRICS_COLUMNS = [
    "fold",
    *COUNTS,
    *FIRST_FIGURES,
    "num_patients",
    *FURTHER_FIGURES,
    "num_cancer_images",
    *(f"image_{name}" for name in [*FIGURES, AUC_WEIGHTED]),
]
SLICES_COLUMNS = [
    *("level", "slice", "value", "num_patients", *COUNTS),
    *("figure", "estimate", "low", "high", "num_undefined", "undefined", "no_interval", "few_cancers"),
]


def evaluate_run(run: Run, cache: Cache | None = None) -> Evaluation:
    """Computes all figures of a finished run; its cache is where the run says unless it is given.

    Raises:
        UserError: if a fold is missing, or its predictions do not fit the run.
    """
    oof = collect_oof(run)
    try:
        cache = cache or find_cache(run)
        files, flow = read_file_traits(cache), describe_flow(oof, cache)
    except UserError as error:  # a run may outlive its cache, or the images in it
        evaluation = evaluate_oof(oof, no_cache=str(error))
    else:
        evaluation = evaluate_oof(oof, files, flow)
    return replace(evaluation, repeats=compare_repeats(run, evaluation))


def write_evaluation(run: Run, evaluation: Evaluation) -> None:
    """Writes predictions, cases and figures of a run into its folder."""
    write_csv(run.oof, evaluation.oof)
    is_calibrated = not evaluation.calibration.undefined
    cases = tabulate_oof_cases(evaluation.oof, evaluation.breasts.table, is_calibrated=is_calibrated)
    write_csv(run.images, cases.images)
    write_csv(run.breasts, cases.breasts)
    if evaluation.repeats is not None:
        write_csv(run.repeats, evaluation.repeats.table)
    write_figures(run, evaluation)


def write_figures(folder: EvaluationFolder, evaluation: Evaluation) -> None:
    """Writes the tables of figures and `metrics.json`, which comes last."""
    write_csv(folder.table("fold_table"), evaluation.fold_table)
    write_csv(folder.table("slices"), tabulate_slice_metrics(evaluation))
    write_csv(folder.table("calibration"), evaluation.calibration.bins)
    write_csv(folder.table("threshold_stability"), evaluation.stability)
    write_csv(folder.table("shortcut_audit"), tabulate_audit(evaluation.audit))
    if evaluation.external is None:
        write_csv(folder.table("decision_curve"), evaluation.decisions.points)
    write_csv(folder.fold_metrics, tabulate_fold_metrics(evaluation))
    write_json(folder.metrics, evaluation_to_json(evaluation))


def tabulate_fold_metrics(evaluation: Evaluation) -> pd.DataFrame:
    """Makes the table of `fold_metrics.csv`; an undefined figure is an empty cell."""
    rows = []
    for fold, of_breasts in evaluation.breasts.folds.items():
        of_images = evaluation.images.folds[fold]
        counts = {name: getattr(of_breasts, name) for name in ["num_patients", *COUNTS]}
        images = {f"image_{name}": value for name, value in of_images.figures.items()}
        row = {"fold": fold, **counts, **of_breasts.metrics.figures, **images}
        rows.append({**row, "num_cancer_images": of_images.num_cancers})
    return pd.DataFrame(rows)[FOLD_METRICS_COLUMNS]


def tabulate_slice_metrics(evaluation: Evaluation) -> pd.DataFrame:
    """Makes the table of `slices.csv`: a row per slice and figure; what is undefined has its reason."""
    rows = []
    for name, level in {"breast": evaluation.breasts, "image": evaluation.images}.items():
        for part in level.slices:
            counts = {count: getattr(part.estimate, count) for count in ["num_patients", *COUNTS]}
            slice_of = {"level": name, "slice": part.kind, "value": part.value, **counts}
            slice_of["few_cancers"] = part.estimate.has_few_cancers
            rows += [{**slice_of, **row} for row in list_figures(part.estimate)]
    return pd.DataFrame(rows, columns=SLICES_COLUMNS)


def list_figures(estimate: Estimate) -> list[dict[str, Any]]:
    """Returns each figure with its interval, and why either is lacking; None where there is none."""
    rows = []
    for name, value in estimate.figures.items():
        interval = estimate.intervals.get(name)
        found = asdict(interval) if interval else dict.fromkeys(("low", "high", "num_undefined"))
        reasons = {"undefined": estimate.undefined.get(name), "no_interval": estimate.no_interval.get(name)}
        rows.append({"figure": name, "estimate": value, **found, **reasons})
    return rows


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Makes the content of `metrics.json`; an undefined figure is null and has its reason in `undefined`."""
    external = evaluation.external
    return {
        **_level_to_json(evaluation.breasts),
        "threshold": evaluation.threshold,
        "recall_rate": evaluation.recall_rate,
        "threshold_of_mean": evaluation.threshold_of_mean,
        "breast_is": MEAN_OF_LOGITS,
        "largest_sensitivity_at_recall_rate": evaluation.ceilings,
        "images": _level_to_json(evaluation.images),
        "missing_slices": evaluation.missing_slices,
        "operating_point": _operating_point_to_json(
            evaluation.operating_point, "the other folds' best" if external is None else "the run's"
        ),
        "flow": _flow_to_json(evaluation.flow),
        "age": _age_to_json(evaluation.age),
        "shortcut_audit": _audit_to_json(evaluation.audit),
        "calibration": _calibration_to_json(evaluation.calibration),
        "decision_curve": {
            "prevalence": SCREENING_PREVALENCE,
            "points": _table_to_json(evaluation.decisions.points),
            "undefined": evaluation.decisions.undefined or None,
        },
        "repeats": None if evaluation.repeats is None else _repeats_to_json(evaluation.repeats),
        "threshold_stability": _table_to_json(evaluation.stability),
        "fold_table": _table_to_json(evaluation.fold_table),
        "bootstrap": {
            "seed": SEED,
            "replicates": NUM_REPLICATES,
            "unit": "patient",
            "interval": "percentile",
            "not_of": ["auc", "auc_pooled", AUC_WEIGHTED, *CAPPED],
        },
        **({} if external is None else {"external": _external_to_json(external)}),
    }


def _level_to_json(level: UnitEvaluation) -> dict[str, Any]:
    return {
        "folds": [{"fold": fold, **_estimate_to_json(estimate)} for fold, estimate in level.folds.items()],
        "pooled": _estimate_to_json(level.pooled),
        "slices": [
            {"slice": part.kind, "value": part.value, **_estimate_to_json(part.estimate)}
            for part in level.slices
        ],
        "heterogeneity": level.heterogeneity,
    }


def _calibration_to_json(calibration: Calibration) -> dict[str, Any]:
    methods = {
        name: {
            **_estimate_to_json(estimate),
            "recalibration": _recalibration_to_json(calibration.recalibrations[name]),
            "calibration_error": asdict(calibration.errors[name]),
        }
        for name, estimate in calibration.methods.items()
    }
    return {
        "methods": methods,
        "parameters_are_for": FOR_ONE_MODEL,
        "parameters": calibration.parameters,
        "left_out": calibration.left_out,
        "platt_by_model": calibration.by_model,
        "undefined": calibration.undefined or None,
    }


def _recalibration_to_json(found: Recalibration) -> dict[str, Any]:
    return {
        **found.figures,
        "undefined": found.undefined,
        **_intervals_to_json(found.intervals, found.no_interval),
    }


def _intervals_to_json(intervals: Mapping[str, Interval], no_interval: Mapping[str, str]) -> dict[str, Any]:
    known = {name: [found.low, found.high] for name, found in intervals.items()}
    return {"interval_95": known | dict.fromkeys(no_interval), "no_interval": dict(no_interval)}


def _external_to_json(external: ExternalSet) -> dict[str, Any]:
    return {
        "name": external.name,
        "run": external.run_name,
        "threshold_of_one_model": external.rule.threshold,
        "carried_thresholds": {each.rule: _carried_to_json(each) for each in external.carried},
        "shift": _table_to_json(external.shift),
        "num_patients_learned_from": external.num_learned,
        "left_out": _table_to_json(external.left_out),
        "pictures_not_compared": external.not_compared or None,
    }


def _carried_to_json(carried: CarriedThreshold) -> dict[str, Any]:
    interval = carried.estimate.intervals.get("pf1_transferred")
    return {
        "value": carried.value,
        "share_recalled": carried.recalled,
        "pf1": carried.estimate.metrics.pf1_transferred,
        "interval_95": None if interval is None else [interval.low, interval.high],
        **_operating_point_to_json(carried.operating_point, carried.rule),
        "threshold": carried.threshold,
    }


def _operating_point_to_json(point: OperatingPoint, threshold: str) -> dict[str, Any]:
    tables = {
        table.unit: {
            **table.cells,
            **table.figures,
            **_intervals_to_json(table.intervals, table.no_interval),
        }
        for table in point.tables
    }
    return {
        "threshold": threshold,
        "screening_prevalence": SCREENING_PREVALENCE,
        **tables,
        "undefined": point.undefined or None,
    }


def _repeats_to_json(repeats: Repeats) -> dict[str, Any]:
    expected = repeats.expected
    interval = expected.interval
    return {
        "runs": _table_to_json(repeats.table),
        "expected": {
            "figure": repeats.figure,
            **asdict(expected),
            "interval": None if interval is None else [interval.low, interval.high],
        },
    }


def _flow_to_json(flow: Flow) -> dict[str, Any]:
    return {
        "steps": _table_to_json(flow.steps),
        "share_not_recorded": flow.missing,
        "unknown": flow.unknown or None,
    }


def _age_to_json(age: AgeGain) -> dict[str, Any]:
    rows = {}
    for name, row in age.rows.items():
        ends = {"interval": row.interval, "loss_interval": row.loss_interval}
        known = {key: None if found is None else [found.low, found.high] for key, found in ends.items()}
        rows[name] = {"auc": row.auc, "both_exceeds_by": row.loss, "p": row.p, **known}
    regressions = {fold: asdict(fitted.both) for fold, fitted in age.regressions.items()}
    for fitted in regressions.values():
        for name in ("scores", "scores_of_both"):  # thousands of numbers
            fitted.pop(name)
    known_of = {"is_used": age.is_used, "share_unknown": age.share_unknown, "figure": age.figure}
    return {**known_of, "rankings": rows, "regressions": regressions, "undefined": age.undefined or None}


def _audit_to_json(audit: ShortcutAudit) -> dict[str, Any]:
    return {
        "traits": _table_to_json(tabulate_audit(audit)),
        "not_looked_at": audit.not_looked_at,
        "counting_tells_the_label": audit.counting_tells,
    }


def _estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    intervals = estimate.intervals
    left_out = {name: found.num_undefined for name, found in intervals.items() if found.num_undefined}
    return {
        **{name: getattr(estimate, name) for name in ["num_patients", *COUNTS]},
        **estimate.figures,
        "undefined": estimate.undefined,
        **_intervals_to_json(intervals, estimate.no_interval),
        "few_cancers": estimate.has_few_cancers,
        "undefined_replicates": left_out,
    }


def _table_to_json(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
