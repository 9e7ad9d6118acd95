"""Images to batches for the model. Knows no labels' meaning and no order: the sampler gives rows."""

import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from data_prep.errors import UserError
from data_prep.frame import Image
from data_prep.pack import Images
from pipeline.augment import Augmentation

# Not the images' own mean: the first LayerNorm keeps a flat patch's sign and drops its size, so dense
# tissue must lie above zero and fat below to be told apart at the first step (reports/LOG.md). No fold leaks.
MEAN, STD = 0.5, 0.25

Key = tuple[int, int]
"""(epoch, row): all that a sample's augmentation depends on besides the seed."""

Sample = tuple[Tensor, int]
"""image_CHW and its row."""

Batch = tuple[Tensor, Tensor]
"""images_BCHW and rows_B."""


def to_tensor(image: Image) -> Tensor:
    """Returns image_CHW, float32, -2 to 2, of an image [H, W] or [H, W, 3], 0..255 or 0..65535."""
    brightest = float(np.iinfo(image.dtype).max)
    pixels = torch.from_numpy(image).float().div_(brightest).sub_(MEAN).div_(STD)
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


class CachedImages(Dataset[Sample | UserError]):
    """Samples by (epoch, row); without an augmentation the epoch makes no difference.

    An image that cannot be read is returned as the error: torch would hide one that a worker raises behind
    the worker's traceback.
    """

    def __init__(self, images: Images, *, augmentation: Augmentation | None = None, seed: int = 0) -> None:
        self._images = images
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: Key) -> Sample | UserError:
        epoch, row = key
        try:
            image = self._images[row]
        except UserError as error:
            return error
        if self._augmentation is not None:
            image = self._augmentation(image, seed=self._seed, epoch=epoch, row=row)
        return to_tensor(image), row


def load_batches(
    images: CachedImages, batches: Sequence[list[Key]], *, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Yields (images_BCHW, rows_B) for each batch of keys, in order.

    Raises:
        UserError: if an image is missing or damaged.
    """
    loader: DataLoader[Sample | UserError] = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        worker_init_fn=_ignore_stops,
        generator=torch.Generator(),  # else it draws from the stream of dropout, once more for every resume
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def in_order(rows: Sequence[int], batch_size: int) -> list[list[Key]]:
    """Returns batches of keys that go once through these rows."""
    keys = [(0, row) for row in rows]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


def _collate(samples: list[Sample | UserError]) -> list[Tensor] | UserError:
    """Returns the batch, or the first of its errors."""
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    batch: list[Tensor] = default_collate(samples)
    return batch


def _ignore_stops(worker: int) -> None:
    """A stop reaches the whole process group; the trainer finishes its batch and ends the workers itself."""
    del worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
