"""What a report says in words: headlines, warnings, what is undefined."""

import numpy as np
import pandas as pd

from data_prep.errors import UserError, count
from data_prep.rsna.exam_table import EXAM_ID, number_exams
from pipeline.evaluation.bootstrap import NUM_REPLICATES
from pipeline.evaluation.estimates import Estimate
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.evaluation.formulas import count_recalls
from pipeline.evaluation.metrics import RECALL_RATES, SEVERAL_THRESHOLDS, SPECIFICITIES, all_ones_pf1
from pipeline.reporting.formatting import (
    FIGURE_NAMES,
    format_figure,
    format_interval,
    format_percent,
    format_threshold,
)
from pipeline.reporting.sections.calibration_text import describe_offset
from pipeline.reporting.sections.first_weights_text import describe_transductive
from pipeline.reporting.sections.fusion_text import describe_fusion
from pipeline.reporting.sections.shortcut_text import describe_shortcuts
from pipeline.reporting.standard_tables import describe_lost_cancers
from pipeline.reporting.wording import wording_of
from pipeline.runs.recipe import load_recipe
from pipeline.runs.records import describe_groups
from pipeline.runs.run_folder import Run

LARGEST_POOLED_DIFFERENCE = 0.01
"""Between the AUC within folds and that of all folds in one ranking; above it a report warns."""
FEW_CANCERS = 100
"""Below this number of cancers a report warns that intervals are wide."""
MANY_TIES = 0.1
"""From this share of breasts on, a report warns that their probabilities are those of other breasts."""
INTERVALS = (
    "Intervals are 95 %. Those of AUCs come from Obuchowski's variance, on the logit; those of sensitivities "
    "at a recall rate are the mid-P ones of so many women with cancer; those of all other figures here are "
    f"the 2.5th to 97.5th percentile of {NUM_REPLICATES:,} bootstrap replicates. All count a patient once, "
    "however many images she has. They hold the models fixed: trained again, with another seed or on other "
    "patients, the models would give figures that differ more, and mammo train --repeats measures how much. "
    "The best threshold and the one that was chosen elsewhere are held fixed too, while that of a "
    "sensitivity at a specificity is found anew in each replicate, as it is in use. A share of 0 or 1 has "
    "the exact interval of so many patients with cancer."
)
"""What intervals are, wherever they stand."""


def list_headlines(evaluation: Evaluation) -> list[str]:
    """Says in plain words what the main figures mean."""
    sentences = [describe_auc(evaluation), describe_sensitivity(evaluation), describe_pf1(evaluation)]
    return [sentence for sentence in sentences if sentence]


def describe_auc(evaluation: Evaluation) -> str:
    """Says in plain words what the AUC means."""
    name, estimate = evaluation.lead
    auc, interval = estimate.figures[name], estimate.intervals.get(name)
    if auc is None:
        return f"The AUC is undefined: {estimate.undefined[name]}."
    if interval is None:
        return f"The AUC is {auc:.3f}, and has no interval: {estimate.no_interval[name]}."
    one, judge = "breast" if name == "auc" else "image", wording_of(evaluation).judge
    sentence = (
        f"Shown one {one} with cancer and one without, of patients it never saw, {judge} gives the higher "
        f"probability to the one with cancer in {format_percent(auc)} of cases (95\u00a0% interval "
        f"{format_percent(interval.low)} to {format_percent(interval.high)})"
    )
    if interval.low > 0.5:
        return f"{sentence}; a coin would in half of them."
    if interval.high < 0.5:
        return f"{sentence}: worse than a coin."
    return f"{sentence}, which cannot be told from a coin's half."


def choose_sensitivity(evaluation: Evaluation) -> str:
    """Returns the sensitivity that stands among the headlines.

    It is that of recalling few women, unless more women of a fold have cancer than are recalled.
    """
    rate = max(RECALL_RATES)
    if evaluation.ceilings.get(rate, 1) == 1:
        return f"sensitivity_at_recall_rate_{rate}"
    return f"sensitivity_at_specificity_{min(SPECIFICITIES)}"


