"""Folders of images with classes: which image has which label in which split.

Two layouts are read. Oxford-IIIT Pet's (https://www.robots.ox.ac.uk/~vgg/data/pets/): images/NAME.jpg, and
lists annotations/trainval.txt and annotations/test.txt of lines `NAME CLASS-ID SPECIES BREED-ID`. And one
sub-folder per class, inside train/ and test/, or on top: then a fifth of each class is drawn for the test.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.errors import UserError
from data_prep.storage.files import read_input
from pipeline.classification.class_run import IMAGES_COLUMNS
from pipeline.data.square_images import SquareImages

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
TRAIN, TEST = "train", "test"
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
OFFICIAL_LISTS = {TRAIN: Path("annotations/trainval.txt"), TEST: Path("annotations/test.txt")}
TEST_SHARE = 0.2


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds.

    Attributes:
        images: image (path relative to the folder), label, split (train or test); sorted by class and image.
        origin: where the split comes from, in words.
    """

    folder: Path
    images: pd.DataFrame
    origin: str

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return list(self.images["label"].unique())

    def split(self, name: str) -> pd.DataFrame:
        """Returns the rows of one split, numbered from 0."""
        return self.images[self.images["split"] == name].reset_index(drop=True)

    def open_images(self, table: pd.DataFrame, *, side: int, channels: int) -> SquareImages:
        """Returns the image of each row."""
        return SquareImages([self.folder / image for image in table["image"]], side, channels)


