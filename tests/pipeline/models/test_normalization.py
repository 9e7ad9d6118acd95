"""Pixels as the model takes them."""

import numpy as np
import pytest
import torch

from pipeline.models.normalization import MEAN, STD, to_tensor
from tests.pipeline.tiny import noise


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_a_tensor_is_the_normalised_image(bit_depth: int) -> None:
    image = noise(0, 32, 48, bit_depth=bit_depth)
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((1, 32, 48), torch.float32)
    brightest = 2**bit_depth - 1
    np.testing.assert_allclose(tensor[0].numpy(), (image / brightest - MEAN) / STD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_colour_images_channels_come_first(dtype: type[np.integer]) -> None:
    brightest = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, brightest, (32, 48, 3), dtype=dtype, endpoint=True)
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((3, 32, 48), torch.float32)
    for channel in range(3):
        expected = (image[..., channel] / brightest - MEAN) / STD
        np.testing.assert_allclose(tensor[channel].numpy(), expected, rtol=1e-5, atol=1e-6)
