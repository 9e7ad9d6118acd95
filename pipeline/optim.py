"""Optimizer, learning rate, averaged weights and arithmetic. Knows no data."""

import math
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
from torch import nn

from data_prep.errors import UserError
from pipeline.settings import Precision, TrainSettings
from pipeline.torchvision_compat import allow_torchvision_import

allow_torchvision_import()

from timm.optim import param_groups_weight_decay  # noqa: E402  after the line above
from timm.utils import ModelEmaV3  # noqa: E402

Average: TypeAlias = ModelEmaV3
"""The type of averaged weights, for modules that leave timm's import to this one."""

NO_DECAY = ("cls_token", "pos_embed")

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Returns AdamW; biases, norms, position and class tokens are not decayed."""
    groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=NO_DECAY)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def learning_rate_at(step: int, *, num_steps: int, warmup_steps: int, peak: float) -> float:
    """Returns the learning rate of a step: linear up to the peak, then along a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets one learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def make_average(model: nn.Module, settings: TrainSettings) -> Average:
    """Returns the exponential moving average of the weights; `update(model, step)` after each step.

    Its decay at step t is 1 - (1 + t)**(-2/3), up to `ema_decay`, so that a short run is not held by its
    first weights.
    """
    return ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True)


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
    """Returns the nearest arithmetic that the hardware has, by its capability and never by timing.

    A GPU without bf16 (Kaggle's T4 and P100) takes fp16; a CPU without bf16 instructions takes float32, as
    does every CPU asked for fp16.
    """
    if device == "cuda":
        lacks_bf16 = wanted == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "fp16" if lacks_bf16 else wanted
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    return "bf16" if wanted == "bf16" and has_bf16 else "float32"


def autocast(precision: Precision, device: str) -> AbstractContextManager[None]:
    """Returns the context in which the forward pass runs; float32 changes nothing."""
    return torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "float32")
