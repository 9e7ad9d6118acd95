"""The start of every training run: makes its folder, or checks that the same run goes on. Knows no images."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from data_prep.engine import count_workers
from data_prep.errors import UserError
from data_prep.files import make_folder, write_csv, write_json, write_text
from data_prep.settings import differences, dump_settings
from pipeline.predict import Arithmetic
from pipeline.run import RunFolder
from pipeline.settings import Recipe, load_recipe

PACKAGES = [
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


def resolve(recipe: Recipe) -> Recipe:
    """Returns the recipe with device and precision as this machine has them, which is what a run keeps."""
    chosen = Arithmetic.choose(recipe.train.device, recipe.train.precision)
    train = recipe.train.model_copy(update={"device": chosen.device, "precision": chosen.precision})
    return recipe.model_copy(update={"train": train})


def start_run(
    run: RunFolder, recipe: Recipe, *, table: pd.DataFrame, path: Path, source: dict[str, str]
) -> None:
    """Makes the run folder, or makes sure that it was made by the same recipe.

    A new run keeps in `path` the table that it starts with, which the caller compares when the run goes on,
    and in `environment.json` the source of its images.

    Raises:
        UserError: if the run was started with other settings.
    """
    make_folder(run.folder)
    if not run.settings.exists():
        write_csv(path, table)
        write_json(run.environment, describe_environment(recipe, source))
        write_text(run.settings, dump_settings(recipe))
        return
    changed = differences(load_recipe(run.settings), recipe)
    if changed:
        raise UserError(
            f"{run.folder} was started with other settings ({'; '.join(changed)}): "
            f"choose another --run, or go on with {run.settings} as the recipe"
        )


def describe_environment(recipe: Recipe, source: dict[str, str]) -> dict[str, Any]:
    """Returns versions, machine and the images' source, for people who want to repeat a run."""
    device = recipe.train.device
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": count_workers(),
        "threads": torch.get_num_threads(),
        **source,
        "versions": {name: importlib.metadata.version(name) for name in ["mammo-vit", *PACKAGES]},
    }
