"""All folds of a run: starts the run folder or goes on with it, fold after fold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep.cache.failures import describe_failures
from data_prep.cache.folder import Cache
from data_prep.cache.shared_pictures import find_shared_pictures
from data_prep.errors import UserError
from data_prep.rsna.exam_table import Split
from data_prep.rsna.folds import make_folds
from data_prep.storage.atomic import write_csv
from data_prep.storage.locks import require_unlocked
from pipeline.data.kept_patches import describe_kept_patches
from pipeline.evaluation.age.age_regression import AGE, knows_no_age
from pipeline.evaluation.external.seen import tabulate_pictures
from pipeline.runs.ancestry import TIMM, find_earlier_run, find_pretraining, list_ancestors
from pipeline.runs.cache_fit import require_same_images
from pipeline.runs.pretrain_run import PretrainRun
from pipeline.runs.recipe import Recipe
from pipeline.runs.records import describe_cache, describe_groups
from pipeline.runs.run_folder import FOLDS_COLUMNS, GROUP, FoldFolder, Run, TrainingFolder
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from pipeline.runtime.gpu_memory import explain_full_training
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import StopRequest
from pipeline.training.fold_task import FoldImages, FoldTask, check_init, locate_init
from pipeline.training.fusion.breast_task import make_task
from pipeline.training.fusion.counting import require_uncountable
from pipeline.training.run_setup import (
    has_begun,
    locked_by_group,
    require_space_for,
    resolve,
    say_if_split_otherwise,
    say_what_follows,
    start_run,
)
from pipeline.training.task import Task
from pipeline.training.throughput import say_if_peak_unknown
from pipeline.training.trainer import Trainer

TRAIN: Split = "train"


@dataclass(frozen=True)
class Plan:
    """A run that has begun: all that the training of a fold must know of it.

    Attributes:
        recipe: with device and precision resolved.
        exams: the cache's exam table.
        fold_table: as `folds.csv` holds it.
        folds: those to train.
    """

    recipe: Recipe
    cache: Cache
    run: Run
    exams: pd.DataFrame
    fold_table: pd.DataFrame
    folds: list[int]

    def training(self, fold: int) -> FoldFolder:
        """Returns what a fold's training leaves."""
        return self.run.fold(fold)

    def train(self, fold: int, *, stop: StopRequest, reporter: Reporter) -> None:
        """Trains a fold by this process alone; see `train_fold`."""
        train_fold(self, fold, stop=stop, reporter=reporter)


