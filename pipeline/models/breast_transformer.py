"""A breast judged by all its images: the Vision Transformer of `vit` for each, and two layers above.

The encoder sees a flat list of the images that are there, so that an absent view costs nothing and is no zero
image. For each breast the two layers see a token of its own, [BREAST], and of each of its images the vector
that the image's head sees and the patches of largest contrast, with embeddings for view and side. Their order
makes no difference, and an empty slot is seen by nothing.

Contrast chooses the patches, not attention: it is a matter of pixels alone, so that no rounding of the
encoder decides which patches these are.

Shape suffixes are those of `vit`; besides, N images, B breasts with V slots for an image each, M tokens of an
image (1 + the chosen patches).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.patches import choose_patches, cut_into_patches
from pipeline.models.vit import LAYER_NORM_EPS, Block, VisionTransformer
from pipeline.runs.recipe import ModelSettings

NUM_VIEWS = 3
"""CC-like, MLO-like and other."""
OWN, OTHER_BREAST = 0, 1
NUM_LAYERS = 2
EMPTY = -1
WITHIN = "encoder."
"""Before the names of the Vision Transformer's tensors."""
FUSION = "fusion."
"""Before the names of all others."""
FUSION_TOKENS = tuple(f"{FUSION}{name}" for name in ("breast_token", "view_embed", "side_embed"))


class Places(NamedTuple):
    """Which images each breast of a batch is judged by, all [B, V].

    Attributes:
        images: the image's place in the flat list; `EMPTY` where the slot is.
        views: 0 CC-like, 1 MLO-like, 2 other.
        sides: `OWN`, or `OTHER_BREAST` for an image of the woman's other breast.
    """

    images: Tensor
    views: Tensor
    sides: Tensor

    @property
    def is_filled(self) -> Tensor:
        """Whether a slot holds an image, [B, V]."""
        return self.images != EMPTY

    @property
    def is_own(self) -> Tensor:
        """Whether a slot holds an image of the breast itself, [B, V]; one at least does."""
        return self.is_filled & (self.sides == OWN)

    def gather(self, values_N: Tensor) -> Tensor:
        """Returns the value of each slot's image, [B, V, ...]; that of an empty slot means nothing."""
        return values_N[self.images.clamp(min=0)]

    def spread(self, values_B: Tensor, num_images: int) -> Tensor:
        """Returns for each image the value of the breast that it is of, [N]; NaN if no breast owns it."""
        is_own_BV = self.is_own
        values_BV = values_B[:, None].expand(is_own_BV.shape)
        spread_N = values_B.new_full((num_images,), torch.nan)
        spread_N[self.images[is_own_BV]] = values_BV[is_own_BV]
        return spread_N


@dataclass(frozen=True)
class BreastInputs:
    """What the model takes: images_NCHW, as many as it has, and which breasts they are of."""

    images: Tensor
    places: Places

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str, *, non_blocking: bool = False) -> "BreastInputs":
        """Returns the same on a device."""
        images, *places = (part.to(device, non_blocking=non_blocking) for part in (self.images, *self.places))
        return BreastInputs(images, Places(*places))

    def flip(self, dimension: int) -> "BreastInputs":
        """Returns each image reversed along a dimension."""
        return BreastInputs(self.images.flip(dimension), self.places)


@dataclass(frozen=True)
class BreastLogits:
    """What the model says.

    Attributes:
        breasts: of each breast, [B].
        images: of each image by itself, by the encoder's head, [N, K].
        places: which images are of which breast.
    """

    breasts: Tensor
    images: Tensor
    places: Places

    @property
    def by_image(self) -> Tensor:
        """For each image that of the breast that it is of, and its own of cancer, [N, 2]."""
        return torch.stack([self.places.spread(self.breasts, len(self.images)), self.images[:, 0]], dim=1)

    def float(self) -> "BreastLogits":
        """Returns them in float32."""
        return BreastLogits(self.breasts.float(), self.images.float(), self.places)

    def double(self) -> "BreastLogits":
        """Returns them in float64."""
        return BreastLogits(self.breasts.double(), self.images.double(), self.places)


