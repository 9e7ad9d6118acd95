"""The report of a run on an external set: the page and the text of a run's own, with what carries over."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from data_prep.storage.atomic import write_text
from pipeline.evaluation.artifacts import write_figures
from pipeline.evaluation.audit.shortcuts import NUM_DEALT
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.evaluation.external.external_set import CarriedThreshold, ExternalSet
from pipeline.evaluation.external.seen import SAME_ID
from pipeline.reporting.cases.case_images import CaseImages
from pipeline.reporting.cases.case_selection import select_cases
from pipeline.reporting.cases.gallery import show_external_cases
from pipeline.reporting.formatting import format_figure, format_interval, format_percent
from pipeline.reporting.rendering import render_markdown, render_page
from pipeline.reporting.report import (
    FIGURE_FILTERS,
    TEXT_FILTERS,
    collect_content,
    make_pictures,
    say_missing,
)
from pipeline.reporting.sections.shortcut_text import AUDIT_NOTE
from pipeline.reporting.tables import Table
from pipeline.runs.evaluation_folder import ExternalFolder
from pipeline.runs.run_folder import Run
from pipeline.runtime.progress import Reporter

RULES = {"probability": "the same probability", "recall_rate": "the same share recalled"}
CARRIED_NOTE = (
    "The threshold is the one of submissions, for the mean of all models. As a probability, it means the "
    "same here only if the probabilities do. As a share it recalls as many of these breasts as of the run's "
    "own, whatever their probabilities and however many have cancer. All other figures at the run's "
    "threshold take the probability."
)
PARAMETERS_NOTE = (
    "Learned from the run's out-of-fold predictions, each of a single model, and applied to the ensemble, "
    "whose probabilities lie closer together."
)
SHIFT_NOTE = (
    "Differences are in standard deviations (of means, or of shares as of yes and no); 0.1 is small, and "
    "from 0.5 on the sets are hardly alike. The run's own are the images that its folds hold out. Tones are "
    "0 to 1, of prepared pictures: brightness of the breast's box, contrast from the 5th to the 95th "
    "percentile, and the share at the upper end."
)


def write_external_report(
    run: Run, folder: ExternalFolder, evaluation: Evaluation, images: CaseImages, *, reporter: Reporter
) -> None:
    """Writes figures, page and text into the folder of the set, once all are made.

    Raises:
        UserError: if a file of the run that the report shows is damaged; nothing is written then.
    """
    assert evaluation.external is not None, "it is of an external set"
    selection = select_cases(evaluation)
    content = collect_content(run, evaluation, selection) | describe_external(evaluation, evaluation.external)
    pictures = make_pictures(run, evaluation, content["histories"])
    gallery = show_external_cases(run, selection, images, reporter=reporter)
    say_missing(gallery, run, reporter)
    page = render_page("report.html.j2", run, filters=FIGURE_FILTERS, gallery=gallery, **content, **pictures)
    text = render_markdown("report.md.j2", run, filters=TEXT_FILTERS, **content)
    write_text(folder.report, page)
    write_text(folder.report_text, text)
    write_figures(folder, evaluation)


def describe_external(evaluation: Evaluation, external: ExternalSet) -> dict[str, Any]:
    """Returns the sentences and tables that a run's own report has not, or has otherwise."""
    return {
        "run_name": f"{external.run_name} on {external.name}",
        "separation": describe_learned(evaluation, external),
        "parameters_note": PARAMETERS_NOTE,
        "audit_note": f"{AUDIT_NOTE} Here the patients were dealt into {NUM_DEALT} folds for this alone.",
        "carried": tabulate_carried(external),
        "carried_note": CARRIED_NOTE,
        "shift": tabulate_shift(external.shift),
        "shift_note": SHIFT_NOTE,
    }


def describe_learned(evaluation: Evaluation, external: ExternalSet) -> str:
    """Says that the run has learned from none of these patients, and how that is known."""
    num_patients = evaluation.breasts.pooled.num_patients
    first = (
        f"None of these {num_patients:,} patients has the id of one of the {external.num_learned:,} that the "
        "run has learned from"
    )
    pictures = (
        f"; whether a picture of theirs is one of the run's is not known: {external.not_compared}."
        if external.not_compared
        else ", and none of their pictures is one of the run's, by checksum."
    )
    patients = external.left_out.drop_duplicates("patient_id")
    if patients.empty:
        return f"{first}{pictures}"
    by_id = int((patients["reason"] == SAME_ID).sum())
    return (
        f"{first}{pictures} Left out were {by_id:,} with such an id, {len(patients) - by_id:,} by a picture."
    )


def tabulate_carried(external: ExternalSet) -> Table:
    """Returns what each way to carry the threshold over does."""
    columns = ["carried over as", "of the run", "threshold here", "breasts recalled", "pF1", "95 %"]
    unit = _name_unit(external.carried)
    columns += [f"sensitivity per {unit}", f"specificity per {unit}"]
    return Table("The run's threshold", columns, [_describe_carried(each) for each in external.carried])


def _name_unit(carried: Sequence[CarriedThreshold]) -> str:
    return next(
        (each.operating_point.tables[-1].unit for each in carried if each.operating_point.tables), "woman"
    )


def _describe_carried(carried: CarriedThreshold) -> list[str]:
    show = format_percent if carried.rule == "recall_rate" else format_figure
    tables = carried.operating_point.tables  # the last is of women, or of their exams
    rates = [tables[-1].figures[name] if tables else None for name in ("sensitivity", "specificity")]
    return [
        RULES[carried.rule],
        show(carried.value),
        format_figure(carried.threshold),
        format_percent(carried.recalled),
        format_figure(carried.estimate.metrics.pf1_transferred),
        format_interval(carried.estimate.intervals.get("pf1_transferred")),
        *map(format_figure, rates),
    ]


def tabulate_shift(shift: pd.DataFrame) -> Table:
    """Returns the shift as text."""
    rows = []
    for row in shift.to_dict("records"):
        cells = [_show_statistic(str(row["statistic"]), row[name]) for name in ("run", "external")]
        difference = row["standardized_difference"]
        trait = f"{row['trait']}: {row['value']}" if row["value"] else str(row["trait"])
        rows.append(
            [trait, str(row["statistic"]), *cells, "" if pd.isna(difference) else f"{difference:+.2f}"]
        )
    columns = ["trait", "statistic", "the run's own", "this set", "difference"]
    return Table("How this set differs from the run's own data", columns, rows)


def _show_statistic(statistic: str, value: float) -> str:
    if pd.isna(value):
        return "not known"
    if statistic == "share":
        return format_percent(value)
    return f"{value:,.0f}" if statistic == "count" else f"{value:,.3g}"
