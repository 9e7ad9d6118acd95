"""Curves of predictions and of training, by fold."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation.metrics import OperatingPoints, all_ones_pf1, find_operating_points
from pipeline.evaluation.patient_stats import Floats, standardize_folds
from pipeline.reporting.plots.svg import (
    GUIDE_LINE,
    INK,
    MARKER,
    THICK_LINE,
    fold_line,
    new_axes,
    set_probability_ticks,
    to_scale,
    to_svg,
)

Folds = Mapping[int, pd.DataFrame]
"""One row per breast and fold's model: cancer, probability."""


def draw_roc(breasts: pd.DataFrame, folds: Folds, label: str = "mean of folds") -> str:
    """Draws the ROC curve of each fold and their mean, of which the area is the AUC within folds.

    Args:
        breasts: one row per breast: fold, cancer, probability; some fold has both classes.
        folds: the same as each fold's model says it.
        label: of the thick curve, which is the mean over the folds of `breasts`; of an external set's single
            one, its own.
    """
    with new_axes("1 - specificity", "sensitivity") as axes:
        axes.plot([0, 1], [0, 1], **GUIDE_LINE)
        for points, line in _fold_lines(folds):
            axes.plot(*_to_roc(points), **line)
        own = {int(str(fold)): part for fold, part in breasts.groupby("fold")}
        axes.plot(*average_roc([points for points, _ in _fold_lines(own)]), **THICK_LINE, label=label)
        return to_svg(axes.figure, "roc", f"ROC curve, thin for each fold, thick for the {label}")


def average_roc(of_folds: Sequence[OperatingPoints]) -> tuple[Floats, Floats]:
    """Returns false positive rates and mean sensitivities, each fold counting by its pairs."""
    curves = [_to_roc(points) for points in of_folds]
    pairs = np.array([points.num_cancers * points.false_positives[-1] for points in of_folds])
    rates = np.unique(np.concatenate([rates for rates, _ in curves]))
    lowest = [-np.interp(-rates, -x[::-1], -y[::-1]) for x, y in curves]  # where a curve rises straight up
    highest = [np.interp(rates, x, y) for x, y in curves]
    ends = (np.average(each, axis=0, weights=pairs) for each in (lowest, highest))
    return np.repeat(rates, 2), np.column_stack([*ends]).ravel()


def draw_precision_recall(breasts: pd.DataFrame, folds: Folds, label: str = "all folds") -> str:
    """Draws the precision-recall curve of each fold and of all breasts, as steps like average precision.

    All are ranked as in that figure, after the logits of the folds of `breasts` were brought to one scale.
    """
    numbers = breasts["fold"].to_numpy()
    arrays = breasts["cancer"].to_numpy(np.float64), breasts["probability"].to_numpy(np.float64)
    scores = standardize_folds(*arrays, numbers) if len(np.unique(numbers)) > 1 else arrays[1]
    together = find_operating_points(breasts["cancer"], scores)
    with new_axes("recall (sensitivity)", "precision") as axes:
        axes.axhline(breasts["cancer"].mean(), **GUIDE_LINE)
        for points, line in [*_fold_lines(folds), (together, {**THICK_LINE, "label": label})]:
            recall = points.true_positives / points.num_cancers
            precision = points.true_positives / (points.true_positives + points.false_positives)
            axes.step(np.append(0.0, recall), np.append(precision[0], precision), where="pre", **line)
        axes.set_ylim(0, 1.03)
        return to_svg(axes.figure, "pr", "Precision-recall curve, thin for each fold, thick for all")


def draw_f1_by_threshold(breasts: pd.DataFrame, folds: Folds, threshold: float, label: str = "pooled") -> str:
    """Draws F1 of `probability >= threshold` against the threshold, and marks the chosen one."""
    with new_axes("threshold on the probability", "pF1 after thresholding") as axes:
        axes.axhline(all_ones_pf1(breasts["cancer"].mean()), **GUIDE_LINE)
        axes.axvline(float(to_scale(threshold)), **GUIDE_LINE)
        pooled = find_operating_points(breasts["cancer"], breasts["probability"])
        for points, line in [*_fold_lines(folds), (pooled, {**THICK_LINE, "label": label})]:
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


def _to_roc(points: OperatingPoints) -> tuple[Floats, Floats]:
    """Returns false positive rates and sensitivities from 0 to 1."""
    rates = np.append(0.0, points.false_positives) / points.false_positives[-1]
    return rates, np.append(0.0, points.true_positives) / points.num_cancers


def _fold_lines(folds: Folds) -> Iterator[tuple[OperatingPoints, dict[str, Any]]]:
    """Yields points and line style of each fold that has both classes."""
    for fold, part in folds.items():
        if part["cancer"].nunique() == 2:
            yield find_operating_points(part["cancer"], part["probability"]), fold_line(fold)
