"""Which images, and which patches of them, a breast's token attends to.

Shape suffixes are those of `breast_transformer`; besides, g is the number of patches along a side.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.models.attention import find_maps, observe_attention, step_rollout
from pipeline.models.breast_transformer import BreastInputs, BreastTransformer
from pipeline.models.patches import choose_patches, cut_into_patches


class BreastAttention(NamedTuple):
    """What the breasts looked at.

    Attributes:
        shares: of each slot's image in the attention of [BREAST], [B, V]; they add up to 1.
        maps: the same by patches of the image, [B, V, g, g]; a map adds up to its image's share.
    """

    shares: Tensor
    maps: Tensor


def find_breast_attention(model: BreastTransformer, inputs: BreastInputs) -> BreastAttention:
    """Follows the attention of [BREAST] through the layers over images, and through the encoder.

    Attention rollout (Abnar and Zuidema 2020): what goes to a patch that those layers see stays at its place,
    what goes to an image's vector is spread as the encoder's own rollout is.
    """
    weights: list[Tensor] = []
    with observe_attention(model.fusion, weights.append), torch.no_grad():
        model(inputs)
    row_BT = torch.zeros_like(weights[0][:, 0, 0])
    row_BT[:, 0] = 1.0
    for A_BhTT in reversed(weights):
        row_BT = step_rollout(row_BT, A_BhTT)
    places = inputs.places
    row_BVM = row_BT[:, 1:].reshape(*places.images.shape, -1)
    row_BVM = row_BVM / row_BVM.sum(dim=(1, 2), keepdim=True)
    spread_Ngg = find_maps(model.encoder, inputs.images).rollout
    spread_NP = spread_Ngg.flatten(1) / spread_Ngg.sum(dim=(1, 2))[:, None]
    pixels_NPn = cut_into_patches(inputs.images, model.settings.patch_size)
    chosen_BVk = places.gather(choose_patches(pixels_NPn, model.settings.fusion_patches))
    maps_BVP = row_BVM[..., :1] * places.gather(spread_NP)
    maps_BVP = maps_BVP.scatter_add(2, chosen_BVk, row_BVM[..., 1:])
    grid_size = model.settings.grid_size
    maps_BVgg = maps_BVP.reshape(*maps_BVP.shape[:2], grid_size, grid_size)
    return BreastAttention(row_BVM.sum(dim=2), maps_BVgg)
