"""What is written of an evaluated run for people: `report.html`, `report.md`, `model_card.md`.

All hold the same numbers, and the page is one self-contained file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.storage.atomic import write_text
from pipeline.evaluation.artifacts import write_evaluation
from pipeline.evaluation.calibration import RAW
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.evaluation.slices import list_values
from pipeline.reporting.cases.case_selection import CaseSelection, select_cases
from pipeline.reporting.cases.gallery import Gallery, show_cases
from pipeline.reporting.formatting import format_figure, format_interval
from pipeline.reporting.plots import calibration_plots, curves
from pipeline.reporting.plots.svg import fold_line
from pipeline.reporting.rendering import Filters, Picture, render_markdown, render_page
from pipeline.reporting.sections.age_text import AGE_NOTE, describe_age, tabulate_age, tabulate_regressions
from pipeline.reporting.sections.calibration_text import (
    CALIBRATION_NOTE,
    describe_loss,
    describe_use,
    tabulate_calibration,
    tabulate_parameters,
)
from pipeline.reporting.sections.decision_text import (
    HOW_TO_READ,
    describe_decisions,
    draw_decisions,
    tabulate_decisions,
)
from pipeline.reporting.sections.repeats_text import describe_repeats, tabulate_repeats
from pipeline.reporting.sections.shortcut_text import (
    AUDIT_NOTE,
    describe_heterogeneity,
    explain_not_looked_at,
    tabulate_shortcuts,
)
from pipeline.reporting.standard_tables import (
    describe_flow,
    describe_rates,
    tabulate_cells,
    tabulate_flow,
    tabulate_rates,
)
from pipeline.reporting.tables import (
    tabulate_cases,
    tabulate_figures,
    tabulate_folds,
    tabulate_patients,
    tabulate_slices,
    tabulate_stability,
    tabulate_throughput,
    to_markdown,
)
from pipeline.reporting.text import (
    INTERVALS,
    choose_sensitivity,
    describe_ceilings,
    describe_recalling,
    describe_separation,
    describe_thresholds,
    explain_no_stability,
    explain_undefined,
    list_headlines,
    list_warnings,
)
from pipeline.reporting.vit_figures import draw_vit_figures
from pipeline.reporting.wording import wording_of
from pipeline.runs.records import HISTORY_FIGURES, read_numbers
from pipeline.runs.run_folder import Run
from pipeline.runtime.progress import Reporter

HISTORY_COLUMNS = ["epoch", "train_loss", "val_loss", *(f"val_{name}" for name in HISTORY_FIGURES)]
THROUGHPUT_FIGURES = ["epoch", "seconds", "images_per_second", "loader_wait_share", "mfu", "peak_memory_mb"]
NEWER_THROUGHPUT_FIGURES = ["epoch_seconds"]
"""What is shown of a training; its tables hold more."""
MOST_SITES = 5
"""That have a histogram of their own."""
FIGURE_FILTERS: Filters = {
    "figure": format_figure,
    "interval": format_interval,
    "colour": lambda fold: fold_line(int(fold))["color"],
}
TEXT_FILTERS: Filters = {**FIGURE_FILTERS, "table": to_markdown}


def write_report(run: Run, evaluation: Evaluation, *, reporter: Reporter, cache: Cache | None = None) -> Path:
    """Writes the figures, the page, the same for plain readers and the model card; returns the page's path.

    All is made before the first file is written, so that a folder never holds half of two reports. Pictures
    come from `cache`, or from the cache that the run names; the reporter says what has none.

    Raises:
        UserError: if a file that the report shows is damaged; nothing is written then.
    """
    texts = render_report(run, evaluation, reporter=reporter, cache=cache)
    write_evaluation(run, evaluation)
    for path, text in texts.items():
        write_text(path, text)
    return run.report


def render_report(
    run: Run, evaluation: Evaluation, *, reporter: Reporter, cache: Cache | None = None
) -> dict[Path, str]:
    """Returns the texts by the file that they belong into."""
    selection = select_cases(evaluation)
    content = collect_content(run, evaluation, selection)
    pictures = make_pictures(run, evaluation, content["histories"])
    gallery = show_cases(run, selection, reporter=reporter, cache=cache)
    say_missing(gallery, run, reporter)
    page = render_page("report.html.j2", run, filters=FIGURE_FILTERS, gallery=gallery, **content, **pictures)
    return {
        run.report: page,
        run.report_text: render_markdown("report.md.j2", run, filters=TEXT_FILTERS, **content),
        run.model_card: render_markdown("model_card.md.j2", run, filters=TEXT_FILTERS, **content),
    }


def say_missing(gallery: Gallery, run: Run, reporter: Reporter) -> None:
    """Says which pictures the report has not."""
    for sentence in gallery.missing:
        reporter.say(f"warning: {sentence}")
    if gallery.reasons:
        one, (reason, *_) = len(gallery.reasons) == 1, gallery.reasons.values()
        reporter.say(
            f"warning: {'1 image' if one else f'{len(gallery.reasons)} images'} of the cases "
            f"{'has' if one else 'have'} no picture: {reason}{'' if one else ', and so on'}"
        )
    if gallery.lacks_cache:
        reporter.say(f"the cache can be named: `mammo evaluate {run.folder} --cache CACHE`")


def collect_content(run: Run, evaluation: Evaluation, selection: CaseSelection) -> dict[str, Any]:
    """Returns what page, text and card have in common: sentences and tables."""
    folds, words, repeats = list(evaluation.breasts.folds), wording_of(evaluation), evaluation.repeats
    histories = read_tables({fold: run.fold(fold).history for fold in folds}, HISTORY_COLUMNS)
    throughputs = read_tables(
        {fold: run.fold(fold).throughput for fold in folds},
        THROUGHPUT_FIGURES,
        newer=NEWER_THROUGHPUT_FIGURES,
    )
    return {
        "evaluation": evaluation,
        "interval_note": INTERVALS,
        "histories": histories,
        "headlines": list_headlines(evaluation),
        "sensitivity": choose_sensitivity(evaluation),
        "warnings": list_warnings(run, evaluation, histories),
        "separation": describe_separation(run, evaluation),
        "undefined": explain_undefined(evaluation),
        "no_stability": explain_no_stability(evaluation),
        "ceilings": describe_ceilings(evaluation),
        "names": words.names,
        "selection": selection,
        "recall": describe_recalling(evaluation),
        "thresholds": describe_thresholds(evaluation),
        "words": words,
        "one_probability": words.one_probability,
        "figures": tabulate_figures(evaluation),
        "folds": tabulate_folds(evaluation),
        "people": tabulate_patients(evaluation),
        "slices": tabulate_slices(evaluation),
        "heterogeneity": describe_heterogeneity(evaluation),
        "shortcuts": tabulate_shortcuts(evaluation.audit),
        "two_by_two": tabulate_cells(evaluation.operating_point, words.transferred),
        "rates": tabulate_rates(evaluation.operating_point, words.transferred),
        "rates_note": describe_rates(evaluation.operating_point),
        "flow": tabulate_flow(evaluation.flow),
        "flow_note": describe_flow(evaluation.flow),
        "audit_note": AUDIT_NOTE,
        "age": tabulate_age(evaluation.age),
        "age_findings": describe_age(evaluation.age),
        "age_note": AGE_NOTE,
        "age_regressions": tabulate_regressions(evaluation.age),
        "not_looked_at": explain_not_looked_at(evaluation.audit),
        "calibration": tabulate_calibration(evaluation.calibration, words.names),
        "calibration_note": CALIBRATION_NOTE.format(constant=words.constant, teachers=words.teachers),
        "parameters": tabulate_parameters(evaluation.calibration),
        "parameters_note": describe_use(evaluation.calibration),
        "loss_note": describe_loss(run),
        "repeats": tabulate_repeats(repeats) if repeats else None,
        "repeats_note": describe_repeats(repeats) if repeats else "",
        "decisions": tabulate_decisions(evaluation.decisions),
        "decisions_note": describe_decisions(evaluation.decisions),
        "how_to_read_decisions": HOW_TO_READ,
        "stability": tabulate_stability(evaluation),
        "cases": tabulate_cases(selection, with_folds=evaluation.external is None),
        "throughput": tabulate_throughput(throughputs),
    }


def make_pictures(run: Run, evaluation: Evaluation, histories: dict[int, pd.DataFrame]) -> dict[str, Any]:
    """Returns the drawings of each section."""
    trainings = {f"fold {fold}": run.fold(fold) for fold in evaluation.breasts.folds}
    return {
        "curves": make_curves(evaluation),
        "reliability": make_reliability(evaluation),
        "histograms": [make_histograms(evaluation)],
        "decision_curve": draw_decisions(evaluation.decisions),
        "stability_curves": make_stability(evaluation),
        "learning_curves": make_learning_curves(histories),
        "vit_figures": draw_vit_figures(run.settings, trainings),
    }


def make_curves(evaluation: Evaluation) -> list[Picture]:
    """Draws ROC, precision-recall and pF1 curves; none where a class is missing."""
    breasts, threshold = evaluation.breasts.table, evaluation.threshold
    if evaluation.breasts.pooled.metrics.auc is None or threshold is None:
        return []
    folds, words = evaluation.breasts.fold_tables, wording_of(evaluation)
    return [
        Picture("ROC", curves.draw_roc(breasts, folds, words.thick_roc), words.roc_note),
        Picture(
            "Precision and recall",
            curves.draw_precision_recall(breasts, folds, words.all_folds),
            f"{words.precision_note}Dashed: the prevalence, which is the precision of guessing.",
        ),
        Picture(
            "pF1 against the threshold",
            curves.draw_f1_by_threshold(breasts, folds, threshold, words.pooled),
            f"Dashed: {words.chosen}, and the pF1 of recalling every breast. The axis is even in log-odds.",
        ),
    ]


def make_reliability(evaluation: Evaluation) -> list[Picture]:
    """Draws the raw probabilities' reliability, and the calibrated ones' where they could be calibrated."""
    bins = evaluation.calibration.bins
    is_raw = bins["method"] == RAW
    pictures = [
        Picture(
            "Reliability, raw",
            calibration_plots.draw_reliability(bins[is_raw]),
            "A dot for each tenth of the breasts, with the 95\u00a0% interval of its share. Dashed: "
            "probabilities that can be taken at their word.",
        )
    ]
    if not is_raw.all():
        pictures.append(
            Picture(
                "Reliability, calibrated",
                calibration_plots.draw_calibrated(bins[~is_raw]),
                "Each fold was calibrated by what the other folds taught."
                if evaluation.external is None
                else "Calibrated by what the run's own out-of-fold predictions taught.",
            )
        )
    return pictures


def make_histograms(evaluation: Evaluation) -> Picture:
    """Draws how the probabilities of each class spread, of all and of the largest sites."""
    kinds, caption = evaluation.breasts.kinds, "Each class adds up to 1. The axis is even in log-odds."
    sites = kinds.get("site")
    shown: list[str] = []
    if sites is not None:
        largest = sites.value_counts().index[:MOST_SITES]
        shown = [site for site in list_values(sites) if site in largest]
        if len(shown) < sites.nunique():
            caption += f" Shown are the {len(shown)} largest sites."
    drawing = calibration_plots.draw_histograms(evaluation.breasts.table, sites, shown)
    return Picture("Probabilities by class and site" if shown else "Probabilities by class", drawing, caption)


def make_stability(evaluation: Evaluation) -> list[Picture]:
    """Draws pF1 around the best pooled threshold; none where there is no threshold."""
    changes, threshold = evaluation.stability, evaluation.threshold
    if changes.empty or threshold is None:
        return []
    by_change = dict(iter(changes.groupby("change")))
    prevalence = float(evaluation.breasts.table["cancer"].mean())
    return [
        Picture(
            "Another threshold",
            calibration_plots.draw_threshold_stability(by_change["threshold"], threshold),
            f"Dashed: {wording_of(evaluation).chosen}. Shaded: the 95\u00a0% interval.",
        ),
        Picture(
            "Another prevalence",
            calibration_plots.draw_prevalence_stability(by_change["prevalence"], prevalence),
            "The same threshold where cancer is rarer or more common. Dashed: the prevalence here.",
        ),
    ]


def make_learning_curves(histories: dict[int, pd.DataFrame]) -> list[Picture]:
    """Draws losses and validation AUC; none without a history."""
    if not histories:
        return []
    return [
        Picture("Loss", curves.draw_losses(histories), "Solid: training. Dashed: validation."),
        Picture("Validation AUC", curves.draw_validation_auc(histories), "Dashed: guessing."),
    ]


def read_tables(
    paths: dict[int, Path], columns: list[str], *, newer: Sequence[str] = ()
) -> dict[int, pd.DataFrame]:
    """Reads the table of each fold that has one.

    Raises:
        UserError: if one is damaged.
    """
    return {fold: read_numbers(path, columns, newer=newer) for fold, path in paths.items() if path.exists()}
