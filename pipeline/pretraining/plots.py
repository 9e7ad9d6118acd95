"""Pictures of a pretraining's course."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.reporting.plots.svg import GUIDE_LINE, INK, MARKER, fold_line, new_axes, to_svg

Histories = Mapping[int | None, pd.DataFrame]
"""By fold, None for a single encoder, one row per epoch: epoch, train_loss, val_loss, probe_auc."""


def draw_pretrain_losses(histories: Histories) -> str:
    """Draws the losses of training and of held-out images over the epochs."""
    with new_axes("epoch", "loss") as axes:
        for fold, history in histories.items():
            line = _line(fold)
            axes.plot(history["epoch"], history["train_loss"], **line)
            axes.plot(history["epoch"], history["val_loss"], **{**line, "label": None}, linestyle="--")
        axes.plot([], [], color=INK, linewidth=1.0, label="training")
        axes.plot([], [], color=INK, linewidth=1.0, linestyle="--", label="held out")
        axes.xaxis.get_major_locator().set_params(integer=True)
        return to_svg(axes.figure, "pretrain-loss", "Loss of training and of held-out images over the epochs")


def draw_probe(histories: Histories) -> str:
    """Draws the linear probe's AUC over the epochs at which it was measured."""
    with new_axes("epoch", "AUC of a linear probe") as axes:
        axes.axhline(0.5, **GUIDE_LINE)
        for fold, history in histories.items():
            measured = history.dropna(subset=["probe_auc"])
            axes.plot(measured["epoch"], measured["probe_auc"], **_line(fold))
        axes.xaxis.get_major_locator().set_params(integer=True)
        return to_svg(axes.figure, "probe-auc", "AUC of a linear probe over the epochs")


def _line(fold: int | None) -> dict[str, Any]:
    return fold_line(fold or 0) | MARKER | ({"label": None} if fold is None else {})
