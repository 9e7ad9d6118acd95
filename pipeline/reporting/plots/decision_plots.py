"""The picture of what recalling women by their risk is worth."""

import pandas as pd

from pipeline.reporting.plots.calibration_plots import BAND
from pipeline.reporting.plots.svg import GUIDE_LINE, INK, new_axes, to_svg

SHOWN_RISKS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
"""Written under the axis, which is even in their logarithm."""


def draw_decision_curve(points: pd.DataFrame) -> str:
    """Draws net benefit among 1,000 women against the risk from which on a woman is recalled.

    Args:
        points: of a `DecisionCurve`, with at least one row.
    """
    with new_axes("threshold: recalled from this risk on", "net benefit per 1,000 women") as axes:
        risks, per_1000 = points["threshold"], 1000 * points.drop(columns="threshold").astype(float)
        axes.fill_between(risks, per_1000["low"], per_1000["high"], **BAND)
        axes.plot(risks, per_1000["recall_none"], label="recall none", **GUIDE_LINE)
        axes.plot(risks, per_1000["recall_all"], label="recall all", color=INK, linewidth=1.2, linestyle=":")
        axes.plot(risks, per_1000["net_benefit"], label="by the model", color=INK, linewidth=1.8)
        axes.set_xscale("log")
        axes.set_xticks(SHOWN_RISKS, [f"{100 * risk:g} %" for risk in SHOWN_RISKS])
        axes.minorticks_off()
        top = per_1000[["net_benefit", "high", "recall_all"]].max().max()
        axes.set_ylim(-0.2 * top, 1.05 * top)  # recalling all falls far below what is of interest
        return to_svg(
            axes.figure,
            "decisions",
            "Net benefit of recalling by the model, of recalling all women and of recalling none, against "
            "the risk from which on a woman is recalled",
        )
