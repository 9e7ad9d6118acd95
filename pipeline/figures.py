"""Curves as inline SVG. Knows no files and no page; computes nothing that `metrics` does not.

Text stays text and takes the page's font; axes, labels and the pooled line take the page's ink, so that one
picture serves light and dark mode. The same input gives the same bytes.
"""

import html
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.metrics import OperatingPoints, all_ones_pf1, find_operating_points

INK = "#010203"  # stands for the page's text colour until the SVG is written
FOLD_COLOURS = ["#3987e5", "#d95926", "#199e70", "#c98500", "#d55181", "#8a6fd6", "#0e9fb5", "#7c8a1c"]
MARKER = {"marker": ".", "markersize": 4.0}  # one epoch alone is no line
POOLED_LINE = {"linewidth": 2.4, "color": INK, "label": "pooled"}
GUIDE_LINE = {"linewidth": 1.0, "color": "#8a8a8a", "linestyle": (0, (3, 3))}
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11.0,
    "legend.columnspacing": 1.2,
    "legend.fontsize": 10.0,
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


def draw_roc(breasts: pd.DataFrame) -> str:
    """Draws the ROC curve of each fold and of all breasts.

    Args:
        breasts: one row per breast: fold, cancer, probability; with at least one of each class.
    """
    with _new_axes("1 - specificity", "sensitivity") as axes:
        axes.plot([0, 1], [0, 1], **GUIDE_LINE)
        for points, line in _lines(breasts):
            false_positive_rate = np.append(0.0, points.false_positives) / points.false_positives[-1]
            axes.plot(false_positive_rate, np.append(0.0, points.true_positives) / points.num_cancers, **line)
        return _to_svg(axes.figure, "roc", "ROC curve, thin for each fold, thick for all together")


def draw_precision_recall(breasts: pd.DataFrame) -> str:
    """Draws the precision-recall curve of each fold and of all breasts, as steps like average precision."""
    with _new_axes("recall (sensitivity)", "precision") as axes:
        axes.axhline(breasts["cancer"].mean(), **GUIDE_LINE)
        for points, line in _lines(breasts):
            recall = points.true_positives / points.num_cancers
            precision = points.true_positives / (points.true_positives + points.false_positives)
            axes.step(np.append(0.0, recall), np.append(precision[0], precision), where="pre", **line)
        axes.set_ylim(0, 1.03)
        return _to_svg(
            axes.figure, "pr", "Precision-recall curve, thin for each fold, thick for all together"
        )


def draw_f1_by_threshold(breasts: pd.DataFrame, threshold: float) -> str:
    """Draws F1 of `probability >= threshold` against the threshold, and marks the chosen one."""
    with _new_axes("threshold on the probability", "pF1 after thresholding") as axes:
        axes.axhline(all_ones_pf1(breasts["cancer"].mean()), **GUIDE_LINE)
        axes.axvline(threshold, **GUIDE_LINE)
        for points, line in _lines(breasts):
            axes.step(points.thresholds[::-1], points.f1[::-1], where="pre", **line)
        axes.set_ylim(bottom=0)
        description = f"pF1 after thresholding against the threshold; the best threshold is {threshold:.3f}"
        return _to_svg(axes.figure, "f1", description)


def draw_losses(histories: Mapping[int, pd.DataFrame]) -> str:
    """Draws training and validation loss over the epochs of each fold.

    Args:
        histories: by fold, one row per epoch: epoch, train_loss, val_loss.
    """
    with _new_axes("epoch", "loss") as axes:
        for fold, history in histories.items():
            line = _fold_line(fold)
            axes.plot(history["epoch"], history["train_loss"], **line, **MARKER)
            axes.plot(
                history["epoch"], history["val_loss"], **{**line, "label": None}, **MARKER, linestyle="--"
            )
        axes.plot([], [], color=INK, linewidth=1.0, label="training")
        axes.plot([], [], color=INK, linewidth=1.0, linestyle="--", label="validation")
        axes.xaxis.get_major_locator().set_params(integer=True)
        return _to_svg(axes.figure, "loss", "Training and validation loss over the epochs, by fold")


def draw_validation_auc(histories: Mapping[int, pd.DataFrame]) -> str:
    """Draws the validation AUC over the epochs of each fold; an undefined one leaves a gap."""
    with _new_axes("epoch", "validation AUC") as axes:
        axes.axhline(0.5, **GUIDE_LINE)
        for fold, history in histories.items():
            axes.plot(history["epoch"], history["val_auc"], **_fold_line(fold), **MARKER)
        axes.xaxis.get_major_locator().set_params(integer=True)
        return _to_svg(axes.figure, "val-auc", "Validation AUC over the epochs, by fold")


def _lines(breasts: pd.DataFrame) -> Iterator[tuple[OperatingPoints, dict[str, Any]]]:
    """Yields points and line style of each fold that has both classes, and last of all breasts."""
    for fold, part in breasts.groupby("fold"):
        if part["cancer"].nunique() == 2:
            yield find_operating_points(part["cancer"], part["probability"]), _fold_line(int(str(fold)))
    yield find_operating_points(breasts["cancer"], breasts["probability"]), POOLED_LINE


def _fold_line(fold: int) -> dict[str, Any]:
    return {"linewidth": 1.0, "color": FOLD_COLOURS[fold % len(FOLD_COLOURS)], "label": f"fold {fold}"}


@contextmanager
def _new_axes(x_label: str, y_label: str) -> Iterator[Any]:
    """Opens a figure; matplotlib looks the style up whenever something is added or written."""
    with mpl.rc_context(STYLE):
        axes = Figure(figsize=(4.4, 3.9), layout="constrained").add_subplot()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        yield axes


def _to_svg(figure: Figure, name: str, description: str) -> str:
    """Adds the legend and returns an `<svg>` element whose ids start with `name`: several fit in one page."""
    figure.legend(loc="outside lower center", ncols=4)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata=WITHOUT_METADATA)
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :]  # the XML declaration and DOCTYPE do not belong in HTML
    drawing = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    opening = f'<svg role="img" aria-label="{html.escape(description)}"'
    drawing = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"{opening} \1>", drawing, count=1)
    return drawing.replace(INK, "currentColor")
