"""Smaller versions of pixels by the mean of what each new pixel covers."""

import cv2
import numpy as np

from data_prep.imageio.frame import Display, Pixels


def reduce_pixels(pixels: Pixels, level: int) -> Pixels:
    """Returns the means of square blocks of 2**level pixels a side; an incomplete block is left out."""
    if level == 0:
        return pixels
    height, width = (size >> level for size in pixels.shape)
    whole_blocks = pixels[: height << level, : width << level]
    if pixels.dtype == np.int8:  # which OpenCV does not take
        whole_blocks = whole_blocks.astype(np.int16)
    return np.asarray(cv2.resize(whole_blocks, (width, height), interpolation=cv2.INTER_AREA))


def shrink(display: Display, longer_side: int) -> Display:
    """Returns a picture of at most this longer side, by the mean of what each new pixel covers."""
    factor = longer_side / max(display.shape)
    if factor >= 1.0:
        return display
    size = (max(1, round(display.shape[1] * factor)), max(1, round(display.shape[0] * factor)))
    return np.asarray(cv2.resize(display, size, interpolation=cv2.INTER_AREA), np.float32)


def find_max_reduction(rows: int, columns: int) -> int:
    """Returns the highest level at which `reduce_pixels` leaves something."""
    return min(rows, columns).bit_length() - 1
