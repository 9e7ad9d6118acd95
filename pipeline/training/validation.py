"""The validation of a model: a task's held-out images predicted, each process its share, and judged."""

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import cycle, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.loader import Batch, ImageDataset, in_order, load_batches
from pipeline.inference.ensemble import BATCH_SIZE, compute_logits
from pipeline.models.normalization import to_tensor
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.precision import ComputeSettings
from pipeline.training.task import Judgement, Task


def load_held_out(
    task: Task, group: ProcessGroup, compute: ComputeSettings, workers: int
) -> Generator[Batch, None, None]:
    """Yields the batches of this process's share of the held-out images, over and over."""
    keys = in_order(group.share(range(len(task.held_out))), BATCH_SIZE)
    return load_batches(ImageDataset(task.held_out), cycle(keys), workers=workers, device=compute.device)


def validate(
    task: Task,
    model: Callable[[Tensor], Tensor],
    held_out: Iterator[Batch],
    compute: ComputeSettings,
    *,
    group: ProcessGroup,
    on_batch: Callable[[int], None],
) -> Judgement:
    """Judges a model by the next round of `load_held_out`.

    `on_batch` hears how many images came, and may end it by an exception.

    Raises:
        RankLost: if another process of the group has ended.
    """
    rows = group.share(range(len(task.held_out)))
    batches = islice(held_out, len(in_order(rows, BATCH_SIZE)))
    share_NK = predict_held_out(task, model, batches, compute, on_batch=on_batch)
    probabilities_MK = np.zeros((len(task.held_out), share_NK.shape[1]))
    probabilities_MK[rows] = share_NK
    return task.judge(group.sum(probabilities_MK))


def predict_held_out(
    task: Task,
    model: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    compute: ComputeSettings,
    *,
    on_batch: Callable[[int], None] = lambda _count: None,
) -> NDArray[np.float64]:
    """Returns the probabilities of held-out images, [N, K]; `on_batch` hears how many came."""
    parts = [task.to_probabilities(torch.empty((0, task.model.num_classes), dtype=torch.float64))]
    for images_BCHW, _ in batches:
        parts.append(task.to_probabilities(compute_logits(model, images_BCHW, compute)))
        on_batch(len(images_BCHW))
    return np.concatenate(parts)


def pick_held_out(task: Task, count: int) -> Tensor:
    """Returns so many of the held-out images, evenly spread: images_BCHW."""
    rows = np.unique(np.linspace(0, len(task.held_out) - 1, count).astype(int))
    return torch.stack([to_tensor(task.held_out[row]) for row in rows])
