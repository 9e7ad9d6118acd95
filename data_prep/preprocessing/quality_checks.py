"""What deserves a look: warning codes, what they mean, and when an image gets one."""

from dataclasses import dataclass

import numpy as np

from data_prep.imageio.frame import Display, Frame, Image, Pixels
from data_prep.preprocessing.search import Found
from data_prep.preprocessing.windowing import is_padding

WARNINGS = {
    "not_mammography": "the header's Modality is not MG: the file may be no mammogram",
    "for_processing": "raw detector data, not made for display: shown on a logarithmic scale",
    "no_window": "the file has no usable window: one over the bulk of its values is used",
    "window_unusable": "the window is incomplete or violates PS3.3 C.11.2.1.2: it is ignored",
    "window_width": "a LINEAR window is below 1 wide: the values' step stands for the 1 in its formula",
    "rescale_unusable": "RescaleSlope or RescaleIntercept is 0 or not a number: all windows are ignored",
    "lut_unusable": "a lookup table is empty, too short or has no effect: it is ignored",
    "lut_range": "a VOI LUT's entries contradict its bits: its largest entry is shown as the brightest",
    "padding_unusable": "PixelPaddingValue is not a whole number: no value is taken as padding",
    "low_range": "the image uses fewer than its 16 bits: shown with 8, 10, 12 or 14, the fewest that suffice",
    "lut_shape": "PresentationLUTShape contradicts PhotometricInterpretation, which is followed",
    "beyond_bits_stored": "many values need more bits than BitsStored says",
    "pixel_shape": "the header's spacings or aspect ratio of pixels are unusable, or disagree",
    "orientation_unknown": "the header's orientation is not one that mammograms have: it is ignored",
    "orientation_picture": "the chest wall lies elsewhere than the header's orientation says",
    "breast_not_found": "nothing that looks like a breast was found: the whole frame is used",
    "bright_background": "the background is brighter than the breast",
    "two_breasts": "there is a breast on either side: the box holds both",
    "faint_outline": "the breast's outline is faint: the box may hold more than the breast, or less",
    "attached": "letters or the like touch the breast: they were cut off",
    "extreme_aspect": "the breast's box is unusually long or wide",
    "small_box": "the breast's box is a small part of the frame",
    "large_box": "the breast's box is nearly the whole frame",
    "low_contrast": "the image has little contrast",
    "saturated": "much of the breast is at the window's upper end",
    "laterality_header": "the header's laterality differs from the table's",
    "laterality_picture": "the chest wall lies on the other side than the laterality says",
    "shared_picture": "the same picture stands under another patient too",
}
"""Every code of the manifest's column `warnings`, with what it means."""
NOTES = {"no_window", "window_width", "low_range", "lut_range", "lut_shape"}
"""Those that say how a file was read: whole data sets have them, and alone they call for no look."""

PATCH_PX = 16  # of a Vision Transformer's patches
ASPECTS = (0.9, 4.0)  # height over width of a breast's box; real ones lie between 1 and 3.5
SMALL_BOX, LARGE_BOX = 0.08, 0.95  # of the frame's area
LOW_CONTRAST = 0.1
SATURATED = 0.05
BEYOND_BITS_STORED = 0.01  # of the pixels
RINGING = 1.25  # times the range: as far as wavelets overshoot an edge
SATURATION = 0.995  # a display value at or above it is called saturated


@dataclass(frozen=True)
class Tone:
    """How an image uses its range.

    Attributes:
        contrast: 95th minus 5th percentile of the crop's display values, 0..1.
        saturated: share of the crop's pixels at the upper end, 0..1.
    """

    contrast: float
    saturated: float


def measure_brightness(image: Pixels) -> float:
    """Returns the mean of an integer image's pixels as a share of the brightest, 0..1."""
    return float(image.mean() / np.iinfo(image.dtype).max)


def judge_values(frame: Frame) -> list[str]:
    """Returns the warnings that stored values deserve.

    At a lower resolution edges ring, so that values a little beyond the range are what wavelets leave.
    Uncompressed and RLE samples had their bits above BitsStored cut off before; the frame counts those.
    """
    if frame.is_signed:
        return []
    is_beyond = frame.pixels >= (RINGING if frame.grid.level else 1.0) * 2**frame.bits_stored
    if is_beyond.any():
        is_beyond &= ~is_padding(frame, frame.pixels)
    share = frame.share_cut + float(is_beyond.mean())
    return ["beyond_bits_stored"] if share > BEYOND_BITS_STORED else []


def measure_tone(crop: Display) -> Tone:
    """Measures a crop without its padding."""
    low, high = np.percentile(crop, (5, 95))
    return Tone(contrast=round(float(high - low), 4), saturated=round(float((crop >= SATURATION).mean()), 4))


def count_patches(image: Image) -> int:
    """Returns how many of an image's patches of `PATCH_PX` pixels a side are not of one value."""
    missing = -len(image) % PATCH_PX
    padded = np.pad(image, (0, missing), mode="edge") if missing else image
    size = len(padded) // PATCH_PX
    largest, smallest = (
        of(of(padded.reshape(size, PATCH_PX, -1), axis=1).reshape(size, size, PATCH_PX), axis=2)
        for of in (np.max, np.min)
    )
    return int((largest > smallest).sum())


def judge_tone(tone: Tone) -> list[str]:
    """Returns the warnings that an image's tone deserves."""
    found = {"low_contrast": tone.contrast < LOW_CONTRAST, "saturated": tone.saturated > SATURATED}
    return [code for code, applies in found.items() if applies]


def judge_breast(found: Found, *, may_be_cropped: bool) -> list[str]:
    """Returns the warnings that what was found in a frame deserves."""
    breast = found.breast
    if not breast.is_found:
        return ["breast_not_found"]
    share = breast.box.width * breast.box.height / (found.rows * found.columns)
    aspect = breast.box.height * found.pixel_aspect / breast.box.width
    judged = {
        "orientation_picture": found.contradicts_header,
        "bright_background": breast.has_bright_background,
        "extreme_aspect": not ASPECTS[0] <= aspect <= ASPECTS[1],
        "small_box": share < SMALL_BOX,
        "large_box": share > LARGE_BOX and not may_be_cropped,
    }
    return [*breast.doubts, *(code for code, applies in judged.items() if applies)]


def judge_laterality(found: Found, *, table: str | None, header: str | None) -> list[str]:
    """Returns the warnings where table, header and picture disagree.

    A right breast's chest wall usually lies at the upright picture's right edge.
    """
    breast, stated = found.breast, table or header
    judged = {
        "laterality_header": bool(table and header and table != header),
        "laterality_picture": breast.is_found
        and stated is not None
        and breast.chest_wall_on_right != (stated == "R"),
    }
    return [code for code, applies in judged.items() if applies]
