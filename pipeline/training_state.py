"""All that changes during a training. Knows no task and no order of steps."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.optim import Average
from pipeline.vit import VisionTransformer


@dataclass
class State:
    """All that changes during a training, and so all that a checkpoint holds."""

    model: VisionTransformer
    average: Average
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    loss_sum: float = 0.0  # over them
    history: list[dict[str, float]] = field(default_factory=list)
    throughput: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)  # value and weights of the best epoch

    def to_checkpoint(self) -> Checkpoint:
        """Returns what `restore` needs; no random state, since each step draws from a seed of its own."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "counters": {"epoch": self.epoch, "batch": self.batch, "loss_sum": self.loss_sum},
            "history": self.history,
            "throughput": self.throughput,
            "best": self.best,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to the moment of a checkpoint."""
        self.model.load_state_dict(checkpoint["model"])
        self.average.module.load_state_dict(checkpoint["average"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        counters = checkpoint["counters"]
        self.epoch, self.batch, self.loss_sum = counters["epoch"], counters["batch"], counters["loss_sum"]
        self.history, self.throughput = checkpoint["history"], checkpoint["throughput"]
        self.best = checkpoint["best"]

    def keep_if_best(self, value: float) -> None:
        """Keeps the averaged weights if no epoch before had a higher value; NaN never is the best."""
        if value > self.best.get("value", -math.inf):
            weights = {name: tensor.clone() for name, tensor in self.average.module.state_dict().items()}
            self.best = {"value": value, "weights": weights}
