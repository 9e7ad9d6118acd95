"""What a training would do, how long and with how much memory, before it is begun."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from data_prep.cache.folder import Cache
from pipeline.data.kept_patches import describe_kept_patches
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import FoldFolder
from pipeline.runtime.gpu_memory import explain_full_training
from pipeline.runtime.progress import Reporter
from pipeline.training.cross_validate import make_fold_tasks
from pipeline.training.fold_task import FoldTask
from pipeline.training.run_setup import resolve, say_what_follows
from pipeline.training.task import Task
from pipeline.training.throughput import Meter, say_if_peak_unknown
from pipeline.training.trainer import Trainer


@dataclass(frozen=True)
class DryRun:
    """The plan of a training, and what it will cost.

    Attributes:
        table: one row per training. Of a cross-validation: fold, images, positives, steps_per_epoch,
            held_out, held_out_positives.
        num_parameters: of the model.
        num_tokens: of an image, with the class token and registers.
        device: "cpu" or "cuda".
        precision: of the forward pass.
        seconds: an estimate for all these trainings, from a few steps of the first.
        memory_mb: the most that those steps took, in this process or on the GPU.
        kept_patches: a sentence about `model.kept_patches`; empty for a folder of classes.
    """

    table: pd.DataFrame
    num_parameters: int
    num_tokens: int
    device: str
    precision: str
    seconds: float
    memory_mb: float
    kept_patches: str = ""


def make_dry_run(
    recipe: Recipe,
    cache: Cache,
    *,
    reporter: Reporter,
    folds: Sequence[int] | None = None,
    on_table: Callable[[pd.DataFrame], None] = lambda _: None,
) -> DryRun:
    """Draws the folds and takes a few steps with a model that is thrown away.

    `on_table` gets the folds before the first step.

    Raises:
        UserError: if recipe and cache do not fit together, or folds cannot be made.
        GpuMemoryFull: with what takes less.
    """
    asked, recipe = recipe, resolve(recipe)
    say_what_follows(asked, recipe, reporter)
    tasks = list(make_fold_tasks(recipe, cache, reporter=reporter, folds=folds))
    table = pd.DataFrame([_describe_fold(task) for task in tasks])
    on_table(table)
    estimated = estimate(recipe, tasks[0], table, reporter=reporter)
    return replace(estimated, kept_patches=describe_kept_patches(recipe.model, cache.read_manifest()))


def _describe_fold(task: FoldTask) -> dict[str, int]:
    training, held_out = task.images.training["cancer"], task.images.validation["cancer"]
    return {
        "fold": task.fold,
        "images": len(training),
        "positives": int(training.sum()),
        "steps_per_epoch": len(task.plan(0)),
        "held_out": len(held_out),
        "held_out_positives": int(held_out.sum()),
    }


def estimate(recipe: Recipe, task: Task, table: pd.DataFrame, *, reporter: Reporter) -> DryRun:
    """Takes a few steps of a task, and says what all trainings of a table will cost.

    The table has `steps_per_epoch` and `held_out`, the images that are predicted after each epoch. A
    prediction is taken for a third of a training step's time per image.

    Raises:
        GpuMemoryFull: with what takes less.
    """
    say_if_peak_unknown(recipe.train.precision, recipe.train.device, reporter)
    explained = explain_full_training(task.name, recipe, is_saved=False)
    with tempfile.TemporaryDirectory() as folder, explained:
        trainer = Trainer(recipe, task, FoldFolder(Path(folder)), reporter=reporter)
        step = time_steps(trainer)
    predicting = step.seconds / step.num_images / 3
    return DryRun(
        table=table,
        num_parameters=sum(parameter.numel() for parameter in trainer.state.model.parameters()),
        num_tokens=task.model.num_tokens,
        device=trainer.compute.device,
        precision=trainer.compute.precision,
        seconds=recipe.train.epochs
        * float((table["steps_per_epoch"] * step.seconds + table["held_out"] * predicting).sum()),
        memory_mb=step.memory_mb,
    )


class StepTime(NamedTuple):
    """What a step costs: seconds, images, and the most memory so far."""

    seconds: float
    num_images: float
    memory_mb: float


def time_steps(trainer: Trainer, num_steps: int = 3) -> StepTime:
    """Takes some steps after a first one; the trainer is of no other use then."""
    settings, ahead = trainer.settings, 2 * trainer.workers  # loaded while the first step is taken
    num_skipped = -(-ahead // settings.accumulation)
    first, *plan = islice(cycle(trainer.task.plan(0)), 1 + num_skipped + num_steps)
    parts, others = trainer.load_parts([first, *plan]), plan[num_skipped:]
    with trainer.reporter.track("measuring", 1 + len(plan), "steps") as advance:
        trainer.take_step(parts, len(first))
        advance()
        for _ in range(num_skipped):
            for _ in range(settings.accumulation):
                next(parts)
            advance()
        _wait_for(trainer.compute.device)
        meter = Meter()
        for rows in others:
            trainer.take_step(parts, len(rows))
            meter.num_rows += len(rows)
            advance()
        _wait_for(trainer.compute.device)
        row = trainer.summarise(meter)
    return StepTime(row["seconds"] / num_steps, row["images"] / num_steps, row["peak_memory_mb"])


def _wait_for(device: str) -> None:
    """Lets a GPU end what it was given, which it does while this process goes on."""
    if device == "cuda":
        torch.cuda.synchronize()
