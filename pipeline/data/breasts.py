"""Which images a breast is judged by, and which of them a training sees when.

A unit is what is judged together: a breast, with `model.fusion = "exam"` both breasts of a woman's exam, and
with `model.views_per_breast = 1` a single image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from data_prep.rsna.exam_table import name_breast
from pipeline.data.sampler import pack
from pipeline.models.breast_transformer import EMPTY, OTHER_BREAST, OWN, Places
from pipeline.runs.recipe import ModelSettings

CC_LIKE, MLO_LIKE, OTHER_VIEW = range(3)
VIEW_CLASSES = {
    **dict.fromkeys(["CC", "XCC", "XCCL", "XCCM", "FB", "RL", "RM"], CC_LIKE),
    **dict.fromkeys(["MLO", "ML", "LM", "LMO", "SIO"], MLO_LIKE),
}
"""By the code of PS3.16 CID 4014: seen from above or below, or from the side; all others are `OTHER_VIEW`."""
DROPPING = 1  # the random stream
Slot = tuple[int, int, int]
"""An image's number, view and side, as `Places` holds them."""


class BreastRows(NamedTuple):
    """The images of one breast: rows of an exam table.

    Attributes:
        own: one at least.
        other: of the other breast, where that is seen too.
    """

    own: list[int]
    other: list[int]


@dataclass(frozen=True)
class BreastTable:
    """The breasts of an exam table, in the order of their first images.

    Attributes:
        breasts: the rows of each.
        units: the breasts of each unit.
        breast_of: each row's breast.
        views: the class of each row's view.
        knows_views: whether views are recorded.
    """

    breasts: list[BreastRows]
    units: list[list[int]]
    breast_of: list[int]
    views: list[int]
    knows_views: bool = True

    @classmethod
    def of(cls, exams: pd.DataFrame, model: ModelSettings, *, judges_images: bool = False) -> "BreastTable":
        """Groups the rows of an exam table.

        Args:
            exams: one row per image.
            model: says whether the other breast is seen.
            judges_images: takes each image for a breast where the model sees one at a time.
        """
        keys = name_breast(exams)
        numbers = exams.groupby(keys, sort=False, dropna=False).ngroup().to_numpy(np.int64)
        if judges_images and model.views_per_breast:
            numbers = np.arange(len(exams), dtype=np.int64)
        exam_keys = [key for key in keys if key != "laterality"]
        exam_of = exams.groupby(exam_keys, sort=False, dropna=False).ngroup().to_numpy()
        own = _list_rows(numbers)
        first = [rows[0] for rows in own]
        in_exam = _list_rows(exam_of[first])  # breasts
        units = [[breast] for breast in range(len(own))]
        others: list[list[int]] = [[] for _ in own]
        if model.fusion == "exam":
            units = in_exam
            others = [
                [row for other in in_exam[exam_of[rows[0]]] if other != breast for row in own[other]]
                for breast, rows in enumerate(own)
            ]
        known = exams["view"] if "view" in exams else pd.Series("", index=exams.index)
        views = [classify_view(view) for view in known]
        breasts = [BreastRows(*rows) for rows in zip(own, others, strict=True)]
        return cls(breasts, units, numbers.tolist(), views, knows_views="view" in exams)

    def list_unit_rows(self, unit: int) -> list[int]:
        """Returns the rows of a unit's images."""
        return sorted(row for breast in self.units[unit] for row in self.breasts[breast].own)

    def pack_units(self, num_rows: int) -> list[list[int]]:
        """Returns rows of whole units together, in their order: about so many in each part, or one unit."""
        rows = [self.list_unit_rows(unit) for unit in range(len(self.units))]
        packs = pack(range(len(rows)), lambda unit: len(rows[unit]), num_rows)
        return [[row for unit in units for row in rows[unit]] for units in packs]

    def list_breast_rows(self, breast: int) -> list[int]:
        """Returns the rows of all images that a breast is judged by."""
        return sorted(self.breasts[breast].own + self.breasts[breast].other)

    def find_slots(self, breasts: Iterable[BreastRows], rows: Sequence[int]) -> list[list[Slot]]:
        """Returns the slots of each breast that has an image of its own among these rows.

        Images are numbered by their place in `rows`.
        """
        number: Mapping[int, int] = {row: place for place, row in enumerate(rows)}
        found = []
        for breast in breasts:
            own = [(number[row], self.views[row], OWN) for row in breast.own if row in number]
            other = [(number[row], self.views[row], OTHER_BREAST) for row in breast.other if row in number]
            if own:
                found.append(own + other)
        return found

    def place(self, rows: Sequence[int]) -> Places:
        """Returns the places of images that are there, whole units but for what is absent or unusable."""
        breasts = sorted({self.breast_of[row] for row in rows})
        return make_places(self.find_slots([self.breasts[breast] for breast in breasts], rows))


def classify_view(view: object) -> int:
    """Returns the class of a view's code; whatever is not known is `OTHER_VIEW`."""
    return VIEW_CLASSES.get(str(view).upper(), OTHER_VIEW)


def _list_rows(numbers: NDArray[np.integer]) -> list[list[int]]:
    """Returns where each number from 0 stands."""
    order = np.argsort(numbers, kind="stable")
    return [part.tolist() for part in np.split(order, np.cumsum(np.bincount(numbers))[:-1])]


def make_places(breasts: Sequence[Sequence[Slot]]) -> Places:
    """Returns the slots of breasts as tensors, filled up with empty ones."""
    num_slots = max(map(len, breasts))
    filled = np.zeros((3, len(breasts), num_slots), np.int64)
    filled[0] = EMPTY
    for number, slots in enumerate(breasts):
        filled[:, number, : len(slots)] = np.array(slots).T
    return Places(*torch.from_numpy(filled))


@dataclass(frozen=True)
class ViewDraw:
    """Chooses the images of a breast that one draw of a training shows; labels have no part in it.

    Of each class of views it takes one image, and duplicates take turns. Then views are left out by lot, of
    the breast itself never all.

    Attributes:
        table: of the training images.
        draws_between: about how many draws lie between two of the same breast, for each breast.
        seed: of `train.seed`.
        drop_view: probability that a view is left out.
        one_view: shows a single image, all images in turn.
    """

    table: BreastTable
    draws_between: NDArray[np.floating]
    seed: int
    drop_view: float
    one_view: bool

    def choose(self, draw: int, breast: int) -> BreastRows:
        """Returns the rows that this draw shows; a function of its arguments and the seed alone."""
        rows, turn = self.table.breasts[breast], breast + int(draw / self.draws_between[breast])
        if self.one_view:
            return BreastRows([rows.own[turn % len(rows.own)]], [])
        generator = np.random.default_rng([self.seed, DROPPING, draw])
        own, other = (self._take_turns(part, turn) for part in rows)
        kept = self._drop(own, generator)
        if not kept:
            kept = [own[generator.integers(len(own))]]
        return BreastRows(kept, self._drop(other, generator))

    def _take_turns(self, rows: list[int], turn: int) -> list[int]:
        """Returns one row of each class of views; where views are not recorded, all."""
        if not self.table.knows_views:
            return rows
        by_class: dict[int, list[int]] = {}
        for row in rows:
            by_class.setdefault(self.table.views[row], []).append(row)
        return [same[turn % len(same)] for _, same in sorted(by_class.items())]

    def _drop(self, rows: list[int], generator: np.random.Generator) -> list[int]:
        return [row for row in rows if generator.random() >= self.drop_view]
