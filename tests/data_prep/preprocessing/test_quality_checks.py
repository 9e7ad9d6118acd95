"""What is measured of an image, by loops over its pixels."""

import numpy as np
import pytest

from data_prep.preprocessing.quality_checks import count_patches


@pytest.mark.parametrize("side", [16, 17, 31, 64, 100])
def test_patches_of_more_than_one_value_are_counted_with_those_that_are_cut_off_at_the_edges(
    side: int,
) -> None:
    image = np.zeros((side, side), np.uint16)
    image[: side // 2, side // 3 :] = 7
    image[-1, -1] = 1
    corners = range(0, side, 16)
    patches = [image[y : y + 16, x : x + 16] for y in corners for x in corners]
    assert count_patches(image) == sum(np.unique(patch).size > 1 for patch in patches)
