"""The images of a test set, or of one with labels, in batches: from their files or from a cache.

A source has an exam table. Which of its rows go together is the caller's choice, so that a prediction that
goes on makes the same batches as one that was never broken off, and the same floats.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import open_images
from data_prep.errors import ImageError, UserError, printable
from data_prep.imageio.frame import Image
from data_prep.parallel.executor import Executor, map_unordered
from data_prep.preprocessing.preprocess import ManifestRow, identify_source
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.preprocessing.stream import PreparedImage, stream_images, take_image, take_with_record
from data_prep.rsna.exam_table import Split, locate_images, read_exams
from data_prep.settings import differences
from data_prep.storage.places import ImagePath, Place
from pipeline.data.loader import ImageDataset, load_batches
from pipeline.data.sampler import SampleKey
from pipeline.models.normalization import normalise
from pipeline.runtime.transfers import send

MOST_CACHE_READERS = 4  # of a cache: each holds batches, and few are enough, as PNGs are read so much faster
RowGroup = list[int]
"""Rows of an exam table."""


class SourceBatch(NamedTuple):
    """The images of some rows.

    Attributes:
        rows: of the images, in order.
        images_BCHW: as the model takes them, on the device; None where no image could be used.
        failures: what is wrong with the other rows' images.
        records: what a manifest would say of the images; empty where a manifest says it, or nobody asks.
    """

    rows: RowGroup
    images_BCHW: Tensor | None  # noqa: N815  shape suffix
    failures: dict[int, ImageError]
    records: dict[int, ManifestRow]


class ImageSource(Protocol):
    """Where the images of an exam table come from."""

    @property
    def exams(self) -> pd.DataFrame:
        """One row per image."""

    @property
    def absent(self) -> dict[int, ImageError]:
        """The rows without an image to load, and why."""

    @property
    def files(self) -> list[str]:
        """The user's own file name of each row, empty where it is not known."""

    def fingerprint(self, rows: RowGroup) -> str:
        """Differs where the rows or their images do, as far as can be told without decoding."""

    def load(self, groups: Sequence[RowGroup], *, device: str) -> Generator[SourceBatch, None, None]:
        """Yields one batch per group of rows, in any order.

        Raises:
            UserError: if a cache cannot be read.
        """


class FolderSource:
    """The images of a folder's test.csv or train.csv, straight from their files.

    Those of train.csv come with their records. `without` names patients to leave out.

    Raises:
        UserError: if the table cannot be used, or all of its images are absent.
    """

    def __init__(
        self,
        folder: Place,
        settings: PrepareSettings,
        *,
        workers: int,
        executor: Executor = map_unordered,
        split: Split = "test",
        without: Collection[str] = (),
    ) -> None:
        self.exams = leave_out(read_exams(folder, split), without)
        self._paths = locate_images(self.exams, folder, split).tolist()
        if not any(self._paths):
            raise UserError(
                f"{folder / f'{split}_images'} holds none of the {len(self.exams)} images that {split}.csv "
                "names"
            )
        self._settings, self._workers, self._executor = settings, workers, executor
        self._take = take_image if split == "test" else take_with_record
        reason = ImageError("missing", f"{split}.csv names it, but it has no file")
        self.absent = {row: reason for row, path in enumerate(self._paths) if path is None}

    @property
    def files(self) -> list[str]:
        """Of a link that `mammo collect` made, the name of the file that it stands for."""
        return ["" if path is None else _name(path) for path in self._paths]

    def fingerprint(self, rows: RowGroup) -> str:
        """Of the rows, and of each file's name, size and time or ETag."""
        return hash_exams(self.exams.iloc[rows], [_identify(self._paths[row]) for row in rows])

    def load(self, groups: Sequence[RowGroup], *, device: str) -> Generator[SourceBatch, None, None]:
        """Decodes in all workers; no more than a few groups are in memory, however slow one file is."""
        places = [(number, row) for number, rows in enumerate(groups) for row in rows]
        paths = [self._paths[row] for _, row in places]
        ahead = 2 * max((len(rows) for rows in groups), default=0)
        held: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        images = stream_images(
            paths,
            self._settings,
            workers=self._workers,
            ahead=ahead,
            executor=self._executor,
            take=self._take,
        )
        for index, image in images:
            number, row = places[index]
            held[number][row] = image
            if len(held[number]) == len(groups[number]):
                yield _make_batch(held.pop(number), device)


