"""Pretrained weights, read from timm or from a file."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_prep.errors import UserError
from data_prep.storage.files import open_input, parse_json, require_input
from pipeline.models.breast_transformer import FUSION, WITHIN
from pipeline.models.normalization import MEAN, STD
from pipeline.models.torch_file import UnreadableWeights, load_tensors
from pipeline.models.vit import LAYER_NORM_EPS
from pipeline.models.weights_file import WEIGHTS_ENTRY
from pipeline.runs.ancestry import TIMM
from pipeline.runtime.torchvision_compat import allow_torchvision_import

allow_torchvision_import()

import timm  # noqa: E402  after the line above
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.models.vision_transformer import Block as TimmBlock  # noqa: E402
from timm.models.vision_transformer import VisionTransformer as TimmTransformer  # noqa: E402

MODULES = ("vision_transformer", "deit")  # of timm, with plain Vision Transformers
ROTARY = ("dinov3", "_rope_")  # in the names of other models of timm's
WEIGHTS_SUFFIXES = (".safetensors", ".pth")
CHECKPOINT_KEYS = ("state_dict", "model")
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What stands in a name for DataParallel, torch.compile, FSDP and activation checkpointing."""
MAX_NAME_SHOWN = 40  # characters

Tensors = dict[str, Tensor]
Named = TypeVar("Named")


class Normalization(NamedTuple):
    """What images have gone through before a model: (x - mean) / std per channel, x from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


OURS = Normalization((MEAN,) * 3, (STD,) * 3)
NORMALIZATIONS = {
    "mammo": OURS,
    "half": Normalization((0.5,) * 3, (0.5,) * 3),
    "imagenet": Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}


@dataclass(frozen=True)
class TensorOutcome:
    """What became of one tensor: loaded, resized, converted, left out or new."""

    tensor: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights as they were found.

    Attributes:
        name: for messages.
        tensors: by timm's names.
        normalization: of the images that they were trained on.
        num_heads: attention heads per layer; None where the weights do not tell.
        logit_shift: what is added to the head's logits, which mammo's own weights tell; else None.
    """

    name: str
    tensors: Tensors
    normalization: Normalization
    num_heads: int | None = None
    logit_shift: float | None = None


def read_pretrained(init: str, normalization: str) -> PretrainedWeights:
    """Returns the weights that `train.init` names.

    Args:
        init: "timm:" and the name of a model, or the path of a `.safetensors` or `.pth` file.
        normalization: one of `NORMALIZATIONS`, for files that do not say how their images were normalised.

    Raises:
        UserError: if they cannot be had.
    """
    if init.startswith(TIMM):
        return read_timm(init.removeprefix(TIMM))
    return read_file(Path(init), NORMALIZATIONS[normalization])


def read_timm(name: str) -> PretrainedWeights:
    """Returns the weights of one of timm's pretrained Vision Transformers.

    Raises:
        UserError: if timm has no such model or cannot fetch it, or it is another kind of model.
    """
    _require_timms(name)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # else a missing network is told twelve times before it is told once
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub names no set of errors
        raise UserError(
            f"the weights of timm's {name} cannot be fetched ({type(error).__name__}): without a network, "
            "download its model.safetensors elsewhere and set train.init to that file"
        ) from error
    finally:
        hub.setLevel(level)
    _require_plain(model, name)
    normalization = Normalization(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    return PretrainedWeights(
        f"timm's {name}", model.state_dict(), normalization, model.blocks[0].attn.num_heads
    )


def _require_timms(name: str) -> None:
    """Makes sure that timm has such a Vision Transformer, without asking the network."""
    tagged = [model for module in MODULES for model in timm.list_models(module=module, pretrained=True)]
    known = {*tagged, *(model.split(".")[0] for model in tagged)}
    if name in known:
        return
    if any(part in name for part in ROTARY) and timm.is_model(name):
        raise UserError(
            f"timm's {name} turns queries and keys by rotary positions (RoPE), and this model adds learned "
            "ones to the patches: choose DINOv2, MAE or a supervised ViT for train.init"
        )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"timm has no pretrained Vision Transformer {name!r}{hint}")


def _require_plain(model: nn.Module, name: str) -> None:
    """Refuses models that compute something else with tensors of the same names."""
    if not isinstance(model, TimmTransformer) or not _is_plain(model.blocks[0]):
        raise UserError(
            f"timm's {name} is not a plain Vision Transformer with GELU: choose another train.init"
        )


