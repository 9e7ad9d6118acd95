"""A whole pretraining: encoders by folds or a single one, each trained or gone on with, then the page.

Of `[train]` everything counts but what is about labels; `[pretrain]` says the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.errors import UserError, count
from data_prep.parallel.ray_cluster import Cluster
from data_prep.storage.locks import require_unlocked
from pipeline.data.square_images import require_readable
from pipeline.models.weights_file import read_about
from pipeline.pretraining.images import (
    SOURCE,
    Sources,
    Split,
    assign_folds,
    read_folds,
    split_images,
)
from pipeline.pretraining.pretrain_task import PretrainTask
from pipeline.pretraining.probe import Probe
from pipeline.runs.cache_fit import require_same_images
from pipeline.runs.pretrain_run import PretrainRun
from pipeline.runs.recipe import Recipe, TrainSettings
from pipeline.runs.run_folder import TrainingFolder
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import StopRequest
from pipeline.training.cross_validate import train_task
from pipeline.training.ray_folds import train_on_ray
from pipeline.training.run_setup import (
    has_begun,
    require_space_for,
    resolve,
    say_if_split_otherwise,
    say_what_follows,
    start_run,
)
from pipeline.training.throughput import say_if_peak_unknown

FOR_LABELS = [
    "sampling",
    "positive_label",
    "positive_weight",
    "focal_gamma",
    "mixup",
    "auxiliaries",
    "keep_head",
    "transductive",
    "linear_probe",
    "select",
    "select_by",
    "auxiliary_weight",
]
"""Settings of `[train]` that do nothing without labels."""


@dataclass(frozen=True)
class Plan:
    """A pretraining: who learns from what.

    Attributes:
        recipe: with device and precision resolved.
        images: as `assign_folds` leaves them.
        folds: of the encoders to train; None is the single one.
    """

    recipe: Recipe
    sources: Sources
    run: PretrainRun
    images: pd.DataFrame
    folds: list[int | None]

    def training(self, fold: int | None) -> TrainingFolder:
        """Returns what the training of one encoder leaves."""
        return self.run.training(fold)

    def train(self, fold: int | None, *, stop: StopRequest, reporter: Reporter) -> None:
        """Trains one encoder by this process alone."""
        _train(self, fold, stop=stop, reporter=reporter, group=SINGLE_PROCESS)

    def split(self, fold: int | None) -> Split:
        """Returns the images of one encoder."""
        return split_images(self.images, fold, seed=self.recipe.train.seed)

    def make_task(self, fold: int | None) -> PretrainTask:
        """Returns the training of one encoder."""
        split, seed = self.split(fold), self.recipe.train.seed
        has_probe = self.recipe.pretrain.probe_every > 0
        probe = Probe(self.sources, split.training, seed=seed) if has_probe else None
        return PretrainTask(self.recipe, self.sources, split, fold=fold, probe=probe)


def pretrain(
    recipe: Recipe,
    sources: Sources,
    run: PretrainRun,
    *,
    reporter: Reporter,
    like: Path | None = None,
    folds: Sequence[int] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    cluster: Cluster | None = None,
    gpus_per_fold: float | None = None,
) -> Plan:
    """Trains an encoder for each fold, or some of them, or a single one; finished ones are left as they are.

    Args:
        recipe: what is trained and how.
        sources: the images.
        run: the folder for all that comes out.
        reporter: shows the progress.
        like: what `read_folds` takes; None trains a single encoder.
        folds: those to train; None is all.
        group: the processes that train together.
        cluster: trains several folds of `like` at once, to the same files; None is this machine.
        gpus_per_fold: on a cluster; None is one where there are any.

    Raises:
        UserError: if recipe, images, folds and run folder do not fit together.
        Interrupted: after a signal; checkpoints are saved.
        TrainingStopped: if a loss is not finite, no checkpoint can be read, or a process dies twice.
        GpuMemoryFull: with what lets the same run go on.
    """
    if cluster is not None:
        # Machines have other working folders.
        sources = replace(sources, caches=[Cache(each.folder.absolute()) for each in sources.caches])
        run, like = PretrainRun(run.folder.absolute()), like and like.absolute()
        begin_there = partial(begin, sources=sources, run=run, like=like, folds=folds)
        return train_on_ray(cluster, begin_there, recipe, run, reporter=reporter, gpus=gpus_per_fold)
    with group.main_process_first():
        plan = begin(recipe, sources, run, like=like, folds=folds, group=group)
        if group.is_main:
            say_if_split_otherwise(run, plan.recipe, group, reporter)
            say_what_follows(recipe, plan.recipe, reporter)
            say_if_peak_unknown(plan.recipe.train.precision, plan.recipe.train.device, reporter)
    with StopRequest() as stop:
        if sources.folder is not None and group.is_main and not has_begun(run.folder):
            require_readable(sources.pick_files(plan.images), sources.folder, stop, reporter)
        for fold in plan.folds:
            _train(plan, fold, stop=stop, reporter=reporter, group=group)
    return plan


def begin(
    recipe: Recipe,
    sources: Sources,
    run: PretrainRun,
    *,
    like: Path | None = None,
    folds: Sequence[int] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Plan:
    """Makes the run folder, or makes sure that the same run goes on; trains nothing.

    Raises:
        UserError: if recipe, images, folds and run folder do not fit together.
    """
    if run.kind not in {None, "pretraining"}:
        raise UserError(f"{run.folder} is a run of `mammo train`: choose another --run")
    plan = make_plan(resolve(recipe, run), sources, run, like=like, folds=folds)
    if group.is_main:
        _start(plan, world_size=group.world_size)
        require_space_for(plan.recipe, run.folder, [run.training(fold) for fold in plan.folds])
    return plan


def make_plan(
    recipe: Recipe,
    sources: Sources,
    run: PretrainRun,
    *,
    like: Path | None,
    folds: Sequence[int] | None,
) -> Plan:
    """Says who learns from what; writes nothing.

    Raises:
        UserError: if recipe, images and folds do not fit together.
    """
    require_settings_count(recipe)
    for number, cache in enumerate(sources.caches):
        if cache.folder.resolve() in [before.folder.resolve() for before in sources.caches[:number]]:
            raise UserError(f"--cache {cache.folder} is named twice: its images would count twice")
        require_same_images(recipe, cache, "pretrain")
    images = assign_folds(sources.tabulate(), read_folds(like, recipe))
    all_folds = sorted({int(fold) for fold in images["fold"].dropna()})
    wanted: list[int | None] = [*(_check_folds(folds, all_folds) if all_folds or folds else [None])]
    plan = Plan(recipe, sources, run, images, wanted)
    for fold in wanted:
        plan.split(fold)  # what cannot be split shows before the first epoch
    return plan


def require_settings_count(recipe: Recipe) -> None:
    """Refuses what is for labels alone, rather than leave it out without a word.

    Raises:
        UserError: naming the setting.
    """
    settings = recipe.train
    if recipe.model.inputs:
        raise UserError("model.inputs does nothing without labels: set it to [] to pretrain")
    if recipe.model.fusion != "none":
        raise UserError("model.fusion does nothing without labels: set it to none to pretrain")
    if recipe.model.head != "linear":
        raise UserError("model.head does nothing without labels: leave it at 'linear'")
    for name in FOR_LABELS:
        default = TrainSettings.model_fields[name].default
        if getattr(settings, name) != default:
            raise UserError(
                f"train.{name} does nothing in a pretraining, which has no labels: leave it at {default!r}"
            )
    is_ours = bool(settings.init) and (Path(settings.init).is_dir() or bool(read_about(Path(settings.init))))
    if is_ours or "{fold}" in settings.init:
        raise UserError(
            f"train.init {settings.init} has learned from mammograms, and nobody would know whom the "
            "new encoders have seen: start from public weights, or from none"
        )


def _check_folds(folds: Sequence[int] | None, all_folds: list[int]) -> list[int]:
    wrong = set(folds or ()) - set(all_folds)
    if wrong:
        there = f"there are {', '.join(map(str, all_folds))}" if all_folds else "it takes --for to have folds"
        raise UserError(f"there is no fold {min(wrong)}: {there}")
    return sorted(set(folds)) if folds else all_folds


def _start(plan: Plan, *, world_size: int) -> None:
    """Makes the run folder, or checks that it was made by the same recipe of the same images."""
    run, sources = plan.run, plan.sources
    require_unlocked(run.folder)
    places = [sources.folder] if sources.folder is not None else [cache.folder for cache in sources.caches]
    seen = plan.images.drop(columns=SOURCE)
    origin = {"images": ", ".join(str(place.absolute()) for place in places), "processes": world_size}
    start_run(run, plan.recipe, table=seen, path=run.seen, origin=origin)
    if not run.read_seen().equals(seen.reset_index(drop=True)):
        raise UserError(
            f"{run.folder} was begun with other images or folds: choose another --run, or give the same "
            "options in the same order"
        )


def _train(
    plan: Plan, fold: int | None, *, stop: StopRequest, reporter: Reporter, group: ProcessGroup
) -> None:
    def make() -> PretrainTask:
        task = plan.make_task(fold)
        reporter.say(
            f"{task.name}: learns from {count(len(task.split.training), 'image')}, without labels, and is "
            f"judged by {len(task.split.judged):,} of other patients"
        )
        return task

    folder, name = plan.run.training(fold), "pretraining" if fold is None else f"fold {fold}"
    train_task(plan.recipe, folder, name, make, stop=stop, reporter=reporter, group=group)
