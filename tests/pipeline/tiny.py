"""Tiny caches of noise, data sets and recipes, for the tests of all that trains or predicts."""

import io
import subprocess
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import write_image
from data_prep.imageio.frame import Box
from data_prep.preprocessing.placement import Placement
from data_prep.preprocessing.settings import PrepareSettings
from pipeline.runs.recipe import AugmentSettings, ModelSettings, Recipe, TrainSettings
from pipeline.runs.run_folder import RunFolder
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import Interrupted, StopRequest
from tests import forked

SIDE = 32
PREPARE = PrepareSettings(side=SIDE)
MODEL = ModelSettings(image_size=SIDE, patch_size=8, width=16, depth=2, num_heads=2)
TRAIN = TrainSettings(
    num_folds=2,
    epochs=3,
    batch_size=8,
    positive_share=0.25,
    learning_rate=1e-3,
    precision="float32",
    device="cpu",
    workers=0,
)


def make_recipe(**train) -> Recipe:
    """A recipe that trains in a second, with some settings of `[train]` changed."""
    return Recipe(
        prepare=PREPARE,
        model=MODEL,
        augment=AugmentSettings(),
        train=TrainSettings(**(TRAIN.model_dump() | train)),
    )


def make_fused_recipe(fusion="views", *, views_per_breast=0, **train) -> Recipe:
    """The same for a model that judges whole breasts."""
    changes = {"fusion": fusion, "fusion_patches": 4, "views_per_breast": views_per_breast}
    model = ModelSettings(**MODEL.model_dump() | changes)
    return make_recipe(**train).model_copy(update={"model": model})


def make_exams(num_patients=10, num_cancers=4, *, split="train") -> pd.DataFrame:
    """Two breasts a patient, two images a breast; the first patients have cancer on the left."""
    rows = []
    for patient in range(1, num_patients + 1):
        for laterality in "LR":
            for view in ("CC", "MLO"):
                image_id = str(100 + len(rows))
                cancer = int(patient <= num_cancers and laterality == "L")
                rows.append((str(patient), image_id, laterality, f"{patient}_{laterality}", cancer, view))
    columns = ["patient_id", "image_id", "laterality", "prediction_id", "cancer", "view"]
    exams = pd.DataFrame(rows, columns=columns)
    return exams if split == "train" else exams.drop(columns="cancer")


def noise(seed: int, height=SIDE, width=SIDE, *, bit_depth=8) -> np.ndarray:
    """An image that no other seed gives."""
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**bit_depth, (height, width), dtype=dtype)


def write_cache(folder: Path, exams: pd.DataFrame, *, prepare=PREPARE, failed=()) -> Cache:
    """A finished cache of noise, as `prepare` leaves it; the images in `failed` could not be prepared."""
    cache = Cache(folder)
    split = "train" if "cancer" in exams else "test"
    cache.open_for(CacheSettings(split=split, prepare=prepare))
    records = {}
    for patient_id, image_id in zip(exams["patient_id"], exams["image_id"], strict=True):
        records[image_id] = {"patient_id": patient_id, "image_id": image_id}
        if image_id in failed:
            records[image_id] |= {"reason": "truncated", "message": f"{image_id} ends too early"}
        else:
            image = noise(int(image_id), *2 * [prepare.side], bit_depth=prepare.bit_depth)
            whole = Placement(
                Box(0, 0, prepare.side, prepare.side), is_flipped=False, scale_x=1, scale_y=1, top=0
            )
            records[image_id] |= whole.as_record()
            records[image_id]["image_sha256"] = write_image(cache.image_path(patient_id, image_id), image)
    cache.write_exams(exams)
    cache.write_tables(records)
    return cache


def write_test_data(folder: Path, exams: pd.DataFrame) -> Path:
    """A data set in RSNA layout with test.csv, or train.csv if there are labels, and PNG files of noise.

    They are not square.
    """
    folder.mkdir(parents=True)
    split = "train" if "cancer" in exams else "test"
    exams.to_csv(folder / f"{split}.csv", index=False)
    for patient_id, image_id in zip(exams["patient_id"], exams["image_id"], strict=True):
        path = folder / f"{split}_images" / patient_id / f"{image_id}.png"
        write_image(path, noise(int(image_id), 96, 64))
    return folder


COLOURS = {"blue": (30, 60, 220), "green": (40, 190, 60), "red": (220, 50, 40)}


def make_class_recipe(num_classes=3, *, in_channels=3, **train) -> Recipe:
    """A recipe for the classes of an image folder that trains in a second or two."""
    model = MODEL.model_copy(update={"num_classes": num_classes, "in_channels": in_channels})
    settings = {"learning_rate": 5e-3, "ema_decay": 0.9} | train
    return make_recipe(**settings).model_copy(update={"model": model})


def coloured(colour: tuple[int, int, int], seed: int, *, height=40, width=48) -> Image.Image:
    """A noisy picture of one colour that is not square."""
    spread = np.random.default_rng(seed).normal(0, 25, (height, width, 3))
    return Image.fromarray(np.clip(np.array(colour) + spread, 0, 255).astype(np.uint8))


def write_class_folder(folder: Path, *, per_class=10, suffix=".png") -> Path:
    """A folder per colour, with pictures of it."""
    for number, (label, colour) in enumerate(COLOURS.items()):
        (folder / label).mkdir(parents=True)
        for row in range(per_class):
            coloured(colour, 100 * number + row).save(folder / label / f"{row:03d}{suffix}")
    return folder


def write_pets(folder: Path) -> Path:
    """The layout of Oxford-IIIT Pet: three breeds, each with three images to learn from, two for the test."""
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    breeds = {"Abyssinian": "1 1 1", "american_bulldog": "2 2 1", "Bengal": "3 1 2"}
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for (breed, ids), colour in zip(breeds.items(), COLOURS.values(), strict=True):
        for number in range(1, 6):
            coloured(colour, number).save(folder / f"images/{breed}_{number}.jpg", quality=95)
            lists["trainval" if number <= 3 else "test"].append(f"{breed}_{number} {ids}\n")
    for name, lines in lists.items():
        (folder / f"annotations/{name}.txt").write_text("".join(lines))
    return folder


def quiet() -> Reporter:
    """A reporter that nobody hears."""
    return Reporter(Console(file=io.StringIO(), width=1000))


def heard(reporter: Reporter) -> str:
    """What a quiet reporter has said."""
    return reporter.console.file.getvalue()


def results(run: RunFolder) -> dict[str, bytes]:
    """All files of a run that are equal between two equal runs, checkpoints and times left out."""
    names = {"settings.toml", "folds.csv", "images.csv", "model.safetensors", "history.csv"}
    names |= {"oof.csv", "predictions.csv"}
    paths = sorted(path for path in run.folder.rglob("*") if path.name in names)
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in paths}


def torchrun(*arguments: str, processes=2) -> subprocess.CompletedProcess[str]:
    """Runs torchrun on one machine as configs/cluster/README.md says, and returns how it ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        process = forked.start_torchrun("--standalone", f"--nproc-per-node={processes}", *arguments)
    return forked.finish(process)


class StopAfter(StopRequest):
    """A stop that is asked for after so many batches; it leaves the real signals alone."""

    def __init__(self, num_batches: int) -> None:
        super().__init__()
        self.batches_left = num_batches

    def __enter__(self) -> Self:
        return self

    @property
    def is_made(self) -> bool:
        self.batches_left -= 1
        return self.batches_left <= 0

    def raise_if_made(self) -> None:
        if self.batches_left <= 0:
            raise Interrupted(15)
