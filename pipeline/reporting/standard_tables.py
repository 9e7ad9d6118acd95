"""What the standards of reporting ask for: the flow of cases, and who is recalled."""

from pipeline.evaluation.audit.flow import Flow
from pipeline.evaluation.operating_point import CELLS, SCREENING_PREVALENCE, OperatingPoint
from pipeline.reporting.formatting import format_figure, format_interval, format_percent
from pipeline.reporting.tables import Table
from pipeline.reporting.wording import OUT_OF_FOLD

RATE_NAMES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "positive predictive value, of a recall",
    "npv": "negative predictive value",
    "likelihood_ratio_positive": "likelihood ratio of a recall",
    "likelihood_ratio_negative": "likelihood ratio of none",
    "recall_rate": "recall rate",
    "cancers_found_per_1000": "cancers found per 1,000",
    "recalled_per_cancer_found": "recalled per cancer found",
    "screening_recall_rate": "recall rate, in screening",
    "screening_ppv": "positive predictive value, in screening",
    "screening_cancers_found_per_1000": "cancers found per 1,000, in screening",
    "screening_recalled_per_cancer_found": "recalled per cancer found, in screening",
}
CELL_NAMES = dict(
    zip(
        CELLS,
        ["recalled, cancer", "recalled, none", "not recalled, cancer", "not recalled, none"],
        strict=True,
    )
)


def tabulate_flow(flow: Flow) -> Table:
    """Returns what became of the images of the cache."""
    rows = [
        [str(row["step"]), *(f"{row[f'num_{name}']:,}" for name in ("images", "breasts", "cancers"))]
        for row in flow.steps.to_dict("records")
    ]
    return Table("The flow of cases", ["step", "images", "breasts", "with cancer"], rows)


def describe_flow(flow: Flow) -> str:
    """Says what is not recorded of the predicted images, and what is not known of the others."""
    shares = ", ".join(f"{name} {format_percent(share)}" for name, share in flow.missing.items())
    missing = f"Not recorded, of the predicted images: {shares}. " if shares else ""
    unknown = f"What was in the cache and failed is not known: {flow.unknown}." if flow.unknown else ""
    return f"{missing}{unknown}".strip()


def describe_lost_cancers(flow: Flow) -> str:
    """Warns of cancers that are in no figure; empty without."""
    number = flow.num_lost_cancers
    if not number:
        return ""
    breasts = "1 breast with cancer is" if number == 1 else f"{number:,} breasts with cancer are"
    return f"{breasts} in no figure here, since none of their images could be used: see the flow of cases."


def tabulate_cells(point: OperatingPoint, threshold: str = OUT_OF_FOLD.transferred) -> Table:
    """Returns the two-by-two tables, a row for each unit; without rows where there is no threshold.

    Args:
        point: who is recalled.
        threshold: what the one is called that decides.
    """
    rows = [[f"per {table.unit}", *(f"{table.cells[name]:,}" for name in CELLS)] for table in point.tables]
    return Table(f"Who is recalled at {threshold}", ["", *CELL_NAMES.values()], rows)


def describe_rates(point: OperatingPoint) -> str:
    """Says who counts as recalled, and what the figures of screening are."""
    frequency = f"{1000 * SCREENING_PREVALENCE:.0f} of 1,000"
    if any(table.unit == "exam" for table in point.tables):
        return (
            "An exam is recalled if one of its breasts is, and a woman with several exams counts once for "
            "each, as in the ACR's audit. In screening: at the same sensitivity and specificity per exam, "
            f"where {frequency} exams have cancer."
        )
    return (
        "A woman is recalled if one of her breasts is. In screening: at the same sensitivity and specificity "
        f"per woman, where {frequency} women have cancer."
    )


def tabulate_rates(point: OperatingPoint, threshold: str = OUT_OF_FOLD.transferred) -> Table:
    """Returns what follows from them, per breast and per exam or woman, and intervals or why there are none.

    What breasts do not have is empty.
    """
    rows = []
    for name, title in RATE_NAMES.items():
        cells = [title]
        for table in point.tables:
            figure = format_figure(table.figures[name]) if name in table.figures else ""
            interval = format_interval(table.intervals.get(name))
            cells += [figure, interval or table.no_interval.get(name, "")]
        rows.append(cells)
    columns = ["figure", *(cell for table in point.tables for cell in (f"per {table.unit}", "95 %"))]
    return Table(f"What recalling by {threshold} does", columns, rows if point.tables else [])
