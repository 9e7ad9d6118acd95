"""First weights from elsewhere: fits them to a model.

What does not fit is an error that names the setting to change; whatever is resized, converted or left out
stands in a table.
"""

import math
import re

import pandas as pd
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models.breast_transformer import FUSION
from pipeline.models.normalization import MEAN, STD
from pipeline.models.pretrained import (
    OURS,
    Normalization,
    PretrainedWeights,
    TensorOutcome,
    Tensors,
    read_pretrained,
)
from pipeline.models.published_layouts import CLASS_TOKEN, POSITIONS, Arranged, arrange, count_registers
from pipeline.models.start_fusion import start_fusion
from pipeline.models.vit import VisionTransformer
from pipeline.runtime.torchvision_compat import allow_torchvision_import

allow_torchvision_import()

from timm.layers import resample_abs_pos_embed, resample_patch_embed  # noqa: E402  after the line above

KERNEL, BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
Q_NORM = "blocks.0.attn.q_norm.weight"
HEAD = ("head.", "pre_logits.")
SETTINGS_OF = {  # which setting gives a model these tensors, or takes them away
    r"blocks\.\d+\.ls[12]\.gamma": "layer_scale",
    r"blocks\.\d+\.attn\.qkv\.bias": "qkv_bias",
    r"blocks\.\d+\.attn\.[qk]_norm\.": "qk_norm",
    r"blocks\.\d+\.mlp\..*": "mlp_ratio",
    r"pos_embed": "pos_embed",
    r"\breg_[a-z]+": "register_tokens",
}

MAX_PROBLEMS_SHOWN = 5


def load_initial_weights(
    model: VisionTransformer,
    init: str,
    normalization: str,
    *,
    logit_shift: float | None = None,
    fusion: nn.Module | None = None,
) -> pd.DataFrame:
    """Starts a model from weights of elsewhere.

    Args:
        model: whose weights are replaced.
        init: "timm:" and the name of a model, or the path of a `.safetensors` or `.pth` file.
        normalization: "half" or "imagenet", for files that do not say how their images were normalised.
        logit_shift: what the new training adds to logits; the head is then kept, and its bias moved by the
            difference to what the old one added, so that probabilities stay. None: the head is left out.
        fusion: the layers over a breast's images, where the whole model has some.

    Returns:
        One row per tensor: tensor, outcome (loaded, resized, converted, left out, new), detail.

    Raises:
        UserError: if the weights cannot be had, or do not fit the model.
    """
    source = read_pretrained(init, normalization)
    try:
        rows = pd.DataFrame(fit_weights(model, source, logit_shift=logit_shift))
    except ValueError as error:
        raise UserError(f"{source.name} cannot start this model: {error}") from error
    above = start_fusion(fusion, source, logit_shift)
    return pd.concat([rows, pd.DataFrame(above)], ignore_index=True) if above else rows


def fit_weights(
    model: VisionTransformer, source: PretrainedWeights, *, logit_shift: float | None = None
) -> list[TensorOutcome]:
    """Loads a source's weights into a model, resized and converted where need be; see `load_initial_weights`.

    Raises:
        ValueError: if a tensor would be lost, or one is missing; all reasons at once.
    """
    settings = model.settings
    found = {name: tensor for name, tensor in source.tensors.items() if not name.startswith((*HEAD, FUSION))}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(HEAD)}
    arranged = arrange(found)
    if CLASS_TOKEN in arranged.tensors and CLASS_TOKEN not in found and settings.pool == "cls":
        raise ValueError('it was trained without a class token: set model.pool to "gap"')
    fitted = rename_last_norm(arranged.tensors, wanted)
    _require_fit(model, fitted, set(wanted), source.num_heads)
    _require_sound(fitted)
    fitted = {name: tensor.float() for name, tensor in fitted.items()}
    if POSITIONS in fitted:
        fitted[POSITIONS] = resize_positions(
            fitted[POSITIONS], settings.grid_size, num_registers=count_registers(fitted)
        )
    kernel = resample_patch_embed(fitted[KERNEL], [settings.patch_size, settings.patch_size])
    fitted[KERNEL], fitted[BIAS] = convert_channels(
        kernel, fitted[BIAS], source.normalization, settings.in_channels
    )
    _require_shapes(fitted, wanted)
    model.load_state_dict(fitted, strict=False)  # all but the head: the names were compared above
    rows = [_describe(name, fitted[name], arranged, source) for name in fitted]
    rows += [TensorOutcome(name, "left out", why) for name, why in arranged.left_out.items()]
    if logit_shift is not None:
        return rows + keep_head(model, source, logit_shift)
    rows += [TensorOutcome(name, "left out", "head") for name in source.tensors if name.startswith(HEAD)]
    return rows + [TensorOutcome(name, "new", "head") for name in model.state_dict() if name.startswith(HEAD)]


