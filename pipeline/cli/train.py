"""The commands that train: `demo` and `train`.

Imports stand in the commands, so that `mammo --help` does not wait for torch.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from data_prep.errors import UserError
from pipeline.cli.console import Overrides, Seed, console, in_process_group, say
from pipeline.cli.dry_run import Planner, show_dry_run
from pipeline.cli.evaluate import show_evaluation
from pipeline.cli.log_file import keep_log
from pipeline.cli.ray_options import (
    Address,
    EngineName,
    GpusPerFold,
    open_cluster,
    refuse_spreading_with,
)
from pipeline.cli.recipes import complete_recipe
from pipeline.runtime.progress import Reporter
from pipeline.runtime.torchrun import is_under_torchrun

if TYPE_CHECKING:
    from pipeline.evaluation.evaluate_oof import Evaluation
    from pipeline.runs.recipe import Recipe
    from pipeline.runs.run_folder import Run
    from pipeline.runtime.distributed import ProcessGroup


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for data, cache and run.")] = Path(
        "reports/demo"
    ),
    seed: Seed = 0,
) -> None:
    """Show the whole pipeline on synthetic mammograms.

    Writes phantoms as DICOM, prepares them, trains two folds, and leaves report.html and submission.csv.
    No download, no GPU, a few minutes on two cores.
    """
    from pipeline.demo import NUM_PATIENTS, make_recipe, run_demo

    result = run_demo(
        out, seed=seed, num_patients=NUM_PATIENTS, recipe=make_recipe(seed), reporter=keep_log(out)
    )
    show_evaluation(result.run, result.evaluation)
    say(f"submission: {result.run.submission}")


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="Recipe: a file, or a name that `mammo recipes` lists.",
            autocompletion=complete_recipe,
        ),
    ],
    cache: Annotated[
        Path | None, typer.Option(metavar="CACHE", help="Cache of the train split that `mammo prepare` made.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Instead of --cache: images in a folder per class, or Oxford-IIIT Pet."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder.", show_default="reports/<name of CONFIG>")
    ] = None,
    fold: Annotated[
        list[int] | None, typer.Option(metavar="K", help="Only this fold; may be repeated.")
    ] = None,
    overrides: Overrides = None,
    engine: EngineName = "local",
    address: Address = None,
    gpus_per_fold: GpusPerFold = None,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            metavar="R",
            help="How many cross-validations in all, each with its own seed and splits.",
        ),
    ] = 1,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the folds, the steps, and what they will cost.")
    ] = False,
) -> None:
    """Train a Vision Transformer, then evaluate it.

    With --cache, cross-validates on mammograms. With --data, learns the classes of a folder of images and
    reports on its test split. Goes on where it was stopped, on CPUs to the same weights. Under torchrun,
    the processes train each fold together.

    With --repeats 5, the run itself is the first of five cross-validations, and the others are whole runs in
    RUN/repeat_1 and so on. The run's report then tells mean and spread of all, and what the recipe gives on
    average. A later command may ask for more.

    With --engine ray, the machines of a Ray cluster train several folds at once, each with as many threads as
    this machine would (OMP_NUM_THREADS), to the same weights. CACHE and RUN must lie, under the same names,
    on storage that all of them share.
    """
    from data_prep.cache.folder import Cache
    from pipeline.experiment import train_and_evaluate
    from pipeline.runs.recipe import load_recipe
    from pipeline.runs.run_folder import Run

    _require_one_way(cache, data, fold, engine, gpus_per_fold, repeats=repeats, dry_run=dry_run)
    folder = run or Path("reports") / config.stem
    with in_process_group() as group, open_cluster(engine, address) as cluster:
        reporter = Reporter(console) if dry_run else keep_log(folder)
        with group.main_process_first():
            recipe = load_recipe(config, overrides or ())
        if dry_run:
            planner = _choose_planner(recipe, cache, data, fold)
            show_dry_run(planner, recipe.train.epochs, group, num_repeats=repeats)
        elif cache is None:
            _train_classes(recipe, cast("Path", data), folder, reporter, group)
        else:
            train_folds = partial(
                train_and_evaluate, group=group, cluster=cluster, gpus_per_fold=gpus_per_fold
            )
            evaluation = train_folds(
                recipe, Cache(cache), Run(folder), reporter=reporter, folds=fold, num_repeats=repeats
            )
            _show_result(Run(folder), evaluation, repeats, group)


def _choose_planner(
    recipe: "Recipe", cache: Path | None, data: Path | None, folds: list[int] | None
) -> Planner:
    """Returns what plans a cross-validation, or without a cache a training on a folder of classes."""
    if cache is None:
        from pipeline.cli.classes import plan_classes

        return partial(plan_classes, recipe, cast("Path", data))
    from data_prep.cache.folder import Cache
    from pipeline.training.dry_run import make_dry_run

    return partial(make_dry_run, recipe, Cache(cache), folds=folds)


def _show_result(
    run: "Run", evaluation: "Evaluation | None", num_repeats: int, group: "ProcessGroup"
) -> None:
    from pipeline.runs.run_folder import name_folds

    if not group.is_main:
        return
    if evaluation is not None:
        show_evaluation(run, evaluation)
    for repeat in map(run.repeat, range(num_repeats)):
        if missing := repeat.unfinished_folds():
            say(f"{repeat.folder}: {name_folds(missing)} still to be trained")


def _require_one_way(
    cache: Path | None,
    data: Path | None,
    folds: list[int] | None,
    engine: str,
    gpus_per_fold: float | None,
    *,
    repeats: int,
    dry_run: bool,
) -> None:
    """Refuses options that do not go together.

    Raises:
        UserError: naming those that contradict each other.
    """
    if (data is None) == (cache is None):
        raise UserError("give either --cache CACHE or --data FOLDER, so that it is clear what to train on")
    if data is not None and (folds or repeats > 1):
        name = "--fold" if folds else "--repeats"
        raise UserError(f"{name} goes with --cache: a folder of classes has one test split and no folds")
    others = {"--data": cache is None, "--dry-run": dry_run, "torchrun": is_under_torchrun()}
    refuse_spreading_with(engine, gpus_per_fold, others, spread="the folds of a --cache")


def _train_classes(
    recipe: "Recipe", data: Path, folder: Path, reporter: Reporter, group: "ProcessGroup"
) -> None:
    from pipeline.cli.classes import train_classes

    train_classes(recipe, data, folder, reporter, group)
