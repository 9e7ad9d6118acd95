"""The training of one model: a plain loop that can be stopped anywhere and goes on from its checkpoint.

Knows nothing of labels, losses and metrics: a `Task` does. Knows nothing of reports.
"""

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from data_prep.errors import TrainingStopped
from data_prep.files import write_csv
from pipeline.attention import measure_attention
from pipeline.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_weights
from pipeline.dataset import Batch, load_batches, to_tensor
from pipeline.interrupt import StopRequest
from pipeline.losses import Mixing
from pipeline.optim import (
    autocast,
    freeze,
    learning_rate_at,
    make_average,
    make_optimizer,
    set_learning_rate,
)
from pipeline.predict import Arithmetic
from pipeline.progress import Reporter
from pipeline.run import TrainingFolder
from pipeline.sampler import Rows, split_batch
from pipeline.settings import Recipe
from pipeline.task import Task
from pipeline.throughput import Meter
from pipeline.training_state import State
from pipeline.vit import VisionTransformer
from pipeline.weights import load_initial_weights

SECONDS_BETWEEN_SAVES = 300.0
NUM_IMAGES_OBSERVED = 16


class StepTime(NamedTuple):
    """What a step costs: seconds, images, and the most memory so far."""

    seconds: float
    num_images: float
    memory_mb: float


