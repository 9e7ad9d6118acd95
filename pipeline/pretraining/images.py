"""Which images an encoder learns from, and by which it is judged. Labels are not looked at."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.cache.images import PreparedImages, open_images
from data_prep.cache.shared_pictures import CHECKSUMS
from data_prep.cache.tables import select_prepared
from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from pipeline.data.square_images import SquareImages
from pipeline.evaluation.external.seen import tabulate_pictures
from pipeline.runs.pretrain_run import SEEN_COLUMNS
from pipeline.runs.recipe import ModelSettings, Recipe
from pipeline.runs.run_folder import ID_TYPES, Run, read_table
from pipeline.training.cross_validate import TRAIN, draw_folds

SOURCE = "source"
"""The number of the cache or folder that an image comes from."""
JUDGED_SHARE = 0.05
"""Of the patients, where no fold says who is held out: their images show what was learned."""
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Sources:
    """Where images come from: caches, or one folder of pictures, of which each counts as a patient."""

    caches: Sequence[Cache]
    folder: Path | None
    model: ModelSettings

    def tabulate(self) -> pd.DataFrame:
        """Returns a row per image: `SEEN_COLUMNS` without the fold, and `SOURCE`.

        Raises:
            UserError: if a cache is not finished, or there are no images.
        """
        if self.folder is not None:
            return _tabulate_folder(self.folder)
        tables = [_tabulate_cache(cache).assign(**{SOURCE: row}) for row, cache in enumerate(self.caches)]
        return pd.concat(tables, ignore_index=True)

    def pick(self, images: pd.DataFrame) -> PreparedImages:
        """Returns the image of each row of such a table, whose sources stand in their order.

        Raises:
            UserError: if a cache's pack cannot be read.
        """
        if self.folder is not None:
            return self.pick_files(images)
        by_source = [(cache, images[images[SOURCE] == row]) for row, cache in enumerate(self.caches)]
        return JoinedImages([open_images(cache, rows) for cache, rows in by_source if len(rows)])

    def pick_files(self, images: pd.DataFrame) -> SquareImages:
        """Returns the pictures of the folder."""
        assert self.folder is not None
        paths = [self.folder / name for name in images["image_id"]]
        return SquareImages(paths, self.model.image_size, self.model.in_channels)


class JoinedImages:
    """Images of several caches, one after the other."""

    def __init__(self, parts: Sequence[PreparedImages]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int, /) -> Image:
        part = bisect_right(self._ends, row)
        return self._parts[part][row - (self._ends[part - 1] if part else 0)]


def _tabulate_cache(cache: Cache) -> pd.DataFrame:
    manifest = cache.read_manifest()
    pictures = tabulate_pictures(manifest).set_index("image_id")[CHECKSUMS]
    images = select_prepared(manifest)[["patient_id", "image_id"]].join(pictures, on="image_id")
    if images.empty:
        raise UserError(f"{cache.folder} holds no prepared image")
    return images.fillna(dict.fromkeys(CHECKSUMS, ""))


def _tabulate_folder(folder: Path) -> pd.DataFrame:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name one with pictures in it, at any depth")
    for place in (folder, *folder.absolute().parents[:2], *folder.iterdir()):
        if Cache(place).manifest_path.exists():
            raise UserError(f"{place} is a cache, which knows whose images these are: give --cache instead")
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
    )
    if not names:
        raise UserError(f"{folder} holds no pictures: files that end in {', '.join(SUFFIXES)} are looked for")
    return pd.DataFrame({"patient_id": names, "image_id": names, **dict.fromkeys(CHECKSUMS, ""), SOURCE: 0})


# Folds


def read_folds(path: Path | None, recipe: Recipe) -> pd.DataFrame:
    """Returns patient_id and fold of those for whom encoders are made; empty for None.

    Args:
        path: a run of `train` that has begun, its `folds.csv`, or a cache of the train split, whose folds are
            then drawn as a training by this recipe will draw them. That alone looks at labels.
        recipe: says how many folds, and the seed.

    Raises:
        UserError: if it is none of these.
    """
    columns = ["patient_id", "fold"]
    if path is None:
        return pd.DataFrame({"patient_id": pd.Series(dtype="str"), "fold": pd.Series(dtype="Int64")})
    if Run(path).folds.exists():
        return Run(path).read_folds()[columns]
    if Cache(path).manifest_path.exists():
        if Cache(path).settings().split != TRAIN:
            raise UserError(f"--for {path} is a cache of the test split: name that of the training to come")
        return draw_folds(recipe, Cache(path))[columns]
    if path.is_file():
        table = read_table(path, columns, dtype=ID_TYPES)[columns]
        if pd.api.types.is_integer_dtype(table["fold"]) and table["patient_id"].is_unique:
            numbers = sorted(set(table["fold"]))
            if numbers != list(range(len(numbers))):
                raise UserError(
                    f"--for {path} has the folds {', '.join(map(str, numbers))}: number them from 0 on"
                )
            return table
    raise UserError(
        f"--for {path} tells no folds: name a run of `mammo train` that has begun, its folds.csv, or the "
        "cache that a run will be trained on"
    )


def assign_folds(images: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """Adds the column `fold` of `SEEN_COLUMNS`; empty for images of patients who are in no fold.

    Raises:
        UserError: if no image is of a patient in a fold.
    """
    fold_of = dict(zip(folds["patient_id"], folds["fold"], strict=True))
    found = images["patient_id"].map(fold_of).astype("Int64")
    if len(folds) and found.isna().all():
        raise UserError("none of these images is of a patient in the folds of --for: leave --for out")
    if absent := sorted(set(folds["fold"]) - set(found.dropna())):
        raise UserError(
            f"none of these images is of a patient in fold {absent[0]} of --for: give the --cache that the "
            "folds are of, too"
        )
    return images.assign(fold=found)[[*SEEN_COLUMNS, SOURCE]]


class Split(NamedTuple):
    """The images of one encoder.

    Attributes:
        training: it learns from them.
        judged: it is judged by them, after each epoch.
        seen: those that its weights name as seen; beside the training ones such as are judged and of no fold.
    """

    training: pd.DataFrame
    judged: pd.DataFrame
    seen: pd.DataFrame


def split_images(images: pd.DataFrame, fold: int | None, *, seed: int) -> Split:
    """Divides images, with folds assigned, into what a fold's encoder learns from and what it is judged by.

    It is judged by the fold's own images; where there are none, by those of some patients, drawn by the seed.
    A picture of a held-out patient that stands under another patient too is left out.

    Raises:
        UserError: if nothing is left to learn from.
    """
    nobody = pd.Series(data=False, index=images.index)
    is_held_out = nobody if fold is None else (images["fold"] == fold).fillna(value=False).astype(bool)
    held_out, is_shared = images[is_held_out], nobody.copy()
    for name in CHECKSUMS:
        is_shared |= images[name].isin(held_out[name]) & (images[name] != "")
    others = images[~is_held_out & ~is_shared]
    patients = np.sort(others["patient_id"].unique())
    if len(patients) < 2:
        raise UserError("nothing to learn from: it takes images of two patients who are not held out")
    if len(held_out):
        return Split(*(table.reset_index(drop=True) for table in (others, held_out, others)))
    generator = np.random.default_rng([seed, 0 if fold is None else fold])
    judged = generator.permutation(patients)[: max(1, round(JUDGED_SHARE * len(patients)))]
    is_judged = others["patient_id"].isin(judged)
    return Split(*(table.reset_index(drop=True) for table in (others[~is_judged], others[is_judged], others)))
