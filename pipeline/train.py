"""The training of one model: a plain loop that can be stopped anywhere and goes on from its checkpoint.

Knows nothing of labels, losses and metrics: a `Task` does. Knows nothing of reports.
"""

import math
import signal
import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from data_prep.errors import TrainingStopped, UserError
from data_prep.files import write_csv
from pipeline.attention import measure_attention
from pipeline.checkpoint import save_checkpoint, save_weights
from pipeline.dataset import Batch, load_batches, to_tensor
from pipeline.events import write_events
from pipeline.interrupt import Interrupted, StopRequest
from pipeline.losses import Mixing
from pipeline.optim import autocast, learning_rate_at, set_learning_rate
from pipeline.predict import Arithmetic
from pipeline.progress import Reporter
from pipeline.ranks import ALONE, RankLost, Ranks
from pipeline.run import TrainingFolder
from pipeline.sampler import Rows, split_batch
from pipeline.settings import Recipe
from pipeline.task import Task
from pipeline.throughput import Meter
from pipeline.training_start import load_state

SECONDS_BETWEEN_SAVES = 300.0
NUM_IMAGES_OBSERVED = 16
MOST_OVERFLOWS = 20
"""Steps in a row that fp16's scaler may leave out: that many halvings of its first scale leave nothing."""


class StepTime(NamedTuple):
    """What a step costs: seconds, images, and the most memory so far."""

    seconds: float
    num_images: float
    memory_mb: float


