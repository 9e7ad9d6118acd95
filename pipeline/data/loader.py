"""Images to batches for the model, by the keys that the sampler gives."""

import atexit
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cache
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, cast
from weakref import WeakSet

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_prep.cache.images import PreparedImages
from data_prep.errors import UserError
from data_prep.imageio.frame import Image
from data_prep.parallel.process_pool import end_with_parent
from pipeline.data.augmentation import Augmentation
from pipeline.data.sampler import SampleKey
from pipeline.models.breast_transformer import BreastInputs, Places
from pipeline.models.normalization import normalise
from pipeline.runtime.transfers import send

Sample = tuple[Image, int]
"""An image and its row."""
Inputs = Tensor | BreastInputs
"""What a model takes: images_BCHW, or images_NCHW with the breasts that they are of."""
Batch = tuple[Inputs, Tensor]
"""Inputs, and the row of each image."""


class TrainingImages(Protocol):
    """What batches are made of, by keys of (draw, unit): a unit is an image, or breasts with all theirs."""

    def __len__(self) -> int:
        """Returns the number of units."""

    def __getitem__(self, key: SampleKey, /) -> Any:
        """Returns a unit's sample, or the error for which it cannot be read."""

    def collate(self, samples: list[Any]) -> Batch | UserError:
        """Returns samples as a batch of pixels as they are, or the first of the errors."""

    def count_images(self, units: Iterable[int]) -> int:
        """Returns how many images these units have."""


class ImageDataset(Dataset[Sample | UserError]):
    """Samples by (draw, row); without an augmentation the draw makes no difference.

    An image that cannot be read is returned as the error: torch would hide one that a worker raises behind
    the worker's traceback.
    """

    def __init__(
        self, images: PreparedImages, *, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self._images = images
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: SampleKey) -> Sample | UserError:
        draw, row = key
        try:
            image = self._images[row]
        except UserError as error:
            return error
        if self._augmentation is not None:
            image = self._augmentation(image, seed=self._seed, draw=draw)
        return image, row

    def collate(self, samples: list[Sample | UserError]) -> Batch | UserError:
        """Returns pixels as they are, [B, H, W] or [B, H, W, 3], and rows_B; or the first of the errors."""
        images, rows = [], []
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
            images.append(sample[0])
            rows.append(sample[1])
        return torch.from_numpy(np.stack(images)), torch.tensor(rows)

    def count_images(self, units: Iterable[int]) -> int:
        """Returns the number of units: each is an image."""
        return len([*units])


def load_batches(
    images: TrainingImages, batches: Iterable[list[SampleKey]], *, workers: int, device: str = "cpu"
) -> Generator[Batch, None, None]:
    """Yields inputs and rows for each batch of keys, in order: inputs on the device, rows here.

    The workers begin at once, and end with the batches or with the generator. They send integers, a quarter
    of what floats would take; the device makes floats of them. `batches` may be endless.

    Raises:
        UserError: if an image is missing or damaged.
    """
    loader: DataLoader[Any] = DataLoader(
        cast("Dataset[Any]", images),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device == "cuda",
        collate_fn=images.collate,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else it draws from the stream of dropout, once more for every resume
    )
    return _send_all(_begin(loader), device)


def _send_all(batches: Iterator[Batch | UserError], device: str) -> Generator[Batch, None, None]:
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            inputs, rows_B = batch
            if isinstance(inputs, Tensor):
                yield normalise(send(inputs, device)), rows_B
            else:
                places = Places(*(send(part, device) for part in inputs.places))
                yield BreastInputs(normalise(send(inputs.images, device)), places), rows_B
    finally:
        del batches  # else an error's traceback keeps the workers, and torch awaits them when it is collected


def in_order(rows: Sequence[int], batch_size: int) -> list[list[SampleKey]]:
    """Returns batches of keys that go once through these rows."""
    keys = [(0, row) for row in rows]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


def _begin(loader: DataLoader[Any]) -> Iterator[Batch | UserError]:
    """Starts the workers, each with a single thread of OpenCV's.

    Set here, not in the worker: a fork has the pool's locks without its threads, and would wait for them.
    Signals are blocked, so that none meets a worker that does not ignore them yet.
    """
    threads, before = cv2.getNumThreads(), set(active_children())
    cv2.setNumThreads(1)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        cv2.setNumThreads(threads)
    _register_end()
    _WORKERS.update(set(active_children()) - before)
    return batches


_WORKERS: WeakSet[BaseProcess] = WeakSet()


@cache
def _register_end() -> None:
    """Has the workers killed at the end, once: after multiprocessing's own hook, and so called before it."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    """Ends what a failed training has left: multiprocessing would await them, after a signal they ignore."""
    for worker in _WORKERS:
        worker.kill()


def _begin_worker(worker: int) -> None:
    """Lets a worker live as long as the trainer: signals to the whole process group leave it alone.

    The trainer finishes its batch after them. Killed itself, it takes the worker along, which else would hold
    the locks that it has inherited.
    """
    del worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
