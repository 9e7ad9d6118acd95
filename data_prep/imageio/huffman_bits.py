"""How many bits lossless JPEG takes for given pixels (ITU-T T.81 H.1): whether a decoder used them all."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.frame import Pixels

NUM_DIFFERENCES = 2**16  # they are modulo 2**16, H.1.2.1
MAGNITUDES = np.minimum(np.arange(NUM_DIFFERENCES), NUM_DIFFERENCES - np.arange(NUM_DIFFERENCES))
CATEGORIES = np.frexp(MAGNITUDES.astype(np.float64))[1].astype(np.intp)  # bits of a magnitude
CHUNK_PIXELS = 2**19  # stays in the cache


def read_code_lengths(table_segments: Iterable[bytes]) -> dict[int, NDArray[np.int64]]:
    """Returns the code lengths [17] of each DC or lossless table by category; 0 where there is no code.

    Args:
        table_segments: bodies of DHT segments, B.2.4.2.
    """
    tables: dict[int, NDArray[np.int64]] = {}
    for body in table_segments:
        place = 0
        while place + 17 <= len(body):
            counts = body[place + 1 : place + 17]
            lengths = np.zeros(256, np.int64)
            categories = list(body[place + 17 : place + 17 + sum(counts)])
            lengths[categories] = np.repeat(np.arange(1, 17), list(counts))[: len(categories)]
            if body[place] < 0x10:  # class 0
                tables[body[place]] = lengths[:17]
            place += 17 + sum(counts)
    return tables


def count_bits(
    pixels: Pixels,
    code_lengths: NDArray[np.int64],
    *,
    predictor: int,
    precision: int,
    point_transform: int = 0,
    rows_per_restart: int = 0,
) -> int:
    """Returns the bits of one component's entropy-coded data.

    Args:
        pixels: [H, W], unsigned.
        code_lengths: [17], by category.
        predictor: 1 to 7, H.1.2.1.
        precision: bits of a sample.
        point_transform: how many of them, the lowest, were left out.
        rows_per_restart: 0 without restart markers.
    """
    bits = _bits_by_difference(code_lengths)
    first = 1 << (precision - point_transform - 1)
    height, width = pixels.shape
    step = rows_per_restart or max(1, CHUNK_PIXELS // width)
    total = 0
    for top in range(0, height, step):
        is_start = top == 0 or rows_per_restart > 0
        rows = pixels[max(0, top - (not is_start)) : top + step]
        samples = _to_words(rows, point_transform)
        total += _sum_bits(_differences(samples, predictor, first if is_start else None), bits)
    return total


def _to_words(pixels: Pixels, point_transform: int) -> Pixels:
    """Returns 16-bit samples without the bits that were left out, and without a copy where they are that."""
    words: Pixels = pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16)
    return words >> point_transform if point_transform else words


def _differences(rows: Pixels, predictor: int, first: int | None) -> Pixels:
    """Returns samples less predictions, of all rows, or of all but the first where `first` is None.

    `first` predicts the first sample, at the image's or an interval's beginning; the rest of that row is
    predicted by the sample at the left, and the first sample of each other row by the one above.
    """
    below = np.empty_like(rows[1:])
    np.subtract(rows[1:, 0], rows[:-1, 0], out=below[:, 0])
    np.subtract(rows[1:, 1:], _predict(rows, predictor), out=below[:, 1:])
    if first is None:
        return below
    top = np.diff(rows[:1], prepend=np.uint16(first))
    return np.concatenate([top, below])


def _predict(rows: Pixels, predictor: int) -> Pixels:
    """Returns the predictions of all samples but those in the first row and column, table H.1."""
    left, above, corner = rows[1:, :-1], rows[:-1, 1:], rows[:-1, :-1]
    if predictor in {1, 2, 3}:
        return {1: left, 2: above, 3: corner}[predictor]
    a, b, c = (part.astype(np.int32) for part in (left, above, corner))
    if predictor == 4:
        prediction = a + b - c
    elif predictor == 5:
        prediction = a + ((b - c) >> 1)
    elif predictor == 6:
        prediction = b + ((a - c) >> 1)
    else:
        prediction = (a + b) >> 1
    return prediction.astype(np.uint16)


def _bits_by_difference(code_lengths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Returns the bits of each difference modulo 2**16: its category's code, and that many bits."""
    return (code_lengths[CATEGORIES] + np.where(CATEGORIES < 16, CATEGORIES, 0)).astype(np.uint8)  # H.1.2.2


def _sum_bits(differences: Pixels, bits: NDArray[np.uint8]) -> int:
    return int(cv2.sumElems(cv2.LUT(differences, bits))[0]) if differences.size else 0