def describe_sensitivity(evaluation: Evaluation) -> str:
    """Says how many cancers would be found at a price that is named; empty where that is undefined."""
    pooled, name = evaluation.breasts.pooled, choose_sensitivity(evaluation)
    value, interval = pooled.metrics.figures[name], pooled.intervals.get(name)
    if value is None:
        return ""
    spread = (
        f" ({format_percent(interval.low)} to {format_percent(interval.high)})"
        if interval is not None
        else ""
    )
    words = wording_of(evaluation)
    if name.startswith("sensitivity_at_specificity"):
        return (
            f"At a threshold that recalls at most {100 - min(SPECIFICITIES)}\u00a0% of the breasts without "
            f"cancer{words.in_each_fold}, {format_percent(value)} of those with cancer would be "
            f"recalled{spread}."
        )
    return (
        f"If at most {max(RECALL_RATES)}\u00a0% of the {name_recalled(evaluation)} were recalled, "
        f"{words.whose}, {format_percent(value)} of the cancers would be found{spread}."
    )


def name_recalled(evaluation: Evaluation) -> str:
    """Returns what recall rates are shares of: exams, or women where no ids tell a woman's exams apart."""
    return "exams" if EXAM_ID in evaluation.oof else "women"


def describe_recalling(evaluation: Evaluation) -> str:
    """Says what is meant by the words, as the report does once."""
    unlike = "It is not the recall of a classifier, which is called sensitivity here."
    if EXAM_ID in evaluation.oof:
        return (
            "An exam is recalled if the woman is invited for further examination after it, and the recall "
            f"rate is the share of the exams that are. {unlike}"
        )
    return (
        "A woman is recalled if she is invited for further examination, and the recall rate is the share of "
        f"the women who are. {unlike}"
    )


def describe_ceilings(evaluation: Evaluation) -> str:
    """Says what recalling few women can find at most; empty where it can find all cancers."""
    ceilings = evaluation.ceilings
    if not ceilings or min(ceilings.values()) == 1:
        return ""
    number = len(np.unique(number_exams(evaluation.breasts.table)))
    counts = [count_recalls(number, rate / 100) for rate in ceilings]
    named = name_recalled(evaluation)
    if max(counts) == 0:
        return f"{max(ceilings)}\u00a0% of these {number:,} {named} are less than one, so none is recalled."
    recalled = ", ".join(f"{each:,.0f}" for each in counts)
    pronoun = "whom" if named == "women" else "which"
    rates = ", ".join(f"{rate}\u00a0%" for rate in ceilings)
    most = ", ".join(map(format_percent, ceilings.values()))
    is_one = evaluation.external is not None
    parts = ". Where a set" if is_one else f", of {pronoun} each fold recalls its part. Where a fold"
    return (
        f"{rates} of these {number:,} {named} are {recalled}{parts} has more {named} with cancer than that, "
        f"some are missed: no model can find more than {most} of the cancers."
    )


def describe_pf1(evaluation: Evaluation) -> str:
    """Says what the pooled pF1 is to be compared with."""
    estimate, pooled = evaluation.breasts.pooled, evaluation.breasts.pooled.metrics
    if pooled.pf1_best is None or pooled.threshold_best is None:
        return f"pF1 is undefined: {pooled.undefined['pf1_best']}."
    all_ones = all_ones_pf1(estimate.num_cancers / estimate.num_breasts)
    best = f"at the best threshold, {format_threshold(pooled.threshold_best)}, is {pooled.pf1_best:.3f}"
    start = "pF1"
    if pooled.pf1_transferred is not None:
        interval = format_interval(estimate.intervals.get("pf1_transferred"))
        source = (
            "each fold's breasts are recalled by the threshold that was best on all other folds"
            if evaluation.external is None
            else "the breasts are recalled by the run's threshold for the mean of its models"
        )
        start = (
            f"{wording_of(evaluation).names['pf1_transferred']} is {pooled.pf1_transferred:.3f}"
            f"{f' ({interval})' if interval else ''}: {source}. pF1"
        )
    return f"{start} {best}; recalling every breast would give {all_ones:.3f}."