def keep_head(model: VisionTransformer, source: PretrainedWeights, logit_shift: float) -> list[TensorOutcome]:
    """Loads the head; outputs beyond those of the source stay new.

    Raises:
        ValueError: if the source is not mammo's own, or its head has another shape.
    """
    if source.logit_shift is None:
        raise ValueError(
            "only mammo's own model.safetensors says what its head predicts (see train.keep_head)"
        )
    found = {name: tensor for name, tensor in source.tensors.items() if name.startswith(HEAD)}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(HEAD)}
    if set(found) != set(wanted):
        raise ValueError("its head has other layers (see model.head, or leave train.keep_head out)")
    moved = {**found, "head.bias": found["head.bias"] + (source.logit_shift - logit_shift)}
    for name, tensor in moved.items():
        place = wanted[name][: len(tensor)] if name.startswith("head.") else wanted[name]
        if place.shape != tensor.shape:
            raise ValueError(f"its {name} is {list(tensor.shape)}, the model's is {list(wanted[name].shape)}")
        place.copy_(tensor)  # a state dict shares its memory with the model
    return [TensorOutcome(name, "loaded", "head") for name in moved]


def rename_last_norm(found: Tensors, wanted: Tensors) -> Tensors:
    """Returns the tensors with the last LayerNorm under the name that the model's pooling gives it."""
    old, new = ("norm.", "fc_norm.") if "fc_norm.weight" in wanted else ("fc_norm.", "norm.")
    if f"{new}weight" in found:
        return dict(found)
    return {new + name.removeprefix(old) if name.startswith(old) else name: found[name] for name in found}


def resize_positions(positions_1TD: Tensor, grid_size: int, *, num_registers: int = 0) -> Tensor:
    """Returns position embeddings for another grid of patches, those of the tokens before as they were.

    Raises:
        ValueError: if they are not those of a class token, the registers and a square grid.
    """
    num_positions, num_prefix = positions_1TD.shape[1], 1 + num_registers
    if math.isqrt(max(0, num_positions - num_prefix)) ** 2 != num_positions - num_prefix:
        registers = f", {num_registers} registers" if num_registers else ""
        raise ValueError(
            f"its {num_positions} position embeddings are not a square grid and a class token{registers}"
        )
    return resample_abs_pos_embed(positions_1TD, [grid_size, grid_size], num_prefix_tokens=num_prefix)


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
    if channels == 1 and len({*normalization.mean}) > 1:
        raise ValueError('its images are grey, so that train.init_normalization "imagenet" is not theirs')
    mean, std = (torch.tensor(values[:channels])[:, None, None] for values in normalization)
    bias = bias + (kernel * (MEAN - mean) / std).sum(dim=(1, 2, 3))
    kernel = kernel * STD / std
    return (kernel if channels == in_channels else kernel.sum(dim=1, keepdim=True)), bias


