"""What `--dry-run` shows: the plan at once, then what it will cost."""

from typing import TYPE_CHECKING, Protocol

from rich.table import Table

from data_prep.errors import UserError, count
from pipeline.cli.console import console, say
from pipeline.runtime.progress import Reporter, format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from pipeline.runtime.distributed import ProcessGroup
    from pipeline.training.dry_run import DryRun


class Planner(Protocol):
    """Plans trainings; `on_table` gets a row for each of them before a few steps are timed."""

    def __call__(self, *, reporter: Reporter, on_table: "Callable[[pd.DataFrame], None]") -> "DryRun":
        """Returns the plan with its costs."""


def show_dry_run(plan: Planner, epochs: int, group: "ProcessGroup", *, num_repeats: int = 1) -> None:
    """Shows the plan of trainings of so many epochs.

    Raises:
        UserError: if several processes would train together.
    """
    with group.main_process_first():  # so that it is said once
        if group.world_size > 1:
            raise UserError("--dry-run times one process: run the command without torchrun")
    _show_costs(plan(reporter=Reporter(console), on_table=_show_table), epochs, num_repeats)


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
