"""The breast of a frame, looked for upright, in its true proportions, and on one grid in every encoding."""

from dataclasses import dataclass, replace

import numpy as np

from data_prep.imageio.frame import Box, Display, Frame
from data_prep.imageio.pose import UPRIGHT, Pose, find_pose
from data_prep.preprocessing.breast_segmentation import SEARCH_SIDE_PX, Breast, Mask, find_breast
from data_prep.preprocessing.placement import resample

EDGE_PX = 3  # of the search image: the strip along each edge of the breast's box
MUCH_LONGER = 1.5  # a chest wall touches its edge that many times as far as anything touches the others


@dataclass(frozen=True)
class Found:
    """A breast, and how its picture lies in the file.

    Attributes:
        breast: where it lies in the upright picture.
        rows, columns: of the upright picture, in its pixels.
        pixel_aspect: height over width of those.
        box: where the breast lies in the stored picture.
        pose: what makes that upright.
        contradicts_header: whether the chest wall lies elsewhere than the header says.
    """

    breast: Breast
    rows: int
    columns: int
    pixel_aspect: float
    box: Box
    pose: Pose
    contradicts_header: bool = False


def search(overview: Display, frame: Frame, laterality: str | None) -> Found:
    """Finds the breast in a frame, of which `overview` shows the pixels.

    Where header and picture disagree about the chest wall, the picture is left as it lies; but one that lies
    on its side, as the header says, is turned.
    """
    picture = draw_search_picture(overview, frame)
    pose = find_pose(frame.directions, frame.laterality or laterality) if frame.directions else frame.pose
    found = _search_in_pose(picture, frame, pose)
    if not found.breast.is_found:
        return found
    lies_across = is_chest_wall_across(found.breast.mask)
    is_elsewhere = frame.directions is not None and found.breast.chest_wall_on_right != (
        frame.directions.after(pose).row == "P"
    )
    if not is_elsewhere and not (lies_across and (pose.is_on_its_side or frame.directions)):
        return found
    if lies_across or not pose.is_on_its_side:
        found = _search_in_pose(picture, frame, UPRIGHT)
    return replace(found, contradicts_header=True)


def draw_search_picture(overview: Display, frame: Frame) -> Display:
    """Returns the whole frame in its true proportions, its longer side `SEARCH_SIDE_PX` at most.

    Where the samples of a level lie is accounted for, so that all encodings give nearly the same picture.
    """
    width, height = float(frame.columns), frame.rows * frame.pixel_aspect
    factor = min(1.0, SEARCH_SIDE_PX / max(width, height))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return resample(overview, Box(0, 0, frame.columns, frame.rows), size, grid=frame.grid)


def _search_in_pose(picture: Display, frame: Frame, pose: Pose) -> Found:
    rows, columns, aspect = frame.rows, frame.columns, frame.pixel_aspect
    if pose.is_on_its_side:
        rows, columns, aspect = columns, rows, 1.0 / aspect
    breast = find_breast(np.ascontiguousarray(pose.turn(picture)), rows=rows, columns=columns)
    box = to_stored_box(breast.box, pose, rows=rows, columns=columns)
    return Found(breast, rows, columns, aspect, box, pose)


def to_stored_box(box: Box, pose: Pose, *, rows: int, columns: int) -> Box:
    """Returns a box of the upright picture of `rows` x `columns` as one of the stored picture."""
    left, right = (columns - box.right, columns - box.left) if pose.is_mirrored else (box.left, box.right)
    return {
        0: Box(left, box.top, right, box.bottom),
        90: Box(box.top, columns - right, box.bottom, columns - left),
        180: Box(columns - right, rows - box.bottom, columns - left, rows - box.top),
        270: Box(rows - box.bottom, left, rows - box.top, right),
    }[pose.turned]


def is_chest_wall_across(mask: Mask) -> bool:
    """Whether a breast's straight side clearly lies above or below, and not at the left or right."""
    ys, xs = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    shown = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    upright = max(shown[:, :EDGE_PX].sum(), shown[:, -EDGE_PX:].sum())
    across = max(shown[:EDGE_PX].sum(), shown[-EDGE_PX:].sum())
    return bool(across > MUCH_LONGER * upright)
