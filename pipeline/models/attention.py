"""What a Vision Transformer attends to, and what it has learned of patches and positions.

Shape suffixes are those of `vit`; besides, g is the number of patches along a side, N of components.

A map says how much each patch weighs in what the head sees: the class token's vector or, with pool "gap", the
mean of the patches' vectors. The weights of the class token and of registers are left out, and patches that
the model does not keep weigh nothing. Maps are not normalised.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.patches import choose_patches, cut_into_patches
from pipeline.models.vit import Block, VisionTransformer
from pipeline.runs.recipe import ModelSettings

Array = NDArray[np.floating[Any]]

ATTENTION_COLUMNS = ["layer", "head", "distance_px"]
NUM_FILTERS = 28  # as in figure 7 of the paper


@dataclass(frozen=True)
class AttentionMaps:
    """Three measures of what the model looked at, each [B, g, g], and what it said, [B, K].

    Attributes:
        last_layer: the weights of the last layer, the mean of its heads.
        rollout: the weights of all layers, followed from the last to the first.
        gradient_rollout: the same with only the weights that speak for the logit.
    """

    last_layer: Tensor
    rollout: Tensor
    gradient_rollout: Tensor
    logits: Tensor


@contextmanager
def observe_attention(model: nn.Module, on_weights: Callable[[Tensor], None]) -> Iterator[None]:
    """Calls `on_weights` with A_BhTT of each of a model's `blocks` that is computed, in evaluation mode.

    Weights that nobody keeps are freed before the next layer. The model is left as it was.
    """
    attentions = [block.attn for block in _blocks(model)]
    kinds = [attention.kind for attention in attentions]
    handles = [
        attention.softmax.register_forward_hook(lambda _module, _inputs, A_BhTT: on_weights(A_BhTT))
        for attention in attentions
    ]
    try:
        for attention in attentions:
            attention.kind = "explicit"  # the fused kernel never has the weights
        with _evaluating(model):
            yield
    finally:
        for attention, kind, handle in zip(attentions, kinds, handles, strict=True):
            attention.kind = kind
            handle.remove()


def find_maps(model: VisionTransformer, images_BCHW: Tensor, *, output: int = 0) -> AttentionMaps:
    """Returns the maps of each image, the gradient's for the logit number `output`.

    Goes through the layers from the last to the first and computes each of them again from its input, so that
    the weights of one layer at a time are in memory.
    """
    *inputs, x_BTD = _find_inputs(model, images_BCHW)
    places_Bk = find_places(model, images_BCHW)
    seen_BT = _find_seen_tokens(model, len(images_BCHW)).to(x_BTD)
    weights: list[Tensor] = []
    with observe_attention(model, weights.append), torch.enable_grad():
        x_BTD.requires_grad_()
        logits_BK = model.head(model.pre_logits(model.pool(model.norm(x_BTD))))
        (gradient_BTD,) = torch.autograd.grad(logits_BK[:, output].sum(), x_BTD)
        last_layer_BT, rollout_BT, gradient_rollout_BT = None, seen_BT, seen_BT
        for block in reversed(_blocks(model)):
            x_BTD = inputs.pop().requires_grad_()
            y_BTD = block(x_BTD)
            A_BhTT = weights.pop()
            dA_BhTT, gradient_BTD = torch.autograd.grad(y_BTD, [A_BhTT, x_BTD], gradient_BTD)
            A_BhTT = A_BhTT.detach()
            if last_layer_BT is None:
                last_layer_BT = _follow(seen_BT, A_BhTT.mean(dim=1))
            rollout_BT = step_rollout(rollout_BT, A_BhTT)
            gradient_rollout_BT = step_gradient_rollout(gradient_rollout_BT, A_BhTT, dA_BhTT)
    assert last_layer_BT is not None  # a model has at least one layer

    def to_grid(row_BT: Tensor) -> Tensor:
        return _to_grid(row_BT, places_Bk, model.settings.grid_size)

    return AttentionMaps(
        to_grid(last_layer_BT), to_grid(rollout_BT), to_grid(gradient_rollout_BT), logits_BK.detach()
    )


def step_rollout(row_BT: Tensor, A_BhTT: Tensor) -> Tensor:
    """Returns a row of the rollout, followed one layer further towards the image.

    A row of the product of all layers needs no product of matrices, if it begins at the last layer.
    """
    return 0.5 * _follow(row_BT, A_BhTT.mean(dim=1)) + 0.5 * row_BT  # Abnar and Zuidema 2020, section 3


def step_gradient_rollout(row_BT: Tensor, A_BhTT: Tensor, dA_BhTT: Tensor) -> Tensor:
    """Returns a row of the gradient-weighted rollout, followed one layer further towards the image.

    `dA_BhTT` is the gradient of a logit by the weights `A_BhTT`.
    """
    relevant_BTT = (dA_BhTT * A_BhTT).clamp(min=0).mean(dim=1)  # Chefer et al. 2021, arXiv:2103.15679, eq. 5
    return row_BT + _follow(row_BT, relevant_BTT)  # eq. 6


def measure_attention(model: VisionTransformer, images_BCHW: Tensor) -> pd.DataFrame:
    """Returns the mean attention distance of each head: layer and head from 1, distance_px.

    One image is in the model at a time; the images may lie elsewhere than the model.
    """
    distances: list[Tensor] = []
    device = model.head.weight.device
    for image_CHW in images_BCHW:
        image_1CHW = image_CHW.unsqueeze(0).to(device)
        places_1k = find_places(model, image_1CHW)
        distance_1kk = find_patch_distances(places_1k, model.settings)

        def on_weights(A_1hTT: Tensor, distance_1kk: Tensor = distance_1kk) -> None:
            distances.append(find_distances(A_1hTT, distance_1kk))

        with observe_attention(model, on_weights), torch.no_grad():
            model(image_1CHW)
    num_heads = model.settings.num_heads
    mean_Lh = torch.stack(distances).view(len(images_BCHW), -1, num_heads).mean(dim=0).cpu()
    rows = [
        (layer, head, round(float(distance_px), 3))
        for layer, heads in enumerate(mean_Lh, start=1)
        for head, distance_px in enumerate(heads, start=1)
    ]
    return pd.DataFrame(rows, columns=ATTENTION_COLUMNS)


def find_places(model: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """Returns the places of the patches that the model keeps of each image, [B, k], in reading order."""
    settings = model.settings
    pixels_BPn = cut_into_patches(images_BCHW, settings.patch_size)
    return choose_patches(pixels_BPn, settings.num_tokens - settings.num_prefix_tokens)


def find_patch_distances(places_Bk: Tensor, settings: ModelSettings) -> Tensor:
    """Returns the distance of each two of these patches, in pixels, [B, k, k]."""
    distance_PP = _distances(settings.grid_size).to(places_Bk.device) * settings.patch_size
    return distance_PP[places_Bk.unsqueeze(2), places_Bk.unsqueeze(1)]


def find_distances(A_BhTT: Tensor, distance_Bkk: Tensor) -> Tensor:
    """Returns each head's mean distance in pixels between a patch and what it attends to (section 4.5).

    Weighted by the attention among patches; mean over patches and images.
    """
    k = distance_Bkk.shape[-1]
    patches_Bhkk = A_BhTT[:, :, -k:, -k:]
    shares_Bhkk = patches_Bhkk / patches_Bhkk.sum(dim=-1, keepdim=True)
    return (shares_Bhkk * distance_Bkk.to(A_BhTT).unsqueeze(1)).sum(dim=-1).mean(dim=(0, 2))


def find_even_distance(grid_size: int, patch_size: int) -> float:
    """Returns the distance of a head that attends to all patches evenly, in pixels."""
    return float(_distances(grid_size).mean()) * patch_size


def find_position_similarity(model: VisionTransformer) -> Array:
    """Returns the cosine of each two patches' position embeddings, [g, g, g, g] (figure 7, centre)."""
    with torch.no_grad():
        positions_PD = model.pos_embed[0, model.settings.num_prefix_tokens :].double()
        positions_PD = nn.functional.normalize(positions_PD, dim=-1)
        cosines_PP = positions_PD @ positions_PD.T
    return cosines_PP.cpu().numpy().reshape(4 * [model.settings.grid_size])


