"""The evaluation of a finished run, as it stands in `metrics.json` and in tables."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from data_prep.storage.atomic import write_csv, write_json
from pipeline.evaluation.bootstrap import NUM_REPLICATES, SEED
from pipeline.evaluation.estimates import Estimate
from pipeline.evaluation.evaluate_oof import Evaluation, UnitEvaluation, evaluate_oof
from pipeline.evaluation.metrics import FIGURES
from pipeline.evaluation.oof import collect_oof
from pipeline.runs.run_folder import Run

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
    *(f"image_{name}" for name in FIGURES),
]
SLICES_COLUMNS = [
    *("level", "slice", "value", "num_patients", *COUNTS),
    *("figure", "estimate", "low", "high", "num_undefined", "undefined"),
]


def evaluate_run(run: Run) -> Evaluation:
    """Computes all figures of a finished run.

    Raises:
        UserError: if a fold is missing, or its predictions do not fit the run.
    """
    return evaluate_oof(collect_oof(run))


def write_evaluation(run: Run, evaluation: Evaluation) -> None:
    """Writes the figures into the run's folder."""
    write_csv(run.oof, evaluation.oof)
    write_csv(run.table("fold_table"), evaluation.fold_table)
    write_csv(run.table("slices"), tabulate_slice_metrics(evaluation))
    write_csv(run.table("calibration"), evaluation.calibration.bins)
    write_csv(run.table("threshold_stability"), evaluation.stability)
    write_csv(run.fold_metrics, tabulate_fold_metrics(evaluation))
    write_json(run.metrics, evaluation_to_json(evaluation))


def tabulate_fold_metrics(evaluation: Evaluation) -> pd.DataFrame:
    """Makes the table of `fold_metrics.csv`; an undefined figure is an empty cell."""
    rows = []
    for fold, of_breasts in evaluation.breasts.folds.items():
        of_images = evaluation.images.folds[fold]
        counts = {name: getattr(of_breasts, name) for name in ["num_patients", *COUNTS]}
        images = {f"image_{name}": value for name, value in of_images.metrics.figures.items()}
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
            rows += [{**slice_of, **row} for row in list_figures(part.estimate)]
    return pd.DataFrame(rows, columns=SLICES_COLUMNS)


def list_figures(estimate: Estimate) -> list[dict[str, Any]]:
    """Returns each figure with its interval and the reason if it is undefined; None where there is none."""
    rows = []
    for name, value in estimate.metrics.figures.items():
        interval = estimate.intervals.get(name)
        found = asdict(interval) if interval else dict.fromkeys(("low", "high", "num_undefined"))
        reason = estimate.metrics.undefined.get(name)
        rows.append({"figure": name, "estimate": value, **found, "undefined": reason})
    return rows


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Makes the content of `metrics.json`; an undefined figure is null and has its reason in `undefined`."""
    calibration = evaluation.calibration
    return {
        **_level_to_json(evaluation.breasts),
        "threshold": evaluation.threshold,
        "largest_sensitivity_at_recall_rate": evaluation.ceilings,
        "images": _level_to_json(evaluation.images),
        "missing_slices": evaluation.missing_slices,
        "calibration": {
            "methods": {name: _estimate_to_json(estimate) for name, estimate in calibration.methods.items()},
            "parameters": calibration.parameters,
            "undefined": calibration.undefined or None,
        },
        "threshold_stability": _table_to_json(evaluation.stability),
        "fold_table": _table_to_json(evaluation.fold_table),
        "bootstrap": {
            "seed": SEED,
            "replicates": NUM_REPLICATES,
            "unit": "patient",
            "interval": "percentile",
        },
    }


def _level_to_json(level: UnitEvaluation) -> dict[str, Any]:
    return {
        "folds": [{"fold": fold, **_estimate_to_json(estimate)} for fold, estimate in level.folds.items()],
        "pooled": _estimate_to_json(level.pooled),
        "slices": [
            {"slice": part.kind, "value": part.value, **_estimate_to_json(part.estimate)}
            for part in level.slices
        ],
    }


def _estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    intervals = estimate.intervals
    left_out = {
        name: interval.num_undefined for name, interval in intervals.items() if interval.num_undefined
    }
    return {
        **{name: getattr(estimate, name) for name in ["num_patients", *COUNTS]},
        **estimate.metrics.figures,
        "undefined": estimate.metrics.undefined,
        "interval_95": {name: [interval.low, interval.high] for name, interval in intervals.items()},
        "undefined_replicates": left_out,
    }


def _table_to_json(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
