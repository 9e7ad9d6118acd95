"""The Vision Transformer of "An Image is Worth 16x16 Words" (Dosovitskiy et al. 2021, arXiv:2010.11929).

Equations are cited on their lines. Module and parameter names are timm's, so that weights travel both ways.
Knows no files, no labels and no medical images.

Shape suffixes: B images, C channels, H and W pixels, P patches, k kept patches, T tokens ([CLS], registers,
k patches), D width, h heads of width d, K outputs.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.models.patches import choose_patches, cut_into_patches
from pipeline.runs.recipe import ModelSettings

LAYER_NORM_EPS = 1e-6  # the paper's code and timm use 1e-6, not torch's 1e-5

VARIANTS: dict[str, dict[str, int]] = {  # table 1; Ti and S are DeiT's (Touvron et al. 2021)
    "Ti/16": {"patch_size": 16, "width": 192, "depth": 12, "num_heads": 3},
    "S/16": {"patch_size": 16, "width": 384, "depth": 12, "num_heads": 6},
    "B/16": {"patch_size": 16, "width": 768, "depth": 12, "num_heads": 12},
    "L/16": {"patch_size": 16, "width": 1024, "depth": 24, "num_heads": 16},
    "H/14": {"patch_size": 14, "width": 1280, "depth": 32, "num_heads": 16},
}


def make_variant(variant: str, **changes: Any) -> "VisionTransformer":
    """Returns a model of a published size, such as "B/16", with other settings changed.

    What is not changed is as for mammograms: 512 px, one channel, one logit. 14-pixel patches need an
    `image_size` that they divide.

    Raises:
        ValueError: if there is no such variant, or the changed settings do not fit together.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} must be one of {', '.join(VARIANTS)}")
    return VisionTransformer(ModelSettings(**{**VARIANTS[variant], **changes}))


class PatchEmbed(nn.Module):
    """Cuts an image into square patches and projects each one to a vector: x_p E in eq. 1."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            settings.in_channels, settings.width, kernel_size=settings.patch_size, stride=settings.patch_size
        )
        self.image_shape = (settings.in_channels, settings.image_size, settings.image_size)
        self.num_kept = settings.num_tokens - settings.num_prefix_tokens
        self.keeps_all = self.num_kept == settings.grid_size**2

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns x_BkD, patches in reading order, and their places as `choose_patches` does; None for all.

        Raises:
            ValueError: if the images have another size or another number of channels.
        """
        if images_BCHW.shape[1:] != self.image_shape:
            raise ValueError(f"images are {tuple(images_BCHW.shape[1:])}, the model takes {self.image_shape}")
        if self.keeps_all:
            return self.proj(images_BCHW).flatten(2).transpose(1, 2), None
        pixels_BPn = cut_into_patches(images_BCHW, self.proj.kernel_size[0])
        places_Bk = choose_patches(pixels_BPn, self.num_kept)
        kept_Bkn = pixels_BPn.gather(1, places_Bk.unsqueeze(-1).expand(-1, -1, pixels_BPn.shape[-1]))
        return F.linear(kept_Bkn, self.proj.weight.flatten(1), self.proj.bias), places_Bk