def find_patch_filters(model: VisionTransformer) -> Array:
    """Returns the first principal components of the patch embedding's filters, [N, C, p, p] (figure 7, left).

    Each has the length 1; its largest value is positive, as the sign means nothing.
    """
    filters_DCpp = model.patch_embed.proj.weight.detach().double().cpu().numpy()
    filters = filters_DCpp.reshape(len(filters_DCpp), -1)
    components = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)[2]
    components = components[: min(NUM_FILTERS, len(filters) - 1)]
    peaks = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return (components * np.sign(peaks)).reshape(-1, *filters_DCpp.shape[1:])


def _blocks(model: nn.Module) -> list[Block]:
    assert isinstance(model.blocks, nn.ModuleList)
    return [block for block in model.blocks if isinstance(block, Block)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Turns off dropout, stochastic depth and gradient checkpointing."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


@torch.no_grad()
def _find_inputs(model: VisionTransformer, images_BCHW: Tensor) -> list[Tensor]:
    """Returns what each layer takes, and what the last one gives: L + 1 times x_BTD."""
    inputs: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
        for module in (*model.blocks, model.norm)
    ]
    try:
        with _evaluating(model):
            model(images_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def _find_seen_tokens(model: VisionTransformer, num_images: int) -> Tensor:
    """Returns the share of each token in what the head sees, [B, T]."""
    seen_T = torch.zeros(model.num_tokens)
    if model.settings.pool == "cls":
        seen_T[0] = 1.0
    else:
        num_prefix = model.settings.num_prefix_tokens
        seen_T[num_prefix:] = 1.0 / (model.num_tokens - num_prefix)
    return seen_T.expand(num_images, -1)


def _follow(row_BT: Tensor, A_BTT: Tensor) -> Tensor:
    """Returns the row times the matrix of its image."""
    return torch.einsum("bt,bts->bs", row_BT, A_BTT)


def _to_grid(row_BT: Tensor, places_Bk: Tensor, grid_size: int) -> Tensor:
    """Returns the patches' part of a row as [B, g, g], 0 where a patch was not kept."""
    kept_Bk = row_BT[:, -places_Bk.shape[1] :]
    patches_BP = row_BT.new_zeros(len(row_BT), grid_size**2).scatter(1, places_Bk, kept_Bk)
    return patches_BP.reshape(-1, grid_size, grid_size)


def _distances(grid_size: int) -> Tensor:
    """Returns the distance of each two patches of a square grid, in patches, [P, P]."""
    side = torch.arange(grid_size, dtype=torch.float64)
    places_P2 = torch.cartesian_prod(side, side)
    return torch.cdist(places_P2, places_P2)