def read_image_folder(folder: Path, *, seed: int) -> ImageFolder:
    """Finds out what a folder holds; opens no image.

    The seed draws the test images where the folder itself says of none that they are.

    Raises:
        UserError: if there are no images, a listed one is missing, or there are fewer than two classes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name one with a sub-folder of images per class")
    if (folder / "train.csv").exists() and (folder / "train_images").is_dir():
        raise UserError(
            f"{folder} holds mammograms: make a cache with `mammo prepare` and train with --cache"
        )
    if _is_official(folder):
        images, origin = _read_official(folder), "the official lists"
    elif _find_splits(folder):
        images, origin = _read_splits(folder), "the folders train and test"
    else:
        images = _draw_test(_find_classes(folder, folder), seed=seed)
        origin = f"{100 * TEST_SHARE:.0f} % of each class, drawn with seed {seed}"
    labels = list(images["label"].unique())
    if len(labels) < 2:
        raise UserError(f"{folder} holds one class, {labels[0]}: to learn, at least two are needed")
    return ImageFolder(folder, images, origin)


# Oxford-IIIT Pet


def _is_official(folder: Path) -> bool:
    """Whether the folder has a list, or both of the folders that the data set is unpacked to."""
    lists = OFFICIAL_LISTS.values()
    return any((folder / path).exists() for path in lists) or all(
        (folder / name).is_dir() for name in ("images", "annotations")
    )


def _read_official(folder: Path) -> pd.DataFrame:
    lists = [_read_list(folder / path, split) for split, path in OFFICIAL_LISTS.items()]
    listed = pd.concat(lists, ignore_index=True)
    if listed.empty:
        raise UserError(f"{folder} holds no images: its lists in annotations/ are empty")
    _require_one_name_per_class(folder, listed)
    twice = listed["image"][listed["image"].duplicated()]
    if len(twice):
        raise UserError(
            f"{twice.iloc[0]} is listed twice in {folder / 'annotations'}: an image belongs to one split, "
            "and stands there once"
        )
    missing = [image for image in listed["image"] if not (folder / image).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(listed)} images listed in {folder / 'annotations'} are missing, "
            f"the first is {missing[0]}: unpack the data set's images beside its annotations"
        )
    _require_known_labels(folder, listed)
    return listed.sort_values(["class_id", "image"], ignore_index=True)[IMAGES_COLUMNS]


def _read_list(path: Path, split: str) -> pd.DataFrame:
    if not path.exists():
        raise UserError(f"{path} is missing: Oxford-IIIT Pet has trainval.txt and test.txt in annotations/")
    try:
        lines = read_input(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: save it as that, or unpack the list again") from error
    rows = [
        _parse_line(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith("#")
    ]
    return pd.DataFrame(rows, columns=["image", "label", "class_id"]).assign(split=split)


def _parse_line(line: str, where: str) -> tuple[str, str, int]:
    """Returns image, class name and class id; "great_pyrenees_12" is of the class "great_pyrenees"."""
    name, *numbers = line.split()
    label, _, number = name.rpartition("_")
    if not (
        label
        and "/" not in name
        and number.isdecimal()
        and len(numbers) == 3
        and all(map(str.isdecimal, numbers))
    ):
        raise UserError(
            f"{where} reads {line!r} and must read `NAME_NUMBER CLASS-ID SPECIES BREED-ID`, such as "
            "`Abyssinian_100 1 1 1`"
        )
    return f"images/{name}.jpg", label, int(numbers[0])


def _require_one_name_per_class(folder: Path, listed: pd.DataFrame) -> None:
    pairs = listed[["class_id", "label"]].drop_duplicates()
    for one, other in (("class_id", "label"), ("label", "class_id")):
        doubtful = pairs[pairs[one].duplicated(keep=False)]
        if len(doubtful):
            first = doubtful[one].iloc[0]
            values = ", ".join(map(str, doubtful[other][doubtful[one] == first]))
            raise UserError(
                f"{folder / 'annotations'} knows the class {first} as {values}: a class has one id and one "
                "name"
            )


# A folder per class


def _find_splits(folder: Path) -> list[str]:
    """Returns train and test if the folder is divided into them, nothing if it holds classes.

    Raises:
        UserError: if it is divided in another way.
    """
    found = sorted(path.name for path in _list_folders(folder) if path.name.lower() in SPLIT_NAMES)
    if found not in ([], [TEST, TRAIN]):
        raise UserError(
            f"{folder} has {', '.join(found)} where train and test are needed, or classes alone: call what "
            "to learn from train and what to test with test, move other splits away, and give a class that "
            "is called so another name"
        )
    return found


def _read_splits(folder: Path) -> pd.DataFrame:
    parts = [_find_classes(folder / name, folder).assign(split=name) for name in (TRAIN, TEST)]
    found = pd.concat(parts, ignore_index=True)
    _require_known_labels(folder, found)
    return found.sort_values(["label", "image"], ignore_index=True)[IMAGES_COLUMNS]


def _find_classes(parent: Path, folder: Path) -> pd.DataFrame:
    """Returns image and label of all images in the sub-folders of `parent`, sorted."""
    found = {path.name: _find_images(path, folder) for path in _list_folders(parent)}
    if not any(found.values()):
        raise UserError(
            f"{parent} holds no images: put them into one sub-folder per class, as "
            f"{', '.join(PHOTO_SUFFIXES)}"
        )
    empty = [label for label, images in found.items() if not images]
    if empty:
        raise UserError(
            f"{parent / empty[0]} holds no images ({', '.join(PHOTO_SUFFIXES)}): fill it or remove it, since "
            "each sub-folder is a class"
        )
    rows = [(image, label) for label, images in found.items() for image in images]
    return pd.DataFrame(rows, columns=["image", "label"])


def _list_folders(parent: Path) -> list[Path]:
    """Returns the sub-folders, sorted; hidden ones are left out."""
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _find_images(path: Path, folder: Path) -> list[str]:
    """Returns the images at any depth as paths relative to `folder`; hidden ones are left out."""
    files = (file for file in path.rglob("*") if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file())
    return sorted(file.relative_to(folder).as_posix() for file in files if not _is_hidden(file, path))


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _draw_test(found: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Draws a fifth of each class for the test, at least one image; the rest is for training."""
    generator = np.random.default_rng(seed)
    split = pd.Series(TRAIN, index=found.index)
    for label, rows in found.groupby("label", sort=True).groups.items():
        if len(rows) < 2:
            raise UserError(
                f"the class {label} has one image, {found['image'][rows[0]]}: it needs two or more, to "
                "learn from and for the test"
            )
        split[generator.permutation(rows)[: max(1, round(TEST_SHARE * len(rows)))]] = TEST
    return found.assign(split=split)[IMAGES_COLUMNS]


# Both


def _require_known_labels(folder: Path, images: pd.DataFrame) -> None:
    """Makes sure that there are images of both splits, and that each test image's class can be learned."""
    for split in (TRAIN, TEST):
        if not (images["split"] == split).any():
            raise UserError(f"{folder} holds no images for the {split} split: it needs some")
    unknown = _names(images, TEST) - _names(images, TRAIN)
    if unknown:
        raise UserError(
            f"{folder} has the class {min(unknown)} in the test split alone: a model cannot learn it, so add "
            "training images or remove it"
        )


def _names(images: pd.DataFrame, split: str) -> set[str]:
    labels: Iterable[str] = images["label"][images["split"] == split]
    return set(labels)
