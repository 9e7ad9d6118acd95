"""Where a model computes and how precisely: device, dtype, autocast."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from data_prep.errors import UserError
from pipeline.runs.recipe import Precision


@dataclass(frozen=True)
class ComputeSettings:
    """Where and how precisely a model computes."""

    device: str
    precision: Precision

    @classmethod
    def choose(cls, device: str, precision: Precision) -> "ComputeSettings":
        """Takes what is wanted where this machine has it, else the nearest.

        Raises:
            UserError: if a GPU is asked for by name and there is none.
        """
        device = choose_device(device)
        return cls(device, choose_precision(precision, device))


DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str) -> str:
    """Returns "cuda" or "cpu" for "auto", by whether there is a GPU; other names as they are.

    Raises:
        UserError: if a GPU is asked for and torch finds none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if has_gpu else "cpu"
    if wanted == "cuda" and not has_gpu:
        raise UserError('train.device is "cuda", but torch finds no GPU here: set it to "auto" or "cpu"')
    return wanted


def choose_precision(wanted: Precision, device: str) -> Precision:
    """Returns the nearest precision that the hardware has, by its capability and never by timing.

    A GPU without bf16 (such as a T4) takes fp16; a CPU without bf16 instructions takes float32, as
    does every CPU asked for fp16.
    """
    if device == "cuda":
        lacks_bf16 = wanted == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "fp16" if lacks_bf16 else wanted
    has_bf16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_tile"))
    return "bf16" if wanted == "bf16" and has_bf16 else "float32"


def autocast(precision: Precision, device: str) -> AbstractContextManager[None]:
    """Returns the context in which the forward pass runs; float32 changes nothing."""
    return torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "float32")
