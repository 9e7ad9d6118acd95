"""All folds of a run: starts the run folder or goes on with it, fold after fold. Knows no training loop."""

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from data_prep.cache import Cache
from data_prep.engine import count_workers
from data_prep.errors import UserError
from data_prep.exams import Split
from data_prep.files import locked, make_folder, remove_temporaries, write_csv, write_json, write_text
from data_prep.folds import make_folds
from data_prep.settings import differences, dump_settings
from pipeline.interrupt import StopRequest
from pipeline.predict import Arithmetic
from pipeline.progress import Reporter
from pipeline.run import FOLDS_COLUMNS, Run
from pipeline.settings import Recipe, load_recipe
from pipeline.train import FoldImages, FoldTrainer

TRAIN: Split = "train"
PACKAGES = [
    "torch",
    "timm",
    "numpy",
    "pandas",
    "scikit-learn",
    "albumentations",
    "opencv-python-headless",
    "pydicom",
]


def cross_validate(
    recipe: Recipe, cache: Cache, run: Run, *, reporter: Reporter, folds: Sequence[int] | None = None
) -> None:
    """Trains all folds, or some; finished ones are left as they are, a broken-off one goes on.

    Raises:
        UserError: if recipe, cache and run folder do not fit together, or folds cannot be made.
        Interrupted: after a signal; a checkpoint is saved.
        TrainingStopped: if a loss is not finite or no checkpoint can be read.
    """
    recipe = resolve(recipe)
    exams = _read_exams(recipe, cache)
    fold_table = _tabulate_folds(exams, recipe)
    wanted = _check_folds(folds, recipe.train.num_folds)
    _start(recipe, cache, run, fold_table)
    with StopRequest() as stop:
        for fold in wanted:
            folder = run.fold(fold)
            with locked(folder.folder):
                if folder.is_finished:
                    reporter.say(f"fold {fold}: finished before")
                    continue
                remove_temporaries(folder.folder)
                images = FoldImages.split(exams, fold_table, fold, cache)
                FoldTrainer(recipe, images, folder, fold=fold, reporter=reporter).run(stop)


def resolve(recipe: Recipe) -> Recipe:
    """Returns the recipe with device and precision as this machine has them, which is what a run keeps."""
    chosen = Arithmetic.choose(recipe.train.device, recipe.train.precision)
    train = recipe.train.model_copy(update={"device": chosen.device, "precision": chosen.precision})
    return recipe.model_copy(update={"train": train})


def _read_exams(recipe: Recipe, cache: Cache) -> pd.DataFrame:
    made_with = cache.settings()
    if made_with.split != TRAIN:
        raise UserError(f"{cache.folder} holds the {made_with.split} split, which has no labels to train on")
    changed = differences(made_with.prepare, recipe.prepare)
    if changed:
        raise UserError(
            f"{cache.folder} was made with other settings than the recipe's (prepare: {'; '.join(changed)}): "
            "prepare another cache, or change the recipe's [prepare]"
        )
    if recipe.model.image_size != recipe.prepare.side:
        raise UserError(
            f"model.image_size {recipe.model.image_size} and prepare.side {recipe.prepare.side} must be equal"
        )
    return cache.read_exams()


def _tabulate_folds(exams: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Returns `folds.csv`; its counts show when images or labels of the cache have changed."""
    folds = make_folds(exams, num_folds=recipe.train.num_folds, seed=recipe.train.seed)
    cancer = exams.groupby("patient_id")["cancer"]
    counts = pd.DataFrame({"num_images": cancer.size(), "num_cancers": cancer.sum()})
    return folds.join(counts, on="patient_id")[FOLDS_COLUMNS]


def _check_folds(folds: Sequence[int] | None, num_folds: int) -> list[int]:
    wanted = sorted(set(folds)) if folds else list(range(num_folds))
    wrong = [fold for fold in wanted if not 0 <= fold < num_folds]
    if wrong:
        raise UserError(f"there is no fold {wrong[0]}: this recipe has the folds 0 to {num_folds - 1}")
    return wanted


def _start(recipe: Recipe, cache: Cache, run: Run, fold_table: pd.DataFrame) -> None:
    """Makes the run folder, or checks that it was made by the same recipe on the same patients."""
    make_folder(run.folder)
    if not run.settings.exists():
        write_csv(run.folds, fold_table)
        write_json(run.environment, describe_environment(recipe, cache))
        write_text(run.settings, dump_settings(recipe))
        return
    changed = differences(load_recipe(run.settings), recipe)
    if changed:
        raise UserError(
            f"{run.folder} was started with other settings ({'; '.join(changed)}): "
            f"choose another --run, or go on with {run.settings} as the recipe"
        )
    if not run.read_folds().equals(fold_table):
        raise UserError(f"{run.folder} has other images or labels than {cache.folder}: choose another --run")


def describe_environment(recipe: Recipe, cache: Cache) -> dict[str, Any]:
    """Returns versions and machine, for people who want to repeat a run."""
    device = recipe.train.device
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": count_workers(),
        "threads": torch.get_num_threads(),
        "cache": str(cache.folder),
        "versions": {name: importlib.metadata.version(name) for name in ["mammo-vit", *PACKAGES]},
    }
