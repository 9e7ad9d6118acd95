"""A training's figures for TensorBoard, the extra of that name."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from data_prep.errors import UserError


def require_tensorboard() -> None:
    """Makes sure that TensorBoard is installed.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "train.tensorboard is true, but TensorBoard is not installed: "
            "`pip install -c constraints.txt '.[tensorboard]'`, or leave the setting out"
        )


def write_events(folder: Path, figures: Mapping[str, float], *, step: int) -> None:
    """Adds figures of a step to the folder's event files; what a killed training wrote of it is hidden."""
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  not everyone has installed it

    with SummaryWriter(folder, purge_step=step) as writer:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
