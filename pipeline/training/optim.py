"""Optimizer, frozen layers, learning rate and averaged weights."""

import math
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.breast_transformer import FUSION, FUSION_TOKENS, WITHIN
from pipeline.runs.recipe import TrainSettings
from pipeline.runtime.torchvision_compat import allow_torchvision_import

allow_torchvision_import()

from timm.optim import create_optimizer_v2  # noqa: E402  after the line above

FUSED = {"adamw", "sgd"}
TOKENS = ("cls_token", "reg_token", "pos_embed")
EMBEDDING = ("patch_embed.", *TOKENS)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Returns the optimizer of the settings over all parameters that are to be trained.

    Fused where torch has it: one kernel for all tensors, which also skips a step that overflowed in fp16
    without asking the host.
    """
    options = {"fused": True} if settings.optimizer in FUSED else {}
    return create_optimizer_v2(
        group_parameters(model, settings),
        settings.optimizer,
        lr=settings.learning_rate,
        momentum=0.9,
        **options,
    )


def group_parameters(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Returns parameters that share decay and learning rate; frozen ones are left out.

    Biases, norms, positions, class token and registers are not decayed. A layer's learning rate is `lr_scale`
    times the model's: `layer_decay` to the power of the layers above it (Clark et al. 2020,
    arXiv:2003.10555). What is no matrix inside the encoder is left to Muon's AdamW.
    """
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    parameters = name_parameters(model)
    top = find_top(parameters)
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        is_decayed = parameter.ndim > 1 and name not in TOKENS + FUSION_TOKENS
        scale = settings.layer_decay ** (top - find_layer(name, top))
        is_matrix = is_decayed and name.startswith("blocks.")
        group = groups.setdefault(
            (scale, is_decayed, is_matrix),
            {
                "params": [],
                "weight_decay": settings.weight_decay if is_decayed else 0.0,
                "lr_scale": scale,
                "use_fallback": not is_matrix,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def name_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns all parameters, those of a Vision Transformer within the model by the names it has alone."""
    return {name.removeprefix(WITHIN): parameter for name, parameter in model.named_parameters()}


def find_top(names: Iterable[str]) -> int:
    """Returns the number of the layer above the encoder's, which is the head's."""
    return 1 + len({name.split(".")[1] for name in names if name.startswith("blocks.")})


def find_layer(name: str, top: int) -> int:
    """Returns 0 for a parameter of the embedding, 1 and up for the encoder's layers, `top` for the head."""
    if name.startswith(EMBEDDING):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else top


def freeze(model: nn.Module, settings: TrainSettings) -> None:
    """Makes parameters constant: the embedding and the first layers, or all but the head."""
    parameters = name_parameters(model)
    top = find_top(parameters)
    for name, parameter in parameters.items():
        if settings.linear_probe:
            parameter.requires_grad = name.startswith(("head.", "pre_logits.", FUSION))
        else:
            is_frozen = settings.frozen_layers and find_layer(name, top) <= settings.frozen_layers
            parameter.requires_grad = not is_frozen


def learning_rate_at(step: int, *, num_steps: int, warmup_steps: int, peak: float) -> float:
    """Returns the learning rate of a step: linear up to the peak, then along a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate; layers take their scale of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


class Average:
    """The exponential moving average of a model's weights, which predicts.

    Its decay is 0 at steps 0 and 1 and 1 - t**(-2/3) at step t, up to `decay`, so that a short run is not
    held by its first weights: timm's ModelEmaV3 with its warm-up, to the last bit. Lists that are made once
    and one kernel for all tensors leave the host next to nothing to do.

    Attributes:
        module: the model with the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = deepcopy(model).eval().requires_grad_(requires_grad=False)
        self._decay = decay
        self._averages: list[Tensor] = list(self.module.parameters())
        self._weights: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the model's weights after step `step`, from 0."""
        decay = min(1.0 - step ** (-2 / 3), self._decay) if step > 1 else 0.0
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)  # torch has no public name for it
