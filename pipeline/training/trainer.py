"""The training of one model: a plain loop that can be stopped anywhere and goes on from its checkpoint.

Labels, losses and figures are a `Task`'s.
"""

import math
import signal
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from data_prep.errors import TrainingStopped, UserError
from data_prep.storage.atomic import write_csv
from pipeline.data.loader import Batch, load_batches
from pipeline.data.sampler import Rows, plan_parts
from pipeline.models.attention import measure_attention
from pipeline.models.weights_file import save_weights
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import TrainingFolder
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup, RankLost
from pipeline.runtime.precision import ComputeSettings, autocast
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import Interrupted, StopRequest
from pipeline.runtime.workers import choose_workers
from pipeline.training.checkpoint import save_checkpoint
from pipeline.training.losses import Mixup
from pipeline.training.optim import learning_rate_at, set_learning_rate
from pipeline.training.state import load_state
from pipeline.training.task import Judgement, Task
from pipeline.training.tensorboard import write_events
from pipeline.training.throughput import Meter
from pipeline.training.validation import pick_held_out, predict_held_out, validate

SECONDS_BETWEEN_SAVES = 300.0
NUM_IMAGES_OBSERVED = 16
MOST_OVERFLOWS = 20
"""Steps in a row that fp16's scaler may leave out: that many halvings of its first scale leave nothing."""


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
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.recipe = recipe
        self.settings = recipe.train
        self.task = task
        self.folder = folder
        self.reporter = reporter
        self.group = group
        self.compute = ComputeSettings.choose(recipe.train.device, recipe.train.precision)
        self.workers = choose_workers(recipe, self.compute.device, world_size=group.world_size)
        sizes = [len(rows) for rows in task.plan(0)]
        self.batches_per_epoch = len(sizes)
        self._overflows = 0
        with group.main_process_first():  # may remove a damaged checkpoint, or download first weights
            self._require_rows_for_all_parts(min(sizes))
            self.state = load_state(task, recipe.train, folder, self.compute, reporter=reporter, group=group)
        self._require_one_folder()
        self.model = torch.compile(self.state.model) if self.settings.compile else self.state.model

    def _require_rows_for_all_parts(self, smallest: int) -> None:
        if smallest < self.group.world_size * self.settings.accumulation:
            raise UserError(
                f"train.batch_size {self.settings.batch_size} gives batches of {smallest}, too few for "
                f"{self.group.world_size} processes x {self.settings.accumulation} parts: take a larger one"
            )

    def _require_one_folder(self) -> None:
        here = float(self._count_steps())
        if self.group.sum(here) != here * self.group.world_size:
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
        judged = None
        while self.state.epoch < self.settings.epochs:
            speed = self._train_epoch(stop)
            if self.group.world_size > 1:  # a stop may find this rank waiting for another's predictions
                self._save()
            judged = self._judge(stop)
            self._end_epoch(judged.figures, speed)
        if self.state.best:
            self.state.average.module.load_state_dict(self.state.best["weights"])
            judged = None
        if judged is None:
            judged = self._judge(stop)
        if self.group.is_main:
            self._finish(judged.predictions)

    def _finish(self, predictions: pd.DataFrame) -> None:
        save_weights(
            self.folder,
            self.state.average.module,
            logit_shift=self.task.logit_shift,
            num_classes=self.recipe.model.num_classes,
        )
        images_BCHW = pick_held_out(self.task, NUM_IMAGES_OBSERVED)
        write_csv(self.folder.attention, measure_attention(self.state.average.module, images_BCHW))
        write_csv(self.folder.predictions, predictions)

    def _rehearse(self) -> None:
        """Takes a batch through everything but the update, so that a mistake shows before the first epoch."""
        images_BCHW, rows_B = next(self.load_parts(self.task.plan(0)[:1]))
        self._losses(images_BCHW, rows_B, step=0, part=0).mean().backward()  # type: ignore[no-untyped-call]
        self.state.optimizer.zero_grad(set_to_none=True)
        some_NK = predict_held_out(
            self.task, self.state.average.module, range(len(self.task.held_out))[:2], self.compute, workers=0
        )
        self.task.judge(np.resize(some_NK, (len(self.task.held_out), some_NK.shape[1])))

    def _train_epoch(self, stop: StopRequest) -> dict[str, float]:
        """Returns this epoch's row of `throughput.csv`, of what this process did."""
        state, saved, meter = self.state, time.perf_counter(), Meter()
        plan = self.task.plan(state.epoch)[state.batch :]
        parts = meter.watch(self.load_parts(plan))
        title = f"{self.task.name} epoch {state.epoch + 1}/{self.settings.epochs}"
        with self.reporter.track(title, sum(map(len, plan))) as advance:
            for rows in plan:
                state.loss_sum += self.take_step(parts, len(rows))
                state.batch += 1
                meter.num_images += len(rows)
                advance(len(rows), note=f"loss {state.loss_sum / state.batch:.4f}")
                if time.perf_counter() - saved > SECONDS_BETWEEN_SAVES:
                    self._save()
                    saved = time.perf_counter()
                self._stop_together(stop)
        return self.summarise(meter)

    def summarise(self, meter: Meter) -> dict[str, float]:
        """Returns a row of `throughput.csv`, but for its epoch."""
        compute = self.compute
        return meter.summarise(
            self.task.model, compute.precision, compute.device, num_devices=self.group.world_size
        )

    def _save(self) -> None:
        if self.group.is_main:
            save_checkpoint(self.folder, self.state.to_checkpoint())

    def load_parts(self, plan: list[Rows]) -> Iterator[Batch]:
        """Yields this rank's `accumulation` parts of each batch."""
        keys = plan_parts(
            plan,
            first_step=self._count_steps(),
            batch_size=self.settings.batch_size,
            rank=self.group.rank,
            world_size=self.group.world_size,
            num_parts=self.settings.accumulation,
        )
        return load_batches(self.task.dataset, keys, workers=self.workers, device=self.compute.device)

    def take_step(self, parts: Iterator[Batch], num_images: int) -> float:
        """Takes one optimizer step over the batch's next parts and returns its mean loss, before the step.

        The losses of all ranks' parts add up to the mean over the batch, however it is split.
        """
        state = self.state
        step = self._count_steps()
        set_learning_rate(state.optimizer, self._learning_rate(step))
        state.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.compute.device)
        rows: list[int] = []
        first_part = self.group.rank * self.settings.accumulation
        for part, (images_BCHW, rows_B) in enumerate(islice(parts, self.settings.accumulation), first_part):
            loss = self._losses(images_BCHW, rows_B, step=step, part=part).sum() / num_images
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total, rows = total + loss.detach(), rows + rows_B.tolist()
        self.group.sum_gradients(state.model.parameters())
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.settings.clip_norm)
        local_value, norm_value = torch.stack([total, norm.to(total)]).tolist()
        value = float(self.group.sum(local_value))
        self._require_finite("loss", value, [] if math.isfinite(local_value) else rows)
        self._overflows = 0 if math.isfinite(norm_value) else self._overflows + 1
        if not state.scaler.is_enabled() or self._overflows > MOST_OVERFLOWS:
            self._require_finite("gradient's norm", norm_value, rows)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average.update(state.model, step)
        return value

    def _losses(self, images_BCHW: Tensor, rows_B: Tensor, *, step: int, part: int) -> Tensor:
        """Returns each image's loss; dropout and mixup are drawn from (seed, step, part of the batch)."""
        generator = np.random.default_rng([self.task.seed, step, part])
        torch.manual_seed(int(generator.integers(2**32)))
        mixup = None
        if self.settings.mixup:
            mixup = Mixup.draw(len(rows_B), alpha=self.settings.mixup, generator=generator)
            images_BCHW = mixup.blend(images_BCHW)
        with autocast(self.compute.precision, self.compute.device):
            logits_BK = self.model(images_BCHW).float()
        losses_B = self.task.losses(logits_BK, rows_B)
        if mixup is None:
            return losses_B
        return mixup.weigh(losses_B, self.task.losses(logits_BK, rows_B[mixup.partner]))

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
        names = ", ".join(self.task.name_rows(np.flatnonzero(self.group.sum(is_suspect)).tolist()))
        raise TrainingStopped(
            f"the {name} is {value} in {self.task.name}, epoch {self.state.epoch + 1}, images {names}: lower "
            "train.learning_rate or look at these images; what was saved before is kept"
        )

    def _judge(self, stop: StopRequest) -> Judgement:
        """Judges the averaged weights by the held-out images."""

        def after_batch() -> None:
            if stop.is_made:  # each rank by itself: the end of the epoch is behind all of them
                self._save()
                stop.raise_if_made()

        return validate(
            self.task,
            self.state.average.module,
            self.compute,
            workers=self.workers,
            group=self.group,
            reporter=self.reporter,
            after_batch=after_batch,
        )

    def _stop_together(self, stop: StopRequest) -> None:
        """Stops all ranks after the same batch, whichever of them was asked to."""
        if self.group.sum(stop.is_made):
            self._save()
            stop.raise_if_made()
            raise Interrupted(signal.SIGTERM)  # another rank was asked

    def _end_epoch(self, figures: dict[str, float], speed: dict[str, float]) -> None:
        """Writes history and checkpoint; nothing that was learned is lost from here on.

        The checkpoint comes last: a kill before it makes the epoch, and so the same history, again.
        """
        state = self.state
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
        if self.group.is_main:
            write_csv(self.folder.history, pd.DataFrame(state.history))
            write_csv(self.folder.throughput, pd.DataFrame(state.throughput))
            if self.settings.tensorboard:
                write_events(self.folder.events, state.history[-1] | speed, step=state.epoch)
        self._save()
