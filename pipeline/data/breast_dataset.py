"""Samples of whole breasts: their images, and which image is of which breast."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from data_prep.cache.images import PreparedImages
from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from pipeline.data.augmentation import Augmentation
from pipeline.data.breasts import BreastRows, BreastTable, Slot, make_places
from pipeline.data.loader import Batch
from pipeline.data.sampler import SampleKey
from pipeline.models.breast_transformer import BreastInputs


class BreastSample(NamedTuple):
    """The images of a unit.

    Attributes:
        images: each once.
        rows: of the images.
        breasts: the slots of each of its breasts.
    """

    images: list[Image]
    rows: list[int]
    breasts: list[list[Slot]]


class BreastDataset(Dataset[BreastSample | UserError]):
    """Samples by (draw, unit); an image's change depends on the draw and its row.

    Without `choose` a unit is one of the table's and shows all its images. With it a unit is a breast, and
    `choose(draw, breast)` says which rows are shown.
    """

    def __init__(
        self,
        images: PreparedImages,
        table: BreastTable,
        *,
        choose: Callable[[int, int], BreastRows] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self._images = images
        self._table = table
        self._choose = choose
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._table.units if self._choose is None else self._table.breasts)

    def __getitem__(self, key: SampleKey) -> BreastSample | UserError:
        draw, unit = key
        breasts = self._find_breasts(draw, unit)
        rows = sorted({row for breast in breasts for row in breast.own + breast.other})
        try:
            images = [self._read(row, draw) for row in rows]
        except UserError as error:
            return error
        return BreastSample(images, rows, self._table.find_slots(breasts, rows))

    def collate(self, samples: list[BreastSample | UserError]) -> Batch | UserError:
        """Returns pixels as they are with the places of all breasts, and each image's row."""
        images: list[Image] = []
        rows: list[int] = []
        breasts: list[list[Slot]] = []
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
            breasts += [[(len(images) + n, view, side) for n, view, side in each] for each in sample.breasts]
            images += sample.images
            rows += sample.rows
        inputs = BreastInputs(torch.from_numpy(np.stack(images)), make_places(breasts))
        return inputs, torch.tensor(rows)

    def count_images(self, units: Iterable[int]) -> int:
        """Returns how many images these units have if nothing is left out."""
        rows = self._table.list_unit_rows if self._choose is None else self._table.list_breast_rows
        return sum(len(rows(unit)) for unit in units)

    def _find_breasts(self, draw: int, unit: int) -> list[BreastRows]:
        if self._choose is not None:
            return [self._choose(draw, unit)]
        return [self._table.breasts[breast] for breast in self._table.units[unit]]

    def _read(self, row: int, draw: int) -> Image:
        image = self._images[row]
        if self._augmentation is None:
            return image
        return self._augmentation(image, seed=self._seed, draw=draw * len(self._images) + row)
