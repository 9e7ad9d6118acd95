"""The types that everything after the file reader speaks: frames, windows, boxes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.pose import UPRIGHT, Directions, Pose
from data_prep.storage.byte_source import ByteSource

Pixels = NDArray[Any]
"""Stored pixel values [H, W], integer."""

Display = NDArray[np.float32]
"""Display values [H, W], 0..1, dense tissue bright."""


Image = NDArray[np.uint8] | NDArray[np.uint16]
"""A prepared image [side, side], 0..255 or 0..65535."""


class PhotometricInterpretation(StrEnum):
    """Whether the largest value is shown white (MONOCHROME2) or black (MONOCHROME1), PS3.3 C.7.6.3.1.2."""

    MONOCHROME1 = "MONOCHROME1"
    MONOCHROME2 = "MONOCHROME2"


class VoiLutFunction(StrEnum):
    """The shape of a window, PS3.3 C.11.2.1.3."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True)
class Window:
    """A VOI window in modality units (after the rescale).

    Attributes:
        step: what LINEAR takes for the distance of neighbouring values, 1 in PS3.3 C.11.2.1.2.1.

    Raises:
        ValueError: if the width is below `step` for LINEAR, or not above 0 for the other functions.
    """

    center: float
    width: float
    function: VoiLutFunction = VoiLutFunction.LINEAR
    step: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.center) and np.isfinite(self.width)):
            raise ValueError(f"window center {self.center} and width {self.width} must be finite numbers")
        smallest = self.step if self.function is VoiLutFunction.LINEAR else 0.0
        if self.width < smallest or self.width == 0.0:
            rule = f"{smallest:g} or more" if smallest else "above 0"
            raise ValueError(
                f"window width {self.width} must be {rule} for {self.function} (PS3.3 C.11.2.1.3)"
            )


@dataclass(frozen=True)
class LookupTable:
    """A modality or VOI lookup table, PS3.3 C.11.1 and C.11.2.

    Attributes:
        values: table entries, unsigned.
        first_mapped: the input value that the first entry stands for.
        bits: bits per entry as the file says, 8 to 16 in a sound one.
    """

    values: NDArray[np.uint16]
    first_mapped: int
    bits: int

    @property
    def is_contradicted(self) -> bool:
        """Whether entries need more bits than the table says, or all of them one bit less."""
        return not (8 <= self.bits <= 16 and 2 ** (self.bits - 1) <= self.values.max() < 2**self.bits)

    @property
    def maximum(self) -> int:
        """What is shown as the brightest: 2**bits - 1, or the largest entry where that is contradicted."""
        return int(self.values.max()) if self.is_contradicted else 2**self.bits - 1


@dataclass(frozen=True)
class LogarithmicScale:
    """A window over detector data that rises with the logarithm of the exposure, in stored units or a LUT's.

    Attributes:
        low, high: the values that are shown as 0 and as 1.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Grid:
    """Where the samples of a frame at a lower resolution lie in the full matrix.

    Attributes:
        level: the resolution is 1 / 2**level of the full one.
        is_even: sample k lies on full-matrix pixel k * 2**level, as the wavelets of JPEG 2000 leave it;
            otherwise in the middle of a block of pixels that it is the mean of.
        num_halved: the last so many levels were made of the means of smaller blocks, as wavelets make theirs.
    """

    level: int = 0
    is_even: bool = False
    num_halved: int = 0

    def to_samples(self, x: float) -> float:
        """Returns a full-matrix coordinate in samples; pixel and sample edges lie at whole numbers."""
        step = 2**self.level
        block = 1 if self.is_even else 2 ** (self.level - self.num_halved)
        return x / step + (step - block) / (2 * step)

    def halved(self) -> "Grid":
        """Returns where every other sample of every other row lies."""
        return Grid(self.level + 1, self.is_even, 0 if self.is_even else self.num_halved + 1)


FULL_GRID = Grid()


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One image as stored, with what is needed to show it. Nothing in it identifies a patient.

    Attributes:
        pixels: stored values [H, W], at the full or a lower resolution.
        grid: where they lie in the full matrix.
        rows, columns: size of the full matrix in pixels.
        bits_stored: 1 to 16; stored values use that many bits.
        share_cut: of the samples, those that had something in the bits above, which were cut off, 0..1.
        padding: lowest and highest stored value that mark what is not part of the picture; shown black. One
            beyond what bits_stored allow stands among the pixels as it is.
        rescale_slope, rescale_intercept: modality values are slope * stored + intercept.
        modality_lut: replaces the rescale where present.
        window: first VOI window that can be used, or None.
        voi_lut: VOI lookup table, preferred to the window where present.
        modality: DICOM's code for what made the picture, such as MG; empty where the header says none.
        laterality: "L", "R", or None where the header says neither.
        pixel_aspect: a pixel's height over its width.
        directions: where rows and columns lead to, or None where the header does not say.
        pose: what makes a raster picture upright, by EXIF; of others the directions tell it.
        is_for_processing: raw detector data that was not made for display.
        transfer_syntax: its UID, or the raster format's name.
        warnings: codes of `data_prep.preprocessing.quality_checks.WARNINGS`.
    """

    pixels: Pixels
    rows: int
    columns: int
    bits_stored: int
    grid: Grid = FULL_GRID
    share_cut: float = 0.0
    is_signed: bool = False
    padding: tuple[int, int] | None = None
    photometric_interpretation: PhotometricInterpretation = PhotometricInterpretation.MONOCHROME2
    rescale_slope: float = 1.0
    rescale_intercept: float = 0.0
    modality_lut: LookupTable | None = None
    window: Window | LogarithmicScale | None = None
    voi_lut: LookupTable | None = None
    modality: str = ""
    laterality: str | None = None
    pixel_aspect: float = 1.0
    directions: Directions | None = None
    pose: Pose = UPRIGHT
    is_for_processing: bool = False
    transfer_syntax: str = ""
    warnings: tuple[str, ...] = ()


class ImageFile(Protocol):
    """An opened image file whose pixels are not decoded yet."""

    @property
    def rows(self) -> int:
        """Rows of the full matrix."""

    @property
    def columns(self) -> int:
        """Columns of the full matrix."""

    @property
    def pixel_aspect(self) -> float:
        """A pixel's height over its width."""

    @property
    def source(self) -> ByteSource:
        """What was read of the file."""

    @property
    def header(self) -> Frame:
        """The frame without its pixels, or with all of them."""

    @property
    def num_levels(self) -> int:
        """Resolutions that its encoding brings besides the full one; the others are averaged."""

    @property
    def max_level(self) -> int:
        """The lowest resolution that can be decoded: 1 / 2**max_level of the full size."""

    def read_frame(self, level: int = 0) -> Frame:
        """Decodes at 1 / 2**level of the full size."""


@dataclass(frozen=True)
class Box:
    """A rectangle in full-matrix pixels: columns left..right and rows top..bottom, ends excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns inside."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows inside."""
        return self.bottom - self.top
