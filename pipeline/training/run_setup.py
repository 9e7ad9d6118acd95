"""The start of every training run: makes its folder, or checks that the same run goes on."""

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from data_prep.errors import FolderInUse, UserError, count
from data_prep.parallel.resource_limits import count_cores
from data_prep.settings import differences, dump_settings
from data_prep.storage.atomic import (
    make_folder,
    remove_temporaries,
    require_space,
    write_csv,
    write_json,
    write_text,
)
from data_prep.storage.files import parse_json, read_own
from data_prep.storage.locks import locked, require_unlocked
from pipeline.models.breast_transformer import make_model
from pipeline.models.follow_weights import describe_followed, follow_settings, follow_weights
from pipeline.models.pretrained import read_shapes
from pipeline.runs.ancestry import TIMM
from pipeline.runs.pretrain_settings import PretrainSettings
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.records import read_environment
from pipeline.runs.run_folder import START_TABLES, FoldFolder, Run, RunFolder, TrainingFolder
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.precision import ComputeSettings
from pipeline.runtime.progress import Reporter
from pipeline.training.fold_task import locate_init
from pipeline.training.tensorboard import require_tensorboard

WEIGHTS_KEPT = 7
"""How often a training holds its weights on disk at least: in each of two checkpoints as they are, averaged
and as an optimizer's moment, and in the model that predicts."""
MAY_CHANGE = ("train.workers", "train.accumulation", "model.gradient_checkpointing", "model.attention")
"""Settings that may change when a run goes on: how a machine takes a batch, not what is learned of it."""
COUNTS_LATER = "model.inputs"
"""The setting that no training looks at: `take_inputs` has a run follow it."""
ANOTHER_NAME = ("prepare.side",)
"""Of `model.image_size` with mammograms; with classes it does not count, and runs of before keep another."""
FOR_PRETRAINING = tuple(f"pretrain.{name}" for name in PretrainSettings.model_fields)
"""What no other run looks at."""
SPLIT_OTHERWISE = "batches_in_other_parts"
RECORDED_PACKAGES = [
    "torch",
    "timm",
    "numpy",
    "pandas",
    "scikit-learn",
    "albumentations",
    "opencv-python-headless",
    "pillow",
    "pydicom",
]


def resolve(recipe: Recipe, run: RunFolder | None = None) -> Recipe:
    """Returns the recipe with device, precision, and path and structure of first weights as a run keeps them.

    A run that has begun tells the structure itself, as its first weights may be gone.

    Raises:
        UserError: if it lacks a GPU or a package that the recipe asks for by name, or a setting contradicts
            the first weights.
    """
    if recipe.train.tensorboard:
        require_tensorboard()
    chosen = ComputeSettings.choose(recipe.train.device, recipe.train.precision)
    train = recipe.train.model_copy(update={"device": chosen.device, "precision": chosen.precision})
    return with_structure(with_absolute_init(recipe.model_copy(update={"train": train})), run)


def with_structure(recipe: Recipe, run: RunFolder | None) -> Recipe:
    """Returns the recipe with the settings of the model that its first weights decide."""
    if not recipe.train.init:
        return recipe
    if run is not None and run.settings.exists() and has_begun(run.folder):
        model = follow_settings(recipe.model, load_recipe(run.settings).model)
    else:
        init = _find_first_weights(recipe)
        model = follow_weights(recipe.model, read_shapes(init), init)
    return recipe.model_copy(update={"model": model})


def _find_first_weights(recipe: Recipe) -> str:
    """Returns what the first fold that has any starts from; of several folds all have one structure."""
    init = recipe.train.init
    places = [locate_init(init, fold) for fold in range(recipe.train.num_folds if "{fold}" in init else 1)]
    return next((place for place in places if Path(place).is_file()), places[0])


def say_what_follows(before: Recipe, after: Recipe, reporter: Reporter) -> None:
    """Says which settings of the model the first weights have decided."""
    if sentence := describe_followed(before.model, after.model, after.train.init):
        reporter.say(sentence)


def with_absolute_init(recipe: Recipe) -> Recipe:
    """Returns the recipe with a path in `train.init` that does not depend on the working folder."""
    init = recipe.train.init
    if not init or init.startswith(TIMM):
        return recipe
    train = recipe.train.model_copy(update={"init": str(Path(init).absolute())})
    return recipe.model_copy(update={"train": train})


