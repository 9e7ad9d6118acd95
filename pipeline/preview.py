"""What a cross-validation would do, how long and with how much memory, before it is begun. Writes no run."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep.cache import Cache
from pipeline.cross_validate import make_fold_tasks
from pipeline.progress import Reporter
from pipeline.run import FoldFolder
from pipeline.settings import Recipe
from pipeline.start_run import resolve
from pipeline.train import Trainer


@dataclass(frozen=True)
class Preview:
    """The plan of a cross-validation.

    Attributes:
        folds: one row per fold: fold, images, positives, steps_per_epoch, held_out, held_out_positives.
        num_parameters: of the model.
        num_tokens: of an image, with the class token.
        device: "cpu" or "cuda".
        precision: of the forward pass.
        seconds: an estimate for all these folds, from a few steps of the first.
        memory_mb: the most that those steps took, in this process or on the GPU.
    """

    folds: pd.DataFrame
    num_parameters: int
    num_tokens: int
    device: str
    precision: str
    seconds: float
    memory_mb: float


def preview(
    recipe: Recipe, cache: Cache, *, reporter: Reporter, folds: Sequence[int] | None = None
) -> Preview:
    """Draws the folds and takes a few steps with a model that is thrown away.

    The estimate takes a prediction for a third of a training step's time per image.

    Raises:
        UserError: if recipe and cache do not fit together, or folds cannot be made.
    """
    recipe = resolve(recipe)
    tasks = list(make_fold_tasks(recipe, cache, folds))
    rows = []
    for task in tasks:
        held_out = task.images.validation["cancer"]
        rows.append(
            {
                "fold": task.fold,
                "images": len(task.labels),
                "positives": int(task.labels.sum()),
                "steps_per_epoch": len(task.plan(0)),
                "held_out": len(held_out),
                "held_out_positives": int(held_out.sum()),
            }
        )
    table = pd.DataFrame(rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, tasks[0], FoldFolder(Path(folder)), reporter=reporter)
        step = trainer.time_steps()
    predicting = step.seconds / step.num_images / 3
    model = trainer.state.model
    return Preview(
        folds=table,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_tokens=model.num_tokens,
        device=trainer.arithmetic.device,
        precision=trainer.arithmetic.precision,
        seconds=recipe.train.epochs
        * float((table["steps_per_epoch"] * step.seconds + table["held_out"] * predicting).sum()),
        memory_mb=step.memory_mb,
    )
