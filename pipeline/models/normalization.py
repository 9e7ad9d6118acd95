"""Pixels as the model takes them."""

import torch
from torch import Tensor

from data_prep.imageio.frame import Image

# Not the images' own mean: the first LayerNorm keeps a flat patch's sign and drops its size, so dense
# tissue must lie above zero and fat below to be told apart at the first step (reports/LOG.md). No fold leaks.
MEAN, STD = 0.5, 0.25


def normalise(pixels: Tensor) -> Tensor:
    """Returns images_BCHW, float32, -2 to 2, of [B, H, W] or [B, H, W, 3], 0..255 or 0..65535."""
    brightest = torch.iinfo(pixels.dtype).max
    pixels_BCHW = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    images_BCHW = pixels_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
    return images_BCHW.sub_(MEAN * brightest).mul_(1 / (STD * brightest))


def to_tensor(image: Image) -> Tensor:
    """Returns image_CHW, float32, -2 to 2, of an image [H, W] or [H, W, 3], 0..255 or 0..65535."""
    return normalise(torch.from_numpy(image).unsqueeze(0))[0]
