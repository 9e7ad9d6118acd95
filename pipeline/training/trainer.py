"""The training of one model: a plain loop that can be stopped anywhere and goes on from its checkpoint.

Labels, losses and figures are a `Task`'s.
"""

import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import NoReturn

import numpy as np
import pandas as pd
import torch

from data_prep.errors import UserError, count
from data_prep.parallel.track import Advance
from data_prep.storage.atomic import write_csv
from pipeline.data.loader import Batch, in_order, load_batches
from pipeline.data.sampler import Rows, plan_parts
from pipeline.models.attention import measure_attention
from pipeline.models.weights_file import save_weights
from pipeline.runs.recipe import Recipe
from pipeline.runs.records import describe_epoch
from pipeline.runs.run_folder import TrainingFolder
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup, RankLost
from pipeline.runtime.precision import ComputeSettings
from pipeline.runtime.progress import Reporter, format_duration
from pipeline.runtime.signals import Interrupted, StopRequest
from pipeline.runtime.workers import choose_workers
from pipeline.training.checkpoint import CheckpointWriter
from pipeline.training.optim import learning_rate_at
from pipeline.training.state import load_state
from pipeline.training.stepper import Stepper
from pipeline.training.task import Judgement, Task
from pipeline.training.tensorboard import write_events
from pipeline.training.throughput import Meter
from pipeline.training.validation import load_held_out, pick_held_out, predict_held_out, validate