class Trainer:
    """Trains the model of a task and predicts the task's held-out images.

    Several ranks do the same on parts of every batch: each has the whole state, the first alone writes.

    Raises:
        TrainingStopped: if there are checkpoints and none can be read.
        UserError: if a batch is too small for its parts, or the ranks do not see the same folder.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        folder: TrainingFolder,
        *,
        reporter: Reporter,
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe = recipe
        self.settings = recipe.train
        self.task = task
        self.folder = folder
        self.reporter = reporter
        self.ranks = ranks
        self.arithmetic = Arithmetic.choose(recipe.train.device, recipe.train.precision)
        sizes = [len(rows) for rows in task.plan(0)]
        self.batches_per_epoch = len(sizes)
        self._overflows = 0
        with ranks.first_goes_first():  # it alone may remove a damaged checkpoint, or download first weights
            self._require_rows_for_all_parts(min(sizes))
            self.state = load_state(
                task, recipe.train, folder, self.arithmetic, reporter=reporter, ranks=ranks
            )
        self._require_one_folder()
        self.model = torch.compile(self.state.model) if self.settings.compile else self.state.model

    def _require_rows_for_all_parts(self, smallest: int) -> None:
        if smallest < self.ranks.size * self.settings.accumulation:
            raise UserError(
                f"train.batch_size {self.settings.batch_size} gives batches of {smallest}, too few for "
                f"{self.ranks.size} processes x {self.settings.accumulation} parts: take a larger one"
            )

    def _require_one_folder(self) -> None:
        here = float(self._count_steps())
        if self.ranks.sum(here) != here * self.ranks.size:
            raise UserError(
                f"the processes of this training find different checkpoints in {self.folder.folder}: "
                "it must lie on storage that all machines share"
            )

    def run(self, stop: StopRequest) -> None:
        """Trains from the newest checkpoint, or the start, to the end; the predictions are written last.

        Raises:
            Interrupted: if a stop was asked for; a checkpoint is saved.
            TrainingStopped: if loss or gradient is not finite; the last checkpoint is kept.
            RankLost: if another rank has ended, and not because all were asked to.
        """
        try:
            self._run(stop)
        except RankLost:
            stop.raise_if_made()
            raise

    def _run(self, stop: StopRequest) -> None:
        if not self.state.epoch and not self.state.batch:
            self._rehearse()
        predicted = None
        while self.state.epoch < self.settings.epochs:
            speed = self._train_epoch(stop)
            if self.ranks.size > 1:  # a stop may find this rank waiting for another's predictions
                self._save()
            predicted = self._predict(stop)
            self._end_epoch(predicted, speed)
        if self.state.best:
            self.state.average.module.load_state_dict(self.state.best["weights"])
            predicted = None
        if predicted is None:
            predicted = self._predict(stop)
        if self.ranks.is_first:
            self._finish(predicted)

    def _finish(self, predicted: pd.DataFrame) -> None:
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
        ahead = 2 * self.settings.workers  # parts that are loaded while the first step is taken
        num_skipped = -(-ahead // self.settings.accumulation)
        first, *plan = islice(cycle(self.task.plan(0)), 1 + num_skipped + num_steps)
        parts, others = self._load_parts([first, *plan]), plan[num_skipped:]
        self._step(parts, len(first))
        for _ in range(num_skipped * self.settings.accumulation):
            next(parts)
        meter = Meter()
        for rows in others:
            self._step(parts, len(rows))
            meter.num_images += len(rows)
        row = self._summarise(meter)
        return StepTime(row["seconds"] / num_steps, row["images"] / num_steps, row["peak_memory_mb"])

    def _rehearse(self) -> None:
        """Takes a batch through everything but the update, so that a mistake shows before the first epoch."""
        images_BCHW, rows_B = next(self._load_parts(self.task.plan(0)[:1]))
        self._losses(images_BCHW, rows_B, step=0, part=0).mean().backward()  # type: ignore[no-untyped-call]
        self.state.optimizer.zero_grad(set_to_none=True)
        rows = range(len(self.task.held_out))[:2]
        some_NK = self.task.predict(self.state.average.module, self.arithmetic, rows, lambda _count: None)
        repeated_NK = np.resize(some_NK, (len(self.task.held_out), some_NK.shape[1]))
        self.task.measure(self.task.tabulate(repeated_NK))

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
                    self._save()
                    saved = time.perf_counter()
                self._stop_together(stop)
        return self._summarise(meter)

    def _summarise(self, meter: Meter) -> dict[str, float]:
        arithmetic = self.arithmetic
        return meter.summarise(
            self.task.model, arithmetic.precision, arithmetic.device, num_devices=self.ranks.size
        )

    def _save(self) -> None:
        if self.ranks.is_first:
            save_checkpoint(self.folder, self.state.to_checkpoint())

    def _load_parts(self, plan: list[Rows]) -> Iterator[Batch]:
        """Yields this rank's `accumulation` parts of each batch."""
        shape = {
            "rank": self.ranks.rank,
            "num_ranks": self.ranks.size,
            "num_parts": self.settings.accumulation,
        }
        # A positive that comes again is drawn anew, by its place in the training.
        size = self.settings.batch_size
        parts = [
            [(step * size + int(place), int(rows[place])) for place in places]
            for step, rows in enumerate(plan, self._count_steps())
            for places in split_batch(np.arange(len(rows)), **shape)
        ]
        return load_batches(
            self.task.dataset, parts, workers=self.settings.workers, device=self.arithmetic.device
        )

    def _step(self, parts: Iterator[Batch], num_images: int) -> float:
        """Takes one optimizer step over the batch's next parts and returns its mean loss, before the step.

        The losses of all ranks' parts add up to the mean over the batch, however it is split.
        """
        state = self.state
        step = self._count_steps()
        set_learning_rate(state.optimizer, self._learning_rate(step))
        state.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.arithmetic.device)
        rows: list[int] = []
        first_part = self.ranks.rank * self.settings.accumulation
        for part, (images_BCHW, rows_B) in enumerate(islice(parts, self.settings.accumulation), first_part):
            loss = self._losses(images_BCHW, rows_B, step=step, part=part).sum() / num_images
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total, rows = total + loss.detach(), rows + rows_B.tolist()
        self.ranks.sum_gradients(state.model.parameters())
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.settings.clip_norm)
        local_value, norm_value = torch.stack([total, norm.to(total)]).tolist()
        value = float(self.ranks.sum(local_value))
        self._require_finite("loss", value, [] if math.isfinite(local_value) else rows)
        self._overflows = 0 if math.isfinite(norm_value) else self._overflows + 1
        if not state.scaler.is_enabled() or self._overflows > MOST_OVERFLOWS:
            self._require_finite("gradient's norm", norm_value, rows)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average.update(state.model, step)
        return value

    def _losses(self, images_BCHW: Tensor, rows_B: Tensor, *, step: int, part: int) -> Tensor:
        """Returns each image's loss; dropout and mixing are drawn from (seed, step, part of the batch)."""
        generator = np.random.default_rng([self.task.seed, step, part])
        torch.manual_seed(int(generator.integers(2**32)))
        mixing = None
        if self.settings.mixup:
            mixing = Mixing.draw(len(rows_B), alpha=self.settings.mixup, generator=generator)
            images_BCHW = mixing.blend(images_BCHW)
        with autocast(self.arithmetic.precision, self.arithmetic.device):
            logits_BK = self.model(images_BCHW).float()
        losses_B = self.task.losses(logits_BK, rows_B)
        if mixing is None:
            return losses_B
        return mixing.weigh(losses_B, self.task.losses(logits_BK, rows_B[mixing.partner]))

    def _count_steps(self) -> int:
        """Returns how many optimizer steps were taken."""
        return self.state.epoch * self.batches_per_epoch + self.state.batch

    def _learning_rate(self, step: int) -> float:
        return learning_rate_at(
            step,
            num_steps=self.settings.epochs * self.batches_per_epoch,
            warmup_steps=round(self.settings.warmup_epochs * self.batches_per_epoch),
            peak=self.settings.learning_rate,
        )

    def _require_finite(self, name: str, value: float, rows: list[int]) -> None:
        """Stops all ranks if the value, which is the same in all, is not finite; `rows` are this rank's."""
        if math.isfinite(value):
            return
        is_suspect = np.zeros(len(self.task.dataset))
        is_suspect[rows] = 1
        names = ", ".join(self.task.name_rows(np.flatnonzero(self.ranks.sum(is_suspect)).tolist()))
        raise TrainingStopped(
            f"the {name} is {value} in {self.task.name}, epoch {self.state.epoch + 1}, images {names}: lower "
            "train.learning_rate or look at these images; what was saved before is kept"
        )

    def _predict(self, stop: StopRequest) -> pd.DataFrame:
        """Returns the averaged weights' predictions of the held-out images; each rank makes its share."""
        task, rows = self.task, self.ranks.share(range(len(self.task.held_out)))
        with self.reporter.track(f"{task.name} held-out images", len(rows)) as advance:

            def on_batch(count: int) -> None:
                advance(count)
                if stop.is_made:  # each rank by itself: the end of the epoch is behind all of them
                    self._save()
                    stop.raise_if_made()

            share_NK = task.predict(self.state.average.module, self.arithmetic, rows, on_batch)
        probabilities_NK = np.zeros((len(task.held_out), share_NK.shape[1]))
        probabilities_NK[rows] = share_NK
        return task.tabulate(self.ranks.sum(probabilities_NK))

    def _stop_together(self, stop: StopRequest) -> None:
        """Stops all ranks after the same batch, whichever of them was asked to."""
        if self.ranks.sum(stop.is_made):
            self._save()
            stop.raise_if_made()
            raise Interrupted(signal.SIGTERM)  # another rank was asked

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
                "step": self._count_steps(),
                "learning_rate": self._learning_rate(self._count_steps() - 1),
                "train_loss": state.loss_sum / state.batch,
                **figures,
            }
        )
        state.throughput.append({"epoch": state.epoch + 1, **speed})
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        if self.ranks.is_first:
            write_csv(self.folder.history, pd.DataFrame(state.history))
            write_csv(self.folder.throughput, pd.DataFrame(state.throughput))
            if self.settings.tensorboard:
                write_events(self.folder.events, state.history[-1] | speed, step=state.epoch)
        self._save()