def describe_thresholds(evaluation: Evaluation) -> str:
    """Says what the thresholds are for; empty where there is none."""
    rate, threshold = evaluation.recall_rate, evaluation.threshold_of_mean
    if rate is None or threshold is None or evaluation.external is not None:
        return ""
    return (
        f"Thresholds here are of single models. The best one recalls {format_percent(rate)} of the breasts. "
        f"A submission, of the mean of all models, uses {format_threshold(threshold)} instead: the mean of "
        "the thresholds that recall this share of each fold."
    )


def list_warnings(run: Run, evaluation: Evaluation, histories: dict[int, pd.DataFrame]) -> list[str]:
    """Says what stands between these figures and what they seem to promise."""
    is_out_of_fold = evaluation.external is None
    sentences = [
        *describe_shortcuts(evaluation.audit),
        describe_lost_cancers(evaluation.flow),
        *([describe_selection(run, histories), describe_transductive(run)] if is_out_of_fold else []),
        *(describe_fusion(evaluation.oof), describe_pooling(evaluation.breasts.pooled)),
        describe_ties(evaluation),
        *describe_prevalence(evaluation.breasts.pooled, wording_of(evaluation).names["pf1_transferred"]),
    ]
    advice = "" if evaluation.calibration.undefined else ", or see how calibration changes them"
    sentences.append(
        "The probabilities are the models' raw output, not calibrated risks: read them as a "
        f"ranking{advice}. {describe_offset(evaluation.calibration)}".strip()
    )
    return [sentence for sentence in sentences if sentence]


def describe_pooling(pooled: Estimate) -> str:
    """Says that the folds' probabilities may be on different scales; empty where it makes no difference."""
    within, together = pooled.metrics.auc, pooled.metrics.auc_pooled
    if within is None or together is None or abs(within - together) < LARGEST_POOLED_DIFFERENCE:
        return ""
    return (
        f"The folds' models may give probabilities on different scales: the AUC is {within:.3f} within folds "
        f"and {together:.3f} with all folds in one ranking. Figures that rank are taken within folds. One "
        f"threshold for all, as of {FIGURE_NAMES['pf1_best']}, need not treat the folds alike."
    )


def describe_prevalence(pooled: Estimate, transferred: str = FIGURE_NAMES["pf1_transferred"]) -> list[str]:
    """Says what the number of cancers does to the figures, and to pF1 above all."""
    if not pooled.num_cancers:
        return ["No breast has cancer: nothing here says whether the models would find one."]
    if pooled.num_cancers == pooled.num_breasts:
        return [
            "Every breast has cancer: nothing here says whether the models would leave a healthy one alone."
        ]
    prevalence = pooled.num_cancers / pooled.num_breasts
    few = f"Only {count(pooled.num_cancers, 'breast')} with cancer: the intervals say more than the figures."
    common = (
        f"pF1 depends on how common cancer is. Here {format_percent(prevalence)} of the breasts have it, "
        f"and answering 1 for every breast scores {all_ones_pf1(prevalence):.3f}. Compare pF1 only at the "
        "same prevalence."
    )
    chosen = (
        f"The best threshold was chosen on the very predictions that it is judged by, so "
        f"{FIGURE_NAMES['pf1_best']} is a little too high, on a single fold more so; {transferred} is not."
    )
    return [few if pooled.num_cancers < FEW_CANCERS else "", common, chosen]


