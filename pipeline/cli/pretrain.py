"""The command that trains without labels: `pretrain`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.errors import UserError
from pipeline.cli.console import Overrides, console, in_process_group, say
from pipeline.cli.dry_run import show_dry_run
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
    from pipeline.pretraining.pretrain import Plan
    from pipeline.runs.pretrain_run import PretrainRun


def pretrain(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="Recipe: a file, or a name that `mammo recipes` lists.",
            autocompletion=complete_recipe,
        ),
    ],
    cache: Annotated[
        list[Path] | None,
        typer.Option(metavar="CACHE", help="Cache that `mammo prepare` made, of any split; may be repeated."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Instead of --cache: PNG or JPEG files at any depth."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder.", show_default="reports/<name of CONFIG>")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--for",
            metavar="RUN",
            help="Make an encoder for each fold: of this run of `train`, of this folds.csv, or of a run that "
            "will be trained on this cache.",
        ),
    ] = None,
    fold: Annotated[
        list[int] | None, typer.Option(metavar="K", help="With --for: only this fold; may be repeated.")
    ] = None,
    overrides: Overrides = None,
    engine: EngineName = "local",
    address: Address = None,
    gpus_per_fold: GpusPerFold = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the encoders, the steps, and what they will cost.")
    ] = False,
) -> None:
    """Pretrain the Vision Transformer without labels.

    A masked autoencoder: the encoder sees a part of each mammogram's patches, and a small decoder predicts
    the others. `mammo train` starts from it by train.init=RUN. Goes on where it was stopped, on CPUs to the
    same weights. Under torchrun, the processes train each encoder together.

    With --for, each fold's encoder sees nobody whom the fold holds out; folds of a cache are drawn by
    train.seed and train.num_folds, as `mammo train` will draw them. Without it there is one encoder of all
    images, for other patients than these. Labels are looked at to draw these folds and for
    pretrain.probe_every, and for nothing else.

    With --engine ray, the machines of a Ray cluster train several encoders of --for at once, as `mammo train`
    does its folds.
    """
    from data_prep.cache.folder import Cache
    from pipeline.pretraining.images import Sources
    from pipeline.pretraining.pretrain import pretrain as train
    from pipeline.pretraining.pretrain_dry_run import make_pretrain_dry_run
    from pipeline.runs.pretrain_run import PretrainRun
    from pipeline.runs.recipe import load_recipe

    _require_one_way(cache, data, like, engine, gpus_per_fold, dry_run=dry_run)
    to = PretrainRun(run or Path("reports") / config.stem)
    with in_process_group() as group, open_cluster(engine, address) as cluster:
        reporter = Reporter(console) if dry_run else keep_log(to.folder)
        with group.main_process_first():
            recipe = load_recipe(config, overrides or ())
        sources = Sources([Cache(each) for each in cache or ()], data, recipe.model)
        if dry_run:
            plan_encoders = partial(make_pretrain_dry_run, recipe, sources, to, like=like, folds=fold)
            show_dry_run(plan_encoders, recipe.train.epochs, group)
            return
        train_here = partial(train, group=group, cluster=cluster, gpus_per_fold=gpus_per_fold)
        plan = train_here(recipe, sources, to, reporter=reporter, like=like, folds=fold)
        if group.is_main:
            _show_result(plan, to)


def _require_one_way(
    cache: list[Path] | None,
    data: Path | None,
    like: Path | None,
    engine: str,
    gpus_per_fold: float | None,
    *,
    dry_run: bool,
) -> None:
    """Refuses options that do not go together.

    Raises:
        UserError: naming those that contradict each other.
    """
    if bool(cache) == (data is not None):
        raise UserError("give either --cache CACHE or --data FOLDER: one of them says what to learn from")
    if data is not None and like is not None:
        raise UserError("--for goes with --cache: a folder of pictures names no patients")
    alone = "a single encoder, which has no --for"
    others = {alone: like is None, "--dry-run": dry_run, "torchrun": is_under_torchrun()}
    refuse_spreading_with(engine, gpus_per_fold, others, spread="the encoders of --for")


def _show_result(plan: "Plan", run: "PretrainRun") -> None:
    from pipeline.pretraining.report import write_pretrain_report
    from pipeline.runs.run_folder import name_folds

    if missing := write_pretrain_report(plan):
        say(f"{run.folder}: {name_folds(missing)} still to be trained")
        return
    say(f"loss and reconstructions: {run.report}")
    say(f"to start from it: mammo train CONFIG --cache CACHE --set train.init={run.folder}")
