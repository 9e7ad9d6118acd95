"""The page that people read: `report.html`, one self-contained file. Computes no figure; `evaluate` did."""

from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.errors import UserError
from data_prep.files import write_text
from pipeline import figures
from pipeline.bootstrap import NUM_REPLICATES, Interval
from pipeline.evaluation import Evaluation
from pipeline.inside import look_inside
from pipeline.metrics import RECALL_RATES, SEVERAL_THRESHOLDS, SPECIFICITIES, all_ones_pf1
from pipeline.page import Picture, render_page
from pipeline.run import Run
from pipeline.settings import load_recipe

FEW_CANCERS = 100
"""Below this number of cancers the page warns that intervals are wide."""

FIGURE_NAMES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "pf1": "pF1 of the raw probabilities",
    "pf1_best": "pF1 at the best threshold",
    "threshold_best": "best threshold",
    "pf1_transferred": "pF1 at the transferred threshold",
    "threshold_transferred": "transferred threshold",
    "partial_auc": "partial AUC",
    **{f"sensitivity_at_specificity_{n}": f"sensitivity at specificity {n}\u00a0%" for n in SPECIFICITIES},
    **{f"sensitivity_at_recall_rate_{n}": f"sensitivity at {n}\u00a0% called back" for n in RECALL_RATES},
    "brier": "Brier score",
    "calibration_error": "calibration error",
}


def write_report(run: Run, evaluation: Evaluation) -> Path:
    """Writes `report.html` and returns its path."""
    page = render_page(
        "report.html.j2",
        run,
        filters={"figure": format_figure, "interval": format_interval},
        evaluation=evaluation,
        num_replicates=NUM_REPLICATES,
        all_ones_pf1=all_ones_pf1,
        has_few_cancers=evaluation.breasts.pooled.num_cancers < FEW_CANCERS,
        selection=describe_selection(run, list(evaluation.breasts.folds)),
        headlines=[describe_auc(evaluation), describe_pf1(evaluation)],
        undefined=explain_undefined(evaluation),
        curves=draw_curves(evaluation),
        learning_curves=draw_learning_curves(read_histories(run, list(evaluation.breasts.folds))),
        inside=look_inside(
            run.settings, {f"fold {fold}": run.fold(fold) for fold in evaluation.breasts.folds}
        ),
    )
    write_text(run.report, page)
    return run.report


def format_figure(value: float | None) -> str:
    """Three decimals, or the word for None."""
    return "undefined" if value is None else f"{value:.3f}"


def format_interval(interval: Interval | None) -> str:
    """Low to high, or nothing where there is no interval."""
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def describe_selection(run: Run, folds: list[int]) -> str:
    """Says what choosing each fold's best epoch by its own held-out images has bought; empty if none was."""
    histories = read_histories(run, folds)
    try:
        settings = load_recipe(run.settings).train
    except UserError:  # the page shows them as they are
        return ""
    if settings.select == "last" or not histories:
        return ""
    columns = [history[settings.select_by] for history in histories.values()]
    best = float(np.mean([column.max() for column in columns]))
    last = float(np.mean([column.iloc[-1] for column in columns]))
    return (
        f"Each fold predicts with the epoch whose {settings.select_by} was the highest on the very patients "
        f"it is judged by: {best:.3f} on average, against {last:.3f} at the last epoch. All figures here are "
        "too good by up to about that difference."
    )


def describe_auc(evaluation: Evaluation) -> str:
    """Says in plain words what the pooled AUC means."""
    pooled, interval = evaluation.breasts.pooled.metrics, evaluation.breasts.pooled.intervals.get("auc")
    if pooled.auc is None or interval is None:
        return f"The AUC is undefined: {pooled.undefined.get('auc', 'no replicate has both classes')}."
    sentence = (
        "Shown one breast with cancer and one without, the models give the higher probability to the one "
        f"with cancer in {_percent(pooled.auc)} of cases (95\u00a0% interval {_percent(interval.low)} to "
        f"{_percent(interval.high)})"
    )
    if interval.low > 0.5:
        return f"{sentence}; a coin would in {_percent(0.5)}."
    if interval.high < 0.5:
        return f"{sentence}: worse than a coin."
    return f"{sentence}, which cannot be told from a coin's {_percent(0.5)}."


def describe_pf1(evaluation: Evaluation) -> str:
    """Says what the pooled pF1 is to be compared with."""
    subset, pooled = evaluation.breasts.pooled, evaluation.breasts.pooled.metrics
    if pooled.pf1_best is None or pooled.threshold_best is None:
        return f"pF1 is undefined: {pooled.undefined['pf1_best']}."
    prevalence = subset.num_cancers / subset.num_breasts
    return (
        f"Calling back every breast with a probability of {pooled.threshold_best:.3f} or more gives pF1 "
        f"{pooled.pf1_best:.3f}; calling back every breast would give {all_ones_pf1(prevalence):.3f}."
    )


def explain_undefined(evaluation: Evaluation) -> list[str]:
    """Says which figures have no value, where and why, and what the intervals leave out."""
    sets = {
        **{f"Fold {fold}": subset.metrics for fold, subset in evaluation.breasts.folds.items()},
        "Pooled": evaluation.breasts.pooled.metrics,
    }
    sentences = []
    for where, metrics in sets.items():
        for reason in dict.fromkeys(metrics.undefined.values()):
            if reason == SEVERAL_THRESHOLDS:
                continue
            names = [FIGURE_NAMES[name] for name, why in metrics.undefined.items() if why == reason]
            sentences.append(f"{where}: {reason}, so there is no {', no '.join(names)}.")
    intervals = evaluation.breasts.pooled.intervals
    left_out = {name: interval.num_undefined for name, interval in intervals.items()}
    counts = [f"{count:,} for {FIGURE_NAMES[name]}" for name, count in left_out.items() if count]
    if counts:
        sentences.append(f"Replicates without a value, which the intervals leave out: {', '.join(counts)}.")
    return sentences


def draw_curves(evaluation: Evaluation) -> list[Picture]:
    """Draws ROC, precision-recall and pF1 curves; none where a class is missing."""
    breasts, threshold = evaluation.breasts.table, evaluation.threshold
    if evaluation.breasts.pooled.metrics.auc is None or threshold is None:
        return []
    return [
        Picture("ROC", figures.draw_roc(breasts), "Dashed: guessing."),
        Picture(
            "Precision and recall",
            figures.draw_precision_recall(breasts),
            "Dashed: the prevalence, which is the precision of guessing.",
        ),
        Picture(
            "pF1 against the threshold",
            figures.draw_f1_by_threshold(breasts, threshold),
            "Dashed: the best pooled threshold, and the pF1 of calling back every breast.",
        ),
    ]


def draw_learning_curves(histories: dict[int, pd.DataFrame]) -> list[Picture]:
    """Draws losses and validation AUC; none without a history."""
    if not histories:
        return []
    return [
        Picture("Loss", figures.draw_losses(histories), "Solid: training. Dashed: validation."),
        Picture("Validation AUC", figures.draw_validation_auc(histories), "Dashed: guessing."),
    ]


def read_histories(run: Run, folds: list[int]) -> dict[int, pd.DataFrame]:
    """Reads the `history.csv` of each fold that has one."""
    paths = {fold: run.fold(fold).history for fold in folds}
    return {fold: pd.read_csv(path) for fold, path in paths.items() if path.exists()}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"
