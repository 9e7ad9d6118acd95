"""Where the breast lies, on which side the chest wall is, and the fit to a square. Knows no files."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.frame import Box, Display

SEARCH_SIDE_PX = 256  # the breast is looked for on an image of this longer side
SMALLEST_BREAST = 0.02  # of the frame's area; a smaller bright region is a marker or noise, not a breast


@dataclass(frozen=True)
class Breast:
    """Where the breast lies in a frame.

    Attributes:
        box: in full-matrix pixels; the whole frame where nothing like a breast was found.
        is_found: False where the box is that fallback.
        chest_wall_on_right: whether the chest wall is at the right edge of the box.
    """

    box: Box
    is_found: bool
    chest_wall_on_right: bool


@dataclass(frozen=True)
class Placement:
    """How full-matrix pixels map to the square image.

    A full-matrix coordinate x (pixel edges at whole numbers) lies at (x - box.left) * scale from the left, or
    at (box.right - x) * scale where the image is flipped; a row y lies at top + (y - box.top) * scale.

    Attributes:
        scale: image pixels per full-matrix pixel.
        top: rows of padding above.
    """

    box: Box
    is_flipped: bool
    scale: float
    top: int


def find_breast(display: Display, *, rows: int, columns: int, level: int = 0) -> Breast:
    """Finds the largest bright region of a frame of `rows` x `columns`, given at 1 / 2**level of its size."""
    small = _shrink(display, SEARCH_SIDE_PX)
    mask = _largest_region(small)
    if mask is None or mask.mean() < SMALLEST_BREAST:
        whole = Box(0, 0, columns, rows)
        return Breast(whole, is_found=False, chest_wall_on_right=_is_heavier_on_right(small))
    ys, xs = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    factor = 2**level * display.shape[0] / small.shape[0], 2**level * display.shape[1] / small.shape[1]
    box = Box(  # one search pixel of margin on every side
        left=max(0, math.floor((xs[0] - 1) * factor[1])),
        top=max(0, math.floor((ys[0] - 1) * factor[0])),
        right=min(columns, math.ceil((xs[-1] + 2) * factor[1])),
        bottom=min(rows, math.ceil((ys[-1] + 2) * factor[0])),
    )
    inside = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    return Breast(box, is_found=True, chest_wall_on_right=_is_heavier_on_right(inside))


def _shrink(display: Display, longer_side: int) -> Display:
    factor = longer_side / max(display.shape)
    if factor >= 1.0:
        return display
    size = (max(1, round(display.shape[1] * factor)), max(1, round(display.shape[0] * factor)))
    return np.asarray(cv2.resize(display, size, interpolation=cv2.INTER_AREA), np.float32)


def _largest_region(small: Display) -> NDArray[np.bool_] | None:
    """Returns the mask of the largest bright region, thin bridges to text cut; None where all is even.

    The triangle threshold suits a histogram with one tall background peak, wherever that peak lies.
    """
    grey = cv2.GaussianBlur(np.rint(small * 255).astype(np.uint8), (3, 3), 0)
    if grey.min() == grey.max():
        return None
    _, bright = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_TRIANGLE)
    opened = cv2.morphologyEx(bright, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == largest)


def _is_heavier_on_right(image: NDArray[np.generic]) -> bool:
    """The breast is widest at the chest wall: compares the outer fifths of the columns."""
    fifth = max(1, image.shape[1] // 5)
    return float(image[:, -fifth:].sum()) > float(image[:, :fifth].sum())


def find_level(box: Box, *, side: int, oversampling: float, max_level: int) -> int:
    """Returns the lowest resolution at which the box's longer side still has side * oversampling pixels."""
    surplus = max(box.width, box.height) / (side * oversampling)
    return min(max_level, max(0, math.floor(math.log2(surplus)))) if surplus >= 1.0 else 0


def place(breast: Breast, side: int) -> Placement:
    """Returns the placement that keeps the aspect: chest wall at the left edge, centred vertically."""
    scale = side / max(breast.box.width, breast.box.height)
    height = max(1, round(breast.box.height * scale))
    return Placement(breast.box, breast.chest_wall_on_right, scale, top=(side - height) // 2)


def fit_to_square(display: Display, placement: Placement, *, side: int, level: int = 0) -> Display:
    """Returns the box of a frame as [side, side], antialiased, values 0..1, padding 0.

    Sample k of a frame at resolution level r lies on full-matrix pixel k * 2**r, not in the middle of a block
    of 2**r: a coordinate x is x / 2**r + (2**r - 1) / 2**(r + 1) there.
    """
    box, step = placement.box, 2**level
    size = max(1, round(box.width * placement.scale)), max(1, round(box.height * placement.scale))
    offset = (step - 1) / (2 * step)
    window = tuple(edge / step + offset for edge in (box.left, box.top, box.right, box.bottom))
    # At a lower resolution the last coordinates lie up to half a sample beyond the frame.
    padded = np.pad(display, ((0, 1), (0, 1)), mode="edge") if level else display
    resized = np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BILINEAR, box=window))
    if placement.is_flipped:
        resized = resized[:, ::-1]
    image = np.zeros((side, side), np.float32)
    image[placement.top : placement.top + size[1], : size[0]] = np.clip(resized, 0.0, 1.0)
    return image