def describe_ties(evaluation: Evaluation) -> str:
    """Says that many breasts have the very same probability as another; empty where few have."""
    share = float(evaluation.breasts.table["probability"].duplicated(keep=False).mean())
    if share < MANY_TIES:
        return ""
    return (
        f"{format_percent(share)} of the breasts have the very same probability as another breast, and no "
        "threshold can separate them: training may have collapsed, or the arithmetic may be too coarse."
    )


def explain_no_stability(evaluation: Evaluation) -> str:
    """Says why no threshold was moved; empty where one was."""
    if not evaluation.stability.empty:
        return ""
    if not evaluation.breasts.pooled.num_cancers:
        return "There is no threshold to move, since no breast has cancer."
    return "The threshold was not moved, since every breast has cancer: recalling all of them is right."


def describe_selection(run: Run, histories: dict[int, pd.DataFrame]) -> str:
    """Says what choosing the best epoch by the held-out images has bought; empty if none was chosen."""
    try:
        settings = load_recipe(run.settings).train
    except UserError:  # the page shows them as they are
        return ""
    if settings.select == "last" or not histories:
        return ""
    columns = [history[settings.select_by] for history in histories.values()]
    best = pd.Series([column.max() for column in columns]).mean()
    last = pd.Series([column.iloc[-1] for column in columns]).mean()
    return (
        f"Each fold predicts with the epoch whose {settings.select_by} was the highest on the very patients "
        f"it is judged by: {format_figure(best)} on average, against {format_figure(last)} at the last epoch."
        " All figures here are too good by up to about that difference."
    )


def describe_separation(run: Run, evaluation: Evaluation) -> str:
    """Proves that no patient is in two folds, from the predictions themselves; tells of shared pictures."""
    table = evaluation.fold_table
    counts = " + ".join(f"{count:,}" for count in table["num_patients"])
    num_patients = evaluation.breasts.pooled.num_patients
    groups = describe_groups(run.read_folds())
    sharing = f" {groups}: their breasts count more than once in all figures." if groups else ""
    shared = int(table["num_patients_elsewhere"].sum())
    if shared:
        return f"{count(shared, 'time')} a patient is in another fold too: the figures flatter the model."
    return (
        f"No patient is in two folds: the folds hold {counts} = {table['num_patients'].sum():,} patients, "
        f"and the predictions name {num_patients:,} different ones.{sharing}"
    )


def explain_undefined(evaluation: Evaluation) -> list[str]:
    """Says which figures have no value, where and why, and what the intervals leave out."""
    words = wording_of(evaluation)
    everything = words.all_folds[:1].upper() + words.all_folds[1:]
    sets = {
        **{f"Fold {fold}": estimate.metrics for fold, estimate in evaluation.breasts.folds.items()},
        everything: evaluation.breasts.pooled.metrics,
        f"{everything}, per image": evaluation.images.pooled.metrics,
    }
    sentences = []
    for where, metrics in sets.items():
        for reason in dict.fromkeys(metrics.undefined.values()):
            if reason == SEVERAL_THRESHOLDS:
                continue
            of_reason = [name for name, why in metrics.undefined.items() if why == reason]
            names = [words.names[name] for name in of_reason if name in words.names]
            sentences.append(f"{where}: {reason}, so there is no {', no '.join(names)}.")
    of_breasts = evaluation.breasts.pooled
    for reason in dict.fromkeys(of_breasts.no_interval.values()):
        of_reason = [name for name, why in of_breasts.no_interval.items() if why == reason]
        names = [words.names[name] for name in of_reason if name in words.names]
        sentences.append(f"{everything}: no interval of {', '.join(names)}, since {reason}.")
    left_out = {name: interval.num_undefined for name, interval in of_breasts.intervals.items()}
    counts = [f"{n:,} for {words.names[name]}" for name, n in left_out.items() if n and name in words.names]
    if counts:
        sentences.append(f"Replicates without a value, which the intervals leave out: {', '.join(counts)}.")
    return sentences
