"""Where the breast lies in a frame, and on which side its chest wall is.

It is the thickest region that differs from the background, even faintly. A threshold that splits the
histogram would cut off the dark fat beside the skin.
"""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.downsample import shrink
from data_prep.imageio.frame import Box, Display
from data_prep.preprocessing.background import Contrast, measure_contrast

Mask = NDArray[np.uint8]
"""0 or 1, [h, w]."""

SEARCH_SIDE_PX = 160  # the breast is looked for on an image of this longer side
MARGIN_PX = 2  # of that image, around what was found there
GAP_PX = 5  # of the search image: skin and nipple may lie that far from the rest where fat is black
THICK = 0.055  # of the longer side: a breast is thicker than that, letters and blades are not
HANGS = 0.08, 0.06  # of the longer side: what is thinner and reaches farther from the rest is no nipple
AT_WALL = 0.1  # of the longer side: folds of skin lie that near to the chest wall
LARGER = 1.15  # times the box: where faint pixels make that much of a difference, the outline is in doubt
WHOLE = 0.9  # of the frame: faint pixels that cover more are background
SECOND = 0.4  # of the first breast's area and height: a second one has more
ROUND = 0.9  # of its box: a breast covers less, a blade more
ROBUST_PERCENTILES = (0.5, 99.5)
ENOUGH = 0.45  # of the display range, between these: what a picture of a breast has at least
BRIGHTER = 25.0  # times, at most: what is darker shows nothing
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
        doubts: warning codes of what the box may have wrong.
    """

    box: Box
    is_found: bool
    chest_wall_on_right: bool
    has_bright_background: bool
    mask: Mask = field(default_factory=lambda: np.zeros((1, 1), np.uint8), repr=False, compare=False)
    doubts: tuple[str, ...] = ()


def find_breast(display: Display, *, rows: int, columns: int) -> Breast:
    """Finds the breast in a frame of `rows` x `columns`, of which `display` is a small version."""
    # The median removes specks and thin lines, and leaves the skin line where it is.
    smallest = np.ascontiguousarray(shrink(display, SEARCH_SIDE_PX), np.float32)
    small = brighten(np.asarray(cv2.medianBlur(smallest, 3), np.float32))
    contrast = measure_contrast(small)
    mask, doubts = find_tissue(contrast)
    is_found = bool(mask.mean() >= SMALLEST_BREAST)
    box = find_box(mask) if is_found else Box(0, 0, mask.shape[1], mask.shape[0])
    shown = (mask if is_found else small)[box.top : box.bottom, box.left : box.right]
    return Breast(
        to_full_matrix_box(box, mask.shape, rows, columns),
        is_found,
        chest_wall_on_right=is_heavier_on_right(shown),
        has_bright_background=contrast.is_inverted,
        mask=mask,
        doubts=doubts if is_found else (),
    )


def brighten(small: Display) -> Display:
    """Returns a dim picture with the range that a usual one has at least, as differences are judged by it."""
    darkest, brightest = (float(value) for value in np.percentile(small, ROBUST_PERCENTILES))
    used = brightest - darkest
    if not ENOUGH / BRIGHTER <= used < ENOUGH:
        return small
    return np.asarray(darkest + ENOUGH / used * (small - darkest), np.float32)


def find_tissue(contrast: Contrast) -> tuple[Mask, tuple[str, ...]]:
    """Returns the mask of the breast, and the codes of what is doubtful about it.

    Where faint pixels make a difference the mask holds them: better too much than a part of the breast.
    """
    mask = find_region(contrast.values)
    if not mask.any():
        return mask, ()
    doubts = []
    faint = find_region(contrast.values / contrast.faint)
    if measure_box(faint) > LARGER * measure_box(mask):
        doubts.append("faint_outline")
        mask = faint if measure_box(faint) < WHOLE * mask.size else mask
    without = cut_hanging(mask)
    if (without != mask).any():
        doubts.append("attached")
    second = find_second(contrast.values, without)
    if second.any():
        doubts.append("two_breasts")
    return without | second, tuple(doubts)


def cut_hanging(mask: Mask) -> Mask:
    """Returns the mask without letters that touch the skin: thin, and farther from the rest than a nipple."""
    thickness, reach = (max(3, round(share * max(mask.shape))) for share in HANGS)
    core = find_largest(morph(mask, cv2.MORPH_OPEN, thickness))
    if not core.any():
        return mask
    near = np.asarray(cv2.dilate(core, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)), np.uint8)
    box, kept = find_box(mask), mask.copy()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask & (1 - near))
    for label, (left, _, width, _, _) in enumerate(stats[1:], start=1):
        from_wall = box.right - left - width if is_heavier_on_right(mask) else left - box.left
        if from_wall > AT_WALL * max(mask.shape):
            kept[labels == label] = 0
    return kept


def find_second(contrast: Display, first: Mask) -> Mask:
    """Returns the mask of another breast at the opposite edge; empty where there is none."""
    smallest = max(SECOND * first.sum(), SMALLEST_BREAST * first.size)
    beside = contrast * (1 - np.asarray(cv2.dilate(first, np.ones((3, 3), np.uint8))))
    if np.sum(beside > 1) < smallest or (others := find_region(beside)).sum() < smallest:
        return np.zeros_like(first)
    boxes = find_box(first), find_box(others)
    left, right = sorted(boxes, key=lambda box: box.left)
    near = THICK * max(first.shape)
    is_opposite = left.left <= near and right.right >= first.shape[1] - near and left.right <= right.left
    is_round = others.sum() < ROUND * measure_box(others) and boxes[1].height > SECOND * boxes[0].height
    return others if is_opposite and is_round else np.zeros_like(first)


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


def measure_box(mask: Mask) -> int:
    """Returns the area of the bounding box of a mask."""
    _, _, width, height = cv2.boundingRect(mask)
    return int(width * height)


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
