"""Stored pixel values to display values in 0..1: modality LUT or rescale, VOI LUT or window, inversion.

Formulas are PS3.3's (C.11.1, C.11.2); results equal pydicom's `apply_modality_lut` and `apply_voi_lut`,
scaled to 0..1 over their output range. Knows no files.
"""

import numpy as np
from numpy.typing import NDArray

from data_prep.frame import Display, Frame, LookupTable, PhotometricInterpretation, VoiLutFunction, Window

Values = NDArray[np.float64]

ROBUST_PERCENTILES = (0.5, 99.5)


def to_display(frame: Frame) -> Display:
    """Returns display values [H, W] in 0..1, dense tissue bright.

    Every step maps one stored value to one display value, so the curve is computed once for each value that
    can occur and then looked up: exact, and many times faster than computing it for each pixel.
    """
    low, high = int(frame.pixels.min()), int(frame.pixels.max())
    curve = display_curve(frame, np.arange(low, high + 1)).astype(np.float32)
    return curve[frame.pixels.astype(np.int32, copy=False) - low] if low else curve[frame.pixels]


def display_curve(frame: Frame, stored: NDArray[np.integer]) -> Values:
    """Returns the display value in 0..1 of each stored value."""
    values = to_modality_values(frame, stored)
    if frame.voi_lut is not None:
        display = apply_lookup_table(values, frame.voi_lut) / (2**frame.voi_lut.bits - 1)
    else:
        display = apply_window(values, frame.window or find_robust_window(frame))
    if frame.photometric_interpretation is PhotometricInterpretation.MONOCHROME1:
        return 1.0 - display
    return display


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
    if width == 1.0:  # PS3.3 C.11.2.1.2.1, where it becomes a threshold
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def apply_lookup_table(values: NDArray[np.integer] | Values, table: LookupTable) -> Values:
    """Returns table entries; values beyond the first or last entry take that one, PS3.3 C.11.1.1."""
    index = np.clip(np.floor(values).astype(np.int64) - table.first_mapped, 0, len(table.values) - 1)
    return table.values[index].astype(np.float64)


def find_robust_window(frame: Frame) -> Window:
    """Returns a window over the bulk of the pixels, for files that bring none: 0.5th to 99.5th percentile."""
    low, high = to_modality_values(
        frame, np.percentile(frame.pixels, ROBUST_PERCENTILES).round().astype(np.int64)
    )
    width = max(abs(high - low), 1.0)
    return Window(center=float(low + high) / 2, width=float(width), function=VoiLutFunction.LINEAR_EXACT)


def describe_window(frame: Frame) -> str:
    """Returns how the frame is windowed, in a few words for the manifest."""
    if frame.voi_lut is not None:
        return "VOI LUT"
    window = frame.window or find_robust_window(frame)
    origin = "" if frame.window else " (percentiles)"
    return f"{window.function} {window.center:g}/{window.width:g}{origin}"