class Fusion(nn.Module):
    """The layers over a breast's images: tokens of each to one number per breast."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.sees_one_view = bool(settings.views_per_breast)  # and is not told which: it could tell the label
        self.breast_token = nn.Parameter(torch.zeros(1, 1, settings.width))
        self.view_embed = nn.Parameter(torch.zeros(NUM_VIEWS, settings.width))
        self.side_embed = nn.Parameter(torch.zeros(2, settings.width))
        self.blocks = nn.ModuleList(Block(settings, drop_path=0.0) for _ in range(NUM_LAYERS))
        self.norm = nn.LayerNorm(settings.width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(settings.width, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Draws as `VisionTransformer.init_weights` does; the head starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.breast_token, self.view_embed, self.side_embed):
            nn.init.trunc_normal_(embedding, std=0.02)
        nn.init.zeros_(self.head.weight)

    def forward(self, x_NMD: Tensor, places: Places) -> Tensor:
        """Returns each breast's logit, [B]."""
        views_BV = torch.zeros_like(places.views) if self.sees_one_view else places.views
        added_BVD = self.view_embed[views_BV] + self.side_embed[places.sides]
        x_BVMD = places.gather(x_NMD) + added_BVD[:, :, None]
        num_breasts, num_tokens = x_BVMD.shape[0], x_BVMD.shape[2]
        x_BTD = torch.cat([self.breast_token.expand(num_breasts, -1, -1), x_BVMD.flatten(1, 2)], dim=1)
        is_key_BT = F.pad(places.is_filled.repeat_interleave(num_tokens, dim=1), (1, 0), value=True)
        for block in self.blocks:
            x_BTD = block(x_BTD, is_key_BT)
        y_BD = self.norm(x_BTD[:, 0])
        with torch.autocast(y_BD.device.type, enabled=False):  # as the encoder's head
            return self.head(y_BD.to(self.head.weight.dtype))[:, 0]


class BreastTransformer(nn.Module):
    """Images and their places to a logit per breast, and one per image by the encoder's head."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = VisionTransformer(settings)
        self.fusion = Fusion(settings)

    def forward(self, inputs: BreastInputs) -> BreastLogits:
        """Returns logits; no sigmoid inside."""
        images_NCHW, places = inputs.images, inputs.places
        x_NTD = self.encoder.forward_features(images_NCHW)
        y_ND = self.encoder.pool(x_NTD)
        images_NK = self.encoder.classify(y_ND)
        breasts_B = self.fusion(self.pick_tokens(images_NCHW, x_NTD, y_ND), places)
        return BreastLogits(breasts_B, images_NK, places)

    def pick_tokens(self, images_NCHW: Tensor, x_NTD: Tensor, y_ND: Tensor) -> Tensor:
        """Returns what the fusion sees of each image: its vector, and its patches of largest contrast."""
        chosen_Nk = self.choose_tokens(images_NCHW) + self.settings.num_prefix_tokens
        patches_NkD = x_NTD.gather(1, chosen_Nk[..., None].expand(-1, -1, x_NTD.shape[2]))
        return torch.cat([y_ND[:, None], self.encoder.fc_norm(patches_NkD)], dim=1)

    def choose_tokens(self, images_NCHW: Tensor) -> Tensor:
        """Returns where the patches of largest contrast lie among those that the encoder sees, [N, k]."""
        pixels_NPn = cut_into_patches(images_NCHW, self.settings.patch_size)
        chosen_Nk = choose_patches(pixels_NPn, self.settings.fusion_patches)
        if self.encoder.patch_embed.keeps_all:
            return chosen_Nk
        kept_NP = choose_patches(pixels_NPn, self.encoder.patch_embed.num_kept)
        return (kept_NP[:, None] == chosen_Nk[..., None]).long().argmax(dim=2)  # each is among them


def average_own(values_N: Tensor, places: Places) -> Tensor:
    """Returns the mean over each breast's own images, [B]."""
    is_own_BV = places.is_own
    return torch.where(is_own_BV, places.gather(values_N), 0.0).sum(dim=1) / is_own_BV.sum(dim=1)


def make_model(settings: ModelSettings) -> VisionTransformer | BreastTransformer:
    """Returns the model of the settings, its weights drawn by torch's global stream."""
    return VisionTransformer(settings) if settings.fusion == "none" else BreastTransformer(settings)


def pick_encoder(model: nn.Module) -> VisionTransformer:
    """Returns the Vision Transformer that a model is, or has."""
    encoder = model.encoder if isinstance(model, BreastTransformer) else model
    assert isinstance(encoder, VisionTransformer)
    return encoder
