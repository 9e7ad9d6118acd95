"""What `train --dry-run` shows: the plan at once, then what it will cost."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.table import Table

from data_prep.cache.folder import Cache
from data_prep.errors import UserError, count
from pipeline.cli.console import console, say
from pipeline.runtime.progress import Reporter, format_duration

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.runs.recipe import Recipe
    from pipeline.runtime.distributed import ProcessGroup
    from pipeline.training.dry_run import DryRun


def show_dry_run(
    recipe: "Recipe",
    cache: Path | None,
    data: Path | None,
    folds: list[int] | None,
    group: "ProcessGroup",
    *,
    num_repeats: int,
) -> None:
    """Shows the plan of a cross-validation, or without a cache of a training on a folder of classes.

    Raises:
        UserError: if several processes would train together.
    """
    with group.main_process_first():  # so that it is said once
        if group.world_size > 1:
            raise UserError("--dry-run times one process: run the command without torchrun")
    reporter = Reporter(console)
    if cache is None:
        from pipeline.cli.classes import plan_classes

        plan = plan_classes(recipe, cast("Path", data), reporter, _show_table)
    else:
        from pipeline.training.dry_run import make_dry_run

        plan = make_dry_run(recipe, Cache(cache), reporter=reporter, folds=folds, on_table=_show_table)
    _show_costs(plan, recipe.train.epochs, num_repeats)


def _show_table(plan: "pd.DataFrame") -> None:
    table = Table(*(str(name).replace("_", " ") for name in plan))
    for row in plan.itertuples(index=False):
        table.add_row(*(f"{value:,}" for value in row))
    console.print(table)


def _show_costs(plan: "DryRun", epochs: int, num_repeats: int) -> None:
    say(f"{plan.num_parameters:,} parameters, {plan.num_tokens:,} tokens, {plan.precision} on {plan.device}")
    if plan.kept_patches:
        say(plan.kept_patches)
    first = "the first fold" if "fold" in plan.table else "the training"
    folds = f" of {count(len(plan.table), 'fold')}" if "fold" in plan.table else ""
    folds += f", {num_repeats} times" if num_repeats > 1 else ""
    say(
        f"{count(epochs, 'epoch')}{folds}: about {format_duration(num_repeats * plan.seconds)} on this "
        f"machine, {plan.memory_mb / 1000:.1f} GB of memory, by a few steps of {first}"
    )
