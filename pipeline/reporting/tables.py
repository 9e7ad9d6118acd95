"""The tables of a report, as text for the page and for Markdown alike."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.estimates import FEW_CANCERS, Estimate
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.evaluation.metrics import SEVERAL_THRESHOLDS
from pipeline.reporting.cases.case_selection import CaseSelection
from pipeline.reporting.formatting import (
    format_interval,
    format_named,
    format_percent,
    format_threshold,
)
from pipeline.reporting.rendering import Verbatim, escape_markdown
from pipeline.reporting.wording import wording_of

FOLD_FIGURES = [
    *("auc", "average_precision", "pf1", "pf1_transferred", "threshold_transferred", "pf1_best"),
    "threshold_best",
]


@dataclass(frozen=True)
class Bar:
    """An interval as a bar, in per cent of the axis.

    Attributes:
        description: the same in words.
        guide: where a line stands to compare it with.
    """

    description: str
    low: float
    point: float
    high: float
    guide: float


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        caption: what the rows are.
        feet: rows that stay below the others, such as sums.
        bars: a bar for each row that has one, drawn behind the last column; empty without bars.
        axis: where on the axis a label stands, in per cent, and the label.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    feet: list[list[str]] = field(default_factory=list)
    bars: list[Bar | None] = field(default_factory=list)
    axis: dict[float, str] = field(default_factory=dict)


def tabulate_figures(evaluation: Evaluation) -> Table:
    """Returns all figures with their intervals, per breast and per image."""
    levels = [evaluation.breasts.pooled, evaluation.images.pooled]
    rows = []
    words = wording_of(evaluation)
    for name, title in words.names.items():
        cells = [title]
        for estimate in levels:
            shown = [_show(estimate, name), format_interval(estimate.intervals.get(name))]
            cells += shown if name in estimate.figures else ["", ""]
        rows.append(cells)
    return Table(
        f"All figures, of {words.all_folds}", ["figure", "per breast", "95 %", "per image", "95 %"], rows
    )


def tabulate_folds(evaluation: Evaluation) -> Table:
    """Returns the main figures of each fold, of all together, and the intervals of those."""
    pooled, words = evaluation.breasts.pooled, wording_of(evaluation)
    rows = [[str(fold), *_describe(estimate)] for fold, estimate in evaluation.breasts.folds.items()]
    intervals = [format_interval(pooled.intervals.get(name)) for name in FOLD_FIGURES]
    return Table(
        "Figures per breast of each fold",
        ["fold", *(words.names[name] for name in FOLD_FIGURES), "breasts", "cancers"],
        rows,
        [[words.all_folds, *_describe(pooled)], ["95 %", *intervals, "", ""]],
    )


def tabulate_patients(evaluation: Evaluation) -> Table:
    """Returns who is in which fold."""
    table, pooled = evaluation.fold_table, evaluation.breasts.pooled
    has_ages, extras = "age_median" in table, [name for name in ("sites", "machines") if name in table]
    rows = []
    for row in table.to_dict("records"):
        counts = [row[f"num_{name}"] for name in ("patients", "breasts", "images", "cancers")]
        cells = [str(row["fold"]), *_count(counts), format_percent(row["prevalence"])]
        cells += [str(row["num_patients_elsewhere"]), *([_describe_ages(row)] if has_ages else [])]
        rows.append(cells + [str(row[name]) for name in extras])
    counts = [getattr(pooled, f"num_{name}") for name in ("patients", "breasts", "images", "cancers")]
    shared = str(table["num_patients_elsewhere"].sum())
    feet = ["all", *_count(counts), format_percent(pooled.num_cancers / pooled.num_breasts), shared]
    feet += [""] * (has_ages + len(extras))
    columns = ["fold", "patients", "breasts", "images", "cancers", "prevalence", "patients elsewhere"]
    columns += ["age, median (5 to 95 %)"] if has_ages else []
    return Table(
        "Who is in which fold", columns + [f"patients by {name[:-1]}" for name in extras], rows, [feet]
    )


def tabulate_slices(evaluation: Evaluation) -> Table:
    """Returns a forest plot: the AUC of each kind of breast, and of images where only those have the kind."""
    known = {part.kind for part in evaluation.breasts.slices}
    of_images = [part for part in evaluation.images.slices if part.kind not in known]
    groups = [
        ("all", evaluation.breasts.pooled, evaluation.breasts.slices),
        ("all (images)", evaluation.images.pooled, of_images),
    ]
    estimates = [
        estimate for _, pooled, parts in groups for estimate in (pooled, *(part.estimate for part in parts))
    ]
    lows = [estimate.intervals["auc"].low for estimate in estimates if "auc" in estimate.intervals]
    start, axis = choose_axis(lows)
    rows, bars = [], []
    for title, pooled, parts in groups:
        unit = title.removeprefix("all")
        count = "num_images" if unit else "num_breasts"
        rows.append([title, "", *_describe_slice(pooled, count)])
        rows += [[f"{part.kind}{unit}", part.value, *_describe_slice(part.estimate, count)] for part in parts]
        bars += [
            make_bar(estimate, start, pooled) for estimate in (pooled, *(part.estimate for part in parts))
        ]
    return Table(
        "AUC by kind of breast",
        ["kind", "value", "breasts or images", "cancers", "AUC", "95 %", "AUC with interval"],
        rows,
        bars=bars,
        axis=axis,
    )


def choose_axis(lows: list[float]) -> tuple[float, dict[float, str]]:
    """Returns where an axis of AUCs up to 1 starts, so that it shows these, and its labels by their place."""
    start = min([0.5, *(int(5 * low) / 5 for low in lows if low < 0.5)])
    step = 0.1 if start == 0.5 else 0.2
    ticks = [start + step * number for number in range(round((1 - start) / step) + 1)]
    return start, {place_on_axis(tick, start): f"{tick:.1f}" for tick in ticks}


def to_markdown(table: Table) -> Verbatim:
    """Returns a table as Markdown, below its caption."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows, *table.feet]
    cells = [" | ".join(map(escape_markdown, row)) for row in rows]
    lines = [f"**{escape_markdown(table.caption)}**", "", *(f"| {line} |" for line in cells)]
    return Verbatim("\n".join(lines))


