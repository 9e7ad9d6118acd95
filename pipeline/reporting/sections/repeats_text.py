"""What a report says of a run's repeats: their figures, and what the recipe gives on average."""

import pandas as pd

from pipeline.evaluation.uncertainty.repeats import REPEAT_FIGURES, Repeats
from pipeline.reporting.formatting import FIGURE_NAMES, format_figure, format_interval, format_percent
from pipeline.reporting.tables import Table


def describe_repeats(repeats: Repeats) -> str:
    """Says what the recipe gives on average, and how sure that is."""
    expected, number = repeats.expected, len(repeats.table)
    if expected.auc is None or expected.deviation is None:
        return f"The AUC is undefined in one of {number} cross-validations."
    sentence = (
        f"In {number} cross-validations with other seeds and splits, all on these patients, the "
        f"{FIGURE_NAMES[repeats.figure]} is {expected.auc:.3f} on average, with a standard deviation of "
        f"{expected.deviation:.3f}."
    )
    if expected.interval is None or expected.of_training is None or expected.of_patients is None:
        return f"{sentence} Nothing tells how sure that average is."
    of_training, of_patients = expected.of_training**2, expected.of_patients**2
    share = of_training / (of_training + of_patients) if of_training else 0.0
    return (
        f"{sentence} What the recipe gives on average, over trainings and over patients, lies in "
        f"{format_interval(expected.interval)} (95\u00a0% interval); {format_percent(share)} of its "
        "variance come from training, the rest from the patients."
    )


def tabulate_repeats(repeats: Repeats) -> Table:
    """Returns the figures of each repeat, their mean and their standard deviation."""
    rows = []
    for row in repeats.table.to_dict("records"):
        seed = "not known" if pd.isna(row["seed"]) else str(row["seed"])
        rows.append([str(row["repeat"]), seed, *(format_figure(row[name]) for name in REPEAT_FIGURES)])
    feet = [
        [title, "", *map(format_figure, repeats.summary[column])]
        for title, column in {"mean": "mean", "standard deviation": "std"}.items()
    ]
    columns = ["repeat", "train.seed", *(FIGURE_NAMES[name] for name in REPEAT_FIGURES)]
    return Table("Figures of each repeat, per breast", columns, rows, feet)
