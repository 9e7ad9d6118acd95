"""Optimizer steps that never wait for the device: a step's figures are read while the next is computed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.errors import TrainingStopped
from pipeline.data.loader import Batch, Inputs
from pipeline.runs.recipe import TrainSettings
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.precision import ComputeSettings, autocast
from pipeline.runtime.transfers import Readback, send
from pipeline.training.losses import Mixup
from pipeline.training.optim import set_learning_rate
from pipeline.training.state import TrainingState
from pipeline.training.task import Task

MOST_OVERFLOWS = 20
"""Steps in a row that fp16's scaler may leave out: that many halvings of its first scale leave nothing."""


@dataclass(frozen=True)
class _Unread:
    """A step whose figures may still be on their way.

    Attributes:
        figures: this rank's part of the mean loss, and the gradient's norm.
        rows: this rank's.
        epoch: from 0.
    """

    figures: Readback
    rows: list[int]
    epoch: int


class Stepper:
    """Takes the steps of a training; several ranks each compute a part of every batch.

    A step's loss and gradient norm are read, and added up over the ranks, once the next step is under way:
    until then the state may have taken in a number that is not finite. So `settle` comes before anything
    that keeps the state.
    """

    def __init__(
        self,
        task: Task,
        settings: TrainSettings,
        state: TrainingState,
        compute: ComputeSettings,
        group: ProcessGroup,
    ) -> None:
        self.task = task
        self.settings = settings
        self.state = state
        self.compute = compute
        self.group = group
        self.model = torch.compile(state.model, dynamic=False) if settings.compile else state.model
        self._targets = send(task.targets, compute.device)
        self._unread: _Unread | None = None
        self._overflows = 0

    @property
    def num_unread(self) -> int:
        """How many steps the state's sum of losses still lacks."""
        return int(self._unread is not None)

    def take(
        self,
        parts: Iterator[Batch],
        num_rows: int,
        *,
        step: int,
        learning_rate: float,
        ask: Callable[[], list[bool]] = list,
    ) -> list[bool]:
        """Takes the step over the batch's next parts.

        The losses of all ranks' parts add up to the mean over the batch, however it is split. One small sum
        over the ranks carries all that they tell one another, and stands before that of the gradients: a
        rank that has ended is noticed here, not by a GPU in the midst of a sum.

        Args:
            parts: of this rank.
            num_rows: of the whole batch, as the plan counts them.
            step: from 0, over the whole training.
            learning_rate: of this step.
            ask: what this rank has to ask of all.

        Returns:
            For each question whether some rank has said yes.

        Raises:
            TrainingStopped: if the loss or gradient of the step before is not finite.
            RankLost: if another rank has ended.
        """
        state = self.state
        set_learning_rate(state.optimizer, learning_rate)
        state.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.compute.device)
        rows: list[int] = []
        first_part = self.group.rank * self.settings.accumulation
        for part, (inputs, rows_B) in enumerate(islice(parts, self.settings.accumulation), first_part):
            loss = self.losses(inputs, rows_B, step=step, part=part).sum() / num_rows
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total, rows = total + loss.detach(), rows + rows_B.tolist()
        answers = self._exchange(ask())
        self.group.sum_gradients(state.model.parameters())
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.settings.clip_norm)
        self._unread = _Unread(Readback(torch.stack([total, norm.to(total)])), rows, state.epoch)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.average.update(step)
        return answers

    def losses(self, inputs: Inputs, rows_B: Tensor, *, step: int, part: int) -> Tensor:
        """Returns each row's loss; dropout and mixup are drawn from (seed, step, part of the batch)."""
        generator = np.random.default_rng([self.task.seed, step, part])
        torch.manual_seed(int(generator.integers(2**32)))
        targets_B = self._targets[send(rows_B, self.compute.device)]
        mixup = None
        if self.settings.mixup:
            mixup = Mixup.draw(
                len(rows_B), alpha=self.settings.mixup, generator=generator, device=self.compute.device
            )
            assert isinstance(inputs, Tensor), "a recipe with mixup and breasts is refused"
            inputs = mixup.blend(inputs)
        with autocast(self.compute.precision, self.compute.device):
            logits = self.model(inputs).float()
        losses_B = self.task.losses(logits, targets_B)
        if mixup is None:
            return losses_B
        return mixup.weigh(losses_B, self.task.losses(logits, targets_B[mixup.partner]))

    def settle(self) -> None:
        """Waits for the last step, on all ranks that have it unread, and makes sure that it was finite.

        Raises:
            TrainingStopped: if they are not.
            RankLost: if another rank has ended.
        """
        if self._unread is not None:
            self._exchange([])

    def _exchange(self, questions: list[bool]) -> list[bool]:
        """Adds up over the ranks the loss of the step before and the answers to this one's questions."""
        before, self._unread = self._unread, None
        loss, norm = before.figures.read() if before else (0.0, 0.0)
        total, *answers = self.group.sum([loss, *questions]).tolist()
        if before:
            self._judge(before, loss, norm, total)
        return [answer > 0 for answer in answers]

    def _judge(self, before: _Unread, loss: float, norm: float, total: float) -> None:
        self._require_finite("loss", total, before, [] if math.isfinite(loss) else before.rows)
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if not self.state.scaler.is_enabled() or self._overflows > MOST_OVERFLOWS:
            self._require_finite("gradient's norm", norm, before, before.rows)
        self.state.loss_sum += total

    def _require_finite(self, name: str, value: float, before: _Unread, rows: list[int]) -> None:
        """Stops all ranks if the value, which is the same in all, is not finite; `rows` are this rank's."""
        if math.isfinite(value):
            return
        is_suspect = np.zeros(len(self.task.targets))  # images, where a row of a plan is a breast too
        is_suspect[rows] = 1
        names = ", ".join(self.task.name_rows(np.flatnonzero(self.group.sum(is_suspect)).tolist()))
        raise TrainingStopped(
            f"the {name} is {value} in {self.task.name}, epoch {before.epoch + 1}, images {names}: lower "
            "train.learning_rate or look at these images; what was saved before is kept"
        )