def make_bar(estimate: Estimate, start: float, pooled: Estimate) -> Bar | None:
    """Returns the AUC's interval on an axis from `start` to 1, beside the pooled AUC; None without one."""
    auc, interval, guide = estimate.metrics.auc, estimate.intervals.get("auc"), pooled.metrics.auc
    if auc is None or interval is None or guide is None:
        return None
    ends = [place_on_axis(value, start) for value in (interval.low, auc, interval.high, guide)]
    return Bar(f"AUC {auc:.3f}, {format_interval(interval)}", *ends)


def tabulate_stability(evaluation: Evaluation) -> Table:
    """Returns pF1 where the threshold is moved, or cancer is rarer or more common."""
    rows = [
        [
            str(row["change"]),
            f"{row['by']:+.2f}" if row["change"] == "threshold" else f"times {row['by']:.2f}",
            format_threshold(row["threshold"]),
            format_percent(row["prevalence"]),
            f"{row['pf1']:.3f}",
            "" if pd.isna(row["low"]) else format_interval(Interval(row["low"], row["high"], 0)),
        ]
        for row in evaluation.stability.to_dict("records")
    ]
    columns = ["change", "by", "threshold", "prevalence", "pF1", "95 %"]
    return Table(f"pF1 around {wording_of(evaluation).chosen}", columns, rows)


def tabulate_cases(selection: CaseSelection, *, with_folds: bool = True) -> Table:
    """Returns the chosen breasts, a row per image; the folds tell whose model judged them."""
    has_exams = any(case.exam_id for group in selection.groups for case in group.cases)
    rows = [
        [
            group.title,
            case.patient_id,
            *([case.exam_id] if has_exams else []),
            case.laterality,
            *([str(case.fold)] if with_folds else []),
            f"{case.probability:.3f}",
            format_threshold(case.threshold),
            view.image_id,
            view.view,
            f"{view.probability:.3f}",
        ]
        for group in selection.groups
        for case in group.cases
        for view in case.views
    ]
    columns = [
        "group",
        "patient",
        *(["exam"] if has_exams else []),
        "side",
        *(["fold"] if with_folds else []),
    ]
    columns += ["breast's probability", "threshold", "image", "view"]
    return Table("The most confident right and wrong breasts", [*columns, "image's probability"], rows)


def tabulate_throughput(throughputs: dict[int, pd.DataFrame]) -> Table:
    """Returns how fast each fold was trained, from its `throughput.csv`."""
    rows = []
    for fold, table in throughputs.items():
        values = table.median(numeric_only=True)
        rows.append(
            [
                str(fold),
                str(len(table)),
                f"{values['images_per_second']:,.1f}",
                f"{table['epoch_seconds'].fillna(table['seconds']).sum() / 60:,.1f}",
                format_percent(values["loader_wait_share"]),
                "not known" if pd.isna(values["mfu"]) else format_percent(values["mfu"]),
                f"{table['peak_memory_mb'].max():,.0f}",
            ]
        )
    columns = [
        "fold",
        "epochs",
        "images per second",
        "minutes",
        "waiting for images",
        "MFU",
        "peak memory (MB)",
    ]
    return Table("Training, medians over the epochs", columns, rows)


def _describe(estimate: Estimate) -> list[str]:
    figures = [_show(estimate, name) for name in FOLD_FIGURES]
    return [*figures, *_count([estimate.num_breasts, estimate.num_cancers])]


def _describe_slice(estimate: Estimate, count: str) -> list[str]:
    interval = estimate.intervals.get("auc")
    reason = estimate.undefined.get("auc", estimate.no_interval.get("auc", ""))
    counts = _count([getattr(estimate, count), estimate.num_cancers])
    counts[1] += f" (under {FEW_CANCERS} women)" if estimate.has_few_cancers else ""
    return [*counts, _show(estimate, "auc"), format_interval(interval), reason]


def _describe_ages(row: dict[Any, Any]) -> str:
    if pd.isna(row["age_median"]):
        return "not recorded"
    return f"{row['age_median']:.0f} ({row['age_5_percent']:.0f} to {row['age_95_percent']:.0f})"


def _show(estimate: Estimate, name: str) -> str:
    if estimate.metrics.undefined.get(name) == SEVERAL_THRESHOLDS:
        return "one per fold"
    return format_named(name, estimate.figures.get(name))


def _count(numbers: list[int]) -> list[str]:
    return [f"{number:,}" for number in numbers]


def place_on_axis(value: float, start: float) -> float:
    """Returns where a value stands on an axis from `start` to 1, in per cent."""
    return round(100 * (value - start) / (1 - start), 2)
