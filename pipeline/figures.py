"""Curves and small pictures as inline SVG. Knows no files and no page; computes no figure itself.

Text stays text and takes the page's font; axes, labels and the pooled line take the page's ink, so that one
picture serves light and dark mode. The same input gives the same bytes.
"""

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.metrics import OperatingPoints, all_ones_pf1, find_operating_points

Pixels = NDArray[np.floating[Any]]

FILTERS_PER_ROW, MOST_TILES = 7, 8  # as in figure 7 of the ViT paper; tiles along each side
INK = "#010203"  # stands for the page's text colour until the SVG is written
FOLD_COLOURS = ["#3987e5", "#d95926", "#199e70", "#c98500", "#d55181", "#8a6fd6", "#0e9fb5", "#7c8a1c"]
MARKER = {"marker": ".", "markersize": 4.0}  # one epoch alone is no line
POOLED_LINE = {"linewidth": 2.4, "color": INK, "label": "pooled"}
GUIDE_LINE = {"linewidth": 1.0, "color": "#8a8a8a", "linestyle": (0, (3, 3))}
CELL_COLOUR, CELL_OPACITY = "#3987e5", 0.75  # at most so opaque: numbers stay readable, light mode and dark
LONGEST_LABEL = 30  # letters
MOST_COUNTED_CLASSES = 12  # of a confusion matrix with a number in each square
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


def draw_attention_distance(distances: Mapping[str, pd.DataFrame], even_distance_px: float) -> str:
    """Draws how far each head of each layer looks, a dot per head (ViT figure 7, right).

    Args:
        distances: by name of a training, one row per head: layer, head, distance_px.
        even_distance_px: of a head that attends to all patches evenly.
    """
    with _new_axes("layer", "mean attention distance (px)") as axes:
        axes.axhline(even_distance_px, **GUIDE_LINE)
        for number, (name, table) in enumerate(distances.items()):
            shift = 0.3 * ((number + 0.5) / len(distances) - 0.5)  # side by side, not over one another
            dots = {"color": FOLD_COLOURS[number % len(FOLD_COLOURS)], "markersize": 4.0, "alpha": 0.8}
            axes.plot(table["layer"] + shift, table["distance_px"], "o", **dots, label=name)
        farthest = max(table["distance_px"].max() for table in distances.values())
        axes.set_ylim(0, 1.08 * max(even_distance_px, farthest))
        axes.xaxis.get_major_locator().set_params(integer=True)
        description = "Mean attention distance of each head, over the layers"
        return _to_svg(axes.figure, "distance", description)


