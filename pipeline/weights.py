"""First weights from elsewhere: a model of timm, or a file. Knows no training and no labels.

What does not fit is an error that names the setting to change; whatever is resized, converted or left out
stands in a table.
"""

import difflib
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.dataset import MEAN, STD
from pipeline.torchvision_compat import allow_torchvision_import
from pipeline.vit import VisionTransformer

allow_torchvision_import()

import timm  # noqa: E402  after the line above
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.layers import resample_abs_pos_embed, resample_patch_embed  # noqa: E402
from timm.models.vision_transformer import VisionTransformer as TimmTransformer  # noqa: E402

TIMM = "timm:"
KERNEL, BIAS, POSITIONS = "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"
HEAD = ("head.", "pre_logits.")
SETTINGS_OF = {  # which setting gives a model these tensors, or takes them away
    r"blocks\.\d+\.ls[12]\.gamma": "layer_scale",
    r"blocks\.\d+\.attn\.qkv\.bias": "qkv_bias",
    r"blocks\.\d+\.mlp\..*": "mlp_ratio",
    r"pos_embed": "pos_embed",
}

MAX_PROBLEMS_SHOWN = 5

Tensors = dict[str, Tensor]


class Normalization(NamedTuple):
    """What images have gone through before a model: (x - mean) / std per channel, x from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


OURS = Normalization((MEAN,) * 3, (STD,) * 3)
NORMALIZATIONS = {
    "half": Normalization((0.5,) * 3, (0.5,) * 3),
    "imagenet": Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}


@dataclass(frozen=True)
class Source:
    """Weights as they were found.

    Attributes:
        name: for messages.
        tensors: by timm's names.
        normalization: of the images that they were trained on.
        num_heads: attention heads per layer; None where the weights do not tell.
    """

    name: str
    tensors: Tensors
    normalization: Normalization
    num_heads: int | None = None


@dataclass(frozen=True)
class Row:
    """What became of one tensor: loaded, resized, converted, left out or new."""

    tensor: str
    outcome: str
    detail: str = ""


def load_initial_weights(model: VisionTransformer, init: str, normalization: str) -> pd.DataFrame:
    """Starts a model from weights of elsewhere, all but its head.

    Args:
        model: whose weights are replaced.
        init: "timm:" and the name of a model, or the path of a `.safetensors` or `.pth` file.
        normalization: "half" or "imagenet", for files that do not say how their images were normalised.

    Returns:
        One row per tensor: tensor, outcome (loaded, resized, converted, left out, new), detail.

    Raises:
        UserError: if the weights cannot be had, or do not fit the model.
    """
    if init.startswith(TIMM):
        source = read_timm(init.removeprefix(TIMM))
    else:
        source = read_file(Path(init), NORMALIZATIONS[normalization])
    try:
        return pd.DataFrame(fit_weights(model, source))
    except ValueError as error:
        raise UserError(f"{source.name} cannot start this model: {error}") from error


def read_timm(name: str) -> Source:
    """Returns the weights of one of timm's pretrained Vision Transformers.

    Raises:
        UserError: if timm has no such model or cannot fetch it, or it is another kind of model.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("vit_*"), n=1)
        raise UserError(f"timm has no model {name}{f'; did you mean {near[0]}?' if near else ''}")
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # else a missing network is told twelve times before it is told once
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of timm's {name} cannot be fetched ({type(error).__name__}): without a network, "
            "download its model.safetensors elsewhere and set train.init to that file"
        ) from error
    finally:
        hub.setLevel(level)
    if not isinstance(model, TimmTransformer) or not _has_exact_gelu(model):
        raise UserError(f"timm's {name} is no plain Vision Transformer with GELU: choose another train.init")
    normalization = Normalization(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    return Source(f"timm's {name}", model.state_dict(), normalization, model.blocks[0].attn.num_heads)


def _has_exact_gelu(model: TimmTransformer) -> bool:
    activation = getattr(model.blocks[0].mlp, "act", None)
    return isinstance(activation, nn.GELU) and activation.approximate == "none"


def read_file(path: Path, normalization: Normalization) -> Source:
    """Returns the weights in a file; one that mammo wrote is known by its metadata.

    Raises:
        UserError: if the file is missing or holds no weights.
    """
    if not path.is_file():
        raise UserError(f"train.init {path} is no file: name a .safetensors or .pth file, or timm:<model>")
    try:
        if path.suffix != ".safetensors":
            return Source(str(path), _unwrap(torch.load(path, "cpu", weights_only=True)), normalization)
        with safe_open(path, framework="pt") as file:
            is_ours = "logit_shift" in (file.metadata() or {})
        return Source(str(path), safetensors.torch.load_file(path), OURS if is_ours else normalization)
    except Exception as error:  # torch.load names no set of errors for damaged and unsafe files
        raise UserError(
            f"train.init {path} holds no weights that can be read safely ({type(error).__name__}): "
            "name a .safetensors file, or a .pth file of tensors alone"
        ) from error


def _unwrap(content: dict[str, Any]) -> Tensors:
    """Returns the tensors of a checkpoint, which many trainers keep under a key and a prefix."""
    for key in ("state_dict", "model"):
        content = content.get(key, content)
    tensors = {name.removeprefix("module."): value for name, value in content.items()}
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise TypeError("not a dictionary of tensors")
    return tensors


def fit_weights(model: VisionTransformer, source: Source) -> list[Row]:
    """Loads a source's weights into a model, all but the head, resized and converted where need be.

    Raises:
        ValueError: if a tensor would be lost, or one is missing; all reasons at once.
    """
    settings = model.settings
    found = {name: tensor.float() for name, tensor in source.tensors.items() if not name.startswith(HEAD)}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(HEAD)}
    fitted = rename_last_norm(found, wanted)
    _require_fit(model, fitted, set(wanted), source.num_heads)
    if POSITIONS in fitted:
        fitted[POSITIONS] = resize_positions(fitted[POSITIONS], settings.grid_size)
    kernel = resample_patch_embed(fitted[KERNEL], [settings.patch_size, settings.patch_size])
    fitted[KERNEL], fitted[BIAS] = convert_channels(
        kernel, fitted[BIAS], source.normalization, settings.in_channels
    )
    _require_shapes(fitted, wanted)
    model.load_state_dict(fitted, strict=False)  # all but the head: the names were compared above
    rows = [_describe(name, fitted[name], found.get(name), source) for name in fitted]
    rows += [Row(name, "left out", "head") for name in source.tensors if name.startswith(HEAD)]
    return rows + [Row(name, "new", "head") for name in model.state_dict() if name.startswith(HEAD)]


