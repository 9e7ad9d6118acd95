"""How a picture lies in its file, by the header: turned, mirrored, or of pixels that are not square.

Knows no file format: elements come as text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPPOSITE = {"A": "P", "P": "A", "R": "L", "L": "R", "H": "F", "F": "H"}
AXES = [{"A", "P"}, {"R", "L"}, {"H", "F"}]

SHAPE_ELEMENTS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
"""What tells the shape of pixels, the first that can be used wins: a ratio is for files without a spacing,
PS3.3 C.7.6.3.1.7."""
MOST_OBLONG = 10.0  # no detector or scanner has pixels that are longer than that
SQUARE = 0.005  # a ratio as near to 1 as that is rounding


@dataclass(frozen=True)
class Pose:
    """What makes a stored picture upright: chest wall at the left or right, the head's side above.

    Attributes:
        turned: degrees clockwise: 0, 90, 180 or 270.
        is_mirrored: whether it is mirrored, left to right, after that.
    """

    turned: int = 0
    is_mirrored: bool = False

    @property
    def is_on_its_side(self) -> bool:
        """Whether stored columns become rows."""
        return self.turned in {90, 270}

    def turn(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Returns a stored picture [H, W] upright: [H, W] or [W, H]."""
        upright = np.rot90(stored, -(self.turned // 90))
        return upright[:, ::-1] if self.is_mirrored else upright


UPRIGHT = Pose()

EXIF_POSES = {
    1: UPRIGHT,
    2: Pose(0, is_mirrored=True),
    3: Pose(180),
    4: Pose(180, is_mirrored=True),
    5: Pose(90, is_mirrored=True),
    6: Pose(90),
    7: Pose(270, is_mirrored=True),
    8: Pose(270),
}
"""What to do with each value of EXIF's Orientation, JEITA CP-3451 4.6.4.A."""


@dataclass(frozen=True)
class Directions:
    """Where the rows and the columns of a picture lead to, of A, P, R, L, H and F."""

    row: str
    column: str

    def after(self, pose: Pose) -> "Directions":
        """Returns those of the picture that a pose gives."""
        row, column = self.row, self.column
        for _ in range(pose.turned // 90):
            row, column = OPPOSITE[column], row
        return Directions(OPPOSITE[row] if pose.is_mirrored else row, column)


def read_directions(patient_orientation: Sequence[str]) -> Directions | None:
    """Returns what PatientOrientation says of a mammogram, PS3.3 C.7.6.1.1.1; None where it says nothing.

    One of the values leads to the front or the back, and the other along the chest wall, oblique ones also to
    the front of the other letters: head and foot tell there more than left and right.
    """
    if len(patient_orientation) != 2:
        return None
    values = [value.strip(" \0").upper() for value in patient_orientation]
    if not all(value and _is_direction(value) for value in values):
        return None
    row, column = values
    if (row[0] in "AP") == (column[0] in "AP"):
        return None
    return Directions(_principal(row), _principal(column))


def _is_direction(value: str) -> bool:
    """Whether a value has at most one letter of each axis, and no other letters."""
    return all(len(axis & set(value)) <= 1 for axis in AXES) and len(set(value) & set(OPPOSITE)) == len(value)


def _principal(value: str) -> str:
    """Returns the letter that counts: the first, but of obliques along the chest wall head or foot."""
    if value[0] in "AP":
        return value[0]
    return next((letter for letter in value if letter in "HF"), value[0])


def find_pose(directions: Directions, laterality: str | None) -> Pose:
    """Returns how a picture of these directions gets upright.

    Feet are below; of views from above the inner side is, which of a left breast lies to the right (`R`), and
    which nobody can tell where the laterality is unknown. A picture that is no more than mirrored is left as
    it is; one that must be turned is mirrored too where only that puts its chest wall where a left or right
    breast has it.
    """
    poses = [Pose(turned, is_mirrored) for is_mirrored in (False, True) for turned in (0, 90, 180, 270)]
    upright = [pose for pose in poses if _is_upright(directions.after(pose), laterality)]
    usual_row = {"L": "A", "R": "P"}.get(laterality or "", "")
    usual = [pose for pose in upright if directions.after(pose).row == usual_row]
    return UPRIGHT if UPRIGHT in upright else (usual or upright)[0]


def _is_upright(directions: Directions, laterality: str | None) -> bool:
    if directions.row not in "AP" or directions.column == "H":
        return False
    return directions.column == "F" or laterality is None or directions.column != laterality


@dataclass(frozen=True)
class PixelShape:
    """The shape of pixels, by the header.

    Attributes:
        aspect: a pixel's height over its width.
        is_doubtful: whether an element was there that could not be used, or said something else.
    """

    aspect: float = 1.0
    is_doubtful: bool = False


def read_pixel_shape(elements: Mapping[str, Sequence[str]]) -> PixelShape:
    """Returns the shape of pixels from those of `SHAPE_ELEMENTS` that a header has, row value first."""
    given = [_read_aspect(elements[name]) for name in SHAPE_ELEMENTS if name in elements]
    usable = [aspect for aspect in given if aspect is not None]
    if not usable:
        return PixelShape(is_doubtful=bool(given))
    aspect = 1.0 if abs(usable[0] - 1.0) <= SQUARE else usable[0]
    differ = any(abs(other / usable[0] - 1.0) > 2 * SQUARE for other in usable)
    return PixelShape(aspect, is_doubtful=differ)


def _read_aspect(values: Sequence[str]) -> float | None:
    """Returns the first value over the second; None where that is no shape of a pixel."""
    try:
        height, width = (float(value) for value in values)
    except ValueError:
        return None
    if not (0.0 < height < math.inf and 0.0 < width < math.inf):
        return None
    aspect = height / width
    return aspect if 1 / MOST_OBLONG <= aspect <= MOST_OBLONG else None
