"""How a part of a frame is fitted to a square, and the way back."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.imageio.frame import FULL_GRID, Box, Display, Grid, Pixels
from data_prep.imageio.pose import Pose

Fit = Literal["letterbox", "stretch"]
TURNS = (0, 90, 180, 270)
Coordinate = TypeVar("Coordinate", float, NDArray[np.float64])


@dataclass(frozen=True)
class Placement:
    """How full-matrix pixels map to the square image.

    Coordinates have pixel edges at whole numbers: the middle of the first pixel is (0.5, 0.5).

    Attributes:
        box: what is shown, in full-matrix pixels.
        is_flipped: whether it is mirrored, left to right, after the turn.
        scale_x, scale_y: image pixels per full-matrix pixel, across and down the image.
        top: rows of padding above.
        turned: degrees clockwise, 0, 90, 180 or 270; by 90 and 270 rows of the frame lead down the image.
    """

    box: Box
    is_flipped: bool
    scale_x: float
    scale_y: float
    top: int
    turned: int = 0

    @property
    def pose(self) -> Pose:
        """What is done to the box's pixels."""
        return Pose(self.turned, self.is_flipped)

    @property
    def width(self) -> int:
        """Columns of the image that show the box."""
        return round((self.box.height if self.pose.is_on_its_side else self.box.width) * self.scale_x)

    @property
    def height(self) -> int:
        """Rows of the image that show the box."""
        return round((self.box.width if self.pose.is_on_its_side else self.box.height) * self.scale_y)

    def cut(self, square: Pixels) -> Pixels:
        """Returns the part of the square image that shows the box."""
        return square[self.top : self.top + self.height, : self.width]

    def as_record(self) -> dict[str, Any]:
        """Returns the manifest's columns that `from_record` reads."""
        edges = {f"box_{edge}": value for edge, value in asdict(self.box).items()}
        scales = {"scale_x": self.scale_x, "scale_y": self.scale_y}
        return {**edges, "turned": self.turned, "flipped": self.is_flipped, **scales, "top": self.top}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Placement":
        """Makes a placement of a manifest's row, of typed or of text cells; old ones do not turn.

        Raises:
            ValueError: if a cell is not what `as_record` gives.
        """
        box = Box(**{edge: int(record[f"box_{edge}"]) for edge in ("left", "top", "right", "bottom")})
        scales = float(record["scale_x"]), float(record["scale_y"])
        flags = {"True": True, "False": False}  # the text of any other boolean type is one of these
        if str(record["flipped"]) not in flags:
            raise ValueError(f"flipped is {record['flipped']!r}; it is True or False")
        turned = int(record.get("turned", 0))
        if turned not in TURNS:
            raise ValueError(f"turned is {turned}; it is one of {', '.join(map(str, TURNS))}")
        return cls(box, flags[str(record["flipped"])], *scales, int(record["top"]), turned)

    def to_image(self, x: Coordinate, y: Coordinate) -> tuple[Coordinate, Coordinate]:
        """Returns where a full-matrix point lies in the image; of arrays, where each of their points does."""
        across, down = {
            0: (x - self.box.left, y - self.box.top),
            90: (self.box.bottom - y, x - self.box.left),
            180: (self.box.right - x, self.box.bottom - y),
            270: (y - self.box.top, self.box.right - x),
        }[self.turned]
        if self.is_flipped:
            across = (self.box.height if self.pose.is_on_its_side else self.box.width) - across
        return across * self.scale_x, self.top + down * self.scale_y

    def to_full_matrix(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a point of the image lies in the full matrix: the inverse of `to_image`."""
        across, down = x / self.scale_x, (y - self.top) / self.scale_y
        if self.is_flipped:
            across = (self.box.height if self.pose.is_on_its_side else self.box.width) - across
        return {
            0: (self.box.left + across, self.box.top + down),
            90: (self.box.left + down, self.box.bottom - across),
            180: (self.box.right - across, self.box.bottom - down),
            270: (self.box.right - down, self.box.top + across),
        }[self.turned]


def find_level(box: Box, *, side: int, oversampling: float, max_level: int, pixel_aspect: float = 1.0) -> int:
    """Returns the lowest resolution that leaves enough pixels across and down the box.

    Fitted into a square of side * oversampling pixels, in its true proportions, it then is nowhere enlarged.
    """
    longer = max(box.width, box.height * pixel_aspect) / max(1.0, pixel_aspect)
    surplus = longer / (side * oversampling)
    return min(max_level, max(0, math.floor(math.log2(surplus)))) if surplus >= 1.0 else 0


def fit_box(
    box: Box, *, is_flipped: bool, side: int, fit: Fit, turned: int = 0, pixel_aspect: float = 1.0
) -> Placement:
    """Returns where a box goes in a square: at the left edge, centred vertically where there is padding.

    `pixel_aspect` is the height of the frame's pixels over their width.
    """
    across, down = box.width, box.height
    true_width, true_height = float(box.width), box.height * pixel_aspect
    if Pose(turned).is_on_its_side:
        across, down, true_width, true_height = down, across, true_height, true_width
    width = height = side
    if fit == "letterbox":
        scale = side / max(true_width, true_height)
        width, height = max(1, round(true_width * scale)), max(1, round(true_height * scale))
    return Placement(box, is_flipped, width / across, height / down, (side - height) // 2, turned)


def find_support(placement: Placement, shape: tuple[int, int], grid: Grid) -> tuple[slice, slice]:
    """Returns the rows and columns of a frame on a grid that `fit_to_square` looks at."""
    box, step = placement.box, 2**grid.level
    scales = placement.scale_y, placement.scale_x
    margins = [
        math.ceil(1 / (scale * step)) + 2
        for scale in (reversed(scales) if placement.pose.is_on_its_side else scales)
    ]
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
    size = placement.width, placement.height
    shown = resample(
        display,
        placement.box,
        size[::-1] if placement.pose.is_on_its_side else size,
        grid=grid,
        origin=origin,
    )
    image = np.zeros((side, side), np.float32)
    rows = slice(placement.top, placement.top + placement.height)
    image[rows, : placement.width] = np.clip(placement.pose.turn(shown), 0.0, 1.0)
    return image


def resample(
    display: Display, box: Box, size: tuple[int, int], *, grid: Grid, origin: tuple[int, int] = (0, 0)
) -> Display:
    """Returns a box of a frame at another size (width, height), antialiased.

    `display` is the frame on its grid, from row and column `origin` on: of every grid, a place in the result
    is the same place in the full matrix.
    """
    left, right = (grid.to_samples(edge) - origin[1] for edge in (box.left, box.right))
    top, bottom = (grid.to_samples(edge) - origin[0] for edge in (box.top, box.bottom))
    # At a lower resolution the last coordinates lie up to half a sample beyond the frame.
    padded = np.pad(display, ((0, 1), (0, 1)), mode="edge") if grid.level else display
    window = (left, top, right, bottom)
    return np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BILINEAR, box=window))
