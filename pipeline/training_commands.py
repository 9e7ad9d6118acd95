"""The commands that train: `demo` and `train`. `pipeline.cli` puts them under `mammo`.

Imports stand in the commands, so that `mammo --help` does not wait for torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from data_prep.errors import UserError
from pipeline.engines import Address, EngineName, open_cluster
from pipeline.evaluation_commands import evaluate, show_evaluation
from pipeline.progress import Reporter
from pipeline.terminal import (
    Overrides,
    Seed,
    console,
    say,
    speaking_for_all,
)

if TYPE_CHECKING:
    from data_prep.cluster import Cluster
    from pipeline.settings import Recipe


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, cache and run.")] = Path("reports/demo"),
    seed: Seed = 0,
) -> None:
    """Show the whole pipeline on synthetic mammograms.

    Writes phantoms as DICOM, prepares them, trains two folds, and leaves report.html and submission.csv.
    No download, no GPU, a few minutes on two cores.
    """
    from pipeline.demo import NUM_PATIENTS, make_recipe, run_demo

    result = run_demo(
        out, seed=seed, num_patients=NUM_PATIENTS, recipe=make_recipe(seed), reporter=Reporter(console)
    )
    show_evaluation(result.run, result.evaluation)
    say(f"submission: {result.run.submission}")


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Recipe, such as configs/smoke.toml.")],
    cache: Annotated[
        Path | None, typer.Option(help="Cache of the train split that `mammo prepare` made.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Instead of --cache: images in a folder per class, or Oxford-IIIT Pet."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="reports/<name of CONFIG>")
    ] = None,
    fold: Annotated[list[int] | None, typer.Option(help="Only this fold; may be repeated.")] = None,
    overrides: Overrides = None,
    engine: EngineName = "local",
    address: Address = None,
    gpus_per_fold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --engine ray; 0.5 puts two folds on one, 0 all on CPUs.",
            show_default="1 where there are any",
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the folds, the steps, and what they will cost.")
    ] = False,
) -> None:
    """Train a Vision Transformer, then evaluate it.

    With --cache, cross-validates on mammograms. With --data, learns the classes of a folder of images and
    reports on its test split. Goes on where it was stopped, on CPUs to the same weights. Under torchrun,
    the processes train each fold together.

    With --engine ray, the machines of a Ray cluster train several folds at once, each with as many threads as
    this machine would (OMP_NUM_THREADS), to the same weights. CACHE and RUN must lie, under the same names,
    on storage that all of them share.
    """
    from data_prep.cache import Cache
    from pipeline.classify import train_classes
    from pipeline.cross_validate import cross_validate
    from pipeline.run import ClassRun, Run
    from pipeline.settings import load_recipe

    if (data is None) == (cache is None):
        raise UserError("give either --cache CACHE or --data FOLDER, so that it is clear what to train on")
    if data is not None and (fold or dry_run):
        name = "--fold" if fold else "--dry-run"
        raise UserError(f"{name} goes with --cache: a folder of classes has one test split and no folds")
    folder = run or Path("reports") / config.stem
    if engine == "ray" or gpus_per_fold is not None:
        _require_spreadable(engine, cache, dry_run=dry_run)
    with speaking_for_all() as ranks, open_cluster(engine, address) as cluster:
        with ranks.first_goes_first():
            recipe = load_recipe(config, overrides or ())
            if dry_run and ranks.size > 1:
                raise UserError("--dry-run times one process: give the command without torchrun")
        if dry_run:
            assert cache is not None
            _show_preview(recipe, cache, fold)
            return
        if data is not None:
            train_classes(recipe, data, ClassRun(folder), reporter=Reporter(console), ranks=ranks)
        elif cluster is not None:
            assert cache is not None
            _spread_folds(cluster, recipe, cache, folder, fold, gpus_per_fold)
        else:
            assert cache is not None
            cross_validate(
                recipe, Cache(cache), Run(folder), reporter=Reporter(console), folds=fold, ranks=ranks
            )
    if ranks.is_first:
        _evaluate_if_finished(folder)


def _require_spreadable(engine: str, cache: Path | None, *, dry_run: bool) -> None:
    """Refuses what does not go with --engine ray."""
    from pipeline.launcher import is_under_torchrun

    if engine != "ray":
        raise UserError(
            "--gpus-per-fold goes with --engine ray: under torchrun each process has a GPU of its own"
        )
    if cache is None or dry_run or is_under_torchrun():
        what = "--data" if cache is None else "--dry-run" if dry_run else "torchrun"
        raise UserError(
            f"--engine ray spreads the folds of a --cache and does not go with {what}: leave one out"
        )


def _spread_folds(
    cluster: "Cluster",
    recipe: "Recipe",
    cache: Path,
    folder: Path,
    folds: list[int] | None,
    gpus: float | None,
) -> None:
    from data_prep.cache import Cache
    from pipeline.run import Run
    from pipeline.spread_folds import spread_folds

    store, run = Cache(cache.absolute()), Run(folder.absolute())  # the machines have other working folders
    spread_folds(cluster, recipe, store, run, reporter=Reporter(console), folds=folds, gpus=gpus)


def _show_preview(recipe: "Recipe", cache: Path, folds: list[int] | None) -> None:
    from data_prep.cache import Cache
    from pipeline.preview import preview

    plan = preview(recipe, Cache(cache), reporter=Reporter(console), folds=folds)
    table = Table(*(str(name).replace("_", " ") for name in plan.folds))
    for row in plan.folds.itertuples(index=False):
        table.add_row(*(f"{value:,}" for value in row))
    console.print(table)
    say(f"{plan.num_parameters:,} parameters, {plan.num_tokens:,} tokens, {plan.precision} on {plan.device}")
    say(
        f"{recipe.train.epochs} epochs of {len(plan.folds)} folds: about {_show_hours(plan.seconds)} on this "
        f"machine, {plan.memory_mb / 1000:.1f} GB of memory, by a few steps of the first fold"
    )


def _show_hours(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _evaluate_if_finished(folder: Path) -> None:
    from pipeline.run import ClassRun, Run

    missing = [] if ClassRun(folder).exists else Run(folder).unfinished_folds()
    if missing:
        say(f"{folder}: folds {', '.join(map(str, missing))} still to be trained")
    else:
        evaluate(folder)
