"""What a report says in words: headlines, warnings, what is undefined. Computes no figure; knows no page."""

import numpy as np
import pandas as pd

from data_prep.errors import UserError
from pipeline.bootstrap import Interval
from pipeline.evaluation import Evaluation
from pipeline.metrics import RECALL_RATES, SEVERAL_THRESHOLDS, SPECIFICITIES, all_ones_pf1
from pipeline.run import Run
from pipeline.settings import load_recipe

FEW_CANCERS = 100
"""Below this number of cancers a report warns that intervals are wide."""

FIGURE_NAMES = {
    "auc": "AUC",
    "partial_auc": "partial AUC, specificity 90 to 100\u00a0%",
    "average_precision": "average precision",
    "pf1": "pF1 of the raw probabilities",
    "pf1_transferred": "pF1 at the transferred threshold",
    "threshold_transferred": "transferred threshold",
    "pf1_best": "pF1 at the best threshold",
    "threshold_best": "best threshold",
    **{f"sensitivity_at_specificity_{n}": f"sensitivity at specificity {n}\u00a0%" for n in SPECIFICITIES},
    **{f"sensitivity_at_recall_rate_{n}": f"sensitivity at {n}\u00a0% called back" for n in RECALL_RATES},
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
"""All figures, in the order to show them."""


def format_figure(value: float | None) -> str:
    """Three decimals, or the word for None."""
    return "undefined" if value is None else f"{value:.3f}"


def format_interval(interval: Interval | None) -> str:
    """Low to high, or nothing where there is no interval or the replicates all give the same."""
    if interval is None or not interval.has_width:
        return ""
    return f"{interval.low:.3f} to {interval.high:.3f}"


def list_headlines(evaluation: Evaluation) -> list[str]:
    """Says in plain words what the main figures mean."""
    sentences = [describe_auc(evaluation), describe_recall(evaluation), describe_pf1(evaluation)]
    return [sentence for sentence in sentences if sentence]


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


def describe_recall(evaluation: Evaluation) -> str:
    """Says how many cancers would be found if few women were called back; empty where that is undefined."""
    pooled = evaluation.breasts.pooled
    rate = max(RECALL_RATES)
    name = f"sensitivity_at_recall_rate_{rate}"
    value, interval = pooled.metrics.figures[name], pooled.intervals.get(name)
    if value is None or interval is None:
        return ""
    sentence = (
        f"If at most {rate}\u00a0% of the women were called back, those with the highest probabilities, "
        f"{_percent(value)} of the cancers would be found ({_percent(interval.low)} to "
        f"{_percent(interval.high)})."
    )
    share = float(evaluation.breasts.table.groupby("patient_id")["cancer"].max().mean())
    if 100 * share <= rate:
        return sentence
    return f"{sentence} Nobody could find all of them so: {_percent(share)} of these women have cancer."


def describe_pf1(evaluation: Evaluation) -> str:
    """Says what the pooled pF1 is to be compared with."""
    subset, pooled = evaluation.breasts.pooled, evaluation.breasts.pooled.metrics
    if pooled.pf1_best is None or pooled.threshold_best is None:
        return f"pF1 is undefined: {pooled.undefined['pf1_best']}."
    all_ones = all_ones_pf1(subset.num_cancers / subset.num_breasts)
    best = f"With the best threshold, {pooled.threshold_best:.3f}, it is {pooled.pf1_best:.3f}"
    start = ""
    if pooled.pf1_transferred is not None:
        interval = format_interval(subset.intervals.get("pf1_transferred"))
        start = (
            "Calling back each fold's breasts by the threshold that the other folds chose gives pF1 "
            f"{pooled.pf1_transferred:.3f}{f' ({interval})' if interval else ''}. "
        )
    else:
        best = f"With the best threshold, {pooled.threshold_best:.3f}, pF1 is {pooled.pf1_best:.3f}"
    return f"{start}{best}; calling back every breast would give {all_ones:.3f}."


def list_warnings(run: Run, evaluation: Evaluation, histories: dict[int, pd.DataFrame]) -> list[str]:
    """Says what stands between these figures and what they seem to promise."""
    pooled = evaluation.breasts.pooled
    prevalence = pooled.num_cancers / pooled.num_breasts
    sentences = [describe_selection(run, histories)]
    if pooled.num_cancers < FEW_CANCERS:
        sentences.append(
            f"Only {pooled.num_cancers} breasts with cancer: the intervals say more than the figures."
        )
    sentences.append(
        f"pF1 depends on how common cancer is. Here {100 * prevalence:.1f}\u00a0% of the breasts have it, "
        f"and answering 1 for every breast scores {all_ones_pf1(prevalence):.3f}. Compare pF1 only at the "
        "same prevalence."
    )
    sentences.append(
        "The best threshold was chosen on the very predictions that it is judged by, so pF1 at the best "
        "threshold is a little too high, on a single fold more so; pF1 at the transferred threshold is not."
    )
    sentences.append(
        "The probabilities are the models' raw output, not calibrated risks: read them as a ranking, or see "
        "how calibration changes them."
    )
    return [sentence for sentence in sentences if sentence]


def describe_selection(run: Run, histories: dict[int, pd.DataFrame]) -> str:
    """Says what choosing the best epoch by the held-out images has bought; empty if none was chosen."""
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


def describe_separation(evaluation: Evaluation) -> str:
    """Proves that no patient is in two folds, from the predictions themselves."""
    table = evaluation.fold_table
    counts = " + ".join(f"{count:,}" for count in table["num_patients"])
    num_patients = evaluation.breasts.pooled.num_patients
    shared = int(table["num_patients_elsewhere"].sum())
    if shared:
        return f"{shared:,} times a patient is in another fold too: the figures flatter the model."
    return (
        f"No patient is in two folds: the folds hold {counts} = {table['num_patients'].sum():,} patients, "
        f"and the predictions name {num_patients:,} different ones."
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


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"
