"""Curves of predictions and of training, by fold."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation.metrics import OperatingPoints, all_ones_pf1, find_operating_points
from pipeline.reporting.plots.svg import (
    GUIDE_LINE,
    INK,
    MARKER,
    POOLED_LINE,
    fold_line,
    new_axes,
    set_probability_ticks,
    to_scale,
    to_svg,
)

Folds = Mapping[int, pd.DataFrame]
POOLED = "pooled"


def draw_roc(breasts: pd.DataFrame, folds: Folds, label: str = POOLED) -> str:
    """Draws the ROC curve of each fold and of all breasts.

    Args:
        breasts: one row per breast: cancer, probability; with at least one of each class.
        folds: the same as each fold's model says it.
        label: of the curve of all breasts.
    """
    with new_axes("1 - specificity", "sensitivity") as axes:
        axes.plot([0, 1], [0, 1], **GUIDE_LINE)
        for points, line in _lines(breasts, folds, label):
            false_positive_rate = np.append(0.0, points.false_positives) / points.false_positives[-1]
            axes.plot(false_positive_rate, np.append(0.0, points.true_positives) / points.num_cancers, **line)
        return to_svg(axes.figure, "roc", "ROC curve, thin for each fold, thick for all together")


def draw_precision_recall(breasts: pd.DataFrame, folds: Folds, label: str = POOLED) -> str:
    """Draws the precision-recall curve of each fold and of all breasts, as steps like average precision."""
    with new_axes("recall (sensitivity)", "precision") as axes:
        axes.axhline(breasts["cancer"].mean(), **GUIDE_LINE)
        for points, line in _lines(breasts, folds, label):
            recall = points.true_positives / points.num_cancers
            precision = points.true_positives / (points.true_positives + points.false_positives)
            axes.step(np.append(0.0, recall), np.append(precision[0], precision), where="pre", **line)
        axes.set_ylim(0, 1.03)
        return to_svg(axes.figure, "pr", "Precision-recall curve, thin for each fold, thick for all together")


def draw_f1_by_threshold(breasts: pd.DataFrame, folds: Folds, threshold: float, label: str = POOLED) -> str:
    """Draws F1 of `probability >= threshold` against the threshold, and marks the chosen one."""
    with new_axes("threshold on the probability", "pF1 after thresholding") as axes:
        axes.axhline(all_ones_pf1(breasts["cancer"].mean()), **GUIDE_LINE)
        axes.axvline(float(to_scale(threshold)), **GUIDE_LINE)
        for points, line in _lines(breasts, folds, label):
            axes.step(to_scale(points.thresholds[::-1]), points.f1[::-1], where="pre", **line)
        set_probability_ticks(axes, breasts["probability"].min(), breasts["probability"].max())
        axes.set_ylim(bottom=0)
        description = f"pF1 after thresholding against the threshold; marked is {threshold:.3f}"
        return to_svg(axes.figure, "f1", description)


def draw_losses(histories: Mapping[int, pd.DataFrame]) -> str:
    """Draws training and validation loss over the epochs of each fold.

    Args:
        histories: by fold, one row per epoch: epoch, train_loss, val_loss.
    """
    with new_axes("epoch", "loss") as axes:
        for fold, history in histories.items():
            line = fold_line(fold)
            axes.plot(history["epoch"], history["train_loss"], **line, **MARKER)
            axes.plot(
                history["epoch"], history["val_loss"], **{**line, "label": None}, **MARKER, linestyle="--"
            )
        axes.plot([], [], color=INK, linewidth=1.0, label="training")
        axes.plot([], [], color=INK, linewidth=1.0, linestyle="--", label="validation")
        axes.xaxis.get_major_locator().set_params(integer=True)
        return to_svg(axes.figure, "loss", "Training and validation loss over the epochs, by fold")


def draw_validation_auc(histories: Mapping[int, pd.DataFrame]) -> str:
    """Draws the validation AUC over the epochs of each fold; an undefined one leaves a gap."""
    with new_axes("epoch", "validation AUC") as axes:
        axes.axhline(0.5, **GUIDE_LINE)
        for fold, history in histories.items():
            axes.plot(history["epoch"], history["val_auc"], **fold_line(fold), **MARKER)
        axes.xaxis.get_major_locator().set_params(integer=True)
        return to_svg(axes.figure, "val-auc", "Validation AUC over the epochs, by fold")


def _lines(
    breasts: pd.DataFrame, folds: Folds, label: str
) -> Iterator[tuple[OperatingPoints, dict[str, Any]]]:
    """Yields points and line style of each fold that has both classes, and last of all breasts."""
    for fold, part in folds.items():
        if part["cancer"].nunique() == 2:
            yield find_operating_points(part["cancer"], part["probability"]), fold_line(fold)
    yield find_operating_points(breasts["cancer"], breasts["probability"]), POOLED_LINE | {"label": label}