def cross_validate(
    recipe: Recipe,
    cache: Cache,
    run: Run,
    *,
    reporter: Reporter,
    folds: Sequence[int] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Trains all folds, or some; finished ones are left as they are, a broken-off one goes on.

    Several ranks train each fold together; the first has begun or checked the run before the others look.

    Raises:
        UserError: if recipe, cache and run folder do not fit together, or folds cannot be made.
        Interrupted: after a signal; a checkpoint is saved.
        TrainingStopped: if a loss is not finite or no checkpoint can be read.
        GpuMemoryFull: with what lets the same run go on.
    """
    with group.main_process_first():
        plan = begin(recipe, cache, run, folds=folds, group=group)
        if group.is_main:
            say_if_split_otherwise(run, plan.recipe, group, reporter)
            say_what_follows(recipe, plan.recipe, reporter)
            say_who_takes_part(cache, plan.fold_table, reporter)
            say_if_peak_unknown(plan.recipe.train.precision, plan.recipe.train.device, reporter)
    with StopRequest() as stop:
        for fold in plan.folds:
            train_fold(plan, fold, stop=stop, reporter=reporter, group=group)


def begin(
    recipe: Recipe,
    cache: Cache,
    run: Run,
    *,
    folds: Sequence[int] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Plan:
    """Makes the run folder, or makes sure that the same run goes on; trains nothing.

    Raises:
        UserError: if recipe, cache and run folder do not fit together, or folds cannot be made.
    """
    recipe = resolve(recipe, run)
    exams = _read_exams(recipe, cache)
    fold_table = _tabulate_folds(exams, recipe, cache, run)
    require_uncountable(exams, fold_table, recipe.model)
    wanted = _check_folds(folds, recipe.train.num_folds)
    for fold in wanted if recipe.train.init else []:
        _require_init(run.fold(fold), recipe.train.init, fold)
        # Weights that a later fold refuses show before the first one is trained.
        check_init(recipe.train, FoldImages.split(exams, fold_table, fold, cache), fold=fold)
    if group.is_main:
        _start(recipe, cache, run, fold_table, world_size=group.world_size)
        require_space_for(recipe, run.folder, [run.fold(fold) for fold in wanted])
    return Plan(recipe, cache, run, exams, fold_table, wanted)


def _require_init(folder: FoldFolder, init: str, fold: int) -> None:
    """Makes sure that first weights are still there for a fold that has not begun.

    Raises:
        UserError: if they are gone.
    """
    begun = (folder.last, folder.previous, folder.weights)
    if init.startswith(TIMM) or Path(locate_init(init, fold)).exists() or any(p.exists() for p in begun):
        return
    raise UserError(
        f"{locate_init(init, fold)} does not exist, and fold {fold} is to start from it (train.init): put it "
        "back"
    )


def train_fold(
    plan: Plan, fold: int, *, stop: StopRequest, reporter: Reporter, group: ProcessGroup = SINGLE_PROCESS
) -> None:
    """Trains one fold, or goes on with it; a finished one is left as it is.

    Raises:
        FolderInUse: if another training holds the fold.
        Interrupted: after a signal; a checkpoint is saved.
        TrainingStopped: if a loss is not finite or no checkpoint can be read.
        GpuMemoryFull: with what lets the same run go on.
    """

    def make() -> Task:
        images = FoldImages.split(plan.exams, plan.fold_table, fold, plan.cache)
        return make_task(plan.recipe, images, fold=fold)

    folder = plan.run.fold(fold)
    train_task(plan.recipe, folder, f"fold {fold}", make, stop=stop, reporter=reporter, group=group)


def train_task(
    recipe: Recipe,
    folder: TrainingFolder,
    name: str,
    make: Callable[[], Task],
    *,
    stop: StopRequest,
    reporter: Reporter,
    group: ProcessGroup,
) -> None:
    """Trains the task `name`, which `make` makes, or says that it is finished; raises as `train_fold`."""
    with locked_by_group(folder.folder, group):
        with group.main_process_first():
            is_finished = folder.is_finished
        if is_finished:
            reporter.say(f"{name}: finished before")
            return
        with group.main_process_first():
            task = make()
        with explain_full_training(task.name, recipe, world_size=group.world_size):
            Trainer(recipe, task, folder, reporter=reporter, group=group).run(stop)


def say_who_takes_part(cache: Cache, fold_table: pd.DataFrame, reporter: Reporter) -> None:
    """Says how many images could not be prepared, and how many patients are kept together."""
    if failed := describe_failures(cache):
        reporter.say(f"{failed} and are left out: `mammo verify {cache.folder}` says why")
    if grouped := describe_groups(fold_table):
        reporter.say(f"{grouped}; `mammo verify` names them")


def draw_folds(recipe: Recipe, cache: Cache) -> pd.DataFrame:
    """Returns the folds of a recipe as `folds.csv` holds them, and trains nothing.

    Raises:
        UserError: if recipe and cache do not fit together, or folds cannot be made.
    """
    return _tabulate_folds(_read_exams(recipe, cache), recipe, cache)


def make_fold_tasks(
    recipe: Recipe, cache: Cache, *, reporter: Reporter, folds: Sequence[int] | None = None
) -> Iterator[FoldTask]:
    """Yields the task of each fold, or of some, as `cross_validate` trains it.

    Raises:
        UserError: if recipe and cache do not fit together, or folds cannot be made.
    """
    exams = _read_exams(recipe, cache)
    fold_table = _tabulate_folds(exams, recipe, cache)
    require_uncountable(exams, fold_table, recipe.model)
    say_who_takes_part(cache, fold_table, reporter)
    for fold in _check_folds(folds, recipe.train.num_folds):
        yield make_task(recipe, FoldImages.split(exams, fold_table, fold, cache), fold=fold)


def _read_exams(recipe: Recipe, cache: Cache) -> pd.DataFrame:
    split = cache.settings().split
    if split != TRAIN:
        raise UserError(f"{cache.folder} holds the {split} split, which has no labels to train on")
    require_same_images(recipe, cache)
    exams = cache.read_exams()
    if AGE in recipe.model.inputs and knows_no_age(exams):
        raise UserError(
            f'model.inputs is ["age"], but {cache.folder} records no woman\'s age: add --set model.inputs=[]'
        )
    return exams


def _tabulate_folds(
    exams: pd.DataFrame, recipe: Recipe, cache: Cache, run: Run | None = None
) -> pd.DataFrame:
    """Returns `folds.csv`; its counts show when images or labels of the cache have changed.

    A `run` that has begun tells the folds itself where the weights that it has started from are gone.
    """
    shared = find_shared_pictures(cache.read_manifest(), exams)
    groups = shared.group_patients(exams["patient_id"])
    folds = make_folds(
        exams,
        num_folds=recipe.train.num_folds,
        seed=recipe.train.seed,
        groups=groups,
        known=_read_earlier_folds(recipe, run),
    )
    cancer = exams.groupby("patient_id")["cancer"]
    counts = pd.DataFrame({"num_images": cancer.size(), "num_cancers": cancer.sum()})
    fold_table = folds.join(counts, on="patient_id")[FOLDS_COLUMNS]
    if shared.images.empty:
        return fold_table
    return fold_table.assign(**{GROUP: shared.group_patients(fold_table["patient_id"])})


def _read_earlier_folds(recipe: Recipe, begun: Run | None) -> dict[str, int]:
    """Returns the folds of the patients that the weights of the run in `train.init` have learned from.

    Those of the runs before it, too; of one fold number in all. Empty where `train.init` names no run.
    """
    init = recipe.train.init
    if init and not Path(init).exists() and begun is not None and begun.folds.exists():
        table = begun.read_folds()
        return dict(zip(table["patient_id"], table["fold"], strict=True))
    run = find_pretraining(init) or find_earlier_run(init)
    if run is None or not (folds := run.list_folds()):
        return {}
    if len(folds) != recipe.train.num_folds:
        raise UserError(
            f"train.init {run.folder} has {len(folds)} folds, and this recipe has {recipe.train.num_folds}: "
            f"set train.num_folds to {len(folds)}"
        )
    known = run.map_folds() if isinstance(run, PretrainRun) else {}
    for earlier in reversed(list_ancestors(init)[0]):  # the nearest has the last word
        table = earlier.read_folds()
        known |= dict(zip(table["patient_id"], table["fold"], strict=True))
    return known


def _check_folds(folds: Sequence[int] | None, num_folds: int) -> list[int]:
    wanted = sorted(set(folds)) if folds else list(range(num_folds))
    wrong = [fold for fold in wanted if not 0 <= fold < num_folds]
    if wrong:
        raise UserError(f"there is no fold {wrong[0]}: this recipe has the folds 0 to {num_folds - 1}")
    return wanted


def _start(recipe: Recipe, cache: Cache, run: Run, fold_table: pd.DataFrame, *, world_size: int) -> None:
    """Makes the run folder, or checks that it was made by the same recipe on the same patients."""
    require_unlocked(run.folder)  # a run on an image folder may train in it
    patches = describe_kept_patches(recipe.model, cache.read_manifest())
    origin = {**describe_cache(cache, run), "processes": world_size, "patches": patches}
    start_run(run, recipe, table=fold_table, path=run.folds, origin=origin)
    before = run.read_folds()
    if GROUP in fold_table and GROUP not in before:
        raise UserError(
            f"{run.folder} was begun before patients who share a picture were kept in one fold, and some of "
            f"{cache.folder} do: choose another --run"
        )
    if not before.equals(fold_table):
        raise UserError(f"{run.folder} has other images or labels than {cache.folder}: choose another --run")
    if not (run.pictures.exists() and has_begun(run.folder)):
        write_csv(run.pictures, tabulate_pictures(cache.read_manifest()))
