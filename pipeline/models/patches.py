"""The patches of an image: their pixels, and those of largest contrast.

Shape suffixes are those of `vit`.
"""

import torch
from torch import Tensor

CONTRAST_STEP = 2.0**-10  # of normalised pixels: a sixteenth of a grey level of 255


def cut_into_patches(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Returns the n = C * patch_size**2 pixels of each patch, x_BPn; patches in reading order."""
    B, C, H, W = images_BCHW.shape
    rows, columns = H // patch_size, W // patch_size
    tiles = images_BCHW.reshape(B, C, rows, patch_size, columns, patch_size).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(B, rows * columns, C * patch_size**2)


def choose_patches(pixels_BPn: Tensor, num_kept: int) -> Tensor:
    """Returns the places of the patches of largest contrast (max - min of their pixels), [B, k], ascending.

    Of equal contrasts the earlier patch is kept; such that differ by less than `CONTRAST_STEP` are equal, so
    that rounding, and with it the device, decides as little as it can. An image with fewer patches that show
    something is filled up with background: no mask is needed, and all shapes stay the same.
    """
    P = pixels_BPn.shape[1]
    keys_BP = count_contrast(pixels_BPn) * P - torch.arange(P, device=pixels_BPn.device)  # all different
    return keys_BP.topk(num_kept, dim=1, sorted=False).indices.sort(dim=1).values


def count_contrast(pixels_BPn: Tensor) -> Tensor:
    """Returns the contrast of each patch in steps of `CONTRAST_STEP`, [B, P]; 0 is a patch that is empty."""
    contrast_BP = (pixels_BPn.amax(dim=-1) - pixels_BPn.amin(dim=-1)).float()
    return (contrast_BP / CONTRAST_STEP).round().clamp(max=2**30).long()