def _is_plain(block: nn.Module) -> bool:
    if type(block) is not TimmBlock:
        return False
    activation, norm = getattr(block.mlp, "act", None), block.norm1
    has_gelu = isinstance(activation, nn.GELU) and activation.approximate == "none"
    return has_gelu and isinstance(norm, nn.LayerNorm) and norm.eps == LAYER_NORM_EPS


def read_shapes(init: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that `train.init` names, without their values where that is faster.

    Empty where a file is missing, of which `read_pretrained` tells, as of all else that is wrong with it.

    Raises:
        UserError: if timm has no such model, or a `.pth` file cannot be read.
    """
    if init.startswith(TIMM):
        name = init.removeprefix(TIMM)
        _require_timms(name)
        with torch.device("meta"):  # its architecture alone: no memory, no network
            tensors = timm.create_model(name, pretrained=False).state_dict()
        return {each: tuple(tensor.shape) for each, tensor in tensors.items()}
    path = Path(init)
    if not path.is_file():
        return {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(require_input(path), framework="pt") as file:
                shapes = {each: tuple(file.get_slice(each).get_shape()) for each in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return {}
        return name_encoder({strip_wrapper(each): shape for each, shape in shapes.items()})
    tensors = read_file(path, OURS).tensors
    return {each: tuple(tensor.shape) for each, tensor in tensors.items()}


def read_file(path: Path, normalization: Normalization) -> PretrainedWeights:
    """Returns the weights in a file; one that mammo wrote says itself what it is.

    Raises:
        UserError: if the file is missing, of another kind, or holds no weights.
    """
    if not path.is_file() or path.suffix not in WEIGHTS_SUFFIXES:
        raise UserError(
            f"train.init {path} is not a file of weights: name a {' or '.join(WEIGHTS_SUFFIXES)} file, or "
            "timm:<model>"
        )
    try:
        if path.suffix == ".pth":
            with open_input(path) as stream:
                tensors = strip_wrappers(_unwrap(load_tensors(stream)))
            return PretrainedWeights(str(path), tensors, normalization)
        with safe_open(require_input(path), framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load_file(require_input(path))
        if WEIGHTS_ENTRY not in metadata:
            return PretrainedWeights(str(path), strip_wrappers(tensors), normalization)
        about = parse_json(metadata[WEIGHTS_ENTRY].encode())
        tensors = name_encoder(tensors)
        return PretrainedWeights(str(path), tensors, OURS, about["num_heads"], float(about["logit_shift"]))
    except UserError:
        raise
    except Exception as error:  # torch.load names no set of errors for damaged and unsafe files
        why = str(error) if isinstance(error, UnreadableWeights) else type(error).__name__
        raise UserError(
            f"train.init {path} holds no weights that can be read safely ({why}): "
            "name a .safetensors file, or a .pth file of tensors alone"
        ) from error


def name_encoder(tensors: dict[str, Named]) -> dict[str, Named]:
    """Returns the same with the names that the encoder of a model of whole breasts has alone."""
    if not any(name.startswith(FUSION) for name in tensors):
        return tensors
    return {name.removeprefix(WITHIN): each for name, each in tensors.items()}


def _unwrap(content: Any) -> Tensors:
    """Returns the tensors of a checkpoint, which many trainers keep under a key.

    Raises:
        UnreadableWeights: if there are none; says what is there instead.
    """
    if not isinstance(content, dict):
        raise UnreadableWeights(f"it holds a {type(content).__name__}, not tensors by name")
    if "average" in content:
        raise UserError("train.init is a checkpoint of mammo's: name the model.safetensors beside it")
    for key in CHECKPOINT_KEYS:
        content = content[key] if isinstance(content.get(key), dict) else content
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise UnreadableWeights(
            f"its entry {others[0][:MAX_NAME_SHOWN]} is no tensor; tensors are looked for at the top and "
            f"under {' and '.join(CHECKPOINT_KEYS)}"
        )
    return {str(name): tensor for name, tensor in content.items()}


def strip_wrapper(name: str) -> str:
    """Returns a name without what torch's wrappers add to it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def strip_wrappers(tensors: Tensors) -> Tensors:
    """Returns the tensors without what torch's wrappers add to their names, at any place in them.

    Raises:
        UnreadableWeights: if two tensors then have one name.
    """
    names = {name: strip_wrapper(name) for name in tensors}
    if len(set(names.values())) < len(names):
        raise UnreadableWeights("two of its tensors have one name without module. and _orig_mod.")
    return {names[name]: tensor for name, tensor in tensors.items()}
