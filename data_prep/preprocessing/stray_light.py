"""Light along the edges of a digitised film: bright strips, sharp or fading, that the breast may touch."""

import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.frame import Display

STRIP = 0.08  # of the picture's longer side: light that comes in at an edge reaches less far
LONG = 0.06  # of an edge: it comes in along more
SAME = 2  # pixels that its width may vary
FADED = 2.5  # least differences: where light that fades away ends, and skin does not
MOSTLY = 0.5  # of a strip: has about the usual width
STRAIGHT = 0.6  # of a strip that does not fade: has the usual width to a pixel
ALIKE, VERY_ALIKE = 0.25, 0.03  # of the brightness: its interquartile range along a strip that fades, or not
NOISE = 6.0  # least differences, added to the brightness of a strip that does not fade


def cut_strips(contrast: Display) -> Display:
    """Returns a picture's contrast, whose unit is the least difference that counts, without stray light.

    It runs along an edge for a long way and is thin. So are folds of skin beside the chest wall, which are
    not as even; above and below, a fold that thin is not missed.
    """
    kept = contrast.copy()
    limit = STRIP * max(contrast.shape)
    for part, is_side in ((kept, True), (kept[:, ::-1], True), (kept.T, False), (kept.T[:, ::-1], False)):
        is_dark = part <= 1
        widths = np.where(is_dark.any(axis=1), is_dark.argmax(axis=1), part.shape[1])
        for first, last in find_runs((widths > 0) & (widths <= limit)):
            run, run_widths = part[first:last], widths[first:last]
            is_long = last - first >= LONG * len(widths)
            if is_long and (not is_side or is_stray_light(run, run_widths)):
                darken(run, run_widths)
    return kept


def is_stray_light(strip: Display, widths: NDArray[np.intp]) -> bool:
    """Whether a strip fades away from the edge in the same way all along, or is as even as no tissue is."""
    usual = int(np.median(widths))
    low, middle, high = np.percentile(find_profiles(strip, widths), (25, 50, 75), axis=0)
    if np.mean(abs(widths - usual) <= SAME) < MOSTLY:
        return False  # as where the breast runs out along the chest wall
    if middle[-1] <= FADED and (np.diff(middle) <= 0).all():
        return bool(np.median((high - low) / middle.clip(min=1)) <= ALIKE)
    is_straight = np.mean(abs(widths - usual) <= 1) > STRAIGHT
    return bool(is_straight and np.median((high - low) / (middle + NOISE)) <= VERY_ALIKE)


def find_profiles(strip: Display, widths: NDArray[np.intp]) -> Display:
    """Returns a strip's values from the edge to its usual width, where it is about that wide."""
    usual = int(np.median(widths))
    return strip[abs(widths - usual) <= SAME, :usual]


def darken(strip: Display, widths: NDArray[np.intp]) -> None:
    """Blackens a strip in place, but for what is brighter than it usually is: an end of the breast."""
    usual = np.median(find_profiles(strip, widths), axis=0)
    profile = np.zeros(strip.shape[1], np.float32)
    profile[: len(usual)] = usual
    profile[len(usual) : len(usual) + SAME] = usual[-1]
    strip[strip <= (1 + ALIKE) * profile + 1] = 0


def find_runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns where each run of True begins and ends."""
    changes = np.nonzero(np.diff(np.pad(flags, 1).astype(np.int8)))[0]
    return [(int(first), int(last)) for first, last in changes.reshape(-1, 2)]
