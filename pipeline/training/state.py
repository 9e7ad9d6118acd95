"""All that changes during a training, and how it begins or goes on: checkpoint, first weights, optimizer."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from data_prep.storage.atomic import write_csv
from pipeline.models.adapt_weights import load_initial_weights
from pipeline.models.breast_transformer import BreastTransformer
from pipeline.runs.recipe import TrainSettings
from pipeline.runs.run_folder import TrainingFolder
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.precision import ComputeSettings
from pipeline.runtime.progress import Reporter
from pipeline.training.checkpoint import Checkpoint, load_checkpoint
from pipeline.training.optim import Average, freeze, make_optimizer
from pipeline.training.task import Task


@dataclass
class TrainingState:
    """All that changes during a training, and so all that a checkpoint holds."""

    model: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    loss_sum: float = 0.0  # over them
    history: list[dict[str, float]] = field(default_factory=list)
    throughput: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)  # value and weights of the best epoch
    about: dict[str, Any] = field(default_factory=dict)  # the task's, as it was at the start

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
            "about": self.about,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to the moment of a checkpoint."""
        self.model.load_state_dict(checkpoint["model"])
        self.average.module.load_state_dict(checkpoint["average"])
        for saved, group in zip(
            checkpoint["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True
        ):
            if "fused" in group:  # whatever it was: the scaler of fp16 goes by how the optimizer was made
                saved["fused"] = group["fused"]
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        counters = checkpoint["counters"]
        self.epoch, self.batch, self.loss_sum = counters["epoch"], counters["batch"], counters["loss_sum"]
        self.history, self.throughput = checkpoint["history"], checkpoint["throughput"]
        self.best = checkpoint["best"]
        self.about = checkpoint.get("about", self.about)  # none of before has it

    def keep_if_best(self, value: float) -> None:
        """Keeps the averaged weights if no epoch before had a higher value; NaN never is the best."""
        if value > self.best.get("value", -math.inf):
            weights = {name: tensor.clone() for name, tensor in self.average.module.state_dict().items()}
            self.best = {"value": value, "weights": weights}


def load_state(
    task: Task,
    settings: TrainSettings,
    folder: TrainingFolder,
    compute: ComputeSettings,
    *,
    reporter: Reporter,
    group: ProcessGroup,
) -> TrainingState:
    """Returns the state of the newest checkpoint, or the first one.

    Raises:
        TrainingStopped: if there are checkpoints and none can be read.
        UserError: if the first weights cannot be used.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        torch.manual_seed(task.seed)
        model = _make_first_model(task, settings, folder, reporter, group)
        return _make_state(model, task, settings, compute)
    state = _make_state(task.make_model(), task, settings, compute)
    state.restore(checkpoint)
    reporter.say(f"{task.name}: goes on after epoch {state.epoch}, batch {state.batch}")
    return state


def _make_first_model(
    task: Task, settings: TrainSettings, folder: TrainingFolder, reporter: Reporter, group: ProcessGroup
) -> nn.Module:
    """Returns the model as it is before the first step; a training that goes on does not ask for it."""
    model = task.make_model()
    encoder = task.pick_encoder(model)
    if task.init:
        shift = task.logit_shift if settings.keep_head else None
        fusion = model.fusion if isinstance(model, BreastTransformer) else None
        how = settings.init_normalization
        rows = load_initial_weights(encoder, task.init, how, logit_shift=shift, fusion=fusion)
        if group.is_main:
            write_csv(folder.initial_weights, rows)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in rows["outcome"].value_counts().items())
        reporter.say(f"{task.name}: starts from {task.init}: tensors {counts}")
    if not settings.keep_head:
        with torch.no_grad():
            encoder.head.bias.copy_(torch.from_numpy(task.first_logits))
    return model


def _make_state(
    model: nn.Module, task: Task, settings: TrainSettings, compute: ComputeSettings
) -> TrainingState:
    model.to(compute.device)
    freeze(model, settings)
    return TrainingState(
        model,
        Average(model, settings.ema_decay),
        make_optimizer(model, settings),
        torch.amp.GradScaler(compute.device, enabled=compute.precision == "fp16"),
        about=dict(task.about),
    )
