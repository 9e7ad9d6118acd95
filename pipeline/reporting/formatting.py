"""Figures as people read them: their names, decimals, per cent and intervals."""

import math

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.metrics import RECALL_RATES, SPECIFICITIES

FIGURE_NAMES = {
    "auc": "AUC",
    "auc_pooled": "AUC, all folds in one ranking",
    "auc_weighted": "AUC, each breast's images counting as one",
    "partial_auc": "partial AUC, specificity 90 to 100\u00a0%",
    "average_precision": "average precision",
    "pf1": "pF1 of the raw probabilities",
    "pf1_transferred": "pF1 at the other folds' threshold",
    "threshold_transferred": "other folds' threshold",
    "pf1_best": "pF1 at the best threshold",
    "threshold_best": "best threshold",
    **{f"sensitivity_at_specificity_{n}": f"sensitivity at specificity {n}\u00a0%" for n in SPECIFICITIES},
    **{f"sensitivity_at_recall_rate_{n}": f"sensitivity at {n}\u00a0% recalled" for n in RECALL_RATES},
    "brier": "Brier score",
}
"""All figures by the one name that people read everywhere, in the order to show them."""


SMALL = 0.1
"""Below it three decimals are fewer than three digits."""


def format_figure(value: float | None) -> str:
    """Three decimals, or the word for None and NaN."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"


def format_threshold(value: float | None) -> str:
    """Three decimals, and three digits that are not 0 at least: probabilities of cancer are small."""
    if value is None or math.isnan(value) or not 0 < value < SMALL:
        return format_figure(value)
    return f"{value:.{2 - math.floor(math.log10(value))}f}"


def format_named(name: str, value: float | None) -> str:
    """Formats a figure by its name."""
    return format_threshold(value) if name.startswith("threshold") else format_figure(value)


def format_p(p: float) -> str:
    """Three decimals of a p value, which is never 0."""
    return f"{p:.3f}" if p >= 0.0005 else "<0.001"


def format_percent(share: float | None) -> str:
    """Per cent with one decimal, or a dash for None."""
    return "\u2013" if share is None else f"{100 * share:.1f}\u00a0%"


def format_interval(interval: Interval | None) -> str:
    """Low to high, or nothing where there is no interval or the replicates all give the same."""
    if interval is None or not interval.has_width:
        return ""
    return f"{interval.low:.3f} to {interval.high:.3f}"
