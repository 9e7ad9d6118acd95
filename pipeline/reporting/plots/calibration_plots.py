"""Pictures of what probabilities are worth: reliability, spread, stability."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.reporting.plots.svg import (
    GUIDE_LINE,
    INK,
    new_axes,
    new_panels,
    set_probability_ticks,
    to_scale,
    to_svg,
)

NUM_BARS = 30
BAND = {"color": INK, "alpha": 0.14, "linewidth": 0}
METHOD_STYLES: Mapping[str, dict[str, Any]] = {
    "platt": {"marker": "o", "linestyle": "-"},
    "isotonic": {"marker": "s", "linestyle": "--"},
    "temperature": {"marker": "^", "linestyle": ":"},
}


def draw_reliability(bins: pd.DataFrame) -> str:
    """Draws the share of cancers against the mean probability of each bin, with its interval.

    Args:
        bins: of one method: mean_probability, share_of_cancers, low, high.
    """
    with new_axes("mean probability", "share with cancer") as axes:
        _draw_diagonal(axes, bins)
        below, above = bins["share_of_cancers"] - bins["low"], bins["high"] - bins["share_of_cancers"]
        errors = np.clip([below, above], 0, None)  # an interval's end may miss 0 by a rounding
        axes.errorbar(
            bins["mean_probability"],
            bins["share_of_cancers"],
            yerr=errors,
            color=INK,
            marker="o",
            markersize=4.5,
            linewidth=1.4,
            elinewidth=1.0,
        )
        return to_svg(axes.figure, "reliability", "Share of cancers against the mean raw probability, by bin")


def draw_calibrated(bins: pd.DataFrame) -> str:
    """Draws the same of each calibration, without intervals.

    Args:
        bins: of several methods, with `method`.
    """
    with new_axes("mean calibrated probability", "share with cancer") as axes:
        _draw_diagonal(axes, bins)
        for method, part in bins.groupby("method", sort=False):
            style = METHOD_STYLES[str(method)] | {"color": INK, "markersize": 4.5, "linewidth": 1.2}
            axes.plot(part["mean_probability"], part["share_of_cancers"], label=method, **style)
        description = (
            f"Share of cancers against the calibrated probability: {', '.join(bins['method'].unique())}"
        )
        return to_svg(axes.figure, "calibrated", description)


def draw_histograms(breasts: pd.DataFrame, sites: "pd.Series[str] | None", shown: Sequence[str]) -> str:
    """Draws how the probabilities of each class spread: of all breasts, and of each site.

    Args:
        breasts: cancer, probability.
        sites: of each breast; None where they are not known.
        shown: the sites to draw.
    """
    parts = {"all": breasts}
    if sites is not None:
        parts |= {f"site {site}": breasts[sites == site] for site in shown}
    lowest, highest = breasts["probability"].min(), breasts["probability"].max()
    low, high = to_scale([lowest, highest])
    edges = np.linspace(low, max(high, low + 0.1), NUM_BARS + 1)
    height = 0.9 + (3.0 if len(parts) == 1 else 1.5 * len(parts))
    with new_panels("probability", "share", list(parts) if len(parts) > 1 else [""], height=height) as panels:
        for axes, part in zip(panels, parts.values(), strict=True):
            without, cancers = (part.loc[part["cancer"] == value, "probability"] for value in (0, 1))
            for probabilities, style in (
                (
                    without,
                    {"histtype": "stepfilled", "color": "#8a8a8a", "alpha": 0.55, "label": "no cancer"},
                ),
                (cancers, {"histtype": "step", "color": INK, "linewidth": 1.6, "label": "cancer"}),
            ):
                weights = np.full(len(probabilities), 1 / max(1, len(probabilities)))
                axes.hist(np.clip(to_scale(probabilities), low, high), edges, weights=weights, **style)
            axes.locator_params(axis="y", nbins=4)
        set_probability_ticks(panels[-1], lowest, highest)
        description = f"How the probabilities of each class spread: {', '.join(parts)}"
        return to_svg(panels[0].figure, "histograms", description)


def draw_threshold_stability(stability: pd.DataFrame, threshold: float) -> str:
    """Draws pF1 against a shifted threshold, with its interval, and marks the one that was chosen.

    Args:
        stability: of one change: threshold, pf1, low, high.
        threshold: the one that was chosen.
    """
    with new_axes("threshold on the probability", "pF1") as axes:
        axes.axvline(float(to_scale(threshold)), **GUIDE_LINE)
        _draw_band(axes, to_scale(stability["threshold"]), stability)
        set_probability_ticks(axes, stability["threshold"].min(), stability["threshold"].max())
        return to_svg(
            axes.figure, "threshold-stability", "pF1 where the threshold is moved, with its interval"
        )


def draw_prevalence_stability(stability: pd.DataFrame, prevalence: float) -> str:
    """Draws pF1 with the chosen threshold against how common cancer is, with its interval.

    Args:
        stability: of one change: prevalence, pf1, low, high.
        prevalence: of the predictions.
    """
    with new_axes("share of breasts with cancer", "pF1") as axes:
        axes.axvline(prevalence, **GUIDE_LINE)
        _draw_band(axes, stability["prevalence"], stability)
        axes.set_xscale("log")
        shown = stability["prevalence"].iloc[::2]
        axes.set_xticks(shown, [f"{100 * share:.2g} %" for share in shown])
        axes.minorticks_off()
        return to_svg(
            axes.figure, "prevalence", "pF1 where cancer is rarer or more common, with its interval"
        )


def _draw_band(axes: Any, x: Any, stability: pd.DataFrame) -> None:
    axes.fill_between(x, stability["low"].astype(float), stability["high"].astype(float), **BAND)
    axes.plot(x, stability["pf1"], color=INK, linewidth=1.8)
    axes.set_ylim(bottom=0)


def _draw_diagonal(axes: Any, bins: pd.DataFrame) -> None:
    top = 1.05 * max(bins["mean_probability"].max(), bins["share_of_cancers"].max(), 1e-3)
    axes.plot([0, top], [0, top], **GUIDE_LINE)
