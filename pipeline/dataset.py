"""Cached images to batches for the model. Knows no labels' meaning and no order: the sampler gives rows."""

import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_prep.cache import Image, read_image
from pipeline.augment import Augmentation

MEAN, STD = 0.16, 0.22  # of 0..1 values of real crops, padding included; fixed, so that no fold leaks

Key = tuple[int, int]
"""(epoch, row): all that a sample's augmentation depends on besides the seed."""

Sample = tuple[Tensor, int]
"""image_CHW and its row."""


def to_tensor(image: Image) -> Tensor:
    """Returns image_CHW, float32, about zero mean and unit variance, of an image [H, W], 0..255."""
    return torch.from_numpy(image).float().div_(255.0).sub_(MEAN).div_(STD).unsqueeze(0)


class CachedImages(Dataset[Sample]):
    """Images of a cache by (epoch, row); without an augmentation the epoch makes no difference."""

    def __init__(
        self, paths: Sequence[Path], *, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self._paths = list(paths)
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, key: Key) -> Sample:
        epoch, row = key
        image = read_image(self._paths[row])
        if self._augmentation is not None:
            image = self._augmentation(image, seed=self._seed, epoch=epoch, row=row)
        return to_tensor(image), row


def make_loader(
    images: CachedImages, batches: Sequence[list[Key]], *, workers: int, pin_memory: bool = False
) -> "DataLoader[Sample]":
    """Returns a loader that yields (images_BCHW, rows_B) for each batch of keys, in order."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_interrupts,
    )


def in_order(num_images: int, batch_size: int) -> list[list[Key]]:
    """Returns batches of keys that go once through all images."""
    rows = np.arange(num_images)
    return [
        [(0, int(row)) for row in rows[start : start + batch_size]]
        for start in range(0, num_images, batch_size)
    ]


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the trainer finishes its batch and ends the workers itself."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
