"""Pictures of a classification: confusion and learning curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.reporting.plots.svg import GUIDE_LINE, MARKER, fold_line, new_axes, to_svg

CELL_COLOUR, CELL_OPACITY = "#3987e5", 0.75  # at most so opaque: numbers stay readable, light mode and dark
LONGEST_LABEL = 30  # letters
MOST_COUNTED_CLASSES = 12  # of a confusion matrix with a number in each square


def draw_confusion(confusion: NDArray[np.int64], labels: Sequence[str]) -> str:
    """Draws a square per pair of classes, the more opaque the larger its share of the true class.

    Args:
        confusion: images by true class (row) and predicted class (column), [K, K].
        labels: the classes' names.
    """
    num_classes = len(labels)
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    with new_axes("predicted class", "true class") as axes:
        side_inches = 4.4 + 0.17 * num_classes
        axes.figure.set_size_inches(side_inches, side_inches)
        for row, column in np.argwhere(confusion):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, **_shade(shares[row, column])))
            if num_classes <= MOST_COUNTED_CLASSES:
                axes.text(column, row, f"{confusion[row, column]:,}", ha="center", va="center")
        for share in (0.01, 0.1, 0.5, 1.0):
            axes.scatter([], [], marker="s", s=80, label=f"{share:.0%}", **_shade(share))
        names = [_shorten(label).replace("$", r"\$") for label in labels]  # a dollar would begin a formula
        axes.set_xticks(range(num_classes), names, rotation=90)
        axes.set_yticks(range(num_classes), names)
        axes.tick_params(length=0, labelsize=9.0)
        axes.set_xlim(-0.5, num_classes - 0.5)
        axes.set_ylim(num_classes - 0.5, -0.5)
        axes.set_aspect("equal")
        return to_svg(axes.figure, "confusion", "Confusion matrix: true class by row, predicted by column")


def draw_class_losses(history: pd.DataFrame) -> str:
    """Draws training and test loss over the epochs.

    Args:
        history: one row per epoch: epoch, train_loss, test_loss.
    """
    with new_axes("epoch", "cross-entropy") as axes:
        line = fold_line(0) | MARKER
        axes.plot(history["epoch"], history["train_loss"], **{**line, "label": "training"})
        axes.plot(history["epoch"], history["test_loss"], **{**line, "label": "test"}, linestyle="--")
        axes.xaxis.get_major_locator().set_params(integer=True)
        return to_svg(axes.figure, "class-loss", "Training and test loss over the epochs")


def draw_test_accuracy(history: pd.DataFrame, *, guess: float) -> str:
    """Draws the test accuracy over the epochs, and what always answering one class scores."""
    with new_axes("epoch", "test accuracy") as axes:
        axes.axhline(guess, **GUIDE_LINE)
        line = fold_line(0) | MARKER | {"label": None}
        axes.plot(history["epoch"], history["test_accuracy"], **line)
        axes.set_ylim(0, 1.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
        return to_svg(axes.figure, "test-accuracy", "Test accuracy over the epochs")


def _shorten(label: str) -> str:
    """Returns a name that leaves room for the picture."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"


def _shade(share: float) -> dict[str, Any]:
    """Returns the fill for a share of a row; its root, so that rare mistakes can be seen."""
    return {"facecolor": CELL_COLOUR, "alpha": CELL_OPACITY * float(share) ** 0.5, "linewidth": 0}
