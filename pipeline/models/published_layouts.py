"""How published Vision Transformers lie in their files, and the way from there to the layout of `vit`.

Knows timm's files, and those of DINOv2 and MAE as their authors publish them. What `vit` does not compute is
refused with the reason; what it has no use for is named. Reads no files.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_TOKEN, REGISTERS, POSITIONS = "cls_token", "reg_token", "pos_embed"
CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")
"""DINOv2 trains its layers in chunks: blocks.<chunk>.<layer>."""
ROTARY = r"(^|[._])rope|^storage_tokens$"
OTHER_NAMES = {"register_tokens": REGISTERS}  # DINOv2's own
WITHOUT_USE = {
    r"mask_token$": "stands for hidden patches, of which there are none here",
    r"decoder_": "the decoder of a masked autoencoder",
}

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Arranged:
    """Weights in the layout of `vit`.

    Attributes:
        tensors: by our names.
        notes: by our names, what is told of those that lie otherwise in the file.
        left_out: by the file's names, why a tensor has no use here.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def arrange(found: Mapping[str, Tensor]) -> Arranged:
    """Brings the tensors of an encoder into the layout of `vit`: names, class token, registers, positions.

    Raises:
        ValueError: if they are of a model that computes something else; says what.
    """
    require_computable({name: tensor.shape for name, tensor in found.items()})
    arranged = Arranged()
    for name, tensor in found.items():
        reason = next((why for pattern, why in WITHOUT_USE.items() if re.match(pattern, name)), "")
        ours = rename(name)
        if reason:
            arranged.left_out[name] = reason
            continue
        if ours in arranged.tensors:
            raise ValueError(f"two of its tensors are {ours}, one of them as {name}")
        arranged.tensors[ours] = tensor
        if ours != name:
            arranged.notes[ours] = f"{name} in the file"
    _take_register_for_class_token(arranged)
    _spread_positions(arranged)
    return arranged


def rename(name: str) -> str:
    """Returns what `vit` calls a tensor."""
    return OTHER_NAMES.get(name) or CHUNKED.sub(r"blocks.\1.", name)


def require_computable(shapes: Shapes) -> None:
    """Refuses models of which `vit` would compute something else with the same weights.

    Raises:
        ValueError: naming the tensor that tells, what it does, and what to take instead.
    """
    relative = next((name for name in shapes if "relative_position" in name), None)
    if relative is not None:
        raise ValueError(
            f"its layers know relative positions (as BEiT's; {relative} tells), and this model adds learned "
            "ones to the patches: start from DINOv2, MAE or a supervised ViT"
        )
    rotary = next((name for name in shapes if re.search(ROTARY, name)), None)
    if rotary is None and POSITIONS not in shapes:  # timm's DINOv3 has no tensor for its rotations
        rotary = next((name for name in shapes if re.search(r"\.gamma_1$", name)), None)
    if rotary is not None:
        raise ValueError(
            f"it turns queries and keys by rotary positions (RoPE, as DINOv3; {rotary} tells), and this "
            "model adds learned ones to the patches: start from DINOv2, MAE or a supervised ViT"
        )
    if (gated := _find_gated_mlp(shapes)) is not None:
        raise ValueError(
            f"its MLPs are gated (SwiGLU, as in DINOv2's giant; {gated} tells), and this model's are not: "
            "start from a smaller one, such as DINOv2's ViT-L"
        )
    if "norm_pre.weight" in shapes:
        raise ValueError(
            "it normalises the tokens before the first layer (norm_pre.weight, as in CLIP), and this model "
            "does not: start from DINOv2, MAE or a supervised ViT"
        )


def _find_gated_mlp(shapes: Shapes) -> str | None:
    """Returns a tensor of an MLP whose hidden layer is half as wide as what makes it; None without one."""
    for name, shape in shapes.items():
        if re.search(r"\.mlp\.(w12|w3|fc1_g)\.", name):
            return name
        hidden = shapes.get(name.replace(".fc1.", ".fc2."), shape)
        is_matrix = len(shape) == len(hidden) == 2
        if name.endswith(".mlp.fc1.weight") and is_matrix and shape[0] == 2 * hidden[1]:
            return name
    return None


def _take_register_for_class_token(arranged: Arranged) -> None:
    """Lets the first register stand where a model without a class token has none; all it computes stays."""
    tensors = arranged.tensors
    if CLASS_TOKEN in tensors or REGISTERS not in tensors or tensors[REGISTERS].ndim != 3:
        return
    registers_1RD = tensors.pop(REGISTERS)
    tensors[CLASS_TOKEN] = registers_1RD[:, :1]
    arranged.notes[CLASS_TOKEN] = f"the first of {REGISTERS} in the file, which has no class token"
    if registers_1RD.shape[1] > 1:
        tensors[REGISTERS] = registers_1RD[:, 1:]
        arranged.notes[REGISTERS] = "all but the first"


def _spread_positions(arranged: Arranged) -> None:
    """Gives tokens before the patches that have no position one of zeros, which adds nothing."""
    tensors = arranged.tensors
    positions_1TD = tensors.get(POSITIONS)
    if positions_1TD is None or positions_1TD.ndim != 3:
        return
    num_positions, num_registers = positions_1TD.shape[1], count_registers(tensors)
    if _is_square(num_positions - 1 - num_registers):
        return
    if _is_square(num_positions - 1):  # DINOv2 puts the registers in after adding the positions
        class_token, patches = positions_1TD[:, :1], positions_1TD[:, 1:]
        tensors[POSITIONS] = torch.cat([class_token, F.pad(patches, (0, 0, num_registers, 0))], dim=1)
        arranged.notes[POSITIONS] = "0 for the registers"
    elif _is_square(num_positions):
        tensors[POSITIONS] = F.pad(positions_1TD, (0, 0, 1 + num_registers, 0))
        arranged.notes[POSITIONS] = "0 for the class token" + (" and the registers" if num_registers else "")


def count_registers(tensors: Mapping[str, Tensor]) -> int:
    """Returns how many registers tensors in our layout have."""
    registers = tensors.get(REGISTERS)
    return registers.shape[1] if registers is not None and registers.ndim == 3 else 0


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
