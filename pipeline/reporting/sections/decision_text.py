"""What a report says of the decision curve: how to read it, and where the model is worth using."""

import numpy as np

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.decisions.decision_curve import DecisionCurve
from pipeline.evaluation.estimates import FEW_CANCERS
from pipeline.evaluation.operating_point import SCREENING_PREVALENCE
from pipeline.reporting.plots.decision_plots import SHOWN_RISKS, draw_decision_curve
from pipeline.reporting.rendering import Picture
from pipeline.reporting.tables import Table

HOW_TO_READ = (
    "Whoever recalls women from a risk of 1\u00a0% on accepts 99 needless recalls for one cancer found. Net "
    "benefit is the number of cancers found among 1,000 women less the needless recalls at that price. At "
    "the risk that you would recall from, the highest line is the best of the three policies. Risks are "
    "calibrated on the other folds and, like the rates, meant for women of whom "
    f"{1000 * SCREENING_PREVALENCE:.0f} in 1,000 have cancer."
)
"""What tells a reader how to read the curve (Vickers and Elkin 2006)."""


def describe_decisions(curve: DecisionCurve) -> str:
    """Says from which risks on recalling by the model does more good than both alternatives."""
    if curve.undefined:
        return f"There is no decision curve: {curve.undefined}."
    points = curve.points
    best = points[["recall_all", "recall_none"]].max(axis=1)
    sure, seems = points["low"] > best, points["net_benefit"] > best
    if sure.any() and not curve.has_few_cancers:
        return (
            f"At thresholds of {_name_ranges(points['threshold'][sure])} recalling by the model does more "
            "good than recalling all women or none, beyond chance at each by itself."
        )
    if seems.any():
        return (
            f"At thresholds of {_name_ranges(points['threshold'][seems])} recalling by the model seems to "
            f"do more good than recalling all women or none, but {_doubt(curve)}."
        )
    return "At no threshold does recalling by the model do more good than recalling all women or none."


def _doubt(curve: DecisionCurve) -> str:
    if curve.has_few_cancers:
        return f"under {FEW_CANCERS} of them have cancer, too few to tell it from chance"
    return "at none beyond chance"


def draw_decisions(curve: DecisionCurve) -> list[Picture]:
    """Draws the curve; nothing where there is none."""
    if curve.points.empty:
        return []
    caption = (
        "Dashed: recalling nobody. Dotted: recalling every woman. Shaded: the model's 95\u00a0% interval."
    )
    return [Picture("Decision curve", draw_decision_curve(curve.points), caption)]


def tabulate_decisions(curve: DecisionCurve) -> Table:
    """Returns the curve at some risks, per 1,000 women."""
    shown = curve.points[curve.points["threshold"].isin(SHOWN_RISKS)]
    rows = []
    for point in shown.to_dict("records"):
        interval = Interval(1000 * point["low"], 1000 * point["high"], 0)
        rows.append(
            [
                f"{100 * point['threshold']:g}\u00a0%",
                f"{1000 * point['net_benefit']:.2f}",
                f"{interval.low:.2f} to {interval.high:.2f}" if interval.has_width else "",
                f"{1000 * point['recall_all']:.2f}",
                f"{1000 * point['recall_none']:.2f}",
                f"{1000 * point['recall_rate']:.0f}",
                f"{1000 * SCREENING_PREVALENCE * point['sensitivity']:.2f}",
            ]
        )
    columns = ["recalled from", "net benefit", "95 %", "if all are recalled", "if none is"]
    return Table("Net benefit per 1,000 women", [*columns, "women recalled", "cancers found"], rows)


def _name_ranges(risks: "np.typing.ArrayLike") -> str:
    """Returns risks of 0.1 % steps as ranges, such as `0.4 to 1.2 or 2 %`."""
    steps = np.round(1000 * np.asarray(risks)).astype(int)
    ranges = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)
    names = [f"{part[0] / 10:g}" + (f" to {part[-1] / 10:g}" if len(part) > 1 else "") for part in ranges]
    return f"{' or '.join(names)}\u00a0%"
