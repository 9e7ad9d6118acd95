"""The Vision Transformer of "An Image is Worth 16x16 Words" (Dosovitskiy et al. 2021, arXiv:2010.11929).

Equations are cited on their lines. Module and parameter names are timm's, so that weights travel both ways.
Knows no files, no labels and no medical images.

Shape suffixes: B images, C channels, H and W pixels, P patches, T tokens (P + 1), D width, h heads of
width d, K outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6  # the paper's code and timm use 1e-6, not torch's 1e-5


class PatchEmbed(nn.Module):
    """Cuts an image into square patches and projects each one to a vector."""

    def __init__(self, *, image_size: int, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)
        self.image_size = image_size
        self.num_patches = (image_size // patch_size) ** 2

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns x_BPD, patches in reading order.

        Raises:
            ValueError: if the images have another size or another number of channels.
        """
        expected = (self.proj.in_channels, self.image_size, self.image_size)
        if tuple(images_BCHW.shape[1:]) != expected:
            raise ValueError(f"images are {tuple(images_BCHW.shape[1:])}, the model takes {expected}")
        return self.proj(images_BCHW).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention, MSA in the paper (appendix A)."""

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the tokens mixed with one another, [B, T, D]."""
        B, T, D = x_BTD.shape
        qkv_3BhTd = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        q_BhTd, k_BhTd, v_BhTd = qkv_3BhTd.unbind(0)  # eq. 5
        heads_BhTd = F.scaled_dot_product_attention(q_BhTd, k_BhTd, v_BhTd)  # eq. 6 and 7
        return self.proj(heads_BhTd.transpose(1, 2).reshape(B, T, D))  # eq. 8


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, *, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns each token transformed by itself, [B, T, D]."""
        return self.fc2(F.gelu(self.fc1(x_BTD)))


class Block(nn.Module):
    """One encoder layer: attention, then MLP, each behind a LayerNorm and beside a residual."""

    def __init__(self, *, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width=width, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width=width, hidden_width=int(width * mlp_ratio))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns [B, T, D]."""
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))  # eq. 2
        return x_BTD + self.mlp(self.norm2(x_BTD))  # eq. 3


class VisionTransformer(nn.Module):
    """Images to logits: patches and a class token through `depth` encoder layers, a linear head on the token.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, or `num_heads` does not divide `width`.
    """

    def __init__(
        self,
        *,
        image_size: int = 512,
        patch_size: int = 16,
        in_channels: int = 1,
        num_classes: int = 1,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} must be a multiple of patch_size {patch_size}")
        if width % num_heads:
            raise ValueError(f"width {width} must be a multiple of num_heads {num_heads}")
        self.patch_embed = PatchEmbed(
            image_size=image_size, patch_size=patch_size, in_channels=in_channels, width=width
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, width))
        self.blocks = nn.ModuleList(
            Block(width=width, num_heads=num_heads, mlp_ratio=mlp_ratio) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(width, num_classes)
        self.init_weights()

    @property
    def num_tokens(self) -> int:
        """Patches and the class token: 1,025 for 512 px and 16x16 patches."""
        return self.pos_embed.shape[1]

    def init_weights(self) -> None:
        """Draws truncated normals of 0.02 from torch's global stream; biases and the head start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.zeros_(self.head.weight)  # every image starts with the same logit

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Returns all tokens after the last LayerNorm, x_BTD, the class token first."""
        patches_BPD = self.patch_embed(images_BCHW)
        cls_B1D = self.cls_token.expand(len(patches_BPD), -1, -1)
        x_BTD = torch.cat([cls_B1D, patches_BPD], dim=1) + self.pos_embed  # eq. 1
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns logits_BK for images_BCHW, float; no sigmoid inside."""
        y_BD = self.forward_features(images_BCHW)[:, 0]  # eq. 4
        return self.head(y_BD)