class Trainer:
    """Trains the model of a task and predicts the task's held-out images.

    Raises:
        TrainingStopped: if there are checkpoints and none can be read.
    """

    def __init__(self, recipe: Recipe, task: Task, folder: TrainingFolder, *, reporter: Reporter) -> None:
        self.recipe = recipe
        self.settings = recipe.train
        self.task = task
        self.folder = folder
        self.reporter = reporter
        self.arithmetic = Arithmetic.choose(recipe.train.device, recipe.train.precision)
        self.batches_per_epoch = len(task.plan(0))
        checkpoint = load_checkpoint(folder)
        self.state = self._begin() if checkpoint is None else self._go_on(checkpoint)
        self.model = torch.compile(self.state.model) if self.settings.compile else self.state.model

    def _begin(self) -> State:
        torch.manual_seed(self.task.seed)
        return self._make_state(self._make_first_model())

    def _go_on(self, checkpoint: Checkpoint) -> State:
        state = self._make_state(VisionTransformer(self.task.model))
        state.restore(checkpoint)
        self.reporter.say(f"{self.task.name}: goes on after epoch {state.epoch}, batch {state.batch}")
        return state

    def _make_first_model(self) -> VisionTransformer:
        """Returns the model as it is before the first step; a training that goes on does not ask for it."""
        model = VisionTransformer(self.task.model)
        if self.task.init:
            rows = load_initial_weights(model, self.task.init, self.settings.init_normalization)
            write_csv(self.folder.initial_weights, rows)
            counts = ", ".join(
                f"{count} {outcome}" for outcome, count in rows["outcome"].value_counts().items()
            )
            self.reporter.say(f"{self.task.name}: starts from {self.task.init}: tensors {counts}")
        with torch.no_grad():
            model.head.bias.copy_(torch.from_numpy(self.task.first_logits))
        return model

    def _make_state(self, model: VisionTransformer) -> State:
        model.to(self.arithmetic.device)
        freeze(model, self.settings)
        return State(
            model,
            make_average(model, self.settings),
            make_optimizer(model, self.settings),
            torch.amp.GradScaler(self.arithmetic.device, enabled=self.arithmetic.precision == "fp16"),
        )

    def run(self, stop: StopRequest) -> None:
        """Trains from the newest checkpoint, or the start, to the end; the predictions are written last.

        Raises:
            Interrupted: if a stop was asked for; a checkpoint is saved.
            TrainingStopped: if loss or gradient is not finite; the last checkpoint is kept.
        """
        if not self.state.epoch and not self.state.batch:
            self._rehearse()
        predicted = None
        while self.state.epoch < self.settings.epochs:
            speed = self._train_epoch(stop)
            predicted = self._predict(stop)
            self._end_epoch(predicted, speed)
        if self.state.best:
            self.state.average.module.load_state_dict(self.state.best["weights"])
            predicted = None
        if predicted is None:
            predicted = self._predict(stop)
        save_weights(
            self.folder,
            self.state.average.module,
            logit_shift=self.task.logit_shift,
            num_classes=self.recipe.model.num_classes,
        )
        write_csv(self.folder.attention, measure_attention(self.state.average.module, self._pick_held_out()))
        write_csv(self.folder.predictions, predicted)

    def time_steps(self, num_steps: int = 3) -> StepTime:
        """Takes some steps after a first one; this trainer is of no other use then."""
        first, *others = (self.task.plan(0) * (1 + num_steps))[: 1 + num_steps]
        parts = self._load_parts([first, *others])
        self._step(parts, len(first))
        meter = Meter()
        for rows in others:
            self._step(parts, len(rows))
            meter.num_images += len(rows)
        row = meter.summarise(self.task.model, self.arithmetic.precision, self.arithmetic.device)
        return StepTime(row["seconds"] / num_steps, row["images"] / num_steps, row["peak_memory_mb"])

    def _rehearse(self) -> None:
        """Takes a batch through everything but the update, so that a mistake shows before the first epoch.

        Changes nothing: what it draws is drawn again.
        """
        random_states = self.state.random_states()
        images_BCHW, rows_B = next(self._load_parts(self.task.plan(0)[:1]))
        self._losses(images_BCHW, rows_B, entropy=[0, 0]).mean().backward()  # type: ignore[no-untyped-call]
        self.state.optimizer.zero_grad(set_to_none=True)
        self.task.predict(self.state.average.module, self.arithmetic, lambda _count: None, at_most=2)
        self.state.set_random_states(random_states)

    def _train_epoch(self, stop: StopRequest) -> dict[str, float]:
        """Returns this epoch's row of `throughput.csv`, of what this process did."""
        state, saved, meter = self.state, time.perf_counter(), Meter()
        plan = self.task.plan(state.epoch)[state.batch :]
        parts = meter.watch(self._load_parts(plan))
        title = f"{self.task.name} epoch {state.epoch + 1}/{self.settings.epochs}"
        with self.reporter.track(title, sum(map(len, plan))) as advance:
            for rows in plan:
                state.loss_sum += self._step(parts, len(rows))
                state.batch += 1
                meter.num_images += len(rows)
                advance(len(rows), note=f"loss {state.loss_sum / state.batch:.4f}")
                if time.perf_counter() - saved > SECONDS_BETWEEN_SAVES:
                    save_checkpoint(self.folder, state.to_checkpoint())
                    saved = time.perf_counter()
                self._stop_if_asked(stop)
        return meter.summarise(self.task.model, self.arithmetic.precision, self.arithmetic.device)

    def _load_parts(self, plan: list[Rows]) -> Iterator[Batch]:
        """Yields `accumulation` parts of each batch."""
        num_parts = self.settings.accumulation
        parts = [
            part for rows in plan for part in split_batch(rows, rank=0, num_ranks=1, num_parts=num_parts)
        ]
        return load_batches(
            self.task.dataset,
            [[(self.state.epoch, int(row)) for row in part] for part in parts],
            workers=self.settings.workers,
            pin_memory=self.arithmetic.device == "cuda",
        )

    def _step(self, parts: Iterator[Batch], num_images: int) -> float:
        """Takes one optimizer step over the next parts and returns their mean loss, before the step."""
        state = self.state
        step = state.epoch * self.batches_per_epoch + state.batch
        set_learning_rate(state.optimizer, self._learning_rate(step))
        state.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        rows: list[int] = []
        for number, (images_BCHW, rows_B) in enumerate(islice(parts, self.settings.accumulation)):
            loss = self._losses(images_BCHW, rows_B, entropy=[step, number]).sum() / num_images
            value, rows = value + loss.item(), rows + rows_B.tolist()
            self._require_finite("loss", value, rows)
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.settings.clip_norm)
        if not state.scaler.is_enabled():  # it leaves steps out where a gradient overflows
            self._require_finite("gradient's norm", norm.item(), rows)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average.update(state.model, step)
        return value

    def _losses(self, images_BCHW: Tensor, rows_B: Tensor, *, entropy: list[int]) -> Tensor:
        """Returns each image's loss; `entropy` and the task's seed draw how the images are mixed."""
        images_BCHW = images_BCHW.to(self.arithmetic.device, non_blocking=True)
        mixing = None
        if self.settings.mixup:
            generator = np.random.default_rng([self.task.seed, *entropy])
            mixing = Mixing.draw(len(rows_B), alpha=self.settings.mixup, generator=generator)
            images_BCHW = mixing.blend(images_BCHW)
        with autocast(self.arithmetic.precision, self.arithmetic.device):
            logits_BK = self.model(images_BCHW).float()
        losses_B = self.task.losses(logits_BK, rows_B)
        if mixing is None:
            return losses_B
        return mixing.weigh(losses_B, self.task.losses(logits_BK, rows_B[mixing.partner]))

    def _learning_rate(self, step: int) -> float:
        return learning_rate_at(
            step,
            num_steps=self.settings.epochs * self.batches_per_epoch,
            warmup_steps=round(self.settings.warmup_epochs * self.batches_per_epoch),
            peak=self.settings.learning_rate,
        )

    def _require_finite(self, name: str, value: float, rows: list[int]) -> None:
        if math.isfinite(value):
            return
        names = ", ".join(self.task.name_rows(rows))
        raise TrainingStopped(
            f"the {name} is {value} in {self.task.name}, epoch {self.state.epoch + 1}, images {names}: lower "
            "train.learning_rate or look at these images; the last checkpoint is kept"
        )

    def _predict(self, stop: StopRequest) -> pd.DataFrame:
        """Returns the averaged weights' predictions of the held-out images."""
        with self.reporter.track(f"{self.task.name} held-out images", len(self.task.held_out)) as advance:

            def on_batch(count: int) -> None:
                advance(count)
                self._stop_if_asked(stop)

            return self.task.predict(self.state.average.module, self.arithmetic, on_batch, at_most=None)

    def _stop_if_asked(self, stop: StopRequest) -> None:
        if stop.is_made:
            save_checkpoint(self.folder, self.state.to_checkpoint())
            stop.raise_if_made()

    def _pick_held_out(self) -> Tensor:
        """Returns some of the held-out images, evenly spread."""
        images = self.task.held_out
        rows = np.unique(np.linspace(0, len(images) - 1, NUM_IMAGES_OBSERVED).astype(int))
        return torch.stack([to_tensor(images[row]) for row in rows])

    def _end_epoch(self, predicted: pd.DataFrame, speed: dict[str, float]) -> None:
        """Writes history and checkpoint; nothing that was learned is lost from here on.

        The checkpoint comes last: a kill before it makes the epoch, and so the same history, again.
        """
        state, figures = self.state, self.task.measure(predicted)
        if self.settings.select == "best":
            state.keep_if_best(figures[self.settings.select_by])
        state.history.append(
            {
                "epoch": state.epoch + 1,
                "step": (state.epoch + 1) * self.batches_per_epoch,
                "learning_rate": state.optimizer.param_groups[0]["lr"],
                "train_loss": state.loss_sum / state.batch,
                **figures,
            }
        )
        state.throughput.append({"epoch": state.epoch + 1, **speed})
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        write_csv(self.folder.history, pd.DataFrame(state.history))
        write_csv(self.folder.throughput, pd.DataFrame(state.throughput))
        save_checkpoint(self.folder, state.to_checkpoint())
