"""What a training on a folder of classes would do, and how long and with how much memory."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pipeline.classification.class_task import ClassTask
from pipeline.classification.train_classes import open_folder
from pipeline.runs.recipe import Recipe
from pipeline.runtime.progress import Reporter
from pipeline.training.dry_run import DryRun, estimate
from pipeline.training.run_setup import resolve, say_what_follows


def make_class_dry_run(
    recipe: Recipe,
    data: Path,
    *,
    reporter: Reporter,
    on_table: Callable[[pd.DataFrame], None] = lambda _: None,
) -> DryRun:
    """Draws the split and takes a few steps with a model that is thrown away.

    `on_table` gets one row before the first step: images, classes, steps_per_epoch, held_out (for the test).

    Raises:
        UserError: if recipe and folder do not fit together.
        GpuMemoryFull: with what takes less.
    """
    asked, recipe = recipe, resolve(recipe)
    say_what_follows(asked, recipe, reporter)
    task = ClassTask(recipe, open_folder(recipe, data), name="the training")
    row = {
        "images": len(task.training),
        "classes": len(task.labels),
        "steps_per_epoch": len(task.plan(0)),
        "held_out": len(task.test),
    }
    table = pd.DataFrame([row])
    on_table(table)
    return estimate(recipe, task, table, reporter=reporter)