SECONDS_BETWEEN_SAVES = 300.0
NUM_IMAGES_OBSERVED = 16


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
        self.batches_per_epoch, self.images_per_epoch = len(sizes), sum(sizes) * task.images_per_row
        with group.main_process_first():  # may remove a damaged checkpoint, or download first weights
            self._require_rows_for_all_parts(min(sizes))
            self.state = load_state(task, recipe.train, folder, self.compute, reporter=reporter, group=group)
        self._require_one_folder()
        self.stepper = Stepper(task, recipe.train, self.state, self.compute, group)
        self._checkpoints = CheckpointWriter(folder)
        average = self.state.average.module
        self._judged_model = torch.compile(average, dynamic=False) if recipe.train.compile else average

    def _require_rows_for_all_parts(self, smallest: int) -> None:
        if smallest < self.group.world_size * self.settings.accumulation:
            raise UserError(
                f"train.batch_size {self.settings.batch_size} gives batches of {smallest}, too few for "
                f"{count(self.group.world_size, 'process', 'processes')} x "
                f"{count(self.settings.accumulation, 'part')}: take a larger one"
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
        with (  # the processes that load start here and live as long as the training
            closing(self.load_parts(self._remaining_plan())) as parts,
            closing(load_held_out(self.task, self.group, self.compute, self.workers)) as held_out,
            self._checkpoints,
            self.reporter.track(self.task.name, self._count_images()) as advance,
        ):
            while self.state.epoch < self.settings.epochs:
                began = time.perf_counter()
                speed = self._train_epoch(parts, stop, advance)
                if self.group.world_size > 1:  # a stop may find this rank waiting for another's predictions
                    self._save()
                judged = self._judge(held_out, stop, advance)
                speed["epoch_seconds"] = time.perf_counter() - began
                self._end_epoch(judged.figures, speed)
                self._tell_epoch(speed)
            if self.state.best:
                self.state.average.module.load_state_dict(self.state.best["weights"])
                judged = None
            if judged is None:
                judged = self._judge(held_out, stop, advance)
        if self.group.is_main:
            self._finish(judged.predictions)

    def _finish(self, predictions: pd.DataFrame) -> None:
        encoder = self.task.pick_encoder(self.state.average.module)
        save_weights(
            self.folder,
            self.task.pick_kept(self.state.average.module),
            logit_shift=self.task.logit_shift,
            num_classes=self.recipe.model.num_classes,
            about=self.state.about,
        )
        images_BCHW = pick_held_out(self.task, NUM_IMAGES_OBSERVED)
        write_csv(self.folder.attention, measure_attention(encoder, images_BCHW))
        write_csv(self.folder.predictions, predictions)

    def _rehearse(self) -> None:
        """Takes a batch through everything but the update, so that a mistake shows before the first epoch."""
        inputs, rows_B = next(self.load_parts(self.task.plan(0)[:1], workers=0))
        loss = self.stepper.losses(inputs, rows_B, step=0, part=0).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.state.optimizer.zero_grad(set_to_none=True)
        some = load_batches(self.task.judged, in_order(range(min(2, len(self.task.judged))), 2), workers=0)
        _, some_NK = predict_held_out(self.task, self.state.average.module, some, self.compute)
        self.task.judge(np.resize(some_NK, (len(self.task.held_out), some_NK.shape[1])))

    def _remaining_plan(self) -> Iterator[Rows]:
        """Yields the rows of each batch from here to the end of the training."""
        done = self.state.batch
        for epoch in range(self.state.epoch, self.settings.epochs):
            yield from self.task.plan(epoch)[done:]
            done = 0

    def _count_images(self) -> int:
        """Returns how many images are still to go through the model, to learn from and to be judged by."""
        num_epochs = self.settings.epochs - self.state.epoch
        is_judged_last = self.settings.select == "best" or not num_epochs
        num_held_out = self.task.judged.count_images(self.group.share(range(len(self.task.judged))))
        num_trained = sum(round(len(rows) * self.task.images_per_row) for rows in self._remaining_plan())
        return num_trained + num_held_out * (num_epochs + is_judged_last)

    def _train_epoch(self, parts: Iterator[Batch], stop: StopRequest, advance: Advance) -> dict[str, float]:
        """Returns this epoch's row of `throughput.csv`, of what this process did."""
        state, meter = self.state, Meter()
        watched = meter.watch(parts)
        plan = self.task.plan(state.epoch)[state.batch :]
        ask, note = self._make_questions(stop), f"epoch {state.epoch + 1}/{self.settings.epochs}"
        for rows in plan:
            must_stop, may_save = self.take_step(watched, len(rows), ask)
            state.batch += 1
            meter.num_rows += len(rows)
            num_read = state.batch - self.stepper.num_unread
            loss = f", loss {state.loss_sum / num_read:.4f}" if num_read else ""
            advance(round(len(rows) * self.task.images_per_row), note=f"{note}{loss}")
            if must_stop or may_save:
                self._save()
            if must_stop:
                self._stop(stop)
        self.stepper.settle()
        return self.summarise(meter)

    def _make_questions(self, stop: StopRequest) -> Callable[[], list[bool]]:
        """Returns what is asked in each step: must the training stop, and is it time to save?

        All ranks act on the answer after the same step, whichever of them was asked to stop.
        """
        saved = time.perf_counter()

        def ask() -> list[bool]:
            nonlocal saved
            is_due = self.group.is_main and time.perf_counter() - saved > SECONDS_BETWEEN_SAVES
            saved = time.perf_counter() if is_due else saved
            return [stop.is_made, is_due]

        return ask

    def take_step(
        self, parts: Iterator[Batch], num_rows: int, ask: Callable[[], list[bool]] = list
    ) -> list[bool]:
        """Takes the next optimizer step, over a batch of so many rows; see `Stepper.take`."""
        step = self._count_steps()
        learning_rate = self._learning_rate(step)
        return self.stepper.take(parts, num_rows, step=step, learning_rate=learning_rate, ask=ask)

    def summarise(self, meter: Meter) -> dict[str, float]:
        """Returns a row of `throughput.csv`, but for its epoch."""
        compute = self.compute
        return meter.summarise(
            self.task.model,
            compute.precision,
            compute.device,
            num_devices=self.group.world_size,
            images_per_row=self.task.images_per_row,
        )

    def _save(self) -> None:
        """Saves a checkpoint, in the background; in an epoch all ranks must, to settle their step."""
        self.stepper.settle()
        if self.group.is_main:
            self._checkpoints.submit(self.state.to_checkpoint())

    def load_parts(self, plan: Iterable[Rows], *, workers: int | None = None) -> Generator[Batch, None, None]:
        """Yields this rank's `accumulation` parts of each batch, of which the first is the next step's."""
        keys = plan_parts(
            plan,
            first_step=self._count_steps(),
            batch_size=self.settings.batch_size,
            rank=self.group.rank,
            world_size=self.group.world_size,
            num_parts=self.settings.accumulation,
        )
        workers = self.workers if workers is None else workers
        return load_batches(self.task.dataset, keys, workers=workers, device=self.compute.device)

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

    def _judge(self, held_out: Iterator[Batch], stop: StopRequest, advance: Advance) -> Judgement:
        """Judges the averaged weights by the held-out images."""

        def on_batch(num_images: int) -> None:
            advance(num_images, note="validation")
            if stop.is_made:  # each rank by itself: the end of the epoch is behind all of them
                self._save()
                self._stop(stop)

        task, compute, model = self.task, self.compute, self._judged_model
        judged = validate(task, model, held_out, compute, group=self.group, on_batch=on_batch)
        more = task.measure(self.state.average.module, self.state.epoch + 1, compute, on_batch)
        return judged._replace(figures=judged.figures | more)

    def _stop(self, stop: StopRequest) -> NoReturn:
        """Ends the training once its checkpoint is written."""
        self._checkpoints.wait()
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

    def _tell_epoch(self, speed: dict[str, float]) -> None:
        """Says in one line how the last epoch went, and how long the others will take."""
        done, num_epochs = self.state.epoch, self.settings.epochs
        parts = [describe_epoch(self.state.history[-1]), f"{speed['images_per_second']:,.1f}/s"]
        if done < num_epochs and speed["images"]:  # none in an epoch of which the validation alone was left
            seconds = speed["epoch_seconds"] * self.images_per_epoch / speed["images"]
            parts.append(f"{format_duration((num_epochs - done) * seconds)} left")
        self.reporter.say(f"{self.task.name}, {done}/{num_epochs}: {', '.join(parts)}")