class Attention(nn.Module):
    """Multi-head self-attention, MSA in the paper (appendix A)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.num_heads = settings.num_heads
        self.kind = settings.attention
        self.qkv = nn.Linear(settings.width, 3 * settings.width, bias=settings.qkv_bias)

        def make_norm() -> nn.Module:
            width = settings.width // settings.num_heads
            return nn.LayerNorm(width, eps=LAYER_NORM_EPS) if settings.qk_norm else nn.Identity()

        self.q_norm, self.k_norm = make_norm(), make_norm()
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(settings.width, settings.width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTD: Tensor, is_key_BT: Tensor | None = None) -> Tensor:
        """Returns the tokens mixed with one another, [B, T, D]; those that are no key are seen by none."""
        B, T, D = x_BTD.shape
        qkv_3BhTd = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        q_BhTd, k_BhTd, v_BhTd = qkv_3BhTd.unbind(0)  # eq. 5, all heads in parallel
        # Dehghani et al. 2023, arXiv:2302.05442; autocast computes a LayerNorm in float32.
        q_BhTd, k_BhTd = self.q_norm(q_BhTd).to(v_BhTd.dtype), self.k_norm(k_BhTd).to(v_BhTd.dtype)
        mask_B11T = None if is_key_BT is None else is_key_BT[:, None, None]
        if self.kind == "explicit" or (self.kind == "auto" and is_bf16_on_cpu(q_BhTd)):
            scale = (D // self.num_heads) ** -0.5
            scores_BhTT = (q_BhTd * scale) @ k_BhTd.transpose(-2, -1)
            if mask_B11T is not None:
                scores_BhTT = scores_BhTT.masked_fill(~mask_B11T, -math.inf)
            A_BhTT = self.softmax(scores_BhTT)  # eq. 6
            heads_BhTd = A_BhTT @ v_BhTd  # eq. 7
        else:  # eq. 6 and 7 in one kernel
            heads_BhTd = F.scaled_dot_product_attention(q_BhTd, k_BhTd, v_BhTd, attn_mask=mask_B11T)
        concatenated_BTD = heads_BhTd.transpose(1, 2).reshape(B, T, D)
        return self.dropout(self.proj(concatenated_BTD))  # eq. 8


def is_bf16_on_cpu(x: Tensor) -> bool:
    """Whether two matrix products are faster here than torch's fused kernel (measured: 1.3 times)."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.fc1 = nn.Linear(settings.width, int(settings.width * settings.mlp_ratio))
        self.fc2 = nn.Linear(int(settings.width * settings.mlp_ratio), settings.width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns each token transformed by itself, [B, T, D]."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x_BTD)))))


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int, first_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), first_value))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns [B, T, D]."""
        return x_BTD * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): leaves branches out of some training images."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns zeros for images drawn with probability `share`; the others grow to keep the mean."""
        if not self.training or not self.share:
            return x_BTD
        kept_B11 = torch.empty(len(x_BTD), 1, 1, device=x_BTD.device).bernoulli_(1 - self.share)
        return x_BTD * (kept_B11 / (1 - self.share)).to(x_BTD.dtype)


class Block(nn.Module):
    """One encoder layer: attention, then MLP, each behind a LayerNorm and beside a residual."""

    def __init__(self, settings: ModelSettings, *, drop_path: float) -> None:
        super().__init__()

        def make_scale() -> nn.Module:
            return LayerScale(settings.width, settings.layer_scale) if settings.layer_scale else nn.Identity()

        self.norm1 = nn.LayerNorm(settings.width, eps=LAYER_NORM_EPS)
        self.attn = Attention(settings)
        self.ls1 = make_scale()
        self.norm2 = nn.LayerNorm(settings.width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(settings)
        self.ls2 = make_scale()
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BTD: Tensor, is_key_BT: Tensor | None = None) -> Tensor:
        """Returns [B, T, D]; `Attention` says what a key is."""
        x_BTD = x_BTD + self.drop_path(self.ls1(self.attn(self.norm1(x_BTD), is_key_BT)))  # eq. 2
        return x_BTD + self.drop_path(self.ls2(self.mlp(self.norm2(x_BTD))))  # eq. 3