def draw_patch_filters(filters_NCpp: Pixels) -> str:
    """Draws filters as small pictures in reading order: grey, or coloured where there are three channels.

    Each filter has a scale of its own, with 0 in the middle.
    """
    num_filters, num_channels, size, _ = filters_NCpp.shape
    peaks = np.abs(filters_NCpp).max(axis=(1, 2, 3), keepdims=True)
    tiles_NppC = np.moveaxis(0.5 + 0.5 * filters_NCpp / np.where(peaks, peaks, 1.0), 1, -1)
    colours_Npp4 = np.ones((num_filters, size, size, 4))
    colours_Npp4[..., :3] = tiles_NppC if num_channels == 3 else tiles_NppC[..., :1]
    num_columns = min(FILTERS_PER_ROW, num_filters)
    num_rows = -(-num_filters // num_columns)
    sheet = np.zeros((num_rows * num_columns, size, size, 4))  # transparent where there is no filter
    sheet[:num_filters] = colours_Npp4
    with _new_axes("", "", height=0.4 + 4.2 * num_rows / num_columns) as axes:
        axes.imshow(_join_tiles(sheet.reshape(num_rows, num_columns, size, size, 4)), interpolation="none")
        axes.set_axis_off()
        description = f"The first {num_filters} principal components of the patch embedding's filters"
        return _to_svg(axes.figure, "filters", description)


def draw_position_similarity(similarity_gggg: Pixels) -> str:
    """Draws the cosine of position embeddings: a tile per position, with a pixel for each position.

    Of many positions, every second, third, ... has a tile.
    """
    grid_size = len(similarity_gggg)
    step = -(-grid_size // MOST_TILES)
    shown = np.arange(grid_size)[(step - 1) // 2 :: step]
    tiles_rcgg1 = similarity_gggg[np.ix_(shown, shown)][..., None]
    with _new_axes("column of the patch", "row of the patch") as axes:
        sheet = _join_tiles(tiles_rcgg1)[..., 0]
        picture = axes.imshow(sheet, vmin=-1.0, vmax=1.0, cmap="viridis", interpolation="none")
        middles = np.arange(len(shown)) * (grid_size + _gap(grid_size)) + (grid_size - 1) / 2
        axes.set_xticks(middles, shown + 1)
        axes.set_yticks(middles, shown + 1)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        scale = axes.figure.colorbar(picture, shrink=0.8, label="cosine similarity")
        scale.outline.set_visible(False)
        return _to_svg(
            axes.figure, "positions", "Cosine similarity of each position's embedding to all others"
        )


def _gap(size: int) -> int:
    """Returns how many pixels lie between two tiles."""
    return max(1, size // 16)


def _join_tiles(tiles_rchwC: Pixels) -> Pixels:
    """Returns tiles as one picture [H, W, C], with transparent gaps between them."""
    channels = tiles_rchwC.shape[-1]
    gap = _gap(tiles_rchwC.shape[3])
    empty = 0.0 if channels == 4 else np.nan  # what matplotlib leaves transparent
    padded = np.pad(tiles_rchwC, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=empty)
    rows, columns = padded.shape[0] * padded.shape[2], padded.shape[1] * padded.shape[3]
    return padded.swapaxes(1, 2).reshape(rows, columns, channels)[:-gap, :-gap]


def _lines(breasts: pd.DataFrame) -> Iterator[tuple[OperatingPoints, dict[str, Any]]]:
    """Yields points and line style of each fold that has both classes, and last of all breasts."""
    for fold, part in breasts.groupby("fold"):
        if part["cancer"].nunique() == 2:
            yield find_operating_points(part["cancer"], part["probability"]), _fold_line(int(str(fold)))
    yield find_operating_points(breasts["cancer"], breasts["probability"]), POOLED_LINE


def _fold_line(fold: int) -> dict[str, Any]:
    return {"linewidth": 1.0, "color": FOLD_COLOURS[fold % len(FOLD_COLOURS)], "label": f"fold {fold}"}


@contextmanager
def _new_axes(x_label: str, y_label: str, *, height: float = 3.9) -> Iterator[Any]:
    """Opens a figure; matplotlib looks the style up whenever something is added or written."""
    with mpl.rc_context(STYLE):
        axes = Figure(figsize=(4.4, height), layout="constrained").add_subplot()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        yield axes


def _to_svg(figure: Figure, name: str, description: str) -> str:
    """Adds the legend and returns an `<svg>` element whose ids start with `name`: several fit in one page."""
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=4)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata=WITHOUT_METADATA)
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :]  # the XML declaration and DOCTYPE do not belong in HTML
    drawing = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", drawing)
    opening = f'<svg role="img" aria-label="{html.escape(description)}"'
    drawing = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"{opening} \1>", drawing, count=1)
    return drawing.replace(INK, "currentColor")


def draw_confusion(confusion: NDArray[np.int64], labels: Sequence[str]) -> str:
    """Draws a square per pair of classes, the more opaque the larger its share of the true class.

    Args:
        confusion: images by true class (row) and predicted class (column), [K, K].
        labels: the classes' names.
    """
    num_classes = len(labels)
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    with _new_axes("predicted class", "true class") as axes:
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
        return _to_svg(axes.figure, "confusion", "Confusion matrix: true class by row, predicted by column")


def _shorten(label: str) -> str:
    """Returns a name that leaves room for the picture."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"


def _shade(share: float) -> dict[str, Any]:
    """Returns the fill for a share of a row; its root, so that rare mistakes can be seen."""
    return {"facecolor": CELL_COLOUR, "alpha": CELL_OPACITY * float(share) ** 0.5, "linewidth": 0}


def draw_class_losses(history: pd.DataFrame) -> str:
    """Draws training and test loss over the epochs.

    Args:
        history: one row per epoch: epoch, train_loss, test_loss.
    """
    with _new_axes("epoch", "cross-entropy") as axes:
        line = _fold_line(0) | MARKER
        axes.plot(history["epoch"], history["train_loss"], **{**line, "label": "training"})
        axes.plot(history["epoch"], history["test_loss"], **{**line, "label": "test"}, linestyle="--")
        axes.xaxis.get_major_locator().set_params(integer=True)
        return _to_svg(axes.figure, "class-loss", "Training and test loss over the epochs")


def draw_test_accuracy(history: pd.DataFrame, *, guess: float) -> str:
    """Draws the test accuracy over the epochs, and what always answering one class scores."""
    with _new_axes("epoch", "test accuracy") as axes:
        axes.axhline(guess, **GUIDE_LINE)
        line = _fold_line(0) | MARKER | {"label": None}
        axes.plot(history["epoch"], history["test_accuracy"], **line)
        axes.set_ylim(0, 1.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
        return _to_svg(axes.figure, "test-accuracy", "Test accuracy over the epochs")
