"""Where the breast lies in a frame, and on which side its chest wall is.

The background is one level, seen along the frame's edges; the breast is the thickest region that differs
from it, even faintly. A threshold that splits the histogram would cut off the dark fat beside the skin.
"""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.downsample import shrink
from data_prep.imageio.frame import Box, Display

Mask = NDArray[np.uint8]
"""0 or 1, [h, w]."""

SEARCH_SIDE_PX = 160  # the breast is looked for on an image of this longer side
MARGIN_PX = 2  # of that image, around what was found there
EVEN = 0.03  # the range of values along a row that shows nothing but a frame or a collimator blade
RIM = 0.03  # of the longer side: the strip along the edges that tells the background's level
NUM_LEVELS = 128  # bins of the histogram of that strip
CLEAR = 0.02, 0.06  # the least difference from the background that counts: without noise, with much noise
SKIN = 0.05  # of the breast's typical difference from the background: fat beside the skin has more
FLAT = 0.2  # of the rim: the background covers more, a level amid tissue may cover less
BEYOND = 0.2  # of the pixels on the breast's side of the background: there are fewer on its other side
GAP_PX = 5  # of the search image: skin and nipple may lie that far from the rest where fat is black
THICK = 0.055  # of the longer side: a breast is thicker than that, letters and blades are not
SMALLEST_BREAST = 0.02  # of the frame's area; a smaller region is a marker or noise


@dataclass(frozen=True)
class Breast:
    """Where the breast lies in a frame.

    Attributes:
        box: in full-matrix pixels; the whole frame where nothing like a breast was found.
        is_found: False where the box is that fallback.
        chest_wall_on_right: whether the chest wall is at the right edge of the box.
        has_bright_background: whether what lies beside the breast is brighter than it: an inverted picture.
        mask: of the search image, 1 where the breast is; all 0 where it was not found.
    """

    box: Box
    is_found: bool
    chest_wall_on_right: bool
    has_bright_background: bool
    mask: Mask = field(default_factory=lambda: np.zeros((1, 1), np.uint8), repr=False, compare=False)


def find_breast(display: Display, *, rows: int, columns: int) -> Breast:
    """Finds the breast in a frame of `rows` x `columns`, of which `display` is a small version."""
    # The median removes specks and thin lines, and leaves the skin line where it is.
    smallest = np.ascontiguousarray(shrink(display, SEARCH_SIDE_PX), np.float32)
    small = np.asarray(cv2.medianBlur(smallest, 3), np.float32)
    contrast, is_inverted = measure_contrast(small)
    mask = find_region(contrast)
    is_found = bool(mask.mean() >= SMALLEST_BREAST)
    box = find_box(mask) if is_found else Box(0, 0, mask.shape[1], mask.shape[0])
    shown = (mask if is_found else small)[box.top : box.bottom, box.left : box.right]
    return Breast(
        to_full_matrix_box(box, mask.shape, rows, columns),
        is_found,
        chest_wall_on_right=is_heavier_on_right(shown),
        has_bright_background=is_inverted,
        mask=mask,
    )


def measure_contrast(small: Display) -> tuple[Display, bool]:
    """Returns how far each pixel lies on the breast's side of the background, and whether that side is dark.

    The unit is the least difference that counts, so that the breast begins at 1. Frames and blades get 0, and
    so does a picture that has no background.
    """
    contrast = np.zeros_like(small)
    inner = find_inner(small)
    rim = cut_rim(small[inner])
    if not rim.size:
        return contrast, False
    background = find_mode(rim)
    offsets = abs(rim - background)
    clear = float(np.clip(3 * np.median(offsets[offsets < 0.1]), *CLEAR))
    difference = small[inner] - background
    num_above, num_below = np.sum(difference > clear), np.sum(difference < -clear)
    is_flat = np.mean(offsets < CLEAR[0]) >= FLAT
    if not is_flat or min(num_above, num_below) >= BEYOND * max(num_above, num_below):
        return contrast, False
    is_inverted = bool(num_below > num_above)
    depth = -difference if is_inverted else difference
    typical = float(np.median(depth[depth > clear]))
    contrast[inner] = depth.clip(min=0) / max(clear, SKIN * typical)
    return contrast, is_inverted


def find_inner(small: Display) -> tuple[slice, slice]:
    """Returns the rows and columns inside of what is even along all of an edge: a frame, a blade, padding.

    Twice, as a blade becomes even when the one that crosses it is off.
    """
    y, x = slice(0, small.shape[0]), slice(0, small.shape[1])
    for _ in range(2):
        x = trim(small[y, x], x, axis=0)
        y = trim(small[y, x], y, axis=1)
    return y, x


