"""What a report says of the woman's age: what it adds to the pixels, and the pixels to it."""

from pipeline.evaluation.age.age_gain import AGE_ALONE, BOTH, PIXELS, AgeGain, AgeRow
from pipeline.evaluation.estimates import FEW_CANCERS
from pipeline.evaluation.uncertainty.intervals import LARGEST_P
from pipeline.reporting.formatting import (
    FIGURE_NAMES,
    format_figure,
    format_interval,
    format_p,
    format_percent,
)
from pipeline.reporting.tables import Table

TAKE_AGE = "--set model.inputs='[\"age\"]'"
"""The option of `mammo train` that has a run take age."""
LARGEST_DIFFERENCE = 0.05
"""Between the shares of unknown ages of the two classes; above it the report warns."""
AGE_NOTE = (
    "The pixels' normal scores among their fold's own breasts and age are joined by a logistic regression, "
    "which each fold learns from the other folds' predictions; age alone is such a regression without the "
    "pixels. Differences are paired."
)


def describe_age(age: AgeGain) -> str:
    """Says whether the probabilities count age, and what pixels add to it."""
    if age.undefined:
        return f"Not measured: {age.undefined}."
    used = (
        "All probabilities here are by the pixels and the woman's age."
        if age.is_used
        else f"The probabilities here are by the pixels alone; mammo train {TAKE_AGE} with the run's other "
        "options has the run take the woman's age, and trains nothing anew."
    )
    return f"{used} {_describe_unknown(age)}{_judge(age)}"


def _describe_unknown(age: AgeGain) -> str:
    """Says how many have no age, and whether that tells the label."""
    if not age.share_unknown:
        return ""
    healthy, sick = map(format_percent, age.unknown_by_label)
    told = f"{sick} of the images with cancer have no age, and {healthy} of the others"
    if abs(age.unknown_by_label[1] - age.unknown_by_label[0]) > LARGEST_DIFFERENCE:
        return f"{told}: who has none tells how cancers were collected, and what age adds may be that. "
    return f"{told}. "


def tabulate_age(age: AgeGain) -> Table:
    """Returns a row for pixels, age and both."""
    columns = ["by", FIGURE_NAMES[age.figure], "95 %", "both exceeds it by", "95 % of that", "p"]
    return Table("Pixels and age", columns, [_describe(name, row) for name, row in age.rows.items()])


def tabulate_regressions(age: AgeGain) -> Table:
    """Returns what each fold takes from the others, without rows of an external set."""
    columns = ["fold", "intercept", "per normal score of the pixels", "per ten years", "age unknown"]
    rows = []
    for fold, (both, _) in age.regressions.items():
        numbers = (both.intercept, both.slope, both.per_decade, both.unknown)
        rows.append([str(fold), *(f"{number:.3f}" for number in numbers)])
    return Table("Log-odds of cancer: intercept, and what is added", columns, rows)


def _describe(name: str, row: AgeRow) -> list[str]:
    cells = [name, format_figure(row.auc), format_interval(row.interval)]
    if name == BOTH:
        return [*cells, "", "", ""]
    loss = "undefined" if row.loss is None else f"{row.loss:+.3f}"
    return [*cells, loss, format_interval(row.loss_interval), "" if row.p is None else format_p(row.p)]


def _judge(age: AgeGain) -> str:
    if age.has_few_cancers:
        return f"Fewer than {FEW_CANCERS} women have cancer: too few to tell what either adds."
    by_pixels, by_age = (_describe_gain(age.rows[name]) for name in (PIXELS, AGE_ALONE))
    return f"To the pixels, age adds {by_pixels}; to age, the pixels add {by_age}."


def _describe_gain(row: AgeRow) -> str:
    """Says what the other one adds to a ranking."""
    if row.loss is None or row.loss_interval is None or row.p is None:
        return "nothing that could be measured"
    spread = f"{row.loss:+.3f} ({format_interval(row.loss_interval)})"
    if row.p > LARGEST_P:
        return f"nothing beyond chance: {spread}"
    return f"{spread}{'' if row.loss > 0 else ', which does harm'}"