def _require_fit(model: VisionTransformer, found: Tensors, wanted: set[str], num_heads: int | None) -> None:
    """Compares depth, width, heads and names."""
    settings = model.settings
    layers = {int(match[1]) for name in found if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not layers:
        raise ValueError(_describe_names(found, wanted))
    theirs = {"depth": len(layers), "num_heads": num_heads or settings.num_heads}
    if BIAS in found:
        theirs["width"] = len(found[BIAS]) if found[BIAS].ndim else 0
    if num_heads is None and BIAS in found and Q_NORM in found and found[Q_NORM].numel():
        theirs["num_heads"] = theirs["width"] // found[Q_NORM].numel()  # it is as wide as a head
    problems = [
        f"its {name} is {value}, model.{name} is {getattr(settings, name)}"
        for name, value in theirs.items()
        if value != getattr(settings, name)
    ]
    if not problems:  # another depth explains all names
        extra, missing = sorted(set(found) - wanted), sorted(wanted - set(found))
        problems = [f"it has {_shorten(extra)}, for which the model has no place"] if extra else []
        problems += [f"it lacks {_shorten(missing)}"] if missing else []
    _raise_if_any(problems)


def _describe_names(found: Tensors, wanted: set[str]) -> str:
    """Says in what the names are not timm's: in a part before them, or altogether."""
    theirs = next((name for name in sorted(found) if re.search(r"encoder\.layer\.\d+\.", name)), None)
    if theirs is not None:
        return f"its tensors have Hugging Face's names, such as {theirs}: take timm's file of the same model"
    inner = next((name for name in sorted(found) if re.search(r"\.blocks\.\d+\.", name)), None)
    if inner is not None:
        prefix = inner[: inner.index(".blocks.") + 1]
        return f"its tensors do not have timm's names; the first is {inner}: save them without {prefix}"
    strange = min(set(found) - wanted, default=None)
    if strange is None:
        return "it holds no tensors of layers, which timm names blocks.0 and so on"
    return f"its tensors do not have timm's names; the first that timm does not know is {strange}"


def _require_sound(found: Tensors) -> None:
    """Checks what resizing and converting rely on."""
    problems = [
        f"its {name} holds values that are not finite floating-point numbers"
        for name, tensor in found.items()
        if not tensor.is_floating_point() or not tensor.isfinite().all()
    ]
    if found[KERNEL].ndim != 4 or found[KERNEL].shape[2] != found[KERNEL].shape[3]:
        problems.append(f"its {KERNEL} is {list(found[KERNEL].shape)}, no square kernels [D, C, p, p]")
    if POSITIONS in found and (found[POSITIONS].ndim != 3 or len(found[POSITIONS]) != 1):
        problems.append(f"its {POSITIONS} is {list(found[POSITIONS].shape)}, not [1, T, D]")
    _raise_if_any(problems, settings={})  # no setting mends a file


def _require_shapes(fitted: Tensors, wanted: Tensors) -> None:
    _raise_if_any(
        [
            f"its {name} is {list(fitted[name].shape)}, the model's is {list(wanted[name].shape)}"
            for name in fitted
            if fitted[name].shape != wanted[name].shape
        ]
    )


def _shorten(names: list[str]) -> str:
    """Names all tensors, those of the same place in several layers once."""
    places: dict[str, list[str]] = {}
    for name in names:
        places.setdefault(re.sub(r"\.\d+\.", ".N.", name), []).append(name)
    return ", ".join(
        each[0] + (f" (in {len(each)} layers)" if len(each) > 1 else "") for each in places.values()
    )


def _raise_if_any(problems: list[str], settings: dict[str, str] = SETTINGS_OF) -> None:
    """Raises the first problems, and the settings that could solve them."""
    if not problems:
        return
    known = {setting for pattern, setting in settings.items() if re.search(pattern, " ".join(problems))}
    shown = "; ".join(problems[:MAX_PROBLEMS_SHOWN])
    more = len(problems) - MAX_PROBLEMS_SHOWN
    advice = ", ".join(f"model.{name}" for name in sorted(known))
    raise ValueError(
        shown + (f"; and {more} more" if more > 0 else "") + (f" (see {advice})" if advice else "")
    )


def _describe(name: str, fitted: Tensor, arranged: Arranged, source: PretrainedWeights) -> TensorOutcome:
    """Returns the row of a tensor of the encoder."""
    found, note = arranged.tensors.get(name), arranged.notes.get(name, "")
    if found is None:
        return TensorOutcome(name, "loaded", "the last LayerNorm, under the name for model.pool")
    sizes = f"{list(found.shape)} to {list(fitted.shape)}"
    if name in (KERNEL, BIAS) and source.normalization != OURS:
        mean, std = source.normalization
        return TensorOutcome(name, "converted", f"{sizes}, from mean {mean}, std {std}")
    if fitted.shape != found.shape:
        return TensorOutcome(name, "resized", f"{sizes}, {note}" if note else sizes)
    return TensorOutcome(name, "loaded", note)
