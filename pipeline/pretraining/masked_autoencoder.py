"""The masked autoencoder of He et al. 2021, arXiv:2111.06377, and which patches it hides.

Its encoder is exactly the Vision Transformer of `vit`, and sees a share of the patches that show something;
a small decoder predicts the pixels of the others. Background is neither shown nor scored.

Shape suffixes are those of `vit`; besides, k slots hold an image's patches of largest contrast, those that
show something in an order drawn at random and then the empty ones; the first v of them can be visible; n
pixels are a patch. Shapes do not depend on how many patches of an image show something.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.patches import choose_patches, count_contrast, cut_into_patches
from pipeline.models.vit import LAYER_NORM_EPS, Block, VisionTransformer, make_sincos2d
from pipeline.runs.pretrain_settings import HEAD_WIDTH, PretrainSettings
from pipeline.runs.recipe import ModelSettings

VARIANCE_EPS = 1e-6  # as in the paper's code
FIXED_MASK_SEED = 0


class Patches(NamedTuple):
    """The patches of images, in the order of their slots.

    Attributes:
        pixels: [B, k, n].
        places: of each in the grid, in reading order, [B, k].
        is_visible: whether the encoder sees it, [B, k].
        is_hidden: whether the decoder predicts it, [B, k]; an empty patch is neither.
    """

    pixels: Tensor
    places: Tensor
    is_visible: Tensor
    is_hidden: Tensor


class Decoder(nn.Module):
    """Predicts the pixels of all slots from the tokens of the visible ones."""

    def __init__(self, model: ModelSettings, settings: PretrainSettings) -> None:
        super().__init__()
        width = settings.decoder_width
        changes = {"width": width, "num_heads": width // HEAD_WIDTH, "dropout": 0.0, "layer_scale": 0.0}
        layers = model.model_copy(update=changes)
        self.embed = nn.Linear(model.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        waves_PW = make_sincos2d(model.grid_size, width)
        self.positions: Tensor
        self.register_buffer("positions", F.pad(waves_PW, (0, 0, 1, 0)), persistent=False)
        self.blocks = nn.ModuleList(Block(layers, drop_path=0.0) for _ in range(settings.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(width, model.in_channels * model.patch_size**2)

    def forward(self, x_BTD: Tensor, patches: Patches) -> Tensor:
        """Returns the predicted pixels of each slot, [B, k, n], normalised as `normalise_patches` does.

        Args:
            x_BTD: what the encoder makes of [CLS] and of the first v slots.
            patches: of which the visible ones are known by `x_BTD`.
        """
        y_BTW = self.embed(x_BTD)
        num_slots = patches.places.shape[1]
        known_BkW = F.pad(y_BTW[:, 1:], (0, 0, 0, num_slots - (y_BTW.shape[1] - 1)))
        slots_BkW = torch.where(patches.is_visible[..., None], known_BkW, self.mask_token.to(y_BTW))
        y_BTW = torch.cat([y_BTW[:, :1], slots_BkW], dim=1)
        y_BTW = y_BTW + F.embedding(F.pad(patches.places + 1, (1, 0)), self.positions)
        is_key_BT = F.pad(patches.is_visible | patches.is_hidden, (1, 0), value=True)
        for block in self.blocks:
            y_BTW = block(y_BTW, is_key_BT)
        return self.pred(self.norm(y_BTW[:, 1:]))


class MaskedAutoencoder(nn.Module):
    """Images to their losses: the encoder sees a part of each, the decoder predicts the rest.

    In training the visible patches are drawn by torch's global stream. In evaluation mode they follow from
    the places of an image's patches, the same ones each time.
    """

    def __init__(self, model: ModelSettings, settings: PretrainSettings) -> None:
        super().__init__()
        self.encoder = VisionTransformer(model)
        self.decoder = Decoder(model, settings)
        self.visible = settings.visible
        self.num_slots = model.num_tokens - model.num_prefix_tokens
        self.num_visible = int(count_visible(torch.tensor(self.num_slots), settings.visible))
        self.patch_size = model.patch_size
        fixed = torch.Generator(device="cpu").manual_seed(FIXED_MASK_SEED)
        noise_P = torch.rand(model.grid_size**2, generator=fixed, device="cpu")
        self.fixed_noise: Tensor
        self.register_buffer("fixed_noise", noise_P, persistent=False)
        self.init_decoder()

    def init_decoder(self) -> None:
        """Draws the decoder as `VisionTransformer.init_weights` draws the encoder."""
        for module in self.decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns each image's loss, [B, 1]: the mean over its hidden patches, 0 where it has none."""
        patches = self.choose(images_BCHW)
        predicted_Bkn = self.decoder(self.encode(patches, self.num_visible), patches)
        return score(predicted_Bkn, patches)[:, None]

    def choose(self, images_BCHW: Tensor, *, all_visible: bool = False) -> Patches:
        """Returns the patches of images, and which of them are visible."""
        pixels_BPn = cut_into_patches(images_BCHW, self.patch_size)
        places_Bk = choose_patches(pixels_BPn, self.num_slots)
        has_content_Bk = count_contrast(pixels_BPn).gather(1, places_Bk) > 0
        noise_Bk = torch.rand(places_Bk.shape, device=places_Bk.device) if self.training else None
        noise_Bk = self.fixed_noise[places_Bk] if noise_Bk is None else noise_Bk
        order_Bk = torch.where(has_content_Bk, noise_Bk, torch.inf).argsort(dim=1)
        places_Bk, has_content_Bk = places_Bk.gather(1, order_Bk), has_content_Bk.gather(1, order_Bk)
        num_shown_B1 = has_content_Bk.sum(dim=1, keepdim=True)
        num_visible_B1 = num_shown_B1 if all_visible else count_visible(num_shown_B1, self.visible)
        is_first_Bk = torch.arange(self.num_slots, device=places_Bk.device) < num_visible_B1
        pixels_Bkn = pixels_BPn.gather(1, places_Bk[..., None].expand(-1, -1, pixels_BPn.shape[2]))
        return Patches(pixels_Bkn, places_Bk, is_first_Bk, has_content_Bk & ~is_first_Bk)

    def encode(self, patches: Patches, num_visible: int) -> Tensor:
        """Returns the tokens of [CLS] and of the first v slots after the last LayerNorm, [B, v + 1, D].

        Those of slots that are not visible mean nothing, and no other token depends on them.
        """
        encoder, is_visible_Bv = self.encoder, patches.is_visible[:, :num_visible]
        pixels_Bvn = patches.pixels[:, :num_visible] * is_visible_Bv[..., None]
        kernel = encoder.patch_embed.proj
        x_BvD = F.linear(pixels_Bvn, kernel.weight.flatten(1), kernel.bias)
        num_prefix = encoder.settings.num_prefix_tokens
        x_BTD = encoder.add_tokens(x_BvD, patches.places[:, :num_visible])
        x_BTD = encoder.run_blocks(x_BTD, F.pad(is_visible_Bv, (num_prefix, 0), value=True))
        x_BTD = encoder.fc_norm(encoder.norm(x_BTD))  # one of them is the identity
        return torch.cat([x_BTD[:, :1], x_BTD[:, num_prefix:]], dim=1)  # registers tell the decoder nothing

    def describe(self, images_BCHW: Tensor) -> Tensor:
        """Returns the mean vector of each image's patches with content, none of them hidden, [B, D]."""
        patches = self.choose(images_BCHW, all_visible=True)
        x_BkD = self.encode(patches, self.num_slots)[:, 1:] * patches.is_visible[..., None]
        return x_BkD.sum(dim=1) / patches.is_visible.sum(dim=1, keepdim=True).clamp(min=1)


def count_visible(num_shown: Tensor, visible: float) -> Tensor:
    """Returns how many of so many patches are visible: the share, but one at least and never all."""
    return (num_shown * visible).round().long().clamp(min=1).minimum(num_shown - 1).clamp(min=0)


def normalise_patches(pixels_Bkn: Tensor) -> Tensor:
    """Returns each patch's pixels with mean 0 and deviation 1 (section 3, reconstruction target)."""
    centred_Bkn = pixels_Bkn - pixels_Bkn.mean(dim=-1, keepdim=True)
    return centred_Bkn / (centred_Bkn.square().mean(dim=-1, keepdim=True) + VARIANCE_EPS).sqrt()


def score(predicted_Bkn: Tensor, patches: Patches) -> Tensor:
    """Returns each image's loss, [B], in the pixels' own precision; autocast has no part in it."""
    with torch.autocast(predicted_Bkn.device.type, enabled=False):
        errors_Bkn = predicted_Bkn.to(patches.pixels.dtype) - normalise_patches(patches.pixels)
        errors_Bk = errors_Bkn.square().mean(dim=-1) * patches.is_hidden
        return errors_Bk.sum(dim=1) / patches.is_hidden.sum(dim=1).clamp(min=1)
