"""Smaller pixels are the means of blocks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.imageio.downsample import find_max_reduction, reduce_pixels
from data_prep.imageio.frame import Display


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
    blocks = pixels[: rows // 4 * 4, : columns // 4 * 4].reshape(rows // 4, 4, columns // 4, 4)
    np.testing.assert_allclose(small, blocks.mean(axis=(1, 3)), atol=0.51)
    assert reduce_pixels(pixels, 0) is pixels


@given(rows=st.integers(1, 3000), columns=st.integers(1, 3000))
def test_a_reduction_leaves_something(rows: int, columns: int) -> None:
    level = find_max_reduction(rows, columns)
    assert min(rows, columns) >> level == 1
