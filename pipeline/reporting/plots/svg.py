"""What all drawings share: inline SVG, the colours of folds, the style.

Text stays text and takes the page's font; axes, labels and the line of all folds take the page's ink, so that
one picture serves light and dark mode. The same input gives the same bytes.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluation.formulas import to_logits

INK = "#010203"  # stands for the page's text colour until the SVG is written
FOLD_COLOURS = ["#4c6bbf", "#f0761f", "#46a8af", "#a05940", "#713ffc", "#2baf83", "#6479fc", "#4f6a91"]
"""On paper and in dark mode; those of the first five folds stay apart for eyes without red or green cones."""
MARKER = {"marker": ".", "markersize": 4.0}  # one epoch alone is not a line
TICKS = [
    [1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999],
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99],
]
"""Probabilities to write under an axis, the coarse ones first."""
THICK_LINE = {"linewidth": 2.4, "color": INK}
GUIDE_LINE = {"linewidth": 1.0, "color": "#8a8a8a", "linestyle": (0, (3, 3))}
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.edgecolor": "none",
    "figure.facecolor": "none",
    "font.size": 12.0,
    "legend.columnspacing": 1.2,
    "legend.fontsize": 11.0,
    "legend.frameon": False,
    "legend.handlelength": 1.3,
    "path.simplify_threshold": 0.5,  # pixels; a fold of RSNA has thousands of distinct thresholds
    "svg.fonttype": "none",
    "svg.hashsalt": "mammo",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
WITHOUT_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def fold_line(fold: int) -> dict[str, Any]:
    """Returns the line style that a fold has in every drawing."""
    return {"linewidth": 1.3, "color": FOLD_COLOURS[fold % len(FOLD_COLOURS)], "label": f"fold {fold}"}


@contextmanager
def new_axes(x_label: str, y_label: str, *, height: float = 3.9) -> Iterator[Any]:
    """Opens a figure; matplotlib looks the style up whenever something is added or written."""
    with new_panels(x_label, y_label, [""], height=height) as (axes,):
        yield axes


@contextmanager
def new_panels(x_label: str, y_label: str, titles: Sequence[str], *, height: float) -> Iterator[list[Any]]:
    """Opens a figure with a panel per title, one above the other on the same x axis."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        panels = figure.subplots(len(titles), 1, sharex=True, squeeze=False)[:, 0]
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title.replace("$", r"\$"), fontsize=12.0, loc="left")
            axes.set_ylabel(y_label)
        panels[-1].set_xlabel(x_label)
        yield list(panels)


def to_scale(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Returns where probabilities stand on an axis that is even in log-odds: most of them are near 0."""
    return to_logits(probabilities)


def set_probability_ticks(axes: Axes, lowest: float, highest: float) -> None:
    """Writes probabilities under such an axis, from the lowest to the highest that it shows."""
    ends = to_scale([lowest, highest])
    margin = max(0.1, 0.03 * float(ends[1] - ends[0]))
    low, high = float(ends[0]) - margin, float(ends[1]) + margin
    coarse, fine = ([tick for tick in ticks if low <= to_scale(tick) <= high] for ticks in TICKS)
    shown = coarse if len(coarse) >= 3 else fine
    labels = {f"{tick:g}": tick for tick in shown}
    if len(shown) < 3:
        labels = _label_between(lowest, highest)
    axes.set_xticks(to_scale(list(labels.values())), list(labels))
    axes.set_xlim(low, high)


def _label_between(lowest: float, highest: float) -> dict[str, float]:
    """Returns some probabilities between two, by labels with as few digits as tell them apart."""
    ticks = np.linspace(lowest, highest, 4 if lowest < highest else 1).tolist()
    for digits in range(2, 18):
        labels = {f"{tick:.{digits}g}": tick for tick in ticks}
        if len(labels) == len(ticks):
            break
    return labels


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Adds the legend and returns an `<svg>` element whose ids start with `name`: several fit in one page."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        num_columns = len(labels) if len(labels) <= 4 else 3
        figure.legend(handles, labels, loc="outside lower center", ncols=num_columns)
    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata=WITHOUT_METADATA)  # draws once; `savefig` draws twice
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :]  # the XML declaration and DOCTYPE do not belong in HTML
    drawing = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    opening = f'<svg role="img" aria-label="{html.escape(description)}"'
    drawing = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"{opening} \1>", drawing, count=1)
    return drawing.replace(INK, "currentColor")