class VisionTransformer(nn.Module):
    """Images to logits: patches and a class token through the encoder's layers, and a head.

    `pipeline.runs.recipe.ModelSettings` says what each setting means.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.patch_embed = PatchEmbed(settings)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, settings.width))
        num_prefix, num_registers = settings.num_prefix_tokens, settings.register_tokens
        registers_1RD = torch.zeros(1, num_registers, settings.width)
        self.reg_token = nn.Parameter(registers_1RD) if num_registers else None
        if settings.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, num_prefix + settings.grid_size**2, settings.width))
        else:
            waves_1PD = make_sincos2d(settings.grid_size, settings.width).unsqueeze(0)
            self.register_buffer("pos_embed", F.pad(waves_1PD, (0, 0, num_prefix, 0)), persistent=False)
        self.pos_drop = nn.Dropout(settings.dropout)
        shares = [settings.drop_path * layer / max(1, settings.depth - 1) for layer in range(settings.depth)]
        self.blocks = nn.ModuleList(Block(settings, drop_path=share) for share in shares)
        last_norm = nn.LayerNorm(settings.width, eps=LAYER_NORM_EPS)
        self.norm = last_norm if settings.pool == "cls" else nn.Identity()
        self.fc_norm = last_norm if settings.pool == "gap" else nn.Identity()
        self.pre_logits = nn.Sequential()  # empty: passes everything on
        if settings.head == "mlp":
            self.pre_logits.add_module("fc", nn.Linear(settings.width, settings.width))
            self.pre_logits.add_module("act", nn.Tanh())
        self.head = nn.Linear(settings.width, settings.num_classes)
        self.init_weights()

    @property
    def num_tokens(self) -> int:
        """Class token, registers and patches: 1,025 for 512 px, 16x16 patches, all kept, and no registers."""
        return self.settings.num_tokens

    def init_weights(self) -> None:
        """Draws linear layers and positions from truncated normals of 0.02, by torch's global stream.

        Their biases and the head start at zero; the patch embedding keeps torch's start of a convolution.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.settings.pos_embed == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)
        nn.init.zeros_(self.head.weight)  # every image starts with the same logit

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Returns x_BTD, all tokens after the last layer, and with pool "cls" its LayerNorm."""
        patches_BkD, places_Bk = self.patch_embed(images_BCHW)
        return self.norm(self.run_blocks(self.add_tokens(patches_BkD, places_Bk)))

    def add_tokens(self, patches_BkD: Tensor, places_Bk: Tensor | None) -> Tensor:
        """Returns x_BTD, what the layers take: [CLS], registers and these patches, with their positions."""
        learned = [token for token in (self.cls_token, self.reg_token) if token is not None]
        prefix = [token_1nD.expand(patches_BkD.shape[0], -1, -1) for token_1nD in learned]
        x_BTD = torch.cat([*prefix, patches_BkD], dim=1)
        return self.pos_drop(x_BTD + self._find_positions(places_Bk))  # eq. 1

    def run_blocks(self, x_BTD: Tensor, is_key_BT: Tensor | None = None) -> Tensor:
        """Returns the tokens after the last layer, without its LayerNorm; `Attention` says what a key is."""
        for block in self.blocks:
            if self.settings.gradient_checkpointing and self.training:
                x_BTD = checkpoint(block, x_BTD, is_key_BT, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, is_key_BT)
        return x_BTD

    def _find_positions(self, places_Bk: Tensor | None) -> Tensor:
        """Returns the position embeddings of the tokens before the patches and of these, [B or 1, T, D]."""
        if places_Bk is None:
            return self.pos_embed
        num_prefix = self.settings.num_prefix_tokens
        prefix_n = torch.arange(num_prefix, device=places_Bk.device)
        prefix_Bn = prefix_n.expand(places_Bk.shape[0], -1)
        tokens_BT = torch.cat([prefix_Bn, places_Bk + num_prefix], dim=1)
        return F.embedding(tokens_BT, self.pos_embed[0])

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns logits_BK for images_BCHW; no sigmoid or softmax inside."""
        return self.classify(self.pool(self.forward_features(images_BCHW)))

    def classify(self, y_BD: Tensor) -> Tensor:
        """Returns the head's logits_BK of one vector per image."""
        y_BD = self.pre_logits(y_BD)
        with torch.autocast(y_BD.device.type, enabled=False):  # a bf16 logit has 8 bits: many would tie
            return self.head(y_BD.to(self.head.weight.dtype))

    def pool(self, x_BTD: Tensor) -> Tensor:
        """Returns one vector per image, y_BD."""
        if self.settings.pool == "cls":
            return x_BTD[:, 0]  # eq. 4, with the LayerNorm of `forward_features`
        return self.fc_norm(x_BTD[:, self.settings.num_prefix_tokens :].mean(dim=1))


def make_sincos2d(grid_size: int, width: int) -> Tensor:
    """Returns fixed position embeddings, [P, D] (Beyer et al. 2022, arXiv:2205.01580, section 2).

    A quarter of the channels each: sine and cosine of the column, sine and cosine of the row, at wavelengths
    from 2 pi to 20,000 pi patches. On the CPU, also where a model is made without values (device "meta").
    """
    exponents = torch.arange(width // 4, device="cpu") / max(1, width // 4 - 1)
    frequencies = 10_000.0**-exponents
    angles = torch.arange(grid_size, device="cpu")[:, None] * frequencies
    rows, columns = angles.repeat_interleave(grid_size, dim=0), angles.repeat(grid_size, 1)
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