def rename_last_norm(found: Tensors, wanted: Tensors) -> Tensors:
    """Returns the tensors with the last LayerNorm under the name that the model's pooling gives it."""
    old, new = ("norm.", "fc_norm.") if "fc_norm.weight" in wanted else ("fc_norm.", "norm.")
    return {new + name.removeprefix(old) if name.startswith(old) else name: found[name] for name in found}


def resize_positions(positions_1TD: Tensor, grid_size: int) -> Tensor:
    """Returns position embeddings for another grid of patches, the class token's as it was.

    Raises:
        ValueError: if they are not those of a square grid and a class token.
    """
    num_patches = positions_1TD.shape[1] - 1
    if math.isqrt(num_patches) ** 2 != num_patches:
        raise ValueError(f"its {num_patches + 1} position embeddings are no square grid and a class token")
    return resample_abs_pos_embed(positions_1TD, [grid_size, grid_size], num_prefix_tokens=1)


def convert_channels(
    kernel: Tensor, bias: Tensor, normalization: Normalization, in_channels: int
) -> tuple[Tensor, Tensor]:
    """Returns a patch embedding that gives our images the tokens that theirs had.

    They saw (x - mean) / std of a pixel x, per channel; we show (x - MEAN) / STD. So a weight w becomes
    w STD / std, and the bias grows by the sum of w (MEAN - mean) / std. For grey images the channels, which
    would be equal, are added up.

    Args:
        kernel: [D, C, patch, patch].
        bias: [D].
        normalization: what the kernel was trained on.
        in_channels: of our images.

    Raises:
        ValueError: if the kernel is for grey images and ours are not, or it has neither 1 nor 3 channels.
    """
    channels = kernel.shape[1]
    if channels not in (in_channels, 3):
        raise ValueError(f"its images have {channels} channels, model.in_channels is {in_channels}")
    mean, std = (torch.tensor(values[:channels])[:, None, None] for values in normalization)
    bias = bias + (kernel * (MEAN - mean) / std).sum(dim=(1, 2, 3))
    kernel = kernel * STD / std
    return (kernel if channels == in_channels else kernel.sum(dim=1, keepdim=True)), bias


def _require_fit(model: VisionTransformer, found: Tensors, wanted: set[str], num_heads: int | None) -> None:
    """Compares depth, width, heads and names."""
    settings = model.settings
    layers = {int(match[1]) for name in found if (match := re.match(r"blocks\.(\d+)\.", name))}
    theirs = {"depth": len(layers), "num_heads": num_heads or settings.num_heads}
    if "cls_token" in found:
        theirs["width"] = found["cls_token"].shape[-1]
    problems = [
        f"its {name} is {value}, model.{name} is {getattr(settings, name)}"
        for name, value in theirs.items()
        if value != getattr(settings, name)
    ]
    if not problems:  # another depth explains all names
        problems = [
            f"it has {name}, for which the model has no place" for name in sorted(set(found) - wanted)
        ]
        problems += [f"it lacks {name}" for name in sorted(wanted - set(found))]
    _raise_if_any(problems)


def _require_shapes(fitted: Tensors, wanted: Tensors) -> None:
    _raise_if_any(
        [
            f"its {name} is {list(fitted[name].shape)}, the model's is {list(wanted[name].shape)}"
            for name in fitted
            if fitted[name].shape != wanted[name].shape
        ]
    )


def _raise_if_any(problems: list[str]) -> None:
    """Raises the first problems, and the settings that could solve them."""
    if not problems:
        return
    known = {setting for pattern, setting in SETTINGS_OF.items() if re.search(pattern, " ".join(problems))}
    shown = "; ".join(problems[:MAX_PROBLEMS_SHOWN])
    more = len(problems) - MAX_PROBLEMS_SHOWN
    advice = ", ".join(f"model.{name}" for name in sorted(known))
    raise ValueError(
        shown + (f"; and {more} more" if more > 0 else "") + (f" (see {advice})" if advice else "")
    )


def _describe(name: str, fitted: Tensor, found: Tensor | None, source: Source) -> Row:
    """Returns the row of a tensor of the encoder."""
    if found is None:
        return Row(name, "loaded", "the last LayerNorm, under the name for model.pool")
    if name in (KERNEL, BIAS) and (fitted.shape != found.shape or source.normalization != OURS):
        mean, std = source.normalization
        return Row(
            name, "converted", f"{list(found.shape)} to {list(fitted.shape)}, from mean {mean}, std {std}"
        )
    if fitted.shape != found.shape:
        return Row(name, "resized", f"{list(found.shape)} to {list(fitted.shape)}")
    return Row(name, "loaded")