def start_run(
    run: RunFolder, recipe: Recipe, *, table: pd.DataFrame, path: Path, origin: dict[str, Any]
) -> None:
    """Makes the run folder, or makes sure that it was made by the same recipe, except for `MAY_CHANGE`.

    A new run keeps in `path` the table that it starts with, which the caller compares when the run goes on,
    and in `environment.json` where its images come from and how many processes train it. A run that has not
    begun is new, whatever an attempt that failed at its start has left.

    Raises:
        UserError: if the run has begun with other settings.
    """
    make_folder(run.folder)
    if not (run.settings.exists() and has_begun(run.folder)):
        _remove_remains(run.folder, table=path)
        write_csv(path, table)
        write_json(run.environment, describe_environment(recipe, origin))
        write_text(run.settings, dump_settings(recipe))
        return
    before = with_absolute_init(load_recipe(run.settings))
    unused = () if path.name == START_TABLES["pretraining"] else FOR_PRETRAINING
    ignored = (*MAY_CHANGE, *ANOTHER_NAME, COUNTS_LATER, *unused)
    changed = differences(before, recipe, ignored=ignored)
    if changed:
        raise UserError(
            f"{run.folder} was started with other settings ({'; '.join(changed)}): "
            f"choose another --run, or go on with {run.settings} as the recipe"
        )


def take_inputs(run: Run, recipe: Recipe, reporter: Reporter) -> None:
    """Has a run that was trained without the recipe's `model.inputs` follow them from now on, and says so.

    Its model card goes, the last file of an evaluation, which thus is to be done again.
    """
    before = load_recipe(run.settings)
    if before.model.inputs == recipe.model.inputs:
        return
    model = before.model.model_copy(update={"inputs": recipe.model.inputs})
    run.model_card.unlink(missing_ok=True)
    write_text(run.settings, dump_settings(before.model_copy(update={"model": model})))
    now = "counts from now on" if recipe.model.inputs else "counts no longer, as model.inputs is []"
    reporter.say(f"{run.name}: the woman's age {now}; external sets are to be judged again")


def require_space_for(recipe: Recipe, folder: Path, trainings: Sequence[TrainingFolder]) -> None:
    """Makes sure, before the first epoch, that the weights of trainings that have none yet will have space.

    Raises:
        DiskFull: if the disk has less.
    """
    new = [each for each in trainings if not (each.last.exists() or each.is_finished)]
    with torch.device("meta"):  # counts, and takes no memory
        model = make_model(recipe.model)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trained = f"to keep the weights of {count(len(new), 'training')}"
    require_space(folder, len(new) * WEIGHTS_KEPT * num_bytes, trained)


def say_if_split_otherwise(run: RunFolder, recipe: Recipe, group: ProcessGroup, reporter: Reporter) -> None:
    """Says that a run goes on with batches in other parts than it was begun with: another rounding.

    That stands in `environment.json` from then on, and so in the report.
    """
    environment = read_environment(run.environment)
    processes = environment.get("processes", "1")
    parts, now = load_recipe(run.settings).train.accumulation, recipe.train.accumulation
    changes = []
    if processes != str(group.world_size):
        changes.append(
            f"by {count(int(processes), 'process', 'processes')} and goes on with {group.world_size}"
        )
    if parts != now:
        changes.append(f"with train.accumulation {parts} and goes on with {now}")
    if changes:
        reporter.say(
            f"{run.name} was begun {', '.join(changes)}: its weights will differ by rounding, and with "
            "dropout or mixup by other draws"
        )
        if group.is_main:
            known = [environment[SPLIT_OTHERWISE]] if SPLIT_OTHERWISE in environment else []
            noted = "; ".join(dict.fromkeys([*known, f"begun {', '.join(changes)}"]))
            whole = parse_json(read_own(run.environment)) if environment else {}
            write_json(run.environment, whole | {SPLIT_OTHERWISE: noted})


@contextmanager
def locked_by_group(folder: Path, group: ProcessGroup) -> Iterator[None]:
    """Holds a folder while all ranks train in it; what a killed writer left there is removed.

    Raises:
        FolderInUse: if another training holds it.
    """
    if not group.is_main:
        yield
        return
    with locked(folder):
        remove_temporaries(folder)
        yield


def has_begun(folder: Path) -> bool:
    """Whether a training of the run has left what it can go on from, or another process trains a fold."""
    for training in _find_trainings(folder):
        left = (training.last, training.previous, training.weights, training.predictions)
        if any(path.exists() for path in left):
            return True
    return Run(folder).oof.exists() or any(map(_is_held, folder.glob("fold_*")))


def _find_trainings(folder: Path) -> list[TrainingFolder]:
    return [TrainingFolder(folder), *map(FoldFolder, sorted(folder.glob("fold_*")))]


def _is_held(folder: Path) -> bool:
    try:
        require_unlocked(folder)
    except FolderInUse:
        return True
    return False


def _remove_remains(folder: Path, *, table: Path) -> None:
    """Removes what an attempt of the other kind of run, or from other first weights, has left."""
    tables = [folder / name for name in START_TABLES.values() if name != table.name]
    for path in (*tables, *(training.initial_weights for training in _find_trainings(folder))):
        path.unlink(missing_ok=True)


def describe_environment(recipe: Recipe, origin: dict[str, Any]) -> dict[str, Any]:
    """Returns versions, machine and the run's origin, for people who want to repeat a run."""
    device = recipe.train.device
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": count_cores(),
        "threads": torch.get_num_threads(),
        **origin,
        "versions": {name: importlib.metadata.version(name) for name in ["mammo-vit", *RECORDED_PACKAGES]},
    }
