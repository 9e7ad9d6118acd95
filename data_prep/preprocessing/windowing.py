"""Stored pixel values to display values in 0..1: modality LUT or rescale, VOI LUT or window, inversion.

Formulas are PS3.3's (C.11.1, C.11.2); results equal pydicom's `apply_modality_lut` and `apply_voi_lut`,
scaled to 0..1 over their output range.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.frame import (
    Display,
    Frame,
    LogarithmicScale,
    LookupTable,
    PhotometricInterpretation,
    VoiLutFunction,
    Window,
)

Values = NDArray[np.float64]

ROBUST_PERCENTILES = (0.5, 99.5)
EXPOSURE_RATIO = 50.0  # of air to dense tissue in detector data
DARK, BLACK = 0.05, 0.001  # display values that near to the darkest are as good as black, and black
FAR = 0.5  # of the values that show: padding that far below them would blacken its neighbours


def to_display(frame: Frame, *, blacken_padding: bool = False) -> Display:
    """Returns display values [H, W] in 0..1, dense tissue bright.

    Padding shows as its stored value asks for, as in pydicom, unless it is to be black.

    Every step maps one stored value to one display value, so the curve is computed once for each value that
    can occur and then looked up: exact, and many times faster than computing it for each pixel.

    Raises:
        ValueError: if the frame has neither window nor VOI LUT; `with_voi` makes one.
    """
    low, high = int(frame.pixels.min()), int(frame.pixels.max())
    low = min(low, 0)  # unsigned pixels are then their own index
    stored = np.arange(low, high + 1)
    curve = display_curve(frame, stored).astype(np.float32)
    if blacken_padding:
        curve[is_padding(frame, stored)] = 0.0
    return curve[frame.pixels.astype(np.int32, copy=False) - low] if low else curve[frame.pixels]


def display_curve(frame: Frame, stored: NDArray[np.integer]) -> Values:
    """Returns the display value in 0..1 of each stored value."""
    values = to_modality_values(frame, stored)
    if frame.voi_lut is not None:
        display = (apply_lookup_table(values, frame.voi_lut) / frame.voi_lut.maximum).clip(max=1.0)
    elif isinstance(frame.window, LogarithmicScale):
        display = apply_logarithm(values, frame.window)
    elif frame.window is not None:
        display = apply_window(values, frame.window)
    else:
        raise ValueError("the frame has neither window nor VOI LUT")
    if frame.photometric_interpretation is PhotometricInterpretation.MONOCHROME1:
        return 1.0 - display
    return display


def is_padding(frame: Frame, stored: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Returns which stored values mark what is not part of the picture, PS3.3 C.7.5.1.1.2."""
    if frame.padding is None:
        return np.zeros(stored.shape, np.bool_)
    return (stored >= frame.padding[0]) & (stored <= frame.padding[1])


def find_black(frame: Frame) -> int | None:
    """Returns the stored value to put in the place of padding before pixels are averaged.

    None where padding may be averaged as it is: there is none, or it is about as dark as the picture gets and
    not far below that. Else what lies between it and tissue would show as neither.
    """
    if frame.padding is None:
        return None
    half = 2 ** (frame.bits_stored - 1)
    stored = np.arange(-half, half) if frame.is_signed else np.arange(2 * half)
    curve = display_curve(frame, stored)
    bright, black = stored[curve > curve.min() + DARK], stored[curve <= curve.min() + BLACK]
    if not bright.size:
        return None
    ends = np.array(frame.padding)
    is_dark = display_curve(frame, ends).max() <= curve.min() + DARK
    is_near = np.abs(ends[:, None] - bright).min(axis=1).max() <= FAR * len(bright)
    return None if is_dark and is_near else int(black[np.abs(black - np.median(bright)).argmin()])


def to_modality_values(frame: Frame, stored: NDArray[np.integer]) -> Values:
    """Returns modality values: through the modality LUT, else slope and intercept, PS3.3 C.11.1."""
    if frame.modality_lut is not None:
        return apply_lookup_table(stored, frame.modality_lut)
    return stored.astype(np.float64) * frame.rescale_slope + frame.rescale_intercept


def apply_window(values: Values, window: Window) -> Values:
    """Returns values in 0..1 through a VOI window."""
    center, width = window.center, window.width
    if window.function is VoiLutFunction.SIGMOID:  # PS3.3 C.11.2.1.3.1
        exponent = -4.0 * (values - center) / width
        return 1.0 / (1.0 + np.exp(np.clip(exponent, -700.0, 700.0)))  # where exp does not overflow
    if window.function is VoiLutFunction.LINEAR_EXACT:  # PS3.3 C.11.2.1.3.2
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    step = window.step  # 1 in PS3.3 C.11.2.1.2.1
    if width == step:  # where it becomes a threshold
        return (values > center - step / 2).astype(np.float64)
    return np.clip((values - (center - step / 2)) / (width - step) + 0.5, 0.0, 1.0)


def apply_logarithm(values: Values, scale: LogarithmicScale) -> Values:
    """Returns values in 0..1 that rise with the exposure's logarithm.

    Where a detector's zero lies in the values is not known, so `high` is taken for `EXPOSURE_RATIO` times
    `low`: any other slope and intercept give the same picture.
    """
    shares = np.clip((values - scale.low) / (scale.high - scale.low), 0.0, 1.0)
    return np.log1p(shares * (EXPOSURE_RATIO - 1.0)) / np.log(EXPOSURE_RATIO)


def apply_lookup_table(values: NDArray[np.integer] | Values, table: LookupTable) -> Values:
    """Returns table entries; values beyond the first or last entry take that one, PS3.3 C.11.1.1."""
    index = np.clip(np.floor(values).astype(np.int64) - table.first_mapped, 0, len(table.values) - 1)
    return table.values[index].astype(np.float64)


def with_voi(frame: Frame) -> Frame:
    """Returns the frame with a window of its own where the file brings none that can be used.

    It covers the bulk of the pixels, 0.5th to 99.5th percentile; detector data that was not made for display
    are proportional to the exposure, so they get a logarithmic scale over the same range. Both are over
    stored values, or a modality LUT's: of the rescale only the sign counts, so the unit makes no difference.
    """
    if frame.window is not None or frame.voi_lut is not None:
        return frame
    slope = float(np.copysign(1.0, frame.rescale_slope))
    made = replace(frame, rescale_slope=slope, rescale_intercept=0.0, warnings=(*frame.warnings, "no_window"))
    picture = frame.pixels[~is_padding(frame, frame.pixels)]
    values = to_modality_values(made, picture if picture.size else frame.pixels.ravel())
    low, high = (float(value) for value in np.percentile(values, ROBUST_PERCENTILES).round())
    if frame.is_for_processing and high > low:
        return replace(made, window=LogarithmicScale(low, high))
    window = Window((low + high) / 2, max(high - low, 1.0), VoiLutFunction.LINEAR_EXACT)
    return replace(made, window=window)


def describe_voi(frame: Frame) -> str:
    """Returns how the frame is windowed, in a few words for the manifest."""
    if frame.voi_lut is not None:
        return "VOI LUT"
    window = frame.window
    assert window is not None, "with_voi made one"
    if isinstance(window, LogarithmicScale):
        return f"logarithm {window.low:g}..{window.high:g} (percentiles)"
    origin = " (percentiles)" if "no_window" in frame.warnings else ""
    return f"{window.function} {window.center:g}/{window.width:g}{origin}"