def trim(part: Display, kept: slice, axis: int) -> slice:
    """Returns what is left of `kept`, less the pixel that mixes the frame and the picture."""
    uneven = np.nonzero(np.ptp(part, axis=axis) > EVEN)[0] if part.size else np.zeros(0, int)
    if not uneven.size:
        return slice(0, 0)
    first, last = int(uneven[0]), int(uneven[-1])
    is_cut = last < kept.stop - kept.start - 1
    return slice(kept.start + first + (first > 0), kept.start + last + 1 - is_cut)


def cut_rim(part: Display) -> Display:
    """Returns the values in a strip along the four edges."""
    width = max(1, round(RIM * max(part.shape)))
    strips = part[:width], part[-width:], part[:, :width], part[:, -width:]
    return np.concatenate([strip.ravel() for strip in strips])


def find_mode(values: Display) -> float:
    """Returns the most frequent level: background is flat, and tissue spreads over many levels."""
    counts = np.bincount((values * NUM_LEVELS).astype(int), minlength=NUM_LEVELS + 1)
    middle = (np.convolve(counts, (1, 1, 1), "same").argmax() + 0.5) / NUM_LEVELS
    return float(np.median(values[abs(values - middle) < 2 / NUM_LEVELS]))


def find_region(contrast: Display) -> Mask:
    """Returns the mask of the thickest region and what is part of it; empty where nothing is thick."""
    joined = morph(close_chest_wall((contrast > 1).astype(np.uint8)), cv2.MORPH_CLOSE, GAP_PX)
    filled = fill(joined)
    core = find_largest(open_all_around(filled, max(3, round(THICK * max(contrast.shape)))))
    if not core.any():
        return core
    region = morph(filled, cv2.MORPH_OPEN, 3) | core  # cuts what hangs by a thread
    labels = cv2.connectedComponents(region, connectivity=4)[1]
    return (labels == labels[core > 0][0]).astype(np.uint8)


def close_chest_wall(mask: Mask) -> Mask:
    """Returns the mask with its chest wall drawn: skin and wall enclose fat as dark as the background."""
    closed = mask.copy()
    column = closed[:, -1 if is_heavier_on_right(mask) else 0]
    ys = np.nonzero(column)[0]
    if ys.size:
        column[ys[0] : ys[-1]] = 1
    return closed


def fill(mask: Mask) -> Mask:
    """Returns the mask without holes."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(mask.copy(), contours, -1, (1,), cv2.FILLED), np.uint8)


def morph(mask: Mask, operation: int, size: int) -> Mask:
    """Returns the mask opened or closed by a square, where beyond the frame things go on as they are."""
    return np.asarray(cv2.morphologyEx(mask, operation, np.ones((size, size), np.uint8)), np.uint8)


def open_all_around(mask: Mask, size: int) -> Mask:
    """Returns what a square fits into; beyond the frame there is nothing, so that a blade there is thin."""
    padded = cv2.copyMakeBorder(mask, size, size, size, size, cv2.BORDER_CONSTANT, value=0)
    return morph(np.asarray(padded, np.uint8), cv2.MORPH_OPEN, size)[size:-size, size:-size]


def find_largest(mask: Mask) -> Mask:
    """Returns the largest connected region; empty where there is none."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return (labels == 1 + int(areas.argmax())).astype(np.uint8) if areas.size else np.zeros_like(mask)


def find_box(mask: Mask) -> Box:
    """Returns the bounding box of a mask that is not empty."""
    left, top, width, height = cv2.boundingRect(mask)
    return Box(left, top, left + width, top + height)


def to_full_matrix_box(box: Box, shape: tuple[int, ...], rows: int, columns: int) -> Box:
    """Returns a box of the search image of `shape` in full-matrix pixels, with a margin."""
    y, x = rows / shape[0], columns / shape[1]
    return Box(
        left=max(0, math.floor((box.left - MARGIN_PX) * x)),
        top=max(0, math.floor((box.top - MARGIN_PX) * y)),
        right=min(columns, math.ceil((box.right + MARGIN_PX) * x)),
        bottom=min(rows, math.ceil((box.bottom + MARGIN_PX) * y)),
    )


def is_heavier_on_right(image: NDArray[np.generic]) -> bool:
    """The breast is widest at the chest wall: compares the outer fifths of the columns."""
    fifth = max(1, image.shape[1] // 5)
    return float(image[:, -fifth:].sum()) > float(image[:, :fifth].sum())
