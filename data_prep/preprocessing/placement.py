"""How a part of a frame is fitted to a square, and the way back."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from data_prep.imageio.frame import FULL_GRID, Box, Display, Grid

Fit = Literal["letterbox", "stretch"]


@dataclass(frozen=True)
class Placement:
    """How full-matrix pixels map to the square image.

    Coordinates have pixel edges at whole numbers: the middle of the first pixel is (0.5, 0.5).

    Attributes:
        box: what is shown, in full-matrix pixels.
        is_flipped: whether it is mirrored, left to right.
        scale_x, scale_y: image pixels per full-matrix pixel.
        top: rows of padding above.
    """

    box: Box
    is_flipped: bool
    scale_x: float
    scale_y: float
    top: int

    @property
    def width(self) -> int:
        """Columns of the image that show the box."""
        return round(self.box.width * self.scale_x)

    @property
    def height(self) -> int:
        """Rows of the image that show the box."""
        return round(self.box.height * self.scale_y)

    def as_record(self) -> dict[str, Any]:
        """Returns the manifest's columns that `from_record` reads."""
        edges = {f"box_{edge}": value for edge, value in asdict(self.box).items()}
        scales = {"scale_x": self.scale_x, "scale_y": self.scale_y}
        return {**edges, "flipped": self.is_flipped, **scales, "top": self.top}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Placement":
        """Makes a placement of a manifest's row, of typed or of text cells.

        Raises:
            ValueError: if a cell is not what `as_record` gives.
        """
        box = Box(**{edge: int(record[f"box_{edge}"]) for edge in ("left", "top", "right", "bottom")})
        scales = float(record["scale_x"]), float(record["scale_y"])
        flags = {"True": True, "False": False}  # the text of any other boolean type is one of these
        if str(record["flipped"]) not in flags:
            raise ValueError(f"flipped is {record['flipped']!r}; it is True or False")
        return cls(box, flags[str(record["flipped"])], *scales, int(record["top"]))

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a full-matrix point lies in the image."""
        across = self.box.right - x if self.is_flipped else x - self.box.left
        return across * self.scale_x, self.top + (y - self.box.top) * self.scale_y

    def to_full_matrix(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a point of the image lies in the full matrix: the inverse of `to_image`."""
        across = x / self.scale_x
        full_x = self.box.right - across if self.is_flipped else self.box.left + across
        return full_x, self.box.top + (y - self.top) / self.scale_y


def find_level(box: Box, *, side: int, oversampling: float, max_level: int) -> int:
    """Returns the lowest resolution at which the box's longer side still has side * oversampling pixels."""
    surplus = max(box.width, box.height) / (side * oversampling)
    return min(max_level, max(0, math.floor(math.log2(surplus)))) if surplus >= 1.0 else 0


def fit_box(box: Box, *, is_flipped: bool, side: int, fit: Fit) -> Placement:
    """Returns where a box goes in a square: at the left edge, centred vertically where there is padding."""
    width = height = side
    if fit == "letterbox":
        scale = side / max(box.width, box.height)
        width, height = max(1, round(box.width * scale)), max(1, round(box.height * scale))
    return Placement(box, is_flipped, width / box.width, height / box.height, top=(side - height) // 2)


def find_support(placement: Placement, shape: tuple[int, int], grid: Grid) -> tuple[slice, slice]:
    """Returns the rows and columns of a frame on a grid that `fit_to_square` looks at."""
    box, step = placement.box, 2**grid.level
    margins = [math.ceil(1 / (scale * step)) + 2 for scale in (placement.scale_y, placement.scale_x)]
    edges = [(box.top, box.bottom), (box.left, box.right)]
    first, second = (
        slice(max(0, low // step - margin), min(size, high // step + margin + 1))
        for (low, high), margin, size in zip(edges, margins, shape, strict=True)
    )
    return first, second


def fit_to_square(
    display: Display,
    placement: Placement,
    *,
    side: int,
    grid: Grid = FULL_GRID,
    origin: tuple[int, int] = (0, 0),
) -> Display:
    """Returns the box of a frame as [side, side], antialiased, values 0..1, padding 0.

    `display` is the frame on its grid, from row and column `origin` on.
    """
    box = placement.box
    left, right = (grid.to_samples(edge) - origin[1] for edge in (box.left, box.right))
    top, bottom = (grid.to_samples(edge) - origin[0] for edge in (box.top, box.bottom))
    # At a lower resolution the last coordinates lie up to half a sample beyond the frame.
    padded = np.pad(display, ((0, 1), (0, 1)), mode="edge") if grid.level else display
    size = (placement.width, placement.height)
    window = (left, top, right, bottom)
    resized = np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BILINEAR, box=window))
    if placement.is_flipped:
        resized = resized[:, ::-1]
    image = np.zeros((side, side), np.float32)
    rows = slice(placement.top, placement.top + placement.height)
    image[rows, : placement.width] = np.clip(resized, 0.0, 1.0)
    return image
