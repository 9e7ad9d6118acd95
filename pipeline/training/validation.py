"""The validation of a model: a task's held-out images predicted, each process its share, and judged."""

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.loader import Batch, TrainingImages, load_batches
from pipeline.data.sampler import SampleKey, pack
from pipeline.inference.ensemble import BATCH_SIZE, compute_logits
from pipeline.models.normalization import to_tensor
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.precision import ComputeSettings
from pipeline.training.task import Judgement, Task


def load_held_out(
    task: Task, group: ProcessGroup, compute: ComputeSettings, workers: int
) -> Generator[Batch, None, None]:
    """Yields the batches of this process's share of the held-out images, over and over."""
    keys = pack_units(task.judged, group.share(range(len(task.judged))))
    return load_batches(task.judged, cycle(keys), workers=workers, device=compute.device)


def pack_units(judged: TrainingImages, units: Iterable[int]) -> list[list[SampleKey]]:
    """Returns batches of keys that go once through these units, of `BATCH_SIZE` images or a single unit."""
    packs = pack(units, lambda unit: judged.count_images([unit]), BATCH_SIZE)
    return [[(0, unit) for unit in units] for units in packs]


def validate(
    task: Task,
    model: Callable[[Any], Any],
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
    units = group.share(range(len(task.judged)))
    batches = islice(held_out, len(pack_units(task.judged, units)))
    rows, share_NK = predict_held_out(task, model, batches, compute, on_batch=on_batch)
    probabilities_MK = np.zeros((len(task.held_out), task.num_probabilities))
    probabilities_MK[rows] = share_NK
    return task.judge(group.sum(probabilities_MK))


def predict_held_out(
    task: Task,
    model: Callable[[Any], Any],
    batches: Iterable[Batch],
    compute: ComputeSettings,
    *,
    on_batch: Callable[[int], None] = lambda _count: None,
) -> tuple[list[int], NDArray[np.float64]]:
    """Returns the rows of held-out images and their probabilities, [N, K]; `on_batch` hears how many came."""
    rows: list[int] = []
    parts: list[NDArray[np.float64]] = []
    for inputs, rows_N in batches:
        rows += rows_N.tolist()
        parts.append(task.to_probabilities(compute_logits(model, inputs, compute)))
        on_batch(len(inputs))
    return rows, np.concatenate(parts) if parts else np.empty((0, task.num_probabilities))


def pick_held_out(task: Task, count: int) -> Tensor:
    """Returns so many of the held-out images, evenly spread: images_BCHW."""
    rows = np.unique(np.linspace(0, len(task.held_out) - 1, count).astype(int))
    return torch.stack([to_tensor(task.held_out[row]) for row in rows])
