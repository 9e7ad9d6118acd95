"""A model is trained on a folder of classes, from the start or from where it was stopped.

Of `[train]` everything counts but `num_folds`, `positive_share` and what `FOR_MAMMOGRAMS` lists: each epoch
goes once through all training images, in an order drawn from (seed, epoch). `[prepare]` does not count: the
images are squares of `model.image_size`.
"""

from pathlib import Path

from data_prep.errors import UserError, count
from pipeline.classification.class_run import ClassRun
from pipeline.classification.class_task import ClassTask
from pipeline.classification.image_folder import ImageFolder, read_image_folder
from pipeline.data.square_images import require_readable
from pipeline.runs.recipe import ModelSettings, Recipe, TrainSettings
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from pipeline.runtime.gpu_memory import explain_full_training
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import StopRequest
from pipeline.training.run_setup import (
    has_begun,
    locked_by_group,
    require_space_for,
    resolve,
    say_if_split_otherwise,
    say_what_follows,
    start_run,
)
from pipeline.training.throughput import say_if_peak_unknown
from pipeline.training.trainer import Trainer

FOR_MAMMOGRAMS = [
    "sampling",
    "positive_label",
    "positive_weight",
    "focal_gamma",
    "auxiliaries",
    "keep_head",
]


def train_classes(
    recipe: Recipe, data: Path, run: ClassRun, *, reporter: Reporter, group: ProcessGroup = SINGLE_PROCESS
) -> None:
    """Trains on a folder's training images and predicts its test images; a run that was broken off goes on.

    Several ranks train together; the first has begun or checked the run before the others look.

    Raises:
        UserError: if recipe, folder and run do not fit together, or an image cannot be read.
        Interrupted: after a signal; a checkpoint is saved.
        TrainingStopped: if a loss is not finite or no checkpoint can be read.
        GpuMemoryFull: with what lets the same run go on.
    """
    with group.main_process_first():
        asked, recipe = recipe, resolve(recipe, run)
        folder = open_folder(recipe, data)
    with StopRequest() as stop, locked_by_group(run.folder, group):
        with group.main_process_first():
            if group.is_main:
                _start(recipe, folder, run, world_size=group.world_size)
                require_space_for(recipe, run.folder, [run.training])
                say_if_split_otherwise(run, recipe, group, reporter)
                say_what_follows(asked, recipe, reporter)
                say_if_peak_unknown(recipe.train.precision, recipe.train.device, reporter)
            is_finished, is_new = run.training.is_finished, not has_begun(run.folder)
        if is_finished:
            reporter.say(f"{run.name}: finished before")
            return
        task = ClassTask(recipe, folder, name=run.name)
        reporter.say(
            f"{len(folder.labels)} classes, {count(len(task.training), 'image')} for training, "
            f"{len(task.test)} for the test ({folder.origin})"
        )
        with explain_full_training(task.name, recipe, world_size=group.world_size):
            # Before all images are read: a wrong train.init shows at once.
            trainer = Trainer(recipe, task, run.training, reporter=reporter, group=group)
            if is_new and group.is_main:
                _require_readable(folder, recipe.model, stop, reporter)
            trainer.run(stop)


def open_folder(recipe: Recipe, data: Path) -> ImageFolder:
    """Reads a folder of classes for a recipe.

    Raises:
        UserError: if the two do not fit together.
    """
    _require_settings_count(recipe)
    folder = read_image_folder(data, seed=recipe.train.seed)
    require_model_fits(recipe.model, folder)
    return folder


def _require_settings_count(recipe: Recipe) -> None:
    """Refuses what is for mammograms alone, rather than leave it out without a word."""
    settings = recipe.train
    if recipe.model.inputs:
        raise UserError("model.inputs is for mammograms alone: set it to [] for a folder of classes")
    if recipe.model.fusion != "none":
        raise UserError("model.fusion is for mammograms alone: set it to none for a folder of classes")
    if settings.select != "last":
        raise UserError('train.select "best" would choose the epoch by the test split: set it to "last"')
    for name in FOR_MAMMOGRAMS:
        default = TrainSettings.model_fields[name].default
        if getattr(settings, name) != default:
            raise UserError(
                f"train.{name} is for mammograms alone and does nothing for a folder of classes: "
                f"leave it at {default!r}"
            )


def require_model_fits(model: ModelSettings, folder: ImageFolder) -> None:
    """Makes sure that the model has an output for each class.

    Raises:
        UserError: with the number that it must have.
    """
    num_classes = len(folder.labels)
    if model.num_classes != num_classes:
        raise UserError(
            f"model.num_classes is {model.num_classes} and must be {num_classes}, the number of classes in "
            f"{folder.folder}: add --set model.num_classes={num_classes}"
        )


def _start(recipe: Recipe, folder: ImageFolder, run: ClassRun, *, world_size: int) -> None:
    """Makes the run folder, or checks that it was made by the same recipe on the same images."""
    origin = {"data": str(folder.folder.absolute()), "split": folder.origin, "processes": world_size}
    start_run(run, recipe, table=folder.images, path=run.images, origin=origin)
    if not run.read_images().equals(folder.images):
        raise UserError(f"{run.folder} has other images or labels than {folder.folder}: choose another --run")


def _require_readable(
    folder: ImageFolder, model: ModelSettings, stop: StopRequest, reporter: Reporter
) -> None:
    """Reads every image once, so that all broken ones are known before the training and not in its midst."""
    images = folder.open_images(folder.images, side=model.image_size, channels=model.in_channels)
    require_readable(images, folder.folder, stop, reporter)
