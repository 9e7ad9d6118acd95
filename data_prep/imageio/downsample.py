"""Smaller versions of pixels by the mean of what each new pixel covers."""

import cv2
import numpy as np

from data_prep.imageio.frame import Display, Pixels

LOWPASS = np.array([-1, 2, 6, 2, -1]) / 8  # of the 5/3 wavelet


def reduce_pixels(pixels: Pixels, level: int) -> Pixels:
    """Returns the means of square blocks of 2**level pixels a side, [ceil(H / 2**level), ceil(W / 2**level)].

    Blocks that go beyond the frame are filled up with its last row and column.
    """
    if level == 0:
        return pixels
    if pixels.dtype == np.int8:  # which OpenCV does not take
        pixels = pixels.astype(np.int16)
    (height, width), step = (size >> level for size in pixels.shape), 1 << level
    missing = [-size % step for size in pixels.shape]
    means = np.empty([-(-size >> level) for size in pixels.shape], pixels.dtype)
    means[:height, :width] = _average(pixels[: height * step, : width * step], level)
    if missing[1]:
        means[:, width:] = _average(_fill_up(pixels[:, width * step :], *missing), level)
    if missing[0]:
        means[height:] = _average(_fill_up(pixels[height * step :], *missing), level)
    return means


def _average(whole_blocks: Pixels, level: int) -> Pixels:
    size = whole_blocks.shape[1] >> level, whole_blocks.shape[0] >> level
    return np.asarray(cv2.resize(whole_blocks, size, interpolation=cv2.INTER_AREA))


def _fill_up(part: Pixels, rows: int, columns: int) -> Pixels:
    return np.pad(part, ((0, rows), (0, columns)), mode="edge")


def halve(pixels: Pixels, blocks_level: int = 0) -> Pixels:
    """Returns pixels at half the resolution as the 5/3 wavelet leaves them, ISO/IEC 15444-1 F.4.8.1.

    [ceil(H / 2), ceil(W / 2)]; sample k lies on pixel 2 * k. Pixels that are means of blocks of
    2**blocks_level pixels a side are first made as sharp as the wavelet's would be: to the second order in
    the frequency w, a mean is (1 - 4**-blocks_level) * w**2 / 8 below it.
    """
    lack = (1 - 4.0**-blocks_level) / 8
    lowpass = np.convolve(LOWPASS, (-lack, 1 + 2 * lack, -lack)).astype(np.float32)
    smooth = cv2.sepFilter2D(
        pixels.astype(np.float32), -1, lowpass, lowpass, borderType=cv2.BORDER_REFLECT_101
    )[::2, ::2]
    limits = np.iinfo(pixels.dtype)
    return np.rint(smooth).clip(limits.min, limits.max).astype(pixels.dtype)


def shrink(display: Display, longer_side: int) -> Display:
    """Returns a picture of at most this longer side, by the mean of what each new pixel covers."""
    factor = longer_side / max(display.shape)
    if factor >= 1.0:
        return display
    size = (max(1, round(display.shape[1] * factor)), max(1, round(display.shape[0] * factor)))
    return np.asarray(cv2.resize(display, size, interpolation=cv2.INTER_AREA), np.float32)


def find_max_reduction(rows: int, columns: int) -> int:
    """Returns the highest level at which blocks of `reduce_pixels` are not larger than the frame."""
    return min(rows, columns).bit_length() - 1
