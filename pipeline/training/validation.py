"""The validation of a model: a task's held-out images predicted, each process its share, and judged."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.inference.ensemble import compute_all_logits
from pipeline.models.normalization import to_tensor
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.precision import ComputeSettings
from pipeline.runtime.progress import Reporter
from pipeline.training.task import Judgement, Task


def validate(
    task: Task,
    model: nn.Module,
    compute: ComputeSettings,
    *,
    workers: int,
    group: ProcessGroup,
    reporter: Reporter,
    after_batch: Callable[[], None],
) -> Judgement:
    """Judges a model by a task's held-out images; `after_batch` may end it by an exception.

    Raises:
        RankLost: if another process of the group has ended.
    """
    rows = group.share(range(len(task.held_out)))
    with reporter.track(f"{task.name} held-out images", len(rows)) as advance:

        def on_batch(count: int) -> None:
            advance(count)
            after_batch()

        share_NK = predict_held_out(task, model, rows, compute, workers=workers, on_batch=on_batch)
    probabilities_MK = np.zeros((len(task.held_out), share_NK.shape[1]))
    probabilities_MK[rows] = share_NK
    return task.judge(group.sum(probabilities_MK))


def predict_held_out(
    task: Task,
    model: nn.Module,
    rows: Sequence[int],
    compute: ComputeSettings,
    *,
    workers: int,
    on_batch: Callable[[int], None] = lambda _count: None,
) -> NDArray[np.float64]:
    """Returns the probabilities of these held-out images, [N, K]; `on_batch` hears how many came."""
    parts = [task.to_probabilities(torch.empty((0, task.model.num_classes), dtype=torch.float64))]
    for logits_BK in compute_all_logits(model, task.held_out, rows, compute, workers=workers):
        parts.append(task.to_probabilities(logits_BK))
        on_batch(len(logits_BK))
    return np.concatenate(parts)


def pick_held_out(task: Task, count: int) -> Tensor:
    """Returns so many of the held-out images, evenly spread: images_BCHW."""
    rows = np.unique(np.linspace(0, len(task.held_out) - 1, count).astype(int))
    return torch.stack([to_tensor(task.held_out[row]) for row in rows])
