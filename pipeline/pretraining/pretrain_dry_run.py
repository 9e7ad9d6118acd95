"""What a pretraining would do, and how long and with how much memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.data.kept_patches import describe_kept_patches
from pipeline.pretraining.images import Sources
from pipeline.pretraining.pretrain import make_plan
from pipeline.pretraining.pretrain_task import PretrainTask
from pipeline.runs.pretrain_run import PretrainRun
from pipeline.runs.recipe import Recipe
from pipeline.runtime.progress import Reporter
from pipeline.training.dry_run import DryRun, estimate
from pipeline.training.run_setup import resolve, say_what_follows


def make_pretrain_dry_run(
    recipe: Recipe,
    sources: Sources,
    run: PretrainRun,
    *,
    reporter: Reporter,
    like: Path | None = None,
    folds: Sequence[int] | None = None,
    on_table: Callable[[pd.DataFrame], None] = lambda _: None,
) -> DryRun:
    """Draws the folds and takes a few steps with encoder and decoder, which are thrown away.

    `on_table` gets a row per encoder before the first step: fold (with `like`), images, steps_per_epoch,
    held_out. The measurements of `pretrain.probe_every` are not counted.

    Raises:
        UserError: if recipe, images and folds do not fit together.
        GpuMemoryFull: with what takes less.
    """
    asked, recipe = recipe, resolve(recipe)
    say_what_follows(asked, recipe, reporter)
    plan = make_plan(recipe, sources, run, like=like, folds=folds)
    tasks = [plan.make_task(fold) for fold in plan.folds]
    rows = zip(plan.folds, tasks, strict=True)
    table = pd.DataFrame([_describe_encoder(fold, task) for fold, task in rows])
    on_table(table)
    estimated = estimate(recipe, tasks[0], table, reporter=reporter)
    if not sources.caches:
        return estimated
    manifest = pd.concat([cache.read_manifest() for cache in sources.caches], ignore_index=True)
    return replace(estimated, kept_patches=describe_kept_patches(recipe.model, manifest))


def _describe_encoder(fold: int | None, task: PretrainTask) -> dict[str, int]:
    row = {} if fold is None else {"fold": fold}
    return row | {
        "images": len(task.split.training),
        "steps_per_epoch": len(task.plan(0)),
        "held_out": len(task.split.judged),
    }
