"""Smaller pixels are the means of blocks; those that go beyond the frame are filled up with its edge."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.imageio.codecs import JPEG_2000_LOSSLESS, Layout, decode, encode
from data_prep.imageio.downsample import find_max_reduction, halve, reduce_pixels
from data_prep.imageio.frame import Display
from data_prep.storage.byte_source import Span


def make_picture(rows: int, columns: int) -> Display:
    """Smooth, 0.1 to 0.9, different everywhere."""
    y, x = np.mgrid[:rows, :columns]
    return (0.5 + 0.2 * np.sin(x / 37) + 0.2 * np.cos(y / 53)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize(("rows", "columns"), [(400, 200), (403, 201), (4, 900)])
def test_blocks_are_averaged(dtype: type[Any], rows: int, columns: int) -> None:
    pixels = (120 * make_picture(rows, columns)).astype(dtype)
    small = reduce_pixels(pixels, 2)
    assert small.dtype == (np.int16 if dtype is np.int8 else dtype)
    filled = np.pad(pixels, ((0, -rows % 4), (0, -columns % 4)), mode="edge")
    blocks = filled.reshape(-(-rows // 4), 4, -(-columns // 4), 4)
    np.testing.assert_allclose(small, blocks.mean(axis=(1, 3)), atol=0.51)
    assert reduce_pixels(pixels, 0) is pixels


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(("rows", "columns"), [(240, 168), (241, 167)])
def test_halved_pixels_are_what_jpeg_2000_leaves(rows: int, columns: int, level: int) -> None:
    pixels = np.rint(4095 * make_picture(rows, columns)).astype(np.uint16)
    encoded = Span.of(encode(pixels, JPEG_2000_LOSSLESS, bits_stored=12))
    layout = Layout(rows, columns, 16, 12, is_signed=False)
    halved = pixels
    for _ in range(level):
        halved = halve(halved)
    decoded = decode(encoded, JPEG_2000_LOSSLESS, layout, level)
    assert halved.shape == decoded.shape
    assert np.abs(halved.astype(int) - decoded).max() <= level + 1  # each step is rounded


@pytest.mark.parametrize("blocks_level", [1, 2])
def test_means_are_made_as_sharp_as_a_wavelet(blocks_level: int) -> None:
    """A wave that is slow at their resolution keeps the height that the wavelet gives it."""
    x = np.arange(512)
    wave = 2000 + 1500 * np.cos(2 * np.pi * x / 32)
    full = np.rint(np.tile(wave, (64, 1))).astype(np.uint16)
    exact = full
    for _ in range(blocks_level + 1):
        exact = halve(exact)
    means = reduce_pixels(full, blocks_level)
    heights = [int(np.ptp(part[:, 4:-4])) for part in (exact, halve(means, blocks_level), halve(means))]
    assert abs(heights[1] - heights[0]) < 0.5 * abs(heights[2] - heights[0])


@given(rows=st.integers(1, 3000), columns=st.integers(1, 3000))
def test_a_reduction_leaves_something(rows: int, columns: int) -> None:
    level = find_max_reduction(rows, columns)
    assert min(rows, columns) >> level == 1