class CacheSource:
    """The images of a cache of a split; `without` names patients to leave out.

    Raises:
        UserError: if the cache is not finished, or not of this split and these settings.
    """

    def __init__(
        self,
        cache: Cache,
        settings: PrepareSettings,
        *,
        workers: int,
        config: Path,
        split: Split = "test",
        without: Collection[str] = (),
    ) -> None:
        changed = differences(cache.settings(), CacheSettings(split=split, prepare=settings))
        if changed:
            raise UserError(
                f"{cache.folder} does not fit {config.parent} ({'; '.join(changed)}): "
                f"make one with `mammo prepare --split {split} --config {config}`"
            )
        self.exams = leave_out(cache.read_all_exams(), without)
        self._cache, self._workers = cache, min(workers, MOST_CACHE_READERS)
        records = cache.read_records()
        unknown = {"reason": "missing", "message": f"{split}.csv names it, but the cache was made without it"}
        self._records = [records.get(image_id, unknown) for image_id in self.exams["image_id"]]
        self.absent = {
            row: ImageError(record["reason"], record["message"])
            for row, record in enumerate(self._records)
            if record.get("reason")
        }

    @property
    def files(self) -> list[str]:
        """A cache does not know them."""
        return [""] * len(self.exams)

    def fingerprint(self, rows: RowGroup) -> str:
        """Of the rows, and of each image's checksum."""
        return hash_exams(self.exams.iloc[rows], [self._records[row].get("image_sha256") for row in rows])

    def load(self, groups: Sequence[RowGroup], *, device: str) -> Generator[SourceBatch, None, None]:
        """Reads from the pack where there is one, else from the PNGs."""
        rows = [row for group in groups for row in group]
        images = ImageDataset(open_images(self._cache, self.exams.iloc[rows]))
        places = iter(range(len(rows)))
        keys: list[list[SampleKey]] = [[(0, next(places)) for _ in group] for group in groups]
        batches = load_batches(images, keys, workers=self._workers, device=device)
        for group, (images_BCHW, _) in zip(groups, batches, strict=True):
            assert isinstance(images_BCHW, Tensor), "an ImageDataset knows no breasts"
            yield SourceBatch(group, images_BCHW, {}, {})


def leave_out(exams: pd.DataFrame, patients: Collection[str]) -> pd.DataFrame:
    """Returns the rows of all other patients."""
    return exams[~exams["patient_id"].isin([*patients])].reset_index(drop=True) if patients else exams


def _make_batch(images: dict[int, Image | PreparedImage | ImageError], device: str) -> SourceBatch:
    usable = {row: image for row, image in sorted(images.items()) if not isinstance(image, ImageError)}
    failures = {row: image for row, image in images.items() if isinstance(image, ImageError)}
    if not usable:
        return SourceBatch([], None, failures, {})
    squares = [image.image if isinstance(image, PreparedImage) else image for image in usable.values()]
    records = {row: image.record for row, image in usable.items() if isinstance(image, PreparedImage)}
    pixels = torch.from_numpy(np.stack(squares))
    return SourceBatch(list(usable), normalise(send(pixels, device)), failures, records)


def _name(path: ImagePath) -> str:
    """Returns the user's own name of a file, or the layout's where a table must not hold that."""
    name = path.readlink().name if isinstance(path, Path) and path.is_symlink() else path.name
    return printable(name) if name[:1].isalnum() else path.name


def _identify(path: ImagePath) -> tuple[object, ...]:
    try:
        return path.name, *identify_source(path).values()
    except OSError:  # it is gone since it was located, and will fail
        return (path.name,)


def hash_exams(exams: pd.DataFrame, identities: Sequence[object] = ()) -> str:
    """Returns a hash of an exam table, and of what else tells its images apart."""
    content = f"{exams.to_csv(index=False)}{[*identities]}"
    return hashlib.sha256(content.encode()).hexdigest()
